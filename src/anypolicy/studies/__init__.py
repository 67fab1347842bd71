"""Looking at methods and runs: show, explain, evaluate, compare, reproduce."""

from __future__ import annotations

from dataclasses import asdict, fields
from os.path import isfile
from pathlib import Path
from typing import Any

from anypolicy import catalogue
from anypolicy.errors import InputError, check_names, checked
from anypolicy.evidence.claims import Verdict, run_claim
from anypolicy.evidence.compare import Comparison, compare_runs
from anypolicy.evidence.equal_kl import at_equal_divergence
from anypolicy.evidence.plots import Curve, interval_dots, learning_curves, over, save_curves
from anypolicy.evidence.report import Block, Figure, Outline, Samples, Table, Text, write_report
from anypolicy.families import control, diffusion
from anypolicy.families import language as training
from anypolicy.knobs import said
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.files import check_places
from anypolicy.runs.notes import notes
from anypolicy.runs.progress import counting
from anypolicy.runs.recipes import EVALUATION, MAY_CHANGE, comparable, differences, made_checkpoint, put_back, stated
from anypolicy.runs.workers import in_workers

FREE = tuple(name for name in MAY_CHANGE if name not in EVALUATION)
"""Settings that a kept run of a comparison may differ in."""
CHECKOUT = Path(__file__).resolve().parents[3]
"""Where this package comes from, if it is installed from a checkout."""


def listing() -> list[dict[str, Any]]:
    """The catalogue as plain values: one object a method."""
    out = []
    for slug, m in catalogue.methods(None).items():
        card = {k: v for k, v in asdict(m.card).items() if k not in ("conflicts", "no_signal", "unbounded")}
        conflicts = {f"{own} × {other}": why for (own, other), why in m.card.conflicts.items()}
        knobs = {k: p.default for k, p in m.knobs.items()}
        out.append({"slug": slug, "trains": m.trains, **card, "conflicts": conflicts, "settings": knobs})
    return out


@checked
def show(slug: str) -> str:
    """A method: its card, its settings and its whole file."""
    m = catalogue.get(slug, None)
    said_of = m.meanings
    knobs = "\n".join(
        f"  --{slug}.{k.replace('_', '-')}  {said(said_of.get(k), p.default)}" for k, p in m.knobs.items()
    )
    return (
        f"{slug}: {m.card.title} ({m.card.paper}, {m.card.year})\n{m.card.idea}\n\n"
        f"changes: {', '.join(m.card.changes) or 'nothing (it is the base)'}\ncomposes with: {m.card.composes_with}\n"
        f"claim: {m.card.claim}\nsettings:\n{knobs}\n\n{m.source}"
    )


@checked
def explain(method: str, *, task: str, knobs: dict[str, dict[str, Any]] | None = None, **settings: Any) -> str:
    """What a run would do, stage by stage, without starting it: whose each stage is, its numbers, and its cost."""
    check_names(training.Settings, settings, "explain")
    p = training.plan(method, training.Settings(task, **settings), knobs)
    s, r = p.settings, p.recipe
    lines = [f"{method} on {s.task}, policy {s.policy or 'of the task'}", ""]
    for f in fields(r):
        stage = getattr(r, f.name)
        lines.append(f"  {f.name:<10} {p.composition.origin[f.name]:<13} {stage if stage is not None else '—'}")
    rows = (s.prompts or 0) * r.rollout.group_size
    updates = r.optimiser.epochs * r.optimiser.minibatches
    lines += [
        "",
        f"  a step: {s.prompts} prompts × {r.rollout.group_size} responses = {rows} rows of {s.max_tokens} tokens,"
        f" {updates} optimiser step(s)"
        if rows
        else f"  a step: the reference responses of {s.prompts} prompts, nothing sampled, {updates} optimiser step(s)",
        f"  the run: {s.steps} steps, up to {rows * s.steps * (s.max_tokens or 0):,} tokens generated "
        f"(times up to {r.selection.max_rounds} where the selection refills)",
        f"  data: {len(p.task.train)} training prompts, {len(p.task.heldout)} held out",
    ]
    lines += [f"  {k} = {v}: suggested by the task or policy, not the paper's" for k, v in p.suggested.items()]
    return "\n".join(lines)


@checked
def evaluate(
    path: str | Path, *, prompts: int | None = None, temperature: float = 0.0, trust: bool = False
) -> dict[str, float]:
    """Held-out accuracy of a run's newest checkpoint, with its interval; `trust` runs code that its recipe names and
    the user has not run before. Writes samples/eval.jsonl."""
    with RunDirectory.open(path, lock=False) as run:
        p = training.plan_from(stated(run), trust=trust)
        world = training.world_of(p)
        loop = training.group_loop(p, world)
        saved = made_checkpoint(run, p.written())
        with put_back(saved, loop.state()) as (state, tensors):
            loop.restore(state, tensors["optimiser"])
        log, samples = training.held_out(p, loop, prompts, temperature)
        run.write_samples("eval", samples)
        return log


# --- one run ---------------------------------------------------------------------------------------------------------
def run_summary(run: training.Run, page: Path) -> str:
    """Before → after, some answers of both, and what to try next."""
    first, last = run.evaluations()[0], run.evaluations()[-1]
    lines = ["", *notes(run.rows)]
    if "eval/accuracy" in last and "eval/accuracy" in first:
        lines.append(
            f"held-out accuracy  {held_out(first)}  →  {held_out(last)}   ({last['eval/n']:.0f} prompts, greedy)"
        )
    if "eval/pair_accuracy" in last and "eval/pair_accuracy" in first:
        before, after = (f"{r['eval/pair_accuracy']:.3f} [{r['eval/pair_low']:.3f}, {r['eval/pair_high']:.3f}]" for r in
                         (first, last))  # fmt: skip
        lines.append(f"held-out pairs in the right order  {before}  →  {after}   ({last['eval/pairs']:.0f} pairs)")
    if "eval/kl" in last:
        lines.append(
            f"divergence from the reference  {last['eval/kl']:.3f} ± {shown(last, 'eval/kl_se')} nats a response"
        )
    if "eval/perplexity" in last:
        change = f"{shown(first, 'eval/perplexity')}  →  {last['eval/perplexity']:.3f}"
        lines.append(f"held-out perplexity of the reference responses  {change}")
    for name in (k for k in last if k.startswith("probe/")):
        lines.append(f"{name.removeprefix('probe/'):<18} {shown(first, name, 4)}  →  {last[name]:.4f}")
    for prompt, before, after in pairs_of(run)[:3]:
        question = " ".join(str(prompt).split())
        lines.append(f"  {question[-60:]!r}: {before['response']!r} → {after['response']!r} ({verdict(after)})")
    lines += [
        f"report {page}   ({run.seconds:.0f} s)",
        f"next: anypolicy resume {run.path} --steps {2 * last['step']}   # or: anypolicy compare --help",
    ]
    return "\n".join(lines)


def shown(row: dict[str, Any], name: str, digits: int = 3) -> str:
    """A number of a row, or that there is none."""
    return f"{row[name]:.{digits}f}" if name in row else "not finite"


def held_out(row: dict[str, Any]) -> str:
    return f"{row['eval/accuracy']:.3f} [{row['eval/low']:.3f}, {row['eval/high']:.3f}]"


def verdict(sample: dict[str, Any]) -> str:
    return "correct" if sample["correct"] else f"wrong, answer {sample['answer']}"


def pairs_of(run: training.Run) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Held-out prompts with the answers of the first and the last evaluation, those that changed first."""
    with RunDirectory.open(run.path, lock=False) as folder:
        steps = [r["step"] for r in run.evaluations()]
        before, after = (folder.read_samples(f"step-{s:06d}") for s in (steps[0], steps[-1]))
    both = [(a["prompt"], a, b) for a, b in zip(before, after, strict=False)]
    return sorted(both, key=lambda row: row[1]["correct"] == row[2]["correct"])


def run_page(run: training.Run) -> Path:
    """report.html of a finished run: accuracy before and after, curves, answers."""
    rows, evaluations = [r for r in run.rows if "event" not in r], run.evaluations()
    told = run_summary(run, run.path / "report.html").strip().splitlines()
    blocks: list[Block] = [Text(told[: len(notes(run.rows)) + 1])]
    steps = [r["step"] for r in evaluations]
    if "eval/accuracy" in evaluations[-1]:
        ends = ((f"step {r['step']}", r["eval/accuracy"], r["eval/low"], r["eval/high"]) for r in
                (evaluations[0], evaluations[-1]) if "eval/accuracy" in r)  # fmt: skip
        blocks.append(
            Figure("Before and after", interval_dots(list(ends), x="held-out accuracy, 95 % Wilson interval"))
        )
        curve = Curve("held out, greedy", steps, [over(evaluations, "eval/accuracy")])
        drawn = [r for r in rows if "accuracy" in r]
        sampled = Curve("training prompts, sampled", [r["step"] for r in drawn], [[r["accuracy"] for r in drawn]])
        blocks.append(Figure("Accuracy", learning_curves([curve, sampled] if drawn else [curve], y="accuracy")))
    blocks += reference_figures(evaluations)
    if "eval/perplexity" in evaluations[-1]:
        curve = Curve("held out", steps, [over(evaluations, "eval/perplexity")])
        blocks.append(Figure("Perplexity of the reference responses", learning_curves([curve], y="perplexity")))
    probes = [k for k in evaluations[-1] if k.startswith("probe/")]
    if probes:
        curves = [Curve(k.removeprefix("probe/"), steps, [over(evaluations, k)]) for k in probes]
        blocks.append(Figure("Measured on the policy itself", learning_curves(curves, y="probability")))
    for name, heading in (("reward/mean", "Reward"), ("length/mean", "Response length (tokens)")):
        known = [r for r in rows if name in r]
        if known:
            curve = Curve(name, [r["step"] for r in known], [[r[name] for r in known]])
            blocks.append(Figure(heading, learning_curves([curve], y=name)))
    if pairs := pairs_of(run):
        shown = [(str(p), b, a) for p, b, a in pairs[:12]]
        blocks.append(Samples("Answers to held-out prompts", shown))
    with RunDirectory.open(run.path, lock=False) as folder:
        for tree in folder.read_samples(f"trees-step-{steps[-1]:06d}")[:2]:
            ended = "right" if tree["correct"] else "wrong"
            blocks.append(Outline(f"Search of the last step: {tree['id']} (* its path, which ended {ended})",
                                  tree["outline"]))  # fmt: skip
        blocks.append(Table("Recipe", ["setting", "value"], list(folder.recipe().items())))
    return write_report(run.path / "report.html", run.path.name, blocks)


def reference_figures(evaluations: list[dict[str, Any]]) -> list[Block]:
    """How held-out pairs are ordered, how far both sides have moved, and the divergence it cost."""
    steps, last, blocks = [r["step"] for r in evaluations], evaluations[-1], list[Block]()

    def curves(*names: tuple[str, str]) -> list[Curve]:
        return [Curve(shown, steps, [over(evaluations, name)]) for name, shown in names]

    if "eval/pair_accuracy" in last:
        found = learning_curves(curves(("eval/pair_accuracy", "held out")), y="share of pairs")
        blocks.append(Figure("Pairs in the right order", found))
        both = curves(("eval/chosen", "chosen"), ("eval/rejected", "rejected"))
        blocks.append(Figure("Log-ratio to the reference", learning_curves(both, y="nats")))
    if "eval/kl" in last:
        found = learning_curves(curves(("eval/kl", "sampled responses")), y="nats a response")
        blocks.append(Figure("Divergence from the reference", found))
    return blocks


# --- compare ---------------------------------------------------------------------------------------------------------
def knobs_of(arm: str, knobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of those methods that an arm is made of."""
    names = {word.strip().partition(".")[0] for word in arm.split("+")}
    return {slug: own for slug, own in knobs.items() if slug in names}


def one_run(
    arm: str, seed: int, out: Path, task: str, knobs: dict[str, dict[str, Any]], settings: dict[str, Any]
) -> tuple[str, int, list[dict[str, Any]]]:
    """Train, resume or reuse one run of a comparison; its ledger."""
    p = planned(arm, task, knobs, settings | {"seed": seed, "out": out})
    if isfile(out / "recipe.yaml"):
        with RunDirectory.open(out, lock=False) as known:
            mine, theirs = comparable(p.written(), FREE), known.recipe()
        changed = differences({k: theirs.get(k, v) for k, v in mine.items()}, mine)
        if changed:
            raise InputError(
                "out", str(out), f"a run with other settings is there ({', '.join(changed)}): choose another"
            )
        rows = family_of(arm).resume(out, steps=p.settings.steps, quiet=True, trust=True).rows  # the user's settings
    else:
        rows = family_of(arm).start(p, quiet=True).rows
    return arm, seed, rows


def planned(
    arm: str, task: str, knobs: dict[str, dict[str, Any]], settings: dict[str, Any]
) -> training.Plan | control.ControlPlan | diffusion.DiffusionPlan:
    """The plan of an arm, whatever it trains."""
    kinds: dict[Any, Any] = {control: control.ControlSettings, diffusion: diffusion.DiffusionSettings}
    check_names(kinds.get(family_of(arm), training.Settings), settings, "a run of it")
    if family_of(arm) is control:
        return control.plan(arm, control.ControlSettings(task, **settings), knobs.get(arm))
    if family_of(arm) is diffusion:
        return diffusion.plan(arm, diffusion.DiffusionSettings(task, **settings), knobs.get(arm))
    return training.plan(arm, training.Settings(task, **settings), knobs_of(arm, knobs))


def family_of(arm: str) -> Any:
    """The module that plans, starts and resumes runs of an arm."""
    known = catalogue.methods(None).get(arm)
    return {"controller": control, "diffusion-model": diffusion}.get(known.trains if known else "", training)


@checked
def compare(
    methods: list[str], *, task: str, seeds: int = 5, out: str | Path | None = None, metric: str | None = None,
    knobs: dict[str, dict[str, Any]] | None = None, workers: int = 1, quiet: bool = False, equal_kl: bool = False,
    **settings: Any,
) -> Comparison:  # fmt: skip
    """Train every method with the same seeds and say which is better, by how much, how surely and at what cost.

    Runs are kept under `out`; a comparison that was killed goes on where it was. `metric` is a name of the evaluation
    rows, larger is better; by default held-out accuracy, without a verifier the mean log-probability of the held-out
    reference responses, or the task's own probe where there is no held-out split; of controllers the share of
    successful episodes, or the mean return; of diffusion models the share of preferred samples. With `equal_kl` runs
    are judged at the largest divergence from the reference that all of them reached, not at their last step.
    """
    if len(methods) < 2 or len(set(methods)) < len(methods):
        raise InputError("methods", methods, "name at least two different methods")
    if seeds < 2:
        raise InputError("seeds", seeds, "a comparison needs at least 2 seeds")
    for arm in methods:
        planned(arm, task, knobs or {}, settings)
    folder = Path(out or Path("runs") / f"compare-{'-'.join(methods)}-{task}"[:150].replace("/", "-").replace(":", "-"))
    jobs = [
        (arm, seed, folder / arm / f"seed-{seed}", task, knobs or {}, settings)
        for seed in range(seeds)
        for arm in methods
    ]
    check_places(folder, ("report.html", "curves.svg"), methods)
    for _, _, place, *_ in jobs:
        RunDirectory.check_usable(place)
    ledgers: dict[str, dict[int, list[dict[str, Any]]]] = {arm: {} for arm in methods}
    with counting(len(jobs), "compare", quiet=quiet) as tick:
        for arm, seed, rows in in_workers(one_run, jobs, workers):
            ledgers[arm][seed] = rows
            tick(f"{arm} seed {seed}")
    return summarise(ledgers, metric, folder, task, equal_kl=equal_kl)


def summarise(
    ledgers: dict[str, dict[int, list[dict[str, Any]]]],
    metric: str | None,
    folder: Path,
    task: str,
    *,
    equal_kl: bool = False,
) -> Comparison:
    """Final values, curves and cost of every arm, judged, and the report written."""
    ends = [[rows[-1] for rows in runs.values()] for runs in ledgers.values()]
    names = [k for k in dict.fromkeys(k for row in ends[0] for k in row) if k.startswith(("eval/", "probe/"))]
    names = [k for k in names if k != "eval/perplexity" and all(any(k in row for row in own) for own in ends)]
    unit = "steps" if {"eval/return", "eval/error"} & set(names) else "tokens"
    known = ("eval/accuracy", "eval/pair_accuracy", "eval/logp", "eval/success", "eval/return", "eval/preferred")
    metric = metric or next((k for k in known if k in names), "probe/success")
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
            seed: rows[-1]["step"] if unit == "steps" else sum(r.get("tokens/generated", 0) for r in rows)
            for seed, rows in runs.items()
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
    comparison = compare_runs(final, curves=curves, costs=cost, metric=label, task=task, unit=unit, over_kl=over_kl,
                              left_out=left_out)  # fmt: skip
    comparison.report(folder / "report.html")
    save_curves(folder / "curves.svg", curves, y=metric, title=f"{task}, {len(next(iter(final.values())))} seeds")
    return comparison


# --- reproduce -------------------------------------------------------------------------------------------------------
@checked
def reproduce(
    slug: str, *, seeds: int | None = None, workers: int = 1, claims: str | Path | None = None, trust: bool = False,
    keep: bool = False,
) -> Verdict:  # fmt: skip
    """Run a method's claim at laptop scale and judge it. Evidence goes to docs/evidence beside the claims folder. With
    `keep` the recorded runs stand, missing seeds are added and all is judged anew. A claim that merely lies in the
    working directory needs `trust`, unless the user has run it before."""
    folder = Path(claims) if claims else find_claims()
    path = folder / f"{slug.replace('-', '_')}.py"
    known = sorted(f.stem.replace("_", "-") for f in folder.glob("*.py"))
    if not isfile(path):
        raise InputError("method", slug, f"there are claims for {', '.join(known)}", choices=known)
    own = claims is not None or folder.resolve() == CHECKOUT / "claims"
    evidence = folder.parent / "docs" / "evidence"
    return run_claim(path, seeds=seeds, workers=workers, out=evidence, trust=trust or own, keep=keep)


def find_claims() -> Path:
    """The claims folder of the working directory or of the checkout this package is installed from."""
    for base in (Path.cwd(), CHECKOUT):
        if (base / "claims").is_dir():
            return base / "claims"
    raise InputError("claims", str(Path.cwd()), "run this in a checkout of anypolicy, or give --claims FOLDER")
