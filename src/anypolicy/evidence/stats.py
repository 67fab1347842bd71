"""Statistics over seeds: what may be said about a difference from a handful of runs.

Scores are (runs, tasks). The field's aggregate is the interquartile mean with a stratified bootstrap interval (Agarwal
et al. 2021, arXiv 2108.13264). With five runs a percentile bootstrap covers less than it says, so a winner is decided
by a t interval on the differences of runs with the same seed; the bootstrap interval is shown beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A point and its 95 % interval."""

    point: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.point:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __format__(self, form: str) -> str:
        """Its three numbers in one form, for prose: with a true minus sign."""
        point, low, high = (format(x, form).replace("-", "−") for x in self)
        return f"{point} [{low}, {high}]" if form else str(self)


def iqm(scores: Float[Array, "runs tasks"]) -> float:
    """Mean of the middle half of all scores: a quarter (rounded down) is cut from each end."""
    x = np.sort(np.asarray(scores, float).ravel())
    cut = int(0.25 * len(x))
    return float(x[cut : len(x) - cut].mean())


def bootstrap(
    scores: Float[Array, "runs tasks"],
    statistic: Callable[[Array], float] = iqm,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Stratified percentile bootstrap: the runs of each task are drawn anew on their own."""
    x, rng = np.asarray(scores, float), np.random.default_rng(seed)
    runs, tasks = x.shape
    index = rng.integers(0, runs, (draws, runs, tasks))
    values = [statistic(np.take_along_axis(x, i, 0)) for i in index]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistic(x), float(low), float(high))


def probability_of_improvement(x: Float[Array, "runs_x tasks"], y: Float[Array, "runs_y tasks"]) -> float:
    """P(X > Y) + ½ P(X = Y) for a run of each, mean over tasks."""
    a, b = np.asarray(x, float)[:, None], np.asarray(y, float)[None]
    return float(((a > b) + 0.5 * (a == b)).mean((0, 1)).mean())


def improvement_interval(
    x: Float[Array, "runs_x tasks"], y: Float[Array, "runs_y tasks"], *, draws: int = 2000, seed: int = 0
) -> Interval:
    """Probability of improvement with its stratified bootstrap interval; the runs of x and y are drawn apart."""
    a, b, rng = np.asarray(x, float), np.asarray(y, float), np.random.default_rng(seed)
    values = [
        probability_of_improvement(
            np.take_along_axis(a, rng.integers(0, len(a), a.shape), 0),
            np.take_along_axis(b, rng.integers(0, len(b), b.shape), 0),
        )
        for _ in range(draws)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(probability_of_improvement(a, b), float(low), float(high))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean with its t interval; values that are all equal give an interval of no width, one value an infinite one."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return Interval(float(x.mean()), -np.inf, np.inf)
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def skewed_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean with a t interval that is corrected for skewness (Hall 1992, Annals of Statistics 20:221): with a the
    skewness of the mean, g(t) = t + a t²/3 + a² t³/27 + a/6 of the t statistic lies between the quantiles of t."""
    x = np.asarray(values, float)
    n, spread = len(x), x.std(ddof=1) if len(x) > 1 else 0.0
    if n < 3 or spread == 0:
        return mean_interval(values, level)
    a = float(((x - x.mean()) ** 3).mean() * n**2 / ((n - 1) * (n - 2)) / spread**3 / np.sqrt(n))
    y = stats.t.ppf((1 + level) / 2, n - 1) * np.array([1.0, -1.0])
    t = 3 / a * (np.cbrt(1 + a * (y - a / 6)) - 1) if abs(a) > 1e-6 else y
    low, high = x.mean() - t * spread / np.sqrt(n)
    return Interval(float(x.mean()), float(low), float(high))


def seeds_needed(
    differences: Sequence[float], *, alpha: float = 0.05, power: float = 0.8, most: int = 1000
) -> int | None:
    """Pairs of runs with which a t test would find a mean difference as large as the observed one with this power, if
    its spread is as observed; None with fewer than three pairs, no difference, or more than `most`."""
    x = np.asarray(differences, float)
    if len(x) < 3 or x.mean() == 0:
        return None
    ratio = x.std(ddof=1) / abs(x.mean())
    for n in range(3, most + 1):
        if np.sqrt(n) >= (stats.t.ppf(1 - alpha / 2, n - 1) + stats.t.ppf(power, n - 1)) * ratio:
            return n
    return None
