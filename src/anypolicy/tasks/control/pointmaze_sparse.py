"""Sparse PointMaze: a ball in a U-shaped maze; reward 1 and the end when it is within 0.45 of the goal, else 0.

Observations are position, velocity and goal. Half of the scripted demonstrations flee from the goal once they are near
it, so that a cloned policy reaches it sometimes.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TransformObservation

from anypolicy.data.demonstrations import Episode
from anypolicy.runs.seeds import number, numpy_generator
from anypolicy.tasks.control.environments import plugin
from anypolicy.tasks.control.scripted import record

PATH = ((1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1))
"""Free cells (row, column) from one end of the U to the other."""
CENTRES = np.array([(column - 2, 2 - row) for row, column in PATH], float)


def pointmaze_sparse(max_steps: int = 150, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """The test-bed."""
    plugin("gymnasium-robotics")
    env = gymnasium.make("PointMaze_UMaze-v3", continuing_task=False, reset_target=False, max_episode_steps=max_steps,
                         render_mode=render_mode, disable_env_checker=True)  # fmt: skip
    join = lambda o: np.concatenate([o["observation"], o["desired_goal"]]).astype(np.float32)  # noqa: E731
    return TransformObservation(env, join, Box(-np.inf, np.inf, (6,), np.float32))


def demonstrations(episodes: int = 40, seed: int = 0, bad: float = 0.5) -> list[Episode]:
    """Steer to the next cell's centre with noise and a bias of the episode; a share `bad` of the episodes steers away
    from the goal within one cell of it."""
    env, made = pointmaze_sparse(), list[Episode]()
    for i in range(episodes):
        rng = numpy_generator(seed, "demonstrator", i)
        flees, bias = bool(rng.random() < bad), rng.normal(0, 0.1, 2)

        def controller(
            seen: np.ndarray, rng: np.random.Generator = rng, flees: bool = flees, bias: np.ndarray = bias
        ) -> np.ndarray:
            position, velocity, goal = seen[:2], seen[2:4], seen[4:]
            aim = waypoint(position, goal, flees)
            return np.clip(4 * (aim - position) - 1.5 * velocity + bias + rng.normal(0, 0.3, 2), -1, 1)

        made.append(record(env, controller, number(seed, "demonstration", i) % 2**31))
    env.close()
    return made


def waypoint(position: np.ndarray, goal: np.ndarray, flees: bool) -> np.ndarray:
    """The next cell's centre on the way, the goal in its own cell, or a point away from it."""
    here, there = (int(np.square(CENTRES - x).sum(1).argmin()) for x in (position, goal))
    if flees and abs(here - there) <= 1:
        return position - 0.6 * (goal - position) / (np.linalg.norm(goal - position) + 1e-9)
    return goal if here == there else CENTRES[here + (1 if there > here else -1)]
