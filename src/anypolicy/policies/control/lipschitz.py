"""Policies whose Lipschitz constant is certified: an extension of the data, and a network that is projected while it
learns. Both are called with states (batch, n) and know their constant, `certificate()`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from anypolicy.errors import InputError
from anypolicy.parts.lipschitz import check_alpha, check_pairs, extension, projected, spectral_norm
from anypolicy.parts.optimisers import make_optimiser
from anypolicy.policies.control.mlp import MLP

Kind = Literal["extension", "mlp"]


class Certified(Protocol):
    """A map from states to commands with a constant that holds everywhere."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def certificate(self) -> float:
        """‖π(x) − π(y)‖ ≤ certificate · ‖x − y‖ for all x and y."""
        ...


class Extension:
    """The middle of the α-Lipschitz functions that come closest to the data: nothing is trained, a query costs one pass
    over the samples."""

    def __init__(self, x: Float[Tensor, "samples n"], u: Float[Tensor, "samples m"], alpha: float):
        check_pairs(x, u)
        self.x, self.u, self.alpha = x, u, check_alpha(alpha)

    def __call__(self, x: Tensor) -> Tensor:
        return extension(self.x, self.u, self.alpha, x)

    def certificate(self) -> float:
        return self.alpha


class LipschitzMLP(nn.Module):
    """A perceptron with MaxMin activations in scaled numbers, u = middle + height · net((x − centre)/spread), with one
    scale for all inputs and one for all outputs. `project` keeps the product of its spectral norms at or below
    α · spread/height; biases are free."""

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int], alpha: float, generator: torch.Generator):
        super().__init__()
        for width in hidden:
            if width < 2 or width % 2:
                raise InputError("hidden", tuple(hidden), "MaxMin sorts features in pairs: use even widths")
        self.alpha = check_alpha(alpha)
        self.net = MLP([inputs, *hidden, outputs], generator, activation="maxmin", init="orthogonal")
        with torch.no_grad():
            for w in self.net.weights:
                w.div_(max(spectral_norm(w), 1e-12))
        for name, value in (("centre", torch.zeros(inputs)), ("middle", torch.zeros(outputs)),
                            ("spread", torch.ones(())), ("height", torch.ones(()))):  # fmt: skip
            self.register_buffer(name, value)
        self.centre: Tensor
        self.middle: Tensor
        self.spread: Tensor
        self.height: Tensor
        self.project()

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch m"]:
        return self.middle + self.height * self.net((x - self.centre) / self.spread)

    @torch.no_grad()
    def scale(self, x: Float[Tensor, "samples n"], u: Float[Tensor, "samples m"]) -> None:
        """Means and largest standard deviations of the data; a constant column moves nothing."""
        for data, middle, size in ((x, self.centre, self.spread), (u, self.middle, self.height)):
            middle.copy_(data.mean(0))
            most = data.std(0, correction=0).max()
            size.copy_(most if most > 0 else torch.ones(()))
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Every layer to σ_max ≤ (α · spread/height)^{1/L}."""
        limit = (self.alpha * float(self.spread) / float(self.height)) ** (1 / len(self.net.weights))
        for w in self.net.weights:
            w.copy_(projected(w, limit * (1 - 1e-15)))

    def certificate(self) -> float:
        """The product of all spectral norms, in the data's own units, in double precision."""
        norms = (spectral_norm(w.detach().double()) for w in self.net.weights)
        return math.prod(norms) * float(self.height) / float(self.spread)

    def imitate(self, optimiser: Optimizer, x: Float[Tensor, "batch n"], u: Float[Tensor, "batch m"]) -> float:
        """One step on the mean of ‖π(x) − u‖² (in the outputs' scale), then the projection; the loss before."""
        loss = (((self(x) - u) / self.height) ** 2).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        self.project()
        return float(loss.detach())


def fit(
    x: Float[Tensor, "samples n"], u: Float[Tensor, "samples m"], alpha: float, kind: Kind = "mlp", *,
    generator: torch.Generator | None = None, hidden: Sequence[int] = (64, 64), lr: float = 3e-3, updates: int = 3000,
    every: Callable[[str], None] = lambda _: None,
) -> Certified:  # fmt: skip
    """min mean ‖π(x_i) − u_i‖² subject to Lip(π) ≤ α. The network takes `updates` of Adam on all data; `every` is
    called ten times on the way."""
    check_pairs(x, u)
    if kind == "extension":
        return Extension(x, u, alpha)
    net = LipschitzMLP(x.shape[1], u.shape[1], hidden, alpha, generator or torch.Generator().manual_seed(0)).to(x.dtype)
    net.scale(x, u)
    optimiser, loss = make_optimiser(Adam, net.parameters(), lr=lr), math.nan
    for step in range(updates):
        loss = net.imitate(optimiser, x, u)
        if (step + 1) % max(updates // 10, 1) == 0:
            every(f"squared error {loss * float(net.height) ** 2:.4g}")
    return net.requires_grad_(False)
