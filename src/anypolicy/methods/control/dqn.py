"""DQN: a network of action values towards a target network's, the action chosen by the first (double).

Paper: Nature 518:529 (2015), with the target of arXiv 1509.06461, eq. 4; as behaviour agent and as offline learner in
arXiv 2111.04714.
Idea: y = r + γ q̄(s′, argmax_a q(s′, a)): what the copy thinks of the action that the network itself prefers.
Changes: nothing; it is the base of the methods for discrete actions.
Silent: arXiv 2111.04714 leaves details to its code, which is followed: three layers of 256, SELU, Adam 1e-4, the Huber
loss, a copy every 100 updates; acting, one update a step from step 33 on, ε from 1 to 0.01 over 1,000 updates.
Differs: with `--demos` it learns from these alone (batches of 128), without from its own replay (of 32).
  time limits   bootstrap (only termination ends a return) | end the return (that code's `done`)
  target        double (here) | max_a q̄ (the Nature paper, Stable-Baselines3, CleanRL)
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.transitions import Transitions
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OfflineRecipe, OffPolicyRecipe, fed
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.choices import copy_every, double_target, epsilon_greedy, falling, huber, taken
from anypolicy.policies.control.mlp import choice_critic
from anypolicy.policies.control.statistics import Counter
from anypolicy.tasks.control.environments import Space


@method(
    Card(
        title="Human-level control through deep reinforcement learning; double Q-learning",
        paper="arXiv 1509.06461",
        year=2015,
        family="control",
        idea="learn the values of all actions towards a copy of the network that is renewed now and then",
        changes=(),
        composes_with="environments with discrete actions; demonstrations with discrete actions, alone",
        claim="on data that cover little, unconstrained values fall far behind constrained ones",
        example="anypolicy train dqn --task gym/CartPole-v1 --dqn.hidden 64 64 --dqn.lr 1e-3 --steps 8000",
        look_at="eval/return: 23 to 191 with seed 0",
        regions={"return": 48.6, "coverage": 86.1, "narrow": 30.4, "all": 67.2},
    ),
    slug="dqn",
)
@dataclass(frozen=True)
class DoubleQ:
    """ε-greedy, learning from its replay; with `--demos` it learns from them alone and `--steps` are updates."""

    hidden: knobs.Hidden = (256, 256, 256)
    lr: knobs.LearningRate = 1e-4
    discount: knobs.Discount = 0.95
    copy_every: knobs.CopyEvery = 100
    batch: knobs.BatchSize = 32
    offline_batch: Annotated[
        int, Knob("transitions in a batch where it learns from demonstrations alone", least=1)
    ] = 128  # fmt: skip
    updates: knobs.Updates = 1
    warmup: knobs.Warmup = 32
    capacity: knobs.Capacity = 50_000
    epsilon: Annotated[float, Knob("share of random actions at the end", least=0, most=1)] = 0.01
    epsilon_updates: Annotated[int, Knob("updates over which the share of random actions falls from 1", least=1)] = 1000

    def __call__(self, space: Space, seed: int) -> "DoubleQLearner":
        return DoubleQLearner(self, space, seed)

    def recipe(self) -> OffPolicyRecipe:
        alone = fed(OfflineRecipe, self, batch=self.offline_batch)
        return fed(OffPolicyRecipe, self, alone=alone)


class DoubleQLearner:
    """One network, its copy, the number of updates."""

    needs = Needs()

    def __init__(self, settings: DoubleQ, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings = s
        self.critic = choice_critic(space.observations, space.choices(), s.hidden, rng)
        self.target, self.counter = deepcopy(self.critic).requires_grad_(False), Counter()
        self.modules = {"critic": self.critic, "target_critic": self.target, "counter": self.counter}
        self.optimisers = {"critic_optimiser": adam(self.critic.parameters(), s.lr)}

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        s = self.settings
        epsilon = falling(int(self.counter.steps), 1.0, s.epsilon, s.epsilon_updates) if explore else 0.0
        action = epsilon_greedy(self.critic(observation), epsilon, generator)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        return [self.step(batch) for batch in batches][-1]

    def step(self, batch: Transitions) -> dict[str, float]:
        """One step towards y, then the copy where it is due."""
        with torch.no_grad():
            later = batch.next_observation
            y = double_target(batch.reward, batch.continues, self.critic(later), self.target(later))
        q = taken(self.critic(batch.observation), batch.action)
        loss = huber(q, y)
        apply(self.optimisers["critic_optimiser"], loss)
        self.counter.steps += 1
        copy_every(
            self.target.parameters(), self.critic.parameters(), int(self.counter.steps), self.settings.copy_every
        )
        return {"loss/critic": float(loss.detach()), "q/mean": float(q.detach().mean())}
