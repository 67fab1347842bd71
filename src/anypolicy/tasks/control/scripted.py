"""Scripted demonstrators of the test-beds: `--demos scripted` or `--demos scripted:episodes=20,bad=0`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch

from anypolicy.data.demonstrations import Episode
from anypolicy.engines.guard import guarded
from anypolicy.errors import InputError
from anypolicy.tasks.arguments import fit, parse
from anypolicy.tasks.control.environments import EnvironmentTask

DEMONSTRATORS: dict[str, tuple[str, str]] = {
    "reacher-sparse": ("anypolicy.tasks.control.reacher_sparse", "demonstrations"),
    "pointmaze-sparse": ("anypolicy.tasks.control.pointmaze_sparse", "demonstrations"),
    "back-and-forth": ("anypolicy.tasks.control.back_and_forth", "demonstrations"),
    "fetchreach-sparse": ("anypolicy.tasks.control.fetchreach_sparse", "demonstrations"),
    "tip": ("anypolicy.tasks.control.tip", "demonstrations"),
}
"""Test-bed → (module, function) of what shows how it is done."""
FAMILIES: dict[str, tuple[str, str]] = {"gym/PointMaze_": ("anypolicy.tasks.control.pointmaze", "demonstrations")}
"""How names of environments begin → (module, function), which takes the environment first."""


def demonstrator(spec: str, task: EnvironmentTask) -> Callable[..., list[Episode]]:
    """What shows how the task is done."""
    name = task.name.partition(":")[0]
    if name in DEMONSTRATORS:
        module, function = DEMONSTRATORS[name]
        return getattr(importlib.import_module(module), function)
    for prefix, (module, function) in FAMILIES.items():
        if name.startswith(prefix):
            return partial(getattr(importlib.import_module(module), function), task)
    known = [*DEMONSTRATORS, *(f"{prefix}…" for prefix in FAMILIES)]
    raise InputError("demos", spec, f"{name} has no scripted demonstrator, only {', '.join(known)}")


def scripted(spec: str, task: EnvironmentTask) -> list[Episode]:
    """Episodes of the task's own demonstrator, whose signature says the settings."""
    make, settings = demonstrator(spec, task), parse(spec.partition(":")[2])
    known = {p.name: p.annotation for p in inspect.signature(make, eval_str=True).parameters.values()}
    for key in settings:
        if key not in known:
            raise InputError(f"demos.{key}", settings[key], f"it has the settings {', '.join(known)}", choices=known)
    given = {key: fit(f"demos.{key}", value, known[key]) for key, value in settings.items()}
    if not given.get("episodes", 1) > 0 or not 0 <= given.get("bad", 0) <= 1:
        raise InputError("demos", spec, "use episodes above 0 and bad between 0 and 1")
    return make(**given)


def record(env: gymnasium.Env[Any, Any], controller: Callable[[np.ndarray], np.ndarray], seed: int | None) -> Episode:
    """One whole episode of a controller whose actions are in [−1, 1], as the environment's own are."""
    env = guarded(env)
    seen, actions, flags = [env.reset(seed=seed)[0]], list[np.ndarray](), list[tuple[float, float, float]]()
    over = False
    while not over:
        action = np.asarray(controller(seen[-1]), np.float32)
        observation, reward, terminated, truncated, _ = env.step(action.copy())
        seen.append(observation)
        actions.append(action)
        flags.append((float(reward), float(terminated), float(truncated)))
        over = terminated or truncated
    numbers = torch.tensor(flags).unbind(1)
    return Episode(torch.from_numpy(np.stack(seen)).float(), torch.from_numpy(np.stack(actions)), *numbers)
