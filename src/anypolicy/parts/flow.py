"""Flow matching: a velocity field that carries standard normal noise (t = 0) to actions (t = 1)."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor


def straight(
    noise: Float[Tensor, "*batch actions"], action: Float[Tensor, "*batch actions"], t: Float[Tensor, "*batch 1"]
) -> tuple[Float[Tensor, "*batch actions"], Float[Tensor, "*batch actions"]]:
    """x_t = (1 − t) z + t a, and the velocity a − z of this straight line (arXiv 2210.02747, 2209.03003)."""
    return (1 - t) * noise + t * action, action - noise


def flow_loss(
    predicted: Float[Tensor, "*batch actions"], velocity: Float[Tensor, "*batch actions"]
) -> Float[Tensor, ""]:
    """‖v_θ(x_t, t, s) − (a − z)‖², mean over the batch and over actions."""
    return (predicted - velocity).square().mean()


def euler(
    field: Callable[[Tensor, float], Tensor], noise: Float[Tensor, "*batch actions"], steps: int
) -> Float[Tensor, "*batch actions"]:
    """x ← x + v(x, k/K)/K for k = 0 … K−1, from x = z. Without noise of its own: one z gives one action."""
    x = noise
    for k in range(steps):
        x = x + field(x, k / steps) / steps
    return x
