"""REINFORCE++: token returns with KL, normalised over the whole batch.

Paper: arXiv 2501.03262, section 3 (token-level KL penalty, clip, global advantage normalisation).
Idea: a baseline per prompt is not needed when returns are whitened over all tokens of a large batch.
Changes: rollout (one response per prompt), advantage (whitened returns-to-go), loss (token mean, no KL term).
Silent: the whitening's epsilon; 1e-8 under the root, as in verl.
Differs: verl whitens over unmasked tokens as here. Adding a constant to one prompt's rewards does change this method.
"""

from dataclasses import dataclass, replace

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.methods.language.grpo import grpo
from anypolicy.parts.advantages import returns_to_go, token_rewards, whiten
from anypolicy.stages.common import Clip, GroupRollout, PolicyLoss
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import Credit, GroupRecipe


@dataclass(frozen=True)
class WhitenedReturns:
    """A_t = whiten(Σ_{k≥t} γ^(k−t) rew_k) over all trained tokens, with −kl_coef · k1 on every token of rew."""

    kl_coef: float = 1e-3
    discount: float = 1.0

    @property
    def needs(self) -> Needs:
        return Needs(reference=self.kl_coef != 0)

    def __call__(self, batch: Batch) -> Credit:
        reward = token_rewards(
            batch.reward[batch.trajectory], batch.mask, batch.logp_old, batch.logp_ref, self.kl_coef
        )  # fmt: skip
        return Credit(whiten(returns_to_go(reward, batch.mask, self.discount), batch.mask))


@method(
    Card(
        title="REINFORCE++",
        paper="arXiv 2501.03262",
        year=2025,
        family="language",
        idea="PPO's clip on returns that are normalised over the batch, without a critic",
        changes=("rollout", "advantage", "loss"),
        composes_with="samplers and selections; with another loss name the stage",
        claim="baseline of the claims of other methods",
        example="anypolicy train reinforce-pp --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.43 with seed 0",
    )
)
def reinforce_pp(
    group_size: knobs.GroupSize = 1,
    clip: knobs.ClipRange = 0.2,
    kl_coef: knobs.KLCoef = 1e-3,
    discount: knobs.Discount = 1.0,
) -> GroupRecipe:
    """Batch-whitened returns-to-go, −β k1 in the reward, clip 0.2/0.2, token mean."""
    return replace(
        grpo(),
        rollout=GroupRollout(group_size),
        advantage=WhitenedReturns(kl_coef, discount),
        loss=PolicyLoss(Clip(clip, clip), aggregation="token-mean"),
    )
