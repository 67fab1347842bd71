"""Demonstrations by name: a file of recorded episodes, arrays in a .npz file, a Minari data set (its id, or its
folder), or `scripted` where the task has a demonstrator of its own."""

from __future__ import annotations

from os.path import isdir, isfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from anypolicy.data.arrays import load_arrays, single
from anypolicy.data.demonstrations import FIELDS, Episode, check_choices, check_flags, episodes_of, load_episodes
from anypolicy.data.readers import first_line, json_object
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.tasks.control.environments import EnvironmentTask, Space, layout_of
from anypolicy.tasks.control.observations import Layout
from anypolicy.tasks.control.scripted import scripted

ROUNDING = 1e-3
"""What an action may lie outside its range."""


def load_demonstrations(spec: str, task: EnvironmentTask) -> list[Episode]:
    """Episodes whose shapes are those of the task."""
    if task.space.factors:
        told = f"{task.name} has {task.space.said()}, which nothing here learns from demonstrations: leave it out"
        raise InputError("demos", spec, told)
    kind = Path(spec).suffix if isfile(spec) else spec.partition(":")[0]
    read = {".safetensors": lambda: load_episodes(spec), ".npz": lambda: arrays(spec, task),
            "scripted": lambda: scripted(spec, task)}  # fmt: skip
    episodes = read.get(kind, lambda: minari(spec, task))()
    if not episodes:
        raise InputError("demos", spec, "it holds no episode")
    for i, e in enumerate(episodes):
        for name in ("terminated", "truncated"):
            check_flags(getattr(e, name), name, f"episode {i}, ")
        wrong = fault(e, task.space)
        if wrong is not None:
            raise InputError("demos", spec, f"episode {i} {wrong}")
        if task.space.discrete:
            check_choices(e.action, task.space.actions, f"episode {i}, ")
    return episodes


def arrays(path: str, task: EnvironmentTask) -> list[Episode]:
    """Transitions in the order they happened, one array a field: observations as vectors, or with one part as the
    environment has them; actions of a box in the environment's own numbers."""
    found, space = load_arrays(path, (*FIELDS, "next_observation")), task.space
    n = found["reward"].size
    if not n:
        raise InputError("data[reward]", found["reward"].shape, "it holds no transition")
    columns: dict[str, Tensor] = {}
    for name, array in found.items():
        wide = name in ("observation", "next_observation")
        width = space.observations if wide else space.action_width if name == "action" else 1
        if array.shape != (n, width) and not (width == 1 and array.shape == (n,)):
            if not wide or (rows := as_shown(array, layout_of(task), n)) is None:
                raise InputError(f"data[{name}]", array.shape, f"its shape must be {(n, width)}")
            array = rows
        value = torch.from_numpy(array).float()
        columns[name] = value.reshape(n, -1) if wide or name == "action" else value.reshape(n)
        if name in ("terminated", "truncated"):
            check_flags(columns[name], f"data[{name}]")
    if not space.discrete:
        columns["action"] = space.unit(columns["action"]).clamp(-1, 1)
    return episodes_of(Transitions(**columns, discount=torch.ones(n)))


def as_shown(array: np.ndarray, layout: Layout, n: int) -> np.ndarray | None:
    """Observations as an environment shows them, as vectors; None where the shape is another."""
    [part, *others] = layout.parts
    if others or part.path or array.shape != (n, *(part.space.shape or ())):
        return None
    return layout.many(array)


def fault(e: Episode, space: Space) -> str | None:
    """What makes an episode unusable in an environment of these sizes, if anything does."""
    wanted, found = (space.observations, space.action_width), (e.observation.shape[1], e.action.shape[1])
    if found != wanted:
        return f"has {found[0]} observations and {found[1]} actions, the task has {wanted}"
    if not len(e.reward):
        return "has no step"
    if not all(getattr(e, name).isfinite().all() for name in ("observation", "action", "reward")):
        return "holds a number that is not finite"
    over = (e.terminated + e.truncated)[:-1].nonzero()
    if len(over):
        return f"has ended in row {int(over[0])} and goes on: cut it there"
    if not space.discrete and float(e.action.abs().max()) > 1 + ROUNDING:
        return f"holds an action of {float(e.action.abs().max()):g}: actions are kept in [−1, 1], whatever the box"
    return None


def minari(spec: str, task: EnvironmentTask) -> list[Episode]:
    """Episodes of a Minari data set: observations as those of the task's environment become vectors (or as vectors,
    where they were recorded so), actions scaled to [−1, 1]; what lay beyond the box is what the box made of it."""
    try:
        from minari import MinariDataset
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise InputError("demos", spec, "install Minari: pip install 'anypolicy[control]'") from error
    try:
        folder = Path(spec) if isdir(Path(spec) / "data") else get_dataset_path(spec)
        if not isfile(folder / "data" / "metadata.json"):
            raise FileNotFoundError(folder)
        check_spaces(spec, folder / "data" / "metadata.json")
        data = MinariDataset(folder / "data")
    except InputError:
        raise
    except Exception as error:
        raise InputError("demos", spec, f"it is no file of episodes and no Minari data set here ({error})") from error
    seen, layout, first = data.observation_space, layout_of(task), first_choice(spec, data.action_space, task.space)
    vectors = isinstance(seen, Box) and layout.writes(seen)
    if not vectors and not layout.fits(seen):
        wanted = ", ".join(f"{'.'.join(map(str, p.path)) or 'it'}: {p.space}" for p in layout.parts)
        raise InputError("demos", spec, f"its observations are {seen}, those of {task.name} are {wanted}")
    made = list[Episode]()
    try:
        for x in data.iterate_episodes():
            made.append(episode(x, task.space, None if vectors else layout, first))
    except Exception as error:  # what Minari and h5py raise has no common type
        raise InputError("demos", spec, f"episode {len(made)} cannot be read ({first_line(error)}): record it again, "
                         "or take it out") from error  # fmt: skip
    return made


def first_choice(spec: str, acts: Any, space: Space) -> int:
    """Which number a data set begins to count choices with (0 for a box). Refuses actions that are not the task's."""
    if space.discrete:
        if isinstance(acts, Discrete) and acts.n == space.actions:
            return int(acts.start)
        raise InputError("demos", spec, f"its actions are {acts}, the task has {space.actions} choices")
    same = isinstance(acts, Box) and acts.shape == (space.actions,)
    if same:
        ends = ((acts.low, acts.bounded_below, space.low), (acts.high, acts.bounded_above, space.high))
        same = all(np.allclose(theirs[known], np.asarray(ours)[known]) for theirs, known, ours in ends)
    if not same:
        raise InputError("demos", spec, f"its actions are {acts}, the task's are {space.actions} numbers from "
                         f"{space.low} to {space.high}")  # fmt: skip
    return 0


def check_spaces(spec: str, metadata: Path) -> None:
    """Refuse a data set that does not say its spaces: Minari would import and make whatever its metadata call the
    environment, to ask it for them."""
    known = json_object(metadata, "demos", "name a Minari data set of this machine")
    if missing := [name for name in ("observation_space", "action_space") if not isinstance(known.get(name), str)]:
        allowed = f"its metadata.json has no {' and no '.join(missing)}: write it again with them (`anypolicy record`)"
        raise InputError("demos", spec, allowed)


def export_minari(name: str, episodes: list[Episode], task: EnvironmentTask) -> None:
    """Write episodes as a Minari data set, actions in the environment's own numbers."""
    try:
        import minari as library
        from minari.data_collector import EpisodeBuffer
    except ImportError as error:
        raise InputError("out", name, "install Minari: pip install 'anypolicy[control]'") from error
    env = task.make()
    buffers: list[Any] = []
    for i, e in enumerate(episodes):
        action: Any = (
            e.action.long().numpy()
            if task.space.factors
            else e.action[:, 0].long().numpy()
            if task.space.discrete
            else (task.space.native(e.action.double()).float().numpy())
        )
        buffers.append(
            EpisodeBuffer(
                id=i, observations=list(e.observation.numpy()), actions=list(action), rewards=e.reward.tolist(),
                terminations=e.terminated.bool().tolist(), truncations=e.truncated.bool().tolist(),
            )
        )  # fmt: skip
    try:
        library.create_dataset_from_buffers(
            name, buffers, action_space=env.action_space, observation_space=env.observation_space
        )
    except ValueError as error:
        raise InputError("out", f"minari:{name}", f"Minari refuses it: {error}") from error
    finally:
        env.close()


def episode(x: Any, space: Space, layout: Layout | None, first: int) -> Episode:
    """Minari's record of one episode. Raises ValueError where its fields have not the lengths that belong together."""
    n = len(x.rewards)
    action = column("actions", x.actions, (n,) if space.discrete else (n, space.actions)).reshape(n, space.action_width)
    action = action - first if space.discrete else space.unit(action).clamp(-1, 1)
    numbers = [column(k, getattr(x, k), (n,)) for k in ("rewards", "terminations", "truncations")]
    seen = single("demos", x.observations) if layout is None else layout.many(x.observations)
    return Episode(column("observations", seen, (n + 1, space.observations)), action, *numbers)


def column(name: str, values: Any, shape: tuple[int, ...]) -> Tensor:
    """Numbers of this shape."""
    x = np.asarray(values)
    if x.shape != shape or x.dtype.kind not in "biuf":
        raise ValueError(f"{name} are {x.dtype} of the shape {x.shape}, and should be numbers of {shape}")
    return torch.from_numpy(x).float()
