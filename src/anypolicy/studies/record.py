"""What a trained controller does, as demonstrations for other methods."""

from __future__ import annotations

from pathlib import Path

from anypolicy.data.demonstrations import save_episodes
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError, checked
from anypolicy.families.control import trained
from anypolicy.loops.episodes import recorded
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.files import disk_errors, make_place
from anypolicy.runs.seeds import generator, number
from anypolicy.tasks.control.demonstrations import export_minari


@checked
def record(path: str | Path, *, episodes: int, out: str, explore: bool = False, trust: bool = False) -> int:
    """Act in `episodes` fresh episodes and write them as demonstrations: to a .safetensors file, or as a Minari data
    set if `out` is minari:NAME. The number of steps."""
    if episodes < 1:
        raise InputError("episodes", episodes, "use at least 1")
    if not out.startswith("minari:") and not out.endswith(".safetensors"):
        raise InputError("out", out, "name a .safetensors file, or minari:NAME")
    if out.endswith(".safetensors"):
        make_place(Path(out))
    with RunDirectory.open(path, lock=False) as run:
        p, learner = trained(run, trust=trust)
        task, seed = p.task.one_by_one(), p.settings.seed
        environments = Environments(task.vector(1), number(seed, "recording") % 2**31)
        rngs = [generator(seed, "recording", i) for i in range(episodes)]
        made = [recorded(learner, task, environments, rng, explore) for rng in rngs]
        environments.close()
    if out.startswith("minari:"):
        export_minari(out.removeprefix("minari:"), made, task)
    else:
        with disk_errors(Path(out)):
            save_episodes(out, made)
    return sum(len(e.reward) for e in made)
