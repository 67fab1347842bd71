"""Policies and critics of episodes with a fixed end: one small network for each step, in double precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributions import Normal

from anypolicy.parts.noise import normal_like
from anypolicy.policies.control.mlp import MLP


def network(sizes: Sequence[int], generator: torch.Generator) -> MLP:
    """tanh; the last layer begins at a tenth of its usual weights and without bias."""
    net = MLP(sizes, generator, activation="tanh", last_gain=0.1)
    nn.init.zeros_(net.biases[-1])
    return net


def state_and_step(observation: Tensor) -> tuple[Tensor, Tensor]:
    """An observation whose last number is the step of the episode, taken apart."""
    return observation[..., :-1].double(), observation[..., -1].long()


class Gaussian(nn.Module):
    """π(a|s): the mean is a network of the state, the deviation (1 at first) the same everywhere."""

    def __init__(self, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator):
        super().__init__()
        self.mean = network((observations, *hidden, actions), generator)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def forward(self, x: Float[Tensor, "batch observations"]) -> Normal:
        return Normal(self.mean(x), self.log_std.exp(), validate_args=False)


class GaussianPerStep(nn.Module):
    """π_h(a|s) for h = 0 … horizon − 1."""

    def __init__(
        self, horizon: int, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator
    ):
        super().__init__()
        self.actions = actions
        self.at = nn.ModuleList([Gaussian(observations, actions, hidden, generator) for _ in range(horizon)]).double()

    @torch.no_grad()
    def sample(self, h: int, x: Float[Tensor, "batch observations"], generator: torch.Generator) -> Tensor:
        """a ~ π_h(·|s)."""
        pi: Normal = self.at[h](x)
        return pi.loc + pi.scale * normal_like(pi.loc, generator)

    @torch.no_grad()
    def act(
        self, x: Float[Tensor, "batch observations"], step: Int[Tensor, " batch"], generator: torch.Generator | None
    ) -> Float[Tensor, "batch actions"]:
        """Rows at whatever step; the means without a generator."""
        action = x.new_empty(len(x), self.actions)
        for h in step.unique().tolist():
            here = step == h
            action[here] = self.at[h](x[here]).loc if generator is None else self.sample(h, x[here], generator)
        return action


class CriticPerStep(nn.Module):
    """Q_h(s, a) for h = 0 … horizon − 1."""

    def __init__(
        self, horizon: int, observations: int, actions: int, hidden: Sequence[int], generator: torch.Generator
    ):
        super().__init__()
        sizes = (observations + actions, *hidden, 1)
        self.at = nn.ModuleList([network(sizes, generator) for _ in range(horizon)]).double()

    def forward(self, h: int, x: Float[Tensor, "batch observations"], action: Float[Tensor, "batch actions"]) -> Tensor:
        return self.at[h](torch.cat([x, action], -1)).squeeze(-1)


@torch.no_grad()
def sampled_value(
    actors: GaussianPerStep, critics: CriticPerStep, h: int, x: Float[Tensor, "batch observations"], samples: int,
    generator: torch.Generator,
) -> Float[Tensor, " batch"]:  # fmt: skip
    """V_h(s) = mean of Q_h(s, a_k) over `samples` actions a_k ~ π_h(·|s)."""
    many = x.repeat(samples, 1)
    return critics(h, many, actors.sample(h, many, generator)).view(samples, len(x)).mean(0)


def sampled_values(
    actors: GaussianPerStep, critics: CriticPerStep, x: Float[Tensor, "*rows observations"], step: Int[Tensor, "*rows"],
    where: Bool[Tensor, "*rows"], samples: int, generator: torch.Generator,
) -> Float[Tensor, "*rows"]:  # fmt: skip
    """V of rows at whatever step; 0 behind the last step and where it is not asked for."""
    out = x.new_zeros(step.shape)
    for h in range(len(actors.at)):
        here = where & (step == h)
        out[here] = sampled_value(actors, critics, h, x[here], samples, generator)
    return out
