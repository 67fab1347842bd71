"""Dr. GRPO: GRPO done right.

Paper: "Understanding R1-Zero-like training", arXiv 2503.20783, section 3.2.
Idea: dividing by the group's standard deviation and by the response's length biases the gradient; do neither.
Changes: advantage (mean only), loss (sum over tokens divided by a constant, no KL).
Silent: the constant's value for a given run; here the generation limit, as TRL has it.
Differs: a loss with this constant is smaller than a token mean by the share of unused tokens: compare learning rates
accordingly.
"""

from dataclasses import replace

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.methods.language.grpo import grpo
from anypolicy.stages.common import Clip, GroupAdvantage, PolicyLoss
from anypolicy.stages.recipe import GroupRecipe


@method(
    Card(
        title="Dr. GRPO",
        paper="arXiv 2503.20783",
        year=2025,
        family="language",
        idea="subtract the group mean only and divide by a constant, so that neither difficulty nor length is weighted",
        changes=("advantage", "loss"),
        composes_with="samplers, selections, rewards; with another advantage or loss name the stage",
        claim="baseline of the claims of other methods",
        example="anypolicy train dr-grpo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.87 with seed 0",
    )
)
def dr_grpo(
    group_size: knobs.GroupSize = 8,
    clip: knobs.ClipRange = 0.2,
) -> GroupRecipe:
    """A = r − mean; Σ over tokens / (sequences · generation limit)."""
    return replace(
        grpo(group_size),
        advantage=GroupAdvantage(std="none"),
        loss=PolicyLoss(Clip(clip, clip), aggregation="const"),
    )
