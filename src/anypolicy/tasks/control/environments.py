"""Environments by name: gym/<id> for anything registered with Gymnasium, and the test-beds of the control papers."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit, TransformAction, TransformReward
from torch import Tensor

from anypolicy.engines.guard import check_bounds, guarded
from anypolicy.engines.snapshots import layers
from anypolicy.errors import RAISED, InputError, check_values
from anypolicy.runs.objects import PREFIX, given
from anypolicy.runs.trust import TASK, enter_module
from anypolicy.tasks.arguments import fit, parse
from anypolicy.tasks.control.given import maker
from anypolicy.tasks.control.observations import Flat, Layout

PLUGINS = {"minigrid": "minigrid", "gymnasium-robotics": "gymnasium_robotics"}
"""Packages that register environments when they are imported."""
TESTBEDS: dict[str, tuple[str, str]] = {
    "two-step-tree": ("anypolicy.tasks.control.sampling_error", "two_step_tree"),
    "grid": ("anypolicy.tasks.control.sampling_error", "grid"),
    "linear-quadratic": ("anypolicy.tasks.control.linear_quadratic", "LinearQuadratic"),
    "combination-lock": ("anypolicy.tasks.control.combination_lock", "combination_lock"),
    "back-and-forth": ("anypolicy.tasks.control.back_and_forth", "back_and_forth"),
    "tip": ("anypolicy.tasks.control.tip", "tip"),
    "wall": ("anypolicy.tasks.control.wall", "wall"),
    "reacher-sparse": ("anypolicy.tasks.control.reacher_sparse", "reacher_sparse"),
    "pointmaze-sparse": ("anypolicy.tasks.control.pointmaze_sparse", "pointmaze_sparse"),
    "fetchreach-sparse": ("anypolicy.tasks.control.fetchreach_sparse", "fetchreach_sparse"),
}
"""Name → (module, function) of environments of our own."""
FACTORED = "ppo-control, props, npg-igt or harpg"
"""Methods that make several choices at once."""
LIMIT = 1000
"""Steps after which an episode of Gymnasium's is cut where neither it nor the user says a limit."""


@dataclass(frozen=True)
class Space:
    """Shapes that a controller needs: numbers in an observation, and in an action (a box, each in [−1, 1], which is
    scaled to `low` … `high`) or, if `discrete`, choices (those of all `factors`). `steps` is the longest episode if
    observations end with the number of the step (0 before the first action), else None."""

    observations: int
    actions: int
    discrete: bool
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    steps: int | None = None
    """Steps of the longest episode, where the last number of an observation is the step."""
    images: tuple[tuple[int, int, int], ...] = ()
    """Height, width and channels of pictures: they come first in an observation, as numbers from 0 to 255."""
    factors: tuple[int, ...] = ()
    """How many choices each discrete action has, where several are made at once."""
    tasks: int = 1
    """How many tasks take turns in a world without resets: the last number of an observation says which."""

    @property
    def pixels(self) -> int:
        """How many numbers of an observation are those of pictures."""
        return sum(h * w * c for h, w, c in self.images)

    @property
    def action_width(self) -> int:
        """Columns of a stored action."""
        return (len(self.factors) or 1) if self.discrete else self.actions

    def choices(self) -> int:
        """How many discrete actions there are; a box is refused, and so are several choices at once."""
        if self.factors:
            told = f"this method makes one choice: for several at once use {FACTORED}"
            raise InputError("task", self.said(), told)
        if not self.discrete:
            raise InputError(
                "task",
                f"a box of {self.actions} actions",
                "this method needs choices (discrete actions): for a box of actions use sac, td3 or ppo-control",
            )
        return self.actions

    def box(self) -> int:
        """How many numbers an action in a box has; discrete actions are refused."""
        if self.discrete:
            others = FACTORED if self.factors else "dqn or ppo-control"
            raise InputError("task", self.said(), f"this method needs a box of actions: for choices use {others}")
        return self.actions

    def said(self) -> str:
        """The actions in words."""
        if not self.discrete:
            return f"{self.actions} actions in [−1, 1]"
        if self.factors:
            return f"{len(self.factors)} discrete actions at once, of {', '.join(map(str, self.factors))} choices"
        return f"{self.actions} discrete actions"

    def native(self, unit: Tensor) -> Tensor:
        """Actions in the environment's units, of [−1, 1] and beyond."""
        low, high = unit.new_tensor(self.low), unit.new_tensor(self.high)
        return low + (unit + 1) / 2 * (high - low)

    def unit(self, native: Tensor) -> Tensor:
        """The inverse of `native`; 0 where there is no choice, since the box has no width."""
        low, high = native.new_tensor(self.low), native.new_tensor(self.high)
        wide = high > low
        return torch.where(wide, (native - low) / torch.where(wide, high - low, 1) * 2 - 1, 0)


@dataclass(frozen=True)
class EnvironmentTask:
    """A named environment: how to make one copy, its spaces, its longest episode if there is a limit."""

    name: str
    make: Callable[..., gymnasium.Env[Any, Any]]
    space: Space
    horizon: int | None
    single: EnvironmentTask | None = None
    """Where an action is a chunk of several: the same task, one action at a time."""
    assumed: bool = False
    """Whether the limit of its episodes is ours, since nobody gave one; `name` says it then."""

    def one_by_one(self) -> EnvironmentTask:
        """The task whose actions are single ones."""
        return self.single or self

    def vector(self, n: int) -> SyncVectorEnv:
        """n copies, stepped together in this process."""
        with making(self.name):
            return SyncVectorEnv([self.make] * n, autoreset_mode=AutoresetMode.SAME_STEP)


def load_environment(spec: str) -> EnvironmentTask:
    """`gym/HalfCheetah-v5`, `gym/my_envs:Mine-v0` (whose module is imported to register it, through the door of
    `runs/trust.py`), `gym/Pendulum-v1:reward_scale=0.1`: settings of ours are `reward_scale`, `max_steps` and
    `time` (true appends the step of the episode to the observation); the others go to the environment. Episodes
    without a limit get one. Raises InputError for what no controller here can learn."""
    check_values({"task": str}, {"task": spec})
    known = TASK.match(spec)
    name = known[0] if known else spec.partition(":")[0]
    arguments = spec[len(name) + 1 :]
    settings = parse(arguments)
    if name in TESTBEDS:
        module, function = TESTBEDS[name]
        builder = getattr(importlib.import_module(module), function)
        make, settings = testbed(name, builder, settings)
    elif name.startswith("gym/"):
        make = registered(name.removeprefix("gym/"), settings)
    elif name.startswith(PREFIX):
        make = from_python(name, settings)
    else:
        known = [*TESTBEDS, "gym/…"]
        raise InputError("task", spec, f"a controller learns in {', '.join(known)}", choices=known)
    with making(spec):
        env = make()
    try:
        space, horizon = space_of(env, spec), horizon_of(env)
    finally:
        with making(spec, "closed"):
            env.close()
    if name in TESTBEDS or horizon is not None:
        return EnvironmentTask(spec, make, space, horizon)
    return replace(load_environment(f"{spec}{',' if arguments else ':'}max_steps={LIMIT}"), assumed=True)


@contextmanager
def making(name: str, what: str = "made") -> Generator[None]:
    """Whatever an environment raises while it is made (or closed) is one error."""
    try:
        yield
    except InputError:
        raise
    except RAISED as error:
        raise InputError("task", name, f"it cannot be {what}: {type(error).__name__}: {error}") from error


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
    """An environment of Gymnasium's registry, or (MODULE:ID) one that a module enters there."""
    module, _, name = name.rpartition(":")
    if module:
        enter_module("task", module)
    own = dict(settings)
    scale, steps = own.pop("reward_scale", None), own.pop("max_steps", None)
    factor: float | None = None if scale is None else fit("task.reward_scale", scale, float)
    steps = None if steps is None else fit("task.max_steps", steps, int)
    if steps is not None and steps < 1:
        raise InputError("task.max_steps", steps, "use at least 1")
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
        if steps is None and horizon_of(env) is None and (limit := own_limit(env)) is not None:
            env = TimeLimit(env, limit)
        env = guarded(env)
        if factor is not None:
            env = TransformReward(env, lambda r, factor=factor: factor * float(r))
        return WithStep(flat(env)) if timed else flat(env)

    return make


def from_python(name: str, settings: dict[str, Any]) -> Callable[..., gymnasium.Env[Any, Any]]:
    """An environment that the program gave; `max_steps` is the only setting that its name can have."""
    if others := settings.keys() - {"max_steps"}:
        raise InputError(f"task.{min(others)}", settings[min(others)], f"{name} has its settings in Python")
    steps = fit("task.max_steps", settings["max_steps"], int) if settings else None
    build = maker(given("task", name))

    def make(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        env = build(render_mode)
        limit = steps or (own_limit(env) if horizon_of(env) is None else None)
        return flat(env if limit is None else TimeLimit(env, limit))

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
    with redirect_stdout(sys.stderr):
        gymnasium.register_envs(importlib.import_module(module))


def flat(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment behind a guard, its observations as one vector (`observations.py`). Choices count from 0,
    several at once are a vector of them; actions of a box of whole numbers are any numbers, and the nearest whole ones
    are done."""
    env = guarded(env)
    acts = env.action_space
    if isinstance(acts, Discrete) and acts.start:
        first = int(acts.start)
        env = TransformAction(env, lambda a: int(a) + first, Discrete(int(acts.n)))
    elif isinstance(acts, MultiDiscrete | MultiBinary):
        sizes, starts = (acts.nvec, acts.start) if isinstance(acts, MultiDiscrete) else (np.full(acts.shape, 2), 0)
        own = lambda a: (np.reshape(a, sizes.shape) + starts).astype(acts.dtype)  # noqa: E731
        env = TransformAction(env, own, MultiDiscrete(sizes.ravel()))
    elif isinstance(acts, Box) and acts.dtype.kind in "iu":
        check_bounds("task", acts)
        low, high = acts.low.astype(np.float64), acts.high.astype(np.float64)
        nearest = lambda a: np.clip(np.rint(a), low, high).astype(acts.dtype)  # noqa: E731
        env = TransformAction(env, nearest, Box(low, high, dtype=np.float64))
    return Flat(env)


def space_of(env: gymnasium.Env[Any, Any], spec: str) -> Space:
    """The sizes; refuses action and observation spaces that no controller here knows."""
    seen, acts, wrappers = env.observation_space, env.action_space, layers(env)
    if not isinstance(seen, Box):
        raise InputError("task", spec, f"its observations are {seen}: they must flatten to a vector of numbers")
    width = int(np.prod(seen.shape))
    images = next((layer.layout.images for layer in wrappers if isinstance(layer, Flat)), ())
    timed, others = any(isinstance(layer, WithStep) for layer in wrappers), spec.startswith(("gym/", PREFIX))
    tasks = 1 if others else max((getattr(layer, "tasks", 1) for layer in wrappers), default=1)
    more: dict[str, Any] = {"images": images, "tasks": tasks, "steps": horizon_of(env) if timed else None}
    if isinstance(acts, Discrete):
        return Space(width, int(acts.n), True, **more)
    if isinstance(acts, MultiDiscrete):
        return Space(width, int(acts.nvec.sum()), True, factors=tuple(acts.nvec.tolist()), **more)
    if not isinstance(acts, Box) or len(acts.shape) != 1:
        told = "use an environment with one box or discrete actions (Discrete, MultiDiscrete, MultiBinary)"
        raise InputError("task", spec, f"its actions are {acts}: {told}")
    check_bounds("task", acts)
    return Space(width, int(acts.shape[0]), False, tuple(acts.low.tolist()), tuple(acts.high.tolist()), **more)


def layout_of(task: EnvironmentTask) -> Layout:
    """How observations of the task's environment become vectors."""
    with making(task.name):
        env = task.make()
        env.close()
    [layout] = (layer.layout for layer in layers(env) if isinstance(layer, Flat))
    return layout


def horizon_of(env: gymnasium.Env[Any, Any]) -> int | None:
    """The time limit of an episode."""
    if env.spec is not None:
        return env.spec.max_episode_steps
    limits = [vars(layer)["_max_episode_steps"] for layer in layers(env) if isinstance(layer, TimeLimit)]
    return min(limits, default=getattr(env.unwrapped, "horizon", None))


def own_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """The limit that an environment keeps itself, under the names that are used for it."""
    found = (getattr(env.unwrapped, name, None) for name in ("max_steps", "horizon"))
    return next((int(x) for x in found if isinstance(x, int | np.integer) and x > 0), None)
