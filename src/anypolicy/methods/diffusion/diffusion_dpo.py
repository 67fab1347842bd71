"""Diffusion-DPO: direct preference optimisation of a diffusion model on pairs of samples.

Paper: arXiv 2311.12908 (CVPR 2024), eq. 14.
Idea: the denoising error stands in for minus the log-probability, so that DPO's loss needs no likelihood.
Changes: pairs of a preferred and another sample of the same prompt; the model at the start is the reference.
Silent: nothing that matters here.
Differs: β multiplies half of a difference of means over the numbers of a sample, as in the authors' code; the paper has
β T ω(λ_t) before sums, which is the same with β = 2 D β T ω. A β for latents of Stable Diffusion (D = 16,384) is far
too large for small D: keep β/D.
  rate        2.05e-5 = 1e-8 for each of 2,048 pairs, as in the authors' launchers; the paper prints 2.048e-8 · 2,000/β
  warm-up     500 updates of 2,000 (Stable Diffusion 1.5), 200 (XL), as in the authors' launchers
  one noise and one time for both samples of a pair, as in the authors' code
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.knobs import Knob
from anypolicy.loops.diffusion import Batch, DiffusionRecipe, Pool, adamw, descend, mean_of
from anypolicy.parts.preference import diffusion_margin, sigmoid
from anypolicy.policies.diffusion.denoisers import DiffusionModel, drawn, pair_errors, pieces


@dataclass(frozen=True)
class PairPreference:
    """The settings of a learner; called with a model and a seed it makes one."""

    beta: float
    lr: float
    warmup: int
    weight_decay: float
    clip: float

    def __call__(self, model: DiffusionModel, seed: int) -> "PairPreferenceLearner":
        return PairPreferenceLearner(self, model)


class PairPreferenceLearner:
    """A network, its optimiser, and the weights it began with."""

    def __init__(self, settings: PairPreference, model: DiffusionModel):
        self.settings, self.model = settings, model
        self.modules = {"network": model.module}
        self.optimisers = {"optimiser": adamw(model.module, settings.lr, settings.weight_decay)}
        self.pools = {"reference": Pool(1)}
        self.pools["reference"].add(model.module)

    def update(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, float]:
        """L = −log σ(−½β[(m_θ(x_w) − m_θ(x_l)) − (m_ref(x_w) − m_ref(x_l))]), mean over pairs."""
        s, model, n = self.settings, self.model, len(batch.winner)
        assert batch.loser is not None
        noise, t = drawn(model, n, rng)
        names = ("loss/preference", "pairs/margin", "error/winner", "error/loser")
        seen = {name: list[Tensor]() for name in names}
        for p in pieces(n, model.micro):
            pairs = (batch.winner[p], batch.loser[p], noise[p], t[p], batch.condition[p])
            with torch.no_grad():
                reference = pair_errors(model, *pairs, self.pools["reference"][0])
            errors = pair_errors(model, *pairs)
            margin = diffusion_margin(*errors, *reference, s.beta)
            loss = sigmoid(margin, 1.0)
            (loss.sum() / n).backward()
            for name, value in zip(seen, (loss, margin, *errors), strict=True):
                seen[name].append(value.detach())
        log = {name: mean_of(values) for name, values in seen.items()}
        log["pairs/accuracy"] = mean_of([(x > 0).float() for x in seen["pairs/margin"]])
        return log | descend(self.optimisers["optimiser"], step, s.warmup, s.clip)


@method(
    Card(
        "Diffusion-DPO: Diffusion Model Alignment Using Direct Preference Optimization",
        "arXiv 2311.12908",
        2024,
        "diffusion",
        "DPO with minus the denoising error in place of the log-probability",
        ("loss", "data"),
        "any diffusion model and pairs of samples of one condition",
        "pairs of images make a diffusion model better than fine-tuning on their winners does",
    ),
)
def diffusion_dpo(
    beta: knobs.Beta = 5000.0,
    batch: Annotated[int, Knob("samples, or pairs, in a step", least=1)] = 2048,
    lr: knobs.LearningRate = 2.05e-5,
    warmup: Annotated[int, Knob("steps over which the learning rate rises", least=0)] = 500,
    weight_decay: Annotated[float, Knob("decoupled decay of the weights", least=0)] = 0.01,
    clip: Annotated[float, Knob("largest norm of a gradient", above=0, infinite=True)] = 1.0,
) -> DiffusionRecipe:
    """The reference is the model at the start."""
    return DiffusionRecipe(PairPreference(beta, lr, warmup, weight_decay, clip), batch, needs_pairs=True)
