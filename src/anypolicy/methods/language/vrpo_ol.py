"""VRPO-OL: policy gradient on the ratio of two ELBO estimates, all masks in one graph. BGPO's baseline.

Paper: arXiv 2510.11683v3, eq. 3–7 (there the online form of LLaDA 1.5's VRPO, arXiv 2505.19223).
Idea: a masked-diffusion model's likelihood is replaced by a Monte-Carlo estimate of its evidence lower bound, with the
same masks for both policies.
Changes: advantage (population std), loss (exp of the mean difference over masks), optimiser (AdamW 5e-7).
Silent: as BGPO. The paper has 4 masks (2 on code), the most its memory held.
Differs: not known; the online form was not published by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.knobs import Knob
from anypolicy.methods.language.bgpo import bgpo, elbo_ratio
from anypolicy.parts.elbo import MaskDraw
from anypolicy.policies.language.base import Policy
from anypolicy.stages.elbo import ElboLoss, elbo_distances, row_advantage
from anypolicy.stages.recipe import GroupRecipe, LossTerms


@dataclass(frozen=True)
class RatioLoss(ElboLoss):
    """−R̂, mean over responses: one part that holds the graphs of all masks."""

    samples: int = 4

    def passes(self, policy: Policy, batch: Batch, temperature: float) -> Iterator[LossTerms]:
        ell = self.before(policy, batch, temperature)
        d = ell - (ell.detach() if batch.before is None else batch.before[:, : self.samples])
        objective = batch.weight * elbo_ratio(d, row_advantage(batch))
        term = -objective.sum() / max(batch.counted().sequences, 1)
        yield LossTerms({"ratio": term}, elbo_distances(d.detach().mean(1), batch, 1))


@method(
    Card(
        title="Variance-Reduced Preference Optimization, online form",
        paper="arXiv 2505.19223",
        year=2025,
        family="language",
        idea="importance ratio of two Monte-Carlo estimates of the evidence lower bound on shared masks",
        changes=("advantage", "loss", "optimiser"),
        composes_with="samplers, rewards, selections and other advantages; needs a masked-diffusion policy",
        claim="baseline of BGPO's claim",
        example="anypolicy train vrpo-ol --task tiny-add:policy=masked-diffusion --prompts 8 --lr 3e-4 --steps 25",
        look_at="eval/accuracy: 0.41 to 0.47 with seed 0; too short a run to tell learning from chance",
    )
)
def vrpo_ol(
    group_size: knobs.GroupSize = 8,
    samples: Annotated[int, Knob("random draws", least=1)] = 4,
    draw: Annotated[MaskDraw, Knob("masks: a number of tokens is drawn first, or each token by itself")] = "count",
) -> GroupRecipe:
    """Group-normalised rewards, 4 masks a response in one graph, one AdamW step of 5e-7 a batch."""
    return replace(bgpo(group_size), loss=RatioLoss(samples, draw))
