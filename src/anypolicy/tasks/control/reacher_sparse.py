"""Sparse Reacher: reward 1 in every step that ends near the target, else 0; episodes of 50 steps never terminate.

Observations are Reacher-v5's ten numbers on one scale. Success is being near at the last step. Half of the scripted
demonstrations bend the elbow the other way and aim beside the target, so that a cloned policy averages two modes of
which one is wrong.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from anypolicy.data.demonstrations import Episode
from anypolicy.runs.seeds import number, numpy_generator
from anypolicy.tasks.control.scripted import record

SCALE = np.array([1, 1, 1, 1, 5, 5, 0.1, 0.1, 5, 5])
"""cos and sin of two angles, target, joint velocities, fingertip − target."""
LINKS = (0.1, 0.11)
MISS = np.array([0.05, -0.03])
"""Where bad demonstrations aim, from the target."""


class ReacherSparse(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Reacher-v5 with its observation scaled and the reward |fingertip − target| < radius."""

    def __init__(self, env: gymnasium.Env[Any, Any], radius: float):
        super().__init__(env)
        self.radius = radius
        self.observation_space = Box(-np.inf, np.inf, SCALE.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return (self.env.reset(seed=seed, options=options)[0] * SCALE).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        o, _, terminated, truncated, _ = self.env.step(action)
        near = math.hypot(o[8], o[9]) < self.radius
        return (o * SCALE).astype(np.float32), float(near), terminated, truncated, {"success": near and truncated}


def reacher_sparse(
    radius: float = 0.025, max_steps: int = 50, render_mode: str | None = None
) -> gymnasium.Env[Any, Any]:
    """The test-bed."""
    return ReacherSparse(gymnasium.make("Reacher-v5", max_episode_steps=max_steps, render_mode=render_mode), radius)


def demonstrations(episodes: int = 40, seed: int = 0, bad: float = 0.5) -> list[Episode]:
    """Inverse kinematics and a damped spring on the joints; a share `bad` of the episodes misses."""
    env, made = reacher_sparse(), list[Episode]()
    for i in range(episodes):
        rng = numpy_generator(seed, "demonstrator", i)
        misses = bool(rng.random() < bad)

        def controller(seen: np.ndarray, rng: np.random.Generator = rng, misses: bool = misses) -> np.ndarray:
            o = seen / SCALE
            goal = posture(o[4:6] + (MISS if misses else 0), -1 if misses else 1)
            now, velocity = np.arctan2(o[2:4], o[0:2]), o[6:8]
            away = (goal - now + np.pi) % (2 * np.pi) - np.pi
            return np.clip(0.5 * away - 0.05 * velocity + rng.normal(0, 0.05, 2), -1, 1)

        made.append(record(env, controller, number(seed, "demonstration", i) % 2**31))
    env.close()
    return made


def posture(target: np.ndarray, elbow: int) -> np.ndarray:
    """The two joint angles that put the fingertip on the target, the elbow bent to the given side; the nearest reach
    where there are none."""
    a, b = LINKS
    cosine = np.clip((target @ target - a * a - b * b) / (2 * a * b), -1, 1)
    second = elbow * np.arccos(cosine)
    first = np.arctan2(target[1], target[0]) - np.arctan2(b * np.sin(second), a + b * np.cos(second))
    return np.array([first, second])
