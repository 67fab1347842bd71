"""What an environment answers, as the rest of the library may rely on it: copied, of the promised kinds, and nothing
that it says beside them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from anypolicy.engines.snapshots import layers
from anypolicy.errors import InputError

TOLD = ("is_success", "success")
"""What an environment may say of reaching its goal."""
LARGEST = float(np.finfo(np.float32).max)


class EnvironmentFailed(InputError):
    """An environment raised an exception or gave what it must not; it cannot be relied on any more."""


class Guarded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose answers are its own no more: observations are copies, so that what it changes in place later
    (at a reset, for one) changes nothing that was kept; a reward is one finite number, a flag true or false; `info`
    holds at most what is in `TOLD`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return copied(observation), told(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        ended, cut = flag("terminated", terminated), flag("truncated", truncated)
        return copied(observation), paid(reward), ended, cut, told(info)


def guarded(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment behind a guard, if it has none yet."""
    return env if any(isinstance(layer, Guarded) for layer in layers(env)) else Guarded(env)


def copied(observation: Any) -> Any:
    """The observation, whatever becomes of the one that was given."""
    return observation.copy() if isinstance(observation, np.ndarray) else deepcopy(observation)


def one_number(value: object) -> float | None:
    """A number, or an array of one; None for anything else."""
    if isinstance(value, float | int):
        return float(value)
    try:
        x = np.asarray(value)
    except (TypeError, ValueError):
        return None
    return float(x.reshape(-1)[0]) if x.size == 1 and x.dtype.kind in "biuf" else None


def flag(name: str, value: object) -> bool:
    """True or false; 0 and 1 are as good."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    number = one_number(value)
    if number not in (0.0, 1.0):
        raise EnvironmentFailed(name, value, "the environment must say true or false (or 1 or 0)")
    return number == 1.0


def paid(value: object) -> float:
    """A reward."""
    number = one_number(value)
    if number is None or not abs(number) <= LARGEST:
        raise EnvironmentFailed("reward", value, "the environment must give one finite number a step")
    return number


def told(info: object) -> dict[str, Any]:
    """What it says of its goal, where that is one number."""
    if not isinstance(info, Mapping):
        return {}
    said = {name: one_number(info[name]) for name in TOLD if name in info}
    return {name: x for name, x in said.items() if x is not None and np.isfinite(x)}


def check_bounds(field: str, box: Box) -> None:
    """Refuses boxes of actions that [−1, 1] cannot be scaled to."""
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    widest = 2.0**53 if box.dtype.kind in "iu" else LARGEST
    if not (box.is_bounded() and bool((high - low <= widest).all())):
        raise InputError(field, str(box), "actions must lie in a bounded box, no wider than float32 can hold: give "
                         "the environment such a box (gymnasium.wrappers.TransformAction)")  # fmt: skip
