"""IPO: identity preference optimisation, a squared distance to a fixed margin.

Paper: arXiv 2310.12036 (eq. 17, algorithm 1). The scaling `scaled`: arXiv 2405.08448, appendix B.
Idea: DPO's loss falls for ever where all labels agree, whatever β; a margin of 1/(2β) is enough.
Changes: rollout and reward (recorded responses with their scores), selection (pairs), loss.
Silent: sums or means of token log-probabilities. The authors have said since that they mean means over tokens, as TRL
computes it, so `mean` is the default; with `sum` the margin that is enough does not grow with the length.
Differs: `scaled` is β² times `sum`: the same minimiser, other steps.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.knobs import Knob
from anypolicy.methods.preference import CONFLICTS
from anypolicy.methods.preference.dpo import recorded_pairs
from anypolicy.parts.pairing import Pairing
from anypolicy.parts.preference import scaled_squared, squared
from anypolicy.stages.needs import Needs
from anypolicy.stages.pairs import Pair, PairLoss, check_positive
from anypolicy.stages.recipe import GroupRecipe

Form = Literal["mean", "sum", "scaled"]


@dataclass(frozen=True)
class Squared:
    """(h − 1/(2β))², h of means or of sums; `scaled`: (βh − 1/2)² of sums."""

    needs = Needs(reference=True)
    beta: float = 0.1
    form: Form = "mean"

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)

    def __call__(self, pair: Pair) -> Float[Tensor, " pairs"]:
        if self.form == "scaled":
            return scaled_squared(pair.margin, self.beta)
        return squared(pair.mean_margin if self.form == "mean" else pair.margin, self.beta)


@method(
    Card(
        title="A general theoretical paradigm to understand learning from human preferences",
        paper="arXiv 2310.12036",
        year=2023,
        family="preference",
        idea="bring the margin of every pair to 1/(2β) and no further",
        changes=("rollout", "reward", "selection", "loss"),
        composes_with="samplers, rollouts and rewards of sampled responses, other references",
        claim="baseline of the claims of other methods",
        example="anypolicy train ipo --task tabular-lock:recorded=4 --steps 60",
        look_at="probe/success: 0.23 to 0.71 with seed 0",
        conflicts=CONFLICTS,
        no_signal=(),
    )
)
def ipo(
    beta: knobs.Beta = 0.1,
    form: Annotated[Form, Knob("log-ratios are summed over tokens, or their means")] = "mean",
    pairing: Annotated[Pairing, Knob("which responses of a prompt are compared")] = "best_worst",
    window: knobs.StreamWindow = 0,
) -> GroupRecipe:
    """Recorded pairs in shuffled epochs, β = 0.1 on means over tokens."""
    return recorded_pairs(PairLoss(Squared(beta, form)), pairing, window)
