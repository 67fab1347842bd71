"""Diffusion-SFT: fit a diffusion model to the samples that people preferred.

Paper: the loss of DDPM (arXiv 2006.11239, eq. 14) on preferred samples alone: "SFT" beside Diffusion-DPO (arXiv
2311.12908) and SePPO (arXiv 2410.05255).
Idea: imitate the winners; there is nothing to push away from.
Changes: nothing; it is the base of the family. On all samples, from scratch, it trains a model in the first place.
Silent: the learning rate and the batch of fine-tuning; those of Diffusion-DPO are taken.
Differs: the mean over the numbers of a sample, as diffusers' training scripts; the papers write sums.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.knobs import Knob
from anypolicy.loops.diffusion import Batch, DiffusionRecipe, Pool, adamw, descend, mean_of
from anypolicy.policies.diffusion.denoisers import DiffusionModel, drawn, error_of, pieces


@dataclass(frozen=True)
class Imitation:
    """The settings of a learner; called with a model and a seed it makes one."""

    lr: float
    warmup: int
    weight_decay: float
    clip: float

    def __call__(self, model: DiffusionModel, seed: int) -> "ImitationLearner":
        return ImitationLearner(self, model)


class ImitationLearner:
    """One network, one optimiser."""

    def __init__(self, settings: Imitation, model: DiffusionModel):
        self.settings, self.model = settings, model
        self.modules = {"network": model.module}
        self.optimisers = {"optimiser": adamw(model.module, settings.lr, settings.weight_decay)}
        self.pools: dict[str, Pool] = {}

    def update(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, float]:
        """L = mean over the batch of m_θ(x_w)."""
        s, model, n = self.settings, self.model, len(batch.winner)
        (noise, t), errors = drawn(model, n, rng), list[torch.Tensor]()
        for p in pieces(n, model.micro):
            error = error_of(model, batch.winner[p], noise[p], t[p], batch.condition[p])
            (error.sum() / n).backward()
            errors.append(error.detach())
        log = descend(self.optimisers["optimiser"], step, s.warmup, s.clip)
        return {"loss/denoising": mean_of(errors), "error/winner": mean_of(errors)} | log


@method(
    Card(
        "Supervised fine-tuning of a diffusion model",
        "arXiv 2006.11239",
        2020,
        "diffusion",
        "fit the noise in preferred samples alone",
        (),
        "any diffusion model and any samples with labels or prompts",
        "none of its own: the base beside which preference methods stand",
        example="anypolicy train diffusion-sft --task ring8 --steps 100",
        look_at="eval/preferred: 0.17 to 0.50 with seed 0",
    ),
)
def diffusion_sft(
    batch: Annotated[int, Knob("samples, or pairs, in a step", least=1)] = 2048,
    lr: knobs.LearningRate = 2.05e-5,
    warmup: Annotated[int, Knob("steps over which the learning rate rises", least=0)] = 500,
    weight_decay: Annotated[float, Knob("decoupled decay of the weights", least=0)] = 0.01,
    clip: Annotated[float, Knob("largest norm of a gradient", above=0, infinite=True)] = 1.0,
) -> DiffusionRecipe:
    """Denoising on winners."""
    return DiffusionRecipe(Imitation(lr, warmup, weight_decay, clip), batch)
