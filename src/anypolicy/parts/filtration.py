"""Filtration of a prompt's responses by the rank of their reward, and how well rewards agree with true scores.

Policy filtration, arXiv 2409.06957, section 4: μ is "sample one response with weights w over the ranks", R² is how much
of the true score the reward explains on responses drawn from μ.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypolicy.errors import InputError

Rule = Literal["none", "best-of-n", "best-random", "best-worst", "power", "top", "top-random", "top-bottom"]


def rank_weights(rule: Rule, n: int) -> Float[Tensor, " n"]:
    """w over the ranks, best first: none 1/n each · best-of-n (1, 0, …) · best-random (1/2, 1/2(n−1), …) · best-worst
    (1/2, 0, …, 0, 1/2). One response has weight 1."""
    w = torch.zeros(n, dtype=torch.float64)
    if rule == "none" or n == 1:
        return w + 1 / n
    if rule == "best-of-n":
        w[0] = 1
    elif rule == "best-random":
        w += 1 / (2 * (n - 1))
        w[0] = 1 / 2
    elif rule == "best-worst":
        w[0], w[-1] = 1 / 2, 1 / 2
    else:
        raise InputError("rule", rule, "it has no weights over ranks", choices=get_args(Rule)[:4])
    return w


def power_weights(reward: Float[Tensor, " n"], power: float) -> Float[Tensor, " n"]:
    """|R|^power / Σ|R|^power for rewards in [−1, 1]; uniform where all of them are 0."""
    if bool((reward.abs() > 1).any()):
        worst = float(reward[reward.abs().argmax()])
        raise InputError("reward", worst, "weights |R|^k need rewards in [-1, 1]: scale the reward")
    w = reward.abs() ** power
    return w / w.sum() if bool(w.sum() > 0) else torch.full_like(w, 1 / len(w))


def ranked(reward: Float[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " finite"]:
    """Indices from the highest reward to the lowest, ties in random order, NaN left out."""
    shuffled = torch.randperm(len(reward), generator=generator)
    shuffled = shuffled[~reward[shuffled].isnan()]
    return shuffled[torch.argsort(reward[shuffled], descending=True, stable=True)]


def choose_ranks(
    rule: Rule, n: int, generator: torch.Generator, *, with_replacement: bool = False, n_keep: int = 2
) -> Int[Tensor, " kept"]:
    """Ranks to keep of n (0 is the best): the first, the last, one uniform other, all, as the rule says; or `n_keep`
    draws with replacement from its weights."""
    if with_replacement:
        return torch.multinomial(rank_weights(rule, n), n_keep, replacement=True, generator=generator)
    if rule == "none":
        return torch.arange(n)
    if rule == "best-of-n" or n == 1:
        return torch.zeros(1, dtype=torch.long)
    if rule == "best-worst":
        return torch.tensor([0, n - 1])
    return torch.tensor([0, int(torch.randint(1, n, (1,), generator=generator))])


def keep(
    rule: Rule,
    reward: Float[Tensor, " n"],
    group_id: Int[Tensor, " n"],
    generator: torch.Generator,
    *,
    with_replacement: bool = False,
    n_keep: int = 2,
    power: float = 2.0,
    high: float = 0.0,
    low: float = 0.0,
) -> Int[Tensor, " kept"]:
    """Indices of the responses that a rule keeps, in their own order, one drawn twice standing there twice.

    Rules over ranks work inside each group. `power` draws n_keep per group from all responses together, always with
    replacement. Thresholds: top keeps R > high; top-random also each other one with probability 1/2; top-bottom
    R > high or R < low.
    """
    real = (~reward.isnan()).nonzero()[:, 0]
    if len(real) == 0:
        return real
    r = reward[real]
    if rule == "power":
        draws = n_keep * len(group_id[real].unique())
        drawn = torch.multinomial(power_weights(r.double(), power), draws, replacement=True, generator=generator)
        return real[drawn].sort().values
    if rule in ("top", "top-random", "top-bottom"):
        passed = r > high
        if rule == "top-random":
            passed |= torch.rand(len(r), generator=generator) < 0.5
        elif rule == "top-bottom":
            passed |= r < low
        return real[passed]
    kept: list[Tensor] = []
    for g in group_id[real].unique().tolist():
        mine = real[group_id[real] == g]
        order = mine[ranked(reward[mine], generator)]
        kept.append(order[choose_ranks(rule, len(order), generator, with_replacement=with_replacement, n_keep=n_keep)])
    return torch.cat(kept).sort().values


class Fit(NamedTuple):
    """The least-squares line s ≈ slope · R + intercept and the share of the variance of s that it explains."""

    slope: float
    intercept: float
    r_squared: float


def fit_line(reward: Float[Tensor, " n"], score: Float[Tensor, " n"]) -> Fit:
    """R² = 1 − Σ(s − ŝ)² / Σ(s − mean s)²; NaN where all scores are equal, 0 where only all rewards are."""
    x, s = reward.double(), score.double()
    if len(x) == 0 or bool(s.max() == s.min()):
        return Fit(math.nan, math.nan, math.nan)
    dx, ds = x - x.mean(), s - s.mean()
    slope = 0.0 if bool(x.max() == x.min()) else float((dx * ds).sum() / dx.square().sum())
    intercept = float(s.mean() - slope * x.mean())
    left = (s - slope * x - intercept).square().sum()
    return Fit(slope, intercept, float(1 - left / ds.square().sum()))


def equal_count_means(
    reward: Float[Tensor, " n"], score: Float[Tensor, " n"], bins: int = 10
) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"]]:
    """Mean reward and mean score of `bins` groups of responses with similar reward and (almost) equal number."""
    parts = [p for p in torch.tensor_split(torch.argsort(reward, stable=True), bins) if len(p)]
    return torch.stack([reward[p].mean() for p in parts]), torch.stack([score[p].mean() for p in parts])
