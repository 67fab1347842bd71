"""Sparse FetchReach: a robot arm whose gripper must come within 0.05 of a goal; reward 1 and the end there, else 0.

Observations are the robot's state and the goal. Its demonstrator moves straight to the goal.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from anypolicy.data.demonstrations import Episode
from anypolicy.runs.seeds import number, numpy_generator
from anypolicy.tasks.control.environments import plugin
from anypolicy.tasks.control.scripted import record

STRIDE = 0.05
"""Metres of a full action."""


class FetchReachSparse(gymnasium.Wrapper[Any, Any, Any, Any]):
    """FetchReach-v4 that ends at the goal, with reward 1 there instead of −1 elsewhere."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        self.observation_space = Box(-np.inf, np.inf, (13,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return joined(self.env.reset(seed=seed, options=options)[0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        o, _, _, truncated, info = self.env.step(action)
        there = bool(info["is_success"])
        return joined(o), float(there), there, truncated, {"success": there}


def joined(o: dict[str, np.ndarray]) -> np.ndarray:
    """The robot's state, then the goal."""
    return np.concatenate([o["observation"], o["desired_goal"]]).astype(np.float32)


def fetchreach_sparse(max_steps: int = 50, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """The test-bed."""
    plugin("gymnasium-robotics")
    env = gymnasium.make("FetchReach-v4", max_episode_steps=max_steps, render_mode=render_mode,
                         disable_env_checker=True)  # fmt: skip
    return FetchReachSparse(env)


def demonstrations(episodes: int = 20, seed: int = 0, noise: float = 0.2) -> list[Episode]:
    """Straight to the goal, with noise on the action."""
    env, made = fetchreach_sparse(), list[Episode]()
    for i in range(episodes):
        rng = numpy_generator(seed, "demonstrator", i)

        def controller(seen: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
            move = np.append((seen[10:13] - seen[:3]) / STRIDE, 0.0)
            return np.clip(move + rng.normal(0, noise, 4), -1, 1)

        made.append(record(env, controller, number(seed, "demonstration", i) % 2**31))
    env.close()
    return made
