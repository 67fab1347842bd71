"""What a learner of control is: what it has, what it declares, and what a checkpoint holds of it.

A learner writes its paper's update out in full and calls parts. It has `modules` and `optimisers` (by name: all that a
checkpoint holds of it), `act` and `update`, and it declares in `needs` what else it has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.optimisers.step import check_moments
from anypolicy.parts.noise import CPU
from anypolicy.tasks.control.environments import Space


class Acted(NamedTuple):
    """What the environment does (in [−1, 1], or an index), and what the replay keeps as the action."""

    executed: Float[Tensor, "environments actions"]
    stored: Float[Tensor, "environments actions"]

    def cpu(self) -> Acted:
        """Both on the processor, where environments and replays are."""
        return Acted(self.executed.cpu(), self.stored.cpu())


@dataclass(frozen=True)
class Needs:
    """What a learner has beside `act` and `update`. Loops call what is declared here and nothing else; a learner that
    declares what it has not, or has what it does not declare, is refused."""

    observe: bool = False
    """`observe(observation)`: what is stored in place of an observation; loops call it on everything they see"""
    budget: bool = False
    """`budget(steps)`: told how many environment steps the whole run has before it starts or goes on (schedules)"""
    prepare: bool = False
    """`prepare(offline, generator)`: called once before the first step, with the demonstrations as they were recorded
    (they are observed after it)"""
    warm: bool = False
    """`warm(observation, generator)`: how it acts during warm-up instead of uniformly"""
    offline: bool = False
    """an attribute `offline`, where the demonstrations are put, if there are any, in new and in resumed runs"""
    together: bool = False
    """`together(learners)`: acts for and updates several of its kind at once (`loops/several.py`)"""


class Trained(Protocol):
    """All that a checkpoint holds of a learner, by name."""

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...

    @property
    def optimisers(self) -> Mapping[str, Optimizer]: ...


class Learner(Trained, Protocol):
    """What every learner of control has. What it is given is where its modules are; environments, replays and random
    numbers stay on the processor (`parts/noise.py`)."""

    @property
    def needs(self) -> Needs: ...

    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        """Actions for the environments; without `explore` as the paper evaluates."""
        ...

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """Learn; numbers for the ledger. Off-policy: the batches of one environment step. On-policy: one element, the
        rollout, its fields (steps, environments, …)."""
        ...


class Observes(Learner, Protocol):
    """A learner that needs `observe`."""

    def observe(self, observation: Tensor) -> Tensor: ...


class Budgeted(Learner, Protocol):
    """A learner that needs `budget`."""

    def budget(self, steps: int) -> None: ...


class Prepares(Learner, Protocol):
    """A learner that needs `prepare`."""

    def prepare(self, offline: Replay | None, generator: torch.Generator) -> None: ...


class Warms(Learner, Protocol):
    """A learner that needs `warm`."""

    def warm(self, observation: Tensor, generator: torch.Generator) -> Acted: ...


class KeepsOffline(Learner, Protocol):
    """A learner that needs `offline`."""

    offline: Replay


class Together(Protocol):
    """Several learners as one."""

    def act(self, observation: Tensor, generators: list[torch.Generator]) -> Tensor: ...

    def update(self, batches: list[Transitions], generators: list[torch.Generator]) -> list[dict[str, float]]: ...


class LearnsTogether(Learner, Protocol):
    """A learner that needs `together`."""

    @staticmethod
    def together(learners: list[Any]) -> Together: ...


def check_learner(learner: Learner) -> Learner:
    """Refuse a learner whose declaration is not what it has."""
    for f in fields(Needs):
        declared, has = bool(vars(learner.needs)[f.name]), f.name in dir(learner)
        if declared != has:
            told = f"it declares `{f.name}` and has none" if declared else f"it has `{f.name}`: declare it in `needs`"
            raise InputError("learner", type(learner).__name__, told)
    return learner


def place(learner: Learner, device: torch.device) -> None:
    """Move its networks, before it has learnt anything."""
    for module in learner.modules.values():
        module.to(device)


def device_of(learner: Trained) -> torch.device:
    """Where its networks are; one without any acts on the processor."""
    return next((p.device for module in learner.modules.values() for p in module.parameters()), CPU)


def observing(learner: Learner) -> Callable[[Tensor], Tensor]:
    """What the learner sees of an observation, and stores, on the processor."""
    if not learner.needs.observe:
        return lambda observation: observation
    observe, device = cast(Observes, learner).observe, device_of(learner)
    return lambda observation: observe(observation.to(device)).cpu()


def acting(learner: Learner, *, explore: bool) -> Callable[[Tensor, torch.Generator], Acted]:
    """What the learner does where it sees an observation of the environments, on the processor."""
    observe, device = observing(learner), device_of(learner)
    return lambda observation, rng: learner.act(observe(observation).to(device), rng, explore=explore).cpu()


def warm_up(learner: Learner, space: Space, seen: Tensor, rng: torch.Generator) -> Acted:
    """How it acts before it learns: in its own way, or uniformly; on the processor."""
    if not learner.needs.warm:
        return uniform(space, len(seen), rng)
    return cast(Warms, learner).warm(seen.to(device_of(learner)), rng).cpu()


def uniform(space: Space, n: int, rng: torch.Generator) -> Acted:
    """n uniform actions."""
    if space.factors:
        action = torch.cat([torch.randint(m, (n, 1), generator=rng).float() for m in space.factors], 1)
    elif space.discrete:
        action = torch.randint(space.actions, (n, 1), generator=rng).float()
    else:
        action = torch.rand(n, space.actions, generator=rng) * 2 - 1
    return Acted(action, action)


def pixels_of(learner: Learner, space: Space) -> int:
    """How many numbers of what the learner stores are bytes."""
    return 0 if learner.needs.observe else space.pixels


def tell_budget(learner: Learner, steps: int) -> None:
    """Say how long the run is."""
    if learner.needs.budget:
        cast(Budgeted, learner).budget(steps)


def prepare(learner: Learner, offline: Replay | None, generator: torch.Generator) -> None:
    """What comes before the first step of a new run."""
    if learner.needs.prepare:
        cast(Prepares, learner).prepare(offline, generator)


def give_offline(learner: Learner, offline: Replay | None) -> None:
    """Demonstrations, as the learner observes them, for one that asks for them."""
    if offline is not None and learner.needs.offline:
        cast(KeepsOffline, learner).offline = offline


# --- what is saved ---------------------------------------------------------------------------------------------------
def weights_of(learner: Trained) -> dict[str, Tensor]:
    """Weights and buffers of all modules, by name: everything that acting may need."""
    return {f"{m}.{k}": v for m, module in learner.modules.items() for k, v in module.state_dict().items()}


def tensors_of(learner: Trained) -> dict[str, Tensor]:
    """Weights, buffers and optimiser moments of a learner, by name."""
    out = weights_of(learner)
    for o, optimiser in learner.optimisers.items():
        for i, moments in optimiser.state_dict()["state"].items():
            out |= {f"{o}/{i}/{k}": torch.as_tensor(v) for k, v in moments.items()}
    return {k: v.detach().clone() for k, v in out.items()}


def load_tensors(learner: Trained, tensors: dict[str, Tensor]) -> None:
    """The inverse of `tensors_of`."""
    load_modules(learner, tensors)
    for o, optimiser in learner.optimisers.items():
        moments = defaultdict[int, dict[str, Tensor]](dict)
        for key, value in tensors.items():
            if key.startswith(f"{o}/"):
                _, i, name = key.split("/")
                moments[int(i)][name] = value
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        for i, saved in moments.items():
            check_moments(optimiser, parameters[i], saved)
        optimiser.load_state_dict({"state": dict(moments), "param_groups": optimiser.state_dict()["param_groups"]})


def load_modules(learner: Trained, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `weights_of`."""
    for m, module in learner.modules.items():
        module.load_state_dict({k.removeprefix(f"{m}."): v for k, v in tensors.items() if k.startswith(f"{m}.")})
