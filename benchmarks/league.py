"""The league of the language methods: two test-beds, equal rollouts, five seeds, as it comes out.

    python benchmarks/league.py --workers 2     about an hour on two cores; goes on where it was stopped
    python benchmarks/league.py --quick         two seeds, few steps, nothing written

Every method has its own defaults but for the number of prompts and responses in a step and the learning rate, which the
test-bed suggests and all share. A method that samples more in a step (refilled or additional groups) is judged at its
last evaluation before it has sampled more tokens than GRPO in the whole run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common import HERE, write
from rich.console import Console
from rich.table import Table

from anypolicy import catalogue
from anypolicy.errors import InputError
from anypolicy.evidence.compare import Comparison, compare_runs
from anypolicy.families import language as training
from anypolicy.runs.directory import read_lines
from anypolicy.studies.compare import compare
from anypolicy.version import __version__

TASKS: dict[str, dict[str, Any]] = {
    "tiny-add:references=true": {"steps": 60, "metric": "eval/accuracy"},
    "tabular-lock:references=true,hints=true": {"steps": 150, "metric": "probe/success"},
}
COMMON: dict[str, Any] = {"prompts": 8, "group_size": 8, "trackers": (), "threads": 1}


def entrants(task: str) -> tuple[list[str], dict[str, str]]:
    """The language methods that can work there, and why the others cannot."""
    can, cannot = ["grpo"], dict[str, str]()
    for slug, m in catalogue.methods().items():
        if m.card.family != "language" or slug == "grpo":
            continue
        try:
            p = training.plan(slug, training.Settings(task, steps=2, **COMMON))
            training.group_loop(p, training.world_of(p))
            can.append(slug)
        except InputError as error:
            cannot[slug] = str(error)
    return can, cannot


def at_equal_rollouts(folder: Path, arm: str, seed: int, metric: str, budget: float) -> tuple[float, float]:
    """The metric and the tokens sampled at the last evaluation within the budget."""
    value, sampled, spent = float("nan"), 0.0, 0.0
    for row in read_lines(folder / arm / f"seed-{seed}" / "metrics.jsonl"):
        sampled += row.get("tokens/generated", 0.0)
        if row.get("event") == "eval" and (sampled <= budget or row["step"] == 0):
            value, spent = row[metric], sampled
    return value, spent


def league(
    task: str, given: dict[str, Any], folder: Path, seeds: int, workers: int
) -> tuple[Comparison, dict[str, str]]:
    """All runs of one test-bed, judged."""
    can, cannot = entrants(task)
    steps = given["steps"]
    compare(can, task=task, seeds=seeds, out=folder, metric=given["metric"], workers=workers, steps=steps,
                    eval_every=max(steps // 15, 1), checkpoint_every=0, **COMMON)  # fmt: skip
    final: dict[str, dict[int, float]] = {arm: {} for arm in can}
    costs: dict[str, dict[int, float]] = {arm: {} for arm in can}
    for seed in range(seeds):
        _, budget = at_equal_rollouts(folder, "grpo", seed, given["metric"], float("inf"))
        for arm in can:
            final[arm][seed], costs[arm][seed] = at_equal_rollouts(folder, arm, seed, given["metric"], budget)
    return compare_runs(final, curves=[], costs=costs, metric=given["metric"], task=task), cannot


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Place, value and how surely the first is better."""
    against = {d.other: d for d in comparison.differences}
    out: list[dict[str, Any]] = []
    for arm in comparison.arms:
        d = against.get(arm.name)
        gap = None if d is None else {"point": d.difference.point, "low": d.difference.low, "high": d.difference.high,
                                      "decided": d.decided}  # fmt: skip
        middle = {"point": arm.middle.point, "low": arm.middle.low, "high": arm.middle.high}
        out.append({"method": arm.name, "middle": middle, "tokens": arm.cost, "values": list(arm.values.values()),
                    "behind the first": gap})  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / ".league", help="where the runs are kept")
    parser.add_argument("--quick", action="store_true", help="two seeds, 4 steps, nothing written")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for task, given in TASKS.items():
        name = task.partition(":")[0]
        chosen = given | ({"steps": 4} if args.quick else {})
        folder = args.out / (f"quick-{name}" if args.quick else name)
        comparison, cannot = league(task, chosen, folder, 2 if args.quick else args.seeds, args.workers)
        table = Table("method", given["metric"], "sampled tokens", "behind the first", title=task)
        found = rows(comparison)
        for r in found:
            m, d = r["middle"], r["behind the first"]
            gap = "" if d is None else f"{d['point']:.3f} [{d['low']:.3f}, {d['high']:.3f}]" + (
                "" if d["decided"] else ", cannot tell")  # fmt: skip
            table.add_row(
                r["method"], f"{m['point']:.3f} [{m['low']:.3f}, {m['high']:.3f}]", f"{r['tokens']:,.0f}", gap
            )
        Console(width=110).print(table)
        results[name] = {"task": task, "settings": chosen | {"seeds": args.seeds}, "rows": found, "refused": cannot}
    if not args.quick:
        print(write("league", [], {"anypolicy": __version__}, json.loads(json.dumps(results))))


if __name__ == "__main__":
    sys.exit(main())
