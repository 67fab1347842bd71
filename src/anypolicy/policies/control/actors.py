"""Actors of on-policy methods: a Gaussian for boxes, a categorical for choices, one for each of several;
the likeliest last layer for data."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam

from anypolicy.parts.distributions import Categorical, Factored, Gaussian
from anypolicy.parts.optimisers import make_optimiser
from anypolicy.policies.control.mlp import MLP, Activation, Init


class GaussianActor(nn.Module):
    """π(a|s) = N(m(s), diag σ²): a network for the mean, log-stds that do not depend on the state. Nothing is squashed;
    the environment clips what leaves its box."""

    def __init__(
        self, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator, *,
        activation: Activation = "tanh", init: Init = "orthogonal", last_gain: float = 0.01, log_std: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.net = MLP([observations, *hidden, actions], generator, activation=activation, init=init,
                       last_gain=last_gain)  # fmt: skip
        self.log_std = nn.Parameter(torch.full((actions,), log_std))

    def forward(self, observation: Float[Tensor, "batch observations"]) -> Gaussian:
        mean = self.net(observation)
        return Gaussian(mean, self.log_std.expand_as(mean))

    def head(self) -> list[nn.Parameter]:
        """The last layer and the log-stds."""
        return [self.net.weights[-1], self.net.biases[-1], self.log_std]


class CategoricalActor(nn.Module):
    """π(a|s) = softmax of a network's outputs."""

    def __init__(
        self, observations: int, choices: int, hidden: Sequence[int], generator: torch.Generator, *,
        activation: Activation = "tanh", init: Init = "orthogonal", last_gain: float = 0.01,
    ):  # fmt: skip
        super().__init__()
        self.net = MLP([observations, *hidden, choices], generator, activation=activation, init=init,
                       last_gain=last_gain)  # fmt: skip

    def forward(self, observation: Float[Tensor, "batch observations"]) -> Categorical:
        return Categorical(self.net(observation).log_softmax(-1))

    def head(self) -> list[nn.Parameter]:
        """The last layer."""
        return [self.net.weights[-1], self.net.biases[-1]]


class FactoredActor(nn.Module):
    """Several choices at once: each its own softmax of some of a network's outputs."""

    def __init__(
        self, observations: int, factors: Sequence[int], hidden: Sequence[int], generator: torch.Generator
    ):  # fmt: skip
        super().__init__()
        self.factors = list(factors)
        self.net = MLP([observations, *hidden, sum(factors)], generator, activation="tanh", init="orthogonal",
                       last_gain=0.01)  # fmt: skip

    def forward(self, observation: Float[Tensor, "batch observations"]) -> Factored:
        return Factored(tuple(Categorical(x.log_softmax(-1)) for x in self.net(observation).split(self.factors, -1)))

    def head(self) -> list[nn.Parameter]:
        """The last layer."""
        return [self.net.weights[-1], self.net.biases[-1]]


Actor = GaussianActor | CategoricalActor | FactoredActor
"""What maps states to distributions that sample, score and compare."""


def actor_for(
    observations: int, actions: int, discrete: bool, hidden: Sequence[int], generator: torch.Generator,
    factors: Sequence[int] = (),
) -> Actor:  # fmt: skip
    """The actor for a box of `actions` numbers, for as many choices, or for those of several `factors` at once."""
    if factors:
        return FactoredActor(observations, factors, hidden, generator)
    kind = CategoricalActor if discrete else GaussianActor
    return kind(observations, actions, hidden, generator)


def likeliest_head(
    actor: Actor, observation: Float[Tensor, "batch observations"], action: Float[Tensor, "batch actions"], *,
    steps: int = 250, lr: float = 1e-3,
) -> Actor:  # fmt: skip
    """A copy of the actor whose last layer has taken `steps` of Adam on −mean ln π(a|s), from where it was; what lies
    before it stays."""
    fitted = copy.deepcopy(actor).requires_grad_(False)
    for p in fitted.head():
        p.requires_grad_(True)
    adam = make_optimiser(Adam, fitted.head(), lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        (-fitted(observation).logp(action).mean()).backward()
        adam.step()
    return fitted
