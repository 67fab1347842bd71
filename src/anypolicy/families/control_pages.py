"""What is said of runs of controllers: before they begin, and when they have ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from anypolicy.evidence.plots import Curve, learning_curves, over
from anypolicy.evidence.report import Block, Figure, Text, write_report
from anypolicy.knobs import knobs_of
from anypolicy.learners.recipe import OfflineRecipe
from anypolicy.runs.notes import notes

if TYPE_CHECKING:
    from anypolicy.families.control import ControlPlan, ControlRun


def explain(p: ControlPlan) -> str:
    """What a run would do, without starting it."""
    s, r, space = p.settings, p.recipe, p.task.space
    acts = f"{space.actions} choices" if space.discrete and not space.factors else space.said()
    made, meanings = vars(r.learner), knobs_of(type(r.learner))
    own = [f"  {k:<22} {v!s:<16} {meanings[k].meaning}" for k, v in made.items() if k in meanings]
    fed = [f"  {k:<22} {v}" for k, v in vars(r).items() if k not in ("learner", "alone", "episode", *made)]
    unit = "updates on demonstrations" if isinstance(r, OfflineRecipe) else "environment steps"
    return "\n".join([
        f"{p.method} in {s.task}: {space.observations} numbers seen, {acts}, episodes of "
        f"{p.task.horizon or 'unlimited'} steps", *p.notes(), "", f"  {type(r.learner).__name__}", *own, "", *fed, "",
        f"  the run: {p.steps:,} {unit} on {s.threads} thread(s), evaluated every {s.eval_every:,}",
    ])  # fmt: skip


def summary(run: ControlRun, where: Path) -> str:
    """Before → after, and what to try next."""
    first, last = run.evaluations()[0], run.evaluations()[-1]
    lines = ["", *notes(run.rows), f"mean return  {told(first)}  →  {told(last)}   ({last['eval/n']:.0f} episodes)"]
    if "eval/success" in last and "eval/success" in first:
        lines.append(f"success      {first['eval/success']:.2f}  →  {last['eval/success']:.2f}")
    lines += [
        f"report {where}   ({run.seconds:.0f} s)",
        f"next: anypolicy eval {run.path} --video {run.path.name}.mp4   # or: anypolicy resume {run.path} --steps "
        f"{2 * last['step']}",
    ]
    return "\n".join(lines)


def told(row: dict[str, Any]) -> str:
    if "eval/return" not in row:
        return "not finite"
    return f"{row['eval/return']:.1f}" + (f" ± {row['eval/return_se']:.1f}" if "eval/return_se" in row else "")


def page(run: ControlRun) -> Path:
    """report.html of a finished run: returns before and after, learning curves."""
    rows, evaluations = [r for r in run.rows if "event" not in r], run.evaluations()
    where = run.path / "report.html"
    steps = [r["step"] for r in evaluations]
    blocks: list[Block] = [Text(summary(run, where).strip().splitlines()[: 2 + len(notes(run.rows))])]
    names = [n for n in ("eval/return", "eval/success") if n in evaluations[-1]]
    for name in names:
        blocks.append(Figure(name, learning_curves([Curve("run", steps, [over(evaluations, name)])], y=name)))
    losses = sorted(k for row in rows[-1:] for k in row if k.startswith("loss/"))
    for name in ("episode/return", *losses, "alpha", "entropy"):
        have = [r for r in rows if name in r]
        if have:
            curve = Curve("run", [r["step"] for r in have], [[r[name] for r in have]])
            blocks.append(Figure(name, learning_curves([curve], y=name)))
    write_report(where, run.path.name, blocks)
    return where
