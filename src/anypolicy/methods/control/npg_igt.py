"""N-PG-IGT: normalised policy gradient with implicit gradient transport.

Paper: arXiv 2302.01734 (ICML 2023), the first of its two algorithms.
Idea: an average of past gradients is stale, because they were taken elsewhere. Take each new one ahead of θ_t, where
its bias and that of the average cancel for quadratic functions; one trajectory an iteration is then enough.
Changes: where a trajectory is sampled (θ̃_t), the direction (average of such gradients), the step (of length γ_t).
Silent: the baseline at a batch of one trajectory. Here ridge regression on (s, s², t, t², t³, 1) over past rollouts
with weights that fade by `memory`, never on the rollout it judges. Where ‖d_t‖ = 0 nothing moves. A return ends where
its trajectory is cut, at `horizon` or at the environment's own limit: the paper's objective is that of trajectories
of H steps, and an estimator by scores has no value to go on with.
Differs: the authors' code looks ahead with η_t of the step it has just done, not η_{t+1}; we follow the equations. It
weighs every step by its own advantage without γᵗ, as GAE with λ = 1 does; here γʰ stands in front of r_h and of the
baseline. It uses about 1,000 environment steps a gradient, the theory one trajectory, as here. The theory's γ₀ is
3 M_g/μ_F; in practice it is tuned over 0.1, 0.3, 1.
`direction` has the rivals too: momentum (N-MPG, no look-ahead, exponent 2/3) and plain (NSGD); plain without
`normalised` is the usual policy gradient with γ_t = γ₀ (2/(t + 2))^⅔.
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
from anypolicy.parts.direction import Estimator, Momentum, Plain, Step, Trail, averaged, decaying
from anypolicy.tasks.control.environments import Space


def lookahead(
    theta: Float[Tensor, "*runs parameters"], before: Float[Tensor, "*runs parameters"], eta: float
) -> Float[Tensor, "*runs parameters"]:
    """θ̃_t = θ_t + ((1 − η_t)/η_t)(θ_t − θ_{t−1})."""
    return theta + (1 - eta) / eta * (theta - before)


@dataclass(frozen=True)
class GradientTransport:
    """d_t = (1 − η_t) d_{t−1} + η_t g(θ̃_t), η_t = min(1, η₀ (2/(t + 2))^power)."""

    eta0: float = 1.0
    power: float = 4 / 5

    def eta(self, t: int) -> float:
        return min(1.0, decaying(self.eta0, t, self.power))

    def gradient_at(self, trail: Trail) -> Tensor:
        return lookahead(trail.theta, trail.before, self.eta(trail.t))

    def product_at(self, trail: Trail, q: Tensor) -> None:
        return None

    def direction(self, trail: Trail, gradient: Tensor, product: Tensor | None) -> Tensor:
        return averaged(trail.direction, gradient, self.eta(trail.t))


@method(
    Card(
        title="Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies",
        paper="arXiv 2302.01734",
        year=2023,
        family="control",
        idea="take each gradient ahead of the parameters, so that its average with old ones is not stale",
        changes=("sampling point", "direction", "step"),
        composes_with="any environment; built on whole trajectories and the current policy, so not with ratio clipping",
        claim="with one trajectory an iteration the gap to the optimum shrinks faster than by plain normalised steps",
        example="anypolicy train npg-igt --task gym/CartPole-v1 --steps 30000",
        look_at="eval/return: 28 to 179 with seed 0",
        metrics={
            "direction/norm": "norm of d_t, the averaged gradient",
            "sampler/distance": "distance of the parameters that act from those that are kept",
        },
    ),
    slug="npg-igt",
)
@dataclass(frozen=True)
class NormalisedGradient:
    """One trajectory (of each copy of the environment) a step; MLP of 32-32 for choices and 64-64 for a box."""

    gamma0: Annotated[float, Knob("step size γ₀ at the beginning", above=0)] = 0.1
    eta0: Annotated[float, Knob("share η₀ of a new gradient in the average at the beginning", above=0)] = 1.0
    batch: Annotated[int, Knob("trajectories, of each copy of the environment, for a gradient", least=1)] = 1
    horizon: Annotated[int, Knob("steps after which a trajectory is cut", least=1)] = 1000
    discount: knobs.Discount = 0.99
    direction: Annotated[
        Literal["igt", "momentum", "plain"], Knob("implicit gradient transport, plain momentum, or the gradient alone")
    ] = "igt"  # fmt: skip
    normalised: Annotated[bool, Knob("steps have the length of the step size, whatever the gradient's")] = True
    baseline: Annotated[Literal["linear", "none"], Knob("of returns: linear in the state and time, or none")] = "linear"
    memory: Annotated[float, Knob("weight of each older rollout in the linear baseline", least=0, most=1)] = 0.9
    hidden: Annotated[
        tuple[int, ...] | None, Knob("widths of the hidden layers; none: 32-32 for choices, 64-64 for a box", least=1)
    ] = None  # fmt: skip

    def __call__(self, space: Space, seed: int) -> ByTrajectoriesLearner:
        estimators: dict[str, Estimator] = {
            "igt": GradientTransport(self.eta0), "momentum": Momentum(self.eta0), "plain": Plain(),
        }  # fmt: skip
        step = Step(self.gamma0, 1.0 if self.normalised else 2 / 3, self.normalised)
        return ByTrajectories(
            estimators[self.direction], step, hidden=self.hidden, discount=self.discount, baseline=self.baseline,
            memory=self.memory,
        )(space, seed)  # fmt: skip

    def recipe(self) -> OnPolicyRecipe:
        return fed(OnPolicyRecipe, self, episodes=self.batch)
