"""Denoising diffusion of actions: schedules, the forward process, the loss on the noise, one step back by DDPM or DDIM.

Index k is that of the arrays, 0 … K−1, in training and in sampling alike; `kept[k]` is ᾱ_k = Π_{i ≤ k} (1 − β_i), so
that x_k = √ᾱ_k a + √(1 − ᾱ_k) ε already holds noise at k = 0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.errors import InputError

Schedule = Literal["vp", "cosine"]


def vp_betas(steps: int, low: float = 0.1, high: float = 10.0) -> Float[Tensor, " steps"]:
    """1 − β_k = exp(−low/K − ½ (high − low)(2k − 1)/K²), k = 1 … K: the variance-preserving process in K steps."""
    k = torch.arange(1, steps + 1, dtype=torch.float64)
    return 1 - torch.exp(-low / steps - 0.5 * (high - low) * (2 * k - 1) / steps**2)


def cosine_betas(steps: int, offset: float = 0.008, largest: float = 0.999) -> Float[Tensor, " steps"]:
    """β_k = 1 − f(k/K)/f((k − 1)/K), f(x) = cos²((x + offset)/(1 + offset) · π/2), at most `largest` (arXiv
    2102.09672, eq. 17)."""
    x = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((x + offset) / (1 + offset) * math.pi / 2).square()
    return (1 - f[1:] / f[:-1]).clamp(0, largest)


def betas_of(schedule: Schedule, steps: int) -> Float[Tensor, " steps"]:
    """A schedule by name."""
    return vp_betas(steps) if schedule == "vp" else cosine_betas(steps)


def diffused(
    action: Float[Tensor, "*batch actions"], noise: Float[Tensor, "*batch actions"], kept: Float[Tensor, "*batch 1"]
) -> Float[Tensor, "*batch actions"]:
    """x_k = √ᾱ_k a + √(1 − ᾱ_k) ε (arXiv 2006.11239, eq. 4)."""
    return kept.sqrt() * action + (1 - kept).sqrt() * noise


def noise_loss(
    predicted: Float[Tensor, "*batch actions"], noise: Float[Tensor, "*batch actions"],
    over_actions: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, ""]:  # fmt: skip
    """‖ε_θ(x_k, k, s) − ε‖², mean over the batch; over actions the sum (IDQL) or the mean (DPPO)."""
    each = (predicted - noise).square()
    return (each.sum(-1) if over_actions == "sum" else each.mean(-1)).mean()


def denoised(
    x: Float[Tensor, "*batch actions"], noise: Float[Tensor, "*batch actions"], kept: Float[Tensor, ""]
) -> Float[Tensor, "*batch actions"]:
    """The action that a prediction of the noise implies: (x − √(1 − ᾱ_k) ε̂)/√ᾱ_k."""
    return (x - (1 - kept).sqrt() * noise) / kept.sqrt()


def ddpm_mean(
    x: Float[Tensor, "*batch actions"], noise: Float[Tensor, "*batch actions"], beta: Float[Tensor, ""],
    kept: Float[Tensor, ""],
) -> Float[Tensor, "*batch actions"]:  # fmt: skip
    """(x − β_k ε̂/√(1 − ᾱ_k))/√(1 − β_k); a step adds √β_k z to it, except at k = 0 (arXiv 2006.11239, eq. 11)."""
    return (x - beta / (1 - kept).sqrt() * noise) / (1 - beta).sqrt()


def ddim_step(
    x: Float[Tensor, "*batch actions"], noise: Float[Tensor, "*batch actions"], kept: Float[Tensor, ""],
    kept_next: Float[Tensor, ""],
) -> Float[Tensor, "*batch actions"]:  # fmt: skip
    """√ᾱ' x₀ + √(1 − ᾱ') ε with x₀ clipped to [−1, 1] and ε recomputed from it; nothing is drawn (arXiv 2010.02502,
    eq. 12 with σ = 0)."""
    x0 = denoised(x, noise, kept).clamp(-1, 1)
    noise = (x - kept.sqrt() * x0) / (1 - kept).sqrt()
    return kept_next.sqrt() * x0 + (1 - kept_next).sqrt() * noise


def ddim_indices(trained: int, steps: int) -> list[int]:
    """The indices that DDIM visits, first to last: ⌊K/n⌋ (n − 1), …, ⌊K/n⌋, 0."""
    if not 1 <= steps <= trained:
        raise InputError("steps", steps, f"use 1 to {trained}, the number of steps of the diffusion")
    return [i * (trained // steps) for i in reversed(range(steps))]
