"""Several methods on one task, with the same seeds: which is better, by how much, how surely, at what cost."""

from __future__ import annotations

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
from anypolicy.runs.progress import counting
from anypolicy.runs.recipes import comparable, differences
from anypolicy.runs.workers import in_workers


def knobs_of(arm: str, knobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of those methods that an arm is made of."""
    names = {word.strip().partition(".")[0] for word in arm.split("+")}
    return {slug: own for slug, own in knobs.items() if slug in names}


def one_run(
    arm: str, seed: int, out: Path, knobs: dict[str, dict[str, Any]], settings: dict[str, Any]
) -> tuple[str, int, list[dict[str, Any]]]:
    """Train, resume or reuse one run of a comparison; its ledger."""
    family = family_of(arm, settings.get("method_file", ()))
    p = family.planned(arm, settings | {"seed": seed, "out": out}, knobs_of(arm, knobs))
    if isfile(out / "recipe.yaml"):
        with RunDirectory.open(out, lock=False) as known:
            mine, theirs = comparable(p.written(), evaluation=True), known.recipe()
        changed = differences({k: theirs.get(k, v) for k, v in mine.items()}, mine)
        if changed:
            raise InputError(
                "out", str(out), f"a run with other settings is there ({', '.join(changed)}): choose another"
            )
        steps = getattr(p.settings, "steps", None)
        rows = family.resume(out, steps=steps, quiet=True, trust=True).rows  # the user's settings
    else:
        rows = family.start(p, quiet=True).rows
    return arm, seed, rows


def common_family(arms: list[str], method_file: Any) -> Family[Any, Any]:
    """The family that all arms are of."""
    found = {arm: family_of(arm, method_file) for arm in arms}
    if len({f.name for f in found.values()}) > 1:
        told = ", ".join(f"{arm} is of {f.name}" for arm, f in found.items())
        raise InputError("methods", arms, f"methods of one family can be compared ({told})")
    return found[arms[0]]


@checked
def compare(
    methods: list[str], *, seeds: int = 5, out: str | Path | None = None, metric: str | None = None,
    knobs: dict[str, dict[str, Any]] | None = None, workers: int = 1, quiet: bool = False, equal_kl: bool = False,
    **settings: Any,
) -> Comparison:  # fmt: skip
    """Train every method with the same seeds and say which is better, by how much, how surely and at what cost.

    `settings` are the fields of the family's settings, such as `task`. Runs are kept under `out`; a comparison that was
    killed goes on where it was. `metric` is a name of the evaluation rows, larger is better; by default held-out
    accuracy, without a verifier the mean log-probability of the held-out reference responses, or the task's own probe
    where there is no held-out split; of controllers the share of successful episodes, or the mean return; of diffusion
    models the share of preferred samples. With `equal_kl` runs are judged at the largest divergence from the reference
    that all of them reached, not at their last step.
    """
    if len(methods) < 2 or len(set(methods)) < len(methods):
        raise InputError("methods", methods, "name at least two different methods")
    if seeds < 2:
        raise InputError("seeds", seeds, "a comparison needs at least 2 seeds")
    family = common_family(methods, settings.get("method_file", ()))
    plans = [family.planned(arm, settings, knobs_of(arm, knobs or {})) for arm in methods]
    data = str(settings[family.data])
    folder = Path(out or Path("runs") / f"compare-{'-'.join(methods)}-{data}"[:150].replace("/", "-").replace(":", "-"))
    jobs = [
        (arm, seed, folder / arm / f"seed-{seed}", knobs or {}, settings) for seed in range(seeds) for arm in methods
    ]
    check_places(folder, ("report.html", "curves.svg"), methods)
    for _, _, place, *_ in jobs:
        RunDirectory.check_usable(place)
    ledgers: dict[str, dict[int, list[dict[str, Any]]]] = {arm: {} for arm in methods}
    with counting(len(jobs), "compare", quiet=quiet) as tick:
        for arm, seed, rows in in_workers(one_run, jobs, workers):
            ledgers[arm][seed] = rows
            tick(f"{arm} seed {seed}")
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
            raise InputError("out", str(folder / arm), "its runs were not evaluated at the same steps: delete them, or "
                             "choose another folder")  # fmt: skip
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
