"""Iterative DPO: rounds of sampling, labelling and one pass of DPO from the policy of the round before.

Paper: arXiv 2401.10020 and 2312.16682, among others; there is no first one.
Idea: offline DPO improves the policy that wrote the pairs, so let the improved one write the next.
Changes: rollout (n responses), selection (best and worst), loss, optimiser (one pass of mini-batches), reference.
Silent: which reference; here that of the round (`round`), or the policy as the run began (`init`), another method.
Differs: a round is one step of the loop: the responses of all its `prompts` are sampled by the policy at its beginning,
then `minibatches` updates make one pass over their pairs. Ties make no pair. Sums over tokens.
"""

from dataclasses import replace
from typing import Annotated, Literal

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.knobs import Knob
from anypolicy.methods.preference import CONFLICTS
from anypolicy.methods.preference.dpo import Sigmoid
from anypolicy.methods.preference.online_dpo import sampled_pairs
from anypolicy.parts.pairing import Pairing
from anypolicy.stages.pairs import PairLoss
from anypolicy.stages.recipe import GroupRecipe
from anypolicy.stages.reference import Fixed, PerRound


@method(
    Card(
        title="Iterative direct preference optimisation",
        paper="arXiv 2312.16682",
        year=2023,
        family="preference",
        idea="rounds: sample from the policy, keep best and worst, one pass of DPO with that policy as reference",
        changes=("rollout", "selection", "loss", "optimiser", "reference"),
        composes_with="samplers, rewards, other losses of pairs",
        claim="baseline of the claims of other methods",
        example="anypolicy train iterative-dpo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.80 with seed 0",
        conflicts=CONFLICTS,
    )
)
def iterative_dpo(
    beta: knobs.Beta = 0.1,
    samples: Annotated[int, Knob("random draws", least=1)] = 4,
    pairing: Annotated[Pairing, Knob("which responses of a prompt are compared")] = "best_worst",
    minibatches: Annotated[int, Knob("mini-batches of a pass", least=1)] = 4,
    reference: Annotated[
        Literal["round", "init"], Knob("the reference: renewed every round, or the policy as the run began")
    ] = "round",
) -> GroupRecipe:
    """Four responses a prompt, the best with the worst, four updates a round, reference renewed every round."""
    recipe = sampled_pairs(PairLoss(Sigmoid(beta)), samples, pairing)
    return replace(
        recipe, optimiser=replace(recipe.optimiser, minibatches=minibatches),
        reference=PerRound() if reference == "round" else Fixed(),
    )  # fmt: skip
