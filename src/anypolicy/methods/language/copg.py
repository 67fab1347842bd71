"""CoPG: contrastive policy gradient, for any two scored responses of one prompt, whoever wrote them.

Paper: arXiv 2406.19185, eq. 7–9 (pair objective), eq. 18–19 (its gradient), eq. 34–38 (as a square).
Idea: each response is the baseline of the other, on rewards that carry the log-ratio to the reference; the only optimum
is that of the KL-regularised problem for every behaviour policy, so neither importance weights nor a clip are needed.
Changes: loss (all pairs of a group, sums of token log-probabilities), optimiser (Adam 1e-6, two passes); on request
rollout and reward (scored responses from a file) and selection (groups of earlier steps beside the new ones).
Silent: more than two responses; here the mean over all pairs of all groups, twice RLOO's mean over samples on the
regularised reward. A pair with a number that is not finite gives nothing, is counted, and stays in the denominator.
Differs: the form with the gradient through beta/2 equals this one, which has the whole beta and detached weights;
mixing the two is another temperature. The paper warms up over a tenth of its updates; here `Optimiser.warmup` is 0.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.parts.advantages import group_sum
from anypolicy.parts.surrogate import token_ratio
from anypolicy.policies.language.base import Scores
from anypolicy.stages.common import KeepAll, distances
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import Choice, GroupRecipe, LossTerms
from anypolicy.stages.recorded import RecordedReward, RecordedRollout


def regularised_reward(
    reward: Float[Tensor, " n"], logp: Float[Tensor, " n"], logp_ref: Float[Tensor, " n"], beta: float
) -> Float[Tensor, " n"]:
    """R_β(y) = R(y) − β (ln π(y) − ln π_ref(y)), log-probabilities of whole responses."""
    return reward - beta * (logp - logp_ref)


def pair_weights(value: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """w_i = Σ_j (R_β(y_i) − R_β(y_j)) over the group: the sum over its pairs of
    (R_β(y) − R_β(y')) (∇ ln π(y) − ∇ ln π(y')) is Σ_i w_i ∇ ln π(y_i) (eq. 18–19)."""
    n = group_sum(torch.ones_like(value), group)
    return n * value - group_sum(value, group)


def pair_squares(value: Float[Tensor, " n"], group: Int[Tensor, " n"], beta: float) -> Float[Tensor, ""]:
    """Σ over pairs of (ΔR − β Δl)² / (2β), the square that the objective minimises (eq. 34–38)."""
    n = group_sum(torch.ones_like(value), group)
    return (n * (value - group_sum(value, group) / n).square()).sum() / (2 * beta)


class Responses(NamedTuple):
    """The responses in a batch that have a token: sums of log-probabilities, reward, weight, group; `of` (rows) says
    whose each row is."""

    logp: Float[Tensor, " n"]
    logp_ref: Float[Tensor, " n"]
    reward: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]
    group: Int[Tensor, " n"]
    of: Int[Tensor, " rows"]


def responses(logp: Float[Tensor, "rows tokens"], batch: Batch) -> Responses:
    """Rows joined to their responses; rows without a trained token come as responses of reward NaN."""
    names, of = torch.unique(batch.trajectory, return_inverse=True)

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(len(names)).index_add_(0, of, torch.where(batch.chosen, x, 0).sum(1))

    assert batch.logp_ref is not None
    empty = torch.ones(len(names), dtype=torch.bool).index_put_((of[batch.mask.any(1)],), torch.tensor(False))
    weight = logp.new_ones(len(names)).index_put_((of,), batch.weight.to(logp.dtype))
    reward = batch.reward[names].to(logp.dtype).masked_fill(empty, torch.nan)
    group = torch.unique(batch.group_id[names], return_inverse=True)[1]
    return Responses(total(logp), total(batch.logp_ref.to(logp.dtype)), reward, weight, group, of)


@dataclass(frozen=True)
class ContrastiveLoss:
    """−mean over pairs of sg[R_β(y) − R_β(y')] (ln π(y) − ln π(y'))."""

    needs = Needs(reference=True, responses=2, behaviour=False, whole_groups=True, whole_responses=True)
    beta: float = 0.06

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise InputError("beta", self.beta, "use a number above 0")

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        members = batch.counted().group_sequences
        assert members is not None
        return (members > 1) & torch.isin(batch.trajectory, batch.trajectory[batch.mask.any(1)])

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms:
        r = responses(scores.logp, batch)
        value = regularised_reward(r.reward, r.logp.detach(), r.logp_ref, self.beta)
        good, pairs = value.isfinite(), max(batch.counted().pairs, 1)
        weight = pair_weights(value[good], r.group[good])
        term = -(r.weight[good] * weight * r.logp[good]).sum() / pairs
        known = bool(batch.logp_old[batch.mask].isfinite().all())
        log = distances(scores, batch, token_ratio(scores.logp.detach(), batch.logp_old) if known else None, {})
        log["pairs/square"] = pair_squares(value[good], r.group[good], self.beta) / pairs
        present = torch.bincount(r.group[~r.reward.isnan()]).double()
        usable = torch.bincount(r.group[good]).double()
        log["pairs/dropped"] = (present * (present - 1) / 2).sum() - (usable * (usable - 1) / 2).sum()
        return LossTerms({"pairs": term}, log)


@dataclass(frozen=True)
class Replay:
    """Everything is trained on, and the newest `memory` groups again in the next step."""

    needs = Needs()
    max_rounds = 1
    memory: int = 8

    def __call__(self, batch: Batch, target: int) -> Choice:
        groups = int(batch.group_id.max()) + 1
        return Choice(torch.ones(groups, dtype=torch.bool), replay=torch.arange(groups) >= groups - self.memory)


@method(
    Card(
        title="Contrastive Policy Gradient: aligning LLMs on sequence-level scores in a supervised-friendly fashion",
        paper="arXiv 2406.19185",
        year=2024,
        family="language",
        idea="weigh any two scored responses of one prompt by the difference of their regularised rewards",
        changes=("loss", "optimiser"),
        composes_with="samplers, rollouts and rewards; the loss reads rewards, so an advantage only steers selections",
        claim="on the paper's bandit it alone reaches the optimum; IPO and off-policy policy gradients stop elsewhere",
        example="anypolicy train copg --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.92 with seed 0",
        conflicts={
            ("loss", "d3s.selection"): "the loss needs the log-probability of whole responses, the selection drops "
            "tokens of them: keep another selection"
        },
        metrics={
            "pairs/square": "mean over pairs of (ΔR − β Δ ln(π/π_ref))² / (2β), what the loss minimises",
            "pairs/dropped": "pairs with a reward or log-probability that is not finite, per update",
        },
    )
)
def copg(
    beta: knobs.Beta = 0.06,
    group_size: knobs.GroupSize = 8,
    responses: Annotated[Literal["sampled", "recorded"], Knob("sampled, or recorded ones with scores")] = "sampled",
    replay: Annotated[int, Knob("newest groups that are learnt from again in the next step", least=0)] = 0,
) -> GroupRecipe:
    """All pairs of a group; responses sampled, from a file of scored ones, or of earlier steps too."""
    base = grpo(group_size)
    recipe = replace(base, loss=ContrastiveLoss(beta), optimiser=replace(base.optimiser, epochs=2))
    if responses == "recorded":
        recipe = replace(recipe, rollout=RecordedRollout(group_size), reward=RecordedReward())
    return replace(recipe, selection=Replay(replay) if replay else KeepAll())
