"""Accept or reject with labels of accepted cases only, as a combinatorial semi-bandit, and the bounds of Exp2 there.

After Bechavod and Roth, arXiv 2206.04475 (the reduction). An action has 2k coordinates, "accept i" and "reject i", k of
them played. The loss of accepting is 1 − y, that of rejecting ½, known without a label, since

    loss = ½ 1[ŷ ≠ y] + ½ 1[y = 0]        so that regret here is half the regret in errors.

A reported pair (i, l) adds C to "accept i" and to "reject l": C (π(x_i) − π(x_l)) + C in expectation. The losses and
the constants of the bounds are our own derivation; the paper repeats a reported pair C times in the batch.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from anypolicy.errors import InputError

Array = np.ndarray
Feedback = Literal["semi", "full"]
Pair = tuple[int, int] | None


def label_losses(
    seen: Float[Array, " cases"], accepted: Bool[Array, " cases"]
) -> tuple[Float[Array, " cases"], Float[Array, " cases"]]:
    """Losses of accepting (1 − y where the label was seen, else 0, to be multiplied by 0) and of rejecting (½)."""
    for i in np.flatnonzero(accepted & ~((seen == 0) | (seen == 1))):
        raise InputError(f"label of accepted case {i}", float(seen[i]), "it must be 0 or 1")
    return np.where(accepted, 1 - seen, 0.0), np.full(len(seen), 0.5)


def penalties(cases: int, pair: Pair, penalty: float) -> tuple[Float[Array, " cases"], Float[Array, " cases"]]:
    """C on accepting the favoured and on rejecting the slighted case of a reported pair."""
    accept, reject = np.zeros(cases), np.zeros(cases)
    if pair is not None:
        accept[pair[0]] = reject[pair[1]] = penalty
    return accept, reject


def estimates(
    seen: Float[Array, " cases"], accepted: Bool[Array, " cases"], inverse: Float[Array, " cases"], pair: Pair,
    penalty: float, feedback: Feedback = "semi",
) -> tuple[Float[Array, " cases"], Float[Array, " cases"]]:  # fmt: skip
    """Estimated losses of accepting and of rejecting. `inverse` stands for 1/q of the side that was played.
    "semi": (loss + penalty)/q on the coordinates played, else 0. "full": only what is unknown, the label, is estimated;
    the loss of rejecting and the penalty are known for every rule. Both have the same mean."""
    (accept, reject), (unfair, unkind) = label_losses(seen, accepted), penalties(len(seen), pair, penalty)
    if feedback == "full":
        return accept * accepted * inverse + unfair, reject + unkind
    return (accept + unfair) * accepted * inverse, (reject + unkind) * ~accepted * inverse


def rule_losses(
    accept: Bool[Array, "cases rules"], of_accepting: Float[Array, " cases"], of_rejecting: Float[Array, " cases"]
) -> Float[Array, " rules"]:
    """Σ_i h(x_i) ℓ_accept,i + (1 − h(x_i)) ℓ_reject,i."""
    return (of_accepting - of_rejecting) @ accept + of_rejecting.sum()


def exponential_weights(losses: Float[Array, "*rounds rules"], eta: float) -> Float[Array, "*rounds rules"]:
    """w_h ∝ exp(−η L_h)."""
    w = np.exp(-eta * (losses - losses.min(-1, keepdims=True)))
    return w / w.sum(-1, keepdims=True)


def resampled_mean(q: float, most: int) -> float:
    """E min(J, L) = (1 − (1 − q)^L)/q for J geometric with parameter q: what a count of draws until the first match,
    cut at L, has for 1/q."""
    return (1 - (1 - q) ** most) / q


def second_moment(cases: int, penalty: float) -> float:
    """B_C = k (5k/4 + (1 + C)² − 1 + (½ + C)² − ¼), at least Σ_h w_h E ℓ̂_h² of any round: by Cauchy and Schwarz that
    is at most k Σ_c ℓ_c², and a pair of coordinates has at most 1 + ¼ without a penalty."""
    return cases * (1.25 * cases + (1 + penalty) ** 2 - 1 + (0.5 + penalty) ** 2 - 0.25)


def theory_rate(cases: int, rounds: int, rules: int, penalty: float) -> float:
    """η = √(2 ln n/(T B_C)), where the bound is lowest."""
    return math.sqrt(2 * math.log(rules) / (rounds * second_moment(cases, penalty)))


def loss_bound(cases: int, rounds: int, rules: int, penalty: float, eta: float | None = None) -> float:
    """R = ln n/η + (η/2) T B_C, in units of loss; R_L = √(2 T ln n B_C) at the theory's η (None). [ours]"""
    if rules == 1:
        return 0.0
    eta = theory_rate(cases, rounds, rules, penalty) if eta is None else eta
    if eta == 0:
        return math.inf
    return math.log(rules) / eta + eta / 2 * rounds * second_moment(cases, penalty)


def regret_bound(cases: int, rounds: int, rules: int, penalty: float, eta: float | None = None) -> float:
    """2 R: expected errors above those of any mixture that the panel accepts. Without a penalty above those of any
    rule: 2k√(2.5 T ln n). [ours]"""
    return 2 * loss_bound(cases, rounds, rules, penalty, eta)


def violation_bound(
    cases: int, rounds: int, rules: int, penalty: float, epsilon: float, eta: float | None = None
) -> float:
    """(R + ½kT)/(Cε): expected rounds with a report, if some mixture is fair at α − ε. May exceed T. [ours]"""
    if penalty == 0:
        return math.inf
    return (loss_bound(cases, rounds, rules, penalty, eta) + 0.5 * cases * rounds) / (penalty * epsilon)
