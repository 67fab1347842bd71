"""Environments by name: gym/<id> for anything registered with Gymnasium, and the test-beds of the control papers."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation, TransformObservation, TransformReward

from anypolicy.errors import InputError
from anypolicy.tasks.load import fit, parse

PLUGINS = {"minigrid": "minigrid", "gymnasium-robotics": "gymnasium_robotics"}
"""Packages that register environments when they are imported."""
TESTBEDS: dict[str, tuple[str, str]] = {
    "two-step-tree": ("anypolicy.tasks.sampling", "two_step_tree"),
    "grid": ("anypolicy.tasks.sampling", "grid"),
}
"""Name → (module, function) of environments of our own."""
UNSEEN = "achieved_goal"
"""The part of a goal observation that the rest of it already says."""


@dataclass(frozen=True)
class Space:
    """Shapes that a controller needs: numbers in an observation, and in an action (a box, each in [−1, 1], which is
    scaled to `low` … `high`) or, if `discrete`, choices."""

    observations: int
    actions: int
    discrete: bool
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def action_width(self) -> int:
        """Columns of a stored action."""
        return 1 if self.discrete else self.actions


@dataclass(frozen=True)
class EnvironmentTask:
    """A named environment: how to make one copy, its spaces, its longest episode if there is a limit."""

    name: str
    make: Callable[..., gymnasium.Env[Any, Any]]
    space: Space
    horizon: int | None
    suggested: dict[str, Any] = field(default_factory=dict[str, Any])

    def vector(self, n: int) -> SyncVectorEnv:
        """n copies, stepped together in this process."""
        return SyncVectorEnv([self.make] * n, autoreset_mode=AutoresetMode.SAME_STEP)


def load_environment(spec: str) -> EnvironmentTask:
    """`gym/HalfCheetah-v5`, `gym/Pendulum-v1:reward_scale=0.1`: settings of ours are `reward_scale`, `max_steps`; the
    others go to the environment. Raises InputError for what no controller here can learn."""
    name, _, arguments = spec.partition(":")
    settings = parse(arguments)
    if name in TESTBEDS:
        module, function = TESTBEDS[name]
        builder = getattr(importlib.import_module(module), function)
        make, settings = testbed(name, builder, settings)
    elif name.startswith("gym/"):
        make = registered(name.removeprefix("gym/"), settings)
    else:
        known = [*TESTBEDS, "gym/…"]
        raise InputError("task", spec, f"a controller learns in {', '.join(known)}", choices=known)
    try:
        env = make()
    except InputError:
        raise
    except Exception as error:
        raise InputError("task", spec, f"it cannot be made: {type(error).__name__}: {error}") from error
    try:
        space = space_of(env, spec)
        suggested = dict(getattr(env.unwrapped, "suggested", {}))
        return EnvironmentTask(spec, make, space, horizon_of(env), suggested)
    finally:
        env.close()


def testbed(
    name: str, builder: Callable[..., Any], settings: dict[str, Any]
) -> tuple[Callable[..., gymnasium.Env[Any, Any]], dict[str, Any]]:
    """A test-bed with settings whose names and types its function's signature says."""
    known = {p.name: p.annotation for p in inspect.signature(builder, eval_str=True).parameters.values()}
    given: dict[str, Any] = {}
    for key, value in settings.items():
        if key in ("render_mode",) or key not in known:
            raise InputError(f"{name}.{key}", value, f"it has the settings {', '.join(known)}", choices=known)
        given[key] = fit(f"{name}.{key}", value, known[key])

    def make(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        more = {"render_mode": render_mode} if "render_mode" in known else {}
        return flat(builder(**given, **more))

    return make, given


def registered(name: str, settings: dict[str, Any]) -> Callable[..., gymnasium.Env[Any, Any]]:
    """An environment of Gymnasium's registry."""
    own = dict(settings)
    scale, steps = own.pop("reward_scale", None), own.pop("max_steps", None)
    factor: float | None = None if scale is None else fit("task.reward_scale", scale, float)
    steps = None if steps is None else fit("task.max_steps", steps, int)
    for module in PLUGINS.values():
        if name not in gymnasium.registry and importlib.util.find_spec(module) is not None:
            gymnasium.register_envs(importlib.import_module(module))
    if name not in gymnasium.registry:
        hint = "" if all(importlib.util.find_spec(m) for m in PLUGINS.values()) else \
            f" (some come with {', '.join(PLUGINS)}: pip install 'anypolicy[control]')"  # fmt: skip
        raise InputError("task", f"gym/{name}", f"Gymnasium has no such environment{hint}", choices=gymnasium.registry)

    def make(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        given = {"max_episode_steps": steps, "render_mode": render_mode}
        given = {k: v for k, v in given.items() if v is not None}
        env = gymnasium.make(name, disable_env_checker=True, **given, **own)
        if factor is not None:
            env = TransformReward(env, lambda r, factor=factor: factor * float(r))
        return flat(env)

    return make


def flat(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Observations as one vector: a goal environment's observation and desired goal, Minigrid's picture of codes."""
    space = env.observation_space
    if isinstance(space, Dict):
        if "mission" in space.spaces:
            image = space["image"]
            picture = lambda o: np.asarray(o["image"], np.float32) / 10  # noqa: E731
            env = TransformObservation(env, picture, Box(0, 1, image.shape, np.float32))
        elif UNSEEN in space.spaces:
            kept = {k: v for k, v in space.spaces.items() if k != UNSEEN}
            env = TransformObservation(env, lambda o: {k: o[k] for k in kept}, Dict(kept))
    if not (isinstance(env.observation_space, Box) and len(env.observation_space.shape) == 1):
        env = FlattenObservation(env)
    return env


def space_of(env: gymnasium.Env[Any, Any], spec: str) -> Space:
    """The sizes; refuses action and observation spaces that no controller here knows."""
    seen, acts = env.observation_space, env.action_space
    if not isinstance(seen, Box):
        raise InputError("task", spec, f"its observations are {seen}: they must flatten to a vector of numbers")
    width = int(np.prod(seen.shape))
    if isinstance(acts, Discrete):
        return Space(width, int(acts.n), True)
    if not isinstance(acts, Box) or len(acts.shape) != 1:
        raise InputError("task", spec, f"its actions are {acts}: use an environment with one box or discrete action")
    if not (np.isfinite(acts.low).all() and np.isfinite(acts.high).all()):
        raise InputError("task", spec, f"its actions are {acts}: they must be bounded (wrap it in RescaleAction)")
    return Space(width, int(acts.shape[0]), False, tuple(acts.low.tolist()), tuple(acts.high.tolist()))


def horizon_of(env: gymnasium.Env[Any, Any]) -> int | None:
    """The time limit of an episode."""
    limit = env.spec.max_episode_steps if env.spec is not None else None
    return limit if limit is not None else getattr(env.unwrapped, "horizon", None)
