"""APO: asymmetric policy optimisation; good and bad responses get different regularisers.

Paper: arXiv 2506.21655 (abstract); the equations are those of the authors' code (View-R1), DADS and STCR.
Idea: a positive response is held to the reference less where its prompt is hard (DADS); a wrong response that is longer
than the group's right ones is pushed down harder (STCR).
Changes: advantage (STCR multiplier), loss (token mean, KL per response with a weight), optimiser (betas 0.9, 0.95).
Silent: what happens beside vision: nothing here is visual, the batch's rewards, verdicts, lengths and log-probabilities
suffice. A wrong response with a positive advantage (format bonus) is raised by STCR too, as in the code.
Differs: the code infers correctness by truncating the reward; here it is the verifier's verdict. It averages the
surrogate over micro-batches of two responses; here over the whole mini-batch. It splits 128 prompts into 16 updates:
`--prompts 128 --minibatches 16`, and warms up over 3 % of them, here not at all. With the released base
1.00001 STCR reaches 1.01 at a thousand tokens of excess and does nothing on short responses; `stcr_half` names the
excess at which the multiplier is to be 1.5.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.parts.advantages import group_index, group_sum
from anypolicy.parts.kl import kl
from anypolicy.parts.reduce import reduce
from anypolicy.policies.language.base import Scores
from anypolicy.stages.common import Clip, GroupAdvantage, PolicyLoss
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import GroupRecipe, LossTerms


def length_weight(
    length: Float[Tensor, " n"], correct: Bool[Tensor, " n"], group: Int[Tensor, " n"], base: float
) -> Float[Tensor, " n"]:
    """STCR: w = 2 − base^(−d) in [1, 2) for a wrong response d > 0 tokens longer than the mean of the group's correct
    ones; 1 for all others, and for all where nothing is correct."""
    right = correct.to(length.dtype)
    number = group_sum(right, group)
    excess = (length - group_sum(right * length, group) / number.clamp(min=1)) * (1 - right)
    return torch.where((excess > 0) & (number > 0), 2 - base ** (-excess), 1)


def divergence_weight(
    accuracy: Float[Tensor, " n"], positive: Bool[Tensor, " n"], coef: float = math.e
) -> Float[Tensor, " n"]:
    """DADS: κ = 1 − exp(−coef · accuracy of the group) where the advantage is positive and the group mixed, else 1: a
    small weight on hard prompts."""
    mixed = (accuracy > 0) & (accuracy < 1)
    return torch.where(positive & mixed, 1 - torch.exp(-coef * accuracy), 1)


def group_accuracy(batch: Batch) -> Float[Tensor, " trajectories"]:
    """Share of correct responses in each trajectory's group; those without a reward are left out."""
    real, group = ~batch.reward.isnan(), group_index(batch.group_id)
    number = group_sum(real.to(batch.reward.dtype), group)
    return group_sum((batch.correct & real).to(batch.reward.dtype), group) / number.clamp(min=1)


@dataclass(frozen=True)
class LengthAwareAdvantage:
    """Another advantage, times STCR's multiplier."""

    base: float = 1.00001
    inner: Any = field(default_factory=lambda: GroupAdvantage("sample", 1e-9))

    def __post_init__(self) -> None:
        if not self.base > 1:
            raise InputError("stcr_base", self.base, "use a number above 1")

    @property
    def needs(self) -> Needs:
        return replace(self.inner.needs, verdicts=True)

    def __call__(self, batch: Batch) -> Float[Tensor, " trajectories"]:
        advantage = self.inner(batch)
        real, weight = ~batch.reward.isnan(), torch.ones_like(advantage)
        length, group = batch.length.to(advantage.dtype), group_index(batch.group_id)
        weight[real] = length_weight(length[real], batch.correct[real], group[real], self.base)
        return weight * advantage


@dataclass(frozen=True)
class AsymmetricLoss:
    """surrogate + kl_coef · mean over responses of [κ_i · token mean of k3]."""

    surrogate: PolicyLoss = field(default_factory=lambda: PolicyLoss(aggregation="token-mean"))
    kl_coef: float = 1e-3
    dads: bool = True
    dads_coef: float = math.e

    @property
    def needs(self) -> Needs:
        return replace(self.surrogate.needs, reference=self.kl_coef != 0, verdicts=True)

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        return batch.mask.any(1) if self.needs.reference else self.surrogate.active(batch)

    def weight(self, batch: Batch) -> Float[Tensor, " rows"]:
        """κ of each row's response."""
        assert batch.advantage is not None
        positive = torch.where(batch.mask, batch.advantage, 0).sum(1) > 0
        accuracy = group_accuracy(batch)[batch.trajectory]
        return divergence_weight(accuracy, positive & self.dads, self.dads_coef)

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms:
        terms, log = self.surrogate(scores, batch)
        if not self.needs.reference:
            return LossTerms(terms, log)
        assert batch.logp_ref is not None
        kappa, totals = self.weight(batch)[:, None], batch.counted()
        each = batch.weight[:, None] * kappa * kl(scores.logp, batch.logp_ref, "k3")
        term = self.kl_coef * reduce(each, batch.mask, "seq-mean-token-mean", totals=totals)
        mean = torch.where(batch.mask, kappa, 0).sum() / max(totals.watched, 1)
        return LossTerms(terms | {"kl": term}, log | {"kl/weight": mean})


@method(
    Card(
        title="Asymmetric Policy Optimization (difficulty-adaptive divergence, suboptimal-trajectory regularisation)",
        paper="arXiv 2506.21655",
        year=2025,
        family="language",
        idea="weigh the KL of positive responses by how easy their prompt is; push down wrong responses that are long",
        changes=("advantage", "loss", "optimiser"),
        composes_with="samplers, selections, other losses by name (then without DADS); text and images alike",
        claim="STCR shortens responses at no cost in success; DADS at equal KL weight raises the hardest prompts",
        example="anypolicy train apo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.86 with seed 0",
        metrics={"kl/weight": "mean DADS weight of the KL term over trained tokens"},
    )
)
def apo(
    group_size: knobs.GroupSize = 8,
    clip: knobs.ClipRange = 0.2,
    kl_coef: knobs.KLCoef = 1e-3,
    dads: Annotated[bool, Knob("the divergence weighs less on hard prompts (DADS)")] = True,
    dads_coef: Annotated[
        float, Knob("κ = 1 − exp(−this × accuracy) on rows with a positive advantage", above=0)
    ] = math.e,
    stcr: Annotated[bool, Knob("wrong responses weigh more where they are longer than right ones (STCR)")] = True,
    stcr_base: Annotated[float, Knob("w = 2 − this^(−excess tokens)", above=1)] = 1.00001,
    stcr_half: Annotated[
        float | None,
        Knob("excess tokens at half of the extra weight; none: as stcr_base says", above=0),
    ] = None,
) -> GroupRecipe:
    """STCR on GRPO's advantage (eps 1e-9); DADS on a KL that is averaged over responses."""
    base = grpo(group_size, eps=1e-9)
    if stcr_half is not None:
        if not stcr_half > 0:
            raise InputError("stcr_half", stcr_half, "use a number of tokens above 0")
        stcr_base = 2 ** (1 / stcr_half)
    surrogate = PolicyLoss(Clip(clip, clip), aggregation="token-mean")
    return replace(
        base,
        advantage=LengthAwareAdvantage(stcr_base, base.advantage) if stcr else base.advantage,
        loss=AsymmetricLoss(surrogate, kl_coef, dads, dads_coef),
        optimiser=replace(base.optimiser, betas=(0.9, 0.95)),
    )
