"""SimPO: simple preference optimisation with a reference-free reward.

Paper: arXiv 2405.14734, eq. 3 (reward), eq. 6 (objective); β and γ from appendix B.
Idea: the mean log-probability of a response, by which it is generated, is the reward, and the better one shall be ahead
of the worse one by a margin γ: −log σ(β (ℓ_w/|w| − ℓ_l/|l|) − γ). No reference policy.
Changes: rollout and reward (recorded responses with their scores), selection (pairs), loss.
Silent: nothing.
Differs: γ is given as it stands in the objective, not as the ratio γ/β of the authors' code (there 0.5 with β = 2).
The learning rate is that of DPO, 1e-6; theirs is 6e-7 with these β and γ.
"""

from dataclasses import dataclass
from typing import Annotated

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
from anypolicy.stages.pairs import Pair, PairLoss, check_positive
from anypolicy.stages.recipe import GroupRecipe


@dataclass(frozen=True)
class MeanMargin:
    """−log σ(β (ℓ_w/|w| − ℓ_l/|l|) − γ)."""

    needs = Needs()
    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        if self.gamma < 0:
            raise InputError("gamma", self.gamma, "use 0 or more")

    def __call__(self, pair: Pair) -> Float[Tensor, " pairs"]:
        chosen, rejected = (r.logp / r.length.clamp(min=1) for r in pair)
        return -logsigmoid(self.beta * (chosen - rejected) - self.gamma)


@method(
    Card(
        title="SimPO: simple preference optimization with a reference-free reward",
        paper="arXiv 2405.14734",
        year=2024,
        family="preference",
        idea="the mean log-probability of a response is its reward, and the better one is ahead by a margin",
        changes=("rollout", "reward", "selection", "loss"),
        composes_with="samplers, rollouts and rewards of sampled responses",
        claim="baseline of the claims of other methods",
        example="anypolicy train simpo --task tabular-lock:recorded=4 --steps 60",
        look_at="probe/success: 0.23 to 0.49 with seed 0",
        conflicts=CONFLICTS,
        no_signal=(),
    )
)
def simpo(
    beta: Annotated[float, Knob("scale of mean log-probabilities", above=0)] = 2.0,
    gamma: Annotated[float, Knob("margin", least=0)] = 1.0,
    pairing: Annotated[Pairing, Knob("which responses of a prompt are compared")] = "best_worst",
    window: knobs.StreamWindow = 0,
) -> GroupRecipe:
    """Recorded pairs in shuffled epochs, β = 2, margin 1."""
    return recorded_pairs(PairLoss(MeanMargin(beta, gamma)), pairing, window)
