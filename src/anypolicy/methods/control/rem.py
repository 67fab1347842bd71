"""REM: double Q-learning of random mixtures of two hundred heads.

Paper: arXiv 1907.04543, section 4.2, eq. 4; details as in arXiv 2111.04714.
Idea: Σ_k α_k Q_k with a fresh random α must satisfy the Bellman equation for every mini-batch: an ensemble of endlessly
many critics for the price of one.
Changes: nothing; a learner of its own.
Silent: whether prediction and target share α. They do (one draw a mini-batch): only then is the equation that of one
critic.
Differs: arXiv 2111.04714's code draws α anew in each of the three passes of an update. α: uniform numbers divided by
their sum (paper and code); acting by the mean of the heads.
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
from anypolicy.parts.noise import CPU, uniform
from anypolicy.policies.control.mlp import choice_critic
from anypolicy.policies.control.statistics import Counter
from anypolicy.tasks.control.environments import Space


def mixture(heads: int, generator: torch.Generator, device: torch.device = CPU) -> Float[Tensor, " heads"]:
    """α′_k ~ U(0, 1), α = α′ / Σ α′ (arXiv 1907.04543, section 4.2)."""
    drawn = uniform((heads,), generator, device)
    return drawn / drawn.sum()


def mixed(outputs: Float[Tensor, "batch outputs"], alpha: Float[Tensor, " heads"]) -> Float[Tensor, "batch choices"]:
    """Q_α(s, ·) = Σ_k α_k Q_k(s, ·)."""
    return torch.einsum("bkc,k->bc", outputs.view(len(outputs), len(alpha), -1), alpha)


@method(
    Card(
        title="An Optimistic Perspective on Offline Reinforcement Learning",
        paper="arXiv 1907.04543",
        year=2019,
        family="control",
        idea="train random mixtures of many heads, so that every mixture satisfies the Bellman equation",
        changes=(),
        composes_with="demonstrations with discrete actions",
        claim="on broad data it is nearly as good as double Q-learning, on narrow ones it fails as that does",
        regions={"return": 40.2, "coverage": 83.2, "narrow": 26.6, "all": 66.6},
    ),
    slug="rem",
)
@dataclass(frozen=True)
class EnsembleMixture(OfChoices):
    """Two hundred heads on demonstrations; `--steps` are updates."""

    copy_every: knobs.CopyEvery = 100
    heads: Annotated[int, Knob("values of an action, mixed at random", least=1)] = 200

    def __call__(self, space: Space, seed: int) -> "EnsembleMixtureLearner":
        return EnsembleMixtureLearner(self, space, seed)

    def recipe(self) -> OfflineRecipe:
        return fed(OfflineRecipe, self)


class EnsembleMixtureLearner:
    """One network with K heads, its copy, the number of updates."""

    needs = Needs()

    def __init__(self, settings: EnsembleMixture, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings = s
        self.critic = choice_critic(space.observations, space.choices() * s.heads, s.hidden, rng)
        self.target, self.counter = deepcopy(self.critic).requires_grad_(False), Counter()
        self.modules = {"critic": self.critic, "target_critic": self.target, "counter": self.counter}
        self.optimisers = {"critic_optimiser": adam(self.critic.parameters(), s.lr)}

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        k = self.settings.heads
        action = best(mixed(self.critic(observation), observation.new_full((k,), 1 / k)))
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        [batch], s = batches, self.settings
        alpha = mixture(s.heads, generator, batch.reward.device)
        with torch.no_grad():
            q_next, target_next = (mixed(net(batch.next_observation), alpha) for net in (self.critic, self.target))
            y = double_target(batch.reward, batch.continues, q_next, target_next)
        q = taken(mixed(self.critic(batch.observation), alpha), batch.action)
        loss = huber(q, y)
        apply(self.optimisers["critic_optimiser"], loss)
        self.counter.steps += 1
        copy_every(self.target.parameters(), self.critic.parameters(), int(self.counter.steps), s.copy_every)
        return {"loss/critic": float(loss.detach()), "q/mean": float(q.detach().mean())}
