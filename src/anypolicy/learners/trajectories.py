"""The learner of policy gradients by whole trajectories: ψ and gradients here, what becomes of them in an estimator.

One iteration: roll out at the estimator's point for the gradient; if it asks for a Hessian-vector product, roll out
again at its point for that; then the step. θ_t stays in the actor, the temporary parameters are the sampler's."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from anypolicy.data.transitions import Transitions
from anypolicy.learners.base import Acted, Needs
from anypolicy.parts.direction import Estimator, Step, Trail, begin
from anypolicy.parts.score import LogProbabilities, hessian_product, positions, score_gradient
from anypolicy.parts.td import generalised_advantage
from anypolicy.policies.control.actors import actor_for
from anypolicy.tasks.control.environments import Space

RIDGE = 1.0
"""Added to the diagonal of a linear baseline's normal equations: short episodes decide nothing about late steps."""


@dataclass(frozen=True)
class ByTrajectories:
    """The settings of a learner; called with spaces and a seed it makes one."""

    estimator: Estimator
    step: Step
    hidden: tuple[int, ...] | None = None
    discount: float = 0.99
    baseline: Literal["linear", "none"] = "linear"
    memory: float = 0.9
    curvature_only: bool = False

    def __call__(self, space: Space, seed: int) -> ByTrajectoriesLearner:
        return ByTrajectoriesLearner(self, space, seed)


class ByTrajectoriesLearner:
    """Actor at θ_t, sampler, the ascent so far, the baseline."""

    needs = Needs()

    def __init__(self, settings: ByTrajectories, space: Space, seed: int):
        rng, self.settings, self.space = torch.Generator().manual_seed(seed), settings, space
        hidden = settings.hidden or ((32, 32) if space.discrete else (64, 64))
        actor = actor_for(space.observations, space.actions, space.discrete, hidden, rng, space.factors)
        self.actor = actor.requires_grad_(False)
        self.sampler = copy.deepcopy(self.actor)
        self.ascent = Ascent(flat(self.actor))
        self.baseline = LinearBaseline(space.observations, settings.memory)
        self.modules: dict[str, nn.Module] = {"actor": self.actor, "sampler": self.sampler, "ascent": self.ascent,
                                              "baseline": self.baseline}  # fmt: skip
        self.optimisers: dict[str, torch.optim.Optimizer] = {}

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        if not explore:
            action = self.actor(observation).mode()
        else:
            action = self.sampler(observation).sample(generator)
        return Acted(action if self.space.discrete else action.clamp(-1, 1), action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """After the first rollout of an iteration the gradient, after the second, if there is one, the product."""
        s, trail, here = self.settings, self.ascent.trail(flat(self.actor)), flat(self.sampler)
        seen = self.weigh(batches[0])
        if not self.ascent.waiting:
            gradient = score_gradient(seen.logp, here, seen.weight, seen.trajectories)
            middle = s.estimator.product_at(trail, torch.rand(1, generator=generator))
            if middle is not None:
                self.ascent.wait(gradient)
                fill(self.sampler, middle)
                return {"grad_norm": float(gradient.norm())}
            return self.finish(trail, gradient, None) | {"grad_norm": float(gradient.norm())}
        product = hessian_product(seen.logp, here, trail.theta - trail.before, seen.weight, seen.trajectory,
                                  seen.trajectories, curvature_only=s.curvature_only)  # fmt: skip
        return self.finish(trail, self.ascent.gradient, product) | {"product/norm": float(product.norm())}

    def finish(self, trail: Trail, gradient: Tensor, product: Tensor | None) -> dict[str, float]:
        """The step, and the sampler goes to where the next gradient is taken."""
        s = self.settings
        direction = s.estimator.direction(trail, gradient, product)
        after = s.step(trail, direction)
        fill(self.actor, after.theta)
        self.ascent.keep(after)
        ahead = s.estimator.gradient_at(after)
        fill(self.sampler, ahead)
        return {"direction/norm": float(direction.norm()), "lr": s.step.gamma(trail.t),
                "sampler/distance": float((ahead - after.theta).norm())}  # fmt: skip

    def weigh(self, rollout: Transitions) -> Seen:
        """ψ_t = γᵗ (Σ_{h≥t} γ^{h−t} r_h − b(s_t, t)) of every step of a rollout of whole episodes. The baseline b comes
        from earlier rollouts only. A sum ends where its episode does, also where it is cut."""
        s, nothing = self.settings, torch.zeros_like(rollout.reward)
        returns = generalised_advantage(rollout.reward, nothing, nothing, rollout.terminated, rollout.truncated,
                                        s.discount, 1.0).squeeze(1)  # fmt: skip
        observation, action = rollout.observation.squeeze(1), rollout.action.squeeze(1)
        trajectory, time = positions((rollout.terminated + rollout.truncated).squeeze(1) > 0)
        weight = returns
        if s.baseline == "linear":
            weight = returns - self.baseline(observation, time)
            self.baseline.fit(observation, time, returns)
        logp = log_probabilities(self.sampler, observation, action)
        return Seen(logp, s.discount**time * weight, trajectory, int(trajectory[-1]) + 1)


class Seen(NamedTuple):
    """ln π of a rollout's steps as a function of θ, their ψ, whose they are, of how many trajectories."""

    logp: LogProbabilities
    weight: Float[Tensor, " steps"]
    trajectory: Int[Tensor, " steps"]
    trajectories: int


class Ascent(nn.Module):
    """What an ascent remembers, as buffers: θ_{t−1}, d_{t−1}, t, and the gradient that waits for its product."""

    before: Tensor
    direction: Tensor
    t: Tensor
    gradient: Tensor
    waits: Tensor

    def __init__(self, theta: Float[Tensor, " parameters"]):
        super().__init__()
        start = begin(theta)
        self.register_buffer("before", start.before)
        self.register_buffer("direction", start.direction)
        self.register_buffer("t", torch.tensor(start.t))
        self.register_buffer("gradient", torch.zeros_like(theta))
        self.register_buffer("waits", torch.tensor(False))

    @property
    def waiting(self) -> bool:
        """Whether the gradient of this iteration is there and its product is not."""
        return bool(self.waits)

    def trail(self, theta: Float[Tensor, " parameters"]) -> Trail:
        """The ascent at θ_t."""
        return Trail(theta, self.before, self.direction, int(self.t))

    def wait(self, gradient: Float[Tensor, " parameters"]) -> None:
        """Keep a gradient until its product is there."""
        self.gradient.copy_(gradient)
        self.waits.fill_(True)

    def keep(self, trail: Trail) -> None:
        """Remember the ascent after a step."""
        self.before, self.direction = trail.before, trail.direction
        self.t.fill_(trail.t)
        self.waits.fill_(False)


class LinearBaseline(nn.Module):
    """b(s, t): ridge regression of returns on (s, s², τ, τ², τ³, 1), τ = t/100, over the rollouts so far, those k
    rollouts ago with weight memoryᵏ; 0 before the first."""

    gram: Tensor
    moment: Tensor

    def __init__(self, observations: int, memory: float):
        super().__init__()
        self.memory, n = memory, 2 * observations + 4
        self.register_buffer("gram", torch.zeros(n, n, dtype=torch.float64))
        self.register_buffer("moment", torch.zeros(n, dtype=torch.float64))

    def forward(
        self, observation: Float[Tensor, "steps observations"], time: Int[Tensor, " steps"]
    ) -> Float[Tensor, " steps"]:
        ridge = RIDGE * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        weights = torch.linalg.solve(self.gram + ridge, self.moment)
        return (self.features(observation, time) @ weights).to(observation.dtype)

    def fit(
        self, observation: Float[Tensor, "steps observations"], time: Int[Tensor, " steps"],
        returns: Float[Tensor, " steps"],
    ) -> None:  # fmt: skip
        """Take a rollout in."""
        x = self.features(observation, time)
        self.gram = self.memory * self.gram + x.T @ x
        self.moment = self.memory * self.moment + x.T @ returns.double()

    @staticmethod
    def features(observation: Tensor, time: Tensor) -> Tensor:
        """Observations clipped to ±10, as the other features are of order one."""
        s, tau = observation.double().clamp(-10, 10), time.double()[:, None] / 100
        return torch.cat([s, s.square(), tau, tau.square(), tau**3, torch.ones_like(tau)], 1)


def flat(module: nn.Module) -> Float[Tensor, " parameters"]:
    """All parameters in one vector (a copy)."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@torch.no_grad()
def fill(module: nn.Module, theta: Float[Tensor, " parameters"]) -> None:
    """Put a vector back into the parameters."""
    for p, part in zip(module.parameters(), theta.split([p.numel() for p in module.parameters()]), strict=True):
        p.copy_(part.view_as(p))


def log_probabilities(
    actor: nn.Module, observation: Float[Tensor, "steps observations"], action: Float[Tensor, "steps actions"]
) -> LogProbabilities:
    """θ ↦ ln π_θ(a|s) of these steps."""
    shapes = {name: p.shape for name, p in actor.named_parameters()}

    def at(theta: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in shapes.values()])
        values = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return functional_call(actor, values, (observation,)).logp(action)

    return at
