"""D3S: dynamic dual-level down-sampling; learn from fewer rows and fewer tokens.

Paper: arXiv 2509.22115, sample level (subset of largest advantage variance over the whole batch), token level
(|advantage| · entropy), schedule; Lemma 1 and Proposition 2 are why variance.
Idea: the rows with extreme advantages and the tokens where the policy was undecided carry most of the gradient; begin
with few of them and relax.
Changes: selection (rows, tokens, schedule), loss (token mean over the kept tokens).
Silent: the four values of the schedule; here a quarter to three quarters of the rows, 0.2 to 0.8 of their tokens. The
pool of the token level is all kept rows, the entropy that of the sampling distribution (under its temperature).
Differs: no code was published. What is dropped is not computed either: dropped rows have no forward pass, kept rows end
at their last kept token, logits are made at kept tokens only, and the engine records the entropy while it samples. A
run made longer stretches its schedule from where it is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.stages.common import PolicyLoss
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import Choice, GroupRecipe

Scope = Literal["batch", "group"]


def spread_subset(advantage: Float[Tensor, " n"], size: int) -> Int[Tensor, " size"]:
    """The `size` entries of largest population variance: the i smallest and size − i largest for the best i, found by
    prefix sums; the smallest such i wins."""
    order = torch.sort(advantage, stable=True).indices
    x = (advantage - advantage.mean()).double()[order]
    first, second = (torch.cat([x.new_zeros(1), y.cumsum(0)]) for y in (x, x.square()))
    low = torch.arange(size + 1)
    high = len(x) - (size - low)
    mean, square = ((s[low] + s[-1] - s[high]) / size for s in (first, second))
    variance = square - mean.square()
    best = int((variance >= variance.max() * (1 - 1e-12)).nonzero()[0])
    return torch.cat([order[:best], order[len(x) - (size - best) :]])


def top_tokens(
    key: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], share: float
) -> Bool[Tensor, "rows tokens"]:
    """The ceil(share · n) tokens of largest key among the n masked ones; the first of equal ones."""
    number = math.ceil(share * int(mask.sum()) - 1e-9)
    ranked = torch.sort(key[mask], descending=True, stable=True).indices
    kept = torch.zeros(int(mask.sum()), dtype=torch.bool)
    kept[ranked[:number]] = True
    return torch.zeros_like(mask).masked_scatter(mask, kept)


def between(start: float, end: float, progress: float) -> float:
    """(1 − p) · start + p · end."""
    return (1 - progress) * start + progress * end


@dataclass(frozen=True)
class DualLevelSelection:
    """Rows by the variance of their advantages, then tokens by |advantage| · entropy; both shares follow the progress
    of the run. Nothing is kept where every advantage is 0."""

    needs = Needs(entropy=True, progress=True)
    max_rounds = 1
    rows: tuple[float, float] = (0.25, 0.75)
    tokens: tuple[float, float] = (0.2, 0.8)
    scope: Scope = "batch"

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("tokens", self.tokens)):
            for end, share in zip(("init", "final"), value, strict=True):
                if not 0 < share <= 1:
                    raise InputError(f"{name}_{end}", share, "use a share in (0, 1]")

    def pools(self, batch: Batch, real: Tensor) -> Iterator[Tensor]:
        """The trajectories among which rows are chosen: all, or those of each group."""
        if self.scope == "batch":
            yield real
            return
        for g in torch.unique(batch.group_id[real]):
            yield real[batch.group_id[real] == g]

    def __call__(self, batch: Batch, target: int) -> Choice:
        assert batch.advantage is not None
        assert batch.entropy is not None
        assert batch.progress is not None
        length = batch.length
        total = torch.where(batch.mask, batch.advantage, 0).sum(1)
        advantage = total.new_zeros(len(batch.reward)).index_add_(0, batch.trajectory, total) / length.clamp(min=1)
        chosen = torch.zeros(len(advantage), dtype=torch.bool)
        for pool in self.pools(batch, length.nonzero().squeeze(1)):
            if (advantage[pool] != 0).any():
                size = int(between(*self.rows, batch.progress) * len(pool) + 0.5)
                size = min(max(size, 2), len(pool))
                chosen[pool[spread_subset(advantage[pool], size)]] = True
        kept = batch.mask & chosen[batch.trajectory][:, None]
        undefined = batch.entropy.isnan() & batch.mask
        key = batch.advantage.abs() * batch.entropy.nan_to_num(0.0)
        mask = top_tokens(key, kept, between(*self.tokens, batch.progress))
        groups = torch.zeros(int(batch.group_id.max()) + 1, dtype=torch.bool)
        groups[batch.group_id[batch.trajectory[mask.any(1)]]] = True
        shares = {
            "selection/rows": float(chosen.sum()) / len(chosen),
            "selection/tokens": float(mask.sum()) / max(int(batch.mask.sum()), 1),
            "selection/undefined": float(undefined.sum()),
        }
        return Choice(groups, mask=mask, metrics=shares)


@method(
    Card(
        title="Learning More with Less: Dynamic Dual-Level Down-Sampling for Efficient Policy Optimization",
        paper="arXiv 2509.22115",
        year=2025,
        family="language",
        idea="train on the rows of largest advantage variance and their most undecided tokens, fewer at the beginning",
        changes=("selection", "loss"),
        composes_with="every sampler and advantage, losses that can do with a part of a response",
        claim="it reaches the success of GRPO at its best rate with less than a fifth of the tokens of GRPO's steps",
        example="anypolicy train d3s --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.80 with seed 0",
        metrics={
            "selection/rows": "share of the sampled responses that is trained on",
            "selection/tokens": "share of the sampled tokens that is trained on",
            "selection/undefined": "tokens whose recorded entropy is not a number; they count as 0",
        },
    )
)
def d3s(
    group_size: knobs.GroupSize = 8,
    clip: knobs.ClipRange = 0.2,
    kl_coef: knobs.KLCoef = 1e-3,
    rows_init: Annotated[float, Knob("share of rows kept at the beginning", above=0, most=1)] = 0.25,
    rows_final: Annotated[float, Knob("share of rows kept at the end", above=0, most=1)] = 0.75,
    tokens_init: Annotated[float, Knob("share of tokens kept at the beginning", above=0, most=1)] = 0.2,
    tokens_final: Annotated[float, Knob("share of tokens kept at the end", above=0, most=1)] = 0.8,
    scope: Annotated[Scope, Knob("tokens are ranked over the batch, or in each response")] = "batch",
) -> GroupRecipe:
    """GRPO on the selected rows and tokens. Shares of 1 for tokens give the paper's sample level alone."""
    base = grpo(group_size, clip, kl_coef)
    assert isinstance(base.loss, PolicyLoss)
    selection = DualLevelSelection((rows_init, rows_final), (tokens_init, tokens_final), scope)
    return replace(base, selection=selection, loss=replace(base.loss, aggregation="token-mean"))
