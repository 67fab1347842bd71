"""SLiC-HF: sequence likelihood calibration with human feedback.

Paper: arXiv 2305.10425 (eq. 1).
Idea: the chosen response shall be likelier than the rejected one by a margin δ; a likelihood term on a good response,
instead of a reference policy, keeps the policy from drifting.
Changes: rollout and reward (recorded responses with their scores), selection (pairs), loss.
Silent: δ and λ of the experiments; here 1 and 0.5, their usual values.
Differs: the likelihood term is on the chosen response, the paper's on the fine-tuning target where there is one. The
hinge of arXiv 2309.06657, max(0, 1 − γ(ℓ_w − ℓ_l)), is γ times this one with δ = 1/γ and λ = 0. Log-probabilities are
sums over tokens. There is no reference policy: margins are those of log-probabilities, and evaluations measure a
divergence only from a `--reference` that is named. The learning rate is that of DPO, 1e-6; the paper's, of T5, is 1e-4.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.preference import CONFLICTS
from anypolicy.methods.preference.dpo import recorded_pairs
from anypolicy.parts import preference
from anypolicy.parts.pairing import Pairing
from anypolicy.stages.needs import Needs
from anypolicy.stages.pairs import Pair, PairLoss, check_positive
from anypolicy.stages.recipe import GroupRecipe


@dataclass(frozen=True)
class Calibration:
    """max(0, δ − ℓ_w + ℓ_l) − λ ℓ_w."""

    needs = Needs()
    delta: float = 1.0
    coef: float = 0.5

    def __post_init__(self) -> None:
        check_positive(delta=self.delta)
        if self.coef < 0:
            raise InputError("coef", self.coef, "use 0 or more")

    def __call__(self, pair: Pair) -> Float[Tensor, " pairs"]:
        return preference.slic(pair.chosen.logp, pair.rejected.logp, pair.chosen.logp, self.delta, self.coef)


@method(
    Card(
        title="SLiC-HF: sequence likelihood calibration with human feedback",
        paper="arXiv 2305.10425",
        year=2023,
        family="preference",
        idea="a hinge on the pair's log-probabilities, and likelihood of the chosen response instead of a reference",
        changes=("rollout", "reward", "selection", "loss"),
        composes_with="samplers, rollouts and rewards of sampled responses",
        claim="baseline of the claims of other methods",
        example="anypolicy train slic --task tabular-lock:recorded=4 --steps 60",
        look_at="probe/success: 0.23 to 0.95 with seed 0",
        conflicts=CONFLICTS,
        no_signal=(),
    )
)
def slic(
    delta: Annotated[float, Knob("margin δ, nats", least=0)] = 1.0,
    coef: Annotated[float, Knob("weight of the reference responses' likelihood", least=0)] = 0.5,
    pairing: Annotated[Pairing, Knob("which responses of a prompt are compared")] = "best_worst",
    window: knobs.StreamWindow = 0,
) -> GroupRecipe:
    """Recorded pairs in shuffled epochs, margin 1, half the likelihood of the chosen response."""
    return recorded_pairs(PairLoss(Calibration(delta, coef)), pairing, window)
