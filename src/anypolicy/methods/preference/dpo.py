"""DPO: direct preference optimisation, the base of the preference family.

Paper: arXiv 2305.18290 (eq. 7). Label smoothing: arXiv 2403.00409 (robust), its conservative form from the authors'
note on cDPO. Soft labels follow from the same Bradley–Terry model. The added likelihood term: arXiv 2404.19733.
Idea: the policy that is optimal for a reward and a divergence from a reference *is* a reward, β ln(π/π_ref), so fit
that one to the preferences, as a reward model is fitted, and need neither reward model nor sampling.
Changes: rollout and reward (recorded responses with their scores), selection (pairs), loss.
Silent: pairs of more than two recorded responses; here the best with the worst, equal scores and equal texts dropped.
Differs: the paper uses RMSprop with 150 updates of warm-up; here AdamW without (`lr` 1e-6 as there). TRL counts a pair
without a token as ln 2; here an empty response is an error. Log-probabilities are sums over tokens, except in the form
`per-token` (TRL's `sigmoid_norm`, another thing than RSO's sigmoid-norm).
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.methods.preference import CONFLICTS
from anypolicy.parts.pairing import Pairing
from anypolicy.parts.preference import robust_sigmoid, sigmoid, soft_sigmoid
from anypolicy.stages.common import UniformSampler
from anypolicy.stages.needs import Needs
from anypolicy.stages.pairs import MakePairs, Pair, PairLoss, check_positive
from anypolicy.stages.recipe import GroupRecipe, Loss
from anypolicy.stages.recorded import RecordedReward, RecordedRollout, StreamSampler

Form = Literal["sigmoid", "robust", "soft", "per-token"]


@dataclass(frozen=True)
class Sigmoid:
    """−log σ(βh) in one of its forms: `sigmoid`, with label smoothing the conservative one; `robust`, unbiased under so
    many flipped labels; `soft`, with P(chosen is better) = σ(difference of the scores); `per-token`, h of means."""

    needs = Needs(reference=True)
    beta: float = 0.1
    smoothing: float = 0.0
    form: Form = "sigmoid"

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if not 0 <= self.smoothing < 0.5:
            raise InputError("smoothing", self.smoothing, "use a share of flipped labels in [0, 0.5)")
        if self.smoothing and self.form == "soft":
            raise InputError("smoothing", self.smoothing, "soft labels say themselves how sure they are: use 0")

    def __call__(self, pair: Pair) -> Float[Tensor, " pairs"]:
        if self.form == "robust":
            return robust_sigmoid(pair.margin, self.beta, self.smoothing)
        if self.form == "soft":
            return soft_sigmoid(pair.margin, self.beta, torch.sigmoid(pair.chosen.reward - pair.rejected.reward))
        return sigmoid(pair.mean_margin if self.form == "per-token" else pair.margin, self.beta, self.smoothing)


def recorded_pairs(loss: Loss, pairing: Pairing, window: int) -> GroupRecipe:
    """Pairs among recorded responses: shuffled epochs, or (`window` > 0) a run's own stream in its order, with the
    batches of so many steps shuffled."""
    base = grpo()
    return replace(
        base, sampler=StreamSampler(window) if window else UniformSampler(), rollout=RecordedRollout(8),
        reward=RecordedReward(), selection=MakePairs(pairing), loss=loss, optimiser=replace(base.optimiser, lr=1e-6),
    )  # fmt: skip


@method(
    Card(
        title="Direct Preference Optimization: your language model is secretly a reward model",
        paper="arXiv 2305.18290",
        year=2023,
        family="preference",
        idea="fit β ln(π/π_ref), the reward that the policy itself is, to preferences as one would fit a reward model",
        changes=("rollout", "reward", "selection", "loss"),
        composes_with="samplers, and rollouts and rewards of sampled responses: its loss and selection with those of a "
        "method that samples are online DPO; other references",
        claim="baseline of the claims of other methods; loss and gradient equal TRL's",
        example="anypolicy train dpo --task tabular-lock:recorded=4 --steps 60",
        look_at="probe/success: 0.23 to 0.74 with seed 0",
        conflicts=CONFLICTS,
        no_signal=(),
    )
)
def dpo(
    beta: knobs.Beta = 0.1,
    smoothing: Annotated[float, Knob("share of labels taken to be wrong", least=0, below=0.5)] = 0.0,
    form: Annotated[Form, Knob("form of the smoothed loss")] = "sigmoid",
    nll_coef: Annotated[float, Knob("weight of the chosen response's negative log-likelihood", least=0)] = 0.0,
    pairing: Annotated[Pairing, Knob("which responses of a prompt are compared")] = "best_worst",
    window: knobs.StreamWindow = 0,
) -> GroupRecipe:
    """Recorded pairs in shuffled epochs, β = 0.1, the reference as the run began."""
    return recorded_pairs(PairLoss(Sigmoid(beta, smoothing, form), nll_coef), pairing, window)
