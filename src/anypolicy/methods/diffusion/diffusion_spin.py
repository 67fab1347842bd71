"""SPIN-Diffusion: self-play with the last iterate; its samples are always the losers.

Paper: arXiv 2402.10210 (2024).
Idea: a model that learns to tell preferred samples from those of its own last iterate has nothing left to learn when
it makes the preferred ones itself.
Changes: who makes the losers: the last checkpoint, which is the reference too.
Silent: nothing was taken from the paper itself; this is the baseline as it stands beside SePPO (arXiv 2410.05255), with
SePPO's stages of 30 updates and Diffusion-DPO's β and rate.
Differs: the paper's loss is over whole trajectories of the reverse process; here, as in Diffusion-DPO, of one time
drawn for each sample. It trains many epochs an iteration on samples made beforehand; here they are made when needed.
"""

from typing import Annotated

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.knobs import Knob
from anypolicy.loops.diffusion import DiffusionRecipe
from anypolicy.methods.diffusion.seppo import seppo


@method(
    Card(
        "SPIN-Diffusion: Self-Play Fine-Tuning of Diffusion Models for Text-to-Image Generation",
        "arXiv 2402.10210",
        2024,
        "diffusion",
        "samples of the last checkpoint are the losers",
        ("loss", "data"),
        "any diffusion model and preferred samples alone",
        "self-play goes on improving where fine-tuning on the same samples stops",
        example="anypolicy train diffusion-spin --task ring8 --steps 100",
        look_at="eval/preferred: 0.17 to 0.49 with seed 0, while eval/error rises from 0.4 to 3.1",
        metrics={
            "sign": "1: rivals are always pushed down",
            "behind": "share of the batch on which the last checkpoint denoises the preferred sample better",
            "reference": "0: one checkpoint is kept",
        },
    ),
)
def diffusion_spin(
    beta: knobs.Beta = 5000.0,
    stage: Annotated[int, Knob("steps after which rivals come from newer weights", least=1)] = 30,
    batch: Annotated[int, Knob("samples, or pairs, in a step", least=1)] = 2048,
    lr: knobs.LearningRate = 2.05e-5,
    warmup: Annotated[int, Knob("steps over which the learning rate rises", least=0)] = 0,
    weight_decay: Annotated[float, Knob("decoupled decay of the weights", least=0)] = 0.01,
    clip: Annotated[float, Knob("largest norm of a gradient", above=0, infinite=True)] = 1.0,
) -> DiffusionRecipe:
    """An iteration is a stage of 30 updates."""
    return seppo(
        beta, stage, "off", "latest", batch=batch, lr=lr, warmup=warmup, weight_decay=weight_decay, clip=clip
    )  # fmt: skip
