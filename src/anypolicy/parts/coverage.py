"""Two numbers that say what an offline data set is good for: how well it acts (TQ), how much it has seen (SACo).

arXiv 2111.04714. TQ is the data's mean return between that of a random policy (0) and the best known one (1). SACo is
its number of distinct state-action pairs beside that of a reference. In a deterministic environment the entropy of the
transitions is that of the occupancy of pairs, and e to its estimate is at most the number of distinct pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from anypolicy.errors import InputError


def discounted_return(reward: Float[np.ndarray, " steps"], discount: float = 1.0) -> float:
    """Σ_t γᵗ r_t."""
    return float(np.sum(reward.astype(np.float64) * discount ** np.arange(len(reward))))


def tq(returns: Sequence[float], g_min: float, g_max: float) -> float:
    """(mean return − g_min) / (g_max − g_min), below 0 and above 1 too (arXiv 2111.04714, section 3)."""
    if not len(returns):
        raise InputError("returns", "none", "TQ needs a finished episode: the data set has none")
    if not g_max > g_min:
        raise InputError("g_max", g_max, f"it must be above g_min, the random policy's mean return ({g_min:g})")
    return (float(np.mean(returns)) - g_min) / (g_max - g_min)


def binned(
    x: Float[np.ndarray, "rows axes"], limits: Float[np.ndarray, "axes 2"], edges: int = 100
) -> Int[np.ndarray, "rows axes"]:
    """Which of the bins between `edges` equal steps from lowest to highest each number falls in: 0 below, `edges` at
    the highest and above. An axis with one value has one bin."""
    columns = [np.digitize(v, np.linspace(lo, hi, edges)) for v, (lo, hi) in zip(x.T, limits, strict=True)]
    return np.stack(columns, 1)


def pair_counts(
    observation: Float[np.ndarray, "rows axes"],
    action: Shaped[np.ndarray, " rows"],
    limits: Float[np.ndarray, "axes 2"] | None = None,
    edges: int = 100,
) -> Int[np.ndarray, " pairs"]:
    """How often each distinct (s, a) occurs: of exact observations, or binned between `limits`."""
    if not len(observation):
        raise InputError("data", "no row", "it holds no transition")
    wrong = ~np.isfinite(observation).all(1)
    if wrong.any():
        raise InputError("observation", f"row {int(wrong.argmax())}", "it holds a number that is not finite")
    if edges < 2:
        raise InputError("bins", edges, "use at least 2")
    seen = observation.astype(np.float64)
    rows = np.column_stack([seen if limits is None else binned(seen, limits.astype(np.float64), edges), action]) + 0.0
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.itemsize * rows.shape[1])))
    return np.unique(whole.ravel(), return_counts=True)[1]


def unique_pairs(
    observation: Float[np.ndarray, "rows axes"],
    action: Shaped[np.ndarray, " rows"],
    limits: Float[np.ndarray, "axes 2"] | None = None,
    edges: int = 100,
) -> int:
    """u(D): the number of distinct (s, a)."""
    return len(pair_counts(observation, action, limits, edges))


def saco(u: int, u_ref: int, *, log: bool = False) -> float:
    """u(D) / u(D_ref), or ln u(D) / ln u(D_ref)."""
    if u_ref < (2 if log else 1) or u < 1:
        raise InputError("u_ref", u_ref, f"the reference must have {'two pairs' if log else 'a pair'} or more")
    return math.log(u) / math.log(u_ref) if log else u / u_ref


def occupancy_entropy(counts: Int[np.ndarray, " pairs"]) -> float:
    """Ĥ = −Σ p ln p with p = counts / their sum; e^Ĥ ≤ the number of pairs."""
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def reward_sparsity(rewards: Sequence[Float[np.ndarray, " _"]]) -> float:
    """Mean over episodes of the share of steps without reward."""
    return float(np.mean([(r == 0).mean() for r in rewards]))


def normalised_entropy(logits: Float[np.ndarray, "rows choices"]) -> float:
    """Mean over rows of −Σ p ln p / ln |A|, p the softmax: 1 for uniform choices, 0 for certain ones (or one)."""
    if logits.shape[1] == 1:
        return 0.0
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-(np.exp(logp) * logp).sum(1).mean() / math.log(logits.shape[1]))
