"""A reward-free problem and what is told of its solution: dynamics, rewards to be ready for, quality of planning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anypolicy.data.arrays import load_arrays
from anypolicy.errors import InputError, settings_of
from anypolicy.parts import mdp
from anypolicy.parts.mixture import LinearMixtureModel
from anypolicy.parts.reports import Assumption, Chart, Line, Report, Solution
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.exact.mixtures import Mixture, TableEnvironment, corridor, hard, random_mixture

Array = NDArray[np.float64]
SIZES = {"corridor": {"features": 3, "states": 6}, "random": {"features": 3, "states": 6, "actions": 3},
         "hard": {"features": 3}, "a file": {}}  # fmt: skip
"""What generated instances are made of, by default."""


class Environment(Protocol):
    """Gymnasium's calls with whole numbers for states and actions; rewards are not looked at."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...


@dataclass(frozen=True)
class Problem:
    """The environment to explore, its model, the rewards to be ready for, the true dynamics where known, and what it
    was made of."""

    env: Environment
    model: LinearMixtureModel
    rewards: Array
    kernel: Array | None
    settings: Mapping[str, object]


@dataclass
class Result:
    """What exploration learnt: Σ and b of both families (V̂ first, then Ṽ) and all moments, θ and the optimistic value
    V̂_{k,1}(s1) of every episode."""

    model: LinearMixtureModel
    rewards: Array
    start: int
    Sigma: Array
    b: Array
    thetas: Array
    pseudo: Array

    @property
    def theta(self) -> Array:
        """The pooled estimate, its weights projected on the simplex."""
        return self.candidates[0]

    @property
    def weights(self) -> Array:
        """θ as weights of the candidate kernels."""
        return self.theta / math.sqrt(self.model.d) if self.model.simplex else self.theta

    @property
    def candidates(self) -> Array:
        """θ of the oracle: pooled over families and moments, V̂'s at m = 0, Ṽ's at m = 0; projected."""
        pooled = np.linalg.solve(self.Sigma.sum((0, 1)), self.b.sum((0, 1)))
        own = np.linalg.solve(self.Sigma[:, 0], self.b[:, 0, :, None])[..., 0]
        return self.model.project(np.stack([pooled, *own]))


class Start:
    """What exploration begins with, checked."""

    def __init__(self, model: LinearMixtureModel, horizon: int, rewards: Array | None, episodes: int, beta: float):
        for name, value, least in (("horizon", horizon, 1), ("episodes", episodes, 0)):
            if value < least:
                raise InputError(name, value, f"use {least} or more")
        if not beta > 0:
            raise InputError("beta", beta, "use a number above 0")
        self.model = model
        self.rewards = goal_rewards(model, horizon) if rewards is None else np.asarray(rewards, float)
        if self.rewards.shape[1:] != (horizon, model.states, model.actions) or not len(self.rewards):
            raise InputError("rewards", self.rewards.shape,
                             f"their shape must be [n, {horizon}, {model.states}, {model.actions}]")  # fmt: skip

    def check(self, start: int) -> None:
        """Rewards are at least 0 and sum to at most 1 on every trajectory from `start` that the features allow."""
        if not 0 <= start < self.model.states:
            raise InputError("start", start, f"the model has the states 0 to {self.model.states - 1}")
        if not (self.rewards >= 0).all():
            n, h, s, a = np.argwhere(~(self.rewards >= 0))[0]
            raise InputError(f"rewards[{n}]", float(self.rewards[n, h, s, a]),
                             f"at step {h + 1}, state {s}, action {a}: use 0 or more")  # fmt: skip
        most = mdp.largest_return((self.model.phi != 0).any(0), self.rewards, start)
        if most.max() > 1 + 1e-9:
            n = int(most.argmax())
            raise InputError(f"rewards[{n}]", float(most[n]),
                             "a trajectory may collect at most 1: divide by this, or by the horizon")  # fmt: skip


def episode(env: Environment, policy: NDArray[np.int64], start: int) -> tuple[list[int], list[int]]:
    """The states and actions of one episode, shorter where the environment ends it."""
    states, actions = [int(env.reset()[0])], list[int]()
    if states[0] != start:
        raise InputError("env", states[0], f"every episode must begin in the same state; the first began in {start}")
    for row in policy:
        actions.append(int(row[states[-1]]))
        state, _, terminated, truncated, _ = env.step(actions[-1])
        states.append(int(state))
        if terminated or truncated:
            break
    return states, actions


def goal_rewards(model: LinearMixtureModel, horizon: int) -> Array:
    """One reward a state: 1 for being there at the last step."""
    rewards = np.zeros((model.states, horizon, model.states, model.actions))
    rewards[np.arange(model.states), -1, np.arange(model.states)] = 1
    return rewards


def random_rewards(model: LinearMixtureModel, horizon: int, n: int, rng: np.random.Generator) -> Array:
    """Uniform draws, divided so that no trajectory collects more than 1."""
    r = rng.random((n, horizon, model.states, model.actions))
    return r / r.max((2, 3)).sum(1)[:, None, None, None]


def problem(
    instance: str | None, sizes: Mapping[str, int | None], horizon: int, extra: int, data: str, env: str, seed: int
) -> Problem:
    """A generated instance, or the user's kernels with weights or a Gymnasium environment."""
    rng, own = numpy_generator(seed, "rewards"), np.zeros(0)
    if data and instance is not None:
        raise InputError("instance", instance, "give it or data, not both")
    made_of = "a file" if data else instance or "corridor"
    used = settings_of(made_of, sizes, SIZES)
    for name, value in used.items():
        if value < 2:
            raise InputError(name, value, "use 2 or more")
    if data:
        mixture, own = from_file(data, need_weights=not env)
    elif env:
        raise InputError("env", env, "give the candidate kernels too: data FILE.npz")
    else:
        d = used["features"]
        mixture = {"corridor": lambda: corridor(d, used["states"]), "hard": lambda: hard(d, seed),
                   "random": lambda: random_mixture(d, used["states"], used["actions"], seed)}[made_of]()  # fmt: skip
    for name, value, least in (("horizon", horizon, 1), ("random_rewards", extra, 0)):
        if value < least:
            raise InputError(name, value, f"use {least} or more")
    bank = [goal_rewards(mixture.model, horizon), random_rewards(mixture.model, horizon, extra, rng)]
    if own.size:
        if own.ndim != 4 or own.shape[1:] != bank[0].shape[1:]:
            raise InputError("data[rewards]", own.shape, f"their shape must be [n, {bank[0].shape[1:]}]")
        bank.append(own)
    settings = {"instance": made_of, **used}
    if env:
        return Problem(gymnasium_environment(env, mixture.model), mixture.model, np.concatenate(bank), None, settings)
    real = TableEnvironment(mixture.kernel, mixture.start, numpy_generator(seed, "environment"))
    return Problem(real, mixture.model, np.concatenate(bank), mixture.kernel, settings)


def from_file(path: str, *, need_weights: bool) -> tuple[Mixture, Array]:
    """The candidates of a .npz file, with the weights of the real dynamics (where no environment is), and rewards."""
    needs, may = (("kernels", "weights"), ("rewards", "start")) if need_weights else (("kernels",), ("rewards",))
    arrays = load_arrays(path, needs, may)
    kernels = np.asarray(arrays["kernels"], float)
    if kernels.ndim != 4 or kernels.shape[1] != kernels.shape[3] or not kernels.size:
        raise InputError("data[kernels]", kernels.shape, "their shape must be [d, states, actions, states]")
    model = LinearMixtureModel.of_kernels(kernels)
    w = np.asarray(arrays.get("weights", np.full(model.d, 1 / model.d)), float)
    if w.shape != (model.d,):
        raise InputError("data[weights]", w.shape, f"give one for each of the {model.d} kernels")
    mdp.check_distribution(w, "data[weights]")
    start = arrays.get("start", np.zeros(()))
    if start.size != 1 or not 0 <= start.item() < model.states:
        raise InputError("data[start]", start.tolist(), f"use one of the states 0 to {model.states - 1}")
    return Mixture(model, math.sqrt(model.d) * w, int(start.item())), np.asarray(
        arrays.get("rewards", np.zeros(0)), float
    )


def gymnasium_environment(name: str, model: LinearMixtureModel) -> Any:
    """An environment with as many states and actions as the model."""
    import gymnasium
    from gymnasium.spaces import Discrete

    try:
        made = gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise InputError("env", name, f"use the id of a Gymnasium environment ({error})") from error
    spaces = (("states", made.observation_space, model.states), ("actions", made.action_space, model.actions))
    for what, space, n in spaces:
        if not isinstance(space, Discrete) or space.start != 0 or space.n != n:
            raise InputError("env", name, f"its {what} are {space}, the kernels have {n} {what}")
    return made


def solution(
    given: Problem,
    found: Result,
    policies: NDArray[np.int64],
    practical: tuple[float, float],
    proof: tuple[float, float],
) -> Solution:
    """The certificates by name of their β, what planning really loses where that is known, and how weights settled."""
    oracle = Assumption("exact joint maximum", False, "rewards of the bank, three θ, greedy actions")
    mixture = Assumption("the dynamics are a mixture of the features", True if given.kernel is not None else None)
    identified = Assumption("weights are identified", given.model.identified,
                            "" if given.model.identified else "the features are linearly dependent")  # fmt: skip
    note = f"of {len(given.rewards)} rewards in the bank"
    named = {f"planning error certified, practical β = {practical[0]:.4g}": practical[1],
             f"the same, the proof's β = {proof[0]:.4g}": proof[1]}  # fmt: skip
    reports = [Report(name, value, "estimate", "V̂_{K,1}(s1), algorithm 4", None, (mixture, oracle), note)
               for name, value in named.items()]  # fmt: skip
    if given.kernel is not None:
        best = mdp.plan(given.kernel, given.rewards)[1][:, 1, found.start]
        got = mdp.policy_values(given.kernel, given.rewards, policies)[:, 1, found.start]
        error = 0.5 * abs(given.model.kernel(found.theta) - given.kernel).sum(-1).max()
        reports += [
            Report("planning loss", float((best - got).max()), "exact", "max over rewards of V* − V^π̂", note=note),
            Report("error of the dynamics", float(error), "exact", "largest total variation of a row",
                   assumptions=(identified,)),
        ]  # fmt: skip
    scale = math.sqrt(given.model.d) if given.model.simplex else 1.0
    episodes = [float(k) for k in range(1, len(found.pseudo) + 1)]
    lines = [Line(f"weight {i}", episodes, (found.thetas[:, i] / scale).tolist()) for i in range(given.model.d)]
    charts = [
        Chart("Optimistic value of the reward that is known least", "episode", "V̂_1(s1)",
              [Line("V̂_1(s1)", episodes, found.pseudo.tolist())], "xy"),
        Chart("Weights of the candidates", "episode", "weight", lines, "x"),
    ]  # fmt: skip
    rows = [{"candidate": i, "weight": float(w)} for i, w in enumerate(found.weights)]
    return Solution(reports, charts if episodes else (), {"Learnt mixture": rows}, given.settings)
