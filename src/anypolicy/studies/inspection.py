"""What is an offline data set good for? Its place on the plane of TQ and SACo, and which learners do well there.

    anypolicy inspect cartpole                                        a folder that make-datasets wrote
    anypolicy inspect log.safetensors --task gym/CartPole-v1 --reference replay.safetensors --g-max 500

Measures and regions are those of arXiv 2111.04714; how well each method does in a region stands on its card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anypolicy import catalogue
from anypolicy.data.demonstrations import Episode, check_choices, episodes_of
from anypolicy.data.readers import json_object
from anypolicy.data.replay import Replay
from anypolicy.errors import InputError, checked
from anypolicy.evidence.plots import save_plane
from anypolicy.families.control import learner_for, plan_from
from anypolicy.learners.recipe import OffPolicyRecipe
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.coverage import (
    discounted_return,
    normalised_entropy,
    occupancy_entropy,
    pair_counts,
    reward_sparsity,
    saco,
    tq,
)
from anypolicy.policies.control.actors import CategoricalActor
from anypolicy.runs.checkpoint import latest_checkpoint, load_checkpoint
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.files import disk_errors, make_place
from anypolicy.runs.progress import counting
from anypolicy.runs.recipes import put_back, stated
from anypolicy.runs.seeds import generator
from anypolicy.runs.trust import allow, check
from anypolicy.studies.datasets import KINDS, random_return
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import EnvironmentTask, load_environment

HIGH_TQ, HIGH_SACO, LOW_SACO = 0.8, 0.8, 0.4
REGIONS = {
    "return": f"TQ > {HIGH_TQ}", "coverage": f"SACo > {HIGH_SACO}", "narrow": f"SACo < {LOW_SACO}", "all": "anywhere",
}  # fmt: skip
"""Region of the plane, as cards name it → where it is."""
NEAR = 13.0
"""Per cent of performance: methods this near to a region's best are recommended there."""


@dataclass(frozen=True)
class DatasetReport:
    """The measures of a data set. `u` are its distinct state-action pairs, `u_ref` the reference's, `entropy` is
    that of the pairs in nats; means are over finished episodes; `bc_entropy` is None where actions are no choices."""

    tq: float
    saco: float
    lsaco: float
    u: int
    u_ref: int
    entropy: float
    transitions: int
    n_episodes: int
    mean_return: float
    mean_length: float
    reward_sparsity: float
    bc_entropy: float | None


@checked
def dataset_report(
    dataset: list[Episode], ref: list[Episode], g_min: float, g_max: float, *, choices: int | None, gamma: float = 1.0,
    bins: int | None = 100, seed: int = 0,
) -> DatasetReport:  # fmt: skip
    """All measures. `choices` is how many discrete actions the task has (None: a box), `bins` the edges on every axis
    between the reference's limits (None: exact observations)."""
    if not 0 < gamma <= 1:
        raise InputError("gamma", gamma, "use a number above 0, at most 1")
    finished = [e for e in dataset if e.finished]
    rewards = [e.reward.double().numpy() for e in finished]
    quality = tq(returns := [discounted_return(r, gamma) for r in rewards], g_min, g_max)
    seen, acted = table(dataset, choices)
    known, known_acted = table(ref, choices)
    limits = None if bins is None else np.stack([known.min(0), known.max(0)], 1).astype(np.float64)
    edges = 100 if bins is None else bins
    counts, reference = (pair_counts(o, a, limits, edges) for o, a in ((seen, acted), (known, known_acted)))
    u, u_ref = len(counts), len(reference)
    return DatasetReport(
        tq=quality, saco=saco(u, u_ref), lsaco=saco(u, u_ref, log=True), u=u, u_ref=u_ref,
        entropy=occupancy_entropy(counts), transitions=len(seen), n_episodes=len(finished),
        mean_return=float(np.mean(returns)), mean_length=float(np.mean([len(r) for r in rewards])),
        reward_sparsity=reward_sparsity(rewards),
        bc_entropy=None if choices is None else cloned_entropy(dataset, choices, seed),
    )  # fmt: skip


def table(episodes: list[Episode], choices: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Observations acted on and the actions. Those of a box stand beside the observations: they are binned too."""
    seen = torch.cat([e.observation[:-1] for e in episodes])
    acted = torch.cat([e.action for e in episodes])
    if choices is None:
        return torch.cat([seen, acted], 1).numpy(), np.zeros(len(seen))
    check_choices(acted, choices)
    return seen.numpy(), acted[:, 0].numpy()


def cloned_entropy(dataset: list[Episode], choices: int, seed: int, epochs: int = 10, batch: int = 64) -> float:
    """Normalised entropy of a softmax that was fitted to the data: three layers of 256, Adam 1e-3."""
    seen = torch.cat([e.observation[:-1] for e in dataset])
    acted = torch.cat([e.action for e in dataset])
    rng = generator(seed, "cloned entropy")
    actor = CategoricalActor(seen.shape[1], choices, (256, 256, 256), rng, activation="selu", init="kaiming",
                             last_gain=1.0)  # fmt: skip
    optimiser = adam(actor.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(seen), generator=rng).split(batch):
            apply(optimiser, -actor(seen[rows]).logp(acted[rows]).mean())
    with torch.no_grad():
        return normalised_entropy(actor(seen).log_probabilities.numpy())


def regions_of(report: DatasetReport) -> list[str]:
    """The regions that a data set lies in."""
    found = ["return"] * (report.tq > HIGH_TQ) + ["coverage"] * (report.saco > HIGH_SACO)
    return found or (["narrow"] if report.saco < LOW_SACO else ["all"])


def recommend(report: DatasetReport) -> list[tuple[str, str]]:
    """Methods whose cards have the best numbers where the data set lies (the mean over regions, if there are two), best
    first, each with the reason."""
    where = regions_of(report)
    cards = {slug: m.card.regions for slug, m in catalogue.methods("control").items() if m.card.regions}
    scores = {slug: float(np.mean([found[r] for r in where])) for slug, found in cards.items()}
    top = max(scores.values())
    good = sorted((slug for slug in scores if scores[slug] >= top - NEAR), key=lambda slug: -scores[slug])
    return [(slug, ", ".join(f"{cards[slug][r]:.0f} % where {REGIONS[r]}" for r in where)) for slug in good]


# --- data sets by name -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class References:
    """What the measures are relative to, as far as it is known: from options, or from a datasets.json."""

    task: str | None = None
    reference: str | None = None
    g_min: float | None = None
    g_max: float | None = None


def known_of(spec: str) -> References:
    """What stands beside a data set that make-datasets wrote, or in the recipe of a run."""
    path = Path(spec)
    folder = path if isdir(path) else path.parent
    if isfile(folder / "datasets.json"):
        facts = json_object(folder / "datasets.json", "data", "make the data sets again", ("task", "g_min", "g_max"))
        task, low, high = facts["task"], number(folder, facts["g_min"]), number(folder, facts["g_max"])
        if not isinstance(task, str):
            raise InputError("data", str(folder), f"its datasets.json says that the task is {task!r}")
        return References(task, str(folder / "replay.safetensors"), low, high)
    if isfile(path / "recipe.yaml"):
        with RunDirectory.open(path, lock=False) as run:
            return References(run.recipe().get("task"))
    return References()


def number(folder: Path, value: Any) -> float:
    """A mean return of a datasets.json."""
    if type(value) not in (int, float) or not abs(value) < 1e100:
        raise InputError("data", str(folder), f"its datasets.json says {value!r} for a mean return: it is a number")
    return float(value)


def spread(specs: Sequence[str]) -> list[str]:
    """Folders of make-datasets as the files in them."""
    out = list[str]()
    for spec in specs:
        whole = isfile(Path(spec) / "datasets.json")
        out += [str(Path(spec) / f"{kind}.safetensors") for kind in KINDS] if whole else [spec]
    return out


def load_dataset(spec: str, task: EnvironmentTask, *, trust: bool = False) -> list[Episode]:
    """Episodes of a .safetensors or .npz file, of minari:NAME (or a Minari folder), or of the replay of a run."""
    if isfile(Path(spec) / "recipe.yaml"):
        return replay_of(Path(spec), trust=trust)
    return load_demonstrations(spec.removeprefix("minari:"), task)


def replay_of(path: Path, *, trust: bool = False) -> list[Episode]:
    """What the newest checkpoint of a run holds in its replay."""
    with RunDirectory.open(path, lock=False) as run:
        p, folder = plan_from(stated(run), trust=trust), latest_checkpoint(run.path)
    saved = None if folder is None else load_checkpoint(folder)
    if saved is None or "replay" not in saved.tensors:
        raise InputError("data", str(path), "this run has no replay in a checkpoint")
    r, learner = p.recipe, learner_for(p)
    single = isinstance(r, OffPolicyRecipe) and r.n_step == r.chunk == r.environments == 1
    if not isinstance(r, OffPolicyRecipe) or not single or learner.needs.observe:
        raise InputError("data", str(path), "its replay must hold single steps of one environment, as observed")
    space = p.task.space
    with put_back(saved) as (_, tensors):
        rows = len(tensors["replay"]["rows"])
        replay = Replay(max(r.capacity, rows), space.observations, space.action_width, space.pixels)
        replay.restore(tensors["replay"])
    episodes = episodes_of(replay.all())
    return episodes[1:] if rows == r.capacity and len(episodes) > 1 else episodes


@dataclass(frozen=True)
class Inspection:
    """Reports by name of the data set, and the file of the figure."""

    reports: dict[str, DatasetReport]
    figure: Path

    def __str__(self) -> str:
        lines = [f"{'data set':<18} {'TQ':>6} {'SACo':>6} {'lSACo':>6} {'pairs':>8} {'e^H':>9} {'episodes':>8} "
                 f"{'return':>9} {'length':>7} {'r = 0':>6} {'BC entropy':>10}"]  # fmt: skip
        for name, r in self.reports.items():
            cloned = "—" if r.bc_entropy is None else f"{r.bc_entropy:.2f}"
            lines.append(
                f"{name:<18} {r.tq:>6.2f} {r.saco:>6.2f} {r.lsaco:>6.2f} {r.u:>8} {np.exp(r.entropy):>9.0f} "
                f"{r.n_episodes:>8} {r.mean_return:>9.2f} {r.mean_length:>7.1f} {r.reward_sparsity:>6.2f} {cloned:>10}"
            )
        alike = dict[tuple[str, ...], list[str]]()
        for name, r in self.reports.items():
            alike.setdefault(tuple(regions_of(r)), []).append(name)
        lines += [
            "",
            "learners that did well on such data (mean performance in arXiv 2111.04714; 100 is the online agent)",
        ]
        for where, names in alike.items():
            lines += ["", f"{', '.join(names)}: {' and '.join(REGIONS[x] for x in where)}"]
            lines += [f"  {slug:<8} {why}" for slug, why in recommend(self.reports[names[0]])]
        return "\n".join([*lines, "", f"figure {self.figure}"])


@checked
def inspect(
    data: Sequence[str], *, task: str | None = None, reference: str | None = None, g_min: float | None = None,
    g_max: float | None = None, gamma: float = 1.0, bins: int | None = 100, seed: int = 0,
    figure: Path = Path("plane.svg"), quiet: bool = False, trust: bool = False,
) -> Inspection:  # fmt: skip
    """Measure data sets and draw them on the plane; `trust` runs code that the recipe of a run names and the user has
    not run before."""
    if not data or seed < 0:
        raise InputError("seed" if data else "data", seed if data else data, "use 0 or more, and name a data set")
    if figure.suffix not in (".svg", ".png"):
        raise InputError("figure", str(figure), "name a .svg or .png file")
    make_place(figure)
    known = known_of(data[0])
    name, ref, high = task or known.task, reference or known.reference, known.g_max if g_max is None else g_max
    if name is None:
        raise InputError("task", None, "say which environment the data are from: it decides the actions")
    if ref is None:
        raise InputError("reference", None, "SACo needs a data set that covers much (all that an online run did; of "
                         "several logs the broadest): give it")  # fmt: skip
    if high is None:
        raise InputError("g_max", None, "TQ needs the best mean return known in this task: give it")
    (allow if trust or task is not None else check)({"task": name})
    environment = load_environment(name)
    space = environment.space
    loaded = {spec: load_dataset(spec, environment, trust=trust) for spec in spread(data)}
    known_data = loaded.get(ref) or load_dataset(ref, environment, trust=trust)
    low = known.g_min if g_min is None else g_min
    low = random_return(environment, seed=seed) if low is None else low
    reports = dict[str, DatasetReport]()
    with counting(len(loaded), "inspect", quiet=quiet) as tick:
        for spec, episodes in loaded.items():
            reports[short(spec, reports)] = dataset_report(
                episodes, known_data, low, high, choices=space.actions if space.discrete else None, gamma=gamma,
                bins=bins, seed=seed,
            )  # fmt: skip
            tick(short(spec, {}))
    with disk_errors(figure):
        save_plane(figure, {k: (r.tq, r.saco) for k, r in reports.items()}, tq=HIGH_TQ, saco=(LOW_SACO, HIGH_SACO))
    return Inspection(reports, figure)


def short(spec: str, taken: dict[str, DatasetReport]) -> str:
    """A name for the table: the file's, whole where that is taken."""
    name = Path(spec).stem if Path(spec).suffix in (".safetensors", ".npz") else spec
    return spec if name in taken else name
