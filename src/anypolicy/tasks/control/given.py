"""Environments that a program gives as they are: a function that makes one, a class, or one that can be made anew."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from anypolicy.errors import RAISED, InputError
from anypolicy.runs.objects import title_of

FORMS = "a name, a function that makes an environment (taking nothing, or render_mode), or a class of environments"
Make = Callable[[str | None], Any]
"""Makes one copy, given a render mode or None."""


def maker(task: Any) -> Make:
    """How copies are made, each of its own."""
    if isinstance(task, VectorEnv):
        raise InputError("task", task, "it is several environments in one: give a function that makes a single one, "
                         "and say with `envs` how many copies there are")  # fmt: skip
    build = anew(task) if isinstance(task, gymnasium.Env) else called(task)
    made = list[weakref.ref[Any]]()

    def make(render_mode: str | None) -> gymnasium.Env[Any, Any]:
        env = build(render_mode)
        if not isinstance(env, gymnasium.Env):
            raise InputError("task", env, f"{title_of(task)} must return a gymnasium.Env")
        made[:] = [known for known in made if known() is not None]
        if any(known() is env.unwrapped for known in made):
            raise InputError("task", title_of(task), "it returned the same environment twice: training and evaluation "
                             "need copies of their own, so make a new one in every call")  # fmt: skip
        made.append(weakref.ref(env.unwrapped))
        return env

    return make


def anew(env: gymnasium.Env[Any, Any]) -> Make:
    """Of an environment what its specification says: it and its wrappers as they were made, nothing of its state."""
    instead = "give a function that makes it"
    if env.spec is None:
        raise InputError("task", env, "it was not made by gymnasium.make, so that no copies can be made of it, and "
                         f"training and evaluation need their own: {instead}")  # fmt: skip
    spec = copy.deepcopy(env.spec)
    spec.kwargs.pop("render_mode", None)

    def make(render_mode: str | None) -> gymnasium.Env[Any, Any]:
        more: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        try:
            return gymnasium.make(spec, disable_env_checker=True, **more)
        except RAISED as error:
            told = f"it cannot be made anew from its specification ({type(error).__name__}: {error}): {instead}"
            raise InputError("task", spec.id, told) from error

    return make


def called(task: Any) -> Make:
    """A function or class, called with the render mode where it takes one and it is said."""
    if not callable(task):
        raise InputError("task", task, f"give {FORMS}")
    try:
        known = inspect.signature(task).parameters
    except (TypeError, ValueError):  # one that Python cannot look into
        known = {}
    needed = [
        p.name for p in known.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if more := [name for name in needed if name != "render_mode"]:
        raise InputError("task", title_of(task), f"it cannot be called without {', '.join(more)}: give {FORMS}")
    drawn = "render_mode" in known

    def make(render_mode: str | None) -> Any:
        return task(render_mode=render_mode) if drawn else task()

    return make
