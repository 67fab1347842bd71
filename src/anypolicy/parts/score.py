"""Score-function gradients of whole trajectories and products with their Hessians.

For trajectories i of n, Φ_i(θ) = Σ_t ψ_t ln π_θ(a_t|s_t) with weights ψ_t that carry no gradient, and
ln p_i(θ) = Σ_t ln π_θ(a_t|s_t) up to what does not depend on θ. Steps of all trajectories lie in one row; `trajectory`
says whose they are. Sums are over time, means over trajectories."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import grad

LogProbabilities = Callable[[Tensor], Tensor]
"""θ → ln π_θ(a_t|s_t) of every step, from states and actions that stay as they are"""


def positions(ended: Bool[Tensor, " steps"]) -> tuple[Int[Tensor, " steps"], Int[Tensor, " steps"]]:
    """Trajectory and time of every step, of trajectories one after the other; `ended` marks their last steps."""
    trajectory = ended.long().cumsum(0) - ended.long()
    steps = torch.arange(len(ended), device=ended.device)
    first = torch.cat([steps.new_zeros(1), steps[ended] + 1])
    return trajectory, steps - first[trajectory]


def score_gradient(
    logp: LogProbabilities, theta: Float[Tensor, " parameters"], weight: Float[Tensor, " steps"], trajectories: int
) -> Float[Tensor, " parameters"]:
    """g = 1/n Σ_i ∇Φ_i(θ) (GPOMDP with ψ_t = Σ_{h≥t} γʰ r_h − b_t)."""
    with torch.enable_grad():
        x = theta.detach().requires_grad_()
        return grad((weight.detach() * logp(x)).sum() / trajectories, x)[0]


def hessian_product(
    logp: LogProbabilities, theta: Float[Tensor, " parameters"], vector: Float[Tensor, " parameters"],
    weight: Float[Tensor, " steps"], trajectory: Int[Tensor, " steps"], trajectories: int, *,
    curvature_only: bool = False,
) -> Float[Tensor, " parameters"]:  # fmt: skip
    """1/n Σ_i B_i v with B_i v = ∇Φ_i (∇ln p_iᵀ v) + ∇²Φ_i v, whose mean is ∇²J v (arXiv 2302.01734). The two
    factors of the first term come from the same trajectory and are multiplied before anything is averaged.
    `curvature_only` leaves that term out: biased, but of little variance.

    s = (∇ln p_iᵀ v)_i comes from the derivative of u ↦ (Σ_t u_t ∇ln π_t)ᵀ v at any u; the product is the gradient of
    (Σ_t ψ_t ∇ln π_t)ᵀ v + Σ_t ψ_t s_i ln π_t with s held fixed."""
    with torch.enable_grad():
        x = theta.detach().requires_grad_()
        value, factor = logp(x), weight.detach().to(theta.dtype).requires_grad_()
        along = grad(value, x, factor, create_graph=True)[0] @ vector.detach()
        total = along
        if not curvature_only:
            slope = grad(along, factor, retain_graph=True)[0]
            whole = slope.new_zeros(trajectories).index_add(0, trajectory, slope)
            total = along + (factor.detach() * whole[trajectory] * value).sum()
        return grad(total / trajectories, x)[0]
