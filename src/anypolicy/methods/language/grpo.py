"""GRPO: group relative policy optimisation, the baseline of the language family.

Paper: DeepSeekMath, arXiv 2402.03300, section 4.1 (eq. 3 objective, eq. 4 KL estimator, outcome supervision).
Idea: the group of responses to one prompt is its own baseline, so no critic is needed.
Changes: nothing; it is what the others change.
Silent: what an all-equal group gets. Here exactly 0: the rounding error of the mean divided by eps is not a signal.
Differs: the standard deviation is the sample one (G − 1) as in verl and TRL; eps is 1e-6 (verl), TRL has 1e-4. Groups
of 8 and a KL coefficient of 0.001 are verl's and its users'; the paper has 64 and 0.04 (section 4.2).
"""

from typing import Annotated

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.knobs import Knob
from anypolicy.parts.advantages import Std
from anypolicy.stages.common import (
    Clip,
    GroupAdvantage,
    GroupRollout,
    KeepAll,
    PolicyLoss,
    UniformSampler,
    VerifierReward,
)
from anypolicy.stages.recipe import GroupRecipe, Optimiser


@method(
    Card(
        title="Group Relative Policy Optimization",
        paper="arXiv 2402.03300",
        year=2024,
        family="language",
        idea="normalise each response's reward by mean and standard deviation of its group; clip the token ratio",
        changes=(),
        composes_with="every method of the family",
        claim="baseline of the claims of other methods",
        example="anypolicy train grpo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.87 with seed 0",
    )
)
def grpo(
    group_size: knobs.GroupSize = 8,
    clip: knobs.ClipRange = 0.2,
    kl_coef: knobs.KLCoef = 1e-3,
    std: Annotated[Std, Knob("deviation of a group's rewards: of a sample, or of the population")] = "sample",
    eps: Annotated[float, Knob("added to the deviation of a group's rewards", least=0)] = 1e-6,
) -> GroupRecipe:
    """Mean/std advantage, clip 0.2/0.2, k3 to the reference in the loss, mean over sequences of token means."""
    return GroupRecipe(
        sampler=UniformSampler(),
        rollout=GroupRollout(group_size),
        reward=VerifierReward(),
        advantage=GroupAdvantage(std, eps),
        selection=KeepAll(),
        loss=PolicyLoss(Clip(clip, clip), kl="k3", kl_coef=kl_coef),
        optimiser=Optimiser(lr=1e-6),
    )
