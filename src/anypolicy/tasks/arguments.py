"""Settings of a task in its name, `name:key=value,key=value`, and the call of what makes it with them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

from anypolicy.data.readers import yaml_value
from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text

Built = TypeVar("Built")


def parse(arguments: str, field: str = "task") -> dict[str, Any]:
    """`a=1,b=text` → {"a": 1, "b": "text"}, each value a YAML scalar; `field` is where they stand."""
    out: dict[str, Any] = {}
    for part in _pairs(arguments) if arguments else []:
        key, equals, text = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(field, part, "write its settings as key=value,key=value")
        if key in out:
            raise InputError(f"{field}.{key}", text, f"it is given twice (first {out[key]!r}): keep one")
        try:
            out[key] = yaml_value(text)
            json_text(out[key])  # dates and bytes have no place in a task
        except (TypeError, ValueError) as error:
            raise InputError(f"{field}.{key}", text, "this is no single value: put it in quotes") from error
        if not isinstance(out[key], str | int | float | list | dict | None):  # YAML has dates, sets and bytes, too
            raise InputError(f"{field}.{key}", text, "this is no single value: put it in quotes")
    return out


def _pairs(arguments: str) -> list[str]:
    """`key=value` texts; a comma inside a value that begins with a quote does not separate."""
    parts, quote = [""], ""
    for c in arguments:
        if c == "," and not quote:
            parts.append("")
            continue
        if c == quote:
            quote = ""
        elif c in "\"'" and not quote and parts[-1].rstrip().endswith("="):
            quote = c
        parts[-1] += c
    return parts


def call(build: Callable[..., Built], name: str, first: tuple[Any, ...], settings: dict[str, Any]) -> Built:
    """Build with keyword settings whose names and types the builder's own signature says.

    A builder that takes further settings (**config) checks those itself.
    """
    parameters = inspect.signature(build, eval_str=True).parameters.values()
    known = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    more = any(p.kind is p.VAR_KEYWORD for p in parameters)
    taken = {"self", *(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)}
    fitted: dict[str, Any] = {}
    for key, value in settings.items():
        if key in known:
            fitted[key] = fit(f"{name}.{key}", value, known[key])
        elif more and key not in taken:
            fitted[key] = value
        else:
            raise InputError(f"{name}.{key}", value, f"it has the settings {', '.join(known)}", choices=known)
    try:
        return build(*first, **fitted)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise InputError(
            "task", f"{name}: {fitted}", "it needs more memory than there is: use smaller sizes"
        ) from error


def fit(field: str, value: Any, kind: Any) -> Any:
    """The value as the annotated kind; YAML reads 1e-3 as text, so a float may be given as text."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value not in choices:
            raise InputError(field, value, f"use {', '.join(choices[:-1])} or {choices[-1]}", choices=choices)
        return value
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            value = float(value)
        except (ValueError, OverflowError) as error:
            raise InputError(field, value, "use a number") from error
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise InputError(field, value, f"use {KINDS[kind]}")
    if kind is int and abs(value) > MOST:
        raise InputError(field, value, f"use at most {MOST:,}")
    return value


MOST = 10**9
"""Of a whole number in a task's settings: they are sizes."""
KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text (in quotes where it looks like a number, a list or yes/no)",
}
