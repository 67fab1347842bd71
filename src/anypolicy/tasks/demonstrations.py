"""Demonstrations by name: a file of recorded episodes, arrays in a .npz file, a Minari data set (its id, or its
folder), or `scripted` where the task has a demonstrator of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anypolicy.data.arrays import load_arrays
from anypolicy.data.demonstrations import FIELDS, Episode, check_choices, episodes_of, load_episodes
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.tasks.environments import UNSEEN, EnvironmentTask, Space
from anypolicy.tasks.scripted import scripted

ROUNDING = 1e-3
"""What an action may lie outside its range."""


def load_demonstrations(spec: str, task: EnvironmentTask) -> list[Episode]:
    """Episodes whose shapes are those of the task."""
    kind = Path(spec).suffix if Path(spec).is_file() else spec.partition(":")[0]
    read = {".safetensors": lambda: load_episodes(spec), ".npz": lambda: arrays(spec, task.space),
            "scripted": lambda: scripted(spec, task)}  # fmt: skip
    episodes = read.get(kind, lambda: minari(spec, task.space))()
    if not episodes:
        raise InputError("demos", spec, "it holds no episode")
    for i, e in enumerate(episodes):
        wrong = fault(e, task.space)
        if wrong is not None:
            raise InputError("demos", spec, f"episode {i} {wrong}")
        if task.space.discrete:
            check_choices(e.action, task.space.actions, f"episode {i}, ")
    return episodes


def arrays(path: str, space: Space) -> list[Episode]:
    """Transitions in the order they happened, one array a field; actions of a box in the environment's own numbers."""
    found = load_arrays(path, (*FIELDS, "next_observation"))
    n = found["reward"].size
    if not n:
        raise InputError("data[reward]", found["reward"].shape, "it holds no transition")
    width = {"observation": space.observations, "next_observation": space.observations, "action": space.action_width}
    columns: dict[str, Tensor] = {}
    for name, array in found.items():
        if array.shape[:1] != (n,) or array.size != n * width.get(name, 1):
            raise InputError(f"data[{name}]", array.shape, f"its shape must be {(n, width.get(name, 1))}")
        value = torch.from_numpy(array).float()
        columns[name] = value.reshape(n, -1) if name in width else value.reshape(n)
    if not space.discrete:
        columns["action"] = space.unit(columns["action"]).clamp(-1, 1)
    return episodes_of(Transitions(**columns, discount=torch.ones(n)))


def fault(e: Episode, space: Space) -> str | None:
    """What makes an episode unusable in an environment of these sizes, if anything does."""
    wanted, found = (space.observations, space.action_width), (e.observation.shape[1], e.action.shape[1])
    if found != wanted:
        return f"has {found[0]} observations and {found[1]} actions, the task has {wanted}"
    if not len(e.reward):
        return "has no step"
    if not all(getattr(e, name).isfinite().all() for name in ("observation", "action", "reward")):
        return "holds a number that is not finite"
    if not space.discrete and float(e.action.abs().max()) > 1 + ROUNDING:
        return f"holds an action of {float(e.action.abs().max()):g}: actions are kept in [−1, 1], whatever the box"
    return None


def minari(spec: str, space: Space) -> list[Episode]:
    """Episodes of a Minari data set, actions scaled to [−1, 1]; what lay beyond the box is what the box made of it."""
    try:
        from minari import MinariDataset
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise InputError("demos", spec, "install Minari: pip install 'anypolicy[control]'") from error
    folder = Path(spec) if (Path(spec) / "data").is_dir() else get_dataset_path(spec)
    try:
        check_spaces(spec, folder / "data" / "metadata.json")
        data = MinariDataset(folder / "data")
    except InputError:
        raise
    except Exception as error:
        raise InputError("demos", spec, f"it is no file of episodes and no Minari data set here ({error})") from error
    return [episode(x, space) for x in data.iterate_episodes()]


def check_spaces(spec: str, metadata: Path) -> None:
    """Refuse a data set that does not say its spaces: Minari would import and make whatever its metadata call the
    environment, to ask it for them."""
    known: dict[str, Any] = json.loads(metadata.read_text())
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
            e.action[:, 0].long().numpy()
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


def episode(x: Any, space: Space) -> Episode:
    """Minari's record of one episode."""
    action = torch.from_numpy(np.asarray(x.actions)).float().reshape(len(x.rewards), -1)
    if not space.discrete:
        action = space.unit(action).clamp(-1, 1)
    numbers = [torch.from_numpy(np.asarray(v)).float() for v in (x.rewards, x.terminations, x.truncations)]
    return Episode(flat_observations(x.observations), action, *numbers)


def flat_observations(x: Any) -> Tensor:
    """(steps+1, n): parts of a goal observation by name, as Gymnasium flattens them."""
    if isinstance(x, dict):
        return torch.cat([flat_observations(x[k]) for k in sorted(x) if k != UNSEEN], 1)
    value = torch.from_numpy(np.asarray(x)).float()
    return value.reshape(len(value), -1)
