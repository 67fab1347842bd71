"""The natural gradient inside a trust region: Fisher-vector products, conjugate gradient, step length, line search
(arXiv 1502.05477, section 6 and appendix C)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from anypolicy.errors import InputError


def fisher_product(
    kl: Float[Tensor, ""], parameters: Sequence[Tensor], damping: float
) -> Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]:
    """v ↦ (∇² KL + damping · I) v, by differentiating ∇KL · v. Where `kl` = mean KL(old ‖ new) stands at new = old, its
    Hessian is the Fisher matrix."""
    slope = flat(torch.autograd.grad(kl, parameters, create_graph=True))

    def product(v: Tensor) -> Tensor:
        return flat(torch.autograd.grad(slope @ v, parameters, retain_graph=True)) + damping * v

    return product


def flat(tensors: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """All numbers one after the other."""
    return torch.cat([t.reshape(-1) for t in tensors])


@torch.no_grad()
def load_flat(parameters: Sequence[Tensor], numbers: Float[Tensor, " n"]) -> None:
    """The inverse of `flat`, in place."""
    parts = numbers.split([p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.copy_(part.view_as(p))


def conjugate_gradient(
    product: Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]],
    b: Float[Tensor, " n"],
    iterations: int = 10,
    tolerance: float = 1e-10,
) -> Float[Tensor, " n"]:
    """x with F x ≈ b for a positive definite F that is known by its product; ends early at |F x − b|² < tolerance."""
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    square = residual @ residual
    for _ in range(iterations):
        if square < tolerance:
            break
        image = product(direction)
        alpha = square / (direction @ image)
        x = x + alpha * direction
        residual = residual - alpha * image
        after = residual @ residual
        direction = residual + after / square * direction
        square = after
    return x


def trust_region_step(
    gradient: Float[Tensor, " n"],
    product: Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]],
    max_kl: float,
    iterations: int = 10,
    tolerance: float = 1e-10,
) -> tuple[Float[Tensor, " n"], Float[Tensor, ""]]:
    """The step x √(max_kl / ½ xᵀFx) with x = F⁻¹ g along which the objective rises, and the rise g · step that its
    slope promises. Both are 0 where the gradient is."""
    if max_kl <= 0:
        raise InputError("max_kl", max_kl, "use a number above 0")
    x = conjugate_gradient(product, gradient, iterations, tolerance)
    half = 0.5 * x @ product(x)
    if not half > 0:
        return torch.zeros_like(gradient), gradient.new_zeros(())
    step = x * (max_kl / half).sqrt()
    return step, gradient @ step


def backtrack(
    loss: Callable[[Float[Tensor, " n"]], Float[Tensor, ""]],
    start: Float[Tensor, " n"],
    step: Float[Tensor, " n"],
    expected: Float[Tensor, ""],
    *,
    shrink: float = 0.5,
    tries: int = 10,
    accept: float = 0.1,
) -> tuple[Float[Tensor, " n"], bool]:
    """The first of start + shrinkᵏ step, k < tries, whose loss is below that of `start` by more than `accept` of what
    was expected of it, expected · shrinkᵏ; else `start`. And whether one was."""
    before = loss(start)
    for k in range(tries):
        new = start + shrink**k * step
        fall, hoped = before - loss(new), shrink**k * expected
        if fall > 0 and fall > accept * hoped:
            return new, True
    return start, False


def trust_region_update(
    loss: Callable[[], Float[Tensor, ""]],
    kl: Callable[[], Float[Tensor, ""]],
    parameters: Sequence[Tensor],
    max_kl: float,
    damping: float,
) -> tuple[float, bool]:
    """One such step on the parameters, in place, for a loss of them; `kl` is mean KL(old ‖ new). The divergence that
    the step made, and whether one was taken."""

    @torch.no_grad()
    def at(numbers: Tensor) -> Tensor:
        load_flat(parameters, numbers)
        return loss()

    start = flat(parameters).detach()
    gradient = -flat(torch.autograd.grad(loss(), parameters))
    step, expected = trust_region_step(gradient, fisher_product(kl(), parameters, damping), max_kl)
    new, taken = backtrack(at, start, step, expected)
    load_flat(parameters, new)
    with torch.no_grad():
        return float(kl()), taken


def policy_update(
    policy: Callable[[], Distribution],
    action: Float[Tensor, "batch actions"],
    advantage: Float[Tensor, " batch"],
    parameters: Sequence[Tensor],
    max_kl: float,
    damping: float,
) -> tuple[float, bool]:
    """The step for L = −mean A π/π_old (TRPO). `policy` gives π(·|s) of the batch at the present parameters, actions
    independent of each other; densities and divergences are summed over them."""
    with torch.no_grad():
        old = copy.deepcopy(policy())
        logp_old = old.log_prob(action).sum(-1)
    return trust_region_update(
        lambda: -(advantage * (policy().log_prob(action).sum(-1) - logp_old).exp()).mean(),
        lambda: kl_divergence(old, policy()).sum(-1).mean(),
        parameters,
        max_kl,
        damping,
    )
