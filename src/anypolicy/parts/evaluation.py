"""Evaluation of a policy from a log: linear fixed points, the minimax choice among candidates, and how hard it is.

Rows are φ(s, a), φ' = Σ_a' π(a'|s') φ(s', a') (0 after a terminal step) and r; `weights` are probabilities of the rows,
1/n where not given. Everything linear is computed in whitened coordinates: a basis of the features' span in which
E[φφᵀ] = I, so that scale and repeated columns of the features change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy import stats

from anypolicy.errors import InputError

Values = Callable[[Any, Any], Any]
"""(states, actions) → a value, or a row of features, for each"""


@dataclass(frozen=True)
class Log:
    """Transitions of any policy. States and actions are whole numbers, or states are rows of a matrix."""

    states: ndarray
    actions: ndarray
    rewards: ndarray
    next_states: ndarray
    terminated: ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.rewards)
        if not n:
            raise InputError("log", 0, "it has no transitions")
        for name in ("states", "actions", "next_states", "terminated"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise InputError(f"log.{name}", len(column), f"there are {n} rewards: give as many")


def look_up(values: Values | ndarray, states: ndarray, actions: ndarray) -> ndarray:
    """values(s, a), of a function or of a table [S, A, …]."""
    if not isinstance(values, ndarray):
        return np.asarray(values(states, actions), dtype=np.float64)
    for name, column, size in (("state", states, values.shape[0]), ("action", actions, values.shape[1])):
        bad = (column < 0) | (column >= size)
        if bad.any():
            raise InputError(f"log row {int(bad.argmax())}", int(column[bad][0]), f"the tables have {size} {name}s")
    return values[states, actions].astype(np.float64)


def next_values(values: Values | ndarray, log: Log, policy: Callable[[Any], Any] | ndarray) -> ndarray:
    """Σ_a' π(a'|s') values(s', a'), 0 after a terminal step."""
    if isinstance(policy, ndarray):
        bad = (abs(policy.sum(-1) - 1) > 1e-8) | (policy < 0).any(-1)
        if bad.any():
            s = int(bad.argmax())
            raise InputError(f"policy[state {s}]", policy[s].tolist(), "use probabilities that sum to 1")
    p = policy[log.next_states] if isinstance(policy, ndarray) else np.asarray(policy(log.next_states), np.float64)
    n = len(log.rewards)
    each = np.stack([look_up(values, log.next_states, np.full(n, a)) for a in range(p.shape[1])])
    mean = np.einsum("na,an...->n...", p, each)
    return mean if log.terminated is None else np.where(log.terminated.reshape(-1, *[1] * (mean.ndim - 1)), 0.0, mean)


def minimax_finite(
    Qs: Sequence[Values | ndarray] | ndarray, log: Log, policy: Callable[[Any], Any] | ndarray, discount: float
) -> tuple[int, Float[ndarray, " k"]]:
    """The first Q of a list with the least excess L̂(Q, Q) − min_Q' L̂(Q', Q), L̂(Q', Q) = mean (Q' − r − γQ(s', π))²."""
    if not len(Qs):
        raise InputError("Qs", 0, "give at least one candidate")
    own = np.stack([look_up(q, log.states, log.actions) for q in Qs])
    excess = np.zeros(len(own))
    for i, q in enumerate(Qs):
        losses = ((own - log.rewards - discount * next_values(q, log, policy)) ** 2).mean(1)
        excess[i] = losses[i] - losses.min()
    return int(excess.argmin()), excess


def check_rows(discount: float, **rows: ndarray) -> None:
    """At least one row, finite numbers, a discount below 1."""
    if not 0 <= discount < 1:
        raise InputError("discount", discount, "use a number from 0 to below 1")
    for name, array in rows.items():
        if not array.size:
            raise InputError(name, array.shape, "it has no rows")
        if not np.isfinite(array).all():
            raise InputError(name, f"row {int(np.argwhere(~np.isfinite(array))[0][0])}", "use finite numbers")


def whitening(phi: Float[ndarray, "n d"], weights: Float[ndarray, " n"] | None = None) -> Float[ndarray, "d rank"]:
    """W with Wᵀ E[φφᵀ] W = I on the span of the features."""
    G = mean_product(phi, phi, weights)
    scale = np.sqrt(G.diagonal())
    scale[scale == 0] = 1
    size, basis = np.linalg.eigh(G / np.outer(scale, scale))
    kept = size > 1e-11 * size[-1]
    if size[-1] <= 0:
        raise InputError("features", phi.shape, "all are zero: they span nothing")
    return basis[:, kept] / np.sqrt(size[kept]) / scale[:, None]


def mean_product(x: Float[ndarray, "n d"], y: Float[ndarray, "n k"], weights: Float[ndarray, " n"] | None = None) \
        -> Float[ndarray, "d k"]:  # fmt: skip
    """E[x yᵀ]."""
    return x.T @ y / len(x) if weights is None else (x * weights[:, None]).T @ y


def whitened(
    phi: Float[ndarray, "n d"], phi_next: Float[ndarray, "n d"], r: Float[ndarray, " n"], discount: float,
    weights: Float[ndarray, " n"] | None = None,
) -> tuple[Float[ndarray, "d rank"], Float[ndarray, "rank rank"], Float[ndarray, " rank"]]:  # fmt: skip
    """W, and A = E[φ(φ − γφ')ᵀ] and b = E[φr] in its coordinates."""
    check_rows(discount, phi=phi, phi_next=phi_next, rewards=r)
    W = whitening(phi, weights)
    x = phi @ W
    return W, mean_product(x, (phi - discount * phi_next) @ W, weights), mean_product(x, r[:, None], weights)[:, 0]


def lstd(
    phi: Float[ndarray, "n d"], phi_next: Float[ndarray, "n d"], r: Float[ndarray, " n"], discount: float,
    ridge: float = 0.0, weights: Float[ndarray, " n"] | None = None,
) -> Float[ndarray, " d"]:  # fmt: skip
    """w with A w = b: the fixed point of projected Bellman backups, and the minimax choice among linear Q. `ridge` adds
    to A in whitened coordinates. Refused where A is singular."""
    W, plain, b = whitened(phi, phi_next, r, discount, weights)
    A = plain + ridge * np.eye(len(plain))
    least = float(np.linalg.svd(A, compute_uv=False)[-1])
    if least < 1e-10:
        raise InputError("features", f"σ_min(G^-½ A G^-½) = {least:.2g}",
                         "LSTD's matrix is singular on this log: change features or log, or set a ridge")  # fmt: skip
    return W @ np.linalg.solve(A, b)


def fqe(
    phi: Float[ndarray, "n d"], phi_next: Float[ndarray, "n d"], r: Float[ndarray, " n"], discount: float,
    iterations: int = 2000, weights: Float[ndarray, " n"] | None = None,
) -> tuple[Float[ndarray, " d"], bool]:  # fmt: skip
    """Fitted Q evaluation w ← G⁺E[φ(r + γφ'ᵀw)] from 0, and whether it diverges: its changes do not shrink."""
    W, A, b = whitened(phi, phi_next, r, discount, weights)
    v, changes, growth = np.zeros(len(b)), list[float](), np.eye(len(A)) - A
    for _ in range(iterations):
        new = growth @ v + b
        changes.append(float(np.linalg.norm(new - v)))
        v = new
        if changes[-1] <= 1e-13 * (1 + np.linalg.norm(v)):
            return W @ v, False
        if changes[-1] > 1e100:
            break
    return W @ v, changes[-1] >= changes[len(changes) // 2]


def spectral_radius(matrix: Float[ndarray, "d d"]) -> float:
    """The largest modulus of an eigenvalue."""
    return float(abs(np.linalg.eigvals(matrix)).max())


def concentrability(
    phi_res_target: Float[ndarray, "m d"], phi_res_log: Float[ndarray, "n d"],
    weights_target: Float[ndarray, " m"] | None = None, weights_log: Float[ndarray, " n"] | None = None,
) -> float:  # fmt: skip
    """C = sup_w E_{d^π}[(wᵀ(φ − γφ̄'))²]/E_μ[(wᵀ(φ − γφ̄'))²]: of Bellman residuals, under the policy and in the log.
    Rows are φ − γφ̄' with the mean next features φ̄'; an infinite C is an error that names the direction."""
    check_rows(0.0, phi_res_target=phi_res_target, phi_res_log=phi_res_log)
    return largest_ratio(mean_product(phi_res_target, phi_res_target, weights_target),
                 mean_product(phi_res_log, phi_res_log, weights_log))  # fmt: skip


def largest_ratio(target: Float[ndarray, "d d"], log: Float[ndarray, "d d"]) -> float:
    """λ_max(target, log) of two covariances, refused where it is infinite."""
    both = np.sqrt((target + log).diagonal())
    both[both == 0] = 1
    size, basis = np.linalg.eigh(log / np.outer(both, both))
    seen, scaled = size > 1e-11 * max(size[-1], 0), target / np.outer(both, both)
    missing = basis[:, ~seen]
    unseen = np.einsum("di,de,ei->i", missing, scaled, missing)
    if unseen.size and unseen.max() > 1e-9:
        w = missing[:, int(unseen.argmax())] / both
        raise InputError("concentrability", np.round(w / abs(w).max(), 4).tolist(),
                         "it is infinite: the Bellman residual of this combination of features is 0 all over the log, "
                         "not where the policy goes; collect data there or drop it")  # fmt: skip
    if not seen.any():
        return 1.0
    root = basis[:, seen] / np.sqrt(size[seen])
    return float(np.linalg.eigvalsh(root.T @ scaled @ root)[-1])


def density_ratio_bound(d_pi: Float[ndarray, " pairs"], mu: Float[ndarray, " pairs"]) -> float:
    """sup d^π/μ ≥ C, refused where it is infinite."""
    missing = (mu <= 0) & (d_pi > 0)
    if missing.any():
        raise InputError(f"mu[pair {int(missing.argmax())}]", float(mu[missing][0]),
                         "concentrability is infinite: the policy goes where the log never is")  # fmt: skip
    return float((d_pi[mu > 0] / mu[mu > 0]).max())


def metric_entropy(
    kind: Literal["finite", "linear", "network"], *, size: int = 1, radius: float = 1.0, scale: float = 0.01,
    features: Float[ndarray, "n d"] | None = None,
) -> float:  # fmt: skip
    """ln of how many functions stand for the class: ln `size` of a finite one; d ln(1 + 2R/ε) of a linear one with d =
    `size`; of a network d is the rank of its last layer's `features`."""
    if kind == "finite":
        return math.log(size)
    if kind == "network":
        if features is None:
            raise InputError("features", None, "give the last layer's, one row a sample")
        size = int(np.linalg.matrix_rank(features))
    return size * math.log(1 + 2 * radius / scale)


def entropy_rank(features: Float[ndarray, "n d"]) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues: how many directions matter."""
    p = np.linalg.svd(features, compute_uv=False) ** 2
    p = p[p > 0] / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def conditional_mean(
    ids_or_inputs: Int[ndarray, " n"] | Float[ndarray, "n k"], y: Float[ndarray, "n d"], fold: ndarray, seed: int = 0
) -> Float[ndarray, "n d"]:
    """E[y|x] fitted on the rows of `fold`, at all rows: means by id (NaN for an id that is not in the fold), or
    ridge regression on 256 random Fourier features of the standardised inputs beside the inputs themselves."""
    if ids_or_inputs.ndim == 1:
        _, index = np.unique(ids_or_inputs, return_inverse=True)
        count = np.bincount(index[fold], minlength=index.max() + 1)
        sums = np.stack([np.bincount(index[fold], y[fold, j], len(count)) for j in range(y.shape[1])], 1)
        with np.errstate(invalid="ignore"):
            return (sums / count[:, None])[index]
    x = (ids_or_inputs - ids_or_inputs.mean(0)) / np.maximum(ids_or_inputs.std(0), 1e-12)
    rng = np.random.default_rng(seed)
    angles = x @ rng.normal(0, 1 / math.sqrt(x.shape[1]), (x.shape[1], 256)) + rng.uniform(0, 2 * math.pi, 256)
    rich = np.concatenate([np.ones((len(x), 1)), x, math.sqrt(2 / 256) * np.cos(angles)], 1)
    penalty = 1e-3 * np.eye(rich.shape[1])
    penalty[0, 0] = 0
    gram = rich[fold].T @ rich[fold] / fold.sum() + penalty
    return rich @ np.linalg.solve(gram, rich[fold].T @ y[fold] / fold.sum())


def halves(n: int, seed: int = 0) -> Bool[ndarray, " n"]:
    """A random half of the rows."""
    return np.random.default_rng(seed).permutation(n) < n // 2


def symmetric(x: Float[ndarray, "d d"]) -> Float[ndarray, "d d"]:
    """(X + Xᵀ)/2."""
    return (x + x.T) / 2


def jackknife(deleted: Float[ndarray, "groups k"]) -> Float[ndarray, " k"]:
    """Half the width of a 95 % t interval from the values found with one group of rows deleted in turn."""
    g = len(deleted)
    return stats.t.ppf(0.975, g - 1) * np.sqrt((g - 1) / g * ((deleted - deleted.mean(0)) ** 2).sum(0))


def ratio_to_log(
    target: tuple[Float[ndarray, "m d"], Float[ndarray, "m d"], Float[ndarray, " m"]], log: Float[ndarray, "d d"],
    discount: float, *, estimated: bool,
) -> float:  # fmt: skip
    """C of rows (φ, φ̄', weight) under the policy against E_μ[(φ − γφ̄')(φ − γφ̄')ᵀ]. Where the latter is estimated and
    came out indefinite, its eigenvalues are raised to a small positive one."""
    there, p = target[0] - discount * target[1], target[2] / target[2].sum()
    size, basis = np.linalg.eigh(log)
    seen = np.maximum(size, 1e-8 * size.sum() / len(size) if estimated else 0.0)
    return largest_ratio(mean_product(there, there, p), basis * seen @ basis.T)
