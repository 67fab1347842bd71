"""The one error type for everything a user gives: settings, files, tasks, rewards, checkpoints."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
