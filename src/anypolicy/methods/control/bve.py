"""BVE: values of the policy that made the data, then its best action.

Paper: arXiv 2103.09575 (R-BVE, without its ranking term); details as in arXiv 2111.04714.
Idea: y = r + γ q(s′, a′) with the action a′ that the data really took next: no action is ever valued that was not
tried, and one step of improvement comes from acting greedily.
Changes: nothing; a learner of its own.
Silent: what follows a time limit, where there is no next action. Such last steps are left out.
Differs: no target network, as in arXiv 2111.04714's code; that code takes the first action of the next episode as a′ at
a time limit, with γ = 0.
"""

from dataclasses import dataclass, replace

import torch
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


def with_next_action(episode: Transitions) -> Transitions:
    """The steps of one episode with actions (a, a′). Without the last one unless it terminates: then a′ = 0 is never
    looked at."""
    following = torch.cat([episode.action[1:], torch.zeros_like(episode.action[:1])])
    n = len(episode) if bool(episode.terminated[-1]) else len(episode) - 1
    return replace(episode, action=torch.cat([episode.action, following], 1)).select(torch.arange(n))


@method(
    Card(
        title="Regularized Behavior Value Estimation",
        paper="arXiv 2103.09575",
        year=2021,
        family="control",
        idea="value the policy that made the data and act greedily on that: one step of improvement",
        changes=(),
        composes_with="demonstrations with discrete actions",
        claim="one step of improvement is enough on broad data and cannot diverge",
        regions={"return": 50.0, "coverage": 75.1, "narrow": 35.9, "all": 64.9},
    ),
    slug="bve",
)
@dataclass(frozen=True)
class BehaviourValue(OfChoices):
    """SARSA on demonstrations; `--steps` are updates."""

    def __call__(self, space: Space, seed: int) -> "BehaviourValueLearner":
        return BehaviourValueLearner(self, space, seed)

    def recipe(self) -> OfflineRecipe:
        return fed(OfflineRecipe, self, episode=with_next_action)


class BehaviourValueLearner:
    """One network."""

    needs = Needs()

    def __init__(self, settings: BehaviourValue, space: Space, seed: int):
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
        action, following = batch.action.split(1, 1)
        with torch.no_grad():
            y = batch.reward + batch.continues * taken(self.critic(batch.next_observation), following)
        q = taken(self.critic(batch.observation), action)
        loss = huber(q, y)
        apply(self.optimisers["critic_optimiser"], loss)
        return {"loss/critic": float(loss.detach()), "q/mean": float(q.detach().mean())}
