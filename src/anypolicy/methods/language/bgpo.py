"""BGPO: boundary-guided policy optimisation of masked-diffusion language models.

Paper: arXiv 2510.11683v3, eq. 3–5 (ELBO samples), eq. 6–7 (objective), eq. 10–13 (the two bounds), eq. 18–19
(advantage, loss), algorithm 1.
Idea: the ratio of ELBOs, exp of a mean over masks, is bounded from below by a sum over masks, so each mask is
backwarded and freed by itself: memory does not grow with their number. On policy value and gradient are the same.
Changes: advantage (population std), loss (the bound; no clip, no KL, sums of token log-probabilities), optimiser
(AdamW 5e-7, one update a batch; `--minibatches 2` is the paper's off-policy variant).
Silent: population or sample std; here population and eps 1e-6. How masks are drawn beside t ~ U[0, 1]; here, by
default, their number is uniform, which has the same mean and far less variance. What a selection that drops tokens
means: dropped tokens are seen, the bound is that of the others given them. An advantage that differs from token to
token counts with its mean over the response. A response of several segments counts each as one.
Differs: authors' code is not in reach. θ_old are the weights at the beginning of the step, with the masks of the
update. On policy ℓ_old is ℓ_θ without gradient: no second pass. e^d is unbounded off policy where A < 0; the paper has
no cap (`d_max`), the largest d is logged.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.parts.elbo import MaskDraw
from anypolicy.policies.language.base import Policy
from anypolicy.stages.common import GroupAdvantage
from anypolicy.stages.elbo import ElboLoss, elbo_distances, row_advantage
from anypolicy.stages.recipe import GroupRecipe, LossTerms


def elbo_ratio(d: Float[Tensor, "rows samples"], advantage: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """R̂ = exp(mean over masks of d) · A, which needs the graphs of all masks at once (eq. 6–7)."""
    return d.mean(1).exp() * advantage


def bound(
    d: Float[Tensor, "*shape"], advantage: Float[Tensor, "*shape"], d_max: float | None = None
) -> Float[Tensor, "*shape"]:
    """n g_j, whose mean over masks is a lower bound of R̂ (eq. 10–13): (1 + d) A by e^x ≥ 1 + x where A ≥ 0, e^d A by
    Jensen's inequality where A < 0. e^d is computed only there: elsewhere it might overflow into the gradient."""
    worse = advantage < 0
    exponent = torch.where(worse, d, 0)
    exponent = exponent if d_max is None else exponent.clamp(max=d_max)
    return torch.where(worse, exponent.exp(), 1 + torch.where(worse, 0, d)) * advantage


@dataclass(frozen=True)
class BoundLoss(ElboLoss):
    """−Σ_j g_j, mean over responses: one independent part for each mask."""

    samples: int = 16
    d_max: float | None = None

    def passes(self, policy: Policy, batch: Batch, temperature: float) -> Iterator[LossTerms]:
        advantage, share = row_advantage(batch), max(batch.counted().sequences, 1) * self.samples
        for j, ell in enumerate(self.estimates(policy, batch, temperature)):
            d = ell - (ell.detach() if batch.before is None else batch.before[:, j])
            term = -(batch.weight * bound(d, advantage, self.d_max)).sum() / share
            yield LossTerms({"bound": term}, elbo_distances(d.detach(), batch, self.samples))


@method(
    Card(
        title="Boundary-Guided Policy Optimization for memory-efficient RL of diffusion large language models",
        paper="arXiv 2510.11683",
        year=2025,
        family="language",
        idea="bound the ratio of evidence lower bounds by a sum over masks, each backwarded and freed by itself",
        changes=("advantage", "loss", "optimiser"),
        composes_with="samplers, rewards, selections and other advantages; needs a masked-diffusion policy",
        claim="with the memory of one mask its gradient of 16 masks is less noisy, and it learns at least as much",
        example="anypolicy train bgpo --task tiny-add:policy=masked-diffusion --prompts 8 --lr 3e-4 --steps 25",
        look_at="eval/accuracy: 0.41 to 0.43 with seed 0; too short a run to tell learning from chance",
    )
)
def bgpo(
    group_size: knobs.GroupSize = 8,
    samples: Annotated[int, Knob("masks of a response whose terms make up its bound", least=1)] = 16,
    draw: Annotated[MaskDraw, Knob("masks: a number of tokens is drawn first, or each token by itself")] = "count",
    d_max: Annotated[float | None, Knob("cut of a mask's exponent; none: never", least=0)] = None,
) -> GroupRecipe:
    """Group-normalised rewards, 16 masks a response, one AdamW step of 5e-7 a batch."""
    base = grpo(group_size)
    return replace(
        base,
        advantage=GroupAdvantage("population", 1e-6),
        loss=BoundLoss(samples, draw, d_max),
        optimiser=replace(base.optimiser, lr=5e-7),
    )
