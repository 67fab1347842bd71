"""Train a controller in two processes: one acts, one learns (arXiv 2401.16013; the equivalent of its agent link).

Neither waits for the other, so how many updates belong to an environment step depends on the machine, and two runs with
one seed are not the same bits: `anypolicy.families.control` is the exact way, this one is for actors that cannot wait.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from anypolicy.data.replay import NStep, mixed
from anypolicy.engines.link import ActorEnd, LearnerEnd
from anypolicy.errors import InputError, check_numbers, check_settings
from anypolicy.families.control import ControlPlan, ControlSettings, World, plan, plan_from, save_controller
from anypolicy.learners.base import Learner, load_modules, weights_of
from anypolicy.learners.recipe import OffPolicyRecipe
from anypolicy.loops.control import OffPolicyLoop, averages, transitions
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.output import lasting_output
from anypolicy.runs.progress import counting
from anypolicy.runs.seeds import generator
from anypolicy.runs.stop import Stopped
from anypolicy.runs.strict_json import json_text, json_value
from anypolicy.runs.workers import deaf_to_the_keyboard, die_with_parent

PARTS = 10
"""Evaluations in a run."""


@dataclass(frozen=True)
class Pace:
    """Actor steps between two sendings, learner iterations between two publications, and steps a second of the actor
    (None: as many as it can; a robot has its own rhythm)."""

    send_every: int = 30
    publish_every: int = 30
    hertz: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        check_numbers(self, positive=("send_every", "publish_every", "hertz"))


@dataclass
class ApartRun:
    """What a run left: the learner, its environment steps and iterations, means of what was logged, and the actor's
    versions of the weights as they came with its transitions."""

    learner: Learner
    steps: int
    iterations: int
    log: dict[str, float]
    versions: list[int]
    evaluation: dict[str, float]


def act(written: str, address: tuple[str, int], secret: str, pace: Pace) -> None:
    """The actor's process, until it is ended, its environment fails or the learner refuses it. `secret` is the
    learner's file."""
    die_with_parent()
    try:
        with lasting_output():
            act_on(written, address, secret, pace)
    except InputError as error:
        raise SystemExit(f"actor: {error}") from error


def act_on(written: str, address: tuple[str, int], secret: str, pace: Pace) -> None:
    """Act for ever."""
    p = plan_from(json_value(written), trust=True)  # the parent's own plan, with the user's word
    world, end = World(p), ActorEnd(address, p.written(), Path(secret))
    assert isinstance(world.loop, OffPolicyLoop)
    loop, steps, pause = world.loop, 0, threading.Event()
    windows = NStep(loop.recipe.n_step, loop.recipe.discount, len(world.environments))
    while not end.wait_for_weights(60.0):
        continue
    while True:
        if (weights := end.weights()) is not None:
            load_modules(world.learner, weights)
        rng, seen = generator(p.settings.seed, "act", steps), loop.observe(world.environments.current)
        acted = loop.warm(seen, rng) if steps < loop.warmup else loop.explore(seen, rng)
        stepped = world.environments.step(acted.executed)
        made = transitions(stepped, acted.stored, loop.observe, loop.recipe.discount)
        real = stepped.real.nonzero().squeeze(1)
        if (ready := windows.add(made.select(real), real)) is not None:
            end.insert(ready)
        before, took = steps, int(stepped.took.sum())
        steps += took
        if steps // pace.send_every > before // pace.send_every:
            end.update()
        if pace.hertz is not None:
            pause.wait(took / pace.hertz)


def train_apart(
    method: str, *, task: str, iterations: int, knobs: dict[str, Any] | None = None, pace: Pace | None = None,
    patience: float = 120.0, quiet: bool = True, **settings: Any,
) -> ApartRun:  # fmt: skip
    """Start an actor, learn for `iterations` of the learner as transitions come, evaluate. The settings are those of
    `ControlSettings` (with `out`, evaluations and the policy are kept there, ten times in the run); `patience` seconds
    without any transition at the beginning are an error."""
    if iterations < 1:
        raise InputError("iterations", iterations, "use at least 1")
    p, pace = plan(method, ControlSettings(task, **settings), knobs), pace or Pace()
    if not isinstance(p.recipe, OffPolicyRecipe) or p.task.space.tasks > 1:
        raise InputError("method", method, "actor and learner stand apart for off-policy methods and one task")
    p.tell(quiet=quiet)
    if p.settings.out is None:
        return run_apart(p, iterations, pace, patience, None, quiet)
    with RunDirectory.create(p.settings.out, p.written() | {"apart": asdict(pace)}) as kept:
        try:
            return run_apart(p, iterations, pace, patience, kept, quiet)
        except KeyboardInterrupt as stop:
            looked = f"the policy as last evaluated is in {kept.path}/policy" if kept.read() else "nothing was kept yet"
            told = f"stopped; a run of two processes cannot be resumed, {looked}"
            raise Stopped(getattr(stop, "number", signal.SIGINT), told) from stop


def run_apart(
    p: ControlPlan, iterations: int, pace: Pace, patience: float, kept: RunDirectory | None, quiet: bool
) -> ApartRun:
    """Both processes, from beginning to end."""
    world = World(p)
    assert isinstance(world.loop, OffPolicyLoop)
    end = LearnerEnd(p.written(), (world.loop.replay.observations, world.loop.replay.actions))
    world.begin()
    process = get_context("spawn").Process(
        target=act, args=(json_text(p.written(), exact=True), end.address, str(end.secret), pace), daemon=True
    )  # the arguments are text and numbers
    with deaf_to_the_keyboard():
        process.start()
    try:
        with counting(min(iterations, PARTS), p.method, quiet=quiet) as tick:

            def looked_at(i: int) -> dict[str, float]:
                found = world.evaluate(i)[0]
                if kept:
                    kept.append({"step": i, "event": "eval", **found})
                    kept.save_policy(lambda folder: save_controller(folder, p, world.learner))
                tick(f"iteration {i}  return {found['eval/return']:.1f}")
                return found

            return learn(p, world, end, iterations, pace, patience, looked_at, process.is_alive)
    finally:
        process.terminate()
        process.join()
        end.close()
        world.environments.close()


def learn(
    p: ControlPlan, world: World, end: LearnerEnd, iterations: int, pace: Pace, patience: float,
    looked_at: Callable[[int], dict[str, float]], acting: Callable[[], bool],
) -> ApartRun:  # fmt: skip
    """The learner's process; `looked_at` evaluates, `acting` says whether the actor still lives."""
    recipe, loop, logs = p.recipe, world.loop, defaultdict[str, list[float]](list)
    assert isinstance(recipe, OffPolicyRecipe) and isinstance(loop, OffPolicyLoop)
    versions, steps, evaluation = list[int](), 0, dict[str, float]()

    def store() -> None:
        nonlocal steps
        for rows in end.received():
            loop.replay.add(rows)
            steps += len(rows) * recipe.chunk
            versions.extend(end.acting.values())

    end.publish(0, weights_of(world.learner))
    while steps < max(loop.warmup, 1):
        before, until = steps, time.monotonic() + patience
        while steps == before and acting() and time.monotonic() < until:
            end.wait(min(patience, 1.0))
            store()
        store()
        if steps == before and not acting():
            raise InputError(
                "task", p.settings.task, "the actor has ended before it sent anything: see its error above"
            )
        if steps == before:
            raise InputError("task", p.settings.task, f"no transition came from the actor in {patience:.0f} s")
    for i in range(1, iterations + 1):
        store()
        if not acting():
            looked_at(i)
            raise InputError("task", p.settings.task, f"the actor ended before iteration {i}: see its error above")
        rng = generator(p.settings.seed, "update", i)
        batches = mixed(loop.replay, loop.offline, recipe.updates, recipe.batch, recipe.offline_share, rng)
        for name, value in world.learner.update(batches, rng).items():
            logs[name].append(value)
        if i % pace.publish_every == 0:
            end.publish(i, weights_of(world.learner))
        logs["stale"].append(float(i - end.version))
        if i % max(iterations // PARTS, 1) == 0 or i == iterations:
            evaluation = looked_at(i)
    log = averages(logs) | {"stale/most": max(logs["stale"])}
    return ApartRun(world.learner, steps, iterations, log, versions, evaluation)
