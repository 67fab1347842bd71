"""A concave function with noisy derivatives, to watch estimators of its gradient.

J(θ) = −Σ_i c_i ln cosh θ_i with ten c_i from ½ to 2; its gradients come with noise of length 1, its Hessian's products
with v with noise of length ‖v‖/2 (root mean square)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

C = torch.linspace(0.5, 2, 10, dtype=torch.float64)


def value(theta: Float[Tensor, "*runs 10"]) -> Float[Tensor, "*runs"]:
    """J(θ); its maximum is 0."""
    magnitude = theta.abs()
    return -(C * (magnitude + torch.log1p((-2 * magnitude).exp()) - math.log(2))).sum(-1)


def slope(theta: Float[Tensor, "*runs 10"]) -> Float[Tensor, "*runs 10"]:
    """∇J(θ) = −c tanh θ."""
    return -C * theta.tanh()


@dataclass(frozen=True)
class Oracle:
    """Noisy gradients and Hessian-vector products."""

    generator: torch.Generator
    noise: float = 1.0
    product_noise: float = 0.5

    def draw(self, theta: Tensor) -> Tensor:
        """Noise of mean square length 1."""
        normal = torch.randn(theta.shape, generator=self.generator, dtype=theta.dtype)
        return normal / theta.shape[-1] ** 0.5

    def gradient(self, theta: Float[Tensor, "*runs 10"]) -> Float[Tensor, "*runs 10"]:
        return slope(theta) + self.noise * self.draw(theta)

    def product(self, theta: Float[Tensor, "*runs 10"], vector: Float[Tensor, "*runs 10"]) -> Float[Tensor, "*runs 10"]:
        """∇²J(θ) v = −c (1 − tanh² θ) v."""
        length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        return -C * (1 - theta.tanh().square()) * vector + self.product_noise * length * self.draw(theta)
