"""BCQ: double Q-learning among the actions that the data make likely.

Paper: arXiv 1910.01708, section 3.3 and algorithm 1 (discrete actions); details as in arXiv 2111.04714.
Idea: clone the behaviour, and let both the target and the policy choose only actions whose probability is above a
fraction of the likeliest one's: between cloning (1) and Q-learning (0).
Changes: nothing; a learner of its own.
Silent: the weight of the squared logits. 0.01 (both codes).
Differs: two networks with one Adam (arXiv 2111.04714's code) | two heads on one trunk (the paper, for pictures).
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.choices import OfChoices
from anypolicy.learners.recipe import OfflineRecipe, fed
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.choices import best, copy_every, huber, taken
from anypolicy.policies.control.mlp import choice_critic
from anypolicy.policies.control.statistics import Counter
from anypolicy.tasks.control.environments import Space


def allowed(logits: Float[Tensor, "batch choices"], threshold: float) -> Bool[Tensor, "batch choices"]:
    """π(a|s) / max_a′ π(a′|s) > threshold (arXiv 1910.01708, eq. 17). From 1 on nothing would be left."""
    if not 0 <= threshold < 1:
        raise InputError("threshold", threshold, "use at least 0 and less than 1: the likeliest action must pass")
    return (logits - logits.amax(1, keepdim=True)).exp() > threshold


def masked(q: Float[Tensor, "batch choices"], mask: Bool[Tensor, "batch choices"]) -> Float[Tensor, "batch choices"]:
    """q, far below everything where the mask does not allow it."""
    return q.masked_fill(~mask, -9e9)


def cloning_loss(logits: Float[Tensor, "batch choices"], action: Float[Tensor, "batch 1"]) -> Float[Tensor, ""]:
    """mean_B −ln π(a|s)."""
    return functional.cross_entropy(logits, action[:, 0].long())


@method(
    Card(
        title="Benchmarking Batch Deep Reinforcement Learning Algorithms (discrete BCQ)",
        paper="arXiv 1910.01708",
        year=2019,
        family="control",
        idea="choose the best among the actions that the data make likely",
        changes=(),
        composes_with="demonstrations with discrete actions",
        claim="good on narrow data of high return and on broad data alike",
        regions={"return": 90.1, "coverage": 90.0, "narrow": 56.3, "all": 78.2},
    ),
    slug="bcq",
)
@dataclass(frozen=True)
class ConstrainedQ(OfChoices):
    """A fraction of 0.3 on demonstrations; `--steps` are updates."""

    copy_every: knobs.CopyEvery = 100
    threshold: Annotated[
        float, Knob("actions as likely as this share of the likeliest are allowed", least=0, below=1)
    ] = 0.3  # fmt: skip
    logits: Annotated[float, Knob("weight of the penalty on squared logits", least=0)] = 0.01

    def __call__(self, space: Space, seed: int) -> "ConstrainedQLearner":
        return ConstrainedQLearner(self, space, seed)

    def recipe(self) -> OfflineRecipe:
        return fed(OfflineRecipe, self)


class ConstrainedQLearner:
    """The values and their copy, the cloned behaviour, the number of updates."""

    needs = Needs()

    def __init__(self, settings: ConstrainedQ, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings = s
        self.critic = choice_critic(space.observations, space.choices(), s.hidden, rng)
        self.behaviour = choice_critic(space.observations, space.choices(), s.hidden, rng)
        self.target, self.counter = deepcopy(self.critic).requires_grad_(False), Counter()
        self.modules = {"critic": self.critic, "target_critic": self.target, "behaviour": self.behaviour,
                        "counter": self.counter}  # fmt: skip
        self.optimisers = {"optimiser": adam([*self.critic.parameters(), *self.behaviour.parameters()], s.lr)}

    @torch.no_grad()
    def choose(self, observation: Tensor) -> Float[Tensor, "batch 1"]:
        """The best of the allowed actions."""
        mask = allowed(self.behaviour(observation), self.settings.threshold)
        return best(masked(self.critic(observation), mask))

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action = self.choose(observation)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        [batch], s = batches, self.settings
        with torch.no_grad():
            later = batch.next_observation
            y = batch.reward + batch.continues * taken(self.target(later), self.choose(later))
        q, logits = taken(self.critic(batch.observation), batch.action), self.behaviour(batch.observation)
        error, clone = huber(q, y), cloning_loss(logits, batch.action)
        apply(self.optimisers["optimiser"], error + clone + s.logits * logits.square().mean())
        self.counter.steps += 1
        copy_every(self.target.parameters(), self.critic.parameters(), int(self.counter.steps), s.copy_every)
        return {"loss/critic": float(error.detach()), "loss/clone": float(clone.detach()),
                "q/mean": float(q.detach().mean())}  # fmt: skip
