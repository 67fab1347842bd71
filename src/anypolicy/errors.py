"""The one error type for everything a user gives: settings, files, tasks, rewards, checkpoints."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class InputError(ValueError):
    """A value that cannot be used, raised before any work is done with it.

    Says which field, what was given and what is allowed; the command line prints it on one line and exits with 2.
    """

    def __init__(self, field: str, value: object, allowed: str, *, choices: Iterable[str] = ()):
        self.field, self.value, self.allowed = field, value, allowed
        self.choices = names = [str(c) for c in choices]
        words = (value if isinstance(value, str) else "", field.rpartition(".")[2])
        near = [m for word in words for m in difflib.get_close_matches(word[:200], names, n=1, cutoff=0.5)]
        self.nearest = near[0] if near else None
        hint = f" (did you mean {self.nearest!r}?)" if self.nearest else ""
        super().__init__(f"{cut(field, 200)}: got {cut(shown(value), 200)}; {cut(allowed, 2000)}{hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        """How one goes from a worker to the process that waits for it."""
        return functools.partial(type(self), choices=self.choices), (self.field, self.value, self.allowed)


RAISED = (Exception, SystemExit)
"""What to expect of code of others: its sys.exit would end us, and as if all had gone well."""


@contextmanager
def outliving(field: str) -> Generator[None]:
    """Code of others runs here, whose sys.exit is an error like any other."""
    try:
        yield
    except SystemExit as end:
        raise InputError(field, f"sys.exit({end.code!r})", "it must not end the process: let it raise an exception "
                         "that says what is wrong") from end  # fmt: skip


def shown(value: object) -> str:
    """The value as Python writes it, or what kind of value it is where it cannot be written."""
    try:
        return repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"


def cut(text: str, most: int) -> str:
    """The text, its end left out where it is longer than `most`."""
    return text if len(text) <= most else text[:most] + "…"


def check_names(kind: type[Any], given: Mapping[str, object], who: str) -> None:
    """Refuse settings that the dataclass `kind` does not have."""
    known = [f.name for f in fields(kind)]
    for name in given:
        if name not in known:
            raise InputError(name, given[name], f"{who} has the settings {', '.join(known)}", choices=known)


def settings_of(choice: str, given: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that `choice` uses: those given (not None), else its defaults. One that is given and not used is
    refused, with the choices that use it."""
    for name, value in given.items():
        if value is not None and name not in defaults[choice]:
            users = [other for other, own in defaults.items() if name in own]
            raise InputError(name, value, f"{choice} does not use this setting, only {', '.join(users)}: leave it out")
    return {name: own if given.get(name) is None else given[name] for name, own in defaults[choice].items()}


def check_numbers(settings: object, *, positive: Iterable[str] = (), natural: Iterable[str] = ()) -> None:
    """Refuse numbers that are given and not above 0 (`positive`) or below 0 (`natural`), and those that are no finite
    numbers."""
    for name in positive:
        if (value := getattr(settings, name)) is not None and not 0 < value < math.inf:
            raise InputError(name, value, "use a number above 0")
    for name in natural:
        if (value := getattr(settings, name)) is not None and not 0 <= value < math.inf:
            raise InputError(name, value, "use 0 or more")


def check_settings(settings: object, prefix: str = "") -> None:
    """Refuse what a dataclass of settings holds in a field of another type, wherever it came from."""
    check_values(typing.get_type_hints(type(settings)), vars(settings), prefix)


def settled(settings: S) -> S:
    """A dataclass of settings, checked, its numbers those of Python and its lists tuples."""
    check_settings(settings)
    kinds = typing.get_type_hints(type(settings))
    return replace(settings, **{name: converted(kinds[name], value) for name, value in vars(settings).items()})  # type: ignore[type-var]


def check_values(
    kinds: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "", unbounded: Iterable[str] = ()
) -> None:
    """Refuse values that are not of the annotated kinds, and numbers that are not finite; those named
    `unbounded` may be +∞."""
    for name, value in given.items():
        kind = kinds.get(name, Any)
        if not fits(kind, value):
            raise InputError(f"{prefix}{name}", value, f"use {described(kind)}", choices=choices_of(kind))
        if not finite(value) and not (name in unbounded and value == math.inf):
            raise InputError(f"{prefix}{name}", value, "use a finite number")


def converted(kind: Any, value: Any) -> Any:
    """A value that `fits` its kind: a list as a tuple, a text as a path, numbers of NumPy as those of Python."""
    kinds = (kind, *typing.get_args(kind))
    if isinstance(value, list) and any(typing.get_origin(k) is tuple for k in kinds):
        return tuple(value)  # type: ignore[reportUnknownArgumentType]
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    if int in kinds and isinstance(value, Integral):
        return int(value)
    return float(value) if float in kinds else value


def checked(call: Callable[P, R]) -> Callable[P, R]:
    """A function of the Python interface that refuses arguments of other kinds than the annotated ones, and gets those
    that fit as `converted`."""
    signature = inspect.signature(call)

    @functools.wraps(call)
    def refusing(*given: P.args, **named: P.kwargs) -> R:
        kinds, bound = typing.get_type_hints(call), signature.bind(*given, **named)
        check_values(kinds, bound.arguments)
        bound.arguments |= {name: converted(kinds.get(name, Any), value) for name, value in bound.arguments.items()}
        return call(*bound.args, **bound.kwargs)

    return refusing


def finite(value: object) -> bool:
    """Whether no number in it is infinite or NaN."""
    if isinstance(value, list | tuple):
        return all(finite(x) for x in value)  # type: ignore[reportUnknownVariableType]
    return not isinstance(value, Real) or isinstance(value, Integral) or math.isfinite(value)


def fits(kind: Any, value: object) -> bool:
    """Whether a value is of an annotated kind; a list, as files have it, is as good as a tuple, a text as a path."""
    if kind is Any:
        return True
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(k, value) for k in inner)
    if origin is typing.Literal:
        return any(type(value) is type(x) and value == x for x in inner)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        values: list[Any] = list(value)  # type: ignore[reportUnknownArgumentType]
        expected = [inner[0]] * len(values) if inner[1:] == (...,) else list(inner)
        return len(values) == len(expected) and all(fits(k, x) for k, x in zip(expected, values, strict=True))
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(inner[0], k) and fits(inner[1], v) for k, v in value.items())
    if origin in (list, Sequence):
        return isinstance(value, list | tuple) and all(fits(inner[0], x) for x in value)
    if kind is Path and isinstance(value, str | Path) and not names_a_file(str(value)):
        return False
    if kind in ACCEPTED:
        small = not isinstance(value, Integral) or -(2**63) <= int(value) < 2**63
        return isinstance(value, ACCEPTED[kind][0]) and small and (kind is bool or not isinstance(value, bool))
    return not inspect.isclass(kind) or getattr(kind, "_is_protocol", False) or isinstance(value, kind)


def names_a_file(text: str) -> bool:
    """Whether a file can be called so at all: without a NUL, and of characters that have bytes."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


ACCEPTED: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"), int: (Integral, "a whole number"), float: (Real, "a number"), str: (str, "text"),
    Path: ((str, Path), "a path"),
}  # fmt: skip


def choices_of(kind: Any) -> list[str]:
    """The words of an annotated kind, where it has some."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return [x for x in inner if isinstance(x, str)]
    return [x for k in inner for x in choices_of(k)]


def described(kind: Any) -> str:
    """An annotated kind in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(described(k) for k in inner)
    if origin is typing.Literal:
        return ", ".join(map(str, inner))
    if origin in (dict, Mapping):
        return "values by name"
    if origin in (list, Sequence) or (origin is tuple and inner[1:] == (...,)):
        return f"a list, each of it {described(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)}: {', '.join(described(k) for k in inner)}"
    if kind is types.NoneType:
        return "nothing"
    return ACCEPTED[kind][1] if kind in ACCEPTED else getattr(kind, "__name__", str(kind))
