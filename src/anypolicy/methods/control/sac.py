"""SAC: soft actor-critic with a learned temperature.

Paper: arXiv 1812.05905, eq. 5–7 (critic), 9 (actor), 11 (entropy constraint), 17–18 (temperature), algorithm 1.
Idea: maximise return and entropy; the weight of the entropy is the dual variable of a bound on the mean entropy, so one
setting works across tasks and scales of the reward.
Changes: nothing; it is the base of the off-policy methods.
Silent: warm-up, the clip of the log-std. Here ten episodes of uniform actions (at most 5,000 steps) and [−20, 2].
Differs: public implementations disagree on what SAC is; our choice comes first.
  target entropy    −|A| (authors, SB3, CleanRL, Tianshou, d3rlpy, TorchRL) | −|A|/2 (RLPD, LeRobot): `target_entropy`
  actor's Q         smaller of two (paper, most) | mean (RLPD, REDQ, the authors' later code): `actor_q`
  entropy in y      always (most) | a switch (RLPD, LeRobot)
  temperature loss  on ln α (SB3, Tianshou, skrl, REDQ) | on α (paper, authors, CleanRL, d3rlpy, RLPD): `alpha_form`
  its sample        the actor's | a fresh one after the actor's step (authors)
  critics' loss     ½ Σ_i mean (authors, SB3) | Σ_i mean (CleanRL) | mean over i (skrl): with Adam nearly the same
  order             critics, actor, temperature, targets (authors) | temperature first (SB3)
  ln(1 − a²)        by softplus | ln(1 − a² + 1e-6) (SB3, CleanRL, REDQ), which saturates at −13.8
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.transitions import Transitions
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OffPolicyRecipe, fed
from anypolicy.learners.soft_actor_critics import SideBySide, can_stand
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.td import critic_loss, polyak, soft_target, temperature_loss
from anypolicy.policies.control.mlp import SquashedGaussian, critics, q_values
from anypolicy.tasks.control.environments import Space


@method(
    Card(
        title="Soft Actor-Critic Algorithms and Applications",
        paper="arXiv 1812.05905",
        year=2018,
        family="control",
        idea="maximise return and entropy, with a temperature that keeps the entropy at a target",
        changes=(),
        composes_with="any environment with a box of actions",
        claim="a learned temperature does away with tuning it for every scale of the reward",
        example="anypolicy train sac --task gym/Pendulum-v1 --sac.hidden 64 64 --sac.lr 1e-3 --steps 5000",
        look_at="eval/return: -1277 to -189 with seed 0",
    ),
    slug="sac",
)
@dataclass(frozen=True)
class SoftActorCritic:
    """Two critics, one update for every environment step, H = −(number of actions)."""

    hidden: knobs.Hidden = (256, 256)
    lr: knobs.LearningRate = 3e-4
    alpha_lr: Annotated[float, Knob("learning rate of α", above=0)] = 3e-4
    discount: knobs.Discount = 0.99
    tau: knobs.Polyak = 0.005
    batch: knobs.BatchSize = 256
    updates: knobs.Updates = 1
    warmup: knobs.Warmup = None
    capacity: knobs.Capacity = 1_000_000
    target_entropy: knobs.TargetEntropy = None
    alpha: knobs.InitialTemperature = 1.0
    learn_alpha: Annotated[bool, Knob("α is learnt towards the target entropy")] = True
    actor_q: Annotated[
        Literal["min", "mean"], Knob("the actor climbs the smaller value of the critics, or their mean")
    ] = "min"  # fmt: skip
    alpha_form: Annotated[
        Literal["log_alpha", "alpha"], Knob("the temperature's loss is in ln α, or in α")
    ] = "log_alpha"  # fmt: skip
    layer_norm: knobs.LayerNorm = False
    ensemble: knobs.Ensemble = 2

    def __call__(self, space: Space, seed: int) -> "SoftActorCriticLearner":
        return SoftActorCriticLearner(self, space, seed)

    def recipe(self) -> OffPolicyRecipe:
        return fed(OffPolicyRecipe, self)


class SoftActorCriticLearner:
    """Actor, critics with their targets, ln α."""

    needs = Needs(together=True)
    together = SideBySide

    def __init__(self, settings: SoftActorCritic, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings = s
        self.entropy = -float(space.actions) if s.target_entropy is None else s.target_entropy
        sizes = (space.observations, space.box(), s.hidden, rng)
        self.actor = SquashedGaussian(*sizes)
        self.critics = critics(*sizes, ensemble=s.ensemble, layer_norm=s.layer_norm)
        self.targets = deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(s.alpha).log())
        self.modules = {"actor": self.actor, "critics": self.critics, "targets": self.targets,
                        "temperature": nn.ParameterList([self.log_alpha])}  # fmt: skip
        self.optimisers: dict[str, Optimizer] = {
            "actor_optimiser": adam(self.actor.parameters(), s.lr),
            "critic_optimiser": adam(self.critics.parameters(), s.lr),
            "alpha_optimiser": adam([self.log_alpha], s.alpha_lr),
        }
        self.alone: SideBySide | None = None

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action = self.actor.sample(observation, generator)[0] if explore else self.actor.mode(observation)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        log: dict[str, float] = {}
        for batch in batches:
            log = self.quick_step(batch, generator) if can_stand(self) else self.step(batch, generator)
        return log

    def quick_step(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """The same as `step`, written out without a graph."""
        if self.alone is None or self.alone.where != self.log_alpha.data_ptr():
            self.alone = SideBySide([self])
        return self.alone.update([batch], [generator])[0]

    def step(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """Critics, actor, temperature, targets."""
        s, alpha = self.settings, self.log_alpha.detach().exp()
        with torch.no_grad():
            action, logp = self.actor.sample(batch.next_observation, generator)
            q_next = q_values(self.targets, batch.next_observation, action)
            y = soft_target(batch.reward, batch.continues, q_next, logp, alpha)
        q = q_values(self.critics, batch.observation, batch.action)
        loss_q = critic_loss(q, y)
        apply(self.optimisers["critic_optimiser"], loss_q)

        self.critics.requires_grad_(False)
        action, logp = self.actor.sample(batch.observation, generator)
        q_mine = q_values(self.critics, batch.observation, action)
        loss_actor = (alpha * logp - (q_mine.amin(0) if s.actor_q == "min" else q_mine.mean(0))).mean()
        apply(self.optimisers["actor_optimiser"], loss_actor)
        self.critics.requires_grad_(True)

        if s.learn_alpha:
            loss_alpha = temperature_loss(self.log_alpha, logp, self.entropy, s.alpha_form)
            apply(self.optimisers["alpha_optimiser"], loss_alpha)
        polyak(self.targets.parameters(), self.critics.parameters(), s.tau)
        return {"loss/critic": float(loss_q.detach()), "loss/actor": float(loss_actor.detach()), "alpha": float(alpha),
                "entropy": -float(logp.detach().mean()), "q/mean": float(q.detach().mean())}  # fmt: skip
