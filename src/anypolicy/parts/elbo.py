"""The evidence lower bound of a masked-diffusion model, one random mask at a time: pure functions.

A response of L tokens is corrupted by masks; the model predicts every masked token from the rest. With p_θ(y_i | y_t,
x)

    log p_θ(y | x) ≥ B(y | x) = E_{t, y_t} [ (1/t) Σ_i 1[y_t,i = MASK] log p_θ(y_i | y_t, x) ]

(arXiv 2406.07524, eq. 10 with a linear schedule; arXiv 2502.09992, eq. 3).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MaskDraw = Literal["count", "t"]
LEAST = 1e-3
"""Smallest noise level t: without it one draw's variance is infinite (∫ dt/t)."""


def random_mask(
    uniform: Float[Tensor, "rows tokens"], level: Float[Tensor, " rows"], tokens: Bool[Tensor, "rows tokens"],
    draw: MaskDraw,
) -> tuple[Bool[Tensor, "rows tokens"], Float[Tensor, " rows"]]:  # fmt: skip
    """Which of a row's `tokens` are masked and the weight of their log-probabilities, from numbers uniform in [0, 1):
    one a token and one a row.

    - count: k uniform in 1 … L, exactly k tokens masked, weight L/k;
    - t: each token masked with probability t, t uniform but at least 1e-3, weight 1/t; possibly none.

    Both have the mean B; a draw of "count" varies far less.
    """
    if draw == "t":
        t = level.clamp(min=LEAST)
        return tokens & (uniform < t[:, None]), 1 / t
    n = tokens.sum(1)
    k = torch.minimum((level * n).long() + 1, n)
    rank = torch.where(tokens, uniform, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    return tokens & (rank < k[:, None]), n.to(level.dtype) / k.clamp(min=1)


def elbo_sample(
    logp: Float[Tensor, "rows tokens"], masked: Bool[Tensor, "rows tokens"], weight: Float[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """ℓ = weight · Σ over masked tokens of log p_θ(y_i | y_t, x), in nats: a sum, not a mean; 0 if none is masked."""
    return weight.to(logp.dtype) * torch.where(masked, logp, 0).sum(1)
