"""Rewards from a classifier of success, and the losses that train it (arXiv 2401.16013; 1805.11686 for VICE)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def success_reward(logit: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """1[σ(f) ≥ ½]: the reward of success, which ends the episode."""
    return (logit >= 0).to(logit.dtype)


def log_reward(logit: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """ln σ(f) ≤ 0: the reward that does not end it."""
    return logsigmoid(logit)


def classifier_loss(logit: Float[Tensor, " batch"], label: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of labels, which may be soft."""
    return binary_cross_entropy_with_logits(logit, label)


def smoothed(label: Float[Tensor, " batch"], share: float = 0.2) -> Float[Tensor, " batch"]:
    """(1 − share) y + share / 2."""
    return (1 - share) * label + share / 2


def mixup_loss(
    logit: Float[Tensor, " batch"], one: Float[Tensor, " batch"], other: Float[Tensor, " batch"], share: Tensor | float
) -> Float[Tensor, ""]:
    """λ BCE(f, y_a) + (1 − λ) BCE(f, y_b), for f of λ x_a + (1 − λ) x_b."""
    return share * classifier_loss(logit, one) + (1 - share) * classifier_loss(logit, other)


def gradient_penalty(gradient: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
    """mean (‖∇_x f‖ − 1)² with ‖g‖ = √Σ(g² + 1e-6)."""
    return ((gradient.square() + 1e-6).sum(-1).sqrt() - 1).square().mean()
