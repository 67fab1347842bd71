"""A linear system with quadratic costs, whose objective and all its derivatives are known exactly.

x′ = A x + B a, x_0 ~ N(0, ½ I), r = −(‖x‖² + 0.2 a²), ten steps, discount 0.95. The policies whose value is exact are
a = −θᵀx + 0.3 ε with ε standard normal. The system is stable without any control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from jaxtyping import Float
from torch import Tensor

from anypolicy.parts.score import LogProbabilities, hessian_product, score_gradient

HORIZON, DISCOUNT, SIGMA, START, COST = 10, 0.95, 0.3, 0.5, 0.2
A = torch.tensor([[0.9, 0.2], [0.0, 0.8]], dtype=torch.float64)
B = torch.tensor([0.0, 0.5], dtype=torch.float64)


def value(theta: Float[Tensor, "*runs 2"]) -> Float[Tensor, "*runs"]:
    """J(θ) by the recursion of E[x xᵀ]: S′ = (A − Bθᵀ) S (A − Bθᵀ)ᵀ + σ² B Bᵀ. Differentiable."""
    moves = A - B[:, None] * theta[..., None, :]
    second = START * torch.eye(2, dtype=torch.float64).expand(*theta.shape[:-1], 2, 2)
    total = torch.zeros(theta.shape[:-1], dtype=torch.float64)
    for t in range(HORIZON):
        state = second.diagonal(dim1=-2, dim2=-1).sum(-1)
        action = (theta[..., None, :] @ second @ theta[..., :, None])[..., 0, 0] + SIGMA**2
        total = total - DISCOUNT**t * (state + COST * action)
        second = moves @ second @ moves.transpose(-1, -2) + SIGMA**2 * B[:, None] * B
    return total


def optimum(steps: int = 20) -> Float[Tensor, " parameters"]:
    """θ* by Newton's method from 0."""
    theta = torch.zeros(2, dtype=torch.float64)
    for _ in range(steps):
        theta = theta - torch.linalg.solve(torch.func.hessian(value)(theta), torch.func.grad(value)(theta))
    return theta


class Sampled(NamedTuple):
    """One trajectory a run."""

    state: Float[Tensor, "runs steps 2"]
    action: Float[Tensor, "runs steps"]
    reward: Float[Tensor, "runs steps"]

    def returns(self) -> Float[Tensor, "runs steps"]:
        """Σ_{h≥t} γʰ r_h, discounted from the first step on."""
        powers = DISCOUNT ** torch.arange(HORIZON, dtype=torch.float64)
        return (powers * self.reward).flip(-1).cumsum(-1).flip(-1)


def sample(theta: Float[Tensor, "runs 2"], generator: torch.Generator) -> Sampled:
    """A trajectory of every row's policy."""
    noise = torch.randn(len(theta), HORIZON + 2, generator=generator, dtype=torch.float64)
    x, states, actions = noise[:, :2] * START**0.5, list[Tensor](), list[Tensor]()
    for t in range(HORIZON):
        a = SIGMA * noise[:, t + 2] - (theta * x).sum(-1)
        states.append(x)
        actions.append(a)
        x = x @ A.T + a[:, None] * B
    state, action = torch.stack(states, 1), torch.stack(actions, 1)
    return Sampled(state, action, -(state.square().sum(-1) + COST * action.square()))


def logp(theta: Float[Tensor, "runs 2"], seen: Sampled) -> Float[Tensor, "runs steps"]:
    """ln π_θ(a|s) up to a constant: −(a + θᵀx)²/(2σ²)."""
    return -(seen.action + (seen.state @ theta[:, :, None])[..., 0]).square() / (2 * SIGMA**2)


@dataclass(frozen=True)
class Oracle:
    """Gradients and Hessian-vector products of one new trajectory a run; `baseline` has a number for every step."""

    baseline: Float[Tensor, " steps"]
    generator: torch.Generator
    curvature_only: bool = False

    def seen(self, theta: Float[Tensor, "runs 2"]) -> tuple[LogProbabilities, Float[Tensor, " all"]]:
        """ln π of all steps of all runs as a function of all their parameters in one row, and ψ."""
        s = sample(theta, self.generator)
        return lambda x: logp(x.view_as(theta), s).flatten(), (s.returns() - self.baseline).flatten()

    def gradient(self, theta: Float[Tensor, "runs 2"]) -> Float[Tensor, "runs 2"]:
        """Every run's own: the runs are blocks of one large problem in which nothing is averaged."""
        score, weight = self.seen(theta)
        return score_gradient(score, theta.flatten(), weight, 1).view_as(theta)

    def product(self, theta: Float[Tensor, "runs 2"], vector: Float[Tensor, "runs 2"]) -> Float[Tensor, "runs 2"]:
        score, weight = self.seen(theta)
        n = len(theta)
        trajectory = torch.arange(n).repeat_interleave(HORIZON)
        product = hessian_product(score, theta.flatten(), vector.flatten(), weight, trajectory, n,
                                  curvature_only=self.curvature_only)  # fmt: skip
        return n * product.view_as(theta)


def mean_returns(
    theta: Float[Tensor, " parameters"], rollouts: int, generator: torch.Generator
) -> Float[Tensor, " steps"]:
    """Σ_{h≥t} γʰ r_h, averaged over rollouts: a fixed baseline."""
    return sample(theta.expand(rollouts, 2), generator).returns().mean(0)


class LinearQuadratic(gymnasium.Env[Any, Any]):
    """The same as an environment for any controller."""

    metadata = {"render_modes": []}
    horizon = HORIZON

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Box(-5.0, 5.0, (1,), np.float32)
        self.x, self.t = np.zeros(2), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.normal(0, START**0.5, 2), 0
        return self.x.astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        a = float(np.asarray(action).reshape(-1)[0])
        reward = -float(self.x @ self.x + COST * a * a)
        self.x, self.t = A.numpy() @ self.x + B.numpy() * a, self.t + 1
        return self.x.astype(np.float32), reward, False, self.t >= HORIZON, {}

    def get_state(self) -> dict[str, Any]:
        return {"x": self.x.tolist(), "t": self.t}

    def set_state(self, state: dict[str, Any]) -> None:
        self.x, self.t = np.array(state["x"]), state["t"]
