"""GSPO: group sequence policy optimisation.

Paper: arXiv 2507.18071, eq. 5 (objective), eq. 7 (sequence ratio), section 5.1 (clip range, four mini-batches).
Idea: rewards are given to sequences, so the importance ratio and its clip belong to the sequence too.
Changes: loss (length-normalised sequence ratio, clip 3e-4/4e-4, no KL), optimiser (each batch in 4 mini-batches).
Silent: group size and learning rate; those of GRPO.
Differs: none known in verl and TRL.
"""

from dataclasses import replace

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.methods.language.grpo import grpo
from anypolicy.stages.common import Clip, PolicyLoss
from anypolicy.stages.recipe import GroupRecipe


@method(
    Card(
        title="Group Sequence Policy Optimization",
        paper="arXiv 2507.18071",
        year=2025,
        family="language",
        idea="one importance ratio per sequence, the geometric mean of its token ratios",
        changes=("loss", "optimiser"),
        composes_with="every advantage, sampler and selection",
        claim="baseline of the claims of other methods",
        example="anypolicy train gspo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.89 with seed 0",
    )
)
def gspo(
    group_size: knobs.GroupSize = 8,
    clip_low: knobs.ClipLow = 3e-4,
    clip_high: knobs.ClipHigh = 4e-4,
) -> GroupRecipe:
    """s = exp(mean_t log ratio_t); −min(s A, clip(s) A), mean over sequences."""
    base = grpo(group_size)
    return replace(
        base,
        loss=PolicyLoss(Clip(clip_low, clip_high), ratio="sequence"),
        optimiser=replace(base.optimiser, minibatches=4),
    )
