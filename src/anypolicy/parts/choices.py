"""Values of discrete actions: which one is taken, whose value is a target, which network is copied."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anypolicy.parts.noise import indices, uniform


def taken(q: Float[Tensor, "batch choices"], action: Float[Tensor, "batch 1"]) -> Float[Tensor, " batch"]:
    """q(s, a) of the action in each row, an index."""
    return q.gather(1, action.long()).squeeze(1)


def best(q: Float[Tensor, "batch choices"]) -> Float[Tensor, "batch 1"]:
    """argmax_a q(s, a), as an index."""
    return q.argmax(1, keepdim=True).to(q.dtype)


def double_target(
    reward: Float[Tensor, " batch"],
    continues: Float[Tensor, " batch"],
    q_next: Float[Tensor, "batch choices"],
    target_next: Float[Tensor, "batch choices"],
) -> Float[Tensor, " batch"]:
    """y = R + γ(1 − d) q̄(s′, argmax_a q(s′, a)): one network chooses, the other judges (arXiv 1509.06461, eq. 4)."""
    return reward + continues * taken(target_next, best(q_next))


def huber(q: Float[Tensor, " batch"], target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean over the batch of δ²/2 where |δ| < 1, else |δ| − ½."""
    return functional.smooth_l1_loss(q, target)


def falling(step: int, first: float, last: float, steps: int) -> float:
    """From `first` to `last` in a line over `steps` steps, then `last`."""
    return max(first + (last - first) * step / steps, last) if step < steps else last


def epsilon_greedy(
    q: Float[Tensor, "batch choices"], epsilon: float, generator: torch.Generator
) -> Float[Tensor, "batch 1"]:
    """The best action, or with probability ε a uniform one."""
    n, choices = q.shape
    any_choice = indices(choices, (n, 1), generator, q.device).to(q.dtype)
    return torch.where(uniform((n, 1), generator, q.device) < epsilon, any_choice, best(q))


@torch.no_grad()
def copy_every(target: Iterable[Tensor], online: Iterable[Tensor], updates: int, every: int) -> None:
    """θ̄ ← θ after each `every` updates, in place."""
    if updates % every == 0:
        torch._foreach_copy_(list(target), list(online))  # pyright: ignore[reportPrivateUsage]
