"""Responses that stand in a file, with what is known of how good they are: preference pairs, responses with a label,
and the stream of scored groups that a run has written. All become prompts with `responses` and `scores`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from anypolicy.data.preferences import Preference
from anypolicy.data.records import LARGEST, Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.preferences import number, prompt, read, response
from anypolicy.tasks.lines import json_lines
from anypolicy.tasks.split import split


class RecordedTask:
    """Prompts with recorded responses in two splits; new responses cannot be scored."""

    verifies = False

    def __init__(
        self, name: str, train: list[Prompt], heldout: list[Prompt], max_tokens: int, suggested: dict[str, Any]
    ):
        if not train:
            raise InputError("task", name, "it has no record to train on: give at least 2 different prompts")
        self.suggested = suggested
        self.name, self.train, self.heldout, self.max_tokens = name, train, heldout, max_tokens

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        raise InputError("task", self.name, "it cannot score new responses: learn from recorded ones, give a reward of "
                         "your own (--reward), or a reward model (--reward-model)")  # fmt: skip


def from_pairs(path: str, *, heldout: float = 0.1, max_tokens: int = 64) -> RecordedTask:
    """prompt, chosen, rejected and perhaps margin in every line. The scores are the margin (1 without one) and 0; the
    chosen response is the prompt's reference."""
    return sides(path, "prompt, chosen and rejected", lambda where, row: pair(path, where, row), heldout, max_tokens)


def from_labels(path: str, *, heldout: float = 0.1, max_tokens: int = 64) -> RecordedTask:
    """prompt, completion and label (true or false) in every line. The score is 1 or 0; a good one is the reference."""
    return sides(path, "prompt, completion and label", lambda where, row: labelled(path, where, row), heldout,
                 max_tokens)  # fmt: skip


def from_stream(path: str, *, max_tokens: int = 64) -> RecordedTask:
    """A run's own groups.jsonl: context ids, responses as ids and their scores, in the order of the steps. Nothing is
    held out, and ids are trained on as they stand."""
    rows = list(json_lines(path, "context, responses and scores"))
    made = [group(path, where, row) for where, row in rows]
    first = sum(p.info["step"] == made[0].info["step"] for p in made) if made else 0
    return RecordedTask(path, made, [], max_tokens, {"prompts": first})


def sides(
    path: str, wanted: str, one: Callable[[str, dict[str, Any]], Prompt], heldout: float, max_tokens: int
) -> RecordedTask:
    """Records of one line each, in two splits."""
    return parted(path, (one(where, row) for where, row in json_lines(path, wanted)), heldout, max_tokens)


def parted(path: str, records: Iterable[Prompt], heldout: float, max_tokens: int) -> RecordedTask:
    """Records in two splits: all those of one prompt are on one side, which follows from the prompt's own text."""
    found, seen = list[Prompt](), set[str]()
    for made in records:
        said = json_text([own(made), made.messages, made.tokens, made.info["responses"], made.info["scores"]])
        if said not in seen:
            seen.add(said)
            found.append(made)
    names = split(list(dict.fromkeys(own(p) for p in found)), str, heldout)
    train, held = ([p for p in found if own(p) in side] for side in map(set[str], names))
    return RecordedTask(path, train, held, max_tokens, {"prompts": 16})


def own(p: Prompt) -> str:
    """The name of a record's prompt."""
    return p.id.partition("/")[0]


def pair(path: str, where: str, row: dict[str, Any]) -> Prompt:
    """One pair."""
    p: Preference = read(path, where, row)
    answers = [ids_of(path, where, p.prompt, text) for text in (p.chosen, p.rejected)]
    if p.margin is not None and p.margin <= 0:
        raise InputError(path, where, f"'margin' is {p.margin}: the chosen response must be better by more than 0")
    return record(p.prompt, where, answers, [1.0 if p.margin is None else p.margin, 0.0], answers[0])


def labelled(path: str, where: str, row: dict[str, Any]) -> Prompt:
    """One response with its label."""
    if type(row.get("label")) is not bool:
        raise InputError(path, where, f"'label' is {row.get('label')!r}: write true or false", choices=row)
    p = prompt(path, where, row, "completion")
    answer = ids_of(path, where, p, response(path, where, "completion", row))
    return record(p, where, [answer], [float(row["label"])], answer if row["label"] else None)


def group(path: str, where: str, row: dict[str, Any]) -> Prompt:
    """One group of a stream."""
    context, given, scores = (row.get(name) for name in ("context", "responses", "scores"))
    if not ids(context):
        raise InputError(path, where, f"'context' is {context!r}: it must be token ids")
    answers: list[tuple[int, ...]] = [tuple(a) for a in given if ids(a)] if isinstance(given, list) else []
    if not answers or len(answers) < len(given or ()):
        raise InputError(path, where, "'responses' must be lists of token ids, none of them empty")
    known: list[float] = [float(s) for s in scores if number(s)] if isinstance(scores, list) else []
    if len(known) < len(answers) or len(scores or ()) != len(answers):
        raise InputError(
            path, where, f"'scores' is {scores!r}: it must be {len(answers)} finite numbers of at most {LARGEST:g}"
        )
    name = Prompt("group", tokens=tuple(context or ()))
    return record(name, where, answers, known, None, exact=True, step=row.get("step"))


def record(
    p: Prompt, where: str, answers: Iterable[str | tuple[int, ...]], scores: list[float],
    reference: str | tuple[int, ...] | None, **more: Any,
) -> Prompt:  # fmt: skip
    """A prompt of its own for every record, named after its prompt and its line."""
    info = {"responses": list(answers), "scores": scores, **more}
    return Prompt(f"{p.id}/{where}", p.messages, p.tokens, p.media, reference=reference, info=info)


def ids_of(path: str, where: str, p: Prompt, text: str) -> str | tuple[int, ...]:
    """A response to a prompt of token ids as ids, which are written with spaces between them."""
    if p.tokens is None:
        return text
    words = text.split()
    if not words or not all(w.isdecimal() for w in words):
        raise InputError(path, where, f"the prompt is token ids, the response is {text!r}: write ids with spaces")
    return tuple(int(w) for w in words)


def ids(x: Any) -> bool:
    """Whether it is a list of token ids that is not empty."""
    return isinstance(x, list) and bool(x) and all(type(i) is int and i >= 0 for i in x)
