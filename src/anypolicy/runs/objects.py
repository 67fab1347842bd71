"""Objects where a recipe has a text: what a caller of the Python interface hands in as a task, a policy or a reward.

The recipe keeps a name, `object/…`; the object is there while the call lasts to which it was handed, so that none is
ever taken for another of the same name. Data have a digest of their rows in their name: a run goes on with the data
that it began with.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from pathlib import Path
from typing import Any

from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text

PREFIX = "object/"
HANDED: ContextVar[Mapping[str, Any]] = ContextVar("objects handed in", default={})  # noqa: B039


@contextmanager
def handed(settings: Mapping[str, Any]) -> Generator[dict[str, Any]]:
    """The settings with a name in place of every object, and inside the block the objects by these names."""
    objects = dict(HANDED.get())
    named = {k: NAMES[k](k, v, objects) if k in NAMES else v for k, v in settings.items()}
    token = HANDED.set(objects)
    try:
        yield named
    finally:
        HANDED.reset(token)


def is_object(name: object) -> bool:
    """Whether a setting names an object."""
    return isinstance(name, str) and name.startswith(PREFIX)


def given(field: str, name: str) -> Any:
    """The object of a name. Raises InputError where it was not handed to this call."""
    if name not in HANDED.get():
        raise InputError(field, name, "it was an object of the Python process that began the run: hand it in again, as "
                         f"in ap.resume(run, {field}=…)")  # fmt: skip
    return HANDED.get()[name]


def objects_in(settings: Mapping[str, Any]) -> list[str]:
    """The settings that name objects."""
    values = {k: v if isinstance(v, list | tuple) else [v] for k, v in settings.items()}
    return [k for k, v in values.items() if any(is_object(x) for x in v)]


def check_same(settings: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """Refuse objects (by their names) in place of what a run was begun with."""
    for field, value in settings.items():
        begun = written.get(field)
        now = list(value) if isinstance(value, tuple) else value
        if now != begun and not (isinstance(begun, str) and begun.startswith(f"{now}:")):
            raise InputError(field, value, f"the run was begun with {begun!r}: hand in the same")


def entered(field: str, value: Any, name: str, objects: dict[str, Any]) -> str:
    """The full name of an object, which is then known by it."""
    full = PREFIX + name
    if objects.setdefault(full, value) is not value and objects[full] != value:
        raise InputError(field, name, "two different objects have this name: rename one")
    return full


def one(field: str, value: Any, objects: dict[str, Any]) -> Any:
    """Texts as they are; rows of data by their digest; other objects by what they are called (a model with its
    tokenizer as the model is)."""
    if value is None or isinstance(value, str | Path | Real):
        return value
    if field in ("task", "pairs") and (rows := rows_of(field, value)) is not None:
        lines = "\n".join(json_text(row, sort_keys=True, default=content) for row in rows)
        name = f"rows-{hashlib.sha256(lines.encode(errors='surrogateescape')).hexdigest()[:16]}"
        return entered(field, rows, name, objects)
    return entered(field, value, title_of(value[0] if isinstance(value, list | tuple) and value else value), objects)


def title_of(value: Any) -> str:
    """What an object is called: by its specification, by itself, or by its class."""
    name = getattr(getattr(value, "spec", None), "id", None) or getattr(value, "__name__", type(value).__name__)
    return re.sub(r"[^\w.-]+", "-", str(name)).strip("-") or "object"


def several(field: str, value: Any, objects: dict[str, Any]) -> Any:
    """One reward or a list of them; a weight stands behind its function, as in (f, 0.5)."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Real):
        return (f"{one(field, value[0], objects)}:{value[1]}",)
    if isinstance(value, list | tuple):
        return tuple(x for v in value for x in listed(several(field, v, objects)))
    return one(field, value, objects)


def listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


NAMES: dict[str, Callable[[str, Any, dict[str, Any]], Any]] = {
    **dict.fromkeys(("task", "pairs", "policy", "reference", "demos"), one), "reward": several,
}  # fmt: skip
"""The settings that take objects, and how these are named."""


def rows_of(field: str, value: Any) -> list[dict[str, Any]] | None:
    """The rows of a `datasets.Dataset` or of a list of mappings; None where it is neither."""
    if isinstance(value, Mapping):
        told = "it holds several data sets: choose one of them" if value else "give rows"
        raise InputError(field, sorted(map(str, value)), told)  # type: ignore[reportUnknownArgumentType]
    if not isinstance(value, list | tuple) and not hasattr(value, "column_names"):
        return None
    rows: Iterable[Any] = value
    made = [dict(row) if isinstance(row, Mapping) else row for row in rows]
    for n, row in enumerate(made):
        if not isinstance(row, dict):
            raise InputError(field, f"row {n}: {row!r}", "use a list of rows, each with values by name")
    if not made:
        raise InputError(field, [], "it has no rows: give some")
    return made


def content(value: Any) -> str:
    """What the digest says of a value that JSON does not know: an array's or a picture's bytes."""
    data = getattr(value, "tobytes", None)
    return str(value) if data is None else hashlib.sha256(data()).hexdigest()
