"""`train` and `resume`: settings become a recipe, a task, a policy and a run directory, and the loop runs."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import tyro

from anypolicy import catalogue
from anypolicy.compose import Composition, compose
from anypolicy.engines.base import Sampling
from anypolicy.engines.denoising import schedule
from anypolicy.engines.of_policy import engine_for
from anypolicy.errors import InputError, check_numbers, checked, settled
from anypolicy.evaluation.language import evaluate, responses
from anypolicy.evaluation.reference import beside_reference
from anypolicy.families.base import Family
from anypolicy.families.language_pages import explain, page, summary
from anypolicy.families.results import Result
from anypolicy.knobs import Knob
from anypolicy.loops.describe import outlined
from anypolicy.loops.group import GroupLoop
from anypolicy.policies.language.base import Denoises, Policy
from anypolicy.policies.language.load import load_policy, placed
from anypolicy.policies.language.recompute import recompute
from anypolicy.policies.language.reward_model import RewardModel, Scale
from anypolicy.runs.checkpoint import Position
from anypolicy.runs.devices import Where, choose_device, elsewhere
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.drive import Schedule, drive
from anypolicy.runs.processor import Products, choose_products, choose_threads, use_products
from anypolicy.runs.recipes import (
    keep,
    made_checkpoint,
    put_back,
    recipe_of,
    restored,
    stated,
)
from anypolicy.runs.stop import Pause
from anypolicy.runs.trackers import check_trackers
from anypolicy.runs.trust import allow
from anypolicy.stages.checks import check, stages
from anypolicy.stages.lengths import Long, fit_prompts
from anypolicy.stages.needs import union
from anypolicy.stages.recipe import GroupRecipe, World
from anypolicy.stages.recorded import stream_rows
from anypolicy.stages.rewards import OwnReward, OwnRewards, load_reward
from anypolicy.tasks.language.base import MakesPolicy, Task
from anypolicy.tasks.language.load import load_task


@dataclass(frozen=True)
class Settings:
    """What a run needs beside its method. Empty ones take what the task, the policy or the method suggests."""

    family: ClassVar[str] = "language"

    task: str
    """reasoning-gym/NAME, hf/DATA SET, a file of rows (.jsonl, .jsonl.gz, .json, .csv, .parquet) or a testbed
    (tiny-add, …); settings follow as name:key=value,…"""
    policy: str | None = None
    """Hugging Face id or folder, a .gguf file, smollm2-135m, vlm:ID, or transformer:layers=2,width=64,heads=4"""
    steps: int = 100
    """rollout batches to learn from"""
    seed: int = 0
    """one number decides data order, sampling, initial weights"""
    out: Path | None = None
    """run directory; default runs/METHOD-TASK-SEED, with a number where that is taken"""
    prompts: int | None = None
    """groups in a step"""
    group_size: int | None = None
    """responses to a prompt"""
    lr: float | None = None
    """learning rate"""
    optimiser: Literal["adamw", "sgd"] | None = None
    """update rule"""
    epochs: int | None = None
    """passes over each rollout batch"""
    minibatches: int | None = None
    """optimiser steps in a pass"""
    temperature: float = 1.0
    """of sampling, and of the log-probabilities that are trained"""
    top_p: float = 1.0
    """nucleus sampling"""
    top_k: int = 0
    """sample among the k likeliest tokens; 0 for all"""
    max_tokens: int | None = None
    """response limit"""
    long_prompts: Long = "refuse"
    """prompts that do not fit beside their response: refuse, drop, truncate-left (their last tokens are kept)"""
    block_length: int | None = None
    """of a masked-diffusion policy: tokens filled in together, left to right; default 32"""
    denoising_steps: int | None = None
    """of a masked-diffusion policy: passes for a whole response; default one for each token"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """of the policy; the optimiser keeps float32 master weights"""
    lora_rank: int = 0
    """train low-rank adapters of this rank (peft); 0 trains all weights"""
    recompute: bool = False
    """keep no activations inside the blocks of a transformer, compute them again in the backward pass: less memory, a
    third more time"""
    micro_tokens: int = 8192
    """padded tokens in one forward pass; memory, not results"""
    eval_every: int | None = None
    """steps between held-out evaluations; default a fifth of the run"""
    eval_prompts: int = 200
    """held-out prompts in an evaluation"""
    checkpoint_every: int | None = None
    """steps between checkpoints; default a tenth of the run"""
    checkpoint_minutes: float = 5.0
    """minutes after which a checkpoint is written at the latest; 0 for none by time"""
    trackers: tuple[str, ...] = ("auto",)
    """copies of the ledger: auto (tensorboard, where it is installed), none, tensorboard, wandb, mlflow, trackio"""
    threads: int | None = None
    """processor threads of torch; default all cores that the process is granted"""
    device: str = "auto"
    """where it computes: auto (a GPU if there is one), cpu, cuda or cuda:N; a run may go on on another"""
    products: Products | None = None
    """library of float32 matrix products; default oneDNN where it is much faster and as exact"""
    reward: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """your own reward: FILE.py:FUNCTION(prompt, responses, …) -> one number each; several with weights, by repeating it
    as FILE.py:FUNCTION:WEIGHT"""
    reference: str | None = None
    """policy that divergences are taken to, with the same tokens; default the policy as the run begins"""
    reward_model: str | None = None
    """a learned reward (beside your own, with weight 1): the run or folder of a reward model, or one of the Hub"""
    reward_scale: Scale = "none"
    """of a learned reward: none, standard (mean 0, std 1 on its training responses), unit (in (-1, 1))"""
    record: bool = False
    """keep every scored group in groups.jsonl, to train on the stream again"""
    method_file: tuple[Path, ...] = ()
    """.py files with methods of your own"""

    def __post_init__(self) -> None:
        if isinstance(self.reward, str):
            object.__setattr__(self, "reward", (self.reward,))


@dataclass(repr=False)
class Run(Result):
    """A run that has ended (or was loaded), with its trained policy."""

    policy: Policy | None = None
    seconds: float = 0.0
    max_tokens: int = 128

    def generate(
        self, prompts: str | Sequence[Any], *, max_tokens: int | None = None, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """A response to every prompt (a text, or messages), greedy unless a temperature is given, of at most as many
        tokens as in training unless `max_tokens` says otherwise."""
        assert self.policy is not None
        most = self.max_tokens if max_tokens is None else max_tokens
        return responses(self.policy, prompts, most, temperature, seed)


@dataclass
class Plan:
    """Everything resolved and checked, nothing started."""

    composition: Composition
    settings: Settings
    recipe: GroupRecipe
    task: Task
    suggested: dict[str, str] = field(default_factory=dict[str, str])
    changed: dict[str, int] = field(default_factory=dict[str, int])

    def written(self) -> dict[str, Any]:
        """The complete recipe as plain values, enough to run again; with the counts of `changed` prompts."""
        changed = {"prompts_changed": self.changed} if self.changed else {}
        return recipe_of(self.composition.spec, self.composition.knobs, self.settings) | changed


def plan(method: str, settings: Settings, knobs: dict[str, dict[str, Any]] | None = None) -> Plan:
    """Resolve names, defaults and suggestions; every error that can be known now is raised now. Code that the settings
    name is the user's word: it may run from now on."""
    settings = settled(settings)
    allow(vars(settings))
    for path in settings.method_file:
        catalogue.load_file(path)
    if settings.reward_scale != "none" and not settings.reward_model:
        raise InputError("reward_scale", settings.reward_scale, "it belongs to a reward_model: give one")
    composition = compose(method, knobs)
    task = load_task(settings.task, seed=settings.seed)
    if settings.record and any(prompt.media for prompt in task.train):
        raise InputError("record", True, "a stream keeps token ids, and this task shows images: leave it out")
    policy = settings.policy or ("" if isinstance(task, MakesPolicy) else "smollm2-135m")
    suggested = {**suggestions(policy), **getattr(task, "suggested", {})}
    taken = {k: v for k, v in suggested.items() if getattr(settings, k) is None}
    s = replace(settings, policy=policy, **taken)
    recipe = overridden(composition.recipe, s)
    s = replace(
        s,
        prompts=s.prompts or 8,
        max_tokens=s.max_tokens or task.max_tokens,
        dtype=s.dtype or "float32",
        eval_every=max(s.steps // 5, 1) if s.eval_every is None else s.eval_every,
        checkpoint_every=max(s.steps // 10, 1) if s.checkpoint_every is None else s.checkpoint_every,
        threads=s.threads or choose_threads(),
        products=s.products or choose_products(),
    )
    positive(s)
    choose_device(s.device)
    check_trackers(s.trackers)
    assert s.prompts is not None
    check(recipe, s.prompts, task, rewarded=bool(s.reward or s.reward_model))
    return Plan(composition, s, recipe, task, {k: f"{v}" for k, v in taken.items()})


def suggestions(policy: str) -> dict[str, Any]:
    """Settings that fit a kind of policy: small networks want larger steps than the papers' billions of parameters."""
    if policy.startswith("transformer") or re.fullmatch("(masked-diffusion|vlm):(.+=.+)?", policy):
        return {"lr": 3e-4}
    return {"lr": 1e-5, "dtype": "bfloat16"} if policy == "smollm2-135m" else {}


def overridden(recipe: GroupRecipe, s: Settings) -> GroupRecipe:
    """The recipe with the user's numbers in place of the method's."""
    for name in ("group_size", "reward"):
        if recipe.rollout.group_size == 0 and getattr(s, name):
            raise InputError(name, getattr(s, name), "this method samples no responses: leave it out")
    for name in ("reward", "reward_model"):
        if recipe.reward.needs.recorded and getattr(s, name):
            raise InputError(name, getattr(s, name), "this method learns from recorded scores: leave it out")
    if s.group_size is not None:
        recipe = replace(recipe, rollout=replace(recipe.rollout, group_size=s.group_size))  # type: ignore[type-var]
    given = {"lr": s.lr, "kind": s.optimiser, "epochs": s.epochs, "minibatches": s.minibatches}
    chosen = {k: v for k, v in given.items() if v is not None}
    return replace(recipe, optimiser=replace(recipe.optimiser, **chosen))


def positive(s: Settings) -> None:
    """Numbers that must be above 0 (or not negative)."""
    check_numbers(
        s,
        positive=("steps", "prompts", "group_size", "lr", "epochs", "minibatches", "max_tokens", "threads",
                  "block_length", "denoising_steps", "micro_tokens", "eval_prompts", "temperature", "top_p"),
        natural=("eval_every", "checkpoint_every", "checkpoint_minutes", "lora_rank", "top_k", "seed"),
    )  # fmt: skip
    if s.top_p > 1:
        raise InputError("top_p", s.top_p, "use a number in (0, 1]")


def world_of(p: Plan) -> World:
    """Policy, engine and task of a plan."""
    s = p.settings
    assert s.max_tokens is not None and s.dtype is not None and s.threads is not None and s.products is not None
    torch.set_num_threads(s.threads)
    device = choose_device(s.device)
    use_products(s.products, device)
    if s.policy:
        policy: Policy = load_policy(s.policy, dtype=s.dtype, lora_rank=s.lora_rank, seed=s.seed, device=device)
    else:
        assert isinstance(p.task, MakesPolicy)
        policy = placed(p.task.make_policy(s.seed), device)
    if s.recompute:
        recompute(policy)
    parts = [load_reward(spec) for spec in s.reward]
    if s.reward_model:
        model = RewardModel.load(s.reward_model, dtype=s.dtype, scale=s.reward_scale, device=device)
        parts.append(OwnReward("model", model))
    reward = OwnRewards(parts) if parts else None
    return World(policy, engine_for(policy), p.task, sampling_of(s, policy), s.seed, reward_function=reward)


def sampling_of(s: Settings, policy: Policy) -> Sampling:
    """How responses are drawn from the policy."""
    assert s.max_tokens is not None
    if isinstance(policy, Denoises):
        block, steps = s.block_length or Sampling.block, s.denoising_steps or s.max_tokens
        schedule(s.max_tokens, block, steps)
        return Sampling(s.max_tokens, s.temperature, s.top_p, s.top_k, block=block, steps=steps)
    for name in ("block_length", "denoising_steps"):
        if getattr(s, name) is not None:
            raise InputError(name, getattr(s, name), "the policy writes token by token: it is for masked diffusion")
    return Sampling(s.max_tokens, s.temperature, s.top_p, s.top_k)


def reference_of(recipe: GroupRecipe, policy: Policy, given: str | None = None, dtype: Any = None) -> Policy | None:
    """A frozen policy: the `given` one, from which evaluations measure the divergence also where no stage needs one;
    else a copy of the policy as it is now if a stage does."""
    if given is None:
        return copy.deepcopy(policy) if union(stage.needs for stage in stages(recipe)).reference else None
    other = load_policy(given, dtype=dtype, device=policy.device)
    mine, theirs = (getattr(getattr(x, "tokenizer", None), "get_vocab", dict)() for x in (policy, other))
    sizes = {x.prefill([np.zeros(1, np.int64)])[1].shape[1] for x in (policy, other)}
    if mine != theirs or len(sizes) > 1:
        raise InputError("reference", given, "its tokens are not the policy's: use a model with the same tokenizer")
    return other


def group_loop(p: Plan, world: World) -> GroupLoop:
    """The loop at step 0, whose prompts all fit."""
    s = p.settings
    assert s.prompts is not None
    reference = reference_of(p.recipe, world.policy, s.reference, s.dtype)
    world, p.changed = fit_prompts(p.recipe, world, s.prompts, reference, s.long_prompts)
    return GroupLoop(
        p.recipe, world, prompts=s.prompts, micro_tokens=s.micro_tokens, reference=reference, total_steps=s.steps
    )  # fmt: skip


def go(p: Plan, run: RunDirectory, loop: GroupLoop, *, quiet: bool) -> Run:
    """The run itself, and the policy it ends with."""
    s, began = p.settings, time.monotonic()
    first = restored(run, p.written(), s.steps, loop.state(), lambda state, t: loop.restore(state, t["optimiser"]))

    def save(at: Position) -> None:
        keep(run, at, {"optimiser": loop.tensors()}, loop.state(), p.written())

    def learned(_: int, pause: Pause) -> dict[str, Any]:
        log, step = loop.step(), loop.steps - 1
        if s.record:
            run.append_groups(stream_rows(step, loop.seen))
        return log

    def evaluated(step: int) -> dict[str, Any]:
        log, samples = held_out(p, loop)
        run.write_samples(f"step-{step:06d}", samples)
        if outlines := outlined(loop.seen):
            run.write_samples(f"trees-step-{step:06d}", outlines)
        return log

    assert s.eval_every is not None and s.checkpoint_every is not None
    drive(
        run, Schedule(s.steps, s.eval_every, s.checkpoint_every, minutes=s.checkpoint_minutes), first,
        title=p.composition.spec, trackers=s.trackers, written=p.written(), quiet=quiet, learn=learned,
        evaluate=evaluated, save=save,
    )  # fmt: skip
    run.save_policy(loop.world.policy.save)
    most = loop.world.sampling.max_tokens
    return Run(run.path, run.read(), loop.world.policy, time.monotonic() - began, most)


def held_out(
    p: Plan, loop: GroupLoop, prompts: int | None = None, temperature: float = 0.0
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The held-out evaluation of a run's policy, beside its reference if it has one; and the responses."""
    chosen = loop.world.task.heldout[: prompts or p.settings.eval_prompts]
    log, samples = evaluate(loop.world, chosen, temperature, loop.recipe.reward)
    if loop.reference is not None:
        log |= beside_reference(loop.world, loop.reference.start, chosen)
    return log, samples


def fit(
    recipe: GroupRecipe, task: Task, policy: Policy, *, steps: int, prompts: int, seed: int = 0,
    temperature: float = 1.0, max_tokens: int | None = None, micro_tokens: int = 1 << 20,
) -> Iterator[tuple[dict[str, float], Policy]]:  # fmt: skip
    """The bare loop in memory, for studies and claims: yields the log of every step and the policy it has changed."""
    check(recipe, prompts, task)
    sampling = Sampling(max_tokens or task.max_tokens, temperature)
    world = World(policy, engine_for(policy), task, sampling, seed)
    reference = reference_of(recipe, policy)
    loop = GroupLoop(
        recipe, world, prompts=prompts, micro_tokens=micro_tokens, reference=reference, total_steps=steps
    )  # fmt: skip
    for _ in range(steps):
        yield loop.step(), policy


@checked
def load_run(path: str | Path, *, device: str | None = None, trust: bool = False) -> Run:
    """A run as it stands: its newest checkpoint."""
    with RunDirectory.open(path, lock=False) as run:
        world = restored_loop(run, device, trust=trust)[1].world
        return Run(run.path, run.read(), world.policy, max_tokens=world.sampling.max_tokens)


def restored_loop(run: RunDirectory, device: str | None, *, trust: bool) -> tuple[Plan, GroupLoop]:
    """The loop of a run at its newest checkpoint."""
    p = FAMILY.plan_from(elsewhere(stated(run), device), trust=trust)
    loop = group_loop(p, world_of(p))
    with put_back(made_checkpoint(run, p.written()), loop.state()) as (state, tensors):
        loop.restore(state, tensors["optimiser"])
    return p, loop


@checked
def evaluate_run(
    path: str | Path, *, prompts: Annotated[int | None, Knob("how many held-out prompts", least=1)] = None,
    temperature: Annotated[float, Knob("of sampling; 0 is greedy", least=0)] = 0.0, device: Where = None,
    trust: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Held-out accuracy of a run's newest checkpoint, with its interval; `trust` runs code that its recipe names and
    the user has not run before. Writes samples/eval.jsonl."""
    with RunDirectory.open(path, lock=False) as run:
        p, loop = restored_loop(run, device, trust=trust)
        log, samples = held_out(p, loop, prompts, temperature)
        run.write_samples("eval", samples)
        return log


def prepared(p: Plan) -> tuple[Plan, GroupLoop]:
    """The loop at step 0, and the plan with the prompts that it holds."""
    loop = group_loop(p, world_of(p))
    return p, loop


def metrics(p: Plan) -> tuple[str, ...]:
    """What runs are compared by: the user's own reward, if there is one."""
    own = ("eval/reward",) if p.settings.reward or p.settings.reward_model else ()
    return (*own, "eval/accuracy", "eval/pair_accuracy", "eval/logp", "probe/success")


FAMILY = Family(
    settings=Settings, plan=plan, folder=lambda p: f"{p.composition.spec}-{p.settings.task}-{p.settings.seed}",
    begin=prepared, go=go, load=load_run, evaluate=evaluate_run, explain=explain, summary=summary, page=page,
    metrics=metrics, cost="tokens/generated",
    composes=True,
)  # fmt: skip
train, start, resume, plan_from = checked(FAMILY.train), FAMILY.start, checked(FAMILY.resume), FAMILY.plan_from
