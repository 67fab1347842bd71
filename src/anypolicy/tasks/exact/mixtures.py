"""Mixtures of known dynamics to explore without a reward, and any table of dynamics as an environment."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anypolicy.errors import InputError
from anypolicy.parts.mixture import LinearMixtureModel
from anypolicy.runs.seeds import numpy_generator

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """A model with the θ of the true dynamics and the first state."""

    model: LinearMixtureModel
    theta: Array
    start: int = 0

    @property
    def kernel(self) -> Array:
        return self.model.kernel(self.theta)


class TableEnvironment:
    """Dynamics given as a table, with the calls of Gymnasium. It pays nothing and never ends."""

    def __init__(self, kernel: Array, start: int, rng: np.random.Generator):
        self.rows, self.start, self.rng, self.state = kernel.cumsum(-1), start, rng, start

    def reset(self, *, seed: int | None = None) -> tuple[int, dict[str, Any]]:
        self.rng = self.rng if seed is None else np.random.default_rng(seed)
        self.state = self.start
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        row = self.rows[self.state, action]
        self.state = int(row.searchsorted(self.rng.random() * row[-1], side="right"))
        return self.state, 0.0, False, False, {}


def corridor(d: int = 3, length: int = 6, weights: Array | None = None) -> Mixture:
    """A laboratory at the end of a corridor: only action 1 goes on, whatever the kernel; at the end kernel i takes
    action i to the good state, any other to the bad one. Nothing is learnt about the weights before one gets there."""
    if d < 2 or length < 1:
        raise InputError("corridor", (d, length), "use at least 2 kernels and a length of 1")
    kernels = np.zeros((d, length + 3, d, length + 3))
    for s in range(length):
        kernels[:, s, :, max(s - 1, 0)] = 1
        kernels[:, s, 1, :] = np.eye(length + 3)[s + 1]
    kernels[:, length, :, length + 2] = 1
    for i in range(d):
        kernels[i, length, i] = np.eye(length + 3)[length + 1]
    kernels[:, (length + 1, length + 2), :, (length + 1, length + 2)] = 1
    falling = np.arange(d, 0, -1) / (d * (d + 1) / 2)
    w = falling if weights is None else np.asarray(weights, float)
    return Mixture(LinearMixtureModel.of_kernels(kernels), math.sqrt(d) * w)


def random_mixture(d: int, states: int, actions: int, seed: int) -> Mixture:
    """Kernels whose rows are Dirichlet(½) draws, weights uniform on the simplex."""
    rng = numpy_generator(seed, "mixture")
    kernels = rng.dirichlet(np.full(states, 0.5), (d, states, actions))
    return Mixture(LinearMixtureModel.of_kernels(kernels), math.sqrt(d) * rng.dirichlet(np.ones(d)))


def hard(d: int, seed: int, gap: float | None = None) -> Mixture:
    """The lower bound's instance: from state 0 an action of {±1}^{d−1} leads to state 2 with probability 1/6 + ⟨μ, a⟩,
    else to state 1, and both absorb; μ ∈ {±gap}^{d−1}. Its φ are no kernels: φ_2(0, a) = (a/√(2(d−1)), √½/6)."""
    if not 2 <= d <= 10:
        raise InputError("features", d, "this instance has 2^(d−1) actions: use 2 to 10")
    gap = 1 / (12 * (d - 1)) if gap is None else gap
    if not 0 <= gap * (d - 1) <= 1 / 6:
        raise InputError("gap", gap, f"use at most 1/(6(d−1)) = {1 / (6 * (d - 1)):.4g}")
    actions = np.array(list(itertools.product((-1.0, 1.0), repeat=d - 1))).T
    scale, last = math.sqrt(1 / (2 * (d - 1))), math.sqrt(0.5)
    phi = np.zeros((d, 3, actions.shape[1], 3))
    phi[:-1, 0, :, 2], phi[:-1, 0, :, 1] = scale * actions, -scale * actions
    phi[-1, 0, :, 2], phi[-1, 0, :, 1] = last / 6, last * 5 / 6
    phi[-1, 1, :, 1] = phi[-1, 2, :, 2] = last
    mu = gap * numpy_generator(seed, "hard").choice((-1.0, 1.0), d - 1)
    theta = np.append(mu / scale, 1 / last)
    return Mixture(LinearMixtureModel(phi, simplex=False, bound=float(np.linalg.norm(theta))), theta)
