"""A cloned policy that no longer changes, as a deterministic map from states to actions, and the scales of the
demonstrations it was cloned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam

from anypolicy import knobs
from anypolicy.data.replay import Replay
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.parts.optimisers import make_optimiser
from anypolicy.policies.control.generative import Generative, Kind, clone, generative
from anypolicy.policies.control.statistics import Standardised
from anypolicy.runs.seeds import generator as named


@dataclass(frozen=True)
class Cloned:
    """A policy to be cloned from demonstrations."""

    kind: Kind = "flow"
    hidden: tuple[int, ...] = (256, 256, 256)
    updates: int = 5000
    lr: float = 3e-4
    denoising_steps: int = 10
    batch: int = 256

    def make(self, observations: int, actions: int, generator: torch.Generator) -> Generative:
        """Untrained."""
        return generative(self.kind, observations, actions, self.hidden, generator, steps=self.denoising_steps)

    def fit(self, policy: Generative, data: Replay, generator: torch.Generator) -> None:
        """Clone the data's actions, then freeze."""
        policy.network.inputs.fit(data.all().observation)
        network = policy.network.online.requires_grad_(True)
        adam = make_optimiser(Adam, network.parameters(), lr=self.lr, fused=True)
        clone(policy, adam, data, self.updates, self.batch, generator)
        network.requires_grad_(False)


@dataclass(frozen=True)
class OnBase:
    """Settings of a method that improves a base: the policy of a run, or one cloned from the demonstrations."""

    base: knobs.BaseFolder = None
    base_policy: Annotated[Kind, Knob("what a cloned base is: a flow, diffusion, or one mean action")] = "flow"
    base_hidden: knobs.BaseHidden = (256, 256, 256)
    base_updates: knobs.BaseUpdates = 5000
    base_lr: knobs.BaseRate = 3e-4
    denoising_steps: knobs.DenoisingSteps = 10

    @property
    def source(self) -> str | Cloned:
        """Where the base comes from."""
        return self.base or Cloned(
            kind=self.base_policy, hidden=self.base_hidden, updates=self.base_updates, lr=self.base_lr,
            denoising_steps=self.denoising_steps,
        )  # fmt: skip

    def fit(self, policy: Generative, data: Replay, generator: torch.Generator) -> None:
        """Clone the base, unless it came from a folder."""
        if isinstance(how := self.source, Cloned):
            how.fit(policy, data, generator)


def fixed_noise(observation: Float[Tensor, "batch observations"], actions: int) -> Float[Tensor, "batch actions"]:
    """Standard normal numbers that depend on the observation alone: a state has one base action wherever it appears,
    when it is acted on, in the replay, and as another transition's next state."""
    rows = [named(0, "base", row.tobytes().hex()) for row in observation.contiguous().cpu().numpy()]
    return torch.stack([torch.randn(actions, generator=g) for g in rows]).to(observation.device)


class Frozen(nn.Module):
    """A policy that makes actions from noise, as a function of the state alone: π(s, w(s)) with `fixed_noise` w."""

    def __init__(self, policy: Generative):
        super().__init__()
        if not policy.deterministic:
            raise InputError("base", "a sampler that draws", "noise must decide its actions: use flow, ddim or mean")
        self.policy = policy

    @torch.no_grad()
    def forward(self, observation: Float[Tensor, "batch observations"]) -> Float[Tensor, "batch actions"]:
        return self.policy.decode(observation, fixed_noise(observation, self.policy.actions))


def action_range(low: Tensor, high: Tensor, widen: float, least: float = 0.1) -> tuple[Tensor, Tensor]:
    """The range of every action, taken as at least `least` wide, made (1 + widen) times as wide about its middle."""
    middle, half = (high + low) / 2, ((high - low) / 2).clamp(min=least / 2) * (1 + widen)
    return middle - half, middle + half


def scaled(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """[low, high] → [−1, 1], clamped."""
    return ((2 * x - low - high) / (high - low)).clamp(-1, 1)


def unscaled(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """[−1, 1] → [low, high]."""
    return (low + high + x * (high - low)) / 2


class Scales(nn.Module):
    """Normalised actions and standardised states; without `fit` both stay as they are."""

    low: Tensor
    high: Tensor

    def __init__(self, observations: int, actions: int):
        super().__init__()
        self.standard = Standardised(observations)
        self.register_buffer("low", torch.full((actions,), -1.0))
        self.register_buffer("high", torch.full((actions,), 1.0))

    def fit(self, data: Replay, widen: float) -> None:
        """The ranges of the data's actions, widened but inside [−1, 1]; the moments of its states."""
        t = data.all()
        low, high = action_range(t.action.amin(0), t.action.amax(0), widen)
        self.low.copy_(low.clamp(min=-1))
        self.high.copy_(high.clamp(max=1))
        self.standard.fit(t.observation)

    def normal(self, action: Float[Tensor, "batch actions"]) -> Float[Tensor, "batch actions"]:
        """An action of the environment in normalised units."""
        return scaled(action, self.low, self.high)

    def native(self, action: Float[Tensor, "batch actions"]) -> Float[Tensor, "batch actions"]:
        """The inverse of `normal`."""
        return unscaled(action, self.low, self.high)
