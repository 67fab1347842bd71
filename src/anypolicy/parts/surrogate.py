"""Importance ratios and the objectives that are built on them. Values are maximised."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def token_ratio(
    logp: Float[Tensor, "rows tokens"], logp_old: Float[Tensor, "rows tokens"]
) -> Float[Tensor, "rows tokens"]:
    """r_t = exp(logp − logp_old), the log-ratio clamped to [−20, 20]."""
    return torch.exp((logp - logp_old).clamp(-20, 20))


def sequence_ratio(
    logp: Float[Tensor, "rows tokens"],
    logp_old: Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, "rows tokens"]:
    """s = exp(mean over the row's tokens of (logp − logp_old)) on every token (GSPO).

    In the token form s_t = sg[s] · exp(logp_t − sg[logp_t]): the value is s everywhere, and the mean over the row's
    tokens has the gradient of s.
    """
    log_ratio = torch.where(mask, logp - logp_old, 0).detach()
    s = torch.exp((log_ratio.sum(1) / mask.sum(1).clamp(min=1)).clamp(-20, 20))
    return s[:, None] * torch.exp(logp - logp.detach())


def product_ratio(
    logp: Float[Tensor, "rows tokens"],
    logp_old: Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, "rows tokens"]:
    """w = Π over the row's tokens of exp(logp − logp_old), on every token: the mean over the row's tokens is w."""
    log_ratio = torch.where(mask, logp - logp_old, 0).sum(1)
    return torch.exp(log_ratio.clamp(-20, 20))[:, None].expand(logp.shape)


def clipped(
    ratio: Float[Tensor, "*shape"],
    advantage: Float[Tensor, "*shape"],
    low: float,
    high: float,
    dual: float | None = None,
) -> Float[Tensor, "*shape"]:
    """min(r A, clip(r, 1 − low, 1 + high) A); with `dual` = c, at least c A where A < 0 (dual clip)."""
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is None:
        return objective
    return torch.where(advantage < 0, torch.maximum(objective, dual * advantage), objective)


def clip_active(
    ratio: Float[Tensor, "*shape"], advantage: Float[Tensor, "*shape"], low: float, high: float
) -> Bool[Tensor, "*shape"]:
    """Where the clip sets the gradient to 0: A > 0 above the upper edge, A < 0 below the lower edge."""
    return ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))


def clipped_value_loss(
    value: Float[Tensor, "*shape"],
    value_old: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    clip: float,
) -> Float[Tensor, "*shape"]:
    """½ max((V − R)², (clip(V, V_old − c, V_old + c) − R)²), no gradient through R and V_old."""
    near = value_old + (value - value_old).clamp(-clip, clip)
    return torch.maximum((value - target).square(), (near - target).square()) / 2
