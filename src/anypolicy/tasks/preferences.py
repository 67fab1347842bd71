"""Preference pairs from a .jsonl file: one object a line with prompt, chosen and rejected."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from anypolicy.data.preferences import Preference
from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text
from anypolicy.tasks.lines import json_lines
from anypolicy.tasks.shown import of_row
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


def read(path: str, where: str, row: dict[str, Any]) -> Preference:
    """One checked line."""
    chosen, rejected = (response(path, where, name, row) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise InputError(path, where, "chosen and rejected are the same: remove the line")
    margin = row.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float) or not finite(margin)):
        raise InputError(path, where, f"'margin' is {margin!r}: write a finite number or leave it out")
    return Preference(prompt(path, where, row), chosen, rejected, None if margin is None else float(margin))


def prompt(path: str, where: str, row: dict[str, Any]) -> Prompt:
    """The prompt and what it shows (`image` or `images`, paths relative to the file), named after its own content;
    messages may also stand before the response in `chosen`."""
    given = row.get("prompt")
    if given is None and isinstance(row.get("chosen"), list):
        given = row["chosen"][:-1]
    media, digests = of_row(path, where, row, Path(path).parent)
    named = [given, digests] if digests else given
    name = hashlib.sha256(json_text(named, sort_keys=True).encode()).hexdigest()[:16]
    if isinstance(given, str) and given:
        return Prompt(name, ({"role": "user", "content": given},), media=media)
    if isinstance(given, list) and given and all(type(i) is int and i >= 0 for i in given):
        return Prompt(name, tokens=tuple(given), media=media)
    if isinstance(given, list) and given and all(message(m) for m in given):
        return Prompt(name, tuple(dict(m) for m in given), media=media)
    raise InputError(path, where, f"'prompt' is {given!r}: write text, messages with role and content, or token ids")


def response(path: str, where: str, name: str, row: dict[str, Any]) -> str:
    """The text of a response, or of the last message of a conversation."""
    given = row.get(name)
    if isinstance(given, list) and given and message(given[-1]):
        given = given[-1]["content"]
    if not isinstance(given, str) or not given:
        raise InputError(path, where, f"{name!r} is {given!r}: write the text of a response", choices=row)
    return given


def message(m: Any) -> bool:
    return isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)


def finite(x: float) -> bool:
    return math.isfinite(x)
