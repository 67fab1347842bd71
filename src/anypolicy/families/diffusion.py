"""Train, resume and evaluate a diffusion model: a method of the diffusion family on samples that were preferred."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from anypolicy import catalogue
from anypolicy.compose import build
from anypolicy.errors import InputError, check_numbers, checked, settled
from anypolicy.evaluation.diffusion import judged
from anypolicy.evidence.pictures import grid, scatter
from anypolicy.evidence.plots import Curve, learning_curves, over
from anypolicy.evidence.report import Block, Figure, Picture, Table, Text, write_report
from anypolicy.families.base import Family
from anypolicy.families.results import Result
from anypolicy.knobs import Knob
from anypolicy.learners.base import load_modules
from anypolicy.loops.diffusion import DiffusionLoop, DiffusionRecipe
from anypolicy.policies.diffusion.denoisers import DiffusionModel
from anypolicy.policies.diffusion.image_models import PipelineModel, load_model
from anypolicy.runs.checkpoint import Position
from anypolicy.runs.devices import Where, choose_device, elsewhere
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.drive import Schedule, drive
from anypolicy.runs.files import disk_errors, write_bytes
from anypolicy.runs.notes import notes
from anypolicy.runs.processor import choose_threads
from anypolicy.runs.recipes import (
    keep,
    made_checkpoint,
    put_back,
    recipe_of,
    restored,
    stated,
)
from anypolicy.runs.trackers import check_trackers
from anypolicy.runs.trust import allow
from anypolicy.tasks.diffusion.base import PictureTask
from anypolicy.tasks.diffusion.load import load_pictures

STRIDE = 10
"""Updates between two rows of the ledger."""


@dataclass(frozen=True)
class DiffusionSettings:
    """What training a diffusion model needs beside its method."""

    family: ClassVar[str] = "diffusion"

    task: str
    """digits, photos, ring8 (settings follow as :key=value,…), or a folder of images with metadata.jsonl"""
    policy: str | None = None
    """the model to start from: a run's policy/ folder, a Stable Diffusion pipeline (folder or name), or `fresh`;
    default the task's own, trained once and kept in the cache"""
    steps: int = 210
    """updates"""
    seed: int = 0
    """one number decides data order, noise, references and (with `fresh`) initial weights"""
    out: Path | None = None
    """run directory; default runs/METHOD-TASK-SEED, with a number where that is taken"""
    sampler_steps: int | None = None
    """steps of the reverse process; default as the model says"""
    guidance: float | None = None
    """classifier-free guidance of a pipeline; default 7.5"""
    micro: int | None = None
    """samples in one pass of the network: memory; a sampler that draws on its way draws other noise with another one"""
    eval_every: int | None = None
    """updates between evaluations; default a fifth of the run"""
    eval_samples: int = 500
    """samples made in an evaluation"""
    checkpoint_every: int | None = None
    """updates between checkpoints; default a fifth of the run"""
    checkpoint_minutes: float = 5.0
    """minutes after which a checkpoint is written at the latest; 0 for none by time"""
    trackers: tuple[str, ...] = ("auto",)
    """copies of the ledger: auto (tensorboard, where it is installed), none, tensorboard, wandb, mlflow, trackio"""
    device: str = "auto"
    """where it computes: auto (a GPU if there is one), cpu, cuda or cuda:N; a run may go on on another"""
    threads: int | None = None
    """processor threads of torch; default all cores that the process is granted"""
    method_file: tuple[Path, ...] = ()
    """.py files with methods of your own"""


@dataclass(repr=False)
class DiffusionRun(Result):
    """A run that has ended (or was loaded), with its model."""

    model: DiffusionModel
    task: PictureTask
    seconds: float = 0.0


@dataclass(frozen=True)
class DiffusionPlan:
    """Everything resolved and checked, nothing started."""

    method: str
    knobs: dict[str, Any]
    settings: DiffusionSettings
    recipe: DiffusionRecipe
    task: PictureTask

    def written(self) -> dict[str, Any]:
        """The recipe as plain values, enough to run again."""
        return recipe_of(self.method, self.knobs, self.settings)


def plan(method: str, settings: DiffusionSettings, knobs: dict[str, Any] | None = None) -> DiffusionPlan:
    """Resolve names and defaults; every error that can be known now is raised now."""
    settings = settled(settings)
    allow(vars(settings))
    for path in settings.method_file:
        catalogue.load_file(path)
    check_numbers(settings, positive=("steps", "eval_samples", "threads", "micro", "sampler_steps"),
                  natural=("seed", "eval_every", "checkpoint_every", "checkpoint_minutes", "guidance"))  # fmt: skip
    if settings.eval_samples < 2:
        raise InputError("eval_samples", settings.eval_samples, "use at least 2")
    check_trackers(settings.trackers)
    choose_device(settings.device)
    m, task = catalogue.get(method, "diffusion"), load_pictures(settings.task)
    given = {k: v for k, v in task.suggested.items() if k in m.knobs} | dict(knobs or {})
    recipe: DiffusionRecipe = build(m, given)
    numbers = {**vars(recipe.learner), "batch": recipe.batch}
    for name in ("batch", "beta", "lr", "clip"):
        if name in numbers and not numbers[name] > 0:
            raise InputError(f"{method}.{name}", numbers[name], "use a number above 0")
    if recipe.needs_pairs and task.losers is None:
        raise InputError(
            "task", settings.task, f"{method} learns from pairs: give `chosen` and `rejected` in every line"
        )
    if settings.policy is None and task.base is None:
        raise InputError("policy", None, "name the model to start from: a pipeline, or a run's policy/ folder")
    if settings.policy == "fresh" and task.fresh is None:
        raise InputError("policy", "fresh", "this task has no model of its own: name a pipeline")
    every = {"eval_every": max(settings.steps // 5, 1), "checkpoint_every": max(settings.steps // 5, 1)}
    taken = {k: v for k, v in every.items() if getattr(settings, k) is None}
    s = replace(settings, **taken, threads=settings.threads or choose_threads())
    return DiffusionPlan(method, given, s, recipe, task)


def model_of(p: DiffusionPlan) -> DiffusionModel:
    """The model that learning starts from."""
    s, task = p.settings, p.task
    assert s.threads is not None
    torch.set_num_threads(s.threads)
    if s.policy is None:
        assert task.base is not None
        model = task.base()
    elif s.policy == "fresh":
        assert task.fresh is not None
        model = task.fresh(s.seed)
    else:
        model = load_model(s.policy)
    model.to(choose_device(s.device))
    adjust(model, s)
    fits(model, p)
    return model


def adjust(model: DiffusionModel, s: DiffusionSettings) -> None:
    """The user's numbers in place of the model's."""
    model.micro = s.micro or model.micro
    for name, value in (("steps", s.sampler_steps), ("guidance", s.guidance)):
        if value is None:
            continue
        if not hasattr(model, name):
            shown = {"steps": "sampler_steps"}.get(name, name)
            raise InputError(shown, value, "this model has no such choice: leave it out")
        setattr(model, name, value)


def fits(model: DiffusionModel, p: DiffusionPlan) -> None:
    """Refuse a model that does not make what the task shows."""
    samples, labels = p.task.winners.take([0])
    pixels = getattr(model, "pixels", None)
    shape = (3, pixels, pixels) if pixels else model.shape
    if tuple(samples.shape[1:]) != shape or isinstance(model, PipelineModel) != isinstance(labels[0], str):
        makes, has = (" × ".join(map(str, x)) for x in (shape, samples.shape[1:]))
        kind = "prompts" if isinstance(labels[0], str) else "classes"
        hint = f" (set :size={pixels})" if pixels else ""
        raise InputError("policy", p.settings.policy, f"it makes {makes}, the task has {has} of {kind}{hint}")
    for label in p.task.labels:
        model.condition([label])


def go(p: DiffusionPlan, run: RunDirectory, model: DiffusionModel, *, quiet: bool) -> DiffusionRun:
    """The run itself."""
    s, began = p.settings, time.monotonic()
    loop = DiffusionLoop(p.recipe, model, p.task.winners, p.task.losers, s.seed)
    first = restored(run, p.written(), s.steps, loop.state(), loop.restore)

    def save(at: Position) -> None:
        keep(run, at, loop.tensors(), loop.state(), p.written())

    def evaluate(step: int) -> dict[str, Any]:
        log, samples, _ = judged(p.task, model, s.eval_samples, s.seed)
        write_png(run.path, f"step-{step:06d}", picture(p.task, samples))
        return log

    assert s.eval_every is not None and s.checkpoint_every is not None
    drive(
        run, Schedule(s.steps, s.eval_every, s.checkpoint_every, STRIDE, minutes=s.checkpoint_minutes), first,
        title=p.method, trackers=s.trackers, written=p.written(), quiet=quiet, learn=loop.run, evaluate=evaluate,
        save=save,
    )  # fmt: skip
    run.save_policy(model.save)
    return DiffusionRun(run.path, run.read(), model, p.task, time.monotonic() - began)


@checked
def load_run(path: str | Path, *, device: str | None = None, trust: bool = False) -> DiffusionRun:
    """A run as it stands: its newest checkpoint."""
    with RunDirectory.open(path, lock=False) as run:
        p, model = restored_model(run, device, trust=trust)
        return DiffusionRun(run.path, run.read(), model, p.task)


def restored_model(run: RunDirectory, device: str | None, *, trust: bool) -> tuple[DiffusionPlan, DiffusionModel]:
    """The model of a run at its newest checkpoint."""
    p = plan_from(elsewhere(stated(run), device), trust=trust)
    saved, model = made_checkpoint(run, p.written()), model_of(p)
    loop = DiffusionLoop(p.recipe, model, p.task.winners, p.task.losers, p.settings.seed)
    with put_back(saved) as (_, tensors):
        load_modules(loop.learner, tensors["learner"])
    return p, model


@checked
def evaluate_run(
    path: str | Path, *, samples: Annotated[int | None, Knob("how many samples to make", least=2)] = None,
    device: Where = None, trust: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Evaluate a run's newest checkpoint. Writes samples/eval.png."""
    with RunDirectory.open(path, lock=False) as run:
        p, model = restored_model(run, device, trust=trust)
        log, made, _ = judged(p.task, model, samples or p.settings.eval_samples, p.settings.seed)
        write_png(run.path, "eval", picture(p.task, made))
        return log


def picture(task: PictureTask, samples: Tensor) -> bytes:
    """Samples as people would rather look at them: points over held-out ones, or one column a label (at most 10)."""
    if samples.dim() == 2:
        return scatter(samples, task.heldout.take(range(len(task.heldout)))[0])
    columns = min(max(len(task.labels), 4), 10)
    return grid(samples[: 6 * columns], columns)


def write_png(run: Path, name: str, png: bytes) -> None:
    """samples/NAME.png"""
    with disk_errors(run / "samples"):
        (run / "samples").mkdir(exist_ok=True)
    write_bytes(run / "samples" / f"{name}.png", png)


def explain(p: DiffusionPlan) -> str:
    """What a run would do, without starting it."""
    s, task = p.settings, p.task
    pairs = f"{len(task.winners)} preferred samples" + (" and as many others" if p.recipe.needs_pairs else "")
    shown = [f"  {k:<14} {v}" for k, v in vars(p.recipe.learner).items()]
    fit = ", ".join(f"{k} {v}" for k, v in task.suggested.items() if k in p.knobs and p.knobs[k] == v)
    return "\n".join([
        f"{p.method} on {s.task}: {pairs}, {len(task.heldout)} held out",
        f"starts from {s.policy or 'the model of the task'}", "", f"  {'batch':<14} {p.recipe.batch}", *shown, "",
        *([f"  that fit this task: {fit}"] if fit else []),
        f"  the run: {s.steps:,} updates on {s.threads} thread(s), evaluated every {s.eval_every:,} on "
        f"{s.eval_samples} samples",
    ])  # fmt: skip


def summary(run: DiffusionRun, where: Path) -> str:
    """Before → after, and what to try next."""
    first, last = run.evaluations()[0], run.evaluations()[-1]
    names = [k for k in last if k.startswith("eval/") and k != "eval/n"]
    return "\n".join([
        "", *notes(run.rows),
        *(f"{k.removeprefix('eval/'):<12} {first[k]:.4f}  →  {last[k]:.4f}" for k in names if k in first),
        f"report {where}   ({run.seconds:.0f} s)",
        f"next: anypolicy resume {run.path} --steps {2 * last['step']}   # or: anypolicy eval {run.path} --samples "
        "2000",
    ])  # fmt: skip


def page(run: DiffusionRun) -> Path:
    """report.html of a finished run: samples before and after, learning curves, who judged."""
    rows, evaluations = [r for r in run.rows if "event" not in r], run.evaluations()
    where, steps = run.path / "report.html", [r["step"] for r in evaluations]
    lines = summary(run, where).strip().splitlines()[:-2]
    blocks: list[Block] = [Text([*lines, f"Judged by {run.task.judged_by()}."])]
    for heading, step in (("Before", steps[0]), ("After", steps[-1])):
        png = run.path / "samples" / f"step-{step:06d}.png"
        blocks.append(Picture(f"{heading} (update {step})", png.read_bytes(), "the same noise in both"))
    for name in (k for k in evaluations[-1] if k.startswith("eval/") and k != "eval/n"):
        blocks.append(Figure(name, learning_curves([Curve("run", steps, [over(evaluations, name)])], y=name)))
    told = {"step", "updates", "lr"}
    for name in (k for k in rows[-1] if k not in told) if rows else ():
        curve = Curve("run", [r["step"] for r in rows], [over(rows, name)])
        blocks.append(Figure(name, learning_curves([curve], y=name)))
    with RunDirectory.open(run.path, lock=False) as folder:
        blocks.append(Table("Recipe", ["setting", "value"], list(folder.recipe().items())))
    return write_report(where, run.path.name, blocks)


def load_diffusion(folder: str | Path) -> DiffusionModel:
    """The model of a run's policy/ folder, or a pipeline, ready to sample (`samples_of`)."""
    return load_model(folder)


FAMILY = Family(
    settings=DiffusionSettings, plan=plan,
    folder=lambda p: f"{p.method}-{Path(p.settings.task).name}-{p.settings.seed}",
    begin=lambda p: (p, model_of(p)), go=go, load=load_run, evaluate=evaluate_run, explain=explain,
    summary=summary, page=page, metrics=lambda _: ("eval/preferred",),
)  # fmt: skip
train_diffusion, start, resume, plan_from = (
    checked(FAMILY.train),
    FAMILY.start,
    checked(FAMILY.resume),
    FAMILY.plan_from,
)
