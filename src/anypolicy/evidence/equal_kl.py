"""Runs compared at equal divergence from their reference instead of at equal steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anypolicy.errors import InputError
from anypolicy.evidence.plots import Curve

Ledgers = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]
"""Rows of evaluations: arm → seed → rows."""
KL = "eval/kl"


def at_divergence(kl: Sequence[float], values: Sequence[float], target: float) -> float:
    """The value where the divergence first reaches `target`, linear between the evaluations before and after."""
    for i, x in enumerate(kl):
        if x >= target:
            before = i - 1
            if i == 0:
                return float(values[0])
            share = (target - kl[before]) / (x - kl[before])
            return float((1 - share) * values[before] + share * values[i])
    raise InputError("divergence", target, f"the run reached only {max(kl, default=0):.3g} nats")


def common_divergence(evaluations: Ledgers) -> float:
    """The largest divergence that every run reached."""
    reached: list[float] = []
    for arm, seeds in evaluations.items():
        for seed, rows in seeds.items():
            if any(KL not in row for row in rows):
                raise InputError(
                    "equal_kl",
                    arm,
                    f"its evaluations have no {KL}: without a reference, name one with --reference",
                )
            reached.append(max(row[KL] for row in rows))
            if reached[-1] <= 0:
                raise InputError("equal_kl", f"{arm}, seed {seed}", "this run never left its reference: train longer")
    return min(reached)


def at_equal_divergence(
    evaluations: Ledgers, metric: str, points: int = 12
) -> tuple[float, dict[str, dict[int, float]], list[Curve]]:
    """The common divergence; arm → seed → the metric there; and the metric over the divergence up to it."""
    target = common_divergence(evaluations)
    grid = [float(x) for x in np.linspace(0, target, points)]
    final: dict[str, dict[int, float]] = {}
    curves: list[Curve] = []
    for arm, seeds in evaluations.items():
        paths = {seed: ([r[KL] for r in rows], [r[metric] for r in rows]) for seed, rows in seeds.items()}
        final[arm] = {seed: at_divergence(kl, values, target) for seed, (kl, values) in paths.items()}
        over = [[at_divergence(kl, values, x) for x in grid] for kl, values in paths.values()]
        curves.append(Curve(arm, grid, over))
    return target, final, curves
