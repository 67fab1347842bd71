"""Train, resume and evaluate a controller: a method of the control family in an environment."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor

from anypolicy import catalogue
from anypolicy.compose import build
from anypolicy.data.demonstrations import Episode
from anypolicy.data.readers import read_tensors
from anypolicy.data.replay import Replay, chunked, join
from anypolicy.data.transitions import Transitions
from anypolicy.engines.environments import EnvironmentFailed, Environments
from anypolicy.errors import InputError, check_numbers, checked, settled
from anypolicy.evaluation.control import Predictor
from anypolicy.evidence.film import film
from anypolicy.families.base import Family
from anypolicy.families.control_pages import explain, page, summary
from anypolicy.families.results import Result
from anypolicy.knobs import Knob
from anypolicy.learners.base import Learner, load_modules, observing, place, prepare, tell_budget, weights_of
from anypolicy.learners.recipe import (
    OfflineRecipe,
    OffPolicyRecipe,
    OnPolicyRecipe,
    Recipe,
    chunk_of,
    steps_of,
    uses_offline,
    whole_episodes,
)
from anypolicy.loops.choose import give, learner_of, loop_of
from anypolicy.loops.control import OffPolicyLoop, OnPolicyLoop, evaluate
from anypolicy.loops.several import SeedsLoop
from anypolicy.runs.checkpoint import Checkpoint, Position, latest_checkpoint
from anypolicy.runs.devices import Where, choose_device, elsewhere
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.drive import Schedule, drive
from anypolicy.runs.processor import Products, choose_products, use_products
from anypolicy.runs.recipes import (
    checkpoint_of,
    keep,
    made_checkpoint,
    put_back,
    recipe_of,
    rewind,
    stated,
)
from anypolicy.runs.seeds import generator, number
from anypolicy.runs.stop import Pause
from anypolicy.runs.strict_json import json_text
from anypolicy.runs.trackers import check_trackers
from anypolicy.runs.trust import allow, enter_modules
from anypolicy.tasks.control.chunks import in_chunks
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import EnvironmentTask, load_environment

STRIDE = 1000
"""Environment steps (or updates on demonstrations) between two rows of the ledger; a longer rollout is one row."""


@dataclass(frozen=True)
class ControlSettings:
    """What training a controller needs beside its method."""

    family: ClassVar[str] = "control"

    task: str
    """gym/ID or gym/MODULE:ID of Gymnasium (settings follow as :key=value,…) or a test-bed; in Python also a function
    that makes an environment, a class of environments, or one that gymnasium.make made"""
    steps: int = 100_000
    """environment steps; updates, of a method that learns from demonstrations alone"""
    seed: int = 0
    """one number decides environments, exploration, sampling, initial weights"""
    out: Path | None = None
    """run directory; default runs/METHOD-TASK-SEED, with a number where that is taken"""
    envs: int | None = None
    """copies of the environment; default as the method says"""
    demos: str | None = None
    """demonstrations: a Minari data set or folder, a .safetensors file of recorded episodes, a .npz file of
    arrays, or `scripted` (settings follow as :key=value,…) where the task has a demonstrator"""
    eval_every: int | None = None
    """environment steps between evaluations; default a tenth of the run"""
    eval_episodes: int = 10
    """episodes in an evaluation"""
    checkpoint_every: int | None = None
    """environment steps between checkpoints; default a fifth of the run"""
    checkpoint_minutes: float = 5.0
    """minutes after which a checkpoint is written at the latest; 0 for none by time"""
    trackers: tuple[str, ...] = ("auto",)
    """copies of the ledger: auto (tensorboard, where it is installed), none, tensorboard, wandb, mlflow, trackio"""
    threads: int | None = None
    """processor threads of torch; default 1, which small networks like best"""
    device: str = "cpu"
    """where networks compute: cpu (fastest for small ones), auto (a GPU if there is one), cuda or cuda:N; a run may go
    on on another"""
    products: Products | None = None
    """library of float32 matrix products; default oneDNN where it is much faster and as exact"""
    method_file: tuple[Path, ...] = ()
    """.py files with methods of your own"""
    imports: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="import")] = ()
    """a module, or FILE.py, that registers environments of your own with Gymnasium; several by repeating it"""


@dataclass(repr=False)
class ControlRun(Result):
    """A run that has ended (or was loaded), with its learner and the environment it is for."""

    learner: Learner
    task: EnvironmentTask
    seconds: float = 0.0

    @cached_property
    def predictor(self) -> Predictor:
        """The learner as it is asked from outside."""
        return Predictor(self.learner, self.task)

    def predict(
        self, observation: Any, state: None = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, None]:
        """The action for an observation as the environment gives it (or several stacked), as the environment takes it,
        and no state: arguments and results of Stable-Baselines3's `predict`, which draws unless told `deterministic`,
        where this does not. Controllers here have no state, so it and `episode_start` say nothing."""
        return self.predictor(observation, deterministic=deterministic), None


@dataclass
class ControlPlan:
    """Everything resolved and checked, nothing started."""

    method: str
    knobs: dict[str, Any]
    settings: ControlSettings
    recipe: Recipe
    task: EnvironmentTask

    @property
    def unit(self) -> int:
        """The run is a whole number of these many environment steps: a rollout of known length, or one step of every
        copy."""
        r = self.recipe
        rollout = r.horizon if isinstance(r, OnPolicyRecipe) and r.episodes is None else None
        return (rollout or 1) * r.environments

    @property
    def steps(self) -> int:
        """Environment steps of the run: those asked for, rounded up."""
        return -(-self.settings.steps // self.unit) * self.unit

    def written(self) -> dict[str, Any]:
        """The recipe as plain values, enough to run again."""
        return recipe_of(self.method, self.knobs, replace(self.settings, task=self.task.name))

    def notes(self) -> list[str]:
        """What the user should know of the task before it begins."""
        if not self.task.assumed:
            return []
        return [f"note: {self.settings.task} gives its episodes no limit: they are cut (truncated) after "
                f"{self.task.horizon:,} steps; its setting max_steps is another limit"]  # fmt: skip

    def tell(self, *, quiet: bool) -> None:
        """Say it where the run is watched."""
        for note in [] if quiet else self.notes():
            print(note, file=sys.stderr)


def plan(method: str, settings: ControlSettings, knobs: dict[str, Any] | None = None) -> ControlPlan:
    """Resolve names and defaults; every error that can be known now is raised now."""
    settings = settled(settings)
    allow(vars(settings))
    for path in settings.method_file:
        catalogue.load_file(path)
    enter_modules(settings.imports)
    given = dict(knobs or {})
    check_numbers(settings, positive=("steps", "envs", "eval_episodes", "threads"),
                  natural=("seed", "eval_every", "checkpoint_every", "checkpoint_minutes"))  # fmt: skip
    check_trackers(settings.trackers)
    choose_device(settings.device)
    recipe: Recipe = build(catalogue.get(method, "control"), given)
    task = task_of(recipe, settings.task)
    if settings.demos is not None and isinstance(recipe, OffPolicyRecipe):
        recipe = recipe.alone or recipe
    if settings.envs is not None:
        recipe = replace(recipe, environments=settings.envs)
    if isinstance(recipe, OnPolicyRecipe):
        recipe = whole_episodes(recipe, task.horizon)
    if recipe.needs_offline and settings.demos is None:
        raise InputError("demos", None, f"{method} learns from demonstrations too: give a data set")
    if settings.demos is not None and not uses_offline(recipe):
        raise InputError("demos", settings.demos, f"{method} uses no demonstrations: leave it out")
    every = {"eval_every": max(settings.steps // 10, 1), "checkpoint_every": max(settings.steps // 5, 1)}
    s = replace(
        settings,
        **{k: v for k, v in every.items() if getattr(settings, k) is None},
        threads=settings.threads or 1,
        products=settings.products or choose_products(),
    )
    return ControlPlan(method, given, s, recipe, task)


def task_of(recipe: Recipe, name: str) -> EnvironmentTask:
    """The environment as the recipe acts in it: with chunks of actions where it decides several at once."""
    chunk, n = chunk_of(recipe), steps_of(recipe)
    if chunk > 1 and n > 1:
        raise InputError("n_step", n, f"returns over several steps are not joined across chunks of {chunk}: use 1")
    return in_chunks(load_environment(name), chunk, recipe.discount)


class World:
    """Environments, learner and loop of a plan."""

    def __init__(self, p: ControlPlan):
        s = p.settings
        assert s.threads is not None and s.products is not None
        torch.set_num_threads(s.threads)
        use_products(s.products, choose_device(s.device))
        self.plan = p
        self.environments = Environments(p.task.vector(p.recipe.environments), number(s.seed, "environments") % 2**31)
        self.learner = learner_for(p)
        tell_budget(self.learner, p.steps)
        self.demos = None if s.demos is None else load_demonstrations(s.demos, p.task.one_by_one())
        self.loop = loop_of(p.recipe, self.learner, self.environments, p.task.space, s.seed, horizon=p.task.horizon)

    def begin(self, *, fresh: bool = True) -> None:
        """What comes before the first step: a fresh learner is prepared on the demonstrations as they are recorded,
        then the loop (and a learner that asks for them) gets them as the learner sees them, which may depend on what it
        learnt."""
        demos, observe = self.demos, observing(self.learner) if self.learner.needs.observe else None
        raw = None if demos is None else offline(self.plan, demos)
        if fresh:
            prepare(self.learner, raw, generator(self.plan.settings.seed, "prepare"))
        give(self.loop, self.learner, raw if demos is None or observe is None else offline(self.plan, demos, observe))

    def evaluate(self, step: int, episodes: int | None = None) -> tuple[dict[str, float], list[float]]:
        """Of the learner as it is."""
        return evaluated(self.plan, self.learner, step, episodes)


def learner_for(p: ControlPlan) -> Learner:
    """The learner of a plan with its first weights, on the device."""
    learner = learner_of(p.recipe, p.task.space, number(p.settings.seed, "weights") % 2**31)
    place(learner, choose_device(p.settings.device))
    return learner


def evaluated(
    p: ControlPlan, learner: Learner, step: int, episodes: int | None = None
) -> tuple[dict[str, float], list[float]]:
    """A fresh environment, the same episodes at every evaluation."""
    environments = Environments(p.task.vector(1), number(p.settings.seed, "evaluation") % 2**31)
    try:
        rng = generator(p.settings.seed, "evaluation", step)
        return evaluate(learner, environments, episodes or p.settings.eval_episodes, rng)
    finally:
        environments.close()


def offline(p: ControlPlan, episodes: list[Episode], observe: Callable[[Tensor], Tensor] | None = None) -> Replay:
    """Demonstrations in transitions over as many steps as the learner's own, in chunks as long, or what the recipe
    makes of them; pixels are bytes unless something else is observed."""
    made: list[Transitions] = []
    own = p.recipe.episode if isinstance(p.recipe, OfflineRecipe) else None
    changed: Callable[[Transitions], Transitions] = own or (lambda t: t)
    for e in episodes:
        t = replace(e, observation=observe(e.observation) if observe else e.observation).transitions(p.recipe.discount)
        chunk, n = chunk_of(p.recipe), steps_of(p.recipe)
        made.append(changed(chunked(t, chunk, p.recipe.discount) if chunk > 1 else join(t, n, p.recipe.discount)))
    if not sum(map(len, made)):
        raise InputError("demos", p.settings.demos, f"{p.method} can use no transition of it: record longer episodes")
    width, pixels = made[0].observation.shape[1], 0 if observe else p.task.space.pixels
    device = choose_device(p.settings.device)
    replay = Replay(sum(map(len, made)), width, made[0].action.shape[1], pixels, device)
    for t in made:
        replay.add(t)
    return replay


def several(
    method: str, *, task: str, seeds: Sequence[int], knobs: dict[str, Any] | None = None, device: str = "cpu"
) -> SeedsLoop:  # fmt: skip
    """A run of the method for each seed, all in this process and together: `.run(steps)` trains them, `.loops[i]` is
    that of the i-th seed. For small networks, whose update is mostly overhead."""
    loops = [
        World(plan(method, ControlSettings(task, seed=seed, trackers=(), device=device), knobs)).loop for seed in seeds
    ]
    return SeedsLoop([x for x in loops if isinstance(x, OffPolicyLoop)])


def go(p: ControlPlan, run: RunDirectory, world: World, *, quiet: bool) -> ControlRun:
    """The run itself; what was learnt, and the replay, are saved also when an environment fails in the middle."""
    p.tell(quiet=quiet)
    s, began, loop = p.settings, time.monotonic(), world.loop
    first = restore(p, run, world)
    world.begin(fresh=first.step == 0)

    def save(at: Position, **more: Any) -> None:
        keep(run, at, loop.tensors(), loop.state(), p.written(), **more)

    def failed(step: int, error: EnvironmentFailed) -> InputError:
        last, replay = latest_checkpoint(run.path), not isinstance(loop, OnPolicyLoop)
        if replay and step > (0 if last is None else int(last.name)):
            run.sync()
            loop.logs.clear()
            save(Position(step, step), failed=str(error))
            last = latest_checkpoint(run.path)
        where = f"the checkpoint of step {int(last.name)}" if last else "the beginning"
        told = f"{error} (near step {loop.steps}); `anypolicy resume` goes on from {where}"
        return InputError("task", s.task, told)

    def held_out(step: int) -> dict[str, Any]:
        try:
            log, returns = world.evaluate(step)
        except EnvironmentFailed as error:
            raise failed(step, error) from error
        run.write_samples(f"step-{step:06d}", [{"return": r} for r in returns])
        return log

    def learn(steps: int, pause: Pause) -> dict[str, float]:
        try:
            return loop.run(steps, pause)
        except EnvironmentFailed as error:
            raise failed(loop.steps, error) from error

    assert s.eval_every is not None and s.checkpoint_every is not None
    drive(
        run, Schedule(p.steps, s.eval_every, s.checkpoint_every, STRIDE, p.unit, s.checkpoint_minutes), first,
        title=p.method, trackers=s.trackers, written=p.written(), quiet=quiet, learn=learn, evaluate=held_out,
        save=save,
    )  # fmt: skip
    run.save_policy(lambda folder: save_controller(folder, p, world.learner))
    world.environments.close()
    return ControlRun(run.path, run.read(), world.learner, p.task, time.monotonic() - began)


def restore(p: ControlPlan, run: RunDirectory, world: World) -> Position:
    """Load the newest checkpoint, if there is one, and cut the ledger to it; where to begin."""
    saved, exact = checkpoint_of(run, p.written()), True
    if saved is not None:
        with put_back(saved, world.loop.state()) as (state, tensors):
            exact = world.loop.restore(state, tensors)
    at = rewind(run, saved, p.written(), p.steps)
    if saved is not None and not exact:
        failed = saved.state.get("failed")
        why = f"{failed or 'the state of this environment cannot be saved or put back'}: its episodes began anew"
        run.append({"step": at.step, "event": "restarted", "why": why})
    return at


@checked
def evaluate_run(
    path: str | Path, *, episodes: Annotated[int | None, Knob("how many fresh episodes", least=1)] = None,
    video: Annotated[Path | None, Knob("film the first episode into this .mp4 or .gif file")] = None,
    device: Where = None, trust: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Mean return of a run's newest checkpoint over fresh episodes. Writes samples/eval.jsonl, and the first episode
    as a film if asked for."""
    with RunDirectory.open(path, lock=False) as run:
        p, learner = trained(run, device, trust=trust)
        if video is not None:
            film(learner, p.task, video, number(p.settings.seed, "evaluation") % 2**31)
        log, returns = evaluated(p, learner, -1, episodes)
        run.write_samples("eval", [{"return": r} for r in returns])
        return log


def trained(run: RunDirectory, device: str | None = None, *, trust: bool = False) -> tuple[ControlPlan, Learner]:
    """The plan of a run, and its learner at the newest checkpoint, or as it was last saved where there are none."""
    p = plan_from(elsewhere(stated(run), device), trust=trust)
    folder, saved = latest_checkpoint(run.path), run.path / "policy" / "controller.safetensors"
    if folder is None and not saved.exists():
        raise InputError("run", str(run.path), "it has no checkpoint yet: go on with `anypolicy resume`")
    assert p.settings.threads is not None and p.settings.products is not None
    torch.set_num_threads(p.settings.threads)
    use_products(p.settings.products, choose_device(p.settings.device))
    learner = learner_for(p)
    found = Checkpoint(0, {"learner": read_tensors(saved, "run")}, {"loop": {}}) if folder is None else None
    with put_back(found or made_checkpoint(run, p.written())) as (_, tensors):
        load_modules(learner, tensors["learner"])
    return p, learner


@checked
def load_run(path: str | Path, *, device: str | None = None, trust: bool = False) -> ControlRun:
    """A run as it stands: its newest checkpoint."""
    with RunDirectory.open(path, lock=False) as run:
        p, learner = trained(run, device, trust=trust)
        return ControlRun(run.path, run.read(), learner, p.task)


def save_controller(folder: Path, p: ControlPlan, learner: Learner) -> None:
    """The learner's weights and what it takes to make it again."""
    save_file({k: v.contiguous() for k, v in weights_of(learner).items()}, folder / "controller.safetensors")
    config = {"type": "controller", "method": p.method, "knobs": p.knobs, "task": p.settings.task}
    (folder / "config.json").write_text(json_text(config, indent=1))


def load_controller(folder: str | Path) -> tuple[Learner, EnvironmentTask]:
    """The learner of a run's policy/ folder, ready to act, and its task."""
    saved = catalogue.saved_controller(folder, "policy")
    task = task_of(saved.recipe, saved.task)
    learner = learner_of(saved.recipe, task.space, 0)
    try:
        load_modules(learner, saved.tensors)
    except RuntimeError as error:
        raise InputError("policy", str(folder), f"its weights are not those of its config.json ({error})") from error
    return learner, task


FAMILY = Family(
    settings=ControlSettings, plan=plan, folder=lambda p: f"{p.method}-{p.settings.task}-{p.settings.seed}",
    begin=lambda p: (p, World(p)), go=go, load=load_run, evaluate=evaluate_run, explain=explain,
    summary=summary, page=page, metrics=lambda _: ("eval/success", "eval/return"),
)  # fmt: skip
train_controller, start, resume, plan_from = (
    checked(FAMILY.train),
    FAMILY.start,
    checked(FAMILY.resume),
    FAMILY.plan_from,
)
