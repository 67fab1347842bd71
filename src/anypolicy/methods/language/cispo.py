"""CISPO: clipped importance sampling policy optimisation.

Paper: "MiniMax-M1", arXiv 2506.13585, section 3.1, eq. 4–5.
Idea: a clipped surrogate gives the tokens beyond the clip no gradient at all, rare but decisive ones first. Clip the
importance weight instead and leave every token its gradient: sg[clip(r, 1 − low, 1 + high)] A ln π.
Changes: loss (the clip is on the weight, which has no gradient; mean over all tokens of the batch; no KL).
Silent: the upper bound ("tuned"); here 0.28 above 1, that of DAPO. No lower bound is used in the paper: low = 1 means
that the weight is bounded by 0.
Differs: with one update a batch the gradient is that of REINFORCE with the group's advantage, as in the paper.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.methods.language.grpo import grpo
from anypolicy.stages.common import PolicyLoss
from anypolicy.stages.recipe import GroupRecipe


@dataclass(frozen=True)
class ClippedWeight:
    """sg[clip(r, 1 − low, 1 + high)] · A · ln π."""

    low: float = 1.0
    high: float = 0.28

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1:
            raise InputError("clip_low", self.low, "use 0 to 1, where 1 is no lower bound")
        if self.high < 0:
            raise InputError("clip_high", self.high, "use 0 or more")

    def __call__(self, ratio: Tensor, advantage: Tensor, logp: Tensor) -> Tensor:
        return ratio.detach().clamp(1 - self.low, 1 + self.high) * advantage * logp

    def metrics(self, ratio: Tensor, advantage: Tensor) -> dict[str, Tensor]:
        return {"ratio/clipped": ((ratio < 1 - self.low) | (ratio > 1 + self.high)).to(ratio.dtype)}


@method(
    Card(
        title="MiniMax-M1: scaling test-time compute efficiently with lightning attention",
        paper="arXiv 2506.13585",
        year=2025,
        family="language",
        idea="clip the importance weight and not the update, so that every token keeps its gradient",
        changes=("loss",),
        composes_with="every advantage, sampler and selection",
        claim="baseline of the claims of other methods",
        example="anypolicy train cispo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.87 with seed 0",
    )
)
def cispo(
    group_size: knobs.GroupSize = 8,
    clip_low: knobs.ClipLow = 1.0,
    clip_high: knobs.ClipHigh = 0.28,
) -> GroupRecipe:
    """GRPO's advantage, token mean over the batch, weights of at most 1.28."""
    return replace(grpo(group_size), loss=PolicyLoss(ClippedWeight(clip_low, clip_high), aggregation="token-mean"))
