"""OPA-DPO: preferred answers are made on-policy before DPO learns from an expert's corrections of the policy's answers.

Paper: arXiv 2501.09695 (CVPR 2025), read through its abstract, official code and figure of preference pairs.
Idea: DPO cannot teach what its reference hardly ever says, and an expert's corrections are just that. A short
fine-tuning on the data set's answers and the corrected ones comes first; DPO then starts from, and is referred to, that
policy. Corrected sentences count more, and an answer under the image must beat itself under a masked image.
Changes: rollout (reference, generated and revised answer, two of them under a masked image too), reward (none for these
two), loss, optimiser.
Silent: answers without images have no image terms. An item whose revision is its answer drops that pair, where the
gradient is 0; denominators count it. End tokens weigh as the last token of their answer (the code: only in revisions);
an answer that was cut off has none.
Differs: the fine-tuning is a run of `sft` before this one (docs/preferences.md), from the authors' lr 2e-5, two epochs.
Their code takes the logistic loss at every position of the padded answers and its mean (`aggregate` token_position,
padded to the run's max_tokens), its anchor pushes the revision *down* and counts twice (`anchor_code_sign`); their
figure says both preferred answers above `delta`, as here. They mask single pixels (as here), patches, or image tokens,
use rank-256 adapters (`--lora-rank`) and lower the rate along a cosine; here it is constant after the warm-up. Weights
of unequal sum give a common shift of all log-ratios a margin: the method's, not an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.methods.preference import CONFLICTS
from anypolicy.parts.preference import pair_metrics, sequence_sum
from anypolicy.policies.language.base import Scores
from anypolicy.stages.needs import Needs
from anypolicy.stages.pairs import check_positive
from anypolicy.stages.recipe import GroupRecipe, LossTerms
from anypolicy.stages.recorded import RecordedReward
from anypolicy.stages.revised import Kind, RevisedRollout, by_kind

LANGUAGE = (2.5, 2.0, 1.5, 1.0)
"""S of the sentences with scores 1 to 4."""
IMAGE = 3.0
"""I of a sentence that misread the image; of all others 1."""
TERMS = {
    "reference": (Kind.REFERENCE, Kind.GENERATED), "revision": (Kind.REVISED, Kind.GENERATED),
    "reference_image": (Kind.REFERENCE, Kind.MASKED_REFERENCE), "revision_image": (Kind.REVISED, Kind.MASKED_REVISED),
    "reference_anchor": (Kind.REFERENCE, Kind.REFERENCE), "revision_anchor": (Kind.REVISED, Kind.REVISED),
}  # fmt: skip
"""The answers that every term of the loss is about."""
SUMS = ("pairs/chosen", "pairs/rejected", "opa/revised", "opa/masked_reference", "opa/masked_revised")
Ratios = Float[Tensor, "items tokens"]


def preferred(chosen: Ratios, rejected: Ratios, beta: float, padded: int | None = None) -> Float[Tensor, " items"]:
    """−log σ(β[Σ_t chosen − Σ_t rejected]) of (weighted) log-ratios, 0 at padding; with `padded` −log σ(β(chosen_t −
    rejected_t)) at every position, the mean over so many of them."""
    if padded is None:
        return -logsigmoid(beta * (chosen.sum(1) - rejected.sum(1)))
    return math.log(2) + (-logsigmoid(beta * (chosen - rejected)) - math.log(2)).sum(1) / padded


def anchored(
    ratio: Ratios, beta: float, delta: float, padded: int | None = None, sign: int = 1
) -> Float[Tensor, " items"]:
    """−log σ(±(β Σ_t a_t − δ)): an answer's reward is to lie above δ (for −: below); with `padded` as above."""
    if padded is None:
        return -logsigmoid(sign * (beta * ratio.sum(1) - delta))
    padding = float(-logsigmoid(torch.tensor(-sign * delta, dtype=torch.float64)))
    return padding + (-logsigmoid(sign * (beta * ratio - delta)) - padding).sum(1) / padded


def losses(
    a: Float[Tensor, "kinds items tokens"], weight: Float[Tensor, "kinds items tokens"], beta: float = 0.1,
    delta: float = 0.0, padded: int | None = None, code_sign: bool = False,
) -> dict[str, Float[Tensor, " items"]]:  # fmt: skip
    """L1 to L4 and both parts of L_anc, by the names of `TERMS`, from a_t = log π − log π_ref of the five answers (0 at
    padding). `weight` holds S for the generated and the revised answer, I for the masked revised one."""
    reference, generated, revised, masked_reference, masked_revised = a
    s_generated, s_revised, i = weight[Kind.GENERATED], weight[Kind.REVISED], weight[Kind.MASKED_REVISED]
    twice, sign = (2, -1) if code_sign else (1, 1)
    return {
        "reference": preferred(reference, generated, beta, padded),
        "revision": preferred(s_revised * revised, s_generated * generated, beta, padded),
        "reference_image": preferred(reference, masked_reference, beta, padded),
        "revision_image": preferred(i * revised, i * masked_revised, beta, padded),
        "reference_anchor": twice * anchored(reference, beta, delta, padded),
        "revision_anchor": twice * anchored(revised, beta, delta, padded, sign),
    }


def corrected(batch: Batch) -> Bool[Tensor, "rows tokens"]:
    """The tokens of revisions that weigh more than 1."""
    if batch.token_weight is None or batch.kind is None:
        return torch.zeros_like(batch.valid)
    return batch.valid & (batch.token_weight > 1) & (batch.kind[batch.trajectory] == Kind.REVISED)[:, None]


@dataclass(frozen=True)
class RevisionLoss:
    """c_s L1 + c_a L2 + γ_img (c_s L3 + c_a L4) + γ_anc L_anc, mean over the items of the whole optimiser batch."""

    needs = Needs(
        reference=True, kinds=True, responses=3, behaviour=False, sampling_temperature=False, whole_groups=True,
        whole_responses=True,
    )  # fmt: skip
    beta: float = 0.1
    reference_coef: float = 1.0
    revision_coef: float = 1.0
    image_coef: float = 0.2
    anchor_coef: float = 1.0
    delta: float = 0.0
    aggregate: Literal["sequence", "token_position"] = "sequence"
    anchor_code_sign: bool = False

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if min(c := self.coefficients().values()) < 0 or not any(c):
            raise InputError("coefficients", list(c), "use 0 or more, and not 0 for all")

    def coefficients(self) -> dict[str, float]:
        """Of every term."""
        c_s, c_a, image, anchor = self.reference_coef, self.revision_coef, self.image_coef, self.anchor_coef
        return dict(zip(TERMS, (c_s, c_a, image * c_s, image * c_a, anchor, anchor), strict=True))

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        kind = torch.full_like(batch.trajectory, -1) if batch.kind is None else batch.kind[batch.trajectory]
        return (kind >= 0) & ((kind < Kind.MASKED_REFERENCE) | (self.image_coef > 0))

    def baseline(self, batch: Batch, policy: Any, reference: Any) -> float:
        """The number of `corrected` tokens."""
        return float(corrected(batch).sum())

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms:
        assert batch.logp_ref is not None
        ref, total = batch.logp_ref.to(scores.logp.dtype), max(batch.counted().groups, 1)
        ratio, code_sign = torch.where(batch.valid, scores.logp - ref, 0), self.anchor_code_sign
        weight = torch.ones_like(ratio) if batch.token_weight is None else batch.token_weight.to(ratio.dtype)
        padded = None if self.aggregate == "sequence" else batch.max_tokens or ratio.shape[1]
        each = losses(by_kind(ratio, batch), by_kind(weight, batch, 1), self.beta, self.delta, padded, code_sign)
        share = by_kind(batch.weight.to(ratio.dtype) / total, batch)
        present, ids = by_kind(torch.ones(batch.rows), batch), by_kind(batch.response.where(batch.valid, -1), batch)
        terms = dict[str, Tensor]()
        for name, (chosen, other) in TERMS.items():
            differ = (ids[chosen] != ids[other]).any(1) if name == "revision" else 1
            terms[name] = (share[chosen] * present[other] * differ * each[name]).sum() * self.coefficients()[name]
        sums = by_kind(sequence_sum(ratio, batch.valid).detach(), batch)
        log = {name: x.sum() / total for name, x in zip(SUMS, sums, strict=True)}
        log["pairs/accuracy"] = pair_metrics(sums[0], sums[1])["pairs/accuracy"].sum() / total
        log["pairs/margin"] = log["pairs/chosen"] - log["pairs/rejected"]
        if batch.baseline:
            log["opa/corrected_logp_ref"] = torch.where(corrected(batch), ref, 0).sum() / batch.baseline
        log["opa/weighted"] = (batch.mask & (weight > 1)).sum() / max(batch.counted().tokens, 1)
        if batch.media is None:
            terms, log = ({k: v for k, v in x.items() if "image" not in k and "masked" not in k} for x in (terms, log))
        return LossTerms({k: v for k, v in terms.items() if self.coefficients()[k]}, log)


@method(
    Card(
        title="Mitigating hallucinations in large vision-language models via DPO: on-policy data hold the key",
        paper="arXiv 2501.09695",
        year=2025,
        family="preference",
        idea="fine-tune on an expert's corrections, so that what DPO then prefers is on-policy; weigh what was wrong "
        "more, and prefer an answer under its image to the same under a masked one",
        changes=("rollout", "reward", "loss", "optimiser"),
        composes_with="samplers, losses of pairs and of marked responses (its answers are scored), other references",
        claim="from a policy fine-tuned on the corrections it errs 0.15 less often than from the first one",
        example="anypolicy revise --task slots --prompts 500 --out runs/revisions.jsonl && anypolicy train "
        "opa-dpo --task runs/revisions.jsonl:task=slots --steps 40 --prompts 32 --lr 1e-3",
        look_at="eval/accuracy: 0.33 to 0.64 with seed 0",
        conflicts=CONFLICTS,
        no_signal=(),
        metrics={
            "opa/revised": "mean log-ratio ln π/π_ref of revised answers, in nats (pairs/chosen: of the references)",
            "opa/masked_reference": "the same of the references under the masked image",
            "opa/masked_revised": "the same of the revised answers under the masked image",
            "opa/corrected_logp_ref": "mean log-probability of a corrected token under the reference policy, in nats: "
            "how far off-policy the corrections are; it should be above −2 before the first step",
            "opa/weighted": "share of the answers' tokens that weigh more than 1",
        },
    )
)
def opa_dpo(
    beta: knobs.Beta = 0.1,
    reference_coef: Annotated[float, Knob("weight of the pair with the reference answer", least=0)] = 1.0,
    revision_coef: Annotated[float, Knob("weight of the pair with the revised answer", least=0)] = 1.0,
    image_coef: Annotated[float, Knob("weight of the pair with the masked picture", least=0)] = 0.2,
    anchor_coef: Annotated[float, Knob("weight of the anchors of chosen answers", least=0)] = 1.0,
    delta: Annotated[float, Knob("margin of the reference pair, nats")] = 0.0,
    mask_ratio: Annotated[float, Knob("share of the picture that is masked", least=0, most=1)] = 0.3,
    weighted: Annotated[bool, Knob("tokens weigh as the expert's scores say")] = True,
    aggregate: Annotated[
        Literal["sequence", "token_position"], Knob("log-ratios of a sequence, or of token positions")
    ] = "sequence",
    anchor_code_sign: Annotated[bool, Knob("the anchor's sign as in the authors' code")] = False,
) -> GroupRecipe:
    """Three answers an item, β = 0.1, γ_img = 0.2, γ_anc = 1, δ = 0, 30 % of the pixels masked, lr 1e-6."""
    base = grpo()
    rollout = RevisedRollout(LANGUAGE, IMAGE, mask_ratio) if weighted else RevisedRollout(mask_ratio=mask_ratio)
    loss = RevisionLoss(
        beta, reference_coef, revision_coef, image_coef, anchor_coef, delta, aggregate, anchor_code_sign
    )
    return replace(
        base, rollout=rollout, reward=RecordedReward(), loss=loss,
        optimiser=replace(base.optimiser, lr=1e-6, warmup=5),
    )  # fmt: skip
