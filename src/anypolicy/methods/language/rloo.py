"""RLOO: REINFORCE with the leave-one-out baseline.

Paper: "Back to Basics", arXiv 2402.14740, section 3.2 (eq. 5); baseline of Kool et al. 2019.
Idea: each response's baseline is the mean reward of the other responses to the same prompt: unbiased, no critic.
Changes: rollout (4 responses), advantage (leave-one-out on reward − β · KL), loss (no clip, sum over the response).
Silent: how often a batch is used; here one update, so the ratio is 1 and the loss is REINFORCE.
Differs: verl has the same baseline without KL in the reward by default; TRL's β is 0.05, here 0.03.
"""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.methods.language.grpo import grpo
from anypolicy.parts.advantages import leave_one_out
from anypolicy.parts.kl import kl
from anypolicy.stages.common import GroupRollout, NoClip, PolicyLoss
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import GroupRecipe


@dataclass(frozen=True)
class LeaveOneOut:
    """A_i = R_i − mean of the group's other R_j, with R = r − kl_coef · Σ_t k1."""

    kl_coef: float = 0.03

    @property
    def needs(self) -> Needs:
        return Needs(responses=2, reference=self.kl_coef != 0)

    def __call__(self, batch: Batch) -> Float[Tensor, " trajectories"]:
        reward = batch.reward
        if batch.logp_ref is not None:
            divergence = (kl(batch.logp_old, batch.logp_ref, "k1") * batch.mask).sum(1)
            reward = reward.index_add(0, batch.trajectory, -self.kl_coef * divergence)
        return leave_one_out(reward, batch.group_id)


@method(
    Card(
        title="REINFORCE Leave-One-Out",
        paper="arXiv 2402.14740",
        year=2024,
        family="language",
        idea="baseline of each response = mean reward of the others in its group",
        changes=("rollout", "advantage", "loss"),
        composes_with="samplers and selections; with another loss name the stage",
        claim="baseline of the claims of other methods",
        example="anypolicy train rloo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.73 with seed 0",
    )
)
def rloo(
    group_size: knobs.GroupSize = 4,
    kl_coef: knobs.KLCoef = 0.03,
) -> GroupRecipe:
    """REINFORCE on the whole sequence with leave-one-out baseline and −β k1 inside the reward."""
    return replace(
        grpo(),
        rollout=GroupRollout(group_size),
        advantage=LeaveOneOut(kl_coef),
        loss=PolicyLoss(NoClip(), aggregation="seq-mean-token-sum"),
    )
