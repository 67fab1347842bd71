"""Judging a comparison: who is better, by how much, how surely, at what cost; or that one cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anypolicy.evidence.plots import Curve, interval_dots, learning_curves
from anypolicy.evidence.report import Figure, Table, Text, write_report
from anypolicy.evidence.stats import Interval, bootstrap, improvement_interval, mean_interval, seeds_needed


@dataclass(frozen=True)
class Outcome:
    """One arm's final values by seed, their interquartile mean and its mean cost."""

    name: str
    values: dict[int, float]
    middle: Interval
    cost: float


@dataclass(frozen=True)
class Difference:
    """The best arm against another, over seeds both have run."""

    best: str
    other: str
    difference: Interval
    probability: Interval
    more_seeds: int | None
    pairs: int

    @property
    def decided(self) -> bool:
        """Whether the interval of the paired differences leaves out 0. Two seeds, or differences without any spread,
        decide nothing."""
        if self.pairs < 3 or self.difference.low == self.difference.high:
            return False
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison. `winner` is None where the evidence does not name one; cost is in `unit`s."""

    task: str
    metric: str
    arms: list[Outcome]
    differences: list[Difference]
    curves: list[Curve]
    unit: str = "tokens"
    over_kl: list[Curve] = field(default_factory=list[Curve])
    left_out: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Seeds of runs that ended without a finite value, by arm."""

    @property
    def winner(self) -> str | None:
        return self.differences[0].best if all(d.decided for d in self.differences) else None

    def sentences(self) -> list[str]:
        """One plain sentence for every difference."""
        out = [f"{arm}: seeds {', '.join(map(str, seeds))} ended without a finite {self.metric} and are left out"
               for arm, seeds in self.left_out.items()]  # fmt: skip
        cost = {a.name: a.cost for a in self.arms}
        for d in self.differences:
            ratio = f", at {cost[d.best] / cost[d.other]:.2f}× the {self.unit}" if cost[d.other] else ""
            what = f"by {d.difference}, probability of improvement {d.probability}{ratio}"
            if d.decided:
                out.append(f"{d.best} better than {d.other} {what}")
            else:
                n = (
                    f"needs about {d.more_seeds} more seeds"
                    if d.more_seeds
                    else "too few seeds, or too small a difference, to say how many are missing"
                )
                out.append(f"cannot tell {d.best} from {d.other} ({what}): {n}")
        return out

    def __str__(self) -> str:
        width = max(len(a.name) for a in self.arms)
        seeds = len(self.arms[0].values)
        lines = [f"{self.metric} on {self.task}, {seeds} seeds, interquartile mean [95 % stratified bootstrap]"]
        lines += [f"  {a.name:<{width}}  {a.middle}  {a.cost:,.0f} {self.unit}" for a in self.arms]
        return "\n".join([*lines, *self.sentences()])

    def plot(self):
        """Learning curves, mean over seeds with their range."""
        return learning_curves(self.curves, y=self.metric)

    def divergence(self) -> list[Figure]:
        """The metric over the divergence from the reference, where runs are compared at equal divergence."""
        if not self.over_kl:
            return []
        return [Figure("At equal divergence", learning_curves(self.over_kl, x="eval/kl (nats)", y=self.metric))]

    def report(self, path: Path) -> Path:
        """The whole comparison as one static page."""
        arms = [(a.name, a.middle.point, a.middle.low, a.middle.high) for a in self.arms]
        chance = [
            (f"{d.best} over {d.other}", d.probability.point, d.probability.low, d.probability.high)
            for d in self.differences
        ]
        seeds = sorted({s for a in self.arms for s in a.values} | {s for own in self.left_out.values() for s in own})
        return write_report(
            path,
            f"{' / '.join(a.name for a in self.arms)} on {self.task}",
            [
                Text(self.sentences()),
                Figure("Learning curves", self.plot()),
                *self.divergence(),
                Figure("Final value", interval_dots(arms, x=f"{self.metric} (interquartile mean, 95 % interval)")),
                Figure("Probability of improvement", interval_dots(chance, x="P(a run is better)", mark=0.5)),
                Table(
                    "Every run",
                    ["method", *(f"seed {s}" for s in seeds), self.unit],
                    [
                        [a.name, *(f"{a.values[s]:.4f}" if s in a.values else "—" for s in seeds), f"{a.cost:,.0f}"]
                        for a in self.arms
                    ],
                ),
                Text(["A winner is named only where the t interval of the paired differences leaves out 0, with 95 % "
                      "shared out over all pairs of methods (Bonferroni), never from two seeds. Bootstrap intervals "
                      "of a few runs are narrower than they say. Needed "
                      "seeds: for a paired t test at 5 % with power 0.8, if difference and spread stay as they are."]),
            ],
        )  # fmt: skip


def compare_runs(
    final: dict[str, dict[int, float]], *, curves: Sequence[Curve], costs: dict[str, dict[int, float]], metric: str,
    task: str, unit: str = "tokens", over_kl: Sequence[Curve] = (),
    left_out: dict[str, list[int]] | None = None,
) -> Comparison:  # fmt: skip
    """Judge final values (arm → seed → value) of runs paired by seed; larger is better."""
    arms = []
    for name, values in final.items():
        column = np.array(list(values.values()))[:, None]
        arms.append(Outcome(name, values, bootstrap(column), float(np.mean(list(costs[name].values())))))
    arms.sort(key=lambda a: -float(np.mean(list(a.values.values()))))
    best, differences = arms[0], []
    level = 1 - 0.05 / (len(arms) * (len(arms) - 1) / 2)
    for other in arms[1:]:
        seeds = sorted(best.values.keys() & other.values.keys())
        x, y = [best.values[s] for s in seeds], [other.values[s] for s in seeds]
        gaps = [a - b for a, b in zip(x, y, strict=True)]
        needed = seeds_needed(gaps)
        more = None if needed is None else max(needed - len(seeds), 1)
        chance = improvement_interval(np.array(x)[:, None], np.array(y)[:, None])
        differences.append(Difference(best.name, other.name, mean_interval(gaps, level), chance, more, len(gaps)))
    order = [a.name for a in arms]
    curves, over_kl = (sorted(c, key=lambda x: order.index(x.name)) for c in (curves, over_kl))
    return Comparison(task, metric, arms, differences, curves, unit, over_kl, left_out or {})
