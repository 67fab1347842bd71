"""There and back in a world that is not reset: task 0 is a goal, task 1 the place where the arm began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from anypolicy.data.demonstrations import Episode
from anypolicy.errors import InputError
from anypolicy.runs.seeds import number, numpy_generator
from anypolicy.tasks.control.environments import plugin
from anypolicy.tasks.control.scripted import record

STRIDE = 0.05
"""Metres of a full action."""
Judge = Callable[[np.ndarray], bool]


class BackAndForth(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A goal environment whose episodes go on in the world as they left it: after a success with the other task, else
    with the same task once more. Observations: the robot's state, the task's goal, the task. Reward 1 and termination
    at success. The world begins anew with a seed, and every `forced_every` episodes (0: never)."""

    tasks = 2

    def __init__(
        self, env: gymnasium.Env[Any, Any], horizon: int, forced_every: int = 0, judges: Sequence[Judge] | None = None
    ):
        """`judges`, one for each task, say from an observation whether it is a success (a trained classifier);
        without them the environment does."""
        super().__init__(env)
        if horizon < 1 or forced_every < 0:
            raise InputError(
                "back-and-forth", (horizon, forced_every), "use a horizon above 0 and forced_every 0 or more"
            )
        self.horizon, self.forced_every, self.judges = horizon, forced_every, judges
        spaces: Any = env.observation_space
        width = sum(spaces[k].shape[0] for k in ("observation", "desired_goal")) + 1
        self.observation_space = Box(-np.inf, np.inf, (width,), np.float32)
        self.goals: list[np.ndarray] = []
        self.last: dict[str, Any] = {}
        self.task = self.count = self.episodes = self.world_resets = 0
        self.won = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        forced = bool(self.forced_every) and self.episodes > 0 and self.episodes % self.forced_every == 0
        if seed is not None or not self.goals:
            self.task = self.episodes = self.world_resets = 0
            self.begin(seed, options)
            self.goals = [np.array(self.last["desired_goal"]), np.array(self.last["achieved_goal"])]
        else:
            self.task = 1 - self.task if self.won else self.task
            if forced:
                self.begin(None, options)
        self.won, self.count = False, 0
        self.unwrapped.goal = self.goals[self.task].copy()  # type: ignore[attr-defined]
        return self.seen(), {}

    def begin(self, seed: int | None, options: dict[str, Any] | None) -> None:
        """The world anew."""
        self.last, _ = self.env.reset(seed=seed, options=options)
        self.world_resets += 1

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.last, _, _, _, info = self.env.step(action)
        self.count += 1
        seen = self.seen()
        self.won = bool(info["is_success"]) if self.judges is None else bool(self.judges[self.task](seen))
        cut = self.count >= self.horizon
        self.episodes += self.won or cut
        return seen, float(self.won), self.won, cut and not self.won, {"is_success": self.won}

    def seen(self) -> np.ndarray:
        return np.concatenate([self.last["observation"], self.goals[self.task], [self.task]]).astype(np.float32)

    def get_state(self) -> dict[str, Any]:
        last = {k: v.tolist() for k, v in self.last.items()}
        books = {k: getattr(self, k) for k in ("task", "count", "episodes", "world_resets", "won")}
        return {"goals": [g.tolist() for g in self.goals], "last": last, "books": books}

    def set_state(self, value: dict[str, Any]) -> None:
        self.goals, self.last = (
            [np.array(g) for g in value["goals"]],
            {k: np.array(v) for k, v in value["last"].items()},
        )
        for name, number_ in value["books"].items():
            setattr(self, name, number_)


def back_and_forth(horizon: int = 50, forced_every: int = 0, render_mode: str | None = None) -> BackAndForth:
    """FetchReach's arm."""
    plugin("gymnasium-robotics")
    env = gymnasium.make("FetchReach-v4", max_episode_steps=-1, render_mode=render_mode, disable_env_checker=True)
    return BackAndForth(env, horizon, forced_every)


def demonstrations(episodes: int = 40, seed: int = 0, noise: float = 0.2, worlds: int = 10) -> list[Episode]:
    """Straight to the goal and back, with noise on the action, in a few worlds one after the other."""
    env, made = back_and_forth(), list[Episode]()
    for i in range(episodes):
        rng = numpy_generator(seed, "demonstrator", i)

        def controller(seen: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
            move = np.append((seen[10:13] - seen[:3]) / STRIDE, 0.0)
            return np.clip(move + rng.normal(0, noise, 4), -1, 1)

        new = i % -(-episodes // worlds) == 0
        made.append(record(env, controller, number(seed, "demonstration", i) % 2**31 if new else None))
    env.close()
    return made
