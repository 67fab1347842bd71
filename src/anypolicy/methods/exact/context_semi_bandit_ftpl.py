"""Context-Semi-Bandit-FTPL for individually fair decisions with one-sided feedback: perturb the history, ask an oracle.

Paper: arXiv 2206.04475 (ICML 2023), the reduction with follow-the-perturbed-leader and resampling (its large classes).
Idea: exponential weights need every rule by name. The best rule on the history plus noise at a few contexts is as
random, and an oracle for weighted classification finds it; probabilities are estimated by drawing again.
Changes: how rules are drawn (argmin of L̂ + Σ_z h(z) ξ(z) with Laplace noise of scale 1/noise), π_t (mean of `draws`
draws made before the one that is played), 1/q (count of new draws until the first that decides as was done, at most
`most`).
Silent: the paper's full text could not be had: constants are ours, and no bound is shown, since none could be verified.
Losses and penalty are those of the reduction. Contexts for the noise should tell any two rules apart; they are drawn
like the cases, and the result says whether they do.
Differs: with `oracle` "finite" the leader is exact. "linear" asks logistic regression on |c|-weighted labels 1[c < 0]:
a heuristic, as every oracle of this kind, and slow (draws + most + 1 fits a round).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.loops.one_sided import audited, study
from anypolicy.parts.fairness import Panel
from anypolicy.parts.one_sided import Array, Pair, estimates, rule_losses
from anypolicy.parts.reports import Assumption, Report, Solution
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.exact.one_sided import library


class Oracle(Protocol):
    """Knows the estimated losses so far."""

    def add(self, x: Array, of_accepting: Array, of_rejecting: Array) -> None:
        """The estimated losses of a round."""
        ...

    def decide(self, x: Array, noise: Array) -> Array:
        """For every row of noise at the separators: what the rule that is best with it decides on x, (draws, cases)."""
        ...


class Finite:
    """Exact: L̂ of every rule."""

    def __init__(self, rules: Callable[[Array], Array], separators: Float[Array, "separators features"]):
        self.rules, self.at = rules, rules(separators).astype(float)
        self.losses = np.zeros(self.at.shape[1])

    def add(self, x: Array, of_accepting: Array, of_rejecting: Array) -> None:
        self.losses = self.losses + rule_losses(self.rules(x), of_accepting, of_rejecting)

    def decide(self, x: Array, noise: Array) -> Array:
        return self.rules(x)[:, (self.losses + noise @ self.at).argmin(1)].T


class Linear:
    """Logistic regression on the whole history: c is what accepting a case costs more than rejecting it."""

    def __init__(self, separators: Float[Array, "separators features"]):
        self.separators, self.x, self.cost = separators, [separators], list[Array]()
        self.model = library("linear_model").LogisticRegression(C=100.0, max_iter=30, warm_start=True, tol=1e-3)

    def add(self, x: Array, of_accepting: Array, of_rejecting: Array) -> None:
        self.x.append(x)
        self.cost.append(of_accepting - of_rejecting)

    def decide(self, x: Array, noise: Array) -> Array:
        history = np.concatenate(self.x)
        return np.stack([self.leader(history, np.concatenate([row, *self.cost]), x) for row in noise])

    def leader(self, history: Array, cost: Array, x: Array) -> Array:
        used, good = cost != 0, cost < 0
        if not used.any() or good[used].all() or not good[used].any():
            return np.full(len(x), bool(good[used].any()))
        weight = np.abs(cost[used])
        return self.model.fit(history[used], good[used], weight / weight.mean()).predict(x).astype(bool)


def counted(draws: Bool[Array, "draws cases"], accepted: Bool[Array, " cases"]) -> Float[Array, " cases"]:
    """J_i: the first of new draws that decides on case i as was done, counted from 1, or their number."""
    same = draws == accepted
    return np.where(same.any(0), same.argmax(0) + 1, len(draws)).astype(float)


class ContextSemiBanditFTPL:
    """The learner: `draws` rules for π_t, one to play, `most` for 1/q, each with noise of its own."""

    def __init__(
        self, oracle: Oracle, separators: int, penalty: float, noise: float, draws: int, most: int,
        rng: np.random.Generator,
    ):  # fmt: skip
        self.oracle, self.separators, self.penalty, self.noise = oracle, separators, penalty, noise
        self.draws, self.most, self.rng = draws, most, rng

    def decide(self, x: Float[Array, "cases features"]) -> tuple[Float[Array, " cases"], Bool[Array, " cases"]]:
        """ξ_accept − ξ_reject at each separator: the part of the noise that depends on the rule."""
        xi = self.rng.laplace(0.0, 1 / self.noise, (2, self.draws + 1 + self.most, self.separators))
        decisions = self.oracle.decide(x, xi[0] - xi[1])
        self.x, self.accepted, self.again = x, decisions[self.draws], decisions[self.draws + 1 :]
        return decisions[: self.draws].mean(0), self.accepted

    def update(self, seen: Float[Array, " cases"], pair: Pair) -> None:
        """ℓ̂ = (loss + penalty) J on the sides that were played."""
        inverse = counted(self.again, self.accepted)
        self.oracle.add(self.x, *estimates(seen, self.accepted, inverse, pair, self.penalty))


@method(
    Card(
        title="Individually Fair Learning with One-Sided Feedback",
        paper="arXiv 2206.04475",
        year=2023,
        family="exact",
        idea="fair decisions from labels of the accepted for classes of rules that only an optimiser can search",
        changes=("draw of the rule", "audited policy", "estimates"),
        composes_with="a finite class or linear rules, any stream of cases, any panel",
        claim="a penalty on reported pairs cuts the rounds in which the panel objects to a quarter or less",
        example="anypolicy solve context-semi-bandit-ftpl",
        look_at="what it finds, printed and drawn in its report",
    ),
)
def context_semi_bandit_ftpl(
    data: Annotated[str, Knob("name of the problem, or a file")] = "halfspaces",
    rounds: Annotated[int, Knob("rounds", least=1)] = 2000,
    cases: Annotated[int, Knob("cases in a round", least=1)] = 4,
    penalty: Annotated[float | None, Knob("C: weight of a reported pair; none: rounds to the power ¼", least=0)] = None,
    oracle: Annotated[
        Literal["finite", "linear"], Knob("what finds the best rule: a list of rules, or linear ones")
    ] = "finite",
    noise: Annotated[float, Knob("scale of the perturbation is 1 over this", above=0)] = 0.05,
    separators: Annotated[int, Knob("contexts that are perturbed", least=1)] = 16,
    draws: Annotated[int, Knob("draws that estimate a policy's chances", least=1)] = 50,
    most: Annotated[int, Knob("draws after which a geometric count is cut", least=1)] = 40,
    alpha: Annotated[float, Knob("how far chances of alike cases may differ beyond their distance", least=0)] = 0.1,
    gamma: Annotated[float, Knob("share of the panel that must object", least=0, most=1)] = 0.5,
    epsilon: Annotated[
        float | None, Knob("unfairness of the mixtures that it is compared with; none: alpha", least=0)
    ] = None,
    seed: knobs.Seed = 0,
) -> Solution:
    """`data`, C and ε as for exp2. Noise has scale 1/`noise`; with more separators there is more of it, so retune them
    together."""
    for name, value in {"noise": noise, "draws": draws, "most": most}.items():
        if not value > 0:
            raise InputError(name, value, "use a number above 0")
    given = audited(data, rounds, cases, partial(Panel, alpha=alpha, gamma=gamma), penalty, epsilon, seed)
    z, rules = given.stream.separators[:separators], given.stream.rules
    if not 0 < separators == len(z):
        raise InputError("separators", separators, f"use 1 to {len(given.stream.separators)}")

    def learner(c: float) -> Any:
        asked = Finite(rules, z) if oracle == "finite" else Linear(z)
        return ContextSemiBanditFTPL(asked, len(z), c, noise, draws, most, numpy_generator(seed, "ftpl"))

    found = study("FTPL", given, learner, None)
    kinds, n = len(np.unique(rules(z), axis=1).T), len(rules.offsets)
    apart = Assumption("the separators tell any two rules apart", kinds == n, f"{kinds} of {n} rules differ on them")
    told = Report("rules that the separators tell apart", float(kinds), "exact", assumptions=(apart,))
    return replace(found, reports=[*found.reports, told])
