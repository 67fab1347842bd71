"""Temporal differences: n-step returns, soft targets, critic and temperature losses, generalised advantages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


def n_step(
    reward: Float[Tensor, " steps"],
    terminated: Float[Tensor, " steps"],
    truncated: Float[Tensor, " steps"],
    n: int,
    discount: float,
) -> tuple[Float[Tensor, " steps"], Int[Tensor, " steps"], Float[Tensor, " steps"]]:
    """For every step t of a stream: R_t = Σ_{i<k} γⁱ r_{t+i}, the last step t+k−1 that is summed, and γᵏ; k ≤ n is cut
    by the end of an episode (that step included) and of the stream. The target is
    R_t + γᵏ (1 − terminated_{t+k−1}) V(s_{t+k})."""
    steps = torch.arange(len(reward))
    ended = (terminated + truncated) > 0
    total, power = torch.zeros_like(reward), torch.ones_like(reward)
    last, going = steps.clone(), torch.ones(len(reward), dtype=torch.bool)
    for i in range(n):
        at = steps + i
        going = going & (at < len(reward))
        at = at.clamp(max=len(reward) - 1)
        total = total + torch.where(going, power * reward[at], 0)
        power = torch.where(going, power * discount, power)
        last = torch.where(going, at, last)
        going = going & ~ended[at]
    return total, last, power


def soft_target(
    reward: Float[Tensor, " batch"],
    continues: Float[Tensor, " batch"],
    q_next: Float[Tensor, "subset batch"],
    logp_next: Float[Tensor, " batch"] | None = None,
    alpha: Tensor | float = 0.0,
) -> Float[Tensor, " batch"]:
    """y = r + γ(1 − d) (min_i Q̄_i(s′, a′) − α ln π(a′|s′)); without `logp_next` no entropy is backed up. `continues` is
    γᵏ(1 − terminated)."""
    value = q_next.amin(0)
    if logp_next is not None:
        value = value - alpha * logp_next
    return reward + continues * value


def critic_loss(q: Float[Tensor, "ensemble batch"], target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Σ_i ½ mean_B (Q_i − y)²."""
    return 0.5 * (q - target).square().mean(-1).sum()


def temperature_loss(
    log_alpha: Float[Tensor, ""],
    logp: Float[Tensor, " batch"],
    target_entropy: float,
    form: Literal["log_alpha", "alpha"] = "log_alpha",
) -> Float[Tensor, ""]:
    """−x · mean(ln π(a|s) + H) with x = ln α (REDQ, SB3) or α (the paper, softlearning): α falls where the entropy is
    above H. ln π carries no gradient."""
    x = log_alpha if form == "log_alpha" else log_alpha.exp()
    return -x * (logp.detach().mean() + target_entropy)


def subset(ensemble: int, size: int, generator: torch.Generator, *, replacement: bool = False) -> Int[Tensor, " size"]:
    """Indices of the target critics whose minimum is taken: one set for the whole batch, distinct unless
    `replacement`."""
    if replacement:
        return torch.randint(ensemble, (size,), generator=generator)
    if size == ensemble:
        return torch.arange(ensemble)
    return torch.randperm(ensemble, generator=generator)[:size]


@torch.no_grad()
def polyak(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """θ̄ ← (1 − τ) θ̄ + τ θ, in place."""
    torch._foreach_lerp_(list(target), list(online), tau)  # pyright: ignore[reportPrivateUsage]


def generalised_advantage(
    reward: Float[Tensor, "steps environments"],
    value: Float[Tensor, "steps environments"],
    next_value: Float[Tensor, "steps environments"],
    terminated: Float[Tensor, "steps environments"],
    truncated: Float[Tensor, "steps environments"],
    discount: float,
    lam: float,
) -> Float[Tensor, "steps environments"]:
    """A_t = δ_t + γλ (1 − d_t)(1 − u_t) A_{t+1}, δ_t = r_t + γ(1 − d_t) V(s′_t) − V(s_t), where s′_t is the observation
    that really followed: a truncated episode is cut but bootstraps (arXiv 1506.02438, eq. 11–16)."""
    delta = reward + discount * (1 - terminated) * next_value - value
    carry = discount * lam * (1 - terminated) * (1 - truncated)
    advantage, after = torch.empty_like(delta), torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        after = delta[t] + carry[t] * after
        advantage[t] = after
    return advantage
