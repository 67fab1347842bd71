"""What a group method is: a frozen recipe with one field a stage, and the protocol of every stage.

    sampler → rollout → reward → advantage → selection → loss → optimiser

A stage declares what it `needs`, and a rollout what it `gives` (`stages/needs.py`). It may have `check_task(task)` and
`check(world)`, which refuse before any work what it cannot work with. What a stage has to remember from step to step
lies in `World.memory`.

A stage is a small frozen dataclass of numbers that can be called. Equal numbers make equal recipes, so a recipe can be
written down, printed and compared. Protocols carry no code; `stages/common.py` holds the stages that several methods
share, and what only one method has stands in its file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypolicy.data.batch import Batch
from anypolicy.data.records import Group, Prompt
from anypolicy.engines.base import Engine, Sampling
from anypolicy.errors import InputError, fits
from anypolicy.policies.language.base import Policy, Scores
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.reference import Fixed, ReferenceMode
from anypolicy.stages.rewards import OwnRewards
from anypolicy.tasks.language.base import Task


class PromptOrder(Protocol):
    """The running state of a sampler: which prompts come next. Saved in every checkpoint."""

    def draw(self, n: int, step: int, round: int) -> list[int]:
        """Positions in the training split of the next n prompts."""
        ...

    def observe(self, groups: Sequence[Group]) -> None:
        """Learn from scored groups of the direct stage, those that a selection drops included; `position` names the
        prompt."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def metrics(self) -> dict[str, float]: ...


class Stage(Protocol):
    """What all stages have."""

    @property
    def needs(self) -> Needs: ...


@runtime_checkable
class ChecksTask(Protocol):
    """A stage that refuses a task without what it learns from."""

    def check_task(self, task: Task) -> None: ...


@runtime_checkable
class ChecksWorld(Protocol):
    """A stage that refuses a policy, task or setting that it cannot work with."""

    def check(self, world: World) -> None: ...


class Sampler(Stage, Protocol):
    def begin(self, prompts: int, seed: int) -> PromptOrder:
        """A fresh order over `prompts` training prompts."""
        ...


class Rollout(Stage, Protocol):
    @property
    def gives(self) -> Gives: ...

    @property
    def group_size(self) -> int:
        """Responses of a prompt; 0 if there are only targets."""
        ...

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        """Unscored groups; may call the engine as often as the paper needs."""
        ...


class Reward(Stage, Protocol):
    def __call__(self, world: World, groups: list[Group]) -> None:
        """Set reward, the named parts and, if it knows, `correct` of every trajectory. Sees whole groups. One that
        gives the verifier a part of a response only, or nothing, has it as `read(world, response)`: held-out answers
        are then read in the same way."""
        ...


class Credit(NamedTuple):
    """Token-level credit with targets for the critic."""

    advantage: Float[Tensor, "rows tokens"]
    value_target: Float[Tensor, "rows tokens"] | None = None


class Advantage(Stage, Protocol):
    def __call__(self, batch: Batch) -> Tensor | Credit:
        """One value per trajectory, or a (rows, tokens) `Credit`."""
        ...


class Choice(NamedTuple):
    """What a selection keeps of the sampled responses; supervised targets stay, whatever it drops.

    `groups` (groups) and `mask` (rows, tokens) are True where kept; `weight` (rows) multiplies a row's loss terms;
    `surplus` marks kept groups beyond the target that the next step begins with; `replay` marks groups that are trained
    on again in the next step, beside its own; `short` asks for more prompts; `metrics` are logged. `trajectories` are
    the indices of those kept (of kept groups), repeated where one was drawn more than once; without it all are.
    `pairs` are trajectories (chosen, rejected) of kept groups, for losses that learn from pairs.
    """

    groups: Bool[Tensor, " groups"]
    mask: Bool[Tensor, "rows tokens"] | None = None
    weight: Float[Tensor, " rows"] | None = None
    surplus: Bool[Tensor, " groups"] | None = None
    short: bool = False
    replay: Bool[Tensor, " groups"] | None = None
    metrics: Mapping[str, float] = MappingProxyType({})
    trajectories: Int[Tensor, " drawn"] | None = None
    pairs: Int[Tensor, "pairs 2"] | None = None


class Selection(Stage, Protocol):
    @property
    def max_rounds(self) -> int:
        """How often a step may draw prompts; 1 means that it never refills."""
        ...

    def __call__(self, batch: Batch, target: int) -> Choice:
        """Choose among all groups of the step so far; `target` is the number of groups a full step has."""
        ...


class LossTerms(NamedTuple):
    """Named terms that are summed, and named numbers to log. Both are shares of the whole optimiser batch: made with
    `reduce(…, totals=batch.counted())`, they add up over micro-batches (names that end in min or max combine so)."""

    terms: dict[str, Float[Tensor, ""]]
    metrics: dict[str, Float[Tensor, ""]]


class Loss(Stage, Protocol):
    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        """Rows that contribute to some term; the others cost no forward pass."""
        ...

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms: ...


@runtime_checkable
class Baselined(Protocol):
    """A loss that needs a number of the whole optimiser batch beforehand, which it finds in `batch.baseline`."""

    def baseline(self, batch: Batch, policy: Callable[[Batch], Tensor], reference: Callable[[Batch], Tensor]) -> float:
        """The number, of scorings without gradient by policy and reference."""
        ...


@runtime_checkable
class OwnPasses(Protocol):
    """A loss that makes its own forward passes and is a sum of independent parts: every part is backwarded and freed
    before the next is computed. Its attributes are those of a `Loss`; it reads no entropy."""

    @property
    def needs(self) -> Needs: ...

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]: ...

    def before(self, policy: Policy, batch: Batch, temperature: float) -> Float[Tensor, "rows numbers"] | None:
        """What it has to know of the weights before the first of several updates, without gradients; the parts find it
        in `batch.before`. Called once for every pass over the batch, with that pass's `row_seed`."""
        ...

    def passes(self, policy: Policy, batch: Batch, temperature: float) -> Iterator[LossTerms]:
        """The parts, each computed when asked for. Terms and metrics are shares, as those of a `Loss`, of all parts."""
        ...


class Critic(Protocol):
    """A value function on the policy's hidden state, with its own loss and learning rate."""

    @property
    def lr(self) -> float: ...

    def loss(self, value: Float[Tensor, "rows tokens"], batch: Batch) -> LossTerms: ...


@dataclass(frozen=True)
class Optimiser:
    """How one batch of experience becomes updates.

    `epochs` passes over the batch, each split by whole groups into `minibatches` optimiser steps (a clip acts only from
    the second on); gradient norm clipped to `grad_clip`; learning rate warmed up linearly over `warmup` updates.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0
    warmup: int = 0
    epochs: int = 1
    minibatches: int = 1


@dataclass(frozen=True)
class GroupRecipe:
    """A complete method for groups of sampled responses. Instead of a `Loss` it may have one with `OwnPasses`."""

    sampler: Sampler
    rollout: Rollout
    reward: Reward
    advantage: Advantage
    selection: Selection
    loss: Loss
    optimiser: Optimiser = field(default_factory=Optimiser)
    critic: Critic | None = None
    reference: ReferenceMode = field(default_factory=Fixed)


@dataclass(frozen=True)
class World:
    """What the stages may use: the policy that samples, the engine, the task, the sampling settings, and the user's own
    rewards: `OwnRewards`, or one function (prompt, response texts of the whole group) → one number each.

    `reference` samples from the frozen reference policy, where a stage needs it. `memory` holds what stages keep from
    step to step, each under a name of its own, as JSON values; it is part of every checkpoint.
    """

    policy: Policy
    engine: Engine
    task: Task
    sampling: Sampling
    seed: int
    version: int = 0
    reward_function: OwnRewards | Callable[[Prompt, list[str]], Sequence[float]] | None = None
    reference: Engine | None = None
    memory: dict[str, Any] = field(default_factory=dict[str, Any])

    def remembered(self, name: str, kind: Any, first: Any) -> Any:
        """What a stage keeps under a name, `first` where that is nothing yet. Raises InputError where a checkpoint put
        a value of another kind there."""
        value = self.memory.setdefault(name, first)
        if not fits(kind, value):
            raise InputError("checkpoint", name, "it holds what this stage never keeps there: put the checkpoint back")
        return value
