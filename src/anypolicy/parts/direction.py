"""From noisy gradients to steps of an ascent: where to take a gradient, how to average it, how far to go.

An estimator knows nothing of where gradients come from. At iteration t it says where to take one, where (if anywhere)
to take the product of the Hessian with θ_t − θ_{t−1}, and what direction d_t follows from them. All functions work on
the last dimension: rows before it are independent ascents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.errors import InputError


class Trail(NamedTuple):
    """An ascent at iteration t: θ_t, θ_{t−1} (kept, never worked out again from d) and d_{t−1}."""

    theta: Float[Tensor, "*runs parameters"]
    before: Float[Tensor, "*runs parameters"]
    direction: Float[Tensor, "*runs parameters"]
    t: int


@runtime_checkable
class Estimator(Protocol):
    """What turns gradients into directions."""

    def gradient_at(self, trail: Trail) -> Tensor:
        """Where to take the gradient."""
        ...

    def product_at(self, trail: Trail, q: Float[Tensor, "*runs 1"]) -> Tensor | None:
        """Where to take the Hessian's product with θ_t − θ_{t−1}, given uniform numbers; None if it is not needed."""
        ...

    def direction(self, trail: Trail, gradient: Tensor, product: Tensor | None) -> Tensor:
        """d_t."""
        ...


def decaying(scale: float, t: int, power: float) -> float:
    """scale · (2/(t + 2))^power, which is `scale` at t = 0."""
    return scale * (2 / (t + 2)) ** power


def averaged(
    direction: Float[Tensor, "*runs parameters"], gradient: Float[Tensor, "*runs parameters"], eta: float
) -> Float[Tensor, "*runs parameters"]:
    """(1 − η) d + η g."""
    return (1 - eta) * direction + eta * gradient


@dataclass(frozen=True)
class Plain:
    """d_t = g(θ_t)."""

    def gradient_at(self, trail: Trail) -> Tensor:
        return trail.theta

    def product_at(self, trail: Trail, q: Tensor) -> None:
        return None

    def direction(self, trail: Trail, gradient: Tensor, product: Tensor | None) -> Tensor:
        return gradient


@dataclass(frozen=True)
class Momentum:
    """d_t = (1 − η_t) d_{t−1} + η_t g(θ_t), η_t = min(1, η₀ (2/(t + 2))^power)."""

    eta0: float = 1.0
    power: float = 2 / 3

    def eta(self, t: int) -> float:
        return min(1.0, decaying(self.eta0, t, self.power))

    def gradient_at(self, trail: Trail) -> Tensor:
        return trail.theta

    def product_at(self, trail: Trail, q: Tensor) -> None:
        return None

    def direction(self, trail: Trail, gradient: Tensor, product: Tensor | None) -> Tensor:
        return averaged(trail.direction, gradient, self.eta(trail.t))


@dataclass(frozen=True)
class Step:
    """θ_{t+1} = θ_t + γ_t d_t/‖d_t‖, or + γ_t d_t without `normalised`; γ_t = γ₀ (2/(t + 2))^power. The norm is over
    all parameters; where d_t = 0 nothing moves."""

    gamma0: float
    power: float = 1.0
    normalised: bool = True

    def gamma(self, t: int) -> float:
        return decaying(self.gamma0, t, self.power)

    def __call__(self, trail: Trail, direction: Float[Tensor, "*runs parameters"]) -> Trail:
        """The next iteration. Raises InputError where the direction is not finite."""
        if not direction.isfinite().all():
            raise InputError("gradient", "NaN or infinite", "rewards and log-probabilities must be finite: clip the "
                             "reward or lower gamma0")  # fmt: skip
        way = direction
        if self.normalised:
            length = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
            way = direction / torch.where(length > 0, length, 1.0)
        return Trail(trail.theta + self.gamma(trail.t) * way, trail.theta, direction, trail.t + 1)


def begin(theta: Float[Tensor, "*runs parameters"]) -> Trail:
    """t = 0, θ_{−1} = θ_0."""
    return Trail(theta, theta, torch.zeros_like(theta), 0)


def ascend(
    estimator: Estimator, step: Step, theta: Float[Tensor, "*runs parameters"],
    gradient: Callable[[Tensor], Tensor], product: Callable[[Tensor, Tensor], Tensor], generator: torch.Generator,
) -> Iterator[tuple[Trail, Tensor]]:  # fmt: skip
    """The ascent of a function known by `gradient(θ)` and `product(θ, v)`, the Hessian at θ times v: at every iteration
    the trail before the step and d_t, without end."""
    trail = begin(theta)
    while True:
        g = gradient(estimator.gradient_at(trail))
        q = torch.rand(*theta.shape[:-1], 1, generator=generator, dtype=theta.dtype)
        middle = estimator.product_at(trail, q)
        v = None if middle is None else product(middle, trail.theta - trail.before)
        d = estimator.direction(trail, g, v)
        yield trail, d
        trail = step(trail, d)
