"""Preference pairs from a .jsonl file: one object a line with prompt, chosen and rejected."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from anypolicy.data.preferences import Preference
from anypolicy.data.records import LARGEST, Prompt, said_beside
from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text
from anypolicy.tasks.language.pictures import of_row
from anypolicy.tasks.lines import json_lines
from anypolicy.tasks.split import split


def load_pairs(path: str, *, heldout: float = 0.1) -> tuple[list[Preference], list[Preference]]:
    """(train, held out). All pairs of a prompt are on one side, which follows from the prompt's own text.

    `prompt` is text, messages, or a list of token ids; `chosen` and `rejected` are text (for a model without tokenizer:
    ids with spaces between them), or conversations whose last message is the response; `margin`, if given, is a number.
    """
    pairs = [read(path, where, row) for where, row in json_lines(path, "prompt, chosen and rejected", "pairs")]
    sides = split(list(dict.fromkeys(p.prompt.id for p in pairs)), str, heldout)
    train, held = ([p for p in pairs if p.prompt.id in names] for names in map(set[str], sides))
    if not train:
        raise InputError("pairs", path, "it has no pair to train on: give at least 2 different prompts")
    return train, held


READ = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
"""Keys of a message that chat templates read."""


def read(path: str, where: str, row: dict[str, Any]) -> Preference:
    """One checked line."""
    asked = prompt(path, where, row, "chosen", "rejected")
    chosen, rejected = (response(path, where, name, row) for name in ("chosen", "rejected"))
    if chosen.rstrip() == rejected.rstrip():
        raise InputError(
            path, where, "chosen and rejected are the same but for white space at the end: remove the line"
        )
    check_order(path, where, row)
    margin = row.get("margin")
    if margin is not None and not number(margin):
        raise InputError(
            path, where, f"'margin' is {margin!r}: write a finite number of at most {LARGEST:g} or leave it out"
        )
    return Preference(asked, chosen, rejected, None if margin is None else float(margin))


def check_order(path: str, where: str, row: dict[str, Any]) -> None:
    """Refuse a line whose own scores, ratings or rewards (`score_chosen` and `score_rejected`, say) contradict it."""
    for name in row:
        other = name.replace("chosen", "rejected")
        if other == name or not any(word in name.lower() for word in ("score", "rating", "reward")):
            continue
        mine, theirs = row[name], row.get(other)
        if number(mine) and number(theirs) and mine < theirs:
            raise InputError(path, where, f"{name!r} is {mine}, below {other!r}, {theirs}: exchange the responses, or "
                             "leave the scores out if lower ones are better")  # fmt: skip


def prompt(path: str, where: str, row: dict[str, Any], *responses: str) -> Prompt:
    """The prompt and what it shows (`image` or `images`, paths relative to the file), named after its own content.
    Where the fields `responses` hold conversations, what stands before their last message is the prompt; beside a
    `prompt` of its own they repeat it or leave it out. A `prompt` that is one of their user's messages, first or last,
    says nothing more."""
    check_rendering(path, where, row)
    given = row.get("prompt")
    before = {name: history(path, where, name, row[name]) for name in responses if isinstance(row.get(name), list)}
    none = given in (None, []) or (isinstance(given, str) and not given.strip())
    if before and (none or repeats(given, list(before.values()), len(responses))):
        if len(before) < len(responses):
            raise InputError(path, where, f"only {', '.join(before)} is a conversation, and there is no 'prompt': "
                             "write all responses as conversations, or give the prompt")  # fmt: skip
        given = agreed(list(before.values()))
    else:
        before = {name: own for name, own in before.items() if own}
    asked: Any = [{"role": "user", "content": given}] if isinstance(given, str) and given else given
    media, digests = of_row(path, where, row, Path(path).parent)
    name = name_of([given, digests] if digests else given)
    if isinstance(asked, list) and asked and all(type(i) is int and i >= 0 for i in asked):
        made = Prompt(name, tokens=tuple(asked), media=media)
    elif isinstance(asked, list) and asked and all(message(m) for m in asked):
        check_turn(path, where, asked)
        made = Prompt(name, tuple(dict(m) for m in asked), media=media)
    else:
        raise InputError(
            path, where, f"'prompt' is {given!r}: write text, messages with role and content, or token ids"
        )
    for field, own in before.items():
        if not alike(own, asked):
            same = (a == b or alike([a], [b]) for a, b in zip(own, asked, strict=False))
            i = next((i for i, fit in enumerate(same) if not fit), min(len(own), len(asked)))
            raise InputError(path, where, f"what stands before the response in {field!r} is not the prompt (they part "
                             f"at message {i}): all responses of a line answer one prompt; where the conversations "
                             "hold it, leave 'prompt' out")  # fmt: skip
    return made


def alike(one: list[Any], other: list[Any]) -> bool:
    """Whether two lists hold messages that a chat template reads as the same."""
    return len(one) == len(other) and all(
        message(a) and message(b) and all(a.get(key) == b.get(key) for key in READ)
        for a, b in zip(one, other, strict=True)
    )


def agreed(histories: list[list[Any]]) -> list[Any]:
    """The first of histories, and of every message only what all that are alike say there."""
    first, *others = histories
    fit = [own for own in others if alike(own, first)]
    return [{k: v for k, v in m.items() if all(own[i].get(k) == v for own in fit)} for i, m in enumerate(first)]


def repeats(given: Any, histories: list[list[Any]], responses: int) -> bool:
    """Whether a text is the first or the last message of the user in one history that all the responses follow, and not
    all of it."""
    first, *others = histories
    if not isinstance(given, str) or len(histories) < responses or not all(alike(own, first) for own in others):
        return False
    asked = [m["content"] for m in first if m["role"] == "user"]
    whole = len(first) == 1 and first[0]["content"] == given
    return not whole and given.strip() in [text.strip() for text in asked[:1] + asked[-1:]]


def name_of(content: Any) -> str:
    """A name that follows from the content."""
    return hashlib.sha256(json_text(content, sort_keys=True).encode()).hexdigest()[:16]


def history(path: str, where: str, name: str, given: list[Any]) -> list[Any]:
    """What stands before the response in a conversation, which must end with the assistant's message."""
    if not given or not all(message(m) for m in given):
        raise InputError(path, where, f"{name!r} is {given!r}: write the text of a response, or messages with role and "
                         "content")  # fmt: skip
    if given[-1]["role"] != "assistant":
        raise InputError(path, where, f"{name!r} ends with a message of the {given[-1]['role']}: its last message is "
                         "the response, so it must be the assistant's")  # fmt: skip
    return given[:-1]


def check_turn(path: str, where: str, asked: list[dict[str, Any]]) -> None:
    """Refuse a prompt that ends with the assistant's words: a chat template would close them and open a new turn."""
    if asked[-1]["role"] == "assistant":
        raise InputError(path, where, "the prompt ends with the assistant's message: a response begins a new turn and "
                         "cannot go on with one, so end the prompt with the user's message")  # fmt: skip


def check_spoken(path: str, where: str, m: dict[str, Any]) -> None:
    """Refuse a message that says something beside its content, where only that is read."""
    if more := said_beside(m):
        raise InputError(path, where, f"a message of the {m['role']} has {', '.join(more)}: only its content is read, "
                         "so write it there or remove it")  # fmt: skip


def check_rendering(path: str, where: str, row: dict[str, Any]) -> None:
    """Refuse a row that says how its messages are rendered: they are given to the chat template alone."""
    for name in ("tools", "chat_template_kwargs"):
        if row.get(name) not in (None, "", [], {}):
            raise InputError(path, where, f"{name!r} is not given to the chat template: write it into the system "
                             "message, or remove it")  # fmt: skip


def response(path: str, where: str, name: str, row: dict[str, Any]) -> str:
    """The text of a response, or of the last message of a conversation."""
    given = row.get(name)
    if isinstance(given, list):
        history(path, where, name, given)
        check_spoken(path, where, given[-1])
        given = given[-1]["content"]
    if not isinstance(given, str) or not given.strip():
        raise InputError(path, where, f"{name!r} is {given!r}: write the text of a response", choices=row)
    return given


def message(m: Any) -> bool:
    return isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)


def number(x: Any) -> bool:
    """Whether it is a number that a score can be."""
    return type(x) in (int, float) and abs(x) <= LARGEST
