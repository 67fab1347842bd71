"""CRR: imitate the actions of the data that the critic finds better than the policy's own.

Paper: arXiv 2006.15134, eq. 2 and 3 with the filters of section 3.1, algorithm 1; details as in arXiv 2111.04714.
Idea: −mean w ln π(a|s) with w = 1[A > 0] or e^{A/β}: what is imitated was tried, and what was bad is not imitated.
Changes: nothing; a learner of its own.
Silent: nothing that matters here.
Differs: w is 1[A > 0] (arXiv 2111.04714's code) | e^{A/β} cut at 20 (the paper's other choice; the cut is not in
that code): `weights`. A = q(s, a) − mean of four of the policy's own actions | − their maximum: `baseline`. One
sample of the copied policy at s′; the actor first, then the critic; acting samples (that code). The Huber loss, not
categories of the return.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

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
from anypolicy.parts.choices import copy_every, huber, taken
from anypolicy.policies.control.actors import CategoricalActor
from anypolicy.policies.control.mlp import choice_critic
from anypolicy.policies.control.statistics import Counter
from anypolicy.tasks.control.environments import Space

Weights = Literal["binary", "exponential"]
Baseline = Literal["mean", "max"]
LARGEST = 20.0


def advantage(
    q: Float[Tensor, "batch choices"], action: Float[Tensor, "batch 1"], own: Float[Tensor, "batch samples"],
    baseline: Baseline,
) -> Float[Tensor, " batch"]:  # fmt: skip
    """A = q(s, a) − mean_j q(s, a_j), or − max_j, over actions a_j of the policy (arXiv 2006.15134, section 3.1)."""
    mine = q.gather(1, own.long())
    return taken(q, action) - (mine.mean(1) if baseline == "mean" else mine.amax(1))


def weights_of(a: Float[Tensor, " batch"], form: Weights, beta: float) -> Float[Tensor, " batch"]:
    """1[A > 0], or min(e^{A/β}, 20)."""
    return (a > 0).to(a.dtype) if form == "binary" else (a / beta).exp().clamp(max=LARGEST)


def regression(logp: Float[Tensor, " batch"], weights: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """−mean_B w ln π(a|s); w carries no gradient (arXiv 2006.15134, eq. 2)."""
    return -(weights.detach() * logp).mean()


@method(
    Card(
        title="Critic Regularized Regression",
        paper="arXiv 2006.15134",
        year=2020,
        family="control",
        idea="imitate those actions of the data that the critic finds better than the policy's own",
        changes=(),
        composes_with="demonstrations with discrete actions",
        claim="the best of nine on data that cover much, and as good as cloning on data of high return",
        metrics={"weight/mean": "mean weight of the imitated actions; with binary weights the share that is imitated"},
        regions={"return": 91.1, "coverage": 95.8, "narrow": 56.4, "all": 79.4},
    ),
    slug="crr",
)
@dataclass(frozen=True)
class CriticRegularised(OfChoices):
    """Binary weights, the mean of four own actions as baseline; `--steps` are updates."""

    copy_every: knobs.CopyEvery = 100
    weights: Annotated[
        Weights, Knob("weight of a row: whether its advantage is positive, or exp(advantage/β)")
    ] = "binary"  # fmt: skip
    baseline: Annotated[
        Baseline, Knob("what an action's value is compared with: mean or largest of own actions")
    ] = "mean"  # fmt: skip
    beta: Annotated[float, Knob("scale of advantages in the exponential weight", above=0)] = 1.0
    samples: Annotated[int, Knob("own actions that the baseline is made of", least=1)] = 4

    def __call__(self, space: Space, seed: int) -> "CriticRegularisedLearner":
        return CriticRegularisedLearner(self, space, seed)

    def recipe(self) -> OfflineRecipe:
        return fed(OfflineRecipe, self)


class CriticRegularisedLearner:
    """Policy and values, the copies of both, the number of updates."""

    needs = Needs()

    def __init__(self, settings: CriticRegularised, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings, n = s, space.choices()
        self.critic = choice_critic(space.observations, n, s.hidden, rng)
        self.actor = CategoricalActor(space.observations, n, s.hidden, rng, activation="selu", init="kaiming",
                                      last_gain=1.0)  # fmt: skip
        self.target_critic, self.target_actor = (deepcopy(m).requires_grad_(False) for m in (self.critic, self.actor))
        self.counter = Counter()
        self.modules = {"critic": self.critic, "actor": self.actor, "target_critic": self.target_critic,
                        "target_actor": self.target_actor, "counter": self.counter}  # fmt: skip
        self.optimisers = {"actor_optimiser": adam(self.actor.parameters(), s.lr),
                           "critic_optimiser": adam(self.critic.parameters(), s.lr)}  # fmt: skip

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action = self.actor(observation).sample(generator)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """Actor, critic, copies."""
        [batch], s = batches, self.settings
        policy = self.actor(batch.observation)
        with torch.no_grad():
            own = torch.cat([policy.sample(generator) for _ in range(s.samples)], 1)
            a = advantage(self.critic(batch.observation), batch.action, own, s.baseline)
            w = weights_of(a, s.weights, s.beta)
        loss_actor = regression(policy.logp(batch.action), w)
        apply(self.optimisers["actor_optimiser"], loss_actor)
        with torch.no_grad():
            action = self.target_actor(batch.next_observation).sample(generator)
            y = batch.reward + batch.continues * taken(self.target_critic(batch.next_observation), action)
        q = taken(self.critic(batch.observation), batch.action)
        loss = huber(q, y)
        apply(self.optimisers["critic_optimiser"], loss)
        self.counter.steps += 1
        for target, online in ((self.target_critic, self.critic), (self.target_actor, self.actor)):
            copy_every(target.parameters(), online.parameters(), int(self.counter.steps), s.copy_every)
        return {"loss/critic": float(loss.detach()), "loss/actor": float(loss_actor.detach()),
                "weight/mean": float(w.mean()), "q/mean": float(q.detach().mean())}  # fmt: skip
