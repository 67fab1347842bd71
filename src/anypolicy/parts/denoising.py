"""The denoising error of a sample, which takes the place of minus its log-probability in `parts.preference`, and
distances between sets of samples.

m(x₀) = mean over all numbers of (target − f_θ(x_t, t, c))². It is a mean, so β belongs to D numbers: with sums it is
β/(2D).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.errors import InputError
from anypolicy.parts.diffusion import diffused

Prediction = Literal["epsilon", "v_prediction"]
"""What the network predicts."""


def noised(
    x0: Float[Tensor, " batch *shape"], noise: Float[Tensor, " batch *shape"], kept: Float[Tensor, " batch"],
    prediction: Prediction,
) -> tuple[Float[Tensor, " batch *shape"], Float[Tensor, " batch *shape"]]:  # fmt: skip
    """x_t, and what the network is to predict of it: ε, or v = √ᾱ ε − √(1 − ᾱ) x₀ (arXiv 2202.00512)."""
    x, e, k = x0.flatten(1), noise.flatten(1), kept[:, None]
    target = e if prediction == "epsilon" else k.sqrt() * e - (1 - k).sqrt() * x
    return diffused(x, e, k).view_as(x0), target.view_as(x0)


def denoising_error(
    predicted: Float[Tensor, " batch *shape"], target: Float[Tensor, " batch *shape"]
) -> Float[Tensor, " batch"]:
    """m: squared error of every sample, mean over its numbers."""
    error = (predicted - target).square().flatten(1).mean(1)
    if not error.isfinite().all():
        row = int((~error.isfinite()).nonzero()[0])
        raise InputError(
            "denoising error", f"not finite in row {row}", "lower the learning rate, or look at that image"
        )
    return error


def frechet(a: Float[Tensor, "n features"], b: Float[Tensor, "m features"]) -> float:
    """‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½) of two sets of features taken as Gaussian (arXiv 1706.08500)."""
    for name, rows in (("generated", a), ("real", b)):
        if len(rows) < 2:
            raise InputError(name, len(rows), "a covariance needs at least 2 samples")
    a, b = a.double(), b.double()
    mean, (ca, cb) = (a.mean(0) - b.mean(0)).square().sum(), (a.T.cov(), b.T.cov())
    values, vectors = torch.linalg.eigh(torch.atleast_2d(ca))
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ torch.atleast_2d(cb) @ root).clamp(min=0).sqrt().sum()
    return float(mean + torch.atleast_2d(ca).trace() + torch.atleast_2d(cb).trace() - 2 * cross)


def energy_distance(a: Float[Tensor, "n features"], b: Float[Tensor, "m features"]) -> float:
    """2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖, pairs of the same sample left out (Székely and Rizzo, 2013)."""
    for name, rows in (("generated", a), ("real", b)):
        if len(rows) < 2:
            raise InputError(name, len(rows), "a distance needs at least 2 samples")
    a, b = a.double(), b.double()
    inner = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(2 * torch.cdist(a, b).mean() - inner[0] - inner[1])
