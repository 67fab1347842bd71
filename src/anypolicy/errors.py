"""The one error type for everything a user gives: settings, files, tasks, rewards, checkpoints."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any


class InputError(ValueError):
    """A value that cannot be used, raised before any work is done with it.

    Says which field, what was given and what is allowed; the command line prints it on one line and exits with 2.
    """

    def __init__(self, field: str, value: object, allowed: str, *, choices: Iterable[str] = ()):
        self.field, self.value, self.allowed = field, value, allowed
        names = [str(c) for c in choices]
        words = (str(value), field.rpartition(".")[2])
        near = [m for word in words for m in difflib.get_close_matches(word, names, n=1, cutoff=0.5)]
        self.nearest = near[0] if near else None
        shown = repr(value) if len(repr(value)) <= 200 else repr(value)[:200] + "…"
        hint = f" (did you mean {self.nearest!r}?)" if self.nearest else ""
        super().__init__(f"{field}: got {shown}; {allowed}{hint}")


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
    """Refuse numbers that are given and not above 0 (`positive`) or below 0 (`natural`)."""
    for name in positive:
        if (value := getattr(settings, name)) is not None and not value > 0:
            raise InputError(name, value, "use a number above 0")
    for name in natural:
        if (value := getattr(settings, name)) is not None and value < 0:
            raise InputError(name, value, "use 0 or more")
