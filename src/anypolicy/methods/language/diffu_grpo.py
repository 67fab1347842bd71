"""diffu-GRPO: GRPO with token log-probabilities from one pass over the wholly masked response. BGPO's baseline.

Paper: d1, arXiv 2504.12216, section 3 (one-step estimate, random prompt masks); the baseline of arXiv 2510.11683.
Idea: mask the whole response at once and read all its tokens from one pass; a fresh random mask on the prompt in every
update keeps several updates on one batch from fitting the estimate itself.
Changes: advantage (mean only), loss (clipped token ratio of one-pass estimates, no KL), optimiser (AdamW 5e-7 as in the
paper that compares).
Silent: BGPO's paper does not say which form of d1's loss it ran; here d1's, without its KL term.
Differs: 0.15 for the prompt is d1's published setting. It makes 12 updates of a batch with a clip of 0.5; with one
update, as here, no ratio leaves 1, and the clip is GRPO's 0.2.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.bgpo import bgpo
from anypolicy.policies.language.base import Policy, Scores
from anypolicy.stages.common import Clip, GroupAdvantage, PolicyLoss
from anypolicy.stages.elbo import denoiser
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import GroupRecipe, LossTerms, World


@dataclass(frozen=True)
class OnePassLoss:
    """The clipped token surrogate, mean over responses of token means, of log p(y_i | all masked, prompt partly)."""

    clip: float = 0.2
    prompt_mask: float = 0.15
    needs = Needs(behaviour=False, whole_responses=True)

    def __post_init__(self) -> None:
        if not 0 <= self.prompt_mask < 1:
            raise InputError("prompt_mask", self.prompt_mask, "use a probability in [0, 1)")

    @property
    def surrogate(self) -> PolicyLoss:
        return PolicyLoss(Clip(self.clip, self.clip))

    def check(self, world: World) -> None:
        denoiser(world.policy)

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        return self.surrogate.active(batch)

    def before(self, policy: Policy, batch: Batch, temperature: float) -> Float[Tensor, "rows tokens"]:
        hidden = prompt_masks(batch, self.prompt_mask)
        return denoiser(policy).score_masked(batch, batch.mask, temperature, hidden)

    def passes(self, policy: Policy, batch: Batch, temperature: float) -> Iterator[LossTerms]:
        logp = self.before(policy, batch, temperature)
        old = logp.detach() if batch.before is None else batch.before[:, : logp.shape[1]]
        yield self.surrogate(Scores(logp), replace(batch, logp_old=old))


def prompt_masks(batch: Batch, p: float) -> Bool[Tensor, "rows context_tokens"]:
    """Which tokens of each row's prompt are hidden: each with probability p, from the row's own seed."""
    assert batch.row_seed is not None
    seen = batch.context_valid[batch.context_index]
    uniform = torch.ones(seen.shape, dtype=torch.float64)
    uniform[seen] = torch.cat([
        torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for n, seed in zip(seen.sum(1).tolist(), batch.row_seed.tolist(), strict=True)
    ])  # fmt: skip
    return uniform < p


@method(
    Card(
        title="diffu-GRPO (d1: scaling reasoning in diffusion large language models)",
        paper="arXiv 2504.12216",
        year=2025,
        family="language",
        idea="GRPO on log-probabilities read from one pass over the wholly masked response and a partly masked prompt",
        changes=("advantage", "loss", "optimiser"),
        composes_with="samplers, rewards, selections and other advantages; needs a masked-diffusion policy",
        claim="baseline of BGPO's claim",
        example="anypolicy train diffu-grpo --task tiny-add:policy=masked-diffusion --prompts 8 --lr 3e-4 --steps 25",
        look_at="eval/accuracy: 0.41 to 0.46 with seed 0; too short a run to tell learning from chance",
    )
)
def diffu_grpo(
    group_size: knobs.GroupSize = 8,
    clip: knobs.ClipRange = 0.2,
    prompt_mask: Annotated[float, Knob("share of the prompt's tokens that are masked", least=0, below=1)] = 0.15,
) -> GroupRecipe:
    """A = r − mean, clip 0.2, a share 0.15 of the prompt hidden."""
    return replace(bgpo(group_size), advantage=GroupAdvantage(std="none"), loss=OnePassLoss(clip, prompt_mask))
