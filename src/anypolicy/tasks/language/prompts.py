"""Prompts with answers from a .jsonl file or a Hugging Face data set."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.pictures import FIELDS, of_row
from anypolicy.tasks.language.preferences import check_rendering, check_spoken, check_turn
from anypolicy.tasks.language.verifiers import check_golds, check_verifier, verify
from anypolicy.tasks.lines import json_lines
from anypolicy.tasks.split import split

REMEDY = {
    "numeric": "verifier=numeric would never pay it: write a value and nothing else, or use verifier=exact (the same "
    "text, for words and letters) or verifier=regex",
    "exact": "verifier=exact would pay it to an empty response: write the answer",
}


class PromptTask:
    """Prompts, their answers and a named verifier; reward 1 for a correct response, else 0.

    `reference` names the field of a response to imitate or compare with (text, or a list of token ids; a row may leave
    it out), by default `response` if there is one. A row of `messages` that end with the assistant's is read as prompt
    and reference. A prompt with several references is several prompts. Name and side of the split follow from the
    prompt without the instruction; further fields go into `info`, among them recorded `responses`.

    Rows without answers make a task without a verifier, be they prompts alone or with references; so do recorded
    responses, with `verifier_name` none. Of the latter nothing is held out. What a row shows in `image` or `images`
    (paths relative to `folder`) belongs to its prompt.
    """

    def __init__(
        self, name: str, rows: Iterable[tuple[str, dict[str, Any]]], *, prompt: str, answer: str, verifier_name: str,
        heldout: float, max_tokens: int, instruction: str, reference: str = "", folder: Path | None = None,
    ):  # fmt: skip
        self.reference = reference or "response"
        self.name, self.max_tokens, self.folder = name, max_tokens, folder
        self.verifier = check_verifier("exact" if verifier_name == "none" else verifier_name)
        read = [(where, conversation(name, where, row, prompt, self.reference)) for where, row in rows]
        refers = bool(read) and has(read[0][1], self.reference)
        answers, streams = bool(read) and has(read[0][1], answer), bool(read) and "responses" in read[0][1]
        self.verifies = verifier_name != "none" and (answers or (streams and not refers))
        label = (answer,) if self.verifies else (self.reference,) if refers else ("responses",) if streams else ()
        self.needed = (prompt, *label)
        prompts: dict[str, list[Prompt]] = {}
        every = [(where, self.read(where, row, prompt, answer, instruction, verifier_name)) for where, row in read]
        if self.verifies:
            self.check([(where, answer, str(one.answer)) for where, one in every], verifier_name)
        for where, one in every:
            same = prompts.setdefault(one.id, [])
            if same and same[0].answer != one.answer:
                raise InputError(
                    name, f"{where}: {answer} {one.answer!r}", f"the same prompt has answer {same[0].answer!r}"
                )
            if same and same[0].info.get("responses") != one.info.get("responses"):
                raise InputError(name, where, "the same prompt stands there with other responses: put all on one line")
            if one.reference not in [p.reference for p in same]:
                same.append(replace(one, id=f"{one.id}-{len(same)}") if same else one)
        if reference and prompts and all(p.reference is None for same in prompts.values() for p in same):
            raise InputError(name, reference, "no row has this field: name the field of the reference responses")
        if not self.verifies and not refers and streams:
            self.train, self.heldout = [p for same in prompts.values() for p in same], []
            return
        if len(prompts) < 2:
            raise InputError(name, f"{len(prompts)} different prompts", "give at least 2, one of them to hold out")
        sides = split(prompts.values(), lambda same: same[0].id, heldout)
        self.train, self.heldout = ([p for same in side for p in same] for side in sides)

    def read(self, where: str, row: dict[str, Any], prompt: str, answer: str, instruction: str, kind: str) -> Prompt:
        """One checked row."""
        for field in self.needed:
            if not has(row, field):
                raise InputError(self.name, where, f"it has no {field!r} (fields: {', '.join(row)})", choices=row)
        check_rendering(self.name, where, row)
        messages = self.messages(where, prompt, row[prompt])
        label = self.label(where, answer, row[answer], kind) if self.verifies else None
        media, digests = of_row(self.name, where, row, self.folder)
        named = [messages, digests] if digests else messages
        name = hashlib.sha256(json_text(named, sort_keys=True).encode()).hexdigest()[:16]
        if instruction:
            messages[-1]["content"] += "\n" + instruction
        info = {k: v for k, v in row.items() if k not in (prompt, answer, self.reference, *FIELDS)}
        return Prompt(name, tuple(messages), media=media, answer=label, info=info, reference=self.shown(where, row))

    def label(self, where: str, answer: str, label: Any, kind: str) -> str:
        """The row's answer, checked."""
        number = isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label)
        if not isinstance(label, str) and not number:
            raise InputError(self.name, where, f"{answer!r} is {label!r}: write it as text or as a number")
        label = format(Decimal(repr(label)), "f") if isinstance(label, float) else str(label)
        if kind == "regex":
            try:
                re.compile(label)
            except (re.error, OverflowError, RecursionError) as error:
                raise InputError(self.name, where, f"{label[:80]!r} is no regular expression: {error}") from error
        return label

    def check(self, golds: list[tuple[str, str, str]], kind: str) -> None:
        """Every gold is verified against itself."""
        fit = check_golds(kind, [gold for _, _, gold in golds])
        bad = [row for row, ok in zip(golds, fit, strict=True) if not ok]
        if bad:
            where, answer, gold = bad[0]
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise InputError(self.name, f"{where}: {answer} {gold!r}{more}", REMEDY[kind])

    def shown(self, where: str, row: dict[str, Any]) -> str | tuple[int, ...] | None:
        """The row's reference response, checked."""
        shown = row.get(self.reference)
        if isinstance(shown, list) and all(type(i) is int and i >= 0 for i in shown):
            shown = tuple(shown)
        if shown is not None and (not isinstance(shown, str | tuple) or not shown):
            raise InputError(
                self.name, where, f"{self.reference!r} is {shown!r}: write text or a list of token ids, or leave it out"
            )
        return shown

    def messages(self, where: str, field: str, given: Any) -> list[dict[str, Any]]:
        """Text as one message of the user; messages as copies."""
        given = [{"role": "user", "content": given}] if isinstance(given, str) else given
        fit = (
            isinstance(given, list)
            and bool(given)
            and all(
                isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
                for m in given
            )
        )
        if not fit:
            raise InputError(
                self.name, where, f"{field!r} must be text or a list of messages whose role and content are text"
            )
        check_turn(self.name, where, given)
        return [dict(m) for m in given]

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        return self.score_many([(prompt, response, text)])[0]

    def score_many(self, responses: Sequence[tuple[Prompt, Tokens, str]]) -> list[Score]:
        if not self.verifies:
            raise InputError(
                "verifier",
                "none",
                "there is nothing to verify new responses with: learn from recorded ones, or give a reward of your own",
            )
        return verify(self.verifier, [(text, str(prompt.answer)) for prompt, _, text in responses])


def has(row: dict[str, Any], field: str) -> bool:
    """Whether a row has something in the field."""
    return row.get(field) not in (None, "", [])


def conversation(name: str, where: str, row: dict[str, Any], prompt: str, reference: str) -> dict[str, Any]:
    """A row of messages of which the last is the assistant's, as prompt and reference; other rows as they are."""
    messages = row.get("messages")
    if has(row, prompt) or not isinstance(messages, list) or not messages:
        return row
    last = messages[-1]
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return row
    if has(row, reference) and row[reference] != last.get("content"):
        raise InputError(name, where, f"{reference!r} is not what 'messages' ends with: keep one of the two")
    check_spoken(name, where, last)
    rest = {k: v for k, v in row.items() if k != "messages"}
    return rest | {prompt: messages[:-1], reference: last.get("content")}


def from_jsonl(
    path: str, *, prompt: str = "prompt", answer: str = "answer", verifier: str = "exact", heldout: float = 0.2,
    max_tokens: int = 64, instruction: str = "", reference: str = "",
) -> PromptTask:  # fmt: skip
    """One JSON object a line: a prompt (text or messages), perhaps images, and an answer or a reference response."""
    return PromptTask(
        path, json_lines(path, "a prompt and an answer or response"), prompt=prompt, answer=answer,
        verifier_name=verifier, heldout=heldout, max_tokens=max_tokens, instruction=instruction, reference=reference,
        folder=Path(path).parent,
    )  # fmt: skip


def from_hub(
    name: str, *, split: str = "train", config: str = "", prompt: str = "prompt", answer: str = "answer",
    verifier: str = "exact", heldout: float = 0.2, max_tokens: int = 256, instruction: str = "", reference: str = "",
) -> PromptTask:  # fmt: skip
    """A data set of the Hugging Face hub, or a folder of data files."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError("task", f"hf/{name}", "install datasets: pip install 'anypolicy[tasks]'") from error
    if name.isidentifier() and find_spec(f"datasets.packaged_modules.{name}"):
        # of the working directory, and the reader "pandas" of versions before 5.2 would unpickle what lies there
        raise InputError("task", f"hf/{name}", "datasets has a reader of files of this name, no data set: for a folder "
                         f"write hf/./{name}, for a data set of the hub OWNER/NAME")  # fmt: skip
    try:
        table = load_dataset(name, config or None, split=split)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            "task", f"hf/{name}", f"it cannot be loaded ({first}): check name and split; without a network use a "
            "folder of data files or a .jsonl file",
        ) from error  # fmt: skip
    rows = ((f"row {i}", dict(row)) for i, row in enumerate(table))
    return PromptTask(
        f"hf/{name}", rows, prompt=prompt, answer=answer, verifier_name=verifier, heldout=heldout,
        max_tokens=max_tokens, instruction=instruction, reference=reference,
    )  # fmt: skip
