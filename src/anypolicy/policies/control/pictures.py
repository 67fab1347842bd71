"""Networks that look at pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from anypolicy.errors import InputError
from anypolicy.parts.augment import random_shift
from anypolicy.policies.control.mlp import Activation, critics, matrix, q_values
from anypolicy.policies.control.statistics import Standardised

Shape = tuple[int, int, int]
"""Height, width, channels."""


class ConvEncoder(nn.Module):
    """Convolutions of 3×3 with stride 2 and no padding, mean over places, Linear, LayerNorm, tanh."""

    def __init__(self, shape: Shape, generator: torch.Generator, channels: Sequence[int], width: int):
        super().__init__()
        smallest = 2 ** (len(channels) + 1) - 1
        if min(shape[:2]) < smallest:
            raise InputError("image", shape, f"this encoder needs at least {smallest} pixels a side")
        sizes = [shape[2], *channels]
        kernels = [torch.empty(m, n, 3, 3) for n, m in pairwise(sizes)]
        for kernel in kernels:
            nn.init.kaiming_uniform_(kernel, nonlinearity="relu", generator=generator)
        self.kernels = nn.ParameterList([nn.Parameter(k) for k in kernels])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(m)) for m in channels])
        self.weight = nn.Parameter(matrix(channels[-1], width, generator, "xavier", None))
        self.norm = nn.LayerNorm(width)

    def forward(self, pictures: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Pixels are numbers from 0 to 255."""
        x = pictures / 255
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            x = functional.relu(functional.conv2d(x, kernel, bias, stride=2))
        return torch.tanh(self.norm(x.mean((2, 3)) @ self.weight))


class Perception(nn.Module):
    """What networks see of an observation: the features of its pictures (one encoder each) and its other numbers, as
    `numbers` was fitted to them. Without pictures it has no weights."""

    def __init__(
        self, observations: int, images: Sequence[Shape], generator: torch.Generator, *,
        channels: Sequence[int] = (32, 64, 128, 256), features: int = 256, shift: int = 4,
    ):  # fmt: skip
        super().__init__()
        self.images, self.shift = tuple(images), shift
        self.sizes = [h * w * c for h, w, c in self.images]
        self.rest = observations - sum(self.sizes)
        self.encoders = nn.ModuleList([ConvEncoder(s, generator, channels, features) for s in self.images])
        self.numbers = Standardised(self.rest)
        self.width = features * len(self.images) + self.rest

    def split(self, observation: Float[Tensor, "batch observations"]) -> tuple[list[Tensor], Tensor]:
        """Pictures, channels first, and the other numbers."""
        *flat, rest = observation.split([*self.sizes, self.rest], -1)
        return [x.view(len(x), *s).permute(0, 3, 1, 2) for x, s in zip(flat, self.images, strict=True)], rest

    def standardise(self, observation: Float[Tensor, "rows observations"]) -> None:
        """Fit `numbers` to these rows."""
        self.numbers.fit(self.split(observation)[1])

    def forward(self, observation: Float[Tensor, "batch observations"]) -> Float[Tensor, "batch width"]:
        pictures, rest = self.split(observation)
        return torch.cat([*(e(x) for e, x in zip(self.encoders, pictures, strict=True)), self.numbers(rest)], -1)

    def shifted(
        self, observation: Float[Tensor, "batch observations"], generator: torch.Generator
    ) -> Float[Tensor, "batch observations"]:
        """The observation with its pictures moved at random."""
        if not self.images:
            return observation
        pictures, rest = self.split(observation)
        moved = [random_shift(x, self.shift, generator).permute(0, 2, 3, 1).flatten(1) for x in pictures]
        return torch.cat([*moved, rest], -1)


class SeeingCritics(nn.Module):
    """An encoder and critics on what it sees: one module, so that a target network holds both."""

    def __init__(self, perception: Perception, actions: int, hidden: Sequence[int], generator: torch.Generator, *,
                 ensemble: int, layer_norm: bool, activation: Activation = "tanh"):  # fmt: skip
        super().__init__()
        self.perception = perception
        self.critics = critics(perception.width, actions, hidden, generator, ensemble=ensemble, layer_norm=layer_norm,
                               activation=activation)  # fmt: skip

    def see(self, observation: Float[Tensor, "batch observations"]) -> Float[Tensor, "batch features"]:
        """What actor and critics both look at."""
        return self.perception(observation)

    def forward(
        self, features: Float[Tensor, "batch features"], action: Float[Tensor, "batch actions"]
    ) -> Float[Tensor, "ensemble batch"]:
        """Q_k of features."""
        return q_values(self.critics, features, action)
