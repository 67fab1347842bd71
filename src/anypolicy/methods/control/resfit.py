"""ResFiT: a small residual on a frozen cloned policy, learnt off-policy.

Paper: arXiv 2509.19301, section 4; where it is silent its released code.
Idea: a policy cloned from demonstrations stays as it is, a black box; a deterministic actor that sees state and base
action adds a correction to every step, and critics judge what is executed, base and correction together.
Changes: nothing; a learner of its own.
Silent: weight decay of AdamW (0.01 here). How a base that draws its actions is seen twice, as the action that was
executed and as the next state's in the replay: here its noise is a function of the observation alone.
Differs: our choice first.
  end at a time limit     bootstraps | is terminal (code)
  stored action           what the environment did, clamped | the unclamped sum (code)
  critics' loss           mean over batch and critics of (Q − y)² | squares the mean |Q − y| over critics (code):
                          `loss_form`
  critic warm-up          updates during which the actor rests while the environment goes on | between two phases of
                          acting, without the environment (code)
  rates and networks      3e-4 and two layers of 256, for observations that are numbers | 1e-6 (actor), 1e-4 (critics)
                          and two of 1024 on image features (paper)
  range of actions        the demonstrations' widened by s_r, cut to the environment's box | not cut (code)
  base                    one action for a state | a chunk of several from a queue (ACT; "any base", paper)
  penalty on residuals    none | a weight that its runs leave at 0 (code)
  left out                encoders of pictures; the code's C51 and HL-Gauss critics, prioritised replay and slowly
                          widened residuals, off in its runs but for ablations
Ablations of the paper: `layer_norm` false, `offline_share` 0 (no demonstrations while it learns), `updates`, `n_step`,
`ensemble` 2, `critic_warmup` 0, `target_noise` false.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
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
from anypolicy.optimisers.step import adamw, apply
from anypolicy.parts.noise import normal_like, uniform
from anypolicy.parts.td import polyak, soft_target, subset
from anypolicy.policies.control.cloned import Frozen, OnBase, Scales
from anypolicy.policies.control.mlp import MLP, critics, q_values
from anypolicy.tasks.control.environments import Space

LossForm = Literal["mean", "code"]


def residual(pre: Tensor, scale: float, noise: Tensor | float = 0.0, clip: float | None = None) -> Tensor:
    """r = clamp(s_r tanh(pre) + clip(noise, ±c), ±1); the noise is in units of normalised actions."""
    return (scale * pre.tanh() + (noise if clip is None else torch.as_tensor(noise).clamp(-clip, clip))).clamp(-1, 1)


def executed(base: Tensor, r: Tensor) -> Tensor:
    """a = clamp(a_b + r, ±1)."""
    return (base + r).clamp(-1, 1)


def regression(q: Float[Tensor, "ensemble batch"], y: Float[Tensor, " batch"], form: LossForm) -> Float[Tensor, ""]:
    """mean (Q_j − y)², or mean_B (mean_j |Q_j − y|)²."""
    error = q - y
    return (error.abs().mean(0) if form == "code" else error).square().mean()


@method(
    Card(
        title="Residual Off-Policy RL for Finetuning Behavior Cloning Policies",
        paper="arXiv 2509.19301",
        year=2025,
        family="control",
        idea="freeze a cloned policy and learn a small correction of every step, off-policy",
        changes=(),
        composes_with="any frozen base that turns noise into actions; demonstrations",
        claim="the residual lifts a mediocre base, and is ahead of learning from scratch on the same data",
        metrics={"residual/size": "mean absolute correction by the actor, in units of normalised actions"},
    ),
    slug="resfit",
)
@dataclass(frozen=True)
class ResidualActorCritic(OnBase):
    """A flow cloned from the demonstrations, or the policy/ folder of a run as `base`; four critic updates and one of
    the actor for every step."""

    hidden: knobs.Hidden = (256, 256)
    ensemble: knobs.Ensemble = 10
    subset: knobs.Subset = 2
    actor_lr: Annotated[float, Knob("learning rate of the actor", above=0)] = 3e-4
    critic_lr: Annotated[float, Knob("learning rate of the critics", above=0)] = 3e-4
    discount: knobs.Discount = 0.99
    tau: knobs.Polyak = 0.005
    batch: knobs.BatchSize = 256
    updates: knobs.Updates = 4
    actor_updates: Annotated[int, Knob("updates of the actor for every environment step", least=1)] = 1
    n_step: Annotated[int, Knob("steps of a return before the critic's value", least=1)] = 3
    offline_share: knobs.OfflineShare = 0.5
    warmup: knobs.Warmup = 10_000
    critic_warmup: Annotated[int, Knob("updates of the critics before the actor's first", least=0)] = 10_000
    capacity: knobs.Capacity = 200_000
    action_scale: Annotated[float, Knob("largest correction, in units of normalised actions", least=0)] = 0.1
    noise: Annotated[float, Knob("deviation of the exploring noise on the correction", least=0)] = 0.05
    noise_clip: Annotated[float, Knob("largest noise in a target", least=0, infinite=True)] = 0.3
    warmup_noise: Annotated[float, Knob("largest uniform noise on the base during warm-up", least=0)] = 0.2
    q_range: Annotated[tuple[float, float] | None, Knob("targets are clipped to this range; none: never")] = None
    loss_form: Annotated[LossForm, Knob("critics' losses are averaged or added up")] = "mean"
    layer_norm: knobs.LayerNorm = True
    target_noise: Annotated[bool, Knob("actions in targets are smoothed by noise")] = True

    def __call__(self, space: Space, seed: int) -> "ResidualLearner":
        return ResidualLearner(self, space, seed)

    def recipe(self) -> OffPolicyRecipe:
        if self.subset > self.ensemble:
            raise InputError("resfit.subset", self.subset, f"use 1 to {self.ensemble}, the number of critics")
        if self.actor_updates > self.updates:
            raise InputError(
                "resfit.actor_updates", self.actor_updates, f"use 1 to {self.updates}, the critics' updates"
            )
        return fed(OffPolicyRecipe, self, needs_offline=True)


class ResidualLearner:
    """A frozen base, a residual actor and its target, E critics and their targets."""

    needs = Needs(observe=True, prepare=True, warm=True)

    def __init__(self, settings: ResidualActorCritic, space: Space, seed: int):
        s, rng, sizes = settings, torch.Generator().manual_seed(seed), (space.observations, space.box())
        self.settings, self.sizes, self.scales = s, sizes, Scales(*sizes)
        self.base = Frozen(base_policy(s.source, space, rng))
        widths = (sum(sizes), *s.hidden, sizes[1])
        self.actor, self.target_actor = (MLP(widths, rng, layer_norm=s.layer_norm, last_gain=0.0) for _ in range(2))
        both = (critics(*sizes, s.hidden, rng, ensemble=s.ensemble, layer_norm=s.layer_norm) for _ in range(2))
        self.critics, self.targets = both
        self.target_actor.load_state_dict(self.actor.state_dict())
        self.targets.load_state_dict(self.critics.state_dict())
        self.modules: dict[str, nn.Module] = {
            "base": self.base, "actor": self.actor, "target_actor": self.target_actor, "critics": self.critics,
            "targets": self.targets, "scales": self.scales,
        }  # fmt: skip
        for fixed in (self.base, self.target_actor, self.targets):
            fixed.requires_grad_(False)
        self.optimisers = {"actor_optimiser": adamw(self.actor.parameters(), s.actor_lr),
                           "critic_optimiser": adamw(self.critics.parameters(), s.critic_lr)}  # fmt: skip

    def prepare(self, offline: Replay, generator: torch.Generator) -> None:
        """Scales of the demonstrations; the base is cloned from them, unless it was given."""
        self.scales.fit(offline, self.settings.action_scale)
        self.settings.fit(self.base.policy, offline, generator)

    def observe(self, observation: Tensor) -> Tensor:
        """The standardised state, and the normalised base action that belongs to it."""
        return torch.cat([self.scales.standard(observation), self.scales.normal(self.base(observation))], 1)

    def done(self, observation: Tensor, r: Tensor) -> Acted:
        """What the environment does, which is what the replay keeps."""
        action = self.scales.native(executed(observation[:, self.sizes[0] :], r))
        return Acted(action, action)

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        pre = self.actor(observation)
        noise = self.settings.noise * normal_like(pre, generator) if explore else 0.0
        return self.done(observation, residual(pre, self.settings.action_scale, noise))

    def warm(self, observation: Tensor, generator: torch.Generator) -> Acted:
        """The base with uniform noise."""
        drawn = 2 * uniform((len(observation), self.sizes[1]), generator, observation.device) - 1
        return self.done(observation, self.settings.warmup_noise * drawn)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """Critics on every batch; after their warm-up the actor on every few."""
        log, every = dict[str, float](), self.settings.updates // self.settings.actor_updates
        for i, batch in enumerate(batches, 1):
            log |= self.update_critics(batch, generator)
            made = int(self.optimisers["critic_optimiser"].state[self.critics.weights[0]]["step"])
            if made > self.settings.critic_warmup and not i % every:
                log |= self.update_actor(batch)
        return log

    def update_critics(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """One step of all critics towards y = R + γᵏ(1 − d) min_{2 of E} Q̄(s′, a′), then their targets."""
        s = self.settings
        with torch.no_grad():
            state, base = batch.next_observation.split(self.sizes, 1)
            noise = s.noise * s.target_noise * normal_like(base, generator)
            r = residual(self.target_actor(batch.next_observation), s.action_scale, noise, s.noise_clip)
            members = subset(s.ensemble, s.subset, generator)
            y = soft_target(batch.reward, batch.continues, q_values(self.targets, state, executed(base, r), members))
            y = y if s.q_range is None else y.clamp(*s.q_range)
        q = q_values(self.critics, batch.observation[:, : self.sizes[0]], self.scales.normal(batch.action))
        loss = regression(q, y, s.loss_form)
        apply(self.optimisers["critic_optimiser"], loss, max_norm=1.0)
        polyak(self.targets.parameters(), self.critics.parameters(), s.tau)
        return {"loss/critic": float(loss.detach()), "q/mean": float(q.detach().mean())}

    def update_actor(self, batch: Transitions) -> dict[str, float]:
        """One step up the mean over all critics, then the target actor."""
        state, base = batch.observation.split(self.sizes, 1)
        self.critics.requires_grad_(False)
        r = residual(self.actor(batch.observation), self.settings.action_scale)
        loss = -q_values(self.critics, state, executed(base, r)).mean()
        apply(self.optimisers["actor_optimiser"], loss, max_norm=1.0)
        self.critics.requires_grad_(True)
        polyak(self.target_actor.parameters(), self.actor.parameters(), self.settings.tau)
        return {"loss/actor": float(loss.detach()), "residual/size": float(r.detach().abs().mean())}
