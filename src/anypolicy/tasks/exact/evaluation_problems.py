"""Small problems of evaluating a policy from a log whose every quantity is known, and logs drawn from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anypolicy.errors import InputError
from anypolicy.parts import mdp
from anypolicy.parts.evaluation import Log
from anypolicy.runs.seeds import numpy_generator

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EvaluationProblem:
    """Dynamics, mean rewards and their noise, the policy to evaluate, linear features [S, A, d], the log's distribution
    `mu` of (s, a) and the policy's of its first pair, and the weights w* of Q^π where it is realizable."""

    kernel: Array
    reward: Array
    noise: float
    policy: Array
    features: Array
    mu: Array
    first: Array
    discount: float
    weights: Array | None = None

    def __post_init__(self) -> None:
        mdp.check_kernel(self.kernel)
        mdp.check_distribution(self.policy, "policy")
        mdp.check_distribution(self.mu.ravel(), "mu")

    @property
    def phi(self) -> Array:
        """Features of all pairs, rows in the order of (s, a)."""
        return self.features.reshape(-1, self.features.shape[-1])

    @property
    def phi_next(self) -> Array:
        """φ̄' = E[φ(s', π)|s, a]."""
        return mdp.pair_kernel(self.kernel, self.policy) @ self.phi

    @property
    def occupancy(self) -> Array:
        """d^π of the pairs."""
        return mdp.occupancy(mdp.pair_kernel(self.kernel, self.policy), self.first.ravel(), self.discount)

    @property
    def q(self) -> Array:
        """Q^π of the pairs."""
        return mdp.q_values(mdp.pair_kernel(self.kernel, self.policy), self.reward.ravel(), self.discount)

    def bellman_error(self, w: Array) -> Array:
        """Q − TQ of Q = φᵀw at every pair."""
        return self.phi @ w - self.reward.ravel() - self.discount * self.phi_next @ w

    def log(self, n: int, rng: np.random.Generator) -> Log:
        """n independent transitions from `mu`."""
        pairs = rng.choice(self.mu.size, n, p=self.mu.ravel())
        states, actions = np.divmod(pairs, self.mu.shape[1])
        reached = (rng.random((n, 1)) > self.kernel.cumsum(-1)[states, actions]).sum(1).clip(max=len(self.kernel) - 1)
        return Log(states, actions, self.reward[states, actions] + self.noise * rng.standard_normal(n), reached)


def two_state(p: float, discount: float = 0.9) -> EvaluationProblem:
    """Tsitsiklis and Van Roy's: φ = (1, 2), both states go to the second, Q^π = 0, the log is in the first with
    probability p."""
    if not 0 <= p <= 1:
        raise InputError("p", p, "use a probability")
    kernel = np.zeros((2, 1, 2))
    kernel[:, 0, 1] = 1
    return EvaluationProblem(kernel, np.zeros((2, 1)), 1.0, np.ones((2, 1)), np.array([[[1.0]], [[2.0]]]),
                             np.array([[p], [1 - p]]), np.array([[1.0], [0.0]]), discount, np.zeros(1))  # fmt: skip


def three_state(discount: float = 0.8) -> EvaluationProblem:
    """Two features over three states in which the class is nearly complete."""
    phi = np.array([[1.0, 0.0], [0.5, 1.0], [0.0, 2.0]])
    P = np.array([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [0.3, 0.0, 0.7]])
    w = np.array([1.0, -2.0])
    reward = (phi - discount * P @ phi) @ w
    return EvaluationProblem(P[:, None], reward[:, None], 1.0, np.ones((3, 1)), phi[:, None],
                             np.array([[0.5], [0.3], [0.2]]), np.array([[1.0], [0.0], [0.0]]), discount, w)  # fmt: skip


def random_problem(
    states: int, actions: int, features: int, seed: int, discount: float = 0.9, noise: float = 1.0
) -> EvaluationProblem:
    """Dirichlet(½) dynamics, policy and log, normal features, a reward that makes Q^π linear in them."""
    if min(states, actions, features) < 1:
        raise InputError("states, actions, features", (states, actions, features), "use 1 or more")
    rng = numpy_generator(seed, "evaluation")
    kernel = rng.dirichlet(np.full(states, 0.5), (states, actions))
    policy = rng.dirichlet(np.ones(actions), states)
    phi, w = rng.standard_normal((states, actions, features)), rng.standard_normal(features)
    mu = rng.dirichlet(np.ones(states * actions)).reshape(states, actions)
    rows = phi.reshape(-1, features)
    reward = (rows - discount * mdp.pair_kernel(kernel, policy) @ rows) @ w
    first = rng.dirichlet(np.ones(states))[:, None] * policy
    return EvaluationProblem(kernel, reward.reshape(states, actions), noise, policy, phi, mu, first, discount, w)
