"""What is said of runs of language policies: before they begin, and when they have ended."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anypolicy.evidence.plots import Curve, interval_dots, learning_curves, over
from anypolicy.evidence.report import Block, Figure, Outline, Samples, Table, Text, write_report
from anypolicy.policies.language.memory import Load, estimate, sizes_of, told
from anypolicy.runs.devices import choose_device
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.notes import notes
from anypolicy.stages.checks import stages
from anypolicy.stages.needs import union
from anypolicy.stages.recorded import RecordedRollout

if TYPE_CHECKING:
    from anypolicy.families.language import Plan, Run


def explain(p: Plan) -> str:
    """What a run would do, stage by stage, without starting it: whose each stage is, its numbers, and its cost."""
    s, r = p.settings, p.recipe
    lines = [f"{p.composition.spec} on {s.task}, policy {s.policy or 'of the task'}", ""]
    for f in fields(r):
        stage = getattr(r, f.name)
        lines.append(f"  {f.name:<10} {p.composition.origin[f.name]:<13} {stage if stage is not None else '—'}")
    own = [*s.reward, *([f"reward model {s.reward_model}"] if s.reward_model else [])]
    lines += [f"  {'':<10} {'your own':<13} {spec}, in place of the verifier's score" for spec in own]
    rows = (s.prompts or 0) * r.rollout.group_size
    updates = r.optimiser.epochs * r.optimiser.minibatches
    if not rows:
        step, sampled = f"the reference responses of {s.prompts} prompts, nothing sampled", "nothing generated"
    elif isinstance(r.rollout, RecordedRollout):
        step, sampled = f"the recorded responses of {s.prompts} prompts, nothing sampled", "nothing generated"
    else:
        step = f"{s.prompts} prompts × {r.rollout.group_size} responses = {rows} rows of {s.max_tokens} tokens"
        sampled = (f"up to {rows * s.steps * (s.max_tokens or 0):,} tokens generated "
                   f"(times up to {r.selection.max_rounds} where the selection refills)")  # fmt: skip
    lines += [
        "", f"  a step: {step}, {updates} optimiser step(s)", f"  the run: {s.steps} steps, {sampled}",
        f"  data: {len(p.task.train)} training prompts, {len(p.task.heldout)} held out",
    ]  # fmt: skip
    if found := memory(p):
        lines.append(f"  memory: {told(found)}")
    lines += [f"  {k} = {v}: suggested by the task or policy, not the paper's" for k, v in p.suggested.items()]
    return "\n".join(lines)


def memory(p: Plan) -> dict[str, float] | None:
    """Estimated bytes, where the sizes of the policy are known; a prompt is taken to have at most as many tokens as it
    has letters."""
    s, sizes = p.settings, sizes_of(p.settings.policy or "")
    if sizes is None:
        return None
    prompts = [*p.task.train[:200], *p.task.heldout[:200]]
    longest = max(len(x.tokens or "".join(m["content"] for m in x.messages)) for x in prompts)
    rows, length = max(p.recipe.rollout.group_size, 1) * (s.prompts or 1), longest + (s.max_tokens or 0)
    reference = s.reference is not None or union(stage.needs for stage in stages(p.recipe)).reference
    sampled = rows if p.recipe.rollout.group_size else 0
    load = Load(
        min(s.micro_tokens, rows * length), sampled, length, s.dtype == "bfloat16", s.lora_rank > 0, reference,
        s.recompute, choose_device(s.device).type != "cpu",
    )  # fmt: skip
    return estimate(sizes, load)


def summary(run: Run, page: Path) -> str:
    """Before → after, some answers of both, and what to try next."""
    first, last = run.evaluations()[0], run.evaluations()[-1]
    lines = ["", *notes(run.rows)]
    if "eval/accuracy" in last and "eval/accuracy" in first:
        lines.append(
            f"held-out accuracy  {held_out(first)}  →  {held_out(last)}   ({last['eval/n']:.0f} prompts, greedy)"
        )
    if "eval/reward_se" in last:
        before, after = (f"{shown(r, 'eval/reward')} ± {shown(r, 'eval/reward_se')}" for r in (first, last))
        lines.append(f"held-out reward  {before}  →  {after}   ({last['eval/n']:.0f} prompts, greedy)")
        for name in (k for k in last if k.startswith("eval/reward/")):
            lines.append(f"  {name.removeprefix('eval/reward/'):<16} {shown(first, name)}  →  {shown(last, name)}")
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
    if "rewards" in sample:
        each = [f"{name} {value:.3g}" for name, value in sample["rewards"].items()]
        total = "no reward" if sample["reward"] is None else f"reward {sample['reward']:.3g}"
        return f"{total} ({', '.join(each)})" if len(each) > 1 else total
    return "correct" if sample["correct"] else f"wrong, answer {sample['answer']}"


def pairs_of(run: Run) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Held-out prompts with the answers of the first and the last evaluation, those that changed first."""
    with RunDirectory.open(run.path, lock=False) as folder:
        steps = [r["step"] for r in run.evaluations()]
        before, after = (folder.read_samples(f"step-{s:06d}") for s in (steps[0], steps[-1]))
    both = [(a["prompt"], a, b) for a, b in zip(before, after, strict=False)]
    return sorted(both, key=lambda row: (row[1]["correct"], row[1]["reward"]) == (row[2]["correct"], row[2]["reward"]))


def page(run: Run) -> Path:
    """report.html of a finished run: accuracy before and after, curves, answers."""
    rows, evaluations = [r for r in run.rows if "event" not in r], run.evaluations()
    told = summary(run, run.path / "report.html").strip().splitlines()
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
    if "eval/reward_se" in evaluations[-1]:
        names = ["eval/reward", *(k for k in evaluations[-1] if k.startswith("eval/reward/"))]
        curves = [Curve(k.removeprefix("eval/"), steps, [over(evaluations, k)]) for k in names]
        blocks.append(Figure("Held-out reward, greedy", learning_curves(curves, y="reward")))
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
