"""CQL: double Q-learning that lowers the values of actions the data do not show.

Paper: arXiv 2006.04779, eq. 4 with the uniform prior (CQL(H)), for discrete actions; details as in arXiv 2111.04714.
Idea: add α (logsumexp_a q(s, a) − q(s, a_data)): what looks good without having been tried is pushed down.
Changes: nothing; a learner of its own.
Silent: α for small tasks. 0.1 (arXiv 2111.04714).
Differs: arXiv 2006.04779's released code for discrete actions has α between 0.5 and 4 on the loss of quantiles; d3rlpy
has α = 1 and a soft copy. The network's weights, losses and copies are those of arXiv 2111.04714's code, except that a
time limit does not end a return here.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.transitions import Transitions
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.choices import OfChoices
from anypolicy.learners.recipe import OfflineRecipe, fed
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.choices import best, copy_every, double_target, huber, taken
from anypolicy.policies.control.mlp import choice_critic
from anypolicy.policies.control.statistics import Counter
from anypolicy.tasks.control.environments import Space


def conservative(q: Float[Tensor, "batch choices"], action: Float[Tensor, "batch 1"]) -> Float[Tensor, ""]:
    """mean_B [ln Σ_a e^{q(s, a)} − q(s, a_data)]: −ln of the softmax of q at the data's action (arXiv 2006.04779, eq.
    4)."""
    return (q.logsumexp(1) - taken(q, action)).mean()


@method(
    Card(
        title="Conservative Q-Learning for Offline Reinforcement Learning",
        paper="arXiv 2006.04779",
        year=2020,
        family="control",
        idea="lower the values of actions that the data do not show",
        changes=(),
        composes_with="demonstrations with discrete actions",
        claim="stays near the behaviour on narrow data, where double Q-learning alone fails",
        regions={"return": 88.7, "coverage": 84.9, "narrow": 55.4, "all": 76.8},
    ),
    slug="cql",
)
@dataclass(frozen=True)
class ConservativeQ(OfChoices):
    """Double Q-learning on demonstrations with α = 0.1; `--steps` are updates."""

    copy_every: knobs.CopyEvery = 100
    alpha: Annotated[float, Knob("weight of the conservative term", least=0)] = 0.1

    def __call__(self, space: Space, seed: int) -> "ConservativeQLearner":
        return ConservativeQLearner(self, space, seed)

    def recipe(self) -> OfflineRecipe:
        return fed(OfflineRecipe, self)


class ConservativeQLearner:
    """One network, its copy, the number of updates."""

    needs = Needs()

    def __init__(self, settings: ConservativeQ, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings = s
        self.critic = choice_critic(space.observations, space.choices(), s.hidden, rng)
        self.target, self.counter = deepcopy(self.critic).requires_grad_(False), Counter()
        self.modules = {"critic": self.critic, "target_critic": self.target, "counter": self.counter}
        self.optimisers = {"critic_optimiser": adam(self.critic.parameters(), s.lr)}

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action = best(self.critic(observation))
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        [batch], s = batches, self.settings
        with torch.no_grad():
            later = batch.next_observation
            y = double_target(batch.reward, batch.continues, self.critic(later), self.target(later))
        q = self.critic(batch.observation)
        chosen = taken(q, batch.action)
        error, gap = huber(chosen, y), conservative(q, batch.action)
        apply(self.optimisers["critic_optimiser"], error + s.alpha * gap)
        self.counter.steps += 1
        copy_every(self.target.parameters(), self.critic.parameters(), int(self.counter.steps), s.copy_every)
        return {"loss/critic": float(error.detach()), "loss/conservative": float(gap.detach()),
                "q/mean": float(chosen.detach().mean())}  # fmt: skip
