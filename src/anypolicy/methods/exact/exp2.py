"""Exp2 for individually fair decisions with one-sided feedback: exponential weights over a finite class of rules.

Paper: arXiv 2206.04475 (ICML 2023), the reduction to contextual combinatorial semi-bandits with Exp2 (its finite
class).
Idea: a label is seen only where a case is accepted, and fairness is known only by pairs that auditors report. Both
become losses of the 2k coordinates "accept i" and "reject i": known for those played, so that no label is missing.
Changes: the losses (½ for rejecting, a penalty C on a reported pair), the estimates (divided by the probability of what
was played), the weights w_h ∝ exp(−η L̂_h).
Silent: the paper's full text could not be had. Losses, constants, bounds and their proofs are ours; C = T^¼. η is five
times that of the bound (`rate`), which learns faster; the bounds are evaluated at the η in use. ε = α, since then
deciding the same for all cases is fair enough to be compared with.
Differs: the paper repeats a reported pair C times in the batch; a weight C is the same loss with k cases. `feedback`
"full" keeps the mean of the estimates and takes the known parts without noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.loops.one_sided import Bounds, audited, study
from anypolicy.parts.fairness import Panel
from anypolicy.parts.one_sided import (
    Array,
    Feedback,
    Pair,
    estimates,
    exponential_weights,
    regret_bound,
    rule_losses,
    theory_rate,
    violation_bound,
)  # fmt: skip
from anypolicy.parts.reports import Solution
from anypolicy.runs.seeds import numpy_generator


def exp2_step(
    losses: Float[Array, " rules"], accept: Bool[Array, "cases rules"], accepted: Bool[Array, " cases"],
    seen: Float[Array, " cases"], pair: Pair, penalty: float, eta: float, feedback: Feedback = "semi",
) -> Float[Array, " rules"]:  # fmt: skip
    """L̂_h + Σ_i h(x_i) ℓ̂_accept,i + (1 − h(x_i)) ℓ̂_reject,i after one round; q_i is the weight of the rules that do
    as was done."""
    q = (accept == accepted[:, None]) @ exponential_weights(losses, eta)
    for i in np.flatnonzero(q < 1e-12):
        raise InputError(f"probability of the decision on case {i}", float(q[i]), "no rule with weight decides so")
    return losses + rule_losses(accept, *estimates(seen, accepted, 1 / q, pair, penalty, feedback))


class Exp2:
    """The learner: one rule is drawn a round; auditors see π_t(x_i) = Σ_h w_h h(x_i)."""

    def __init__(
        self, rules: Callable[[Array], Array], n: int, penalty: float, eta: float, rng: np.random.Generator,
        feedback: Feedback = "semi",
    ):  # fmt: skip
        self.rules, self.penalty, self.eta, self.rng = rules, penalty, eta, rng
        self.feedback: Feedback = feedback
        self.losses = np.zeros(n)

    def decide(self, x: Float[Array, "cases features"]) -> tuple[Float[Array, " cases"], Bool[Array, " cases"]]:
        """π_t on the cases, and the drawn rule's decisions."""
        self.accept = self.rules(x)
        w = exponential_weights(self.losses, self.eta)
        drawn = min(int(np.searchsorted(w.cumsum(), self.rng.random(), side="right")), len(w) - 1)
        self.accepted = self.accept[:, drawn]
        return np.clip(self.accept @ w, 0, 1), self.accepted

    def update(self, seen: Float[Array, " cases"], pair: Pair) -> None:
        """Labels of the accepted cases (others are not looked at) and the panel's report."""
        self.losses = exp2_step(
            self.losses, self.accept, self.accepted, seen, pair, self.penalty, self.eta, self.feedback
        )


@method(
    Card(
        title="Individually Fair Learning with One-Sided Feedback",
        paper="arXiv 2206.04475",
        year=2023,
        family="exact",
        idea="learn whom to accept from the labels of the accepted and from pairs that auditors report as unfair",
        changes=("losses", "estimates", "weights"),
        composes_with="any finite class of rules, any stream of cases, any panel",
        claim="few errors above the best rule without a penalty; with one, few rounds in which the panel objects",
        example="anypolicy solve exp2",
        look_at="what it finds, printed and drawn in its report",
    ),
)
def exp2(
    data: Annotated[str, Knob("name of the problem, or a file")] = "halfspaces",
    rounds: Annotated[int, Knob("rounds", least=1)] = 2000,
    cases: Annotated[int, Knob("cases in a round", least=1)] = 4,
    penalty: Annotated[float | None, Knob("C: weight of a reported pair; none: rounds to the power ¼", least=0)] = None,
    rate: Annotated[float, Knob("multiple of the theory's learning rate", above=0)] = 5.0,
    feedback: Annotated[Feedback, Knob("labels of accepted cases alone, or of all")] = "semi",
    alpha: Annotated[float, Knob("how far chances of alike cases may differ beyond their distance", least=0)] = 0.1,
    gamma: Annotated[float, Knob("share of the panel that must object", least=0, most=1)] = 0.5,
    epsilon: Annotated[
        float | None, Knob("unfairness of the mixtures that it is compared with; none: alpha", least=0)
    ] = None,
    seed: knobs.Seed = 0,
) -> Solution:
    """`data` is halfspaces, breast-cancer or a .csv file with a column label; C is `penalty`, T^¼ if None; η is `rate`
    times the bound's; ε is α if None."""
    given = audited(data, rounds, cases, partial(Panel, alpha=alpha, gamma=gamma), penalty, epsilon, seed)
    if not rate > 0:
        raise InputError("rate", rate, "use a number above 0: a factor of the theory's learning rate")
    n = len(given.stream.rules.offsets)

    def eta(c: float) -> float:
        return rate * theory_rate(cases, rounds, n, c)

    def learner(c: float) -> Any:
        return Exp2(given.stream.rules, n, c, eta(c), numpy_generator(seed, "exp2"), feedback)

    own = eta(given.penalty)
    bounds = Bounds(
        lambda t: regret_bound(cases, t, n, given.penalty, own),
        lambda t: violation_bound(cases, t, n, given.penalty, given.epsilon, own),
    )
    return study("Exp2", given, learner, bounds)
