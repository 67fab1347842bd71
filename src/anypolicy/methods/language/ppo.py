"""PPO on responses, with a value head and generalised advantage estimation.

Paper: arXiv 1707.06347 (eq. 7 clip, eq. 9 value term), GAE arXiv 1506.02438 (eq. 16); as used on language models in
InstructGPT, arXiv 2203.02155 (KL inside the reward).
Idea: a learned value of each prefix turns one final reward into a credit per token.
Changes: rollout (one response per prompt), advantage (GAE), loss (token mean, no KL term), critic (value head).
Silent: the head's shape on a language model; here one linear layer from zero on the policy's last hidden state, whose
gradient also reaches the trunk.
Differs: verl whitens the advantage over the batch after the value target is made, as here; TRL kept a separate critic.
The KL coefficient (0.001) and the value clip (0.5) are verl's; InstructGPT's KL coefficient is 0.02.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.parts.advantages import gae, token_rewards, whiten
from anypolicy.parts.reduce import reduce
from anypolicy.parts.surrogate import clipped_value_loss
from anypolicy.stages.common import Clip, GroupRollout, PolicyLoss
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import Credit, GroupRecipe, LossTerms


@dataclass(frozen=True)
class GeneralisedAdvantage:
    """A_t = δ_t + γλ A_{t+1}, δ_t = rew_t + γ V_{t+1} − V_t; target A_t + V_t; then A whitened over the batch.

    `normalise_reward` takes (r − mean)/std of all rewards of the run so far; with `on_kept` A is whitened over the rows
    that a selection has kept.
    """

    discount: float = 1.0
    lam: float = 0.95
    kl_coef: float = 1e-3
    std: Literal["sample", "population"] = "sample"
    normalise_reward: bool = False
    on_kept: bool = False

    @property
    def needs(self) -> Needs:
        return Needs(value=True, reference=self.kl_coef != 0, kept=self.on_kept)

    def __call__(self, batch: Batch) -> Credit:
        assert batch.value is not None
        outcome = batch.reward
        if self.normalise_reward and batch.running is not None:
            outcome = (outcome - batch.running.mean) / max(batch.running.std, 1e-8)
        reward = token_rewards(
            outcome[batch.trajectory], batch.mask, batch.logp_old, batch.logp_ref, self.kl_coef
        )  # fmt: skip
        raw = gae(reward, batch.value, batch.mask, discount=self.discount, lam=self.lam)
        return Credit(whiten(raw, batch.mask, self.std), raw + batch.value)


@dataclass(frozen=True)
class ValueHead:
    """coef · token mean of ½ max((V − R)², (clip(V, V_old ± clip) − R)²)."""

    lr: float = 9e-6
    clip: float = 0.5
    coef: float = 1.0

    def loss(self, value: Float[Tensor, "rows tokens"], batch: Batch) -> LossTerms:
        assert batch.value is not None and batch.value_target is not None
        each = clipped_value_loss(value, batch.value, batch.value_target, self.clip)
        total = batch.counted()
        with torch.no_grad():
            mean = torch.where(batch.mask, value, 0).sum() / max(total.watched, 1)
        return LossTerms(
            {"value": self.coef * reduce(each, batch.mask, "token-mean", totals=total)}, {"value/mean": mean}
        )


@method(
    Card(
        title="Proximal Policy Optimization with a value head",
        paper="arXiv 1707.06347",
        year=2017,
        family="language",
        idea="credit each token by a learned value function; clip the token ratio",
        changes=("rollout", "advantage", "loss", "critic"),
        composes_with="samplers, selections and rewards; its advantage and critic go together",
        claim="baseline of the claims of other methods",
        example="anypolicy train ppo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.43 with seed 0",
        no_signal=(0.0,),
    )
)
def ppo(
    group_size: knobs.GroupSize = 1,
    clip: knobs.ClipRange = 0.2,
    kl_coef: knobs.KLCoef = 1e-3,
    discount: knobs.Discount = 1.0,
    lam: Annotated[float, Knob("λ of generalised advantage estimation", least=0, most=1)] = 0.95,
    value_lr: Annotated[float, Knob("learning rate of the value head", above=0)] = 9e-6,
    value_clip: Annotated[
        float, Knob("values are clipped this far from those of the rollout", least=0, infinite=True)
    ] = 0.5,
    std: Annotated[
        Literal["sample", "population"], Knob("deviation of a group's rewards: of a sample, or of the population")
    ] = "sample",
    normalise_reward: Annotated[bool, Knob("rewards are standardised by those seen so far")] = False,
) -> GroupRecipe:
    """GAE with a value head, −β k1 in the reward, clip 0.2/0.2, token mean."""
    base = grpo()
    return replace(
        base,
        rollout=GroupRollout(group_size),
        advantage=GeneralisedAdvantage(discount, lam, kl_coef, std, normalise_reward),
        loss=PolicyLoss(Clip(clip, clip), aggregation="token-mean"),
        critic=ValueHead(value_lr, value_clip),
        optimiser=replace(base.optimiser, lr=5e-7),
    )
