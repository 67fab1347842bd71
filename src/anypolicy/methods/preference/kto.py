"""KTO: learning from responses that are good or bad, without pairs.

Paper: arXiv 2402.01306 (eq. 7, 8).
Idea: people weigh gains and losses from a point of reference; the reference point of a log-ratio is the divergence
from the reference policy, estimated on responses that belong to other prompts.
Changes: rollout and reward (recorded responses with their scores), loss.
Silent: what is good where scores are numbers; here a score above 0. With unequal numbers of good and bad responses keep
weight_desirable · n_good / (weight_undesirable · n_bad) between 1 and 4/3.
Differs: the estimate takes every response under the next prompt of the whole optimiser batch, so no split into
micro-batches changes it (TRL: inside each micro-batch); where a selection leaves a single prompt there is no update. It
costs two forward passes without gradient, and is clamped at 0 after the mean. Log-probabilities are sums over tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.knobs import Knob
from anypolicy.methods.preference import CONFLICTS
from anypolicy.methods.preference.dpo import dpo
from anypolicy.parts import preference
from anypolicy.policies.language.base import Scores
from anypolicy.stages.common import KeepAll
from anypolicy.stages.needs import Needs
from anypolicy.stages.pairs import behaviour_metrics, check_positive, responses
from anypolicy.stages.recipe import GroupRecipe, LossTerms
from anypolicy.stages.recorded import RecordedReward, RecordedRollout


def mismatched(batch: Batch) -> Batch:
    """Every response under the next context of the batch, the last one's under the first."""
    used, index = torch.unique(batch.context_index, return_inverse=True)
    return replace(batch, context_index=used[(index + 1) % len(used)])


@dataclass(frozen=True)
class KahnemanTversky:
    """Mean over the responses of λ (1 − σ(±β(u − ρ))), + for good and − for bad ones."""

    needs = Needs(reference=True, prompts=2, behaviour=False, sampling_temperature=False, whole_responses=True)
    beta: float = 0.1
    weight_desirable: float = 1.0
    weight_undesirable: float = 1.0

    def __post_init__(self) -> None:
        check_positive(beta=self.beta, weight_desirable=self.weight_desirable,
                       weight_undesirable=self.weight_undesirable)  # fmt: skip

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        rows = torch.isin(batch.trajectory, batch.trajectory[batch.mask.any(1)])
        return rows & (len(torch.unique(batch.context_index[rows])) >= self.needs.prompts)

    def baseline(self, batch: Batch, policy: Callable[[Batch], Tensor], reference: Callable[[Batch], Tensor]) -> float:
        """ρ of the optimiser batch."""
        other = mismatched(batch)
        r = responses(policy(other), replace(other, logp_ref=reference(other)))
        return float(preference.kto_baseline(r.ratio))

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms:
        assert batch.baseline is not None
        r, total = responses(scores.logp, batch), max(batch.counted().sequences, 1)
        good = r.reward > 0
        loss = preference.kto(
            r.ratio, batch.baseline, good, self.beta, self.weight_desirable, self.weight_undesirable
        )  # fmt: skip
        ratio: Float[Tensor, " n"] = r.ratio.detach()
        log = {"kto/baseline": torch.full_like(ratio, batch.baseline), "kto/desirable": good.to(ratio.dtype),
               "kto/right": (good == (ratio > batch.baseline)).to(ratio.dtype), "kl/proxy": ratio}  # fmt: skip
        shares = {name: value.sum() / total for name, value in log.items()}
        return LossTerms({"preference": (r.weight * loss).sum() / total}, behaviour_metrics(scores, batch) | shares)


@method(
    Card(
        title="KTO: model alignment as prospect theoretic optimization",
        paper="arXiv 2402.01306",
        year=2024,
        family="preference",
        idea="raise good and lower bad responses, as gains and losses from an estimated divergence to the reference",
        changes=("rollout", "reward", "loss"),
        composes_with="samplers, rollouts, rewards and selections; it reads rewards, so an advantage changes nothing",
        claim="baseline of the claims of other methods",
        example="anypolicy train kto --task tabular-lock:recorded=4 --steps 60",
        look_at="probe/success: 0.23 to 0.29 with seed 0; too short a run to tell learning from chance",
        conflicts=CONFLICTS
        | {
            (
                "loss",
                "iterative-dpo.optimiser",
            ): "its mini-batches of the groups that are kept may hold one prompt, which "
            "has no response of another: keep another optimiser"
        },
        no_signal=(),
        metrics={
            "kto/baseline": "ρ, the estimated divergence from which gains and losses are counted, in nats",
            "kto/desirable": "share of good responses",
            "kto/right": "share of responses whose log-ratio is on its own side of the baseline",
        },
    )
)
def kto(
    beta: knobs.Beta = 0.1,
    weight_desirable: Annotated[float, Knob("weight of good responses", least=0)] = 1.0,
    weight_undesirable: Annotated[float, Knob("weight of bad responses", least=0)] = 1.0,
) -> GroupRecipe:
    """Recorded responses, one or more a prompt, β = 0.1, good and bad with equal weight."""
    return replace(
        dpo(), rollout=RecordedRollout(8, least=1), reward=RecordedReward(), selection=KeepAll(),
        loss=KahnemanTversky(beta, weight_desirable, weight_undesirable),
    )  # fmt: skip
