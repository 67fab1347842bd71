"""Ring: points of eight clusters on a circle, three of which are preferred.

Radius 2, standard deviation 0.15; clusters 0, 1 and 2 are the good ones. A perceptron is trained on all eight; the
winners are 200 points of the good ones, the losers 200 of the others. Everything about the truth is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.errors import InputError
from anypolicy.parts.denoising import energy_distance
from anypolicy.policies.diffusion.denoisers import Label, PointDiffusion, pretrain
from anypolicy.runs.seeds import generator
from anypolicy.tasks.diffusion.base import PictureTask
from anypolicy.tasks.pretrained import trained_once

RADIUS, SPREAD, GOOD, CLUSTERS = 2.0, 0.15, 3, 8
NEAR = 3 * SPREAD
"""A sample belongs to a cluster when it is within this distance of its centre."""
UPDATES, BATCH, LR = 1000, 256, 2e-3


@dataclass(frozen=True)
class Points:
    """Points without a condition."""

    points: Float[Tensor, "n 2"]

    def __len__(self) -> int:
        return len(self.points)

    def take(self, rows: Sequence[int]) -> tuple[Tensor, list[Label]]:
        return self.points[list(rows)], [0] * len(rows)


def centres() -> Float[Tensor, "clusters 2"]:
    angle = torch.arange(CLUSTERS) * (2 * math.pi / CLUSTERS)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def points(n: int, first: int, end: int, rng: torch.Generator) -> Float[Tensor, "n 2"]:
    """n points of the clusters first … end − 1."""
    which = torch.randint(first, end, (n,), generator=rng)
    return centres()[which] + SPREAD * torch.randn(n, 2, generator=rng)


def judge(samples: Float[Tensor, "n 2"], heldout: Float[Tensor, "m 2"]) -> dict[str, float]:
    """Distance to the winners' distribution, share in the good clusters, and how evenly they share those."""
    near = torch.cdist(samples, centres()) < NEAR
    good = near[:, :GOOD].float().mean(0)
    total = float(good.sum())
    return {"eval/distance": energy_distance(samples, heldout), "eval/preferred": total,
            "eval/balance": GOOD * float(good.min()) / total if total else 0.0}  # fmt: skip


def fit(model: PointDiffusion, seed: int) -> None:
    """Train on all clusters."""
    pretrain(model, lambda rng: (points(BATCH, 0, CLUSTERS, rng), [0] * BATCH), UPDATES, LR, seed)


def ring8(*, winners: int = 200, base: int = 0) -> PictureTask:
    """`winners`: how many; `base`: the seed of data and of the model that learning starts from."""
    if winners < 1:
        raise InputError("ring8.winners", winners, "use at least 1")
    ends = {"winners": (0, GOOD), "losers": (GOOD, CLUSTERS), "heldout": (0, GOOD)}
    counts = {"winners": winners, "losers": winners, "heldout": 1500}
    made = {k: Points(points(counts[k], *ends[k], generator(base, "ring8", k))) for k in ends}

    def start() -> PointDiffusion:
        model = PointDiffusion(base)
        trained_once(model, "ring8", [base, UPDATES, BATCH, LR], lambda p: fit(p, base))
        return model

    return PictureTask(
        "ring8", made["winners"], made["losers"], made["heldout"], [0], start, PointDiffusion,
        lambda samples, _: judge(samples, made["heldout"].points),
        lambda: "the known distribution: preferred is what lies within 3 standard deviations of a good centre",
        {"beta": 2.0, "batch": 64, "lr": 1e-3, "warmup": 0, "weight_decay": 0.0, "stage": 42},
    )  # fmt: skip
