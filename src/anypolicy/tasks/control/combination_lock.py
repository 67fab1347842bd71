"""The continuous combination lock with rich observations (arXiv 2311.08384, section 6), and data of a behaviour policy.

A chain of `horizon` steps with two good states 0, 1 and a bad one, 2. An action is a vector of ten numbers, from which
the environment draws a choice k with probabilities softmax(a / 0.1). In a good state one choice is right; it leads to
either good state, every other one to the bad state, which nothing leaves. Only the last step pays: 1 for the right
choice in a good state, else 0.1 with probability ½; a policy that has never seen the 1 learns nothing about it.
The right choices are drawn once for a `combination`, the same in every copy of the environment.

What is seen is H (g + e_s + e_{3+h}) with H the Hadamard matrix of ±1 and g noise of `noise` on the first horizon + 3
numbers, followed by the step h. Actions lie in [−10, 10], far beyond what a Gaussian of deviation 1 reaches.

Data of the behaviour policy (the right choice as a one-hot vector, with probability 1/horizon a random vector of
[0, 1]¹⁰ instead; `actions random`: always) are written by

    python -m anypolicy.tasks.control.combination_lock lock.safetensors --horizon 5 --combination 0 --episodes 5000
    anypolicy train hnpg --task combination-lock:horizon=5,combination=0 --demos lock.safetensors

Rewards in the middle: the authors' code computes a small one at the moment of falling and returns 0, as here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box
from scipy.linalg import hadamard
from tyro.conf import Positional

from anypolicy.data.demonstrations import Episode, save_episodes
from anypolicy.errors import InputError
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.control.environments import WithStep

CHOICES, TEMPERATURE, LIMIT, BAD = 10, 0.1, 10.0, 2
LONGEST = 4092
"""Steps: the matrix of what is seen has 4096² numbers then."""
Behaviour = Literal["behaviour", "random"]


class Lock:
    """The rules, for many episodes at once: states, choices and observations are arrays with a row for each."""

    def __init__(self, horizon: int, combination: int, noise: float):
        if not 1 <= horizon <= LONGEST:
            raise InputError("combination-lock.horizon", horizon, f"use 1 to {LONGEST}")
        if combination < 0:
            raise InputError("combination-lock.combination", combination, "use 0 or more")
        if noise < 0:
            raise InputError("combination-lock.noise", noise, "use 0 or more")
        self.horizon, self.noise = horizon, noise
        self.right = numpy_generator(combination, "combination lock").integers(CHOICES, size=(2, horizon))
        self.width = 2 ** math.ceil(math.log2(horizon + 4))
        self.matrix = hadamard(self.width).astype(np.float64)

    def begin(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """States 0 or 1."""
        return (rng.random(n) < 0.5).astype(np.int64)

    def observe(self, state: np.ndarray, step: int, rng: np.random.Generator) -> np.ndarray:
        """(rows, width); the state after the last step is seen with step = horizon."""
        g = np.zeros((len(state), self.width))
        g[:, : self.horizon + 3] = self.noise * rng.standard_normal((len(state), self.horizon + 3))
        g[np.arange(len(state)), state] += 1
        g[:, 3 + step] += 1
        return (g @ self.matrix).astype(np.float32)

    def advance(
        self, state: np.ndarray, step: int, action: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Next states, rewards, and whether the choice was right in a good state."""
        choice = choose(choice_probabilities(action), rng.random(len(state)))
        good = (state != BAD) & (choice == self.right[np.minimum(state, 1), step])
        chance = rng.random(len(state)) < 0.5
        after = np.where(good, np.where(chance, 1 - state, state), BAD)
        reward = np.where(good, 1.0, 0.1 * chance) if step == self.horizon - 1 else np.zeros(len(state))
        return after, reward, good

    def behave(self, state: np.ndarray, step: int, behaviour: Behaviour, rng: np.random.Generator) -> np.ndarray:
        """Actions of the behaviour policy; in the bad state it takes those of state 1."""
        best = np.eye(CHOICES)[self.right[np.minimum(state, 1), step]]
        noise = rng.random((len(state), CHOICES))
        careless = rng.random(len(state)) < (1.0 if behaviour == "random" else 1 / self.horizon)
        return np.where(careless[:, None], noise, best)


def choice_probabilities(action: np.ndarray) -> np.ndarray:
    """softmax(a / 0.1) over the last axis."""
    z = np.asarray(action, np.float64) / TEMPERATURE
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def choose(probabilities: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """One index a row, by the inverse of the cumulative distribution."""
    below = (probabilities.cumsum(-1)[:, :-1] <= uniform[:, None]).sum(-1)
    return below.astype(np.int64)


class CombinationLock(gymnasium.Env[np.ndarray, np.ndarray]):
    """The lock as an environment; `info["is_success"]` says at the end whether it opened."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}

    def __init__(self, lock: Lock, render_mode: str | None = None):
        self.lock, self.horizon, self.render_mode = lock, lock.horizon, render_mode
        self.observation_space = Box(-np.inf, np.inf, (lock.width,), np.float32)
        self.action_space = Box(-LIMIT, LIMIT, (CHOICES,), np.float32)
        self.state, self.at = np.zeros(1, np.int64), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state, self.at = self.lock.begin(1, self.np_random), 0
        return self.lock.observe(self.state, 0, self.np_random)[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.state, reward, good = self.lock.advance(self.state, self.at, np.asarray(action)[None], self.np_random)
        self.at += 1
        over = self.at == self.horizon
        seen = self.lock.observe(self.state, self.at, self.np_random)[0]
        return seen, float(reward[0]), over, False, {"is_success": float(good[0])} if over else {}

    def render(self) -> np.ndarray:
        """The chain from left to right: two good rows and the bad one, the present state bright."""
        picture = np.empty((3, self.horizon + 1, 3), np.uint8)
        picture[:2], picture[BAD] = (40, 90, 60), (90, 45, 45)
        picture[self.state[0], self.at] = (250, 220, 80)
        return picture.repeat(32, 0).repeat(32, 1)

    def get_state(self) -> list[int]:
        """State and step: with the random generator, all that decides what comes next."""
        return [int(self.state[0]), self.at]

    def set_state(self, value: list[int]) -> None:
        self.state, self.at = np.array(value[:1], np.int64), int(value[1])


def combination_lock(
    horizon: int = 5, combination: int = 0, noise: float = 0.1, render_mode: str | None = None
) -> gymnasium.Env[Any, Any]:
    """The environment, its observation followed by the step."""
    return WithStep(CombinationLock(Lock(horizon, combination, noise), render_mode))


def behaviour_data(lock: Lock, episodes: int, seed: int, behaviour: Behaviour = "behaviour") -> Iterator[Episode]:
    """Episodes of the behaviour policy, actions scaled to [−1, 1]."""
    if episodes < 1:
        raise InputError("episodes", episodes, "use at least 1")
    rng = numpy_generator(seed, "combination lock data", behaviour)
    state = lock.begin(episodes, rng)
    seen, acted, paid = [lock.observe(state, 0, rng)], list[np.ndarray](), list[np.ndarray]()
    for step in range(lock.horizon):
        action = lock.behave(state, step, behaviour, rng)
        state, reward, _ = lock.advance(state, step, action, rng)
        seen.append(lock.observe(state, step + 1, rng))
        acted.append(action / LIMIT)
        paid.append(reward)
    observation, action, reward = (torch.from_numpy(np.stack(x, 1)).float() for x in (seen, acted, paid))
    step = torch.arange(lock.horizon + 1.0)[:, None]
    ends, never = torch.eye(lock.horizon)[-1], torch.zeros(lock.horizon)
    for o, a, r in zip(observation, action, reward, strict=True):
        yield Episode(torch.cat([o, step], 1), a, r, ends, never)


@dataclass(frozen=True)
class Data:
    """Write data of a behaviour policy in the combination lock, for `--demos`."""

    out: Positional[Path]
    """.safetensors file"""
    horizon: int = 5
    """steps of an episode"""
    combination: int = 0
    """which lock"""
    noise: float = 0.1
    """deviation of the noise in observations"""
    episodes: int = 5000
    """how many"""
    seed: int = 0
    """of the data"""
    actions: Behaviour = "behaviour"
    """nearly optimal ones, or random ones"""

    def write(self) -> None:
        lock = Lock(self.horizon, self.combination, self.noise)
        if self.out.suffix != ".safetensors":
            raise InputError("out", str(self.out), "the name of the file must end with .safetensors")
        save_episodes(self.out, list(behaviour_data(lock, self.episodes, self.seed, self.actions)))


def main(argv: list[str] | None = None) -> None:
    """`python -m anypolicy.tasks.control.combination_lock OUT.safetensors …`"""
    try:
        tyro.cli(Data, args=argv).write()
    except InputError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
