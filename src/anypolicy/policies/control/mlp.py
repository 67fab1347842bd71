"""Multilayer perceptrons, one or several side by side: the networks of controllers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from anypolicy.errors import InputError
from anypolicy.parts.noise import normal_like
from anypolicy.parts.perceptron import normalised_networks, relu_network
from anypolicy.parts.squashed import squashed

Activation = Literal["relu", "tanh", "silu", "selu", "maxmin"]
Init = Literal["torch", "xavier", "orthogonal", "kaiming"]

WORTH_A_LOOP = 2**15
"""Numbers in a layer from which E normalised networks are faster one by one than all in a batched product."""


def maxmin(x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
    """max(a, b) and min(a, b) of the two halves a, b of the features: sorting in pairs, which keeps lengths."""
    a, b = x.chunk(2, -1)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], -1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu, "tanh": torch.tanh, "silu": functional.silu, "selu": functional.selu, "maxmin": maxmin,
}  # fmt: skip


class MLP(nn.Module):
    """Linear → (LayerNorm) → activation, …, Linear. With `stack` E networks of independent weights are one batched
    product: input (batch, n) or (E, batch, n), output (E, batch, m); with `members` only those networks are computed.

    Initial weights: "torch" is that of nn.Linear, uniform ± 1/√n with biases alike; "kaiming" is normal with deviation
    1/√n, biases as for "torch"; "xavier" uniform, "orthogonal" with gain √2, both with zero biases. `last_gain`
    multiplies (for "orthogonal": is the gain of) the last layer.
    """

    def __init__(
        self, sizes: Sequence[int], generator: torch.Generator, *, stack: int | None = None,
        activation: Activation = "relu", layer_norm: bool = False, init: Init = "torch", last_gain: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        if min(sizes) < 1 or (stack is not None and stack < 1):
            given = tuple(sizes[1:-1]) if min(sizes) < 1 else stack
            raise InputError("hidden" if min(sizes) < 1 else "ensemble", given, "use whole numbers of at least 1")
        self.stack, self.activation = stack, ACTIVATIONS[activation]
        lead = () if stack is None else (stack,)
        weights: list[nn.Parameter] = []
        biases: list[nn.Parameter] = []
        for i, (n, m) in enumerate(pairwise(sizes)):
            last = i == len(sizes) - 2
            w = torch.stack([matrix(n, m, generator, init, last_gain if last else None) for _ in range(stack or 1)])
            b = torch.zeros(stack or 1, 1, m)
            if init in ("torch", "kaiming"):
                b.uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=generator)
                b = b * last_gain if last else b
            weights.append(nn.Parameter(w.view(*lead, n, m)))
            biases.append(nn.Parameter(b.view(*lead, 1, m) if lead else b.view(m)))
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)
        hidden = sizes[1:-1] if layer_norm else []
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(*lead, *(1,) * len(lead), m)) for m in hidden])
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(*lead, *(1,) * len(lead), m)) for m in hidden])

    def forward(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        pick: Callable[[Tensor], Tensor] = (lambda p: p) if members is None else (lambda p: p[members])
        if self.stack is not None and x.dim() == 2:
            x = x.expand(self.stack if members is None else len(members), *x.shape)
        for i, (w, b) in enumerate(zip(map(pick, self.weights), map(pick, self.biases), strict=True)):
            x = torch.addmm(b, x, w) if self.stack is None else torch.baddbmm(b, x, w)
            if i < len(self.weights) - 1:
                if len(self.scales):
                    x = functional.layer_norm(x, x.shape[-1:])
                    x = torch.addcmul(pick(self.shifts[i]), x, pick(self.scales[i]))
                x = self.activation(x)
        return x

    def quick(self, x: Tensor) -> Tensor:
        """The same as `forward`, by one node of the graph where there is one for it: for first derivatives only."""
        if self.rectified:
            return relu_network(x, list(self.weights), list(self.biases))
        known = self.stack is not None and self.activation in (functional.relu, torch.tanh) and len(self.scales)
        if not known or x.shape[-2] * self.weights[0].shape[-1] < WORTH_A_LOOP:
            return self(x)
        return normalised_networks(x, list(self.weights), list(self.biases), list(self.scales), list(self.shifts),
                                   tanh=self.activation is torch.tanh)  # fmt: skip

    @property
    def rectified(self) -> bool:
        """Whether it is nothing but linear layers and ReLU."""
        return self.activation is functional.relu and not len(self.scales)


def matrix(n: int, m: int, generator: torch.Generator, init: Init, last_gain: float | None) -> Float[Tensor, "n m"]:
    """Initial weights of one layer."""
    w = torch.empty(n, m)
    if init == "orthogonal":
        gain = math.sqrt(2) if last_gain is None else last_gain
        return nn.init.orthogonal_(w, gain, generator=generator)
    if init == "kaiming":
        return w.normal_(0, 1 / math.sqrt(n), generator=generator) * (1.0 if last_gain is None else last_gain)
    bound = 1 / math.sqrt(n) if init == "torch" else math.sqrt(6 / (n + m))
    return w.uniform_(-bound, bound, generator=generator) * (1.0 if last_gain is None else last_gain)


class SquashedGaussian(nn.Module):
    """π(a|s): tanh of a diagonal Gaussian whose mean and log-std are heads of one network; log-std clipped to
    `bounds`."""

    def __init__(
        self, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator, *,
        activation: Activation = "relu", layer_norm: bool = False, init: Init = "torch",
        bounds: tuple[float, float] = (-20.0, 2.0),
    ):  # fmt: skip
        super().__init__()
        self.actions, self.bounds = actions, bounds
        self.net = MLP([observations, *hidden, 2 * actions], generator, activation=activation, layer_norm=layer_norm,
                       init=init)  # fmt: skip

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std of u."""
        mean, log_std = self.net.quick(observation).chunk(2, -1)
        return mean, log_std.clamp(*self.bounds)

    def sample(
        self, observation: Float[Tensor, "batch observations"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch actions"], Float[Tensor, " batch"]]:
        """Reparameterised actions and their log-densities."""
        mean, log_std = self(observation)
        return squashed(mean, log_std, normal_like(mean, generator))

    def mode(self, observation: Float[Tensor, "batch observations"]) -> Float[Tensor, "batch actions"]:
        """tanh of the mean."""
        return torch.tanh(self(observation)[0])


def choice_critic(observations: int, outputs: int, hidden: Sequence[int], generator: torch.Generator) -> MLP:
    """q(s, ·) of all choices (or as many numbers of each as `outputs` has) in one pass: SELU, kaiming."""
    return MLP([observations, *hidden, outputs], generator, activation="selu", init="kaiming")


def critics(
    observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator, *, ensemble: int,
    layer_norm: bool = False, activation: Activation = "relu", init: Init = "torch",
) -> MLP:  # fmt: skip
    """Q_1 … Q_E on (s, a), to be called by `q_values`."""
    return MLP([observations + actions, *hidden, 1], generator, stack=ensemble, activation=activation,
               layer_norm=layer_norm, init=init)  # fmt: skip


def q_values(
    net: MLP, observation: Float[Tensor, "batch observations"], action: Float[Tensor, "batch actions"],
    members: Int[Tensor, " ensemble"] | None = None,
) -> Float[Tensor, "ensemble batch"]:  # fmt: skip
    """Q_i(s, a), of all critics or of some."""
    x = torch.cat([observation, action], -1)
    return (net.quick(x) if members is None else net(x, members)).squeeze(-1)
