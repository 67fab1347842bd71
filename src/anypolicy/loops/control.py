"""The loops of controllers: act in environments, keep transitions, let the learner update.

A learner writes its paper's update out in full and calls parts. It has `modules` and `optimisers` (by name: all that a
checkpoint holds of it), `act` and `update`. Where it needs to, it also has
`observe(observation)`, what it stores in place of an observation (both loops call it on everything they see),
`budget(steps)`, told how many environment steps the whole run has before it starts or goes on (for schedules),
`prepare(offline, generator)`, called once before the first step with the demonstrations as they were recorded (they are
observed after it), `warm(observation, generator)`, how it acts during warm-up instead of uniformly, and an attribute
`offline`, where `loops.choose.give` puts the replay of demonstrations, if there are any, in new and in resumed runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from anypolicy.data.replay import NStep, Replay, mixed
from anypolicy.data.transitions import Transitions
from anypolicy.engines.environments import Environments, Stepped
from anypolicy.errors import InputError, check_numbers
from anypolicy.optimisers.step import check_moments
from anypolicy.runs.seeds import generator
from anypolicy.runs.stop import Pause, go_on
from anypolicy.tasks.control.environments import EnvironmentTask, Space


class Acted(NamedTuple):
    """What the environment does (in [−1, 1], or an index), and what the replay keeps as the action."""

    executed: Float[Tensor, "environments actions"]
    stored: Float[Tensor, "environments actions"]


class Trained(Protocol):
    """All that a checkpoint holds of a learner, by name."""

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...

    @property
    def optimisers(self) -> Mapping[str, Optimizer]: ...


class Learner(Trained, Protocol):
    """What every learner of control has."""

    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        """Actions for the environments; without `explore` as the paper evaluates."""
        ...

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """Learn; numbers for the ledger. Off-policy: the batches of one environment step. On-policy: one element, the
        rollout, its fields (steps, environments, …)."""
        ...


def check(recipe: OffPolicyRecipe | OnPolicyRecipe | OfflineRecipe) -> None:
    """Refuses numbers that feed no learner."""
    known = vars(recipe)
    counts = ("batch", "updates", "capacity", "n_step", "environments", "chunk", "horizon", "episodes")
    check_numbers(recipe, positive=[n for n in counts if n in known], natural=[n for n in ("warmup",) if n in known])
    for name in ("discount", "offline_share"):
        if not 0 <= known.get(name, 0) <= 1:
            raise InputError(name, known[name], "use a number from 0 to 1")


@dataclass(frozen=True)
class OffPolicyRecipe:
    """`learner(space, seed)` makes the learner; then how it is fed: `updates` batches for every environment step, of
    which `offline_share` comes from demonstrations; the first `warmup` steps act at random (None: ten episodes, at most
    5,000 steps). `alone` is how it learns where demonstrations are given, if it then learns from them alone. An action
    of the learner is a `chunk` of the environment's; updates then belong to chunks."""

    learner: Callable[[Space, int], Learner]
    discount: float = 0.99
    batch: int = 256
    updates: int = 1
    warmup: int | None = None
    capacity: int = 1_000_000
    n_step: int = 1
    offline_share: float = 0.0
    environments: int = 1
    needs_offline: bool = False
    alone: OfflineRecipe | None = None
    chunk: int = 1

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OnPolicyRecipe:
    """`learner(space, seed)` makes the learner; every update sees `horizon` steps of each environment (None: as many
    as the longest episode has). With `episodes` it sees that many whole episodes of each instead, one after the other
    as if of one environment; `horizon` is then where a longer episode is cut."""

    learner: Callable[[Space, int], Learner]
    horizon: int | None = 2048
    discount: float = 0.99
    environments: int = 1
    needs_offline: bool = False
    episodes: int | None = None

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OfflineRecipe:
    """`learner(space, seed)` makes the learner; every step is one batch of the demonstrations. Environments are for
    evaluation only. `episode` is what becomes of the transitions of each episode before they are batched; an action of
    the learner is a `chunk` of the environment's."""

    learner: Callable[[Space, int], Learner]
    discount: float = 0.99
    batch: int = 256
    environments: int = 1
    needs_offline: bool = True
    episode: Callable[[Transitions], Transitions] | None = None
    chunk: int = 1

    def __post_init__(self) -> None:
        check(self)


Recipe = OffPolicyRecipe | OnPolicyRecipe | OfflineRecipe


def warmup_of(recipe: OffPolicyRecipe, horizon: int | None) -> int:
    """Steps at random at the beginning; `horizon` is the longest episode."""
    return min(10 * (horizon or 500), 5000) if recipe.warmup is None else recipe.warmup


def check_given(recipe: OffPolicyRecipe | OnPolicyRecipe, offline: Replay | None) -> None:
    """A loop that needs demonstrations has them before it runs."""
    if recipe.needs_offline and offline is None:
        raise InputError("demos", None, "this loop learns from demonstrations too: give it some before it runs")


def logged(state: Mapping[str, Any]) -> defaultdict[str, list[float]]:
    """What was logged for the row that was open when a loop was saved."""
    return defaultdict(list, {k: list(v) for k, v in state.get("logs", {}).items()})


def averages(logs: Mapping[str, list[float]]) -> dict[str, float]:
    """The mean of what was logged under each name."""
    return {k: sum(v) / len(v) for k, v in logs.items()}


class OffPolicyLoop:
    """`run(n)` makes n environment steps and what belongs to them. `state()` and `tensors()` are all it remembers."""

    def __init__(
        self, recipe: OffPolicyRecipe, learner: Learner, environments: Environments, space: Space, seed: int, *,
        horizon: int | None = None,
    ):  # fmt: skip
        self.recipe, self.learner, self.environments, self.space, self.seed = recipe, learner, environments, space, seed
        self.observe: Callable[[Tensor], Tensor] = getattr(learner, "observe", lambda x: x)
        width = self.observe(environments.current).shape[1]
        self.replay = Replay(recipe.capacity, width, space.action_width, pixels_of(learner, space))
        self.windows = NStep(recipe.n_step, recipe.discount, len(environments))
        self.offline: Replay | None = None
        self.warmup, self.steps, self.updates, self.beyond = warmup_of(recipe, horizon), 0, 0, 0
        self.logs = defaultdict[str, list[float]](list)

    def run(self, steps: int, pause: Pause = go_on) -> dict[str, float]:
        """At least `steps` environment steps, less what chunks went beyond the last call's; means of what was seen."""
        check_given(self.recipe, self.offline)
        target, self.beyond = self.steps + steps - self.beyond, 0
        while self.steps < target:
            self.step(self.logs)
            if self.steps < target:
                pause(steps + self.steps - target)
        self.beyond = self.steps - target if self.recipe.chunk > 1 else 0
        out, self.logs = averages(self.logs), defaultdict(list)
        return out | self.environments.take().means() | {"replay/size": float(len(self.replay)),
                                                         "updates": float(self.updates)}  # fmt: skip

    def step(self, logs: defaultdict[str, list[float]]) -> None:
        """One step of every environment, then the updates."""
        rng = generator(self.seed, "act", self.steps)
        seen = self.observe(self.environments.current)
        acted = self.warm(seen, rng) if self.steps < self.warmup else self.learner.act(seen, rng, explore=True)
        stepped = self.environments.step(acted.executed)
        self.store(stepped, acted.stored)
        begin, self.steps = self.steps, self.steps + int(stepped.took.sum())
        if self.steps <= self.warmup or not (len(self.replay) or self.offline):
            return
        rng, count = generator(self.seed, "update", begin), self.recipe.updates * len(self.environments)
        batches = mixed(self.replay, self.offline, count, self.recipe.batch, self.recipe.offline_share, rng)
        for name, value in self.learner.update(batches, rng).items():
            logs[name].append(value)
        self.updates += count

    def warm(self, seen: Tensor, rng: torch.Generator) -> Acted:
        """Uniform actions, or the learner's own way."""
        if hasattr(self.learner, "warm"):
            return self.learner.warm(seen, rng)  # type: ignore[attr-defined]
        return warm_up(self.space, len(seen), rng)

    def store(self, s: Stepped, stored: Tensor) -> None:
        """Put what happened into the replay."""
        made = transitions(s, stored, self.observe, self.recipe.discount)
        real = s.real.nonzero().squeeze(1)
        ready = self.windows.add(made.select(real), real)
        if ready is not None:
            self.replay.add(ready)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"learner": tensors_of(self.learner), "replay": self.replay.tensors()}

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "updates": self.updates, "beyond": self.beyond, "waiting": self.windows.state(),
                "logs": dict(self.logs), "environments": self.environments.state()}  # fmt: skip

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> bool:
        """Go on from a checkpoint; False if the environments could not be put back and their episodes begin anew."""
        load_tensors(self.learner, tensors["learner"])
        self.replay.restore(tensors["replay"])
        self.steps, self.updates, self.beyond = state["steps"], state["updates"], state["beyond"]
        self.logs = logged(state)
        if not self.environments.restore(state["environments"]):
            return False
        self.windows.restore(state["waiting"], self.replay.observations, self.replay.actions)
        return True


class OnPolicyLoop:
    """`run(n)` makes whole rollouts of at least n environment steps and updates on each; what they go beyond n the next
    call makes less."""

    def __init__(
        self, recipe: OnPolicyRecipe, learner: Learner, environments: Environments, space: Space, seed: int
    ):  # fmt: skip
        self.recipe, self.learner, self.environments, self.space, self.seed = recipe, learner, environments, space, seed
        self.observe: Callable[[Tensor], Tensor] = getattr(learner, "observe", lambda x: x)
        if not environments.same_step:
            raise InputError("autoreset_mode", "next step", "rollouts are made with environments that reset at once")
        assert recipe.horizon is not None
        self.horizon = recipe.horizon
        self.offline: Replay | None = None
        self.steps, self.asked, self.updates = 0, 0, 0
        self.logs = defaultdict[str, list[float]](list)

    def run(self, steps: int, pause: Pause = go_on) -> dict[str, float]:
        check_given(self.recipe, self.offline)
        self.asked += steps
        while self.steps < self.asked:
            begin = self.steps
            rollout = self.collect() if self.recipe.episodes is None else self.collect_episodes(self.recipe.episodes)
            for name, value in self.learner.update([rollout], generator(self.seed, "update", begin)).items():
                self.logs[name].append(value)
            self.updates += 1
            if self.steps < self.asked:
                pause(steps + self.steps - self.asked)
        out, self.logs = averages(self.logs), defaultdict(list)
        return out | self.environments.take().means() | {"updates": float(self.updates)}

    def collect(self) -> Transitions:
        """`horizon` steps of every environment; fields are (steps, environments, …)."""
        rng, made = generator(self.seed, "act", self.steps), []
        for _ in range(self.horizon):
            acted = self.learner.act(self.observe(self.environments.current), rng, explore=True)
            stepped = self.environments.step(acted.executed)
            made.append(transitions(stepped, acted.stored, self.observe, self.recipe.discount))
        self.steps += self.horizon * len(self.environments)
        return stacked(made)

    def collect_episodes(self, each: int) -> Transitions:
        """`each` whole episodes of every environment from their first step on, cut at `horizon`; fields are
        (steps, 1, …), the episodes of one environment after those of the other. All environments begin anew after."""
        rng, made, n = generator(self.seed, "act", self.steps), list[Transitions](), len(self.environments)
        age, count = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
        last = torch.zeros(n, dtype=torch.int64)
        while (count < each).any():
            acted = self.learner.act(self.observe(self.environments.current), rng, explore=True)
            t = transitions(self.environments.step(acted.executed), acted.stored, self.observe, self.recipe.discount)
            over = (t.terminated + t.truncated) > 0
            cut = (age + 1 >= self.horizon) & ~over
            self.environments.begin_anew(cut, ended=True)
            made.append(replace(t, truncated=torch.where(cut, 1.0, t.truncated)))
            over = over | cut
            age, count = torch.where(over, 0, age + 1), count + over
            last = torch.where(over & (count == each), len(made), last)
        self.environments.begin_anew(age > 0, ended=False)
        self.steps += len(made) * n
        rollout = stacked(made)
        return Transitions(*(
            torch.cat([value[: last[e], e : e + 1] for e in range(n)])
            for value in (getattr(rollout, name) for name in Transitions.__dataclass_fields__)
        ))  # fmt: skip

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"learner": tensors_of(self.learner)}

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "asked": min(self.asked, self.steps), "updates": self.updates,
                "logs": dict(self.logs), "environments": self.environments.state()}  # fmt: skip

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> bool:
        load_tensors(self.learner, tensors["learner"])
        self.steps, self.asked, self.updates = state["steps"], state["asked"], state["updates"]
        self.logs = logged(state)
        return self.environments.restore(state["environments"])


def parts_of(acted: Acted, task: EnvironmentTask) -> tuple[Tensor, ...]:
    """What is executed, one action of the environment after the other (one, or those of a chunk)."""
    return acted.executed.split(task.one_by_one().space.action_width, 1)


def warm_up(space: Space, n: int, rng: torch.Generator) -> Acted:
    """n uniform actions."""
    if space.discrete:
        action = torch.randint(space.actions, (n, 1), generator=rng).float()
    else:
        action = torch.rand(n, space.actions, generator=rng) * 2 - 1
    return Acted(action, action)


def pixels_of(learner: Learner, space: Space) -> int:
    """How many numbers of what the learner stores are bytes."""
    return 0 if hasattr(learner, "observe") else space.pixels


class OfflineLoop:
    """`run(n)` makes n updates on the demonstrations; nothing acts."""

    def __init__(self, recipe: OfflineRecipe, learner: Learner, seed: int):
        self.recipe, self.learner, self.seed, self.steps = recipe, learner, seed, 0
        self.offline: Replay | None = None
        self.logs = defaultdict[str, list[float]](list)

    def run(self, steps: int, pause: Pause = go_on) -> dict[str, float]:
        if not self.offline:
            raise InputError("demos", None, "this method learns from demonstrations alone: give a data set")
        for made in range(1, steps + 1):
            rng = generator(self.seed, "update", self.steps)
            self.steps += 1
            for name, value in self.learner.update([self.offline.sample(self.recipe.batch, rng)], rng).items():
                self.logs[name].append(value)
            if made < steps:
                pause(made)
        out, self.logs = averages(self.logs), defaultdict(list)
        return out | {"updates": float(self.steps)}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"learner": tensors_of(self.learner)}

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "logs": dict(self.logs)}

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> bool:
        load_tensors(self.learner, tensors["learner"])
        self.steps, self.logs = state["steps"], logged(state)
        return True


def transitions(s: Stepped, stored: Tensor, observe: Callable[[Tensor], Tensor], discount: float) -> Transitions:
    """One step (or chunk) of every environment as transitions: the value after k steps counts γᵏ."""
    powers = torch.tensor([discount**k for k in s.took.tolist()], dtype=s.reward.dtype)
    return Transitions(observe(s.observation), stored, s.reward, observe(s.next_observation), s.terminated, s.truncated,
                       powers)  # fmt: skip


def stacked(made: list[Transitions]) -> Transitions:
    """Steps one after the other; fields are (steps, environments, …)."""
    return Transitions(*(torch.stack([getattr(t, name) for t in made]) for name in Transitions.__dataclass_fields__))


def weights_of(learner: Trained) -> dict[str, Tensor]:
    """Weights and buffers of all modules, by name: everything that acting may need."""
    return {f"{m}.{k}": v for m, module in learner.modules.items() for k, v in module.state_dict().items()}


def tensors_of(learner: Trained) -> dict[str, Tensor]:
    """Weights, buffers and optimiser moments of a learner, by name."""
    out = weights_of(learner)
    for o, optimiser in learner.optimisers.items():
        for i, moments in optimiser.state_dict()["state"].items():
            out |= {f"{o}/{i}/{k}": torch.as_tensor(v) for k, v in moments.items()}
    return {k: v.detach().clone() for k, v in out.items()}


def load_tensors(learner: Trained, tensors: dict[str, Tensor]) -> None:
    """The inverse of `tensors_of`."""
    load_modules(learner, tensors)
    for o, optimiser in learner.optimisers.items():
        moments = defaultdict[int, dict[str, Tensor]](dict)
        for key, value in tensors.items():
            if key.startswith(f"{o}/"):
                _, i, name = key.split("/")
                moments[int(i)][name] = value
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        for i, saved in moments.items():
            check_moments(optimiser, parameters[i], saved)
        optimiser.load_state_dict({"state": dict(moments), "param_groups": optimiser.state_dict()["param_groups"]})


def load_modules(learner: Trained, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `weights_of`."""
    for m, module in learner.modules.items():
        module.load_state_dict({k.removeprefix(f"{m}."): v for k, v in tensors.items() if k.startswith(f"{m}.")})


@torch.no_grad()
def evaluate(
    learner: Learner, environments: Environments, episodes: int, rng: torch.Generator
) -> tuple[dict[str, float], list[float]]:
    """Mean return, length and (where the environment says so) success of complete episodes, with the standard error of
    the return; and the returns."""
    observe: Callable[[Tensor], Tensor] = getattr(learner, "observe", lambda x: x)
    done = environments.take()
    while len(done.returns) < episodes:
        environments.step(learner.act(observe(environments.current), rng, explore=False).executed)
        more = environments.take()
        done.returns += more.returns
        done.lengths += more.lengths
        done.successes += more.successes
    returns = torch.tensor(done.returns[:episodes], dtype=torch.float64)
    out = {"eval/return": float(returns.mean()), "eval/n": float(episodes),
           "eval/length": sum(done.lengths[:episodes]) / episodes}  # fmt: skip
    if episodes > 1:
        out["eval/return_se"] = float(returns.std() / episodes**0.5)
    if done.successes:
        out["eval/success"] = sum(done.successes[:episodes]) / episodes
    return out, returns.tolist()
