"""Train, resume and evaluate a reward model. Its run directory holds the model as `reward-model/`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from anypolicy import catalogue
from anypolicy.compose import build
from anypolicy.data.preferences import Preference
from anypolicy.errors import InputError, check_numbers, checked, settled
from anypolicy.evidence.plots import Curve, learning_curves, over
from anypolicy.evidence.report import Block, Figure, Table, Text, write_report
from anypolicy.families.base import Family
from anypolicy.families.language import suggestions
from anypolicy.families.results import Result
from anypolicy.loops.reward_model import PreferenceLoop, PreferenceRecipe, calibrate, evaluate_pairs, fit_pairs
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.reward_model import RewardModel
from anypolicy.runs.checkpoint import Position
from anypolicy.runs.devices import Where, choose_device, elsewhere
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.drive import Schedule, drive
from anypolicy.runs.files import new_folder
from anypolicy.runs.processor import choose_threads
from anypolicy.runs.recipes import keep, recipe_of, restored, stated
from anypolicy.runs.trackers import check_trackers
from anypolicy.runs.trust import allow
from anypolicy.stages.lengths import Long
from anypolicy.tasks.language.preferences import load_pairs

FOLDER = "reward-model"
MOST = 10**6
"""Epochs."""


@dataclass(frozen=True)
class RewardSettings:
    """What training a reward model needs beside its method."""

    family: ClassVar[str] = "reward-model"

    pairs: str
    """.jsonl file with prompt, chosen and rejected in every line (and margin, where the loss uses it)"""
    policy: str | None = None
    """what to start from: Hugging Face id or folder, smollm2-135m (default), transformer:…, a run's policy/"""
    epochs: float = 1.0
    """passes over the training pairs"""
    seed: int = 0
    """one number decides data order and initial weights"""
    out: Path | None = None
    """run directory; default runs/METHOD-FILE-SEED, with a number where that is taken"""
    lr: float | None = None
    """learning rate"""
    heldout: float = 0.1
    """share of the prompts whose pairs are held out"""
    long_prompts: Long = "refuse"
    """pairs that the model does not hold: refuse, drop, truncate-left (the last tokens are kept)"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """of the model; the optimiser keeps float32 master weights"""
    recompute: bool = False
    """keep no activations inside the blocks of a transformer, compute them again in the backward pass: less memory, a
    third more time"""
    micro_tokens: int = 8192
    """padded tokens in one forward pass; memory, not results"""
    eval_every: int | None = None
    """steps between held-out evaluations; default a fifth of the run"""
    checkpoint_every: int | None = None
    """steps between checkpoints; default a tenth of the run"""
    checkpoint_minutes: float = 5.0
    """minutes after which a checkpoint is written at the latest; 0 for none by time"""
    trackers: tuple[str, ...] = ("auto",)
    """copies of the ledger: auto (tensorboard, where it is installed), none, tensorboard, wandb, mlflow, trackio"""
    device: str = "auto"
    """where it computes: auto (a GPU if there is one), cpu, cuda or cuda:N; a run may go on on another"""
    threads: int | None = None
    """processor threads of torch; default all cores that the process is granted"""


@dataclass(repr=False)
class RewardRun(Result):
    """A run that has ended (or was loaded), with its reward model."""

    model: RewardModel
    seconds: float = 0.0
    learnt: ClassVar[str] = FOLDER

    def __str__(self) -> str:
        shown = [r for r in self.rows if r.get("event") == "eval" and "eval/accuracy" in r]
        lines = [
            f"step {r['step']}: held-out pairs in the right order {r['eval/accuracy']:.3f} "
            f"[{r['eval/low']:.3f}, {r['eval/high']:.3f}] ({r['eval/n']:.0f} pairs)"
            for r in [*shown[:1], *shown[1:][-1:]]
        ]
        return "\n".join([*lines, f"next: anypolicy train METHOD --task … --reward-model {self.path}"])


@dataclass(frozen=True)
class RewardPlan:
    """Everything resolved and checked, nothing started."""

    method: str
    knobs: dict[str, Any]
    settings: RewardSettings
    recipe: PreferenceRecipe
    train: list[Preference]
    heldout: list[Preference]
    changed: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def steps(self) -> int:
        return math.ceil(self.settings.epochs * len(self.train) / self.recipe.pairs)

    def written(self) -> dict[str, Any]:
        """The recipe as plain values, enough to run again; with the counts of `changed` pairs."""
        changed = {"prompts_changed": self.changed} if self.changed else {}
        return recipe_of(self.method, self.knobs, self.settings) | changed


def plan(method: str, settings: RewardSettings, knobs: dict[str, Any] | None = None) -> RewardPlan:
    """Resolve names and defaults; every error that can be known now is raised now."""
    settings = settled(settings)
    allow(vars(settings))
    m, given = catalogue.get(method, "reward-model"), dict(knobs or {})
    check_numbers(settings, positive=("epochs", "lr", "micro_tokens", "threads"),
                  natural=("seed", "eval_every", "checkpoint_every", "checkpoint_minutes"))  # fmt: skip
    if settings.epochs > MOST:
        raise InputError("epochs", settings.epochs, f"use at most {MOST:,}")
    check_trackers(settings.trackers)
    choose_device(settings.device)
    policy = settings.policy or "smollm2-135m"
    taken = {k: v for k, v in suggestions(policy).items() if getattr(settings, k, v) is None}
    s = replace(settings, policy=policy, **taken)
    s = replace(s, dtype=s.dtype or "float32", threads=s.threads or choose_threads())
    recipe: PreferenceRecipe = build(m, given)
    if recipe.pairs < 1:
        raise InputError(f"{method}.pairs", recipe.pairs, "use at least 1")
    if s.lr is not None:
        recipe = replace(recipe, optimiser=replace(recipe.optimiser, lr=s.lr))
    train, heldout = load_pairs(s.pairs, heldout=s.heldout)
    p = RewardPlan(method, given, s, recipe, train, heldout)
    every = {k: max(p.steps // n, 1) for k, n in (("eval_every", 5), ("checkpoint_every", 10)) if getattr(s, k) is None}
    return replace(p, settings=replace(s, **every))


def loop_of(p: RewardPlan) -> tuple[RewardPlan, PreferenceLoop]:
    """The loop at step 0, and the plan with the pairs that it holds: all are encoded now."""
    s = p.settings
    assert s.policy is not None and s.dtype is not None and s.threads is not None
    torch.set_num_threads(s.threads)
    policy = load_policy(s.policy, dtype=s.dtype, seed=s.seed, device=choose_device(s.device))
    if not isinstance(policy, CausalLM):
        raise InputError("policy", s.policy, "a reward model needs a transformer to start from")
    model = RewardModel.from_policy(policy, s.seed)
    model.micro_tokens, model.recompute = s.micro_tokens, s.recompute
    p = fitted(p, model)
    return p, PreferenceLoop(p.recipe, model, p.train, s.seed)


def fitted(p: RewardPlan, model: RewardModel) -> RewardPlan:
    """The plan with pairs that the model holds."""
    train, heldout, changed = fit_pairs(model, p.train, p.heldout, p.settings.long_prompts)
    return replace(p, train=train, heldout=heldout, changed=changed)


@checked
def train_reward_model(
    method: str, *, pairs: str | Path, knobs: dict[str, Any] | None = None, quiet: bool = False, **settings: Any
) -> RewardRun:
    """Train a reward model on pairs and return the run; the further settings are the fields of `RewardSettings`."""
    return FAMILY.train(method, pairs=str(pairs), knobs=knobs, quiet=quiet, **settings)


@checked
def load_run(path: str | Path, *, device: str | None = None, trust: bool = False) -> RewardRun:
    """A finished run with its model."""
    with RunDirectory.open(path, lock=False) as run:
        return RewardRun(run.path, run.read(), trained(run, device, trust=trust)[1])


def trained(run: RunDirectory, device: str | None, *, trust: bool) -> tuple[RewardPlan, RewardModel]:
    """The model of a finished run."""
    p = FAMILY.plan_from(elsewhere(stated(run), device), trust=trust)
    if not (run.path / FOLDER).is_dir():
        raise InputError("run", str(run.path), "it has no reward model yet: go on with `anypolicy resume`")
    where = choose_device(p.settings.device)
    return p, RewardModel.load(run.path, dtype=p.settings.dtype or "float32", device=where)


@checked
def evaluate(path: str | Path, *, device: Where = None, trust: bool = False) -> dict[str, float]:
    """Held-out accuracy of a finished run's model."""
    with RunDirectory.open(path, lock=False) as run:
        p, model = trained(run, device, trust=trust)
        return evaluate_pairs(model, fitted(p, model).heldout)


def go(p: RewardPlan, run: RunDirectory, loop: PreferenceLoop, *, quiet: bool) -> RewardRun:
    """The run itself; then calibrate and save."""
    s, began = p.settings, time.monotonic()
    first = restored(run, p.written(), p.steps, loop.state(), lambda state, t: loop.restore(state, t["optimiser"]))

    def save(at: Position) -> None:
        keep(run, at, {"optimiser": loop.updater.tensors()}, loop.state(), p.written())

    assert s.eval_every is not None and s.checkpoint_every is not None
    drive(
        run, Schedule(p.steps, s.eval_every, s.checkpoint_every, minutes=s.checkpoint_minutes), first,
        title=p.method, trackers=s.trackers, written=p.written(), quiet=quiet, learn=lambda _n, _pause: loop.step(),
        evaluate=lambda step: evaluate_pairs(loop.model, p.heldout), save=save,
    )  # fmt: skip
    loop.model.calibration = calibrate(loop.model, p.train)
    with new_folder(run.path / FOLDER) as work:
        loop.model.save(work)
    return RewardRun(run.path, run.read(), loop.model, time.monotonic() - began)


def explain(p: RewardPlan) -> str:
    """What a run would do, without starting it."""
    s = p.settings
    shown = [f"  {k:<14} {v}" for k, v in vars(p.recipe).items()]
    return "\n".join([
        f"{p.method} on {s.pairs}: {len(p.train)} pairs, {len(p.heldout)} held out", f"starts from {s.policy}", "",
        *shown, "", f"  the run: {p.steps:,} steps ({s.epochs:g} passes), evaluated every {s.eval_every:,}",
    ])  # fmt: skip


def summary(run: RewardRun, where: Path) -> str:
    """Before → after, and what to do with it."""
    return f"{run}\nreport {where}   ({run.seconds:.0f} s)"


def page(run: RewardRun) -> Path:
    """report.html of a finished run: accuracy and loss."""
    where, evaluations = run.path / "report.html", [r for r in run.rows if r.get("event") == "eval"]
    rows = [r for r in run.rows if "event" not in r]
    blocks: list[Block] = [Text(str(run).splitlines())]
    for name, these in (("eval/accuracy", evaluations), ("loss", rows)):
        known = [r for r in these if name in r]
        if known:
            curve = Curve(
                "held out" if these is evaluations else "pairs", [r["step"] for r in known], [over(known, name)]
            )
            blocks.append(Figure(name, learning_curves([curve], y=name)))
    with RunDirectory.open(run.path, lock=False) as folder:
        blocks.append(Table("Recipe", ["setting", "value"], list(folder.recipe().items())))
    return write_report(where, run.path.name, blocks)


FAMILY = Family(
    settings=RewardSettings, plan=plan, folder=lambda p: f"{p.method}-{Path(p.settings.pairs).stem}-{p.settings.seed}",
    begin=loop_of, go=go, load=load_run, evaluate=evaluate, explain=explain, summary=summary, page=page,
    metrics=lambda _: ("eval/accuracy",),
)  # fmt: skip
start, resume, plan_from = FAMILY.start, checked(FAMILY.resume), FAMILY.plan_from
