"""EXPO: stable reinforcement learning with expressive policies (on-the-fly choice among base and edited actions).

Paper: arXiv 2507.07986, on-the-fly policy, edit policy, algorithm 1; details from the authors' initial commit.
Idea: no value gradient ever goes through the expressive policy. A base imitates all actions of the mixed batches, a
small Gaussian policy edits its samples uphill in Q; the best of samples and edits by Q acts and stands in TD targets.
Changes: nothing of another method; critics and symmetric sampling are RLPD's, the actor is another.
Silent: with `edits` 0 it is best-of-N. Without pre-training 5,000 steps are uniform, with it none. The subset of
critics that chooses is drawn apart from the one that is backed up.
Differs:
  action box        base + edit is clipped to [−1, 1] when acting, in targets and in the edit's loss | never (authors)
  entropy target    −|A|/2 + |A| ln β, in reach for every β | −|A|/2, which no edit reaches below β = 0.303, so that the
                    temperature grows without bound (authors' default): `feasible_target`
  base              flow, ten Euler steps, 3 layers | "ddpm": VP, 10 steps, 3 residual blocks (authors), there with
                    AdamW and a cosine decay over 3·10⁶ steps, plain Adam here
  average of base   rate 0.001 from about the 9,000th update on, faster before | always 0.001 (authors)
  critics' loss     ½ Σ_i mean_B | mean over both (authors): with Adam nearly the same
  dropout           none | 0.1 in the edit on Adroit (authors)
"""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OffPolicyRecipe, fed
from anypolicy.methods.control.bc import base_policy
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.td import critic_loss, polyak, soft_target, subset, temperature_loss
from anypolicy.policies.control.cloned import Cloned, OnBase
from anypolicy.policies.control.generative import candidates, clone, imitate
from anypolicy.policies.control.mlp import SquashedGaussian, critics, q_values
from anypolicy.tasks.control.environments import Space


def edited(action: Float[Tensor, "*b actions"], edit: Float[Tensor, "*b actions"], beta: float) -> Tensor:
    """ã = clip(a + β e, −1, 1)."""
    return (action + beta * edit).clamp(-1, 1)


def chosen(q: Float[Tensor, "subset batch candidates"]) -> Int[Tensor, " batch"]:
    """argmax_c min_{j ∈ S} Q̄_j(s, c); the first of equals."""
    return q.amin(0).argmax(-1)


def edit_logp(logp: Float[Tensor, " batch"], actions: int, beta: float) -> Float[Tensor, " batch"]:
    """Log-density of β e from that of e: ln π(e|s, a) − |A| ln β."""
    return logp - actions * math.log(beta)


def entropy_target(actions: int, beta: float, feasible: bool) -> float:
    """−|A|/2, shifted by |A| ln β so that the scaled edit can have it."""
    return -actions / 2 + (actions * math.log(beta) if feasible else 0.0)


@method(
    Card(
        title="EXPO: Stable Reinforcement Learning with Expressive Policies",
        paper="arXiv 2507.07986",
        year=2025,
        family="control",
        idea="act by the best of imitated actions and of small edits of them, in the environment and in TD targets",
        changes=(),
        composes_with="demonstrations or other offline data; a saved policy of bc as base",
        claim="sampling, editing and choosing is better than the base and than choosing among its samples",
        metrics={"edited": "share of the actions in TD targets that are edits of the base's"},
    ),
    slug="expo-expressive",
)
@dataclass(frozen=True)
class OnTheFly(OnBase):
    """Eight samples, eight edits of ±0.05, ten critics of which two are compared, 20 critic updates for every step (for
    every `chunk` of actions, decided at once). The base is new (`base_updates` of pre-training) or the policy/ folder
    of a run; it goes on imitating."""

    samples: Annotated[int, Knob("actions that the base proposes", least=1)] = 8
    edits: Annotated[int, Knob("of these, how many are edited", least=0)] = 8
    beta: Annotated[float, Knob("largest edit, in units of an action", least=0)] = 0.05
    hidden: knobs.Hidden = (256, 256, 256)
    lr: knobs.LearningRate = 3e-4
    discount: knobs.Discount = 0.99
    tau: knobs.Polyak = 0.005
    batch: knobs.BatchSize = 256
    updates: knobs.Updates = 20
    ensemble: knobs.Ensemble = 10
    subset: knobs.Subset = 2
    warmup: knobs.Warmup = None
    capacity: knobs.Capacity = 1_000_000
    offline_share: knobs.OfflineShare = 0.5
    alpha: knobs.InitialTemperature = 1.0
    feasible_target: Annotated[bool, Knob("the entropy target is one that edits of this size can have")] = True
    average: Annotated[float, Knob("rate at which the acting base follows the trained one", above=0, most=1)] = 0.001
    base_updates: knobs.BaseUpdates = 0
    chunk: knobs.Chunk = 1

    @property
    def source(self) -> str | Cloned:
        source = super().source
        return replace(source, batch=self.batch) if isinstance(source, Cloned) else source

    def __call__(self, space: Space, seed: int) -> "OnTheFlyLearner":
        return OnTheFlyLearner(self, space, seed)

    def recipe(self) -> OffPolicyRecipe:
        if self.edits > self.samples:
            raise InputError("expo-expressive.edits", self.edits, f"use 0 to {self.samples}, the number of samples")
        if self.edits and not self.beta > 0:
            raise InputError("expo-expressive.beta", self.beta, "use a number above 0, or edits 0 for none")
        if self.subset > self.ensemble:
            raise InputError("expo-expressive.subset", self.subset, f"use 1 to {self.ensemble}, the number of critics")
        warm = (0 if self.base_updates or self.base else 5000) if self.warmup is None else self.warmup
        return fed(OffPolicyRecipe, self, warmup=warm, needs_offline=True)


class OnTheFlyLearner:
    """Base with its average, edit policy, critics with their targets, ln α."""

    needs = Needs(prepare=True)

    def __init__(self, settings: OnTheFly, space: Space, seed: int):
        s, rng, sizes = settings, torch.Generator().manual_seed(seed), (space.observations, space.box())
        self.settings, self.actions = s, space.actions
        self.base = base_policy(s.source, space, rng)
        self.edit = SquashedGaussian(sum(sizes), space.actions, s.hidden, rng)
        self.critics = critics(*sizes, s.hidden, rng, ensemble=s.ensemble, layer_norm=True, init="xavier")
        self.targets = deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(s.alpha).log())
        self.modules = {"policy": self.base, "edit": self.edit, "critics": self.critics, "targets": self.targets,
                        "temperature": nn.ParameterList([self.log_alpha])}  # fmt: skip
        self.optimisers = {
            "base_optimiser": adam(self.base.network.online.parameters(), s.base_lr),
            "edit_optimiser": adam(self.edit.parameters(), s.lr),
            "critic_optimiser": adam(self.critics.parameters(), s.lr),
            "alpha_optimiser": adam([self.log_alpha], s.lr),
        }

    def prepare(self, offline: Replay, generator: torch.Generator) -> None:
        """Imitation alone, if wished and unless the base was given."""
        if isinstance(how := self.settings.source, Cloned):
            optimiser = self.optimisers["base_optimiser"]
            clone(self.base, optimiser, offline, how.updates, how.batch, generator, self.settings.average)

    @torch.no_grad()
    def on_the_fly(
        self, observation: Float[Tensor, "batch observations"], generator: torch.Generator, *, averaged: bool
    ) -> tuple[Float[Tensor, "batch actions"], Bool[Tensor, " batch"]]:
        """The best of N samples and of the edits of the first N_e; whether it is an edit."""
        s = self.settings
        options = candidates(self.base, observation, s.samples, generator, averaged=averaged)
        if s.edits:
            first = options[:, : s.edits]
            seen = torch.cat([observation.repeat_interleave(s.edits, 0), first.flatten(0, 1)], 1)
            edit, _ = self.edit.sample(seen, generator)
            options = torch.cat([options, edited(first, edit.view_as(first), s.beta)], 1)
        members, (rows, n, _) = subset(s.ensemble, s.subset, generator), options.shape
        q = q_values(self.targets, observation.repeat_interleave(n, 0), options.flatten(0, 1), members)
        index = chosen(q.view(-1, rows, n))
        return options[torch.arange(rows, device=index.device), index], index >= s.samples

    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action, _ = self.on_the_fly(observation, generator, averaged=True)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """Critics on every batch; then base, edit and temperature once, on the last."""
        log: dict[str, float] = {}
        for batch in batches:
            log = self.critic_step(batch, generator)
        rate = self.settings.average
        log["loss/base"] = imitate(self.base, self.optimisers["base_optimiser"], batches[-1], generator, rate)
        return log | (self.edit_step(batches[-1], generator) if self.settings.edits else {})

    def critic_step(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """y = r + γ(1 − d) min_{j ∈ S'} Q̄_j(s′, a′), a′ on the fly from the base as trained, S′ another subset."""
        s = self.settings
        action, edit = self.on_the_fly(batch.next_observation, generator, averaged=False)
        members = subset(s.ensemble, s.subset, generator)
        y = soft_target(batch.reward, batch.continues, q_values(self.targets, batch.next_observation, action, members))
        q = q_values(self.critics, batch.observation, batch.action)
        loss = critic_loss(q, y)
        apply(self.optimisers["critic_optimiser"], loss)
        polyak(self.targets.parameters(), self.critics.parameters(), s.tau)
        return {"loss/critic": float(loss.detach()), "q/mean": float(q.detach().mean()),
                "edited": float(edit.float().mean())}  # fmt: skip

    def edit_step(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """mean[α ln π − mean_j Q_j(s, ã)] over edits of the replay's own actions; then the temperature."""
        s, alpha = self.settings, self.log_alpha.detach().exp()
        self.critics.requires_grad_(False)
        edit, logp = self.edit.sample(torch.cat([batch.observation, batch.action], 1), generator)
        logp = edit_logp(logp, self.actions, s.beta)
        q = q_values(self.critics, batch.observation, edited(batch.action, edit, s.beta))
        loss = (alpha * logp - q.mean(0)).mean()
        apply(self.optimisers["edit_optimiser"], loss)
        self.critics.requires_grad_(True)
        target = entropy_target(self.actions, s.beta, s.feasible_target)
        apply(self.optimisers["alpha_optimiser"], temperature_loss(self.log_alpha, logp, target, "alpha"))
        return {"loss/edit": float(loss.detach()), "alpha": float(alpha), "entropy": -float(logp.detach().mean())}
