"""MCE: regression of the returns that followed each action, then the action with the highest.

Paper: arXiv 2111.04714, section 4 (Monte-Carlo estimation as the simplest off-policy baseline).
Idea: q(s, a) ← G_t = r_t + γ G_{t+1}: no bootstrapping, nothing to diverge.
Changes: nothing; a learner of its own.
Silent: episodes that a time limit ended. Their returns are cut there, as in its code.
Differs: nothing else is known.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.catalogue import Card, method
from anypolicy.data.transitions import Transitions
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.choices import OfChoices
from anypolicy.learners.recipe import OfflineRecipe, fed
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.choices import best, huber, taken
from anypolicy.policies.control.mlp import choice_critic
from anypolicy.tasks.control.environments import Space


def monte_carlo(
    reward: Float[Tensor, " steps"], ended: Float[Tensor, " steps"], discount: float
) -> Float[Tensor, " steps"]:
    """G_t = r_t + γ (1 − ended_t) G_{t+1}, over a stream of steps; after the last one 0."""
    returns, after = torch.empty_like(reward), torch.zeros_like(reward[:1])
    for t in range(len(reward) - 1, -1, -1):
        after = reward[t] + discount * (1 - ended[t]) * after
        returns[t] = after.squeeze()
    return returns


def with_return(episode: Transitions) -> Transitions:
    """The steps of one episode, each with its whole return as the reward; nothing is backed up beyond it."""
    ended = torch.maximum(episode.terminated, episode.truncated)
    discount = float(episode.discount[0])
    return replace(episode, reward=monte_carlo(episode.reward, ended, discount), discount=0 * episode.discount)


@method(
    Card(
        title="A Dataset Perspective on Offline Reinforcement Learning: Monte-Carlo estimation",
        paper="arXiv 2111.04714",
        year=2021,
        family="control",
        idea="predict the return that followed each action and act on the highest prediction",
        changes=(),
        composes_with="demonstrations with discrete actions",
        claim="regression on returns is enough on broad data",
        regions={"return": 49.4, "coverage": 77.3, "narrow": 30.4, "all": 62.4},
    ),
    slug="mce",
)
@dataclass(frozen=True)
class ReturnRegression(OfChoices):
    """Regression of returns on demonstrations; `--steps` are updates."""

    def __call__(self, space: Space, seed: int) -> "ReturnRegressionLearner":
        return ReturnRegressionLearner(self, space, seed)

    def recipe(self) -> OfflineRecipe:
        return fed(OfflineRecipe, self, episode=with_return)


class ReturnRegressionLearner:
    """One network."""

    needs = Needs()

    def __init__(self, settings: ReturnRegression, space: Space, seed: int):
        rng = torch.Generator().manual_seed(seed)
        self.critic = choice_critic(space.observations, space.choices(), settings.hidden, rng)
        self.modules = {"critic": self.critic}
        self.optimisers = {"critic_optimiser": adam(self.critic.parameters(), settings.lr)}

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action = best(self.critic(observation))
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        [batch] = batches
        q = taken(self.critic(batch.observation), batch.action)
        loss = huber(q, batch.reward)
        apply(self.optimisers["critic_optimiser"], loss)
        return {"loss/critic": float(loss.detach()), "q/mean": float(q.detach().mean())}
