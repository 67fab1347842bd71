"""Individual fairness judged by a panel of auditors, and the best mixture of rules that a panel never objects to.

Bechavod and Roth, arXiv 2206.04475: auditor j has a hidden metric d_j in [0, 1] and objects to the ordered pair (i, l)
if π(x_i) − π(x_l) > d_j(x_i, x_l) + α; the panel reports one pair to which γm of its m auditors object. That is so
exactly where π(x_i) − π(x_l) > d(x_i, x_l) + α for d the ⌈γm⌉-th smallest of the d_j (our remark): a panel is one
metric, and the policies it never objects to are described by linear inequalities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linprog

from anypolicy.errors import InputError

Array = np.ndarray
Metric = Callable[[Array, Array], Array]
"""(…, features) and (…, features) to distances (…), with the usual broadcasting"""


@dataclass(frozen=True)
class Mahalanobis:
    """d(x, x′) = min(1, ‖(x − x′) A‖)."""

    matrix: Array

    def __call__(self, x: Array, other: Array) -> Array:
        return np.asarray(np.minimum(1.0, np.linalg.norm((x - other) @ self.matrix, axis=-1)))


@dataclass(frozen=True)
class Panel:
    """Auditors by their metrics; γ → 0 is "any auditor", γ = 1 "all of them"."""

    metrics: Sequence[Metric]
    alpha: float = 0.1
    gamma: float = 0.5

    def __post_init__(self) -> None:
        if not self.metrics:
            raise InputError("panel", list(self.metrics), "give at least one auditor's metric")
        if not 0 <= self.alpha < math.inf:
            raise InputError(
                "alpha", self.alpha, "use 0 or more: by how much two cases may differ beyond their distance"
            )
        if not 0 < self.gamma <= 1:
            raise InputError("gamma", self.gamma, "use a share of the panel in (0, 1]")

    @property
    def quorum(self) -> int:
        """⌈γm⌉: the auditors it takes; a product within 1e-9 of a whole number is that number."""
        return max(1, math.ceil(self.gamma * len(self.metrics) - 1e-9))

    def limits(self, x: Float[Array, "*rounds cases features"]) -> Float[Array, "*rounds cases cases"]:
        """The panel as one metric: for every ordered pair the quorum-th smallest distance."""
        distances = list[Array]()
        for j, metric in enumerate(self.metrics):
            d = np.asarray(metric(x[..., :, None, :], x[..., None, :, :]), float)
            if not bool(((d >= 0) & (d <= 1)).all()):
                raise InputError(
                    f"panel, auditor {j}", f"distances from {d.min()} to {d.max()}", "they must be in [0, 1]"
                )
            distances.append(d)
        return np.partition(np.stack(distances), self.quorum - 1, axis=0)[self.quorum - 1]

    def report(self, pi: Float[Array, " cases"], x: Float[Array, "cases features"]) -> tuple[int, int] | None:
        """The pair (favoured, slighted) that the panel objects to, or None."""
        return report(pi, self.limits(x), self.alpha)


def gaps(pi: Float[Array, "*rounds cases"]) -> Float[Array, "*rounds cases cases"]:
    """π(x_i) − π(x_l)."""
    return pi[..., :, None] - pi[..., None, :]


def objections(
    pi: Float[Array, "*rounds cases"], limits: Float[Array, "*rounds cases cases"], alpha: float
) -> Bool[Array, "*rounds cases cases"]:
    """The ordered pairs to which enough auditors object."""
    return (gaps(pi) > limits + alpha) & ~np.eye(pi.shape[-1], dtype=bool)


def report(
    pi: Float[Array, " cases"], limits: Float[Array, "cases cases"], alpha: float
) -> tuple[int, int] | None:  # fmt: skip
    """Of the pairs objected to the one with the largest gap; the lowest indices among equals."""
    against = objections(pi, limits, alpha)
    if not against.any():
        return None
    return divmod(int(np.where(against, gaps(pi), -np.inf).argmax()), len(pi))


def best_fair_mixture(
    accept: Bool[Array, "rounds cases rules"],
    errors: Float[Array, " rules"],
    limits: Float[Array, "rounds cases cases"],
    alpha: float,
) -> Float[Array, " rules"] | None:
    """The mixture of rules with the fewest expected errors to which a panel objects in no round (Q_{α,γ}); None if
    there is none. A linear programme: min ⟨w, errors⟩ over the simplex with Σ_h w_h (h(x_i) − h(x_l)) ≤ d(x_i, x_l) +
    α. Constraints are added while some are broken, since nearly all of them do not bind. Our own comparator, computed
    after the fact."""
    rounds, cases, n = accept.shape
    rows = accept.astype(float)
    free = np.eye(cases, dtype=bool)
    cuts, sides = np.zeros((0, n)), np.zeros(0)
    while True:
        found = linprog(errors, cuts if len(cuts) else None, sides if len(cuts) else None, np.ones((1, n)), [1.0])
        if found.status == 2:
            return None
        if found.status != 0:
            raise InputError(
                "comparator", found.message, "the linear programme of the best fair mixture has no solution"
            )
        weights = np.maximum(found.x, 0) / np.maximum(found.x, 0).sum()
        broken = np.where(free, -np.inf, gaps(rows @ weights) - limits - alpha).reshape(rounds, -1)
        worst = broken.argmax(1)
        late = np.flatnonzero(broken[np.arange(rounds), worst] > 1e-7)
        if not len(late) or cases == 1:
            return weights
        late = late[np.argsort(-broken[late, worst[late]], kind="stable")[:200]]
        favoured, slighted = np.divmod(worst[late], cases)
        cuts = np.concatenate([cuts, rows[late, favoured] - rows[late, slighted]])
        sides = np.concatenate([sides, limits[late, favoured, slighted] + alpha])
