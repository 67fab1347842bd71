"""DSRL-NA: steering a diffusion policy by reinforcement learning on the noise it starts from, with noise aliasing.

Paper: arXiv 2506.15799, sections on the latent-noise action space and noise aliasing; details from the released code.
Idea: a frozen base turns (s, w) into an action and is only ever called. An actor proposes w = b u, u in [−1, 1], in
place of standard normal noise. Critics of actions learn from whatever actions there are; critics of noise are distilled
from them by asking the base about noise of its own distribution, for noise that differs may act the same.
Changes: nothing of another method; DSRL without aliasing is the method of its own, SAC on u.
Silent: critics of noise see u = w/b, also beyond 1 where w is drawn normally; densities are those of u. Distillation
takes the states of the batches just used. What a chunk did not execute, its episode having ended, stays in the stored
action; demonstrations repeat their last action there.
Differs:
  b                 1.5 | the released NA script does not use its setting: b = 1
  network           3 × 128 tanh, LayerNorm (authors' for Hopper and Transport; 2,048 or 1,024 for others)
  warm-up           ten episodes of the base | 1,501 to 20,001 steps (authors)
  time limit        bootstraps | is terminal (authors)
  replay            10⁶ transitions | 10⁷ (authors)
  chunk             rewards inside are discounted, γᵏ after k steps | summed, γ once (authors); γᵏ (pi0)
  noise of a chunk  all of it is chosen | one action's, repeated (pi0's long chunks)
  evaluation        draws from the actor | `deterministic_eval`: u = tanh(mean)
  pi0 version       `reduction` "mean" over 10 critics, no entropy in targets (`backup_entropy`)
"""

from copy import deepcopy
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
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.td import critic_loss, polyak, soft_target, subset, temperature_loss
from anypolicy.policies.control.cloned import OnBase
from anypolicy.policies.control.generative import normal
from anypolicy.policies.control.mlp import SquashedGaussian, critics, q_values
from anypolicy.policies.control.steered import Steered, check_steering
from anypolicy.tasks.control.environments import Space

Reduction = Literal["min", "mean"]


def reduced(q: Float[Tensor, "subset batch"], reduction: Reduction) -> Float[Tensor, "1 batch"]:
    """The smallest of the critics, or their mean."""
    return q.amin(0, keepdim=True) if reduction == "min" else q.mean(0, keepdim=True)


def distillation_loss(noise: Float[Tensor, "ensemble batch"], action: Float[Tensor, "ensemble batch"]) -> Tensor:
    """½ Σ_i mean (Q^W_i(s, w/b) − Q^A_i(s, π(s, w)))², critic by critic; Q^A carries no gradient."""
    return 0.5 * (noise - action.detach()).square().mean(-1).sum()


@method(
    Card(
        title="Steering Your Diffusion Policy with Latent Space Reinforcement Learning",
        paper="arXiv 2506.15799",
        year=2025,
        family="control",
        idea="reinforcement learning chooses the noise that a frozen generative policy starts from",
        changes=(),
        composes_with="any saved policy of bc whose noise decides its action; offline data (na)",
        claim="steering alone lifts a mediocre base, and noise aliasing does so with fewer samples than SAC on noise",
        example="anypolicy train dsrl --task reacher-sparse --demos scripted --steps 500",
        look_at="eval/success: 0.20 to 0.50 with seed 0",
        metrics={"loss/distillation": "error of the critics of noise against those of actions"},
    ),
    slug="dsrl",
)
@dataclass(frozen=True)
class NoiseAliased(OnBase):
    """A box of ±1.5, twenty updates and ten distillations for every step (every `chunk` of actions, decided at once),
    entropy target 0; a flow cloned from the demonstrations, or the policy/ folder of a run as `base`."""

    magnitude: Annotated[float, Knob("largest noise the actor may choose, standard deviations", above=0)] = 1.5
    hidden: knobs.Hidden = (128, 128, 128)
    lr: knobs.LearningRate = 3e-4
    discount: knobs.Discount = 0.99
    tau: knobs.Polyak = 0.005
    batch: knobs.BatchSize = 256
    updates: knobs.Updates = 20
    distillations: Annotated[int, Knob("steps of the critics of noise after each round of updates", least=0)] = 10
    ensemble: knobs.Ensemble = 2
    subset: knobs.Subset = 2
    reduction: Annotated[Reduction, Knob("what two critics say together")] = "min"
    target_entropy: knobs.TargetEntropy = 0.0
    alpha: knobs.InitialTemperature = 1.0
    learn_alpha: Annotated[bool, Knob("α is learnt towards the target entropy")] = True
    backup_entropy: knobs.BackupEntropy = True
    warmup: knobs.Warmup = None
    capacity: knobs.Capacity = 1_000_000
    offline_share: knobs.OfflineShare = 0.0
    deterministic_eval: Annotated[bool, Knob("evaluated with the actor's mode instead of a sample")] = False
    chunk: knobs.Chunk = 1

    def __call__(self, space: Space, seed: int) -> "NoiseAliasedLearner":
        return NoiseAliasedLearner(self, space, seed)

    def recipe(self) -> OffPolicyRecipe:
        check_steering(self.base_policy, self.magnitude)
        if self.subset > self.ensemble:
            raise InputError("dsrl.subset", self.subset, f"use 1 to {self.ensemble}, the number of critics")
        return fed(OffPolicyRecipe, self, needs_offline=self.base is None or self.offline_share > 0)


class NoiseAliasedLearner:
    """DSRL-NA: critics of actions with their targets, critics of noise, an actor of noise, ln α."""

    needs = Needs(prepare=True, warm=True)

    def __init__(self, settings: NoiseAliased, space: Space, seed: int):
        s, rng, sizes = settings, torch.Generator().manual_seed(seed), (space.observations, space.actions)
        self.settings = s
        self.steered = Steered(base_policy(s.source, space, rng), s.magnitude, space.observations)
        self.entropy = -float(space.actions) if s.target_entropy is None else s.target_entropy
        self.actor = SquashedGaussian(*sizes, s.hidden, rng, activation="tanh", layer_norm=True)
        made = (critics(*sizes, s.hidden, rng, ensemble=s.ensemble, layer_norm=True, activation="tanh") for _ in "aw")
        self.critics, self.noise_critics = made
        self.targets = deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(s.alpha).log())
        self.modules: dict[str, nn.Module] = {
            "actor": self.actor, "critics": self.critics, "targets": self.targets, "noise_critics": self.noise_critics,
            "temperature": nn.ParameterList([self.log_alpha]), "base": self.steered.policy,
        }  # fmt: skip
        self.optimisers = {
            "actor_optimiser": adam(self.actor.parameters(), s.lr),
            "critic_optimiser": adam(self.critics.parameters(), s.lr),
            "noise_optimiser": adam(self.noise_critics.parameters(), s.lr),
            "alpha_optimiser": adam([self.log_alpha], s.lr),
        }

    def prepare(self, offline: Replay, generator: torch.Generator) -> None:
        """Behaviour cloning, unless the base came from a folder."""
        self.settings.fit(self.steered.policy, offline, generator)

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        drawn = explore or not self.settings.deterministic_eval
        u = self.actor.sample(observation, generator)[0] if drawn else self.actor.mode(observation)
        action = self.steered(observation, u)
        return Acted(action, action)

    def warm(self, observation: Tensor, generator: torch.Generator) -> Acted:
        """The base."""
        action = self.steered.policy.sample(observation, generator)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """For every `updates` batches: temperature, critics, actor and targets on each, then the distillations."""
        s, log = self.settings, dict[str, float]()
        for i in range(0, len(batches), s.updates):
            block = batches[i : i + s.updates]
            for batch in block:
                log = self.step(batch, generator)
            for j in range(s.distillations):
                log["loss/distillation"] = self.distil(block[j % len(block)].observation, generator)
        return log

    def step(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """y = r + γ(1 − d)(min_i Q̄^A_i(s′, π(s′, b u′)) − α ln π_W(u′|s′)); the actor climbs Q^W."""
        s, alpha = self.settings, self.log_alpha.detach().exp()
        u, logp = self.actor.sample(batch.observation, generator)
        if s.learn_alpha:
            apply(self.optimisers["alpha_optimiser"], temperature_loss(self.log_alpha, logp, self.entropy))

        members = subset(s.ensemble, s.subset, generator)
        with torch.no_grad():
            after, logp_after = self.actor.sample(batch.next_observation, generator)
            action = self.steered(batch.next_observation, after)
            q_next = reduced(q_values(self.targets, batch.next_observation, action, members), s.reduction)
            y = soft_target(batch.reward, batch.continues, q_next, logp_after if s.backup_entropy else None, alpha)
        q = q_values(self.critics, batch.observation, batch.action)
        loss_q = critic_loss(q, y)
        apply(self.optimisers["critic_optimiser"], loss_q)

        self.noise_critics.requires_grad_(False)
        q_mine = reduced(q_values(self.noise_critics, batch.observation, u, members), s.reduction)
        loss_actor = (alpha * logp - q_mine[0]).mean()
        apply(self.optimisers["actor_optimiser"], loss_actor)
        self.noise_critics.requires_grad_(True)
        polyak(self.targets.parameters(), self.critics.parameters(), s.tau)
        return {"loss/critic": float(loss_q.detach()), "loss/actor": float(loss_actor.detach()), "alpha": float(alpha),
                "entropy": -float(logp.detach().mean()), "q/mean": float(q.detach().mean())}  # fmt: skip

    def distil(self, observation: Tensor, generator: torch.Generator) -> float:
        """Q^W learns what Q^A says of the base's actions for w ~ N(0, I)."""
        w = normal(observation, self.steered.policy.actions, generator)
        with torch.no_grad():
            q = q_values(self.critics, observation, self.steered.policy.decode(observation, w))
        loss = distillation_loss(q_values(self.noise_critics, observation, w / self.settings.magnitude), q)
        apply(self.optimisers["noise_optimiser"], loss)
        return float(loss.detach())
