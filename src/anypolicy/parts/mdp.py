"""Tables of a Markov decision process: checks, planning, evaluation and occupancies, in float64.

`kernel[s, a, t]` is P(t|s, a). Finite-horizon values have the rows h = 1..H of the text: row 0 is not used and row
H + 1 is zero; `reward[..., h − 1, s, a]` is r_h.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from anypolicy.errors import InputError


def check_kernel(kernel: Float[ndarray, "*kernels states actions states"], field: str = "kernel") -> None:
    """Every row P(·|s, a) is a distribution, or an error that names the first that is not."""
    if kernel.ndim < 3 or kernel.shape[-1] != kernel.shape[-3]:
        raise InputError(field, kernel.shape, "its shape must be [..., states, actions, states]")
    total = kernel.sum(-1)
    bad = ~np.isfinite(total) | (abs(total - 1) > 1e-8) | (kernel < 0).any(-1)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        named = ", ".join([f"kernel {i}" for i in where[:-2]] + [f"state {where[-2]}", f"action {where[-1]}"])
        raise InputError(f"{field}[{named}]", kernel[where].tolist(), "a row must be probabilities that sum to 1")


def check_distribution(p: Float[ndarray, ...], field: str) -> None:
    """The last axis of p holds distributions, or an error that names the first that does not."""
    bad = ~np.isfinite(p.sum(-1)) | (abs(p.sum(-1) - 1) > 1e-8) | (p < 0).any(-1)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0]) if p.ndim > 1 else ()
        raise InputError(field + "".join(f"[{i}]" for i in where), p[where].tolist(), "use probabilities of sum 1")


def plan(
    kernel: Float[ndarray, "states actions states"], reward: Float[ndarray, "*rewards horizon states actions"]
) -> tuple[Int[ndarray, "*rewards horizon states"], Float[ndarray, "*rewards rows states"]]:
    """Backward induction: the best policy (the first of equal actions) and its values V_h."""
    lead, horizon, states = reward.shape[:-3], reward.shape[-3], kernel.shape[0]
    values, policy = np.zeros((*lead, horizon + 2, states)), np.zeros((*lead, horizon, states), dtype=np.int64)
    for h in range(horizon, 0, -1):
        q = reward[..., h - 1, :, :] + expected(kernel, values[..., h + 1, :])
        policy[..., h - 1, :] = q.argmax(-1)
        values[..., h, :] = q.max(-1)
    return policy, values


def policy_values(
    kernel: Float[ndarray, "states actions states"],
    reward: Float[ndarray, "*rewards horizon states actions"],
    policy: Int[ndarray, "*rewards horizon states"],
) -> Float[ndarray, "*rewards rows states"]:
    """V_h of a deterministic policy."""
    lead, horizon, states = reward.shape[:-3], reward.shape[-3], kernel.shape[0]
    values = np.zeros((*lead, horizon + 2, states))
    for h in range(horizon, 0, -1):
        q = reward[..., h - 1, :, :] + expected(kernel, values[..., h + 1, :])
        values[..., h, :] = np.take_along_axis(q, policy[..., h - 1, :, None], -1)[..., 0]
    return values


def expected(
    kernel: Float[ndarray, "states actions states"], values: Float[ndarray, "*rewards states"]
) -> Float[ndarray, "*rewards states actions"]:
    """Σ_t P(t|s, a) V(t)."""
    states, actions, _ = kernel.shape
    return (values @ kernel.reshape(states * actions, states).T).reshape(*values.shape[:-1], states, actions)


def largest_return(
    support: Bool[ndarray, "states actions states"],
    reward: Float[ndarray, "rewards horizon states actions"],
    start: int,
) -> Float[ndarray, " rewards"]:
    """The largest Σ_h r_h of any trajectory from `start` whose every step `support` allows."""
    ahead = np.zeros((reward.shape[0], support.shape[0]))
    for h in range(reward.shape[1] - 1, -1, -1):
        best = np.where(support[None], ahead[:, None, None, :], 0.0).max(-1)
        ahead = (reward[:, h] + best).max(-1)
    return ahead[:, start]


def pair_kernel(
    kernel: Float[ndarray, "states actions states"], policy: Float[ndarray, "states actions"]
) -> Float[ndarray, "pairs pairs"]:
    """P^π between pairs (s, a) in row-major order: P(t|s, a) π(b|t)."""
    states, actions, _ = kernel.shape
    joint = kernel[..., None] * policy
    return joint.reshape(states * actions, states * actions)


def q_values(
    pairs: Float[ndarray, "pairs pairs"], reward: Float[ndarray, " pairs"], discount: float
) -> Float[ndarray, " pairs"]:
    """Q^π = (I − γP^π)⁻¹ r."""
    return np.linalg.solve(np.eye(len(pairs)) - discount * pairs, reward)


def occupancy(
    pairs: Float[ndarray, "pairs pairs"], start: Float[ndarray, " pairs"], discount: float
) -> Float[ndarray, " pairs"]:
    """d^π_ρ = (1 − γ) Σ_t γᵗ P(pair at t), from the distribution of the first pair."""
    return (1 - discount) * np.linalg.solve(np.eye(len(pairs)) - discount * pairs.T, start)


def simplex(x: Float[ndarray, "*batch d"]) -> Float[ndarray, "*batch d"]:
    """The nearest point of the probability simplex (Duchi et al. 2008, algorithm of figure 1)."""
    ordered = -np.sort(-x, axis=-1)
    excess = ordered.cumsum(-1) - 1
    count = (ordered * np.arange(1, x.shape[-1] + 1) > excess).sum(-1, keepdims=True)
    return np.maximum(x - np.take_along_axis(excess, count - 1, -1) / count, 0.0)
