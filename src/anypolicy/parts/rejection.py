"""Statistical rejection sampling: draws from π(y) ∝ π_sft(y) exp(r(y)/β) out of samples from π_sft, and rewards of
single responses out of a model that only compares two (arXiv 2309.06657)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.errors import InputError

CLAMP = 1e-6
"""Nearest that a probability comes to 0 or 1 before its logit is taken."""


def without_order(first: float, second: float) -> float:
    """½ [ρ(y₁, y₂) + 1 − ρ(y₂, y₁)]: P(y₁ is better), of a judge asked in both orders. What it adds to whichever
    response stands first is gone."""
    return 0.5 * (first + 1 - second)


def pointwise(probability: float) -> float:
    """r(y) = logit ρ(y, y_b) = ln(ρ/(1 − ρ)), eq. 7: how much better than a baseline response y_b to the same prompt,
    in the unit of Bradley and Terry's model. Of y_b itself it is 0."""
    if not 0 <= probability <= 1:
        raise InputError("probability", probability, "a comparison gives a number in [0, 1]")
    p = min(max(probability, CLAMP), 1 - CLAMP)
    return math.log(p / (1 - p))


def acceptance(rewards: Sequence[float], beta: float) -> list[float]:
    """exp((r − max r)/β): with what probability each candidate is accepted. Where π_sft gave the candidates its mean
    estimates the expected rate (theorem 1)."""
    if any(math.isnan(r) for r in rewards):
        place = [math.isnan(r) for r in rewards].index(True)
        raise InputError("reward", rewards[place], f"candidate {place}: it must be a number")
    if not beta > 0:
        raise InputError("beta", beta, "use a number above 0; 0 keeps the best and has no probabilities")
    best = max(rewards)
    return [math.exp((r - best) / beta) for r in rewards]


def rejection_sample(
    rewards: Sequence[float], beta: float, count: int, uniform: Callable[[], float]
) -> list[int]:  # fmt: skip
    """Indices of `count` distinct candidates in the order they were accepted; all of them where there are no more.

    Algorithm 1: rounds over the candidates that are left, in order, each accepted where u < exp((r − max)/β), u from
    [0, 1) and the maximum that of those left at the round's beginning; it ends in the middle of a round. The best one
    left is always accepted, so it ends. β = ∞ accepts the first ones; β = 0 the best ones, the first of equals first.
    """
    if count < 0:
        raise InputError("count", count, "use 0 or more")
    if beta == 0:
        acceptance(rewards, 1.0)
        return sorted(range(len(rewards)), key=lambda i: -rewards[i])[:count]
    left, out = list(range(len(rewards))), list[int]()
    while left and len(out) < count:
        taken = set[int]()
        for i, p in zip(left, acceptance([rewards[i] for i in left], beta), strict=True):
            if uniform() < p:
                taken.add(i)
                out.append(i)
            if len(out) == count:
                break
        left = [i for i in left if i not in taken]
    return out


def tilted(
    prior: Float[Tensor, "... responses"], rewards: Float[Tensor, "... responses"], beta: float
) -> Float[Tensor, "... responses"]:
    """π_r ∝ π_sft exp(r/β), eq. 4: the policy of the largest mean reward − β · divergence from π_sft."""
    return torch.softmax(prior.log() + rewards / beta, -1)
