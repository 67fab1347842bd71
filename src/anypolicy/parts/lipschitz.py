"""Functions with a known Lipschitz constant, and what such a constant says about a closed loop.

Norms are Euclidean. Equations are numbered as in the documentation of Lipschitz imitation; (B1) to (B5) are derived
there, since only the abstract of arXiv 2103.16629 could be read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from anypolicy.errors import InputError

CHUNK, CELLS, SLOWEST = 250_000, 100_000, 1 - 1e-4
"""Distances held at once; cells of a grid; the largest spectral radius whose series is summed."""


def check_alpha(alpha: float) -> float:
    """A Lipschitz constant is a finite number above 0."""
    if not 0 < alpha < math.inf:
        raise InputError("alpha", alpha, "a Lipschitz constant is a finite number above 0")
    return alpha


def check_pairs(x: Float[Tensor, "samples inputs"], u: Float[Tensor, "samples outputs"]) -> None:
    """Finite pairs of states and commands, at least one; an error names the first row that is not."""
    if len(x) == 0:
        raise InputError("demonstrations", "no rows", "give at least one pair of state and command")
    bad = ~(x.isfinite().all(1) & u.isfinite().all(1))
    if bad.any():
        raise InputError("demonstrations", f"row {int(bad.nonzero()[0])}", "its numbers must be finite")


# --- functions with a constant ---------------------------------------------------------------------------------------
def extension(
    x: Float[Tensor, "samples inputs"], u: Float[Tensor, "samples outputs"], alpha: float,
    query: Float[Tensor, "batch inputs"],
) -> Float[Tensor, "batch outputs"]:  # fmt: skip
    """½[min_i (u_i + a‖q − x_i‖) + max_i (u_i − a‖q − x_i‖)] with a = α/√outputs in each output: α-Lipschitz for every
    α, and for one output the α-Lipschitz function with the least largest error at the samples (McShane, Whitney)."""
    a, rows = alpha / math.sqrt(u.shape[1]), max(CHUNK // (len(x) * u.shape[1]), 1)
    made: list[Tensor] = []
    for q in query.split(rows):
        cone = a * torch.cdist(q, x, compute_mode="donot_use_mm_for_euclid_dist")[:, :, None]
        made.append(((u + cone).amin(1) + (u - cone).amax(1)) / 2)
    return torch.cat(made)


def error_at_data(x: Float[Tensor, "samples inputs"], u: Float[Tensor, "samples outputs"], alpha: float) -> float:
    """E∞(α) = ½ max_ij (|u_i − u_j| − a‖x_i − x_j‖)₊ of every output, as the norm over outputs: for one output exactly
    the error of `extension` at its samples, for several a bound on it."""
    a, worst = alpha / math.sqrt(u.shape[1]), torch.zeros(u.shape[1], dtype=u.dtype)
    for start in range(0, len(x), rows := max(CHUNK // (len(x) * u.shape[1]), 1)):
        part = slice(start, start + rows)
        cone = a * torch.cdist(x[part], x, compute_mode="donot_use_mm_for_euclid_dist")[:, :, None]
        gap = (u[part, None] - u[None]).abs() - cone
        worst = torch.maximum(worst, gap.amax((0, 1)) / 2)
    return float(worst.norm())


def spectral_norm(weight: Float[Tensor, "n m"]) -> float:
    """σ_max, by singular values: a few power iterations would give less, which certifies nothing."""
    return float(torch.linalg.matrix_norm(weight, 2))


def projected(weight: Float[Tensor, "n m"], limit: float) -> Float[Tensor, "n m"]:
    """W · min(1, limit/σ_max(W)); where it shrinks, by a hair more than the rounding of its numbers could add."""
    size = spectral_norm(weight.double())
    if size <= limit:
        return weight
    hair = torch.finfo(weight.dtype).eps * (1 + math.sqrt(min(weight.shape)))
    return weight * (limit * (1 - hair) / size)


# --- what data say ---------------------------------------------------------------------------------------------------
def steepness(
    x: Float[Tensor, "samples inputs"], u: Float[Tensor, "samples outputs"], quantile: float = 0.95, far: float = 0.2
) -> float:
    """ℓ̂: a high quantile of ‖u_i − u_j‖/‖x_i − x_j‖ over pairs at least `far` diameters apart (noise makes close pairs
    steep); infinite where one state has two commands. 0 for fewer than two rows that differ."""
    distance, rise = torch.pdist(x), torch.pdist(u)
    apart = (distance >= far * distance.max()) & ((distance > 0) | (rise > 0)) if len(distance) else distance > 0
    slopes = (rise[apart] / distance[apart]).numpy()
    return float(np.quantile(slopes, quantile, method="higher")) if len(slopes) else 0.0


def covering_radius(
    x: Float[Tensor, "samples inputs"], low: Float[Tensor, " inputs"], high: Float[Tensor, " inputs"],
    cells: int = CELLS,
) -> tuple[float, float]:  # fmt: skip
    """Lower and upper bound on ρ = sup over the box of the distance to the nearest sample: the largest at the centres
    of a grid, and that plus half a cell's diagonal (the distance is 1-Lipschitz)."""
    each = max(int(cells ** (1 / len(low)) + 1e-9), 1)
    width = (high - low) / each
    axes = [a + w * (torch.arange(each) + 0.5) for a, w in zip(low.double(), width.double(), strict=True)]
    centres = np.stack([g.ravel() for g in np.meshgrid(*(a.numpy() for a in axes), indexing="ij")], 1)
    least = float(KDTree(x.double().numpy()).query(centres)[0].max())
    return least, least + float(width.norm()) / 2


def nearest(
    x: Float[Tensor, "samples inputs"], probes: Float[Tensor, "probes inputs"]
) -> tuple[Float[Tensor, " probes"], Int[Tensor, " probes"]]:
    """Distance of every probe to its nearest sample, and which that is."""
    distance, row = KDTree(x.double().numpy()).query(probes.double().numpy())
    return torch.from_numpy(np.asarray(distance)), torch.from_numpy(np.asarray(row))


def covering_probability(n: int, h: float, samples: int, p: float | None = None) -> float:
    """(B2) P(ρ > h√n) ≤ N_h (1 − p_h)^N for cells of side h on [0, 1]ⁿ, each of probability p or more (uniform: one of
    N_h)."""
    count = cells_of(n, h)
    return min(1.0, count * (1 - (1 / count if p is None else p)) ** samples)


def samples_needed(n: int, h: float, failure: float, p: float | None = None) -> int:
    """(B2) The least N whose `covering_probability` is `failure` or less."""
    if not 0 < failure < 1:
        raise InputError("failure", failure, "a probability between 0 and 1")
    count = cells_of(n, h)
    rate = -math.log1p(-(1 / count if p is None else p)) if count > 1 else math.inf
    return max(math.ceil(math.log(count / failure) / rate), 1)


def covered(n: int, samples: int, failure: float) -> float:
    """(B2) The least h whose `covering_probability` for uniform samples is `failure` or less: ρ ≤ h√n with probability
    1 − failure. 1 where no grid is fine enough to tell."""
    each = 1
    while (each + 1) ** n < samples and covering_probability(n, 1 / (each + 1), samples) <= failure:
        each += 1
    return 1 / each


def cells_of(n: int, h: float) -> int:
    """N_h: cells of side h or a little less that fill [0, 1]ⁿ."""
    if not 0 < h <= 1 or n < 1:
        raise InputError("h", h, "the side of a cell is above 0, at most 1, in one dimension or more")
    return math.ceil(1 / h - 1e-9) ** n


def choose_alpha(
    x: Float[Tensor, "samples inputs"], u: Float[Tensor, "samples outputs"], rho: float, omega: float,
    grid: Sequence[float],
) -> tuple[float, list[float]]:  # fmt: skip
    """α* = argmin over the grid of E∞(α) + (α + ℓ̂)ρ + αω, and that sum at every α."""
    ell = steepness(x, u)
    curve = [error_at_data(x, u, check_alpha(a)) + (a + ell) * rho + a * omega for a in grid]
    return float(grid[int(np.argmin(curve))]), curve


# --- what a constant says about a loop -------------------------------------------------------------------------------
def imitation_error(at_data: float, alpha: float, ell: float, rho: float) -> float:
    """(B1) sup ‖π̂ − π*‖ ≤ δ = E + (α + ℓ)ρ: the triangle inequality through the nearest sample."""
    return at_data + (alpha + ell) * rho


class Gain(NamedTuple):
    """g = Σ_k ‖A_cᵏ B‖ from above, ‖A_cᵏ‖ ≤ `overshoot` · `rate`ᵏ, and the spectral radius of A_c = A − B K."""

    total: float
    overshoot: float
    rate: float
    radius: float


def closed_loop_gain(
    a: Float[Tensor, "n n"], b: Float[Tensor, "n m"], k: Float[Tensor, "m n"], tol: float = 1e-12
) -> Gain:
    """The series to the first k with ‖A_cᵏ‖ = q ≤ tol, divided by 1 − q: its tail is at most q + q² + … times what was
    summed. λ = (1 + spectral radius)/2, M = max_k ‖A_cᵏ‖/λᵏ."""
    loop = a - b @ k
    radius = float(torch.linalg.eigvals(loop).abs().max()) if loop.isfinite().all() else math.inf
    if not radius < SLOWEST:
        raise InputError(
            "plant", f"spectral radius {radius:.6g} of A − BK", f"the expert's loop must contract: below {SLOWEST}"
        )
    rate, power, total, overshoot = (1 + radius) / 2, torch.eye(len(a), dtype=a.dtype), 0.0, 1.0
    for step in itertools.count():
        size = spectral_norm(power)
        overshoot = max(overshoot, size / rate**step)
        if size <= min(tol, rate**step):
            return Gain(total / (1 - size), overshoot, rate, radius)
        total, power = total + spectral_norm(power @ b), loop @ power
    raise AssertionError


def tube_radius(gain: float, delta: float, alpha: float, omega: float) -> float:
    """(B3) ‖x̂_t − x*_t‖ ≤ g(δ + αω) for measurement errors of at most ω, while x̂ stays where δ holds."""
    return gain * (delta + alpha * omega)


def regret_bound(
    steps: int, c_x: float, c_u: float, ell: float, gain: float, delta: float, alpha: float, omega: float
) -> float:
    """(B4) Σ_t c(x̂, û) − c(x*, u*) ≤ T[(c_x + c_u ℓ) g(δ + αω) + c_u(δ + αω)] for a cost with these constants."""
    return steps * ((c_x + c_u * ell) * tube_radius(gain, delta, alpha, omega) + c_u * (delta + alpha * omega))
