"""Rewards to advantages: the group normaliser, leave-one-out, returns, GAE and whitening."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypolicy.errors import InputError

Std = Literal["sample", "population", "none", "batch"]


def group_index(group_id: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Group numbers 0, 1, … in place of arbitrary ids."""
    return torch.unique(group_id, return_inverse=True)[1]


def group_sum(x: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Σ over the group, given back to each of its members. `group` as made by `group_index`."""
    size = int(group.max()) + 1 if len(group) else 0
    return x.new_zeros(size).index_add_(0, group, x)[group]


def all_equal(x: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """True for members of groups whose values are all the same (max = min, exactly); NaN members are left out."""
    size = int(group.max()) + 1 if len(group) else 0
    real = ~x.isnan()
    low = x.new_full((size,), torch.inf).scatter_reduce_(0, group[real], x[real], "amin")
    high = x.new_full((size,), -torch.inf).scatter_reduce_(0, group[real], x[real], "amax")
    return (high <= low)[group]


def group_normalise(
    reward: Float[Tensor, " n"],
    group_id: Int[Tensor, " n"],
    *,
    std: Std = "sample",
    eps: float = 1e-6,
    virtual: tuple[float, ...] = (),
) -> Float[Tensor, " n"]:
    """A_i = (r_i − mean) / (std + eps) with the statistics of i's group.

    `std`: sample (divide by n − 1), population (by n), none (mean only), or batch (sample std of the raw rewards of
    all rows). `virtual` rewards count in every group's mean and std but get no advantage. A NaN reward is left out of
    its group's statistics and gets 0. A group whose values, virtual ones included, are all equal gets exactly 0 (the
    rounding error of the mean divided by eps is not a signal); so does a group of one.
    """
    if std not in get_args(Std):
        raise InputError("std", std, f"use one of {', '.join(get_args(Std))}", choices=get_args(Std))
    real, group = ~reward.isnan(), group_index(group_id)
    r = torch.where(real, reward, 0)
    n = group_sum(real.to(r.dtype), group) + len(virtual)
    mean = (group_sum(r, group) + sum(virtual)) / n.clamp(min=1)
    centred = torch.where(real, r - mean, 0)
    square = group_sum(centred.square(), group) + sum(((v - mean).square() for v in virtual), torch.zeros_like(mean))
    if std == "none":
        scale = torch.ones_like(mean)
    elif std == "batch":
        scale = reward[real].std() + eps if real.sum() > 1 else torch.ones_like(mean)
    else:
        scale = torch.sqrt(square / (n - int(std == "sample")).clamp(min=1)) + eps
    flat = all_equal(reward, group)
    for v in virtual:
        flat &= group_sum(((r != v) & real).to(r.dtype), group) == 0
    return torch.where(flat, 0, centred / scale)


def leave_one_out(reward: Float[Tensor, " n"], group_id: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """A_i = r_i − mean_{j≠i} r_j = n/(n−1) · (r_i − mean) (RLOO); 0 for a group of one and for NaN rewards."""
    real, group = ~reward.isnan(), group_index(group_id)
    n = group_sum(real.to(reward.dtype), group)
    return n / (n - 1).clamp(min=1) * group_normalise(reward, group_id, std="none")


def returns_to_go(
    reward: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], discount: float = 1.0
) -> Float[Tensor, "rows tokens"]:
    """G_t = Σ_{k≥t} discount^(k−t) r_k over masked tokens; 0 where the mask is False."""
    out, running = torch.zeros_like(reward), reward.new_zeros(len(reward))
    for t in reversed(range(reward.shape[1])):
        running = torch.where(mask[:, t], reward[:, t] + discount * running, running)
        out[:, t] = running
    return out * mask


def gae(
    reward: Float[Tensor, "rows tokens"],
    value: Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    *,
    discount: float = 1.0,
    lam: float = 1.0,
) -> Float[Tensor, "rows tokens"]:
    """Generalised advantage: δ_t = r_t + γ V_{t+1} − V_t, A_t = δ_t + γλ A_{t+1}, over masked tokens.

    V after the last masked token is 0 (the response has ended); tokens outside the mask are stepped over.
    The value target is A_t + V_t with this raw A, before any whitening.
    """
    out = torch.zeros_like(reward)
    next_value, running = reward.new_zeros(len(reward)), reward.new_zeros(len(reward))
    for t in reversed(range(reward.shape[1])):
        here = mask[:, t]
        delta = reward[:, t] + discount * next_value - value[:, t]
        running = torch.where(here, delta + discount * lam * running, running)
        next_value = torch.where(here, value[:, t], next_value)
        out[:, t] = running
    return out * mask


def whiten(
    x: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], std: Literal["sample", "population"] = "sample"
) -> Float[Tensor, "rows tokens"]:
    """(x − mean) / scale over masked tokens; 0 outside the mask.

    scale: sqrt(var + 1e-8) with the sample variance (n − 1), or sqrt(max(var, 1e-8)) with the population's (n).
    Values that are all equal, or fewer than two, give exactly 0.
    """
    kept = x[mask]
    if kept.numel() < 2 or bool(kept.max() == kept.min()):
        return torch.zeros_like(x)
    if std == "sample":
        return torch.where(mask, (x - kept.mean()) * torch.rsqrt(kept.var() + 1e-8), 0)
    return torch.where(mask, (x - kept.mean()) * torch.rsqrt(kept.var(correction=0).clamp(min=1e-8)), 0)


def token_rewards(
    reward: Float[Tensor, " rows"],
    mask: Bool[Tensor, "rows tokens"],
    logp_old: Float[Tensor, "rows tokens"],
    logp_ref: Float[Tensor, "rows tokens"] | None = None,
    kl_coef: float = 0.0,
) -> Float[Tensor, "rows tokens"]:
    """The row's reward on its last masked token, and −kl_coef · (logp_old − logp_ref) on every masked token.

    The segments of one trajectory each end with the trajectory's return.
    """
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    out = torch.where(last, torch.nan_to_num(reward)[:, None], 0)
    return out if logp_ref is None else out - kl_coef * (logp_old - logp_ref) * mask
