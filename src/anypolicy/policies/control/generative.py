"""Expressive policies: actions made from noise by a flow or by diffusion, fitted to actions that somebody took.

Every policy here has `loss(observation, action, generator)`, `sample(observation, generator)` and the number of its
`actions`. Where `deterministic`, `decode(observation, noise)` is a map (s, w) → a that draws nothing. Networks are kept
twice, as trained and averaged over training (`Averaged`); acting uses the average unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.parts import noise as noises
from anypolicy.parts.diffusion import Schedule, betas_of, ddim_indices, ddim_step, ddpm_mean, diffused, noise_loss
from anypolicy.parts.flow import euler, flow_loss, straight
from anypolicy.parts.td import polyak
from anypolicy.policies.control.mlp import MLP
from anypolicy.policies.control.statistics import Standardised

Kind = Literal["flow", "ddim", "ddpm", "mean"]
"""Flow by Euler, diffusion by DDIM or by DDPM, or one action for every state (squared error)."""
Noisy = Literal["flow", "ddim", "ddpm"]
"""Those that start from noise."""
SCHEDULES: dict[str, tuple[Schedule, int]] = {"ddim": ("cosine", 20), "ddpm": ("vp", 10)}
"""Schedule and number of steps of the diffusion."""


class Averaged(nn.Module):
    """A network f(s, …) and the running average of its weights, on observations as `inputs` was fitted to them."""

    def __init__(self, network: nn.Module, observations: int):
        super().__init__()
        self.online, self.average = network, deepcopy(network).requires_grad_(False)
        self.inputs = Standardised(observations)
        self.count: Tensor
        self.register_buffer("count", torch.tensor(0))

    def forward(self, observation: Tensor, *more: Tensor, averaged: bool = False) -> Tensor:
        return (self.average if averaged else self.online)(self.inputs(observation), *more)

    def follow(self, rate: float) -> None:
        """θ̄ ← θ̄ + max(rate, 9/(9 + n)) (θ − θ̄) at the n-th call: the first weights are soon forgotten."""
        self.count += 1
        polyak(self.average.parameters(), self.online.parameters(), max(rate, 9 / (9 + int(self.count))))


class Mean(nn.Module):
    """s → R^actions."""

    def __init__(self, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator):
        super().__init__()
        self.trunk = MLP([observations, *hidden, actions], generator, activation="silu")

    def forward(self, observation: Tensor) -> Tensor:
        return self.trunk(observation)


class Denoiser(nn.Module):
    """(s, x, time) → R^actions: a perceptron on all three. Flows take the time as it is; diffusion takes 16 sines and
    cosines of the index through two layers (DPPO), or 128 of learned frequencies and residual blocks (IDQL, EXPO)."""

    def __init__(self, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator, kind: Noisy):
        super().__init__()
        width = {"flow": 1, "ddim": 16, "ddpm": 128}[kind]
        self.frequencies: Tensor | None
        self.embedding: MLP | None = None
        if kind == "flow":
            self.register_buffer("frequencies", None)
        elif kind == "ddim":
            self.register_buffer("frequencies", torch.exp(-math.log(10_000) * torch.arange(8) / 7))
            self.embedding = MLP([16, 32, 16], generator, activation="silu")
        else:
            self.frequencies = nn.Parameter(torch.randn(64, generator=generator) * 0.2 * 2 * math.pi)
            self.embedding = MLP([128, 256, 128], generator, activation="silu")
        inputs = observations + actions + width
        if kind == "ddpm":
            self.trunk = Residual(inputs, hidden, actions, generator)
        else:
            self.trunk = MLP([inputs, *hidden, actions], generator, activation="silu")

    def forward(self, observation: Tensor, x: Tensor, time: Float[Tensor, "batch 1"]) -> Tensor:
        if self.frequencies is not None and self.embedding is not None:
            angle = time * self.frequencies
            time = self.embedding(torch.cat([angle.cos(), angle.sin()], -1))
        return self.trunk(torch.cat([observation, x, time], -1))


class Residual(nn.Module):
    """Linear to the width of `hidden`, a block x + W₂ swish(W₁ LN(x)) four times as wide inside for every entry, swish,
    Linear."""

    def __init__(self, n: int, hidden: Sequence[int], m: int, generator: torch.Generator):
        super().__init__()
        width = hidden[0]
        if set(hidden) != {width}:
            raise InputError("hidden", hidden, "blocks that add to their input have one width: repeat it")
        self.first, self.last = MLP([n, width], generator), MLP([width, m], generator)
        self.blocks = nn.ModuleList([MLP([width, 4 * width, width], generator, activation="silu") for _ in hidden])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in hidden])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + block(norm(x))
        return self.last(functional.silu(x))


class FlowPolicy(nn.Module):
    """A velocity field v(x, t, s), followed by `steps` Euler steps from w; the end is clipped to [−1, 1]."""

    deterministic = True

    def __init__(
        self, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator, *, steps: int = 10
    ):
        super().__init__()
        if steps < 1:
            raise InputError("denoising_steps", steps, "use at least 1")
        self.actions, self.steps = actions, steps
        self.network = Averaged(Denoiser(observations, actions, hidden, generator, "flow"), observations)

    def loss(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Float[Tensor, ""]:
        """Flow matching at times drawn uniformly."""
        noise = noises.normal_like(action, generator)
        t = noises.uniform((len(action), 1), generator, action.device)
        x, velocity = straight(noise, action, t)
        return flow_loss(self.network(observation, x, t), velocity)

    @torch.no_grad()
    def decode(
        self, observation: Float[Tensor, "batch observations"], noise: Float[Tensor, "batch actions"], *,
        averaged: bool = True,
    ) -> Float[Tensor, "batch actions"]:  # fmt: skip
        """The action that w becomes."""

        def field(x: Tensor, t: float) -> Tensor:
            return self.network(observation, x, x.new_full((len(x), 1), t), averaged=averaged)

        return euler(field, noise, self.steps).clamp(-1, 1)

    def sample(self, observation: Tensor, generator: torch.Generator, *, averaged: bool = True) -> Tensor:
        """`decode` of standard normal noise."""
        return self.decode(observation, normal(observation, self.actions, generator), averaged=averaged)


class DiffusionPolicy(nn.Module):
    """A network that predicts the noise in x_k, and a sampler: "ddim" (deterministic, `steps` of the diffusion's steps)
    or "ddpm" (all of them, with fresh noise; x is clipped to [−1, 1] after each). The loss sums over actions."""

    def __init__(
        self, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator, *,
        sampler: Literal["ddim", "ddpm"], steps: int = 10,
    ):  # fmt: skip
        super().__init__()
        schedule, trained = SCHEDULES[sampler]
        if sampler == "ddpm" and steps != trained:
            raise InputError("denoising_steps", steps, f"DDPM takes all {trained} steps; DDIM may take fewer")
        self.actions, self.deterministic = actions, sampler == "ddim"
        self.indices = ddim_indices(trained, steps)
        betas = betas_of(schedule, trained)
        self.betas: Tensor
        self.kept: Tensor
        self.register_buffer("betas", betas.float())
        self.register_buffer("kept", (1 - betas).cumprod(0).float())
        self.network = Averaged(Denoiser(observations, actions, hidden, generator, sampler), observations)

    def loss(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Float[Tensor, ""]:
        """The loss on the noise at indices drawn uniformly."""
        noise = noises.normal_like(action, generator)
        k = noises.indices(len(self.betas), (len(action), 1), generator, action.device)
        return noise_loss(self.network(observation, diffused(action, noise, self.kept[k]), k.float()), noise)

    def predicted(self, observation: Tensor, x: Tensor, k: int, averaged: bool) -> Tensor:
        return self.network(observation, x, x.new_full((len(x), 1), float(k)), averaged=averaged)

    @torch.no_grad()
    def decode(
        self, observation: Float[Tensor, "batch observations"], noise: Float[Tensor, "batch actions"], *,
        averaged: bool = True,
    ) -> Float[Tensor, "batch actions"]:  # fmt: skip
        """The action that w becomes by DDIM. Raises InputError for DDPM, which draws more noise on its way."""
        if not self.deterministic:
            raise InputError("sampler", "ddpm", "noise alone does not decide its actions: use a flow or DDIM")
        x, ends = noise, [*(self.kept[k] for k in self.indices[1:]), torch.ones(())]
        for k, end in zip(self.indices, ends, strict=True):
            x = ddim_step(x, self.predicted(observation, x, k, averaged), self.kept[k], end)
        return x.clamp(-1, 1)

    @torch.no_grad()
    def sample(self, observation: Tensor, generator: torch.Generator, *, averaged: bool = True) -> Tensor:
        """An action of the state's distribution."""
        x = normal(observation, self.actions, generator)
        if self.deterministic:
            return self.decode(observation, x, averaged=averaged)
        for k in range(len(self.betas) - 1, -1, -1):
            x = ddpm_mean(x, self.predicted(observation, x, k, averaged), self.betas[k], self.kept[k])
            if k > 0:
                x = x + self.betas[k].sqrt() * normal(observation, self.actions, generator)
            x = x.clamp(-1, 1)
        return x


class MeanPolicy(nn.Module):
    """One action for every state, by squared error: what cloning is without a generative model."""

    deterministic = True

    def __init__(self, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator):
        super().__init__()
        self.actions = actions
        self.network = Averaged(Mean(observations, actions, hidden, generator), observations)

    def loss(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Float[Tensor, ""]:
        return (self.network(observation) - action).square().mean()

    @torch.no_grad()
    def decode(self, observation: Tensor, noise: Tensor, *, averaged: bool = True) -> Tensor:
        """The action, whatever the noise."""
        return self.network(observation, averaged=averaged).clamp(-1, 1)

    def sample(self, observation: Tensor, generator: torch.Generator, *, averaged: bool = True) -> Tensor:
        return self.decode(observation, observation, averaged=averaged)


Generative = FlowPolicy | DiffusionPolicy | MeanPolicy


def normal(observation: Tensor, actions: int, generator: torch.Generator) -> Float[Tensor, "batch actions"]:
    """Standard normal noise, a row for every observation."""
    return noises.normal((len(observation), actions), generator, observation.device)


def generative(
    kind: Kind, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator, *, steps: int = 10
) -> Generative:
    """A policy by the name of its kind; `steps` from noise to action."""
    sizes = (observations, actions, hidden, generator)
    if kind == "mean":
        return MeanPolicy(*sizes)
    return FlowPolicy(*sizes, steps=steps) if kind == "flow" else DiffusionPolicy(*sizes, sampler=kind, steps=steps)


def candidates(
    policy: Generative, observation: Float[Tensor, "batch observations"], n: int, generator: torch.Generator, *,
    averaged: bool = True,
) -> Float[Tensor, "batch n actions"]:  # fmt: skip
    """n actions for every observation, made together."""
    repeated = observation.repeat_interleave(n, 0)
    return policy.sample(repeated, generator, averaged=averaged).view(len(observation), n, policy.actions)


def imitate(
    policy: Generative, optimiser: Optimizer, batch: Transitions, generator: torch.Generator, rate: float
) -> float:
    """One step towards a batch's actions; the average of the weights follows at `rate`. The loss."""
    loss = policy.loss(batch.observation, batch.action, generator)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    policy.network.follow(rate)
    return float(loss.detach())


def clone(
    policy: Generative, optimiser: Optimizer, data: Replay, updates: int, batch: int, generator: torch.Generator,
    rate: float = 0.005,
) -> None:  # fmt: skip
    """Behaviour cloning: `updates` steps on batches of `data`."""
    for _ in range(updates):
        imitate(policy, optimiser, data.sample(batch, generator), generator, rate)
