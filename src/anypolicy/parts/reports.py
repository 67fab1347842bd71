"""What an exact method gives back: numbers that say what they are and what they rest on, and lines to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from anypolicy.errors import InputError

Kind = Literal["exact", "estimate", "bound"]


@dataclass(frozen=True)
class Assumption:
    """Something a number rests on. `holds` is None where what was given cannot tell; `why` says what was found."""

    name: str
    holds: bool | None
    why: str = ""


@dataclass(frozen=True)
class Report:
    """One number: computed without error ("exact"), from samples ("estimate"), or never to be exceeded while its
    assumptions hold ("bound"). `interval` is that of an estimate; `source` names the equation. All are finite."""

    quantity: str
    value: float
    kind: Kind
    source: str = ""
    interval: tuple[float, float] | None = None
    assumptions: tuple[Assumption, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for x in (self.value, *(self.interval or ())):
            if not math.isfinite(x):
                raise InputError("report", self.quantity, f"it came out as {x}: a result is a finite number")

    @property
    def failed(self) -> tuple[Assumption, ...]:
        """The assumptions that do not hold: with any of them a bound says nothing."""
        return tuple(a for a in self.assumptions if a.holds is False)


@dataclass(frozen=True)
class Line:
    """One line of a chart; `low` and `high` are its interval."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """Lines over one axis."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log: Literal["", "x", "y", "xy"] = ""


@dataclass(frozen=True)
class Solution:
    """All that a problem's method found: numbers, charts, and tables of rows by column name. `settings` are values that
    stood in for settings which were not given."""

    reports: Sequence[Report]
    charts: Sequence[Chart] = ()
    tables: Mapping[str, Sequence[Mapping[str, object]]] = field(
        default_factory=dict[str, Sequence[Mapping[str, object]]]
    )
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
