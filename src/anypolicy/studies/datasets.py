"""Data sets of five kinds from one online run: random, mixed, replay, noisy, expert (arXiv 2111.04714).

A method that learns by acting is trained for N steps. `replay` is everything it did. Its best policy (or its last) then
acts greedily (`expert`) and with a share of uniform actions (`noisy`); uniform actions alone make `random`; `mixed` is
the first 80 % of `random` and the last 20 % of `expert`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anypolicy.data.demonstrations import Episode, episodes_of, save_episodes
from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions, concatenate
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError, check_numbers, settled
from anypolicy.families.control import ControlPlan, ControlSettings, World, plan
from anypolicy.learners.base import acting, load_modules, weights_of
from anypolicy.learners.base import uniform as uniform_actions
from anypolicy.learners.recipe import OffPolicyRecipe
from anypolicy.loops.control import OffPolicyLoop, transitions
from anypolicy.runs.files import check_unused, new_folder
from anypolicy.runs.progress import counting
from anypolicy.runs.seeds import generator, number
from anypolicy.runs.strict_json import json_text
from anypolicy.tasks.control.environments import EnvironmentTask

KINDS = ("random", "mixed", "replay", "noisy", "expert")
Acts = Callable[[Tensor, torch.Generator], Tensor]
"""Actions for observations."""


@dataclass(frozen=True)
class DatasetSettings:
    """What making data sets needs beside the method that acts."""

    task: str
    """gym/ID of Gymnasium (settings follow as :key=value,…) or a test-bed"""
    out: Path
    """folder for the five .safetensors files and datasets.json"""
    transitions: int = 100_000
    """in each data set; the behaviour policy learns for as many environment steps"""
    seed: int = 0
    """one number decides everything"""
    epsilon: float = 0.2
    """share of uniform actions in `noisy`"""
    mix: float = 0.8
    """share of `random` in `mixed`; the rest is of `expert`"""
    behaviour: Literal["best", "final"] = "best"
    """whose actions are `noisy` and `expert`: the policy of the best evaluation, or that of the end"""
    evaluations: int = 20
    """of the behaviour policy, while it learns; the best is the upper reference of TQ"""
    eval_episodes: int = 10
    """episodes in an evaluation"""
    method_file: tuple[Path, ...] = ()
    """.py files with methods of your own"""


@dataclass(frozen=True)
class Datasets:
    """The five data sets, mean returns of the random policy and of the best evaluation, and (step, return) of all."""

    kinds: dict[str, list[Episode]]
    g_min: float
    g_max: float
    evaluations: list[tuple[int, float]]


def make_datasets(
    method: str, settings: DatasetSettings, knobs: dict[str, Any] | None = None, *, quiet: bool = False
) -> Datasets:
    """Train the behaviour policy, make the five data sets and write them."""
    s = settled(settings)
    check_numbers(s, positive=("transitions", "evaluations", "eval_episodes"), natural=("seed",))
    for name in ("epsilon", "mix"):
        if not 0 <= getattr(s, name) <= 1:
            raise InputError(name, getattr(s, name), "use a share from 0 to 1")
    check_unused(s.out, folder=True)
    given = ControlSettings(s.task, s.transitions, s.seed, trackers=(), eval_episodes=s.eval_episodes,
                            method_file=s.method_file)  # fmt: skip
    p = plan(method, given, knobs)
    p.tell(quiet=quiet)
    made = five(p, s, quiet=quiet)
    with new_folder(s.out, fresh=True) as work:
        for name, episodes in made.kinds.items():
            save_episodes(work / f"{name}.safetensors", episodes)
        facts = {"method": method, "knobs": p.knobs, **asdict(replace(s, method_file=())), "out": None,
                 "g_min": made.g_min, "g_max": made.g_max, "online": made.evaluations}  # fmt: skip
        (work / "datasets.json").write_text(json_text({k: v for k, v in facts.items() if v is not None}, indent=1))
    return made


def five(p: ControlPlan, s: DatasetSettings, *, quiet: bool) -> Datasets:
    """The data sets in memory."""
    world = World(p)
    if not isinstance(p.recipe, OffPolicyRecipe) or not isinstance(world.loop, OffPolicyLoop):
        raise InputError("method", p.method, "the behaviour policy must learn by acting, from a replay")
    if not p.recipe.n_step == p.recipe.chunk == p.recipe.environments == 1 or world.learner.needs.observe:
        raise InputError("method", p.method, "its replay must hold single steps of one environment, as observed")
    space, act = p.task.space, acting(world.learner, explore=False)

    def uniform(seen: Tensor, rng: torch.Generator) -> Tensor:
        return uniform_actions(space, len(seen), rng).executed

    def expert(seen: Tensor, rng: torch.Generator) -> Tensor:
        return act(seen, rng).executed

    with counting(s.evaluations + 3, "make-datasets", quiet=quiet) as tick:
        replay, evaluations = learn(world, world.loop, s, tick)
        kinds = {"replay": replay}
        for name, acts in (("random", uniform), ("noisy", either(uniform, s.epsilon, expert)), ("expert", expert)):
            kinds[name] = collect(acts, p.task, s.transitions, s.seed, name)
            tick(name)
    world.environments.close()
    kinds["mixed"] = mixed(kinds["random"], kinds["expert"], s.mix)
    g_min, g_max = mean_return(kinds["random"]), max(value for _, value in evaluations)
    if not g_max > g_min:
        raise InputError("transitions", s.transitions, f"the best evaluation of {p.method} ({g_max:g}) is not above "
                         f"the random policy's mean return ({g_min:g}): let it learn longer")  # fmt: skip
    return Datasets({k: kinds[k] for k in KINDS}, g_min, g_max, evaluations)


def learn(
    world: World, loop: OffPolicyLoop, s: DatasetSettings, tick: Callable[[str], None]
) -> tuple[list[Episode], list[tuple[int, float]]]:
    """Everything the behaviour policy did and its evaluations. The learner ends as the best one if asked for."""
    seen, evaluations, best = list[Transitions](), list[tuple[int, float]](), dict[str, Tensor]()
    for i in range(s.evaluations):
        steps = s.transitions * (i + 1) // s.evaluations - loop.steps
        while steps > 0:
            part = min(steps, loop.replay.capacity)
            loop.run(part)
            seen.append(loop.replay.newest(part))
            steps -= part
        value = world.evaluate(loop.steps)[0]["eval/return"]
        if not evaluations or value > max(v for _, v in evaluations):
            best = {k: v.clone() for k, v in weights_of(world.learner).items()}
        evaluations.append((loop.steps, value))
        tick(f"step {loop.steps}: return {value:.1f}")
    if s.behaviour == "best":
        load_modules(world.learner, best)
    return episodes_of(concatenate(seen)), evaluations


def either(seldom: Acts, share: float, often: Acts) -> Acts:
    """The actions of one with probability `share`, else those of the other."""

    def acts(seen: Tensor, rng: torch.Generator) -> Tensor:
        other, chance = seldom(seen, rng), torch.rand(len(seen), 1, generator=rng)
        return torch.where(chance < share, other, often(seen, rng))

    return acts


def collect(acts: Acts, task: EnvironmentTask, n: int, seed: int, name: str) -> list[Episode]:
    """n transitions of a fresh environment; the last episode may be unfinished."""
    environments = Environments(task.vector(1), number(seed, "data set", name) % 2**31)
    rng = generator(seed, "data set", name)
    kept = Replay(n, task.space.observations, task.space.action_width, task.space.pixels)
    for _ in range(n):
        action = acts(environments.current, rng)
        kept.add(transitions(environments.step(action), action, lambda x: x, 1.0))
    environments.close()
    return episodes_of(kept.all())


def mixed(random: list[Episode], expert: list[Episode], share: float) -> list[Episode]:
    """The first `share` of the transitions of one and the last 1 − share of the other, of as many each. What the seam
    cuts stays cut: no step leads from one to the other."""
    n = sum(len(e.reward) for e in random)
    k = int(share * n)
    return part_of(random, 0, k) + part_of(expert, k, n)


def part_of(episodes: list[Episode], first: int, last: int) -> list[Episode]:
    """Transitions first … last − 1 of all, as episodes or parts of them."""
    out, begin = list[Episode](), 0
    for e in episodes:
        a, b = max(first - begin, 0), min(last - begin, len(e.reward))
        if a < b:
            flags = (getattr(e, name)[a:b] for name in ("action", "reward", "terminated", "truncated"))
            out.append(Episode(e.observation[a : b + 1], *flags))
        begin += len(e.reward)
    return out


def mean_return(episodes: list[Episode]) -> float:
    """Of the episodes that have ended, undiscounted."""
    returns = [float(e.reward.double().sum()) for e in episodes if e.finished]
    if not returns:
        raise InputError("transitions", sum(len(e.reward) for e in episodes), "no episode ended: take more")
    return sum(returns) / len(returns)


def random_return(task: EnvironmentTask, episodes: int = 100, seed: int = 0) -> float:
    """Mean return of uniform actions."""
    environments, rng = Environments(task.vector(1), number(seed, "random return") % 2**31), generator(seed, "random")
    while len(environments.ended.returns) < episodes:
        environments.step(uniform_actions(task.space, 1, rng).executed)
    environments.close()
    return sum(environments.ended.returns[:episodes]) / episodes
