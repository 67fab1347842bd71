"""The runner of claims/<slug>.py: a paper's central claim at small scale, over seeds, with a verdict.

A claim file says what is expected before anything is measured:

    CLAIM = "what the paper says, at this scale"       SEEDS = 5        ARMS = ("grpo", "ngrpo")
    def run(arm: str, seed: int) -> dict[str, Any]:    numbers by name; "curve" (optional) [step, value] pairs
    CHECKS = [Check("ngrpo ends above grpo", "> 0", lambda r: r["ngrpo"]["final"] - r["grpo"]["final"], above=0.0)]

`CURVE` labels the figure and `CURVE_ARMS` says which arms it shows. A check is one number per seed. Its verdict comes
from the t interval of the mean over seeds: confirmed when all of it lies on the expected side, refuted when
all of it lies on the other, undecided otherwise.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from os.path import isfile
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch

from anypolicy.errors import InputError
from anypolicy.evidence.plots import Curve, save_curves
from anypolicy.evidence.stats import Interval, mean_interval
from anypolicy.progress import counting
from anypolicy.runs.files import disk_errors, write_text
from anypolicy.runs.strict_json import json_text, json_value
from anypolicy.runs.trust import allow, load_module
from anypolicy.runs.workers import in_workers
from anypolicy.version import __version__

Outcome = Literal["confirmed", "refuted", "undecided"]
Results = dict[str, dict[str, Any]]
"""arm → what `run` returned, of one seed"""


@dataclass(frozen=True)
class Check:
    """One expectation: `value` of a seed's results, and the bound its mean must lie `above` or `below`. Checks that
    are not `core` are reported but do not decide the claim."""

    name: str
    expected: str
    value: Callable[[Results], float]
    above: float | None = None
    below: float | None = None
    core: bool = True

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise InputError("check", self.name, "give one bound, above or below")

    def judge(self, measured: Interval) -> Outcome:
        bound = self.above if self.above is not None else self.below
        assert bound is not None
        low, high = measured.low - bound, measured.high - bound
        if self.below is not None:
            low, high = -high, -low
        return "confirmed" if low > 0 else "refuted" if high < 0 else "undecided"


@dataclass(frozen=True)
class Judged:
    """A check with what was measured."""

    name: str
    expected: str
    measured: Interval
    values: list[float]
    verdict: Outcome
    core: bool


@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim."""

    slug: str
    claim: str
    verdict: Outcome
    checks: list[Judged]
    seeds: int
    seconds: float

    def __str__(self) -> str:
        lines = [f"{self.slug}: {self.claim}", ""]
        for c in self.checks:
            mark = "" if c.core else "  (reported, not decisive)"
            lines.append(f"  {c.verdict:<10} {c.name}: expected {c.expected}, measured {c.measured}{mark}")
        return "\n".join([*lines, "", f"{self.verdict} over {self.seeds} seeds"])


def load(path: Path) -> ModuleType:
    """A claim file as a module."""
    if path.suffix != ".py" or not isfile(path):
        raise InputError("claim", str(path), "give an existing .py file")
    module = load_module("claim", path, f"anypolicy_claim_{path.stem}")
    for name in ("CLAIM", "SEEDS", "ARMS", "CHECKS", "run"):
        if not hasattr(module, name):
            raise InputError("claim", str(path), f"it has no {name}")
    return module


def one(path: Path, arm: str, seed: int) -> tuple[str, int, dict[str, Any]]:
    """One arm with one seed, on one thread so that its numbers do not depend on the machine's size."""
    torch.set_num_threads(1)
    return arm, seed, load(path).run(arm, seed)


def run_claim(
    path: Path, *, seeds: int | None = None, workers: int = 1, out: Path, quiet: bool = False, trust: bool = False
) -> Verdict:
    """Run what is missing, judge, and write <slug>.json and <slug>.svg into `out`. Finished runs are kept there in a
    hidden file, so a claim that was killed goes on where it was; a changed claim file starts anew. A file that the user
    has not run before is refused without `trust`."""
    if trust:
        allow({"claim": path})
    module, slug, began = load(path), path.stem.replace("_", "-"), time.monotonic()
    n = module.SEEDS if seeds is None else seeds
    if n < 2:
        raise InputError("seeds", n, "an interval needs at least 2")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(path.read_bytes() + __version__.encode()).hexdigest()
    cache = out / f".{slug}.runs.json"
    known = kept_runs(cache, key)
    jobs = [(path, arm, seed) for seed in range(n) for arm in module.ARMS if f"{arm}/{seed}" not in known["runs"]]
    with counting(len(jobs), slug, quiet=quiet) as tick:
        for arm, seed, result in in_workers(one, jobs, workers):
            known["runs"][f"{arm}/{seed}"] = result
            known["sha256"] = digest(known["runs"])
            write_text(cache, json_text(known, exact=True))
            tick(f"{arm} seed {seed}")
    by_seed: list[Results] = [{arm: known["runs"][f"{arm}/{seed}"] for arm in module.ARMS} for seed in range(n)]
    verdict = judge(slug, module, by_seed, time.monotonic() - began)
    record(out, verdict, module, by_seed)
    return verdict


def kept_runs(cache: Path, key: str) -> dict[str, Any]:
    """The runs that were finished before, of the claim with this digest."""
    if not cache.exists():
        return {"key": key, "runs": {}}
    try:
        known: dict[str, Any] = json_value(cache.read_bytes())
        if known["key"] != key:
            return {"key": key, "runs": {}}
        if known["sha256"] != digest(known["runs"]):
            raise ValueError("sha256")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError("claim", str(cache), "this file is damaged: delete it, and its runs are made again") from error
    return known


def digest(runs: dict[str, Any]) -> str:
    """What the results of the runs are known by."""
    return hashlib.sha256(json_text(runs, exact=True).encode()).hexdigest()


def judge(slug: str, module: ModuleType, by_seed: list[Results], seconds: float) -> Verdict:
    """All checks, and the claim: refuted by any core check, confirmed by all of them, undecided otherwise."""
    checks: list[Judged] = []
    for c in module.CHECKS:
        values = [float(c.value(results)) for results in by_seed]
        measured = mean_interval(values)
        checks.append(Judged(c.name, c.expected, measured, values, c.judge(measured), c.core))
    core = {c.verdict for c in checks if c.core}
    total: Outcome = "refuted" if "refuted" in core else "confirmed" if core == {"confirmed"} else "undecided"
    return Verdict(slug, module.CLAIM, total, checks, len(by_seed), seconds)


def record(out: Path, verdict: Verdict, module: ModuleType, by_seed: list[Results]) -> None:
    """The evidence files: every number of every run, and the figure."""
    versions = {"anypolicy": __version__, "torch": torch.__version__, "python": platform.python_version()}
    runs = {
        arm: [{k: v for k, v in results[arm].items() if k != "curve"} for results in by_seed] for arm in module.ARMS
    }
    value: dict[str, Any] = {**asdict(verdict), "runs": runs, "versions": versions}
    for check, judged in zip(value["checks"], verdict.checks, strict=True):
        check["measured"] = judged.measured._asdict()
    write_text(out / f"{verdict.slug}.json", json_text(value, indent=1))
    curves: list[Curve] = []
    for arm in getattr(module, "CURVE_ARMS", module.ARMS):
        if all("curve" in results[arm] for results in by_seed):
            lines = [np.asarray(results[arm]["curve"], float) for results in by_seed]
            curves.append(Curve(arm, lines[0][:, 0].astype(int).tolist(), [x[:, 1].tolist() for x in lines]))
    if curves:
        label = getattr(module, "CURVE", "value")
        save_curves(out / f"{verdict.slug}.svg", curves, y=label, title=f"{verdict.slug}: {verdict.verdict}")
