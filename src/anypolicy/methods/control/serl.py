"""SERL: prior data, pictures and learned rewards in one actor-critic for robots.

Paper: arXiv 2401.16013, section 4 (4.1 core: RLPD, arXiv 2302.02948; 4.2 rewards; 4.3 resets; 4.5 control); the losses
as its code runs them. VICE: arXiv 1805.11686; shifted pictures: arXiv 2004.13649.
Idea: no new learning rule. Half of every batch comes from demonstrations, ten critics with LayerNorm allow several
updates for every step, a classifier says what success is; what remains is resets, forces and frames.
Changes: replay (half demonstrations), critics (ten, minimum of two in the target, mean in the actor), reward
(classifier, VICE), observations (pictures through one encoder that the critics alone train).
Silent: how numbers beside pictures enter: here as they are, next to the features, or standardised as those of the
demonstrations are (`standardise`; deviations taken as ≥ 0.1), which an arm's metres need. How a log-probability reward
ends: here never, since a return of negative rewards would gain by ending. What VICE starts from: that classifier.
Differs: pictures pass a small network trained from nothing, not an ImageNet ResNet-10. The paper prints the expectation
of the target critics; its code takes the minimum of two drawn with replacement, as here. With `backup_entropy` its code
subtracts α ln π undiscounted also after an end; here it is part of the value of s′. Discount 0.96 is that of pictures
(the code has 0.99 for states). The temperature's entropy is that of the a′ of the last target, not of another draw.
Left out: people who take over while it learns, and the penalty on opening and closing a gripper (later advice).
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim import Optimizer

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OffPolicyRecipe, fed
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.td import polyak, soft_target, subset
from anypolicy.policies.control.classifier import LearnedReward, SuccessClassifier
from anypolicy.policies.control.mlp import SquashedGaussian
from anypolicy.policies.control.pictures import Perception, SeeingCritics
from anypolicy.tasks.control.environments import Space

Reward = Literal["environment", "classifier", "log-classifier", "vice"]


def critic_loss(q: Tensor, y: Tensor) -> Tensor:
    """mean over critics and batch of (Q_k − y)²."""
    return (q - y).square().mean()


def actor_loss(q: Tensor, logp: Tensor, alpha: Tensor) -> Tensor:
    """−mean[mean_k Q_k(s, ã) − α ln π(ã|s)]: all critics, not the smallest."""
    return -(q.mean(0) - alpha * logp).mean()


def temperature_loss(raw: Tensor, entropy: Tensor, target: float) -> Tensor:
    """α (H − H̄) with α = softplus(λ)."""
    return softplus(raw) * (entropy - target)


@method(
    Card(
        title="SERL: A Software Suite for Sample-Efficient Robotic Reinforcement Learning",
        paper="arXiv 2401.16013",
        year=2024,
        family="control",
        idea="half of every batch from demonstrations, ten critics, pictures, rewards from a classifier of success",
        changes=(),
        composes_with="any environment with a box of actions, with pictures or without; `demos` of any origin",
        claim="it learns without resets, and a limited error of the controller bounds forces whatever the policy asks",
    ),
    slug="serl",
)
@dataclass(frozen=True)
class Agent:
    """`critic_actor_ratio` steps of the critics and one of the actor for every environment step."""

    reward: Annotated[
        Reward, Knob("the environment's, or a classifier of success, trained before or along")
    ] = "environment"  # fmt: skip
    hidden: knobs.Hidden = (256, 256)
    channels: Annotated[tuple[int, ...], Knob("channels of the picture encoder's layers", least=1)] = (32, 64, 128, 256)
    ensemble: knobs.Ensemble = 10
    subset: knobs.Subset = 2
    critic_actor_ratio: Annotated[
        int, Knob("updates of the critics for one of the actor, an environment step", least=1)
    ] = 4  # fmt: skip
    lr: knobs.LearningRate = 3e-4
    discount: knobs.Discount = 0.96
    tau: knobs.Polyak = 0.005
    alpha: Annotated[float, Knob("temperature α of the entropy at the beginning", above=0, most=700)] = 0.01
    backup_entropy: knobs.BackupEntropy = False
    batch: knobs.BatchSize = 256
    offline_share: knobs.OfflineShare = 0.5
    warmup: knobs.Warmup = 300
    capacity: knobs.Capacity = 200_000
    standardise: Annotated[bool, Knob("observations are standardised as the demonstrations' are")] = False

    def __call__(self, space: Space, seed: int) -> "AgentLearner":
        return AgentLearner(self, space, seed)

    def recipe(self) -> OffPolicyRecipe:
        needed = self.standardise or self.reward != "environment"
        return fed(OffPolicyRecipe, self, updates=self.critic_actor_ratio, needs_offline=needed)


class AgentLearner:
    """Encoder with critics, their targets, actor, λ and a learned reward."""

    needs = Needs(prepare=True)

    def __init__(self, settings: Agent, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings, self.entropy = s, -space.actions / 2
        sizes, rest = (space.observations, space.images), (space.box(), s.hidden, rng)
        self.online, self.targets = (
            SeeingCritics(Perception(*sizes, rng, channels=s.channels), *rest, ensemble=s.ensemble, layer_norm=True)
            for _ in range(2)
        )
        self.targets.load_state_dict(self.online.state_dict())
        self.targets.requires_grad_(False)
        self.actor = SquashedGaussian(self.online.perception.width, *rest, activation="tanh", layer_norm=True,
                                      bounds=(math.log(1e-5), math.log(5)))  # fmt: skip
        self.raw = nn.Parameter(torch.tensor(math.log(math.expm1(s.alpha))))
        self.modules: dict[str, nn.Module] = {"online": self.online, "targets": self.targets, "actor": self.actor,
                                              "temperature": nn.ParameterList([self.raw])}  # fmt: skip
        self.optimisers: dict[str, Optimizer] = {
            "critic_optimiser": adam(self.online.parameters(), s.lr),
            "actor_optimiser": adam(self.actor.parameters(), s.lr), "alpha_optimiser": adam([self.raw], s.lr),
        }  # fmt: skip
        self.reward: LearnedReward | None = None
        if s.reward != "environment":
            classifier = SuccessClassifier(*sizes, rng, channels=s.channels)
            self.reward = LearnedReward(s.reward, classifier, space.observations, share=s.offline_share, lr=s.lr)
            self.modules["reward"] = self.reward
            self.optimisers["classifier_optimiser"] = self.reward.optimiser

    def prepare(self, offline: Replay | None, generator: torch.Generator) -> None:
        """Before the first step: the moments of the demonstrations' numbers, the classifier."""
        if offline is not None and self.settings.standardise:
            for net in (self.online, self.targets):
                net.perception.standardise(offline.all().observation)
        if offline is not None and self.reward is not None:
            self.reward.prepare(offline.all(), generator)

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        features = self.online.see(observation)
        action = self.actor.sample(features, generator)[0] if explore else self.actor.mode(features)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """`ratio` − 1 steps of the critics, then one of critics, actor and temperature, on a fresh batch each."""
        log = self.reward.refine(batches[-1], generator) if self.reward is not None else {}
        for i, batch in enumerate(batches, 1):
            if self.reward is not None:
                batch = self.reward(batch)
            see = self.online.perception.shifted
            seen, after = see(batch.observation, generator), see(batch.next_observation, generator)
            batch = replace(batch, observation=seen, next_observation=after)
            entropy = self.critic_step(batch, generator, log)
            if i % self.settings.critic_actor_ratio == 0:
                self.actor_step(batch, entropy, generator, log)
        return log

    def critic_step(self, batch: Transitions, generator: torch.Generator, log: dict[str, float]) -> Tensor:
        """Critics, encoder, targets; −mean ln π(a′|s′)."""
        s = self.settings
        with torch.no_grad():
            action, logp = self.actor.sample(self.online.see(batch.next_observation), generator)
            q_next = self.targets(self.targets.see(batch.next_observation), action)
            chosen = q_next[subset(s.ensemble, s.subset, generator, replacement=True)]
            backed_up = logp if s.backup_entropy else None
            y = soft_target(batch.reward, batch.continues, chosen, backed_up, softplus(self.raw))
        q = self.online(self.online.see(batch.observation), batch.action)
        loss = critic_loss(q, y)
        apply(self.optimisers["critic_optimiser"], loss)
        polyak(self.targets.parameters(), self.online.parameters(), s.tau)
        log |= {"loss/critic": float(loss.detach()), "q/mean": float(q.detach().mean()),
                "reward/mean": float(batch.reward.mean())}  # fmt: skip
        return -logp.mean()

    def actor_step(
        self, batch: Transitions, entropy: Tensor, generator: torch.Generator, log: dict[str, float]
    ) -> None:
        """Actor and temperature; no gradient reaches the encoder."""
        alpha, features = softplus(self.raw.detach()), self.online.see(batch.observation).detach()
        self.online.requires_grad_(False)
        action, logp = self.actor.sample(features, generator)
        loss = actor_loss(self.online(features, action), logp, alpha)
        apply(self.optimisers["actor_optimiser"], loss)
        self.online.requires_grad_(True)
        apply(self.optimisers["alpha_optimiser"], temperature_loss(self.raw, entropy, self.entropy))
        log |= {"loss/actor": float(loss.detach()), "alpha": float(alpha), "entropy": float(entropy)}
