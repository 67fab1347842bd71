"""Several tasks in one world that is not reset: an agent of its own for each, and the next episode begins where the
last one ended (arXiv 2401.16013, section 4.3).

The environment says which task it is in the last number of every observation, goes on to another task after a success
and tries the same again after a failure; `world_resets` counts how often its world really began anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anypolicy.data.replay import Replay, mixed
from anypolicy.data.transitions import Transitions
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError
from anypolicy.learners.base import (
    Acted,
    Learner,
    Needs,
    check_learner,
    device_of,
    load_tensors,
    pixels_of,
    prepare,
    tensors_of,
    uniform,
)
from anypolicy.learners.recipe import OffPolicyRecipe, warmup_of
from anypolicy.loops.control import averages, logged, transitions
from anypolicy.parts.noise import CPU
from anypolicy.runs.seeds import generator
from anypolicy.runs.stop import Pause, go_on
from anypolicy.tasks.control.environments import Space


class Agents:
    """Independent learners, one for every task, behind the face of one."""

    needs = Needs(prepare=True)

    def __init__(self, learners: list[Learner]):
        if any(check_learner(x).needs.observe or x.needs.warm for x in learners):
            raise InputError("task", "several tasks", "this method stores or explores in its own way: use one task")
        self.learners = learners
        self.modules: Mapping[str, nn.Module] = {
            f"{t}-{name}": m for t, x in enumerate(learners) for name, m in x.modules.items()
        }
        self.optimisers: Mapping[str, Optimizer] = {
            f"{t}-{name}": o for t, x in enumerate(learners) for name, o in x.optimisers.items()
        }

    def prepare(self, offline: Replay | None, generator: torch.Generator) -> None:
        """Each learner on the demonstrations of its task."""
        for x, part in zip(self.learners, by_task(offline, len(self.learners)), strict=True):
            prepare(x, part, generator)

    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        """Every row by the agent whose task it is."""
        executed, stored = list[Tensor](), list[Tensor]()
        for row in observation.split(1):
            acted = self.learners[int(row[0, -1])].act(row, generator, explore=explore)
            executed.append(acted.executed)
            stored.append(acted.stored)
        return Acted(torch.cat(executed), torch.cat(stored))

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """Batches of one task, for its agent."""
        return self.learners[int(batches[0].observation[0, -1])].update(batches, generator)


def by_task(offline: Replay | None, tasks: int) -> list[Replay | None]:
    """Demonstrations of each task."""
    if offline is None:
        return [None] * tasks
    rows, out = offline.all(), list[Replay | None]()
    for t in range(tasks):
        mine = rows.select(rows.observation[:, -1] == t)
        if not len(mine):
            raise InputError("demos", f"none of task {t}", f"give demonstrations of all {tasks} tasks")
        replay = Replay(len(mine), offline.observations, offline.actions, offline.packing.pixels, offline.device)
        replay.add(mine.to(CPU))
        out.append(replay)
    return out


class ResetFreeLoop:
    """`run(n)` makes n environment steps. Each task has its replay and demonstrations, and its agent never makes more
    updates than its own steps allow."""

    def __init__(
        self, recipe: OffPolicyRecipe, agents: Agents, environments: Environments, space: Space, seed: int, *,
        horizon: int | None = None,
    ):  # fmt: skip
        if recipe.n_step != 1:
            raise InputError("n_step", recipe.n_step, "without resets an episode is cut at every change of task: use 1")
        self.recipe, self.learner, self.environments, self.space, self.seed = recipe, agents, environments, space, seed
        self.device = device_of(agents)
        self.replays = [
            Replay(recipe.capacity, space.observations, space.action_width, pixels_of(agents, space), self.device)
            for _ in range(space.tasks)
        ]
        self.parts: list[Replay | None] = [None] * space.tasks
        self.offline = None
        self.warmup = warmup_of(recipe, horizon)
        self.steps, self.updates, self.own = 0, 0, [0] * space.tasks
        self.logs = defaultdict[str, list[float]](list)

    @property
    def offline(self) -> Replay | None:
        """All demonstrations; the loop uses them by task."""
        return self.given

    @offline.setter
    def offline(self, value: Replay | None) -> None:
        self.given, self.parts = value, by_task(value, self.space.tasks)

    def run(self, steps: int, pause: Pause = go_on) -> dict[str, float]:
        target = self.steps + steps
        while self.steps < target:
            self.step(self.logs)
            if self.steps < target:
                pause(steps + self.steps - target)
        out, self.logs = averages(self.logs), defaultdict(list)
        sizes = {"replay/size": float(sum(map(len, self.replays))), "updates": float(self.updates)}
        return out | self.environments.take().means() | sizes | {"resets/forced": self.forced()}

    def forced(self) -> float:
        """Resets of a world per 1,000 steps, the first of each not counted."""
        begun = sum(self.environments.vector.get_attr("world_resets"))  # type: ignore[attr-defined]
        return 1000 * (begun - len(self.environments)) / max(self.steps, 1)

    def step(self, logs: defaultdict[str, list[float]]) -> None:
        """One step of every environment, then the updates of the tasks that made it."""
        rng, seen = generator(self.seed, "act", self.steps), self.environments.current
        warm = self.steps < self.warmup
        acted = (
            uniform(self.space, len(seen), rng)
            if warm
            else self.learner.act(seen.to(self.device), rng, explore=True).cpu()
        )
        stepped = self.environments.step(acted.executed)
        made = transitions(stepped, acted.stored, lambda x: x, self.recipe.discount)
        begin, self.steps = self.steps, self.steps + len(self.environments)
        for t, replay in enumerate(self.replays):
            rows = made.select(stepped.real & (made.observation[:, -1] == t))
            if not len(rows):
                continue
            replay.add(rows)
            self.own[t] += len(rows)
            ended = rows.select((rows.terminated + rows.truncated) > 0)
            logs[f"success/{t}"] += ended.terminated.tolist()
            if self.steps > self.warmup:
                rng, count = generator(self.seed, "update", begin, t), self.recipe.updates * len(rows)
                share = self.recipe.offline_share
                batches = mixed(replay, self.parts[t], count, self.recipe.batch, share, rng)
                for name, value in self.learner.update(batches, rng).items():
                    logs[name].append(value)
                self.updates += count
        for name in [k for k, v in logs.items() if not v]:
            del logs[name]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"learner": tensors_of(self.learner), **{f"replay-{t}": r.tensors() for t, r in enumerate(self.replays)}}

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "updates": self.updates, "own": self.own, "logs": dict(self.logs),
                "environments": self.environments.state()}  # fmt: skip

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> bool:
        load_tensors(self.learner, tensors["learner"])
        for t, replay in enumerate(self.replays):
            replay.restore(tensors[f"replay-{t}"])
        self.steps, self.updates, self.own = state["steps"], state["updates"], state["own"]
        self.logs = logged(state)
        return self.environments.restore(state["environments"])
