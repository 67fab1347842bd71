"""QR-DQN: double Q-learning of fifty quantiles of the return instead of its mean.

Paper: arXiv 1710.10044, eq. 10 (quantile Huber loss) and algorithm 1; details as in arXiv 2111.04714.
Idea: θ_i(s, a) is the (i − ½)/N quantile of the return; each is drawn to all target quantiles with a slope that is
steeper on one side.
Changes: nothing; a learner of its own.
Silent: the action at s′ in arXiv 2111.04714: the network's own choice by the mean, judged by the copy.
Differs: τ_i belongs to the predicted quantile i (the paper, most) | to the target's, with τ_i = i/N (arXiv 2111.04714's
code), which draws all quantiles to one value: there it learns a mean. Sum over i, mean over targets (the paper).
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.transitions import Transitions
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.choices import OfChoices
from anypolicy.learners.recipe import OfflineRecipe, fed
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.choices import best, copy_every
from anypolicy.policies.control.mlp import choice_critic
from anypolicy.policies.control.statistics import Counter
from anypolicy.tasks.control.environments import Space


def quantile_loss(theta: Float[Tensor, "batch quantiles"], y: Float[Tensor, "batch targets"]) -> Float[Tensor, ""]:
    """mean_B mean_j Σ_i |τ_i − 1[δ_ij < 0]| L(δ_ij), δ_ij = y_j − θ_i, τ_i = (i − ½)/N, L the Huber loss with threshold
    1 (arXiv 1710.10044, eq. 10)."""
    n = theta.shape[1]
    tau = (torch.arange(n, dtype=theta.dtype, device=theta.device) + 0.5) / n
    delta = y[:, None, :] - theta[:, :, None]
    weight = (tau[None, :, None] - (delta < 0).to(theta.dtype)).abs()
    return (weight * functional.smooth_l1_loss(delta, torch.zeros_like(delta), reduction="none")).mean(2).sum(1).mean()


@method(
    Card(
        title="Distributional Reinforcement Learning with Quantile Regression",
        paper="arXiv 1710.10044",
        year=2017,
        family="control",
        idea="learn quantiles of the return of every action and act on their mean",
        changes=(),
        composes_with="demonstrations with discrete actions",
        claim="on broad data it is as good as double Q-learning, on narrow ones it fails as that does",
        regions={"return": 42.5, "coverage": 85.3, "narrow": 29.8, "all": 67.6},
    ),
    slug="qr-dqn",
)
@dataclass(frozen=True)
class QuantileQ(OfChoices):
    """Fifty quantiles on demonstrations; `--steps` are updates."""

    copy_every: knobs.CopyEvery = 100
    quantiles: Annotated[int, Knob("quantiles of the return", least=1)] = 50

    def __call__(self, space: Space, seed: int) -> "QuantileQLearner":
        return QuantileQLearner(self, space, seed)

    def recipe(self) -> OfflineRecipe:
        return fed(OfflineRecipe, self)


class QuantileQLearner:
    """One network with N numbers for each action, its copy, the number of updates."""

    needs = Needs()

    def __init__(self, settings: QuantileQ, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings, self.choices = s, space.choices()
        self.critic = choice_critic(space.observations, self.choices * s.quantiles, s.hidden, rng)
        self.target, self.counter = deepcopy(self.critic).requires_grad_(False), Counter()
        self.modules = {"critic": self.critic, "target_critic": self.target, "counter": self.counter}
        self.optimisers = {"critic_optimiser": adam(self.critic.parameters(), s.lr)}

    def split(self, outputs: Tensor) -> Float[Tensor, "batch choices quantiles"]:
        return outputs.view(len(outputs), self.choices, self.settings.quantiles)

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action = best(self.split(self.critic(observation)).mean(2))
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        [batch], s = batches, self.settings
        rows = torch.arange(len(batch), device=batch.reward.device)
        with torch.no_grad():
            later = batch.next_observation
            choice = self.split(self.critic(later)).mean(2).argmax(1)
            y = batch.reward[:, None] + batch.continues[:, None] * self.split(self.target(later))[rows, choice]
        theta = self.split(self.critic(batch.observation))[rows, batch.action[:, 0].long()]
        loss = quantile_loss(theta, y)
        apply(self.optimisers["critic_optimiser"], loss)
        self.counter.steps += 1
        copy_every(self.target.parameters(), self.critic.parameters(), int(self.counter.steps), s.copy_every)
        return {"loss/critic": float(loss.detach()), "q/mean": float(theta.detach().mean())}
