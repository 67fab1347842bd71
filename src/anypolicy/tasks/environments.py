"""Environments by name: gym/<id> for anything registered with Gymnasium, and the test-beds of the control papers."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, flatdim, flatten
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation, TransformAction, TransformObservation, TransformReward
from torch import Tensor

from anypolicy.engines.snapshots import layers
from anypolicy.errors import InputError
from anypolicy.tasks.load import fit, parse

PLUGINS = {"minigrid": "minigrid", "gymnasium-robotics": "gymnasium_robotics"}
"""Packages that register environments when they are imported."""
TESTBEDS: dict[str, tuple[str, str]] = {
    "two-step-tree": ("anypolicy.tasks.sampling", "two_step_tree"),
    "grid": ("anypolicy.tasks.sampling", "grid"),
    "linear-quadratic": ("anypolicy.tasks.linear_quadratic", "LinearQuadratic"),
    "combination-lock": ("anypolicy.tasks.combination_lock", "combination_lock"),
    "back-and-forth": ("anypolicy.tasks.back_and_forth", "back_and_forth"),
    "tip": ("anypolicy.tasks.tip", "tip"),
    "wall": ("anypolicy.tasks.wall", "wall"),
    "reacher-sparse": ("anypolicy.tasks.reacher_sparse", "reacher_sparse"),
    "pointmaze-sparse": ("anypolicy.tasks.pointmaze_sparse", "pointmaze_sparse"),
    "fetchreach-sparse": ("anypolicy.tasks.fetchreach_sparse", "fetchreach_sparse"),
}
"""Name → (module, function) of environments of our own."""
UNSEEN = "achieved_goal"
"""The part of a goal observation that the rest of it already says."""


@dataclass(frozen=True)
class Space:
    """Shapes that a controller needs: numbers in an observation, and in an action (a box, each in [−1, 1], which is
    scaled to `low` … `high`) or, if `discrete`, choices. `steps` is the longest episode if observations end with the
    number of the step (0 before the first action), else None."""

    observations: int
    actions: int
    discrete: bool
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    steps: int | None = None
    """Steps of the longest episode, where the last number of an observation is the step."""
    images: tuple[tuple[int, int, int], ...] = ()
    """Height, width and channels of pictures: they come first in an observation, as numbers from 0 to 255."""
    tasks: int = 1
    """How many tasks take turns in a world without resets: the last number of an observation says which."""

    @property
    def pixels(self) -> int:
        """How many numbers of an observation are those of pictures."""
        return sum(h * w * c for h, w, c in self.images)

    @property
    def action_width(self) -> int:
        """Columns of a stored action."""
        return 1 if self.discrete else self.actions

    def choices(self) -> int:
        """How many discrete actions there are; a box is refused."""
        if not self.discrete:
            raise InputError("task", f"a box of {self.actions} actions", "this method needs choices (discrete actions)")
        return self.actions

    def native(self, unit: Tensor) -> Tensor:
        """Actions in the environment's units, of [−1, 1] and beyond."""
        low, high = unit.new_tensor(self.low), unit.new_tensor(self.high)
        return low + (unit + 1) / 2 * (high - low)

    def unit(self, native: Tensor) -> Tensor:
        """The inverse of `native`."""
        low, high = native.new_tensor(self.low), native.new_tensor(self.high)
        return (native - low) / (high - low) * 2 - 1


@dataclass(frozen=True)
class EnvironmentTask:
    """A named environment: how to make one copy, its spaces, its longest episode if there is a limit."""

    name: str
    make: Callable[..., gymnasium.Env[Any, Any]]
    space: Space
    horizon: int | None
    suggested: dict[str, Any] = field(default_factory=dict[str, Any])
    single: EnvironmentTask | None = None
    """Where an action is a chunk of several: the same task, one action at a time."""

    def one_by_one(self) -> EnvironmentTask:
        """The task whose actions are single ones."""
        return self.single or self

    def vector(self, n: int) -> SyncVectorEnv:
        """n copies, stepped together in this process."""
        return SyncVectorEnv([self.make] * n, autoreset_mode=AutoresetMode.SAME_STEP)


def load_environment(spec: str) -> EnvironmentTask:
    """`gym/HalfCheetah-v5`, `gym/Pendulum-v1:reward_scale=0.1`: settings of ours are `reward_scale`, `max_steps` and
    `time` (true appends the step of the episode to the observation); the others go to the environment. Raises
    InputError for what no controller here can learn."""
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
    timed = fit("task.time", own.pop("time", False), bool)
    for package, module in PLUGINS.items():
        if name not in gymnasium.registry and importlib.util.find_spec(module) is not None:
            plugin(package)
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
        return WithStep(flat(env)) if timed else flat(env)

    return make


class WithStep(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Appends the number of the step to an observation vector: what to do depends on it where episodes have an end."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        box = env.observation_space
        assert isinstance(box, Box)
        low, high = np.append(box.low, 0).astype(np.float32), np.append(box.high, np.inf).astype(np.float32)
        self.observation_space, self._elapsed_steps = Box(low, high, dtype=np.float32), 0

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**settings)
        self._elapsed_steps = 0
        return self.seen(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._elapsed_steps += 1
        return self.seen(observation), reward, terminated, truncated, info

    def seen(self, observation: Any) -> np.ndarray:
        return np.append(observation, self._elapsed_steps).astype(np.float32)


def plugin(package: str) -> None:
    """Let a package register its environments; what it prints is no output of ours."""
    module = PLUGINS[package]
    if importlib.util.find_spec(module) is None:
        raise InputError("task", package, "install it: pip install 'anypolicy[control]'")
    with contextlib.redirect_stdout(sys.stderr):
        gymnasium.register_envs(importlib.import_module(module))


def flat(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Observations as one vector: pictures and what is seen beside them, a goal environment's observation and desired
    goal, Minigrid's picture of codes. Choices count from 0."""
    acts = env.action_space
    if isinstance(acts, Discrete) and acts.start:
        first = int(acts.start)
        env = TransformAction(env, lambda a: int(a) + first, Discrete(int(acts.n)))
    space = env.observation_space
    parts = space.spaces if isinstance(space, Dict) else {"": space}
    if "mission" not in parts and any(is_picture(s) for s in parts.values()):
        return Pictures(env)
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


def is_picture(space: gymnasium.Space[Any]) -> bool:
    """Bytes of height × width × 1, 3 or 4 channels (or a few such pictures one behind the other)."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] <= 12


class Pictures(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Pictures first, then all other parts in the order of their names. `images` are their shapes."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        space = env.observation_space
        self.parts: dict[str, gymnasium.Space[Any]] = dict(space.spaces) if isinstance(space, Dict) else {"": space}
        self.order = sorted(self.parts, key=lambda k: (not is_picture(self.parts[k]), k))
        shapes = [self.parts[k].shape for k in self.order if is_picture(self.parts[k])]
        self.images: tuple[tuple[int, ...], ...] = tuple(tuple(x or ()) for x in shapes)
        sizes = [flatdim(self.parts[k]) for k in self.order]
        low, high = np.full(sum(sizes), -np.inf, np.float32), np.full(sum(sizes), np.inf, np.float32)
        pixels = sum(sizes[: len(self.images)])
        low[:pixels], high[:pixels] = 0, 255
        self.observation_space = Box(low, high, dtype=np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        parts = observation if isinstance(observation, dict) else {"": observation}
        flattened = [np.asarray(flatten(self.parts[k], parts[k]), np.float32) for k in self.order]
        return np.concatenate(flattened)


def space_of(env: gymnasium.Env[Any, Any], spec: str) -> Space:
    """The sizes; refuses action and observation spaces that no controller here knows."""
    seen, acts = env.observation_space, env.action_space
    if not isinstance(seen, Box):
        raise InputError("task", spec, f"its observations are {seen}: they must flatten to a vector of numbers")
    width = int(np.prod(seen.shape))
    timed = any(isinstance(layer, WithStep) for layer in layers(env))
    more: dict[str, Any] = {"images": getattr(env, "images", ()), "tasks": getattr(env, "tasks", 1),
                            "steps": horizon_of(env) if timed else None}  # fmt: skip
    if isinstance(acts, Discrete):
        return Space(width, int(acts.n), True, **more)
    if not isinstance(acts, Box) or len(acts.shape) != 1:
        raise InputError("task", spec, f"its actions are {acts}: use an environment with one box or discrete action")
    if not (np.isfinite(acts.low).all() and np.isfinite(acts.high).all()):
        raise InputError("task", spec, f"its actions are {acts}: they must be bounded (wrap it in RescaleAction)")
    return Space(width, int(acts.shape[0]), False, tuple(acts.low.tolist()), tuple(acts.high.tolist()), **more)


def horizon_of(env: gymnasium.Env[Any, Any]) -> int | None:
    """The time limit of an episode."""
    limit = env.spec.max_episode_steps if env.spec is not None else None
    return limit if limit is not None else getattr(env.unwrapped, "horizon", None)
