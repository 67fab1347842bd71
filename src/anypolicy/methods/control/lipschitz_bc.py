"""Lipschitz behaviour cloning: one mean action, from a network whose Lipschitz constant is certified.

Paper: Al Makdah, Krishnan and Pasqualetti 2021, arXiv 2103.16629: imitation under a hard bound on the Lipschitz
constant, of which only the abstract could be read. MaxMin activations: Anil, Lucas and Grosse 2018, arXiv 1811.05381.
Idea: an error of size ω in what is measured moves the action by αω at most, whatever the network has learnt.
Changes: nothing; it learns from demonstrations alone.
Silent: (to us) how the bound is kept. Here every layer is scaled back to σ_max ≤ α^{1/L} after each step (exact
singular values), inputs and outputs have one scale each (one for every column would waste a part of α), Adam 3e-3.
Differs: the default α is ours, and large: choose it for the sensors at hand.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OfflineRecipe, fed
from anypolicy.optimisers.step import adam
from anypolicy.policies.control.lipschitz import LipschitzMLP
from anypolicy.tasks.control.environments import Space


@method(
    Card(
        title="Learning Lipschitz feedback policies from expert demonstrations",
        paper="arXiv 2103.16629",
        year=2021,
        family="control",
        idea="imitate demonstrations by a network that wrong measurements move by no more than a certified factor",
        changes=(),
        composes_with="any demonstrations with a box of actions; `anypolicy solve lipschitz-certificate` judges it",
        claim="under worst-case errors of measurement the cost is least near the expert's own Lipschitz constant",
        example="anypolicy train lipschitz-bc --task reacher-sparse --demos scripted:bad=0 --lipschitz-bc.alpha 4 "
        "--steps 2000",
        look_at="eval/success: 0.10 to 0.60 with seed 0",
        metrics={
            "loss/clone": "mean squared error of the action, summed over its numbers",
            "lipschitz/certificate": "product of spectral norms: change of an action in [−1, 1] per unit observed",
        },
    ),
    slug="lipschitz-bc",
)
@dataclass(frozen=True)
class LipschitzCloning:
    """Three layers with MaxMin; α in actions of [−1, 1] per unit of the observation."""

    alpha: Annotated[float, Knob("Lipschitz constant that the network keeps, output per input", above=0)] = 10.0
    hidden: knobs.Hidden = (64, 64)
    lr: knobs.LearningRate = 3e-3
    batch: knobs.BatchSize = 256

    def __call__(self, space: Space, seed: int) -> "LipschitzLearner":
        return LipschitzLearner(self, space, torch.Generator().manual_seed(seed))

    def recipe(self) -> OfflineRecipe:
        LipschitzMLP(1, 1, self.hidden, self.alpha, torch.Generator())
        return fed(OfflineRecipe, self)


class LipschitzLearner:
    """The mean action, clipped to the box where it acts (which makes nothing steeper)."""

    needs = Needs(prepare=True)

    def __init__(self, s: LipschitzCloning, space: Space, rng: torch.Generator):
        self.policy = LipschitzMLP(space.observations, space.box(), s.hidden, s.alpha, rng)
        self.modules: dict[str, nn.Module] = {"policy": self.policy}
        self.optimiser = adam(self.policy.parameters(), s.lr)
        self.optimisers: dict[str, Optimizer] = {"policy_optimiser": self.optimiser}

    def prepare(self, offline: Replay, generator: torch.Generator) -> None:
        """Scales of observations and actions."""
        seen = offline.all()
        self.policy.scale(seen.observation, seen.action)

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action = self.policy(observation).clamp(-1, 1)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        loss = [self.policy.imitate(self.optimiser, b.observation, b.action) for b in batches][-1]
        return {"loss/clone": loss * float(self.policy.height) ** 2, "lipschitz/certificate": self.policy.certificate()}
