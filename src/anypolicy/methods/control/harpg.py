"""(N-)HARPG: Hessian-aided recursive policy gradient, normalised or not.

Paper: arXiv 2302.01734 (ICML 2023), the second of its two algorithms.
Idea: correct the average of past gradients by how the gradient has changed since: ∇J(θ_t) − ∇J(θ_{t−1}) is the
integral of ∇²J (θ_t − θ_{t−1}) along the way, and one trajectory sampled at a random point of the way estimates it
without importance weights.
Changes: a second trajectory for the Hessian-vector product, the direction, the step.
Silent: the baseline at a batch of one; it is that of N-PG-IGT, whose header says more on γʰ and where returns end. At
t = 0 nothing has moved, and where η_t = 1 the correction has no weight: no second trajectory is sampled then.
Differs: B(τ)v = ∇Φ (∇ln p ᵀv) + ∇²Φ v here is a product per trajectory, averaged after. The authors' code multiplies
averages of the batch instead, and as its loss for ln p is a negative log-likelihood, the first term gets the opposite
sign: that is another, biased estimator. `hvp` = "curvature_only" drops the first term: biased too, with less variance.
It takes about 1,000 environment steps for the gradient and 32 for the product; here both have `batch` trajectories.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.knobs import Knob
from anypolicy.learners.recipe import OnPolicyRecipe, fed
from anypolicy.learners.trajectories import ByTrajectories, ByTrajectoriesLearner
from anypolicy.parts.direction import Step, Trail, averaged, decaying
from anypolicy.tasks.control.environments import Space


def between(
    theta: Float[Tensor, "*runs parameters"], before: Float[Tensor, "*runs parameters"], q: Float[Tensor, "*runs 1"]
) -> Float[Tensor, "*runs parameters"]:
    """θ̂_t = q θ_t + (1 − q) θ_{t−1}, q uniform in (0, 1)."""
    return q * theta + (1 - q) * before


@dataclass(frozen=True)
class HessianAided:
    """d_t = (1 − η_t)(d_{t−1} + v_t) + η_t g(θ_t), v_t = B(τ̂, θ̂_t)(θ_t − θ_{t−1}),
    η_t = min(1, η₀ (2/(t + 2))^power)."""

    eta0: float = 1.0
    power: float = 1.0

    def eta(self, t: int) -> float:
        return min(1.0, decaying(self.eta0, t, self.power))

    def gradient_at(self, trail: Trail) -> Tensor:
        return trail.theta

    def product_at(self, trail: Trail, q: Float[Tensor, "*runs 1"]) -> Tensor | None:
        needed = trail.t > 0 and self.eta(trail.t) < 1
        return between(trail.theta, trail.before, q) if needed else None

    def direction(self, trail: Trail, gradient: Tensor, product: Tensor | None) -> Tensor:
        moved = trail.direction if product is None else trail.direction + product
        return averaged(moved, gradient, self.eta(trail.t))


@method(
    Card(
        title="Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies",
        paper="arXiv 2302.01734",
        year=2023,
        family="control",
        idea="carry the averaged gradient along by a Hessian-vector product of a second trajectory",
        changes=("sampling point", "direction", "step"),
        composes_with="any environment; built on whole trajectories and the current policy, so not with ratio clipping",
        claim="with two trajectories an iteration the gap to the optimum shrinks like their number to the power −1/2",
        example="anypolicy train harpg --task gym/CartPole-v1 --steps 30000",
        look_at="eval/return: 28 to 134 with seed 0",
        metrics={
            "direction/norm": "norm of d_t, the averaged and corrected gradient",
            "product/norm": "norm of the correction v_t",
            "sampler/distance": "distance of the parameters that act next from those that are kept",
        },
    ),
    slug="harpg",
)
@dataclass(frozen=True)
class RecursiveGradient:
    """Two trajectories (of each copy of the environment) a step; γ_t = γ₀ 2/(t + 2), or γ₀ (2/(t + 2))^½ where steps
    are not `normalised`."""

    gamma0: Annotated[float, Knob("step size γ₀ at the beginning", above=0)] = 0.1
    eta0: Annotated[float, Knob("share η₀ of a new gradient in the average at the beginning", above=0)] = 1.0
    batch: Annotated[int, Knob("trajectories, of each copy of the environment, for a gradient", least=1)] = 1
    horizon: Annotated[int, Knob("steps after which a trajectory is cut", least=1)] = 1000
    discount: knobs.Discount = 0.99
    normalised: Annotated[bool, Knob("steps have the length of the step size, whatever the gradient's")] = True
    hvp: Annotated[
        Literal["unbiased", "curvature_only"], Knob("Hessian-vector product: unbiased, or its curvature term alone")
    ] = "unbiased"  # fmt: skip
    baseline: Annotated[Literal["linear", "none"], Knob("of returns: linear in the state and time, or none")] = "linear"
    memory: Annotated[float, Knob("weight of each older rollout in the linear baseline", least=0, most=1)] = 0.9
    hidden: Annotated[
        tuple[int, ...] | None, Knob("widths of the hidden layers; none: 32-32 for choices, 64-64 for a box", least=1)
    ] = None  # fmt: skip

    def __call__(self, space: Space, seed: int) -> ByTrajectoriesLearner:
        step = Step(self.gamma0, 1.0 if self.normalised else 1 / 2, self.normalised)
        return ByTrajectories(
            HessianAided(self.eta0), step, hidden=self.hidden, discount=self.discount, baseline=self.baseline,
            memory=self.memory, curvature_only=self.hvp == "curvature_only",
        )(space, seed)  # fmt: skip

    def recipe(self) -> OnPolicyRecipe:
        return fed(OnPolicyRecipe, self, episodes=self.batch)
