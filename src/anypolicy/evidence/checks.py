"""From a number per seed to a word: what a claim expects, and how its seeds decide.

A check is one statement of a claim: a number per seed and the bound that it is expected above or below. Its kind says
how seeds become a verdict, and is chosen by what the number is, not by how it comes out:

    mean    varies about a mean (a return, a loss, an exponent): t interval of the mean, at least 5 seeds
    ratio   a positive ratio: t interval of the mean logarithm, so of the geometric mean, at least 5 seeds
    share   success, accuracy, whatever is bounded or can fail as a whole on one seed: t interval of the mean, corrected
            for skewness, at least 10 seeds
    each    an identity, a bound, or "on every seed": all of at least 5 seeds, no interval

Its verdict is one of four:

    confirmed                      the 95 % interval lies on the expected side of the bound
    refuted                        the interval lies on the wrong side of `refuted`, where the effect is absent
    short of the expected effect   the direction holds (beyond `refuted`, or beyond no effect where none is said),
                                   but the interval falls short of the bound
    undecided                      otherwise; with fewer seeds than the kind needs; where no two seeds differ

What speaks against a claim is corrected for the number of its core checks m: those intervals have the level
1 − 0.05/m (Bonferroni), so that a true claim is refuted in at most
5 % of cases. What speaks for it needs no correction, since all must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from anypolicy.errors import InputError
from anypolicy.evidence.stats import Interval, mean_interval, skewed_interval

Kind = Literal["mean", "ratio", "share", "each"]
Outcome = Literal["confirmed", "short of the expected effect", "refuted", "undecided"]
Results = dict[str, dict[str, Any]]
"""arm → what `run` returned, of one seed"""

SEEDS: dict[Kind, int] = {"mean": 5, "ratio": 5, "share": 10, "each": 5}
"""The fewest seeds that decide."""


@dataclass(frozen=True)
class Check:
    """One expectation: `value` of a seed's results, and the bound it lies `above` or `below`. `refuted` is the value
    at which the effect is absent; without it, of a bound that says a direction only (0, of a ratio 1), the bound
    itself; of any other bound nothing refutes. Every statement of the claim's sentence is a `core` check; others are
    reported beside and decide nothing."""

    name: str
    expected: str
    value: Callable[[Results], float]
    above: float | None = None
    below: float | None = None
    kind: Kind = "mean"
    refuted: float | None = None
    core: bool = True

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise InputError("check", self.name, "give one bound, above or below")
        if self.kind not in SEEDS:
            raise InputError("check", self.kind, f"a kind is one of {', '.join(SEEDS)}", choices=SEEDS)
        if self.refuted is not None and (self.refuted - self.bound) * self.sign > 0:
            raise InputError("check", self.name, "what refutes lies on the wrong side of the bound")

    @property
    def sign(self) -> int:
        return 1 if self.above is not None else -1

    @property
    def bound(self) -> float:
        bound = self.above if self.above is not None else self.below
        assert bound is not None
        return bound

    @property
    def absent(self) -> float | None:
        """The value at which the effect is absent, or None."""
        direction = self.kind != "each" and self.bound == (1.0 if self.kind == "ratio" else 0.0)
        return self.bound if self.refuted is None and direction else self.refuted

    def judge(self, values: Sequence[float], checks: int = 1) -> tuple[Interval, Outcome]:
        """What was measured and the verdict, where the claim has so many core `checks`. An `each` has for its interval
        the worst, the least and the greatest value."""
        if not np.isfinite(values).all():
            raise InputError("check", self.name, f"a value of it is not finite: {list(values)}")
        if self.kind == "each":
            return self.of_each(values)
        measured, strict = (self.interval(values, level) for level in (0.95, 1 - 0.05 / checks))
        if len(values) < SEEDS[self.kind] or len(set(values)) == 1:
            return measured, "undecided"
        if self.beyond(measured, self.bound)[0] > 0:
            return measured, "confirmed"
        if self.absent is not None and self.beyond(strict, self.absent)[1] < 0:
            return measured, "refuted"
        none = 1.0 if self.kind == "ratio" else 0.0
        start = none if self.absent is None and (self.bound - none) * self.sign > 0 else self.absent
        direction = start is None or self.beyond(measured, start)[0] > 0
        short = direction and self.beyond(strict, self.bound)[1] < 0
        return measured, "short of the expected effect" if short else "undecided"

    def interval(self, values: Sequence[float], level: float) -> Interval:
        """The interval of the mean, of a ratio that of the geometric mean."""
        if self.kind != "ratio":
            return (skewed_interval if self.kind == "share" else mean_interval)(values, level)
        if min(values) <= 0:
            raise InputError("check", self.name, f"a ratio is above 0, and here one is {min(values):g}")
        return Interval(*np.exp(mean_interval(np.log(values).tolist(), level)).tolist())

    def beyond(self, measured: Interval, bound: float) -> tuple[float, float]:
        """How far the ends of an interval lie beyond a bound, the end that counts against the expectation first."""
        ends = ((measured.low - bound) * self.sign, (measured.high - bound) * self.sign)
        return min(ends), max(ends)

    def of_each(self, values: Sequence[float]) -> tuple[Interval, Outcome]:
        """All seeds: confirmed if each lies beyond the bound, refuted if none lies beyond `refuted`."""
        worst = min(values, key=lambda v: v * self.sign)
        measured = Interval(worst, min(values), max(values))
        if len(values) < SEEDS["each"]:
            return measured, "undecided"
        if all((v - self.bound) * self.sign > 0 for v in values):
            return measured, "confirmed"
        if self.absent is not None and all((v - self.absent) * self.sign <= 0 for v in values):
            return measured, "refuted"
        return measured, "short of the expected effect"

    def why_undecided(self, values: Sequence[float]) -> str:
        """What is missing where the numbers alone do not say it."""
        if len(values) < SEEDS[self.kind]:
            return f"needs {SEEDS[self.kind]} seeds"
        if self.kind != "each" and len(set(values)) == 1:
            return "all seeds gave the same number"
        return ""


def total(core: Sequence[Outcome]) -> Outcome:
    """The claim: refuted by any core check, confirmed by all, short where all hold but some in direction only."""
    if "refuted" in core:
        return "refuted"
    if "undecided" in core or not core:
        return "undecided"
    return "confirmed" if set(core) == {"confirmed"} else "short of the expected effect"


@dataclass(frozen=True)
class Amendment:
    """A change of a claim since it was written: what, on which day, before or after somebody had looked at results of
    what it changes, and why."""

    what: str
    when: str
    looked: Literal["before a look", "after a look"]
    why: str
