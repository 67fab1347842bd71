"""The loops of controllers: act in environments, keep transitions, let the learner update."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anypolicy.data.replay import NStep, Replay, mixed
from anypolicy.data.transitions import Transitions
from anypolicy.engines.environments import Environments, Stepped
from anypolicy.errors import InputError
from anypolicy.learners.base import (
    Acted,
    Learner,
    acting,
    device_of,
    load_tensors,
    observing,
    pixels_of,
    tensors_of,
    warm_up,
)
from anypolicy.learners.recipe import OfflineRecipe, OffPolicyRecipe, OnPolicyRecipe, check_given, warmup_of
from anypolicy.runs.seeds import generator
from anypolicy.runs.stop import Pause, go_on
from anypolicy.tasks.control.environments import EnvironmentTask, Space


def logged(state: Mapping[str, Any]) -> defaultdict[str, list[float]]:
    """What was logged for the row that was open when a loop was saved."""
    return defaultdict(list, {k: list(v) for k, v in state.get("logs", {}).items()})


def averages(logs: Mapping[str, list[float]]) -> dict[str, float]:
    """The mean of what was logged under each name."""
    return {k: sum(v) / len(v) for k, v in logs.items()}


class OffPolicyLoop:
    """`run(n)` makes n environment steps and what belongs to them. `state()` and `tensors()` are all it remembers."""

    def __init__(
        self, recipe: OffPolicyRecipe, learner: Learner, environments: Environments, space: Space, seed: int, *,
        horizon: int | None = None,
    ):  # fmt: skip
        self.recipe, self.learner, self.environments, self.space, self.seed = recipe, learner, environments, space, seed
        self.observe, self.device = observing(learner), device_of(learner)
        width = self.observe(environments.current).shape[1]
        self.replay = Replay(recipe.capacity, width, space.action_width, pixels_of(learner, space), self.device)
        self.windows = NStep(recipe.n_step, recipe.discount, len(environments))
        self.offline: Replay | None = None
        self.warmup, self.steps, self.updates, self.beyond = warmup_of(recipe, horizon), 0, 0, 0
        self.logs = defaultdict[str, list[float]](list)

    def run(self, steps: int, pause: Pause = go_on) -> dict[str, float]:
        """At least `steps` environment steps, less what chunks went beyond the last call's; means of what was seen."""
        check_given(self.recipe, self.offline)
        target, self.beyond = self.steps + steps - self.beyond, 0
        while self.steps < target:
            self.step(self.logs)
            if self.steps < target:
                pause(steps + self.steps - target)
        self.beyond = self.steps - target if self.recipe.chunk > 1 else 0
        out, self.logs = averages(self.logs), defaultdict(list)
        return out | self.environments.take().means() | {"replay/size": float(len(self.replay)),
                                                         "updates": float(self.updates)}  # fmt: skip

    def step(self, logs: defaultdict[str, list[float]]) -> None:
        """One step of every environment, then the updates."""
        rng = generator(self.seed, "act", self.steps)
        seen = self.observe(self.environments.current)
        acted = self.warm(seen, rng) if self.steps < self.warmup else self.explore(seen, rng)
        stepped = self.environments.step(acted.executed)
        self.store(stepped, acted.stored)
        begin, self.steps = self.steps, self.steps + int(stepped.took.sum())
        if self.steps <= self.warmup or not (len(self.replay) or self.offline):
            return
        rng, count = generator(self.seed, "update", begin), self.recipe.updates * len(self.environments)
        batches = mixed(self.replay, self.offline, count, self.recipe.batch, self.recipe.offline_share, rng)
        for name, value in self.learner.update(batches, rng).items():
            logs[name].append(value)
        self.updates += count

    def explore(self, seen: Tensor, rng: torch.Generator) -> Acted:
        """What the learner does to find out more."""
        return self.learner.act(seen.to(self.device), rng, explore=True).cpu()

    def warm(self, seen: Tensor, rng: torch.Generator) -> Acted:
        """Uniform actions, or the learner's own way."""
        return warm_up(self.learner, self.space, seen, rng)

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
        return {"steps": self.steps, "updates": self.updates, "beyond": self.beyond, "waiting": self.windows.state(),
                "logs": dict(self.logs), "environments": self.environments.state()}  # fmt: skip

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> bool:
        """Go on from a checkpoint; False if the environments could not be put back and their episodes begin anew."""
        load_tensors(self.learner, tensors["learner"])
        self.replay.restore(tensors["replay"])
        self.steps, self.updates, self.beyond = state["steps"], state["updates"], state["beyond"]
        self.logs = logged(state)
        if not self.environments.restore(state["environments"]):
            return False
        self.windows.restore(state["waiting"], self.replay.observations, self.replay.actions)
        return True


class OnPolicyLoop:
    """`run(n)` makes whole rollouts of at least n environment steps and updates on each; what they go beyond n the next
    call makes less."""

    def __init__(
        self, recipe: OnPolicyRecipe, learner: Learner, environments: Environments, space: Space, seed: int
    ):  # fmt: skip
        self.recipe, self.learner, self.environments, self.space, self.seed = recipe, learner, environments, space, seed
        self.observe, self.act = observing(learner), acting(learner, explore=True)
        self.device = device_of(learner)
        if not environments.same_step:
            raise InputError("autoreset_mode", "next step", "rollouts are made with environments that reset at once")
        assert recipe.horizon is not None
        self.horizon = recipe.horizon
        self.offline: Replay | None = None
        self.steps, self.asked, self.updates = 0, 0, 0
        self.logs = defaultdict[str, list[float]](list)

    def run(self, steps: int, pause: Pause = go_on) -> dict[str, float]:
        check_given(self.recipe, self.offline)
        self.asked += steps
        while self.steps < self.asked:
            begin = self.steps
            rollout = self.collect() if self.recipe.episodes is None else self.collect_episodes(self.recipe.episodes)
            for name, value in self.learner.update(
                [rollout.to(self.device)], generator(self.seed, "update", begin)
            ).items():
                self.logs[name].append(value)
            self.updates += 1
            if self.steps < self.asked:
                pause(steps + self.steps - self.asked)
        out, self.logs = averages(self.logs), defaultdict(list)
        return out | self.environments.take().means() | {"updates": float(self.updates)}

    def collect(self) -> Transitions:
        """`horizon` steps of every environment; fields are (steps, environments, …)."""
        rng, made = generator(self.seed, "act", self.steps), []
        for _ in range(self.horizon):
            acted = self.act(self.environments.current, rng)
            stepped = self.environments.step(acted.executed)
            made.append(transitions(stepped, acted.stored, self.observe, self.recipe.discount))
        self.steps += self.horizon * len(self.environments)
        return stacked(made)

    def collect_episodes(self, each: int) -> Transitions:
        """`each` whole episodes of every environment from their first step on, cut at `horizon`; fields are
        (steps, 1, …), the episodes of one environment after those of the other. All environments begin anew after."""
        rng, made, n = generator(self.seed, "act", self.steps), list[Transitions](), len(self.environments)
        age, count = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
        last = torch.zeros(n, dtype=torch.int64)
        while (count < each).any():
            acted = self.act(self.environments.current, rng)
            t = transitions(self.environments.step(acted.executed), acted.stored, self.observe, self.recipe.discount)
            over = (t.terminated + t.truncated) > 0
            cut = (age + 1 >= self.horizon) & ~over
            self.environments.begin_anew(cut, ended=True)
            made.append(replace(t, truncated=torch.where(cut, 1.0, t.truncated)))
            over = over | cut
            age, count = torch.where(over, 0, age + 1), count + over
            last = torch.where(over & (count == each), len(made), last)
        self.environments.begin_anew(age > 0, ended=False)
        self.steps += len(made) * n
        rollout = stacked(made)
        return Transitions(*(
            torch.cat([value[: last[e], e : e + 1] for e in range(n)])
            for value in (getattr(rollout, name) for name in Transitions.__dataclass_fields__)
        ))  # fmt: skip

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"learner": tensors_of(self.learner)}

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "asked": min(self.asked, self.steps), "updates": self.updates,
                "logs": dict(self.logs), "environments": self.environments.state()}  # fmt: skip

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> bool:
        load_tensors(self.learner, tensors["learner"])
        self.steps, self.asked, self.updates = state["steps"], state["asked"], state["updates"]
        self.logs = logged(state)
        return self.environments.restore(state["environments"])


def parts_of(acted: Acted, task: EnvironmentTask) -> tuple[Tensor, ...]:
    """What is executed, one action of the environment after the other (one, or those of a chunk)."""
    return acted.executed.split(task.one_by_one().space.action_width, 1)


class OfflineLoop:
    """`run(n)` makes n updates on the demonstrations; nothing acts."""

    def __init__(self, recipe: OfflineRecipe, learner: Learner, seed: int):
        self.recipe, self.learner, self.seed, self.steps = recipe, learner, seed, 0
        self.offline: Replay | None = None
        self.logs = defaultdict[str, list[float]](list)

    def run(self, steps: int, pause: Pause = go_on) -> dict[str, float]:
        if not self.offline:
            raise InputError("demos", None, "this method learns from demonstrations alone: give a data set")
        for made in range(1, steps + 1):
            rng = generator(self.seed, "update", self.steps)
            self.steps += 1
            for name, value in self.learner.update([self.offline.sample(self.recipe.batch, rng)], rng).items():
                self.logs[name].append(value)
            if made < steps:
                pause(made)
        out, self.logs = averages(self.logs), defaultdict(list)
        return out | {"updates": float(self.steps)}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"learner": tensors_of(self.learner)}

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "logs": dict(self.logs)}

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> bool:
        load_tensors(self.learner, tensors["learner"])
        self.steps, self.logs = state["steps"], logged(state)
        return True


def transitions(s: Stepped, stored: Tensor, observe: Callable[[Tensor], Tensor], discount: float) -> Transitions:
    """One step (or chunk) of every environment as transitions: the value after k steps counts γᵏ."""
    powers = torch.tensor([discount**k for k in s.took.tolist()], dtype=s.reward.dtype)
    return Transitions(observe(s.observation), stored, s.reward, observe(s.next_observation), s.terminated, s.truncated,
                       powers)  # fmt: skip


def stacked(made: list[Transitions]) -> Transitions:
    """Steps one after the other; fields are (steps, environments, …)."""
    return Transitions(*(torch.stack([getattr(t, name) for t in made]) for name in Transitions.__dataclass_fields__))


@torch.no_grad()
def evaluate(
    learner: Learner, environments: Environments, episodes: int, rng: torch.Generator
) -> tuple[dict[str, float], list[float]]:
    """Mean return, length and (where the environment says so) success of complete episodes, with the standard error of
    the return; and the returns."""
    act, done = acting(learner, explore=False), environments.take()
    while len(done.returns) < episodes:
        environments.step(act(environments.current, rng).executed)
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
