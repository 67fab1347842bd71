"""Several methods on one task, with the same seeds: which is better, by how much, how surely, at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from os.path import isfile
from pathlib import Path
from typing import Any

from anypolicy.errors import InputError, checked
from anypolicy.evidence.compare import Comparison, compare_runs
from anypolicy.evidence.equal_kl import at_equal_divergence
from anypolicy.evidence.plots import Curve, over, save_curves
from anypolicy.families.base import Family, family_of
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.files import check_places
from anypolicy.runs.objects import handed, objects_in
from anypolicy.runs.progress import counting
from anypolicy.runs.recipes import comparable, differences
from anypolicy.runs.workers import in_workers
from anypolicy.tasks.arguments import parse


class Arm:
    """A method, or a composition, with settings of its own in a comparison: of the run, or of the methods."""

    def __init__(self, method: str, **settings: Any):
        self.method, self.settings = method, settings

    def __repr__(self) -> str:
        return f"Arm({', '.join([repr(self.method), *(f'{k}={v!r}' for k, v in self.settings.items())])})"


def arms_of(
    methods: Sequence[str | Arm] | Mapping[str, str | Arm], vary: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, Arm]:
    """Arms by name: names or compositions, with settings of their own as in "grpo:kl_coef=0,lr=1e-6"; each with every
    combination of the values that are varied."""
    given = list(methods.items() if isinstance(methods, Mapping) else ((written(m), m) for m in methods))
    arms: dict[str, Arm] = {}
    for name, arm in given:
        method, settings = (arm.method, arm.settings) if isinstance(arm, Arm) else parsed(arm)
        for values in product(*(vary or {}).values()):
            own = dict(zip(vary or {}, values, strict=True))
            if twice := own.keys() & settings.keys():
                raise InputError("vary", sorted(twice), f"{name} says it already: leave one of the two out")
            full = written(Arm(name, **own))
            if full in arms or not full:
                raise InputError("methods", full, "name different arms")
            arms[full] = Arm(method, **settings, **own)
    if len(arms) < 2:
        raise InputError("methods", list(arms), "name at least two different methods, or vary a setting of one")
    return arms


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """METHOD, or METHOD:key=value,…"""
    method, _, arguments = text.partition(":")
    return method, {k: plain_value(v) for k, v in parse(arguments, "methods").items()}


def plain_value(value: Any) -> Any:
    """A number where a text of YAML is one (1e-6)."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def written(arm: str | Arm) -> str:
    """An arm as text."""
    if isinstance(arm, str):
        return arm
    own = ",".join(f"{k}={v}" for k, v in arm.settings.items())
    return f"{arm.method}{',' if ':' in arm.method else ':'}{own}" if own else arm.method


def folder_of(arm: str) -> str:
    """The name of an arm's folder."""
    return arm.replace("/", "-").replace(":", "-")[:100]


def knobs_of(arm: str, knobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of those methods that an arm is made of."""
    names = {word.strip().partition(".")[0] for word in arm.split("+")}
    return {slug: own for slug, own in knobs.items() if slug in names}


def one_run(
    name: str, arm: Arm, seed: int, out: Path, knobs: dict[str, dict[str, Any]], settings: dict[str, Any]
) -> tuple[str, int, list[dict[str, Any]]]:
    """Train, resume or reuse one run of a comparison; its ledger."""
    family = family_of(arm.method, settings.get("method_file", ()))
    own = settings | arm.settings | {"seed": seed, "out": out}
    p = family.planned(arm.method, own, knobs_of(arm.method, knobs))
    if isfile(out / "recipe.yaml"):
        with RunDirectory.open(out, lock=False) as known:
            mine, theirs = comparable(p.written(), evaluation=True), known.recipe()
        changed = differences({k: theirs.get(k, v) for k, v in mine.items()}, mine)
        if changed:
            raise InputError(
                "out", str(out), f"a run with other settings is there ({', '.join(changed)}): choose another --out"
            )
        steps = getattr(p.settings, "steps", None)
        rows = family.resume(out, steps=steps, quiet=True, trust=True).rows  # the user's settings
    else:
        rows = family.start(p, quiet=True).rows
    return name, seed, rows


def common_family(arms: Mapping[str, Arm], method_file: Any) -> Family[Any, Any]:
    """The family that all arms are of."""
    found = {name: family_of(arm.method, method_file) for name, arm in arms.items()}
    if len({f.name for f in found.values()}) > 1:
        told = ", ".join(f"{arm} is of {f.name}" for arm, f in found.items())
        raise InputError("methods", list(arms), f"methods of one family can be compared ({told})")
    return next(iter(found.values()))


@checked
def compare(
    methods: list[str | Arm] | dict[str, str | Arm], *, seeds: int = 5, vary: dict[str, Sequence[Any]] | None = None,
    out: str | Path | None = None, metric: str | None = None, knobs: dict[str, dict[str, Any]] | None = None,
    workers: int = 1, quiet: bool = False, equal_kl: bool = False, **settings: Any,
) -> Comparison:  # fmt: skip
    """Train every method with the same seeds and say which is better, by how much, how surely and at what cost.

    `methods` are names, compositions or arms (`ap.Arm("grpo", kl_coef=0)`, as text "grpo:kl_coef=0"), or arms by names
    of your own; with `vary` ({"lr": [1e-6, 3e-6]}) each stands with every combination of the values. `settings` are the
    fields of the family's settings, such as `task`, and objects stand there as in `train`. Runs are kept under `out`; a
    comparison that was killed goes on where it was. `metric` is a name of the evaluation rows, larger is better; by
    default held-out accuracy, without a verifier the mean log-probability of the held-out reference responses, or the
    task's own probe where there is no held-out split; of controllers the share of successful episodes, or the mean
    return; of diffusion models the share of preferred samples. With `equal_kl` runs are judged at the largest
    divergence from the reference that all of them reached, not at their last step.
    """
    arms = arms_of(methods, vary)
    if seeds < 2:
        raise InputError("seeds", seeds, "a comparison needs at least 2 seeds")
    for name in ("seed", "out"):
        if any(name in arm.settings for arm in arms.values()):
            raise InputError("methods", name, "all arms have the same seeds, and folders of their own: leave it out")
    with handed(settings) as named:
        if workers > 1 and (objects := objects_in(named)):
            told = f"other processes do not have the objects given as {', '.join(objects)}: use 1, or name files"
            raise InputError("workers", workers, told)
        return judged(arms, named, knobs or {}, seeds, out, metric, workers, quiet=quiet, equal_kl=equal_kl)


def judged(
    arms: dict[str, Arm], settings: dict[str, Any], knobs: dict[str, dict[str, Any]], seeds: int,
    out: str | Path | None, metric: str | None, workers: int, *, quiet: bool, equal_kl: bool,
) -> Comparison:  # fmt: skip
    """All runs of a comparison, and what they come to."""
    family = common_family(arms, settings.get("method_file", ()))
    plans = [family.planned(a.method, settings | a.settings, knobs_of(a.method, knobs)) for a in arms.values()]
    data = str(settings.get(family.data) or next(iter(arms.values())).settings[family.data])
    folder = Path(out or Path("runs") / folder_of(f"compare-{'-'.join(arms)}-{data}"[:150]))
    places = {name: folder / folder_of(name) for name in arms}
    if len(set(places.values())) < len(arms):
        raise InputError("methods", list(arms), "their folders would have the same names: name them otherwise")
    jobs = [
        (name, arm, seed, places[name] / f"seed-{seed}", knobs, settings)
        for seed in range(seeds)
        for name, arm in arms.items()
    ]
    check_places(folder, ("report.html", "curves.svg"), map(folder_of, arms))
    for job in jobs:
        RunDirectory.check_usable(job[3])
    ledgers: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in arms}
    with counting(len(jobs), "compare", quiet=quiet) as tick:
        for name, seed, rows in in_workers(one_run, jobs, workers):
            ledgers[name][seed] = rows
            tick(f"{name} seed {seed}")
    return summarise(ledgers, metric, folder, data, family.metrics(plans[0]), family.cost, equal_kl=equal_kl)


def summarise(
    ledgers: dict[str, dict[int, list[dict[str, Any]]]], metric: str | None, folder: Path, data: str,
    known: tuple[str, ...], spent: str, *, equal_kl: bool = False,
) -> Comparison:  # fmt: skip
    """Final values, curves and cost of every arm, judged, and the report written."""
    ends = [[rows[-1] for rows in runs.values()] for runs in ledgers.values()]
    names = [k for k in dict.fromkeys(k for row in ends[0] for k in row) if k.startswith(("eval/", "probe/"))]
    names = [k for k in names if k != "eval/perplexity" and all(any(k in row for row in own) for own in ends)]
    metric = metric or next((k for k in known if k in names), None)
    if metric not in names:
        raise InputError("metric", metric, f"the evaluations have {', '.join(names)}", choices=names)
    final: dict[str, dict[int, float]] = {}
    cost: dict[str, dict[int, float]] = {}
    lost: dict[str, list[int]] = {}
    curves: list[Curve] = []
    for arm, runs in ledgers.items():
        evaluations = {seed: [r for r in rows if r.get("event") == "eval"] for seed, rows in runs.items()}
        final[arm] = {seed: rows[-1][metric] for seed, rows in evaluations.items() if metric in rows[-1]}
        lost[arm] = sorted(evaluations.keys() - final[arm].keys())
        cost[arm] = {
            seed: sum(r.get(spent, 0) for r in rows) if spent else rows[-1]["step"] for seed, rows in runs.items()
        }
        [steps, *others] = [[r["step"] for r in rows] for rows in evaluations.values()]
        if any(other != steps for other in others):
            told = "its runs were not evaluated at the same steps: delete them, or choose another folder"
            raise InputError("out", str(folder / folder_of(arm)), told)
        curves.append(Curve(arm, steps, [over(rows, metric) for rows in evaluations.values()]))
    left_out = {arm: seeds for arm, seeds in lost.items() if seeds}
    if len(set[int].intersection(*(set(own) for own in final.values()))) < 2:
        raise InputError("metric", metric, f"too many runs ended without a finite one (seeds {left_out}): use another, "
                         "or settings with which they do not diverge")  # fmt: skip
    label, over_kl = metric, list[Curve]()
    if equal_kl:
        both = {arm: {s: [r for r in x if r.get("event") == "eval" and metric in r] for s, x in runs.items()
                      if s not in lost[arm]} for arm, runs in ledgers.items()}  # fmt: skip
        target, final, over_kl = at_equal_divergence(both, metric)
        label = f"{metric} at {target:.3g} nats from the reference"
    unit = spent.partition("/")[0] or "steps"
    comparison = compare_runs(final, curves=curves, costs=cost, metric=label, task=data, unit=unit, over_kl=over_kl,
                              left_out=left_out)  # fmt: skip
    comparison.report(folder / "report.html")
    save_curves(folder / "curves.svg", curves, y=metric, title=f"{data}, {len(next(iter(final.values())))} seeds")
    return comparison
