"""Bradley–Terry: a reward model learnt from preference pairs.

Paper: arXiv 2203.02155 (InstructGPT), eq. 1; the model of choices is Bradley and Terry's of 1952.
Idea: the chosen response is preferred with probability σ(r_w − r_l), so maximise the likelihood of what was chosen.
Changes: nothing of a policy; it trains what `--reward-model` gives to any method that learns from rewards.
Silent: the model beside its trunk; here one linear output on the last token, as in arXiv 2009.01325.
Differs: pairs of one prompt may stand in different steps (the paper keeps all comparisons of a prompt in one). The
margin m inside σ(r_w − r_l − m) is Llama 2's (arXiv 2307.09288, eq. 2); the term (r_w + r_l)² that keeps scores near 0
is that of arXiv 2312.09244. Both are off.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.loops.reward_model import PreferenceRecipe
from anypolicy.stages.recipe import Optimiser


def preference_loss(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"], margin: Float[Tensor, " pairs"] | float = 0.0
) -> Float[Tensor, " pairs"]:
    """−log σ(r_w − r_l − m)."""
    return -logsigmoid(chosen - rejected - margin)


@dataclass(frozen=True)
class BradleyTerry:
    """−log σ(r_w − r_l − m) + centre_coef · (r_w + r_l)²; m = 0 without `needs_margin`."""

    needs_margin: bool = False
    centre_coef: float = 0.0

    def __call__(
        self, chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"], margin: Float[Tensor, " pairs"]
    ) -> dict[str, Float[Tensor, " pairs"]]:
        used = margin if self.needs_margin else torch.zeros_like(margin)
        terms = {"preference": preference_loss(chosen, rejected, used)}
        if self.centre_coef:
            terms["centre"] = self.centre_coef * (chosen + rejected).square()
        return terms


@method(
    Card(
        title="Bradley–Terry reward model",
        paper="arXiv 2203.02155",
        year=2022,
        family="reward-model",
        idea="learn a score whose differences explain which of two responses was preferred",
        changes=(),
        composes_with="gives rewards to every method of the language family (--reward-model)",
        claim="part of the claims of methods that learn from a learned reward",
        no_signal=(),
    ),
)
def bradley_terry(
    pairs: Annotated[int, Knob("pairs in a step", least=1)] = 64,
    margin: Annotated[bool, Knob("the loss asks for a margin where pairs have one")] = False,
    centre_coef: Annotated[float, Knob("weight of the squared sum of both rewards", least=0)] = 0.0,
) -> PreferenceRecipe:
    """One epoch of AdamW at 9e-6, 64 pairs a step."""
    if centre_coef < 0:
        raise InputError("bradley-terry.centre_coef", centre_coef, "use 0 or more")
    return PreferenceRecipe(BradleyTerry(margin, centre_coef), pairs, Optimiser(lr=9e-6))
