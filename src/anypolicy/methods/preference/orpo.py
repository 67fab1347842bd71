"""ORPO: odds ratio preference optimisation.

Paper: arXiv 2403.07691, eq. 3 (odds), eq. 6 (objective), eq. 7 (odds ratio); λ from section 5.1.
Idea: fine-tune on the chosen response and in the same step make its odds larger than those of the rejected one:
−ℓ_w/|w| − λ log σ(log odds_w − log odds_l), odds = p/(1 − p) of p = exp(ℓ/|y|). No reference policy.
Changes: rollout and reward (recorded responses with their scores), selection (pairs), loss.
Silent: nothing.
Differs: the likelihood term is on the chosen response alone, as in the paper; the authors' code puts it on prompt and
response. The learning rate is that of DPO, 1e-6; the paper's is about 8e-6.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.preference import CONFLICTS
from anypolicy.methods.preference.dpo import recorded_pairs
from anypolicy.parts.pairing import Pairing
from anypolicy.stages.needs import Needs
from anypolicy.stages.pairs import Pair, PairLoss
from anypolicy.stages.recipe import GroupRecipe


def log_odds(mean: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(p/(1 − p)) of a mean log-probability log p < 0."""
    return mean - torch.log(-torch.expm1(mean))


@dataclass(frozen=True)
class OddsRatio:
    """−ℓ_w/|w| − λ log σ(log odds_w − log odds_l)."""

    needs = Needs()
    lam: float = 0.1

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise InputError("lam", self.lam, "use 0 or more")

    def __call__(self, pair: Pair) -> Float[Tensor, " pairs"]:
        chosen, rejected = (r.logp / r.length.clamp(min=1) for r in pair)
        top = -torch.finfo(chosen.dtype).tiny  # a response of probability 1 has no odds
        ratio = log_odds(chosen.clamp(max=top)) - log_odds(rejected.clamp(max=top))
        return -chosen - self.lam * logsigmoid(ratio)


@method(
    Card(
        title="ORPO: monolithic preference optimization without reference model",
        paper="arXiv 2403.07691",
        year=2024,
        family="preference",
        idea="supervised fine-tuning on the chosen response with an odds ratio against the rejected one, in one step",
        changes=("rollout", "reward", "selection", "loss"),
        composes_with="samplers, rollouts and rewards of sampled responses",
        claim="baseline of the claims of other methods",
        example="anypolicy train orpo --task tabular-lock:recorded=4 --steps 60",
        look_at="probe/success: 0.23 to 0.95 with seed 0",
        conflicts=CONFLICTS,
        no_signal=(),
    )
)
def orpo(
    lam: Annotated[float, Knob("weight of the odds ratio", least=0)] = 0.1,
    pairing: Annotated[Pairing, Knob("which responses of a prompt are compared")] = "best_worst",
    window: knobs.StreamWindow = 0,
) -> GroupRecipe:
    """Recorded pairs in shuffled epochs, λ = 0.1."""
    return recorded_pairs(PairLoss(OddsRatio(lam)), pairing, window)
