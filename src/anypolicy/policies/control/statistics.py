"""State that comes from the data and is saved with the learner: moments, the scale of returns, the newest rollouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anypolicy.data.transitions import Transitions, unpack, width
from anypolicy.errors import InputError


class RunningMoments(nn.Module):
    """Mean and variance of every column of what was taken in, batch by batch. They start as those of 10⁻⁴ rows with
    mean 0 and variance 1, so nothing is ever divided by zero."""

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, columns: int):
        super().__init__()
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(columns, dtype=torch.float64))

    @torch.no_grad()
    def take(self, x: Float[Tensor, "*rows columns"]) -> None:
        """Merge more rows (Chan, Golub and LeVeque)."""
        x = x.double().reshape(-1, len(self.mean))
        n, total = len(x), self.count + len(x)
        gap = x.mean(0) - self.mean
        square = self.variance * self.count + x.var(0, correction=0) * n + gap.square() * self.count * n / total
        self.mean.add_(gap * n / total)
        self.variance.copy_(square / total)
        self.count.copy_(total)

    def normalised(self, x: Float[Tensor, "*rows columns"], clip: float = 10.0) -> Float[Tensor, "*rows columns"]:
        """(x − mean)/√(variance + 10⁻⁸), clipped to ± clip."""
        return ((x - self.mean) / (self.variance + 1e-8).sqrt()).clamp(-clip, clip).to(x.dtype)


class Standardised(nn.Module):
    """(x − mean)/max(standard deviation, 0.1) of every column, with the moments of what it was fitted to; x itself
    before."""

    mean: Tensor
    std: Tensor

    def __init__(self, columns: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))

    def fit(self, x: Float[Tensor, "rows columns"]) -> None:
        """Take the moments of these rows."""
        self.mean.copy_(x.mean(0))
        self.std.copy_(x.std(0, correction=0).clamp(min=0.1))

    def forward(self, x: Float[Tensor, "*rows columns"]) -> Float[Tensor, "*rows columns"]:
        return (x - self.mean) / self.std

    def both(self, batch: Transitions) -> Transitions:
        """Transitions with s and s′ standardised."""
        return replace(batch, observation=self(batch.observation), next_observation=self(batch.next_observation))


class ReturnScale(nn.Module):
    """The standard deviation of the discounted return so far, R_t = γ R_{t−1} + r_t, which begins anew in every episode
    and goes on from one rollout to the next. Rewards are divided by it; no mean is taken away."""

    carry: Tensor

    def __init__(self, discount: float):
        super().__init__()
        self.discount = discount
        self.moments = RunningMoments(1)
        self.register_buffer("carry", torch.zeros(1, dtype=torch.float64))
        any_shape(self, "carry")

    @torch.no_grad()
    def take(self, steps: Transitions) -> None:
        """Follow a rollout, its fields (steps, environments)."""
        reward = steps.reward.double().cpu().numpy()
        goes_on = self.discount * (1 - (steps.terminated + steps.truncated).clamp(max=1).double().cpu().numpy())
        carry = self.carry.cpu().expand(reward.shape[1]).numpy()
        returns = torch.empty(reward.shape, dtype=torch.float64)
        for t in range(len(reward)):
            carry = carry + reward[t]
            returns[t] = torch.from_numpy(carry)
            carry = carry * goes_on[t]
        self.carry = torch.from_numpy(carry.copy()).to(steps.reward.device)
        self.moments.take(returns.reshape(-1, 1).to(steps.reward.device))

    def scaled(self, reward: Float[Tensor, "*shape"], clip: float = 10.0) -> Float[Tensor, "*shape"]:
        """r/√(variance + 10⁻⁸), clipped to ± clip."""
        return (reward / (self.moments.variance + 1e-8).sqrt()).clamp(-clip, clip).to(reward.dtype)


class Rollouts(nn.Module):
    """The newest `steps` steps of every environment, oldest first, as they came."""

    rows: Tensor

    def __init__(self, steps: int, observations: int, actions: int):
        super().__init__()
        self.steps, self.observations, self.actions = steps, observations, actions
        self.register_buffer("rows", torch.empty(0, 1, width(observations, actions)))
        any_shape(self, "rows")

    def __len__(self) -> int:
        return len(self.rows)

    def append(self, rollout: Transitions) -> None:
        """Add a rollout (steps, environments, …); the oldest steps leave."""
        length, environments = rollout.reward.shape
        if len(self.rows) and environments != self.rows.shape[1]:
            raise InputError("envs", environments, f"the rollouts kept have {self.rows.shape[1]}")
        flat = Transitions(*(getattr(rollout, n).flatten(0, 1) for n in Transitions.__dataclass_fields__))
        new = flat.rows().view(length, environments, -1)
        old = self.rows if len(self.rows) else self.rows.new_empty(0, environments, self.rows.shape[2])
        self.rows = torch.cat([old, new])[-self.steps :]

    def all(self) -> Transitions:
        """Everything, fields (steps, environments, …). Where a step is not followed by what it led to, its episode was
        cut there: it counts as truncated."""
        kept = unpack(self.rows, self.observations, self.actions)
        broken = (kept.next_observation[:-1] != kept.observation[1:]).any(-1).to(kept.truncated.dtype)
        truncated = kept.truncated.clone()
        truncated[:-1] = torch.maximum(truncated[:-1], broken * (1 - kept.terminated[:-1]))
        return replace(kept, truncated=truncated)


class Counter(nn.Module):
    """How many steps a learner has made: of the environment or of its optimiser, as it says."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


def any_shape(module: nn.Module, *names: str) -> None:
    """Let buffers take the shape that a saved state has."""

    def reshape(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in names:
            if (saved := state.get(prefix + name)) is not None:
                setattr(module, name, torch.empty_like(saved, device=getattr(module, name).device))

    module.register_load_state_dict_pre_hook(reshape)
