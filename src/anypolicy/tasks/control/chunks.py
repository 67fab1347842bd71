"""Several actions decided at once and executed one after the other without looking (action chunks).

To a learner a chunk is one action of `chunk` times the numbers, the first action first, and the environment one whose
step takes as many steps: its reward is Σ_{i<k} γⁱ r_i, where k is the length of the chunk or, if the episode ends
before, the steps until then, and the value of what follows counts γᵏ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from anypolicy.engines.environments import PAID, TOOK
from anypolicy.engines.guard import guarded
from anypolicy.errors import InputError
from anypolicy.tasks.control.environments import EnvironmentTask


class Chunks(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A step is a chunk, cut at the end of the episode. `info` says how many steps it took and what they paid, not
    discounted; a goal reached in one of them was reached in the chunk."""

    def __init__(self, env: gymnasium.Env[Any, Any], chunk: int, discount: float):
        super().__init__(guarded(env))
        box = env.action_space
        assert isinstance(box, Box)
        self.chunk, self.discount = chunk, discount
        self.action_space = Box(np.tile(box.low, chunk), np.tile(box.high, chunk), dtype=box.dtype.type)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total, paid, won = 0.0, 0.0, dict[str, float]()
        for i, one in enumerate(np.split(np.asarray(action), self.chunk)):
            observation, reward, terminated, truncated, info = self.env.step(one)
            total, paid = total + self.discount**i * float(reward), paid + float(reward)
            won |= {k: max(won.get(k, 0.0), x) for k, x in info.items()}
            if terminated or truncated or i + 1 == self.chunk:
                return observation, total, terminated, truncated, {**won, TOOK: i + 1, PAID: paid}
        raise AssertionError("a chunk has at least one action")


def in_chunks(task: EnvironmentTask, chunk: int, discount: float) -> EnvironmentTask:
    """The task with chunks of actions; itself for chunks of one."""
    if chunk < 1:
        raise InputError("chunk", chunk, "use at least 1, the actions decided at once")
    if chunk == 1:
        return task
    space = task.space
    if space.discrete:
        raise InputError("chunk", chunk, f"{task.name} has choices: only boxes of actions are decided several at once")

    def make(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        return Chunks(task.make(render_mode=render_mode), chunk, discount)

    wide = replace(space, actions=chunk * space.actions, low=chunk * space.low, high=chunk * space.high)
    return replace(task, make=make, space=wide, single=task)
