"""Several runs of one method in one process, a seed each: they act and learn together, as each would alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch

from anypolicy.data.replay import mixed
from anypolicy.errors import InputError
from anypolicy.learners.base import Acted, LearnsTogether
from anypolicy.loops.control import OffPolicyLoop
from anypolicy.runs.seeds import generator


class SeedsLoop:
    """Loops at the same step, whose learners have `together` (such as SideBySide of learners.soft_actor_critics) for
    acting and updating at once. Environments, replay and random numbers stay those of each loop, so every one gives
    what it gives alone, up to the rounding of batched products; its learner can be evaluated and saved as ever."""

    def __init__(self, loops: Sequence[OffPolicyLoop]):
        if not loops or not loops[0].learner.needs.together:
            raise InputError("seeds", len(loops), "use one or more of a method that can train several in one process")
        learners = [cast(LearnsTogether, x.learner) for x in loops]
        self.loops, self.all = loops, learners[0].together(learners)

    def run(self, steps: int) -> list[dict[str, float]]:
        """At least `steps` environment steps of every seed; for each the means of what was logged."""
        logs, target = [defaultdict[str, list[float]](list) for _ in self.loops], self.loops[0].steps + steps
        while self.loops[0].steps < target:
            self.step(logs)
        means = [{k: sum(v) / len(v) for k, v in log.items()} for log in logs]
        return [m | x.environments.take().means() for m, x in zip(means, self.loops, strict=True)]

    def step(self, logs: Sequence[defaultdict[str, list[float]]]) -> None:
        """One step of every environment of every seed, then the updates."""
        begin, count = self.loops[0].steps, self.loops[0].recipe.updates * len(self.loops[0].environments)
        for x, acted in zip(self.loops, self.act(begin), strict=True):
            x.store(x.environments.step(acted.executed), acted.stored)
            x.steps += len(x.environments)
        if self.loops[0].steps <= self.loops[0].warmup or not all(len(x.replay) for x in self.loops):
            return
        rngs = [generator(x.seed, "update", begin) for x in self.loops]
        drawn = [
            mixed(x.replay, x.offline, count, x.recipe.batch, x.recipe.offline_share, rng)
            for x, rng in zip(self.loops, rngs, strict=True)
        ]
        made: list[dict[str, float]] = []
        for batches in zip(*drawn, strict=True):
            made = self.all.update(list(batches), rngs)
        for x, log, numbers in zip(self.loops, logs, made, strict=True):
            x.updates += count
            for name, value in numbers.items():
                log[name].append(value)

    def act(self, begin: int) -> list[Acted]:
        """What every seed does at this step."""
        rngs = [generator(x.seed, "act", begin) for x in self.loops]
        seen = [x.observe(x.environments.current) for x in self.loops]
        if begin < self.loops[0].warmup:
            return [x.warm(s, rng) for x, s, rng in zip(self.loops, seen, rngs, strict=True)]
        acted = self.all.act(torch.stack(seen).to(self.loops[0].device), rngs).cpu()
        return [Acted(a, a) for a in acted]
