"""The runner of claims/<slug>.py: a paper's central claim at small scale, over seeds, with a verdict.

A claim file says what is expected before anything is measured:

    CLAIM = "what the paper says, at this scale"       SEEDS = 10       ARMS = ("grpo", "ngrpo")
    def run(arm: str, seed: int) -> dict[str, Any]:    numbers by name; "curve" (optional) [step, value] pairs
    CHECKS = [Check("above grpo", "> 0", lambda r: r["ngrpo"]["end"] - r["grpo"]["end"], above=0.0, kind="share")]

Its docstring says what is run and at which scale. `CURVE` labels the figure and `CURVE_ARMS` says which arms it shows.
`NOTE` is one sentence on the result, in which `{0:.2f}` stands for what the first check measured. `AMENDMENTS` lists
what was changed since the file was written. How checks are judged: `evidence/checks.py`.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from dataclasses import asdict, dataclass
from os.path import isfile
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import torch

from anypolicy.errors import InputError, outliving
from anypolicy.evidence.checks import Amendment, Kind, Outcome, Results, total
from anypolicy.evidence.plots import Curve, save_curves
from anypolicy.evidence.provenance import PACKAGE, digest, processor_seconds, provenance, sources
from anypolicy.evidence.stats import Interval
from anypolicy.runs.files import check_places, disk_errors, write_text
from anypolicy.runs.progress import counting
from anypolicy.runs.strict_json import json_text, json_value
from anypolicy.runs.trust import allow, load_module
from anypolicy.runs.workers import in_workers

CHECKOUT = Path(__file__).resolve().parents[3]
"""Where this package comes from, if it is installed from a checkout."""
SHIPPED = PACKAGE / "shipped"
"""Claims and evidence in a wheel."""


@dataclass(frozen=True)
class Judged:
    """A check with what was measured."""

    name: str
    expected: str
    kind: Kind
    refuted: float | None
    measured: Interval
    values: list[float]
    verdict: Outcome
    why: str
    core: bool

    def shown(self) -> str:
        """The measured value as tables print it."""
        return (
            f"{self.measured.point:.3g}, the worst of {len(self.values)} seeds".replace("-", "−")
            if self.kind == "each"
            else f"{self.measured:.3g}"
        )


@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim."""

    slug: str
    claim: str
    scope: str
    verdict: Outcome
    note: str
    checks: list[Judged]
    seeds: int
    amendments: list[Amendment]

    def __str__(self) -> str:
        lines = [f"{self.slug}: {self.claim}", ""]
        for c in self.checks:
            mark = f"  ({c.why})" * bool(c.why) + ("" if c.core else "  (reported, not decisive)")
            word = c.verdict.partition(" ")[0]
            lines.append(f"  {word:<10} {c.name}: expected {c.expected}, measured {c.shown()}{mark}")
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


def one(path: Path, arm: str, seed: int) -> tuple[str, int, dict[str, Any], float]:
    """One arm with one seed, on one thread so that its numbers do not depend on the machine's size, and the processor
    seconds it took."""
    torch.set_num_threads(1)
    began = processor_seconds()
    with outliving("claim"):
        result = load(path).run(arm, seed)
    return arm, seed, result, processor_seconds() - began


def run_claim(
    path: Path, *, seeds: int | None = None, workers: int = 1, out: Path, quiet: bool = False, trust: bool = False,
    keep: bool = False,
) -> Verdict:  # fmt: skip
    """Run what is missing, judge, and write <slug>.json and <slug>.svg into `out`. Finished runs are kept there in a
    hidden file, so a claim that was killed goes on where it was; a claim whose file or sources changed starts anew.
    With `keep` the runs of <slug>.json stand, whatever made them: seeds they lack are run, and the checks of today
    judge all. A file that the user has not run before is refused without `trust`, which lets it load the claims
    beside it, too."""
    if trust:
        for file in (path, *path.parent.glob("*.py")):
            allow({"claim": file})
    module, slug = load(path), path.stem.replace("_", "-")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    before = recorded(out / f"{slug}.json", module) if keep else Recorded([], [])
    n = max(module.SEEDS, len(before.by_seed)) if seeds is None else seeds
    if n < 2:
        raise InputError("seeds", n, "an interval needs at least 2")
    check_places(out, (f".{slug}.runs.json", f"{slug}.json", f"{slug}.svg"))
    key = digest(sources(path), PACKAGE)
    cache = out / f".{slug}.runs.json"
    known = kept_runs(cache, key)
    first = min(len(before.by_seed), n)
    missing = [(arm, seed) for seed in range(first, n) for arm in module.ARMS]
    jobs = [(path, arm, seed) for arm, seed in missing if f"{arm}/{seed}" not in known["runs"]]
    with counting(len(jobs), slug, quiet=quiet) as tick:
        for arm, seed, result, seconds in in_workers(one, jobs, workers):
            known["runs"][f"{arm}/{seed}"] = {"result": result, "processor_seconds": seconds}
            known["sha256"] = sha256_of(known["runs"])
            write_text(cache, json_text(known, exact=True))
            tick(f"{arm} seed {seed}")
    by_seed, made = before.by_seed[:n], before.provenance
    for seed in range(first, n):
        by_seed.append({arm: known["runs"][f"{arm}/{seed}"]["result"] for arm in module.ARMS})
    if first < n:
        own = [known["runs"][f"{arm}/{seed}"]["processor_seconds"] for arm, seed in missing]
        made = [*made, provenance(path, list(range(first, n)), sum(own))]
    verdict = judge(slug, module, by_seed)
    record(out, verdict, module, by_seed, made)
    return verdict


@dataclass(frozen=True)
class Recorded:
    """The runs that <slug>.json holds, and where they come from."""

    by_seed: list[Results]
    provenance: list[dict[str, Any]]


def recorded(path: Path, module: ModuleType) -> Recorded:
    """What was measured before."""
    try:
        value = json_value(path.read_bytes())
        runs = {arm: list(value["runs"][arm]) for arm in module.ARMS}
        made = list(value["provenance"])
        by_seed = [dict(zip(runs, row, strict=True)) for row in zip(*runs.values(), strict=True)]
    except FileNotFoundError as error:
        raise InputError("keep", str(path), "there is no such evidence: leave --keep away") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError("keep", str(path), "it does not hold the runs of this claim: leave --keep away") from error
    return Recorded(by_seed, made)


def kept_runs(cache: Path, key: str) -> dict[str, Any]:
    """The runs that were finished before, of the claim and sources with this digest."""
    if not cache.exists():
        return {"key": key, "runs": {}}
    try:
        known: dict[str, Any] = json_value(cache.read_bytes())
        if known["key"] != key:
            return {"key": key, "runs": {}}
        if known["sha256"] != sha256_of(known["runs"]):
            raise ValueError("sha256")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError("claim", str(cache), "this file is damaged: delete it, and its runs are made again") from error
    return known


def sha256_of(runs: dict[str, Any]) -> str:
    """What the results of the runs are known by."""
    return hashlib.sha256(json_text(runs, exact=True).encode()).hexdigest()


def judge(slug: str, module: ModuleType, by_seed: list[Results]) -> Verdict:
    """All checks, and the claim."""
    decisive = sum(c.core for c in module.CHECKS)
    checks: list[Judged] = []
    for c in module.CHECKS:
        with outliving("claim"):
            values = [float(c.value(results)) for results in by_seed]
        measured, verdict = c.judge(values, max(decisive, 1))
        why = c.why_undecided(values) if verdict == "undecided" else ""
        checks.append(Judged(c.name, c.expected, c.kind, c.absent, measured, values, verdict, why, c.core))
    note = getattr(module, "NOTE", "").format(*(c.measured for c in checks))
    return Verdict(slug, module.CLAIM, inspect.getdoc(module) or "", total([c.verdict for c in checks if c.core]), note,
                   checks, len(by_seed), list(getattr(module, "AMENDMENTS", ())))  # fmt: skip


def record(out: Path, verdict: Verdict, module: ModuleType, by_seed: list[Results], made: list[dict[str, Any]]) -> None:
    """The evidence files: every number of every run, and the figure; runs without a curve leave the old one."""
    runs = {arm: [results[arm] for results in by_seed] for arm in module.ARMS}
    value: dict[str, Any] = {**asdict(verdict), "provenance": made, "runs": runs}
    for check, judged in zip(value["checks"], verdict.checks, strict=True):
        check["measured"] = judged.measured._asdict()
    write_text(out / f"{verdict.slug}.json", on_one_line(json_text(value, indent=1)))
    curves: list[Curve] = []
    for arm in getattr(module, "CURVE_ARMS", module.ARMS):
        if all("curve" in results[arm] for results in by_seed):
            lines = [np.asarray(results[arm]["curve"], float) for results in by_seed]
            curves.append(Curve(arm, lines[0][:, 0].astype(int).tolist(), [x[:, 1].tolist() for x in lines]))
    if curves:
        save_curves(out / f"{verdict.slug}.svg", curves, y=getattr(module, "CURVE", "value"))


def on_one_line(text: str) -> str:
    """JSON with every list of plain numbers on a line of its own."""
    number = r"-?[\d.eE+-]+"
    return re.sub(rf"\[\s+({number}(?:,\s+{number})*)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)


def verdict_of(slug: str) -> dict[str, Any] | None:
    """What was measured of a method's claim and stands in the checkout or in the package."""
    for base in (CHECKOUT, SHIPPED):
        file = base / "docs" / "evidence" / f"{slug}.json"
        if isfile(file):
            return json_value(file.read_bytes())
    return None


def table(folder: Path) -> str:
    """All claims in one table of Markdown, from the JSON of each."""
    rows = [json_value(path.read_bytes()) for path in sorted(folder.glob("[!.]*.json"))]
    lines = ["| claim | verdict | what was measured |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{r['slug']}` | {r['verdict']} | {r['note']} |" for r in rows)]) + "\n"


def counted(folder: Path) -> str:
    """How many claims have which verdict, in words."""
    verdicts = [json_value(path.read_bytes())["verdict"] for path in folder.glob("[!.]*.json")]
    return ", ".join(f"{verdicts.count(v)} {v}" for v in get_args(Outcome))
