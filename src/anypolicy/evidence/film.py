"""A film of one episode."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np

from anypolicy.engines.environments import Environments
from anypolicy.errors import RAISED, InputError
from anypolicy.learners.base import Learner, acting
from anypolicy.loops.control import parts_of
from anypolicy.runs.files import disk_errors, make_place
from anypolicy.runs.seeds import generator
from anypolicy.tasks.control.environments import EnvironmentTask

LONGEST = 5000
"""Frames of a film of an episode without a time limit."""


def film(learner: Learner, task: EnvironmentTask, path: Path, seed: int) -> int:
    """Write the first episode as .mp4 or .gif, every step of it a frame; the number of frames."""
    if path.suffix not in (".mp4", ".gif"):
        raise InputError("video", str(path), "name a .mp4 or .gif file")
    make_place(path)
    for module in ("imageio", "imageio_ffmpeg") if path.suffix == ".mp4" else ("imageio",):
        if importlib.util.find_spec(module) is None:
            raise InputError("video", str(path), "install imageio: pip install 'anypolicy[control]'")
    import imageio.v3 as imageio
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        make = task.one_by_one().make
        vector = SyncVectorEnv([lambda: make(render_mode="rgb_array")], autoreset_mode=AutoresetMode.SAME_STEP)
    except RAISED as error:
        raise InputError("video", str(path), f"{task.name} cannot be filmed here: {error}") from error
    frames: list[np.ndarray] = []
    try:
        environments = Environments(vector, seed)
        rng, act, over = generator(seed, "film"), acting(learner, explore=False), False
        while not over and len(frames) < LONGEST:
            for action in parts_of(act(environments.current, rng), task):
                frames.append(np.array(vector.envs[0].render()))
                environments.step(action)
                over = bool(environments.take().returns)
                if over:
                    break
    except InputError:
        raise
    except NotImplementedError as error:
        raise InputError("video", str(path), f"{task.name} draws no pictures: it cannot be filmed") from error
    except RAISED as error:
        raise InputError(
            "video", str(path), f"no renderer works here ({error}): set MUJOCO_GL=osmesa or egl"
        ) from error
    finally:
        vector.close()
    rate = int(vector.envs[0].metadata.get("render_fps") or 30)
    with disk_errors(path):
        if path.suffix == ".mp4":
            imageio.imwrite(path, frames, fps=rate, macro_block_size=2)
        else:
            imageio.imwrite(path, frames, duration=1000 / rate, loop=0)
    return len(frames)
