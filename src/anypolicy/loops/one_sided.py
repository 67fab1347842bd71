"""The protocol of fair decisions with one-sided feedback, and a study of a learner beside baselines and bounds.

A round: cases arrive, the learner gives π_t on them and decides by a draw; auditors see π_t, never the draw, and report
a pair or nothing; labels of accepted cases are shown.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from anypolicy.errors import InputError
from anypolicy.parts.fairness import Array, Panel, best_fair_mixture, objections, report
from anypolicy.parts.one_sided import Pair, exponential_weights
from anypolicy.parts.reports import Assumption, Chart, Line, Report, Solution
from anypolicy.runs.progress import counting
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.exact.one_sided import Cases, load

FRONTIER = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""multiples of the penalty"""
Rows = Sequence[dict[str, Any]]


class Learner(Protocol):
    """Decides on a round's cases and learns from what it is shown afterwards."""

    def decide(self, x: Array) -> tuple[Array, Array]:
        """π_t(x_i) and the decisions."""
        ...

    def update(self, seen: Array, pair: Pair) -> None:
        """Labels, NaN where the case was rejected, and the reported pair."""
        ...


@dataclass(frozen=True)
class History:
    """What happened. `pairs` has −1 where nothing was reported; `y` are all labels, for judging afterwards."""

    pi: Float[Array, "rounds cases"]
    accepted: Bool[Array, "rounds cases"]
    pairs: Int[Array, "rounds 2"]
    y: Float[Array, "rounds cases"]

    @property
    def errors(self) -> Float[Array, " rounds"]:
        """Wrong decisions a round."""
        return (self.accepted != self.y).sum(1).astype(float)

    @property
    def violated(self) -> Bool[Array, " rounds"]:
        """Rounds with a report."""
        return self.pairs[:, 0] >= 0

    @property
    def violations(self) -> int:
        return int(self.violated.sum())

    def regret(self, errors: float) -> float:
        """Errors above this many."""
        return float(self.errors.sum()) - errors

    def row(self, name: str) -> dict[str, Any]:
        """Rates, for a table."""
        return row(name, self.errors.mean() / self.y.shape[1], self.violated.mean(), self.accepted.mean())


def row(name: str, error: float, unfair: float, accepted: float) -> dict[str, Any]:
    """One row of a table of rates."""
    return {
        "learner": name,
        "error rate": float(error),
        "rounds with a report": float(unfair),
        "accepted": float(accepted),
    }


def run(stream: Cases, learner: Learner, limits: Float[Array, "rounds cases cases"], alpha: float) -> History:
    """All rounds; `limits` are the panel's (`Panel.limits`), of one panel or of another in every round."""
    pi, accepted = np.zeros(stream.y.shape), np.zeros(stream.y.shape, bool)
    pairs = np.full((len(stream.x), 2), -1)
    for t, x in enumerate(stream.x):
        pi[t], accepted[t] = learner.decide(x)
        pair = report(pi[t], limits[t], alpha)
        if pair is not None:
            pairs[t] = pair
        learner.update(np.where(accepted[t], stream.y[t], np.nan), pair)
    return History(pi, accepted, pairs, stream.y)


class Naive:
    """Baseline: takes every label it does not see for 0 and learns the plain errors by exponential weights."""

    def __init__(self, rules: Callable[[Array], Array], n: int, eta: float, rng: np.random.Generator):
        self.rules, self.eta, self.rng, self.losses = rules, eta, rng, np.zeros(n)

    def decide(self, x: Array) -> tuple[Array, Array]:
        self.accept = self.rules(x)
        w = exponential_weights(self.losses, self.eta)
        return np.clip(self.accept @ w, 0, 1), self.accept[:, self.rng.choice(len(w), p=w)]

    def update(self, seen: Array, pair: Pair) -> None:
        self.losses = self.losses + (self.accept != np.nan_to_num(seen)[:, None]).sum(0)


def full_label_weights(stream: Cases) -> Float[Array, "rounds rules"]:
    """Baseline that sees all labels: exponential weights on the plain errors, η = √(8 ln n/T)/k."""
    wrong = (stream.accept != stream.y[:, :, None]).sum(1)
    before = np.cumsum(wrong, 0) - wrong
    return exponential_weights(before.astype(float), plain_rate(stream))


def plain_rate(stream: Cases) -> float:
    """η = √(8 ln n/T)/k, of losses in [0, k]."""
    rounds, cases = stream.y.shape
    return math.sqrt(8 * math.log(len(stream.rules.offsets)) / rounds) / cases


def mixed_row(name: str, stream: Cases, weights: Array, limits: Array, alpha: float) -> dict[str, Any]:
    """The rates of mixtures of rules, one for all rounds or one a round, in expectation."""
    pi = np.einsum("tkn,tn->tk", stream.accept, np.broadcast_to(weights, (len(stream.y), stream.accept.shape[2])))
    unfair = objections(pi, limits, alpha).any((1, 2)).mean()
    return row(name, float(np.abs(pi - stream.y).mean()), float(unfair), float(pi.mean()))


@dataclass(frozen=True)
class Audited:
    """A stream with its panel, the penalty and the comparators known afterwards."""

    stream: Cases
    panel: Panel
    limits: Float[Array, "rounds cases cases"]
    penalty: float
    epsilon: float
    seed: int
    rule_errors: Float[Array, " rules"]
    fair: Float[Array, " rules"] | None

    @property
    def best(self) -> Float[Array, " rules"]:
        """The rule with the fewest errors, as a mixture."""
        return np.eye(len(self.rule_errors))[int(self.rule_errors.argmin())]

    @property
    def comparator(self) -> tuple[str, Float[Array, " rules"]] | None:
        """Whom regret is measured against: with a penalty the best mixture fair at α − ε, without one the best rule."""
        if self.penalty == 0:
            return "the best rule", self.best
        return None if self.fair is None else ("the best mixture fair at α − ε", self.fair)


def audited(
    data: str, rounds: int, cases: int, panel: Callable[[Any], Panel], penalty: float | None, epsilon: float | None,
    seed: int,
) -> Audited:  # fmt: skip
    """Check the settings and prepare the stream."""
    stream = load(data, rounds, cases, seed)
    judges = panel(stream.auditors)
    weight = float(rounds**0.25 if penalty is None else penalty)
    margin = judges.alpha if epsilon is None else epsilon
    if not 0 <= weight < math.inf:
        raise InputError("penalty", weight, "use 0 or more")
    if not 0 < margin < math.inf:
        raise InputError("epsilon", margin, "use a number above 0; without one it is alpha")
    limits = judges.limits(stream.x)
    errors = (stream.accept != stream.y[:, :, None]).sum((0, 1)).astype(float)
    fair = best_fair_mixture(stream.accept, errors, limits, judges.alpha - margin)
    return Audited(stream, judges, limits, weight, margin, seed, errors, fair)


@dataclass(frozen=True)
class Bounds:
    """Bounds of a learner after t rounds: on regret in errors and on rounds with a report."""

    regret: Callable[[int], float]
    violations: Callable[[int], float]


def study(name: str, given: Audited, make: Callable[[float], Learner], bounds: Bounds | None) -> Solution:
    """The learner at its penalty, along the frontier, and beside baselines; `bounds` are None where none is proved."""
    base = given.penalty or len(given.stream.y) ** 0.25
    grid = sorted({given.penalty, *(base * f for f in FRONTIER)})
    with counting(len(grid) + 1, name, quiet=not sys.stderr.isatty()) as tick:
        runs = dict[float, History]()
        for c in grid:
            runs[c] = run(given.stream, make(c), given.limits, given.panel.alpha)
            tick(f"C = {c:.3g}")
        naive = Naive(given.stream.rules, len(given.rule_errors), plain_rate(given.stream),
                      numpy_generator(given.seed, "naive"))  # fmt: skip
        unseen_is_0 = run(given.stream, naive, given.limits, given.panel.alpha)
        tick("baselines")
    own, rows = runs[given.penalty], baselines(given, unseen_is_0)
    frontier = [{"C": c, **h.row(name)} for c, h in runs.items()]
    return Solution(
        reports(given, own, bounds),
        [frontier_chart(name, frontier, known := hindsight(given), rows), *over_time(name, given, own, bounds)],
        {
            "Beside baselines": [own.row(f"{name}, C = {given.penalty:.4g}"), *rows],
            "Frontier": frontier,
            "Best mixtures in hindsight": known,
        },
        {"penalty": given.penalty, "epsilon": given.epsilon},
    )


def hindsight(given: Audited) -> list[dict[str, Any]]:
    """The frontier of fixed mixtures of rules: the best one that is fair at α, α + 0.1, …, as the panel sees it at
    α."""
    alphas = np.arange(given.panel.alpha, 1.05, 0.1).tolist()
    found = [(a, best_fair_mixture(given.stream.accept, given.rule_errors, given.limits, a)) for a in alphas]
    return [mixed_row(f"best mixture fair at {a:.2g}", given.stream, w, given.limits, given.panel.alpha)
            for a, w in found if w is not None]  # fmt: skip


def baselines(given: Audited, naive: History) -> list[dict[str, Any]]:
    """Rates of those that ignore fairness or know all labels."""
    stream, limits, alpha = given.stream, given.limits, given.panel.alpha
    rows = [naive.row("unseen labels taken for 0"),
            mixed_row("all labels seen, no penalty", stream, full_label_weights(stream), limits, alpha),
            mixed_row("best rule", stream, given.best, limits, alpha)]  # fmt: skip
    if given.fair is not None:
        rows.append(mixed_row("best mixture fair at α − ε", stream, given.fair, limits, alpha))
    return rows


def reports(given: Audited, own: History, bounds: Bounds | None) -> list[Report]:
    """Counts of this run beside their bounds, which are bounds of expectations over the learner's draws."""
    rounds = len(own.y)
    out = [Report("error rate", float(own.errors.sum()) / own.y.size, "exact"),
           Report("rounds with a report", float(own.violations), "exact", note=f"of {rounds}"),
           Report("accepted", float(own.accepted.mean()), "exact", note="share of all cases"),
           Report("error rate of the best rule", float(given.rule_errors.min()) / own.y.size, "exact")]  # fmt: skip
    if given.fair is not None:
        rate = float(given.fair @ given.rule_errors) / own.y.size
        out.append(Report("error rate of the best mixture fair at α − ε", rate, "exact", "linear programme"))
    if given.comparator is not None:
        against, mixture = given.comparator
        regret = own.regret(float(mixture @ given.rule_errors))
        out.append(Report("regret", regret, "exact", note=f"errors above {against}"))
    if bounds is None:
        return out
    why = "linear programme" if given.fair is not None else "there is none: raise alpha or lower epsilon"
    exists = Assumption("a mixture of the rules is fair at α − ε in all rounds", given.fair is not None, why)
    note = "of the expectation; our own derivation"
    rests = (exists,) if given.penalty else ()
    if math.isfinite(most := bounds.regret(rounds)):
        out.append(Report("regret bound", most, "bound", "2 (ln n/η + η T B_C/2)", None, rests, note))
    if given.penalty and math.isfinite(most := bounds.violations(rounds)):
        vacuous = "; above the number of rounds, so it says nothing here" if most >= rounds else ""
        out.append(
            Report("bound on rounds with a report", most, "bound", "(R + kT/2)/(Cε)", None, rests, note + vacuous)
        )
    return out


def frontier_chart(name: str, frontier: Rows, known: Rows, others: Rows) -> Chart:
    """Errors against fairness: a line over the penalties, one of the best in hindsight, a point for every baseline."""

    def line(label: str, rows: Rows) -> Line:
        return Line(label, [r["rounds with a report"] for r in rows], [r["error rate"] for r in rows])

    lines = [line(f"{name}, C from {frontier[0]['C']:.3g} to {frontier[-1]['C']:.3g}", frontier)]
    if known:
        lines.append(line("best mixtures in hindsight", known))
    lines += [line(r["learner"], [r]) for r in others]
    return Chart("Accuracy and fairness", "share of rounds with a report", "error rate", lines)


def over_time(name: str, given: Audited, own: History, bounds: Bounds | None) -> list[Chart]:
    """Regret and reports so far, with their bounds."""
    rounds = len(own.y)
    at = np.unique(np.linspace(1, rounds, min(rounds, 60)).astype(int))
    x: list[float] = at.astype(float).tolist()
    unfair = [
        Line(name, x, own.violated.cumsum()[at - 1].astype(float).tolist()),
        Line("rounds", x, x),
    ]
    if bounds is not None and given.penalty:
        unfair.append(Line("bound", x, [bounds.violations(int(t)) for t in at]))
    charts = [Chart("Rounds with a report", "round", "so far", unfair, "y" if bounds is not None else "")]
    if given.comparator is None:
        return charts
    against, mixture = given.comparator
    theirs = np.abs(given.stream.accept @ mixture - own.y).sum(1)
    regret = [Line(name, x, (own.errors - theirs).cumsum()[at - 1].tolist())]
    if bounds is not None:
        regret.append(Line("bound", x, [bounds.regret(int(t)) for t in at]))
    return [Chart(f"Errors above {against}", "round", "so far", regret), *charts]
