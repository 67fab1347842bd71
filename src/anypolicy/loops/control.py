"""The loops of controllers: act in environments, keep transitions, let the learner update.

A learner writes its paper's update out in full and calls parts. It has `modules` and `optimisers` (by name: all that a
checkpoint holds of it), `act` and `update`. Where it needs to, it also has
`observe(observation)`, what it stores in place of an observation (both loops call it on everything they see),
`budget(steps)`, told how many environment steps the whole run has before it starts or goes on (for schedules),
`prepare(offline, generator)`, called once before the first step, and `warm(observation, generator)`, how it acts
during warm-up instead of uniformly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from anypolicy.data.replay import NStep, Replay, mixed
from anypolicy.data.transitions import Transitions
from anypolicy.engines.environments import Environments, Stepped
from anypolicy.errors import InputError
from anypolicy.runs.seeds import generator
from anypolicy.tasks.environments import Space


class Acted(NamedTuple):
    """What the environment does (in [−1, 1], or an index), and what the replay keeps as the action."""

    executed: Float[Tensor, "environments actions"]
    stored: Float[Tensor, "environments actions"]


class Learner(Protocol):
    """What every learner has."""

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...

    @property
    def optimisers(self) -> Mapping[str, Optimizer]: ...

    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        """Actions for the environments; without `explore` as the paper evaluates."""
        ...

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """Learn; numbers for the ledger. Off-policy: the batches of one environment step. On-policy: one element, the
        rollout, its fields (steps, environments, …)."""
        ...


@dataclass(frozen=True)
class OffPolicyRecipe:
    """`learner(space, seed)` makes the learner; then how it is fed: `updates` batches for every environment step, of
    which `offline_share` comes from demonstrations; the first `warmup` steps act at random (None: ten episodes, at most
    5,000 steps)."""

    learner: Callable[[Space, int], Learner]
    discount: float = 0.99
    batch: int = 256
    updates: int = 1
    warmup: int | None = None
    capacity: int = 1_000_000
    n_step: int = 1
    offline_share: float = 0.0
    environments: int = 1
    needs_offline: bool = False


@dataclass(frozen=True)
class OnPolicyRecipe:
    """`learner(space, seed)` makes the learner; every update sees `horizon` steps of each environment."""

    learner: Callable[[Space, int], Learner]
    horizon: int = 2048
    discount: float = 0.99
    environments: int = 1
    needs_offline: bool = False


Recipe = OffPolicyRecipe | OnPolicyRecipe


def loop_of(
    recipe: Recipe, learner: Learner, environments: Environments, space: Space, seed: int, *,
    horizon: int | None = None, offline: Replay | None = None,
) -> OffPolicyLoop | OnPolicyLoop:  # fmt: skip
    """The loop of a recipe at step 0. `horizon` is the longest episode, `offline` the demonstrations."""
    if isinstance(recipe, OnPolicyRecipe):
        return OnPolicyLoop(recipe, learner, environments, space, seed, offline=offline)
    return OffPolicyLoop(recipe, learner, environments, space, seed, horizon=horizon, offline=offline)


class OffPolicyLoop:
    """`run(n)` makes n environment steps and what belongs to them. `state()` and `tensors()` are all it remembers."""

    def __init__(
        self, recipe: OffPolicyRecipe, learner: Learner, environments: Environments, space: Space, seed: int, *,
        horizon: int | None = None, offline: Replay | None = None,
    ):  # fmt: skip
        self.recipe, self.learner, self.environments, self.space, self.seed = recipe, learner, environments, space, seed
        self.observe: Callable[[Tensor], Tensor] = getattr(learner, "observe", lambda x: x)
        width = self.observe(environments.current).shape[1]
        self.replay = Replay(recipe.capacity, width, space.action_width)
        self.windows = NStep(recipe.n_step, recipe.discount, len(environments))
        self.offline = offline
        warm = min(10 * (horizon or 500), 5000) if recipe.warmup is None else recipe.warmup
        self.warmup, self.steps, self.updates = warm, 0, 0

    def run(self, steps: int) -> dict[str, float]:
        """At least `steps` environment steps; the means of what was logged."""
        logs, target = defaultdict[str, list[float]](list), self.steps + steps
        while self.steps < target:
            self.step(logs)
        out = {k: sum(v) / len(v) for k, v in logs.items()}
        return out | self.environments.take().means() | {"replay/size": float(len(self.replay)),
                                                         "updates": float(self.updates)}  # fmt: skip

    def step(self, logs: defaultdict[str, list[float]]) -> None:
        """One step of every environment, then the updates."""
        rng = generator(self.seed, "act", self.steps)
        seen = self.observe(self.environments.current)
        acted = self.warm(seen, rng) if self.steps < self.warmup else self.learner.act(seen, rng, explore=True)
        self.store(self.environments.step(acted.executed), acted.stored)
        begin, self.steps = self.steps, self.steps + len(self.environments)
        if self.steps <= self.warmup or not (len(self.replay) or self.offline):
            return
        rng, count = generator(self.seed, "update", begin), self.recipe.updates * len(self.environments)
        batches = mixed(self.replay, self.offline, count, self.recipe.batch, self.recipe.offline_share, rng)
        for name, value in self.learner.update(batches, rng).items():
            logs[name].append(value)
        self.updates += count

    def warm(self, seen: Tensor, rng: torch.Generator) -> Acted:
        """Uniform actions, or the learner's own way."""
        if hasattr(self.learner, "warm"):
            return self.learner.warm(seen, rng)  # type: ignore[attr-defined]
        if self.space.discrete:
            action = torch.randint(self.space.actions, (len(seen), 1), generator=rng).float()
        else:
            action = torch.rand(len(seen), self.space.actions, generator=rng) * 2 - 1
        return Acted(action, action)

    def store(self, s: Stepped, stored: Tensor) -> None:
        """Put what happened into the replay."""
        made = transitions(s, stored, self.observe, self.recipe.discount)
        real = s.real.nonzero().squeeze(1)
        ready = self.windows.add(made.select(real), real)
        if ready is not None:
            self.replay.add(ready)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"learner": tensors_of(self.learner), "replay": self.replay.tensors()}

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "updates": self.updates, "waiting": self.windows.state(),
                "environments": self.environments.state()}  # fmt: skip

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> bool:
        """Go on from a checkpoint; False if the environments could not be put back and their episodes begin anew."""
        load_tensors(self.learner, tensors["learner"])
        self.replay.restore(tensors["replay"])
        self.steps, self.updates = state["steps"], state["updates"]
        if state["environments"] is None:
            return False
        self.windows.restore(state["waiting"], self.replay.observations, self.replay.actions)
        self.environments.restore(state["environments"])
        return True


class OnPolicyLoop:
    """`run(n)` makes whole rollouts of at least n environment steps and updates on each."""

    def __init__(
        self, recipe: OnPolicyRecipe, learner: Learner, environments: Environments, space: Space, seed: int, *,
        offline: Replay | None = None,
    ):  # fmt: skip
        self.recipe, self.learner, self.environments, self.space, self.seed = recipe, learner, environments, space, seed
        self.observe: Callable[[Tensor], Tensor] = getattr(learner, "observe", lambda x: x)
        if not environments.same_step:
            raise InputError("autoreset_mode", "next step", "rollouts are made with environments that reset at once")
        self.offline, self.steps, self.updates = offline, 0, 0

    def run(self, steps: int) -> dict[str, float]:
        logs, target = defaultdict[str, list[float]](list), self.steps + steps
        while self.steps < target:
            rollout, begin = self.collect(), self.steps
            self.steps += self.recipe.horizon * len(self.environments)
            for name, value in self.learner.update([rollout], generator(self.seed, "update", begin)).items():
                logs[name].append(value)
            self.updates += 1
        out = {k: sum(v) / len(v) for k, v in logs.items()}
        return out | self.environments.take().means() | {"updates": float(self.updates)}

    def collect(self) -> Transitions:
        """`horizon` steps of every environment; fields are (steps, environments, …)."""
        rng, made = generator(self.seed, "act", self.steps), []
        for _ in range(self.recipe.horizon):
            acted = self.learner.act(self.observe(self.environments.current), rng, explore=True)
            stepped = self.environments.step(acted.executed)
            made.append(transitions(stepped, acted.stored, self.observe, self.recipe.discount))
        return Transitions(*(torch.stack([getattr(t, n) for t in made]) for n in Transitions.__dataclass_fields__))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"learner": tensors_of(self.learner)}

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "updates": self.updates, "environments": self.environments.state()}

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> bool:
        load_tensors(self.learner, tensors["learner"])
        self.steps, self.updates = state["steps"], state["updates"]
        if state["environments"] is None:
            return False
        self.environments.restore(state["environments"])
        return True


def transitions(s: Stepped, stored: Tensor, observe: Callable[[Tensor], Tensor], discount: float) -> Transitions:
    """One step of every environment as one-step transitions."""
    return Transitions(observe(s.observation), stored, s.reward, observe(s.next_observation), s.terminated, s.truncated,
                       torch.full_like(s.reward, discount))  # fmt: skip


def tensors_of(learner: Learner) -> dict[str, Tensor]:
    """Weights, buffers and optimiser moments of a learner, by name."""
    out = {f"{m}.{k}": v for m, module in learner.modules.items() for k, v in module.state_dict().items()}
    for o, optimiser in learner.optimisers.items():
        for i, moments in optimiser.state_dict()["state"].items():
            out |= {f"{o}/{i}/{k}": torch.as_tensor(v) for k, v in moments.items()}
    return {k: v.detach().clone() for k, v in out.items()}


def load_tensors(learner: Learner, tensors: dict[str, Tensor]) -> None:
    """The inverse of `tensors_of`."""
    for m, module in learner.modules.items():
        module.load_state_dict({k.removeprefix(f"{m}."): v for k, v in tensors.items() if k.startswith(f"{m}.")})
    for o, optimiser in learner.optimisers.items():
        moments = defaultdict[int, dict[str, Tensor]](dict)
        for key, value in tensors.items():
            if key.startswith(f"{o}/"):
                _, i, name = key.split("/")
                moments[int(i)][name] = value
        optimiser.load_state_dict({"state": dict(moments), "param_groups": optimiser.state_dict()["param_groups"]})


@torch.no_grad()
def evaluate(
    learner: Learner, environments: Environments, episodes: int, rng: torch.Generator
) -> tuple[dict[str, float], list[float]]:
    """Mean return, length and (where the environment says so) success of complete episodes, with the standard error of
    the return; and the returns."""
    observe: Callable[[Tensor], Tensor] = getattr(learner, "observe", lambda x: x)
    done = environments.take()
    while len(done.returns) < episodes:
        environments.step(learner.act(observe(environments.current), rng, explore=False).executed)
        more = environments.take()
        done.returns += more.returns
        done.lengths += more.lengths
        done.successes += more.successes
    returns = torch.tensor(done.returns[:episodes], dtype=torch.float64)
    out = {"eval/return": float(returns.mean()), "eval/n": float(episodes),
           "eval/length": sum(done.lengths[:episodes]) / episodes}  # fmt: skip
    if episodes > 1:
        out["eval/return_se"] = float(returns.std() / episodes**0.5)
    if done.successes:
        out["eval/success"] = sum(done.successes[:episodes]) / episodes
    return out, returns.tolist()
