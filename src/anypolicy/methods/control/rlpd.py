"""RLPD: soft actor-critic on half demonstrations, half experience, with many normalised critics and many updates.

Paper: arXiv 2302.02948 (RLPD), algorithm 1; arXiv 2401.16013 (SERL), section 4.1 and its released agent, which is this
with other details (knobs below).
Idea: plain off-policy learning profits from prior data if every batch is half of it, LayerNorm keeps the critics from
diverging on actions they never saw, and an ensemble with a random pair's minimum allows twenty updates a step.
Changes: nothing; a learner of its own.
Silent: what happens without demonstrations. Here every batch is all experience. How a batch is halved when it is odd:
the demonstrations get the smaller half.
Differs: our choice (RLPD's released code) first.
  next action's entropy in y   on; off for sparse rewards (`backup_entropy`) | always off (SERL)
  subset of target critics     distinct | drawn with replacement (SERL): `replacement`
  temperature                  e^λ on the actor's own sample | softplus(λ) on actions at s′ (SERL): `temperature`,
                               `temperature_at`; both descend on α itself, not on ln α as REDQ does
  entropy backed up in SERL    its code subtracts α ln π undiscounted and also at terminations; here as in the equation
  networks                     ReLU, LayerNorm in critics | tanh, LayerNorm also in the actor (SERL): `activation`,
                               `actor_layer_norm`
  observations                 as they are (both) | standardised as the demonstrations' are, deviations taken as ≥ 0.1:
                               `standardise`, for numbers far from 0 that hardly vary, such as an arm's metres
  critics' loss                mean over critics and batch (both codes) | sum over critics (REDQ): with Adam the same
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OffPolicyRecipe, fed
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.td import critic_loss, polyak, soft_target, subset
from anypolicy.policies.control.mlp import SquashedGaussian, critics, q_values
from anypolicy.policies.control.statistics import Standardised
from anypolicy.tasks.control.environments import Space

Temperature = Literal["exp", "softplus"]


def temperature_of(raw: Tensor, form: Temperature) -> Tensor:
    """α = e^λ or softplus(λ)."""
    return softplus(raw) if form == "softplus" else raw.exp()


def raw_of(alpha: float, form: Temperature) -> Tensor:
    """λ, the inverse of `temperature_of`."""
    value = torch.tensor(alpha)
    return value.expm1().log() if form == "softplus" else value.log()


def dual_loss(raw: Tensor, logp: Tensor, target_entropy: float, form: Temperature) -> Tensor:
    """α (H − H̄) with H = −mean ln π, which carries no gradient: α falls where the entropy is above H̄."""
    return -temperature_of(raw, form) * (logp.detach().mean() + target_entropy)


def actor_loss(q: Tensor, logp: Tensor, alpha: Tensor | float) -> Tensor:
    """mean_B [α ln π(ã|s) − mean_k Q_k(s, ã)], over all critics."""
    return (alpha * logp - q.mean(0)).mean()


@method(
    Card(
        title="Efficient Online Reinforcement Learning with Offline Data",
        paper="arXiv 2302.02948",
        year=2023,
        family="control",
        idea="every batch half demonstrations, normalised critics, a large ensemble, many updates a step",
        changes=(),
        composes_with="any environment with a box of actions; demonstrations of any origin",
        claim="twenty demonstrations and sparse rewards are enough where cloning and learning without them fail",
    ),
    slug="rlpd",
)
@dataclass(frozen=True)
class PriorDataActorCritic:
    """Ten critics, the minimum of two, twenty updates for every environment step, H̄ = −(number of actions)/2."""

    hidden: knobs.Hidden = (256, 256)
    ensemble: knobs.Ensemble = 10
    subset: knobs.Subset = 2
    layer_norm: knobs.LayerNorm = True
    lr: knobs.LearningRate = 3e-4
    discount: knobs.Discount = 0.99
    tau: knobs.Polyak = 0.005
    batch: knobs.BatchSize = 256
    updates: knobs.Updates = 20
    offline_share: knobs.OfflineShare = 0.5
    warmup: knobs.Warmup = 5000
    capacity: knobs.Capacity = 1_000_000
    alpha: knobs.InitialTemperature = 1.0
    target_entropy: knobs.TargetEntropy = None
    backup_entropy: knobs.BackupEntropy = True
    replacement: Annotated[bool, Knob("the critics of a target are drawn with replacement")] = False
    temperature: Annotated[Temperature, Knob("how ln α enters its loss")] = "exp"
    temperature_at: Annotated[
        Literal["observation", "next_observation"], Knob("states at which the temperature is learnt")
    ] = "observation"  # fmt: skip
    activation: Annotated[Literal["relu", "tanh"], Knob("of the hidden layers")] = "relu"
    actor_layer_norm: Annotated[bool, Knob("layer normalisation in the actor")] = False
    standardise: Annotated[bool, Knob("observations are standardised as the demonstrations' are")] = False

    def __call__(self, space: Space, seed: int) -> "PriorDataLearner":
        return PriorDataLearner(self, space, seed)

    def recipe(self) -> OffPolicyRecipe:
        return fed(OffPolicyRecipe, self, needs_offline=self.standardise)


class PriorDataLearner:
    """Actor, E critics with their targets, λ, the moments of observations."""

    needs = Needs(prepare=True)

    def __init__(self, settings: PriorDataActorCritic, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        if not 1 <= s.subset <= s.ensemble:
            raise InputError("subset", s.subset, f"use 1 to {s.ensemble}, the number of critics")
        self.settings = s
        self.entropy = -space.actions / 2 if s.target_entropy is None else s.target_entropy
        sizes = (space.observations, space.box(), s.hidden, rng)
        self.actor = SquashedGaussian(*sizes, activation=s.activation, layer_norm=s.actor_layer_norm, init="xavier")
        self.critics = critics(
            *sizes, ensemble=s.ensemble, layer_norm=s.layer_norm, activation=s.activation, init="xavier"
        )
        self.targets = deepcopy(self.critics).requires_grad_(False)
        self.raw = nn.Parameter(raw_of(s.alpha, s.temperature))
        self.inputs = Standardised(space.observations)
        self.modules = {"actor": self.actor, "critics": self.critics, "targets": self.targets,
                        "temperature": nn.ParameterList([self.raw]), "inputs": self.inputs}  # fmt: skip
        self.optimisers = {
            "actor_optimiser": adam(self.actor.parameters(), s.lr),
            "critic_optimiser": adam(self.critics.parameters(), s.lr),
            "alpha_optimiser": adam([self.raw], s.lr),
        }

    def prepare(self, offline: Replay | None, generator: torch.Generator) -> None:
        """Before the first step: the moments of the demonstrations."""
        if self.settings.standardise and offline is not None:
            self.inputs.fit(offline.all().observation)

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        observation = self.inputs(observation)
        action = self.actor.sample(observation, generator)[0] if explore else self.actor.mode(observation)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """The critics on every batch, actor and temperature once, on the last."""
        log, seen = dict[str, float](), [self.inputs.both(batch) for batch in batches]
        for batch in seen:
            log = self.update_critics(batch, generator)
        return log | self.update_actor(seen[-1], generator)

    def update_critics(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """One step of all critics towards y, then their targets."""
        s = self.settings
        with torch.no_grad():
            action, logp = self.actor.sample(batch.next_observation, generator)
            whole = s.subset == s.ensemble and not s.replacement
            members = None if whole else subset(s.ensemble, s.subset, generator, replacement=s.replacement)
            q_next = q_values(self.targets, batch.next_observation, action, members)
            alpha = temperature_of(self.raw, s.temperature)
            y = soft_target(batch.reward, batch.continues, q_next, logp if s.backup_entropy else None, alpha)
        q = q_values(self.critics, batch.observation, batch.action)
        loss = critic_loss(q, y) * (2 / s.ensemble)
        apply(self.optimisers["critic_optimiser"], loss)
        polyak(self.targets.parameters(), self.critics.parameters(), s.tau)
        return {"loss/critic": float(loss.detach()), "q/mean": float(q.detach().mean())}

    def update_actor(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """One step of the actor, one of the temperature."""
        s, alpha = self.settings, temperature_of(self.raw.detach(), self.settings.temperature)
        self.critics.requires_grad_(False)
        action, logp = self.actor.sample(batch.observation, generator)
        loss = actor_loss(q_values(self.critics, batch.observation, action), logp, alpha)
        apply(self.optimisers["actor_optimiser"], loss)
        self.critics.requires_grad_(True)
        if s.temperature_at == "next_observation":
            with torch.no_grad():
                logp = self.actor.sample(batch.next_observation, generator)[1]
        apply(self.optimisers["alpha_optimiser"], dual_loss(self.raw, logp, self.entropy, s.temperature))
        return {"loss/actor": float(loss.detach()), "alpha": float(alpha), "entropy": -float(logp.detach().mean())}
