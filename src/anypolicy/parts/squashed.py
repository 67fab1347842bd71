"""A diagonal Gaussian squashed by tanh into [−1, 1]: a = tanh(u), u = m + σ ε."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus


def log_slope(u: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """ln(1 − tanh(u)²) = 2 (ln 2 − u − softplus(−2u)), which does not saturate."""
    return 2 * (math.log(2) - u - softplus(-2 * u))


def squashed(
    mean: Float[Tensor, "*batch actions"],
    log_std: Float[Tensor, "*batch actions"],
    noise: Float[Tensor, "*batch actions"],
) -> tuple[Float[Tensor, "*batch actions"], Float[Tensor, "*batch"]]:
    """The action of a standard normal `noise`, differentiable in mean and log_std, and its log-density on
    [−1, 1]^actions, summed over actions: Σ_j −ε²/2 − ln σ − ½ ln 2π − ln(1 − tanh(u)²)."""
    u = mean + log_std.exp() * noise
    each = -noise.square() / 2 - log_std - 0.5 * math.log(2 * math.pi) - log_slope(u)
    return u.tanh(), each.sum(-1)
