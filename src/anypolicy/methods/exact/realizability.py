"""When is realizability sufficient: what limits off-policy evaluation, the data, the behaviour policy or the features?

Paper: arXiv 2211.05311. Its three factors: metric entropy, concentrability C of Bellman residuals, and β of
β-incomplete classes; error ∝ √(entropy/n) · √C/(1 − γ) · 1/(1 − β), with no floor as n grows.
Idea: where Q^π is in the class, what the class lacks of Bellman completeness only amplifies the statistical error.
Changes: nothing of training: a diagnostic of features and a log, and the minimax estimator (LSTD for linear classes).
Silent: constants; none are shown here. How to compute β: for linear classes β² = λ_max(N, B), B = E[ξξᵀ] with ξ =
φ − γφ̄', N the covariance of what the features cannot fit of γφ̄' (our derivation, by Pythagoras in L²(μ)). The predicted
error (σ²/n) tr(B(AᵀG⁻¹A)⁻¹) of LSTD under equal noise is ours too, and so are the verdict's rules.
From a log φ̄' = E[φ'|s, a] is unknown, and a product of two noisy φ' overstates β: "crossfit" multiplies regressions on
two halves of the log. Intervals delete one of 20 groups of rows in turn (a bootstrap would put a row into both halves).
Differs: no authors' code is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.parts import evaluation as ev
from anypolicy.parts.reports import Solution
from anypolicy.tasks.exact.off_policy import Misalignment, OffPolicyReport, problem, solution

Array = NDArray[np.float64]
How = Literal["crossfit", "exact", "naive"]
GROUPS = 20


class Moments(NamedTuple):
    """In whitened coordinates W (G = I): A, B, N; B as given for the ratio C; the share of rows dropped and whether B̂
    had to be made positive."""

    W: Array
    A: Array
    B: Array
    N: Array
    B_raw: Array
    dropped: float
    indefinite: bool


def moments(
    phi: Array, phi_next: Array, discount: float, how: How | Literal["double"] = "crossfit",
    cond: NDArray[Any] | None = None, weights: Array | None = None, fold: NDArray[np.bool_] | None = None,
) -> Moments:  # fmt: skip
    """A, B and N of the class on a log; `phi_next` is [2, n, d] (two draws) for "double", φ̄' for "exact"."""
    ev.check_rows(discount, phi=phi, phi_next=phi_next)
    one, two = phi_next if how == "double" else (phi_next, phi_next)
    if how == "crossfit":
        if cond is None:
            raise InputError("cond_features", None, "crossfit regresses φ' on (s, a): give ids or inputs, or use naive")
        fold = ev.halves(len(phi)) if fold is None else fold
        one, two = (ev.conditional_mean(cond, phi_next, half) for half in (fold, ~fold))
    kept = np.isfinite(one).all(1) & np.isfinite(two).all(1)
    if not kept.any():
        raise InputError("cond_features", len(phi), "no (s, a) is in both halves of the log: give inputs, not ids")
    p = None if weights is None else weights[kept] / weights[kept].sum()
    W, mean_next = ev.whitening(phi, weights), phi_next.mean(0) if how == "double" else phi_next
    x, z, y = phi[kept] @ W, discount * one[kept] @ W, discount * two[kept] @ W
    A = np.eye(W.shape[1]) - discount * ev.mean_product(phi @ W, mean_next @ W, weights)
    gram = np.linalg.pinv(ev.mean_product(x, x, p))
    N = ev.symmetric(ev.mean_product(z, y, p) - ev.mean_product(z, x, p) @ gram @ ev.mean_product(x, y, p))
    size, basis = np.linalg.eigh(ev.symmetric(ev.mean_product(x - z, x - y, p)))
    B = basis * np.maximum(size, 1e-8 * max(size.sum(), 1e-300) / len(size)) @ basis.T
    raw = ev.mean_product(phi[kept] - discount * one[kept], phi[kept] - discount * two[kept], p)
    return Moments(W, A, B, N, ev.symmetric(raw), 1 - float(kept.mean()), bool(size[0] < -1e-12 * size[-1]))


def misalignment(
    phi: Array, phi_next: Array, discount: float, method: How | Literal["double"] = "crossfit",
    cond_features: NDArray[Any] | None = None, weights: Array | None = None,
) -> Misalignment:  # fmt: skip
    """β = sup_Q inf_Q' ‖Q' − TQ‖_μ/‖Q − TQ‖_μ of linear Q."""
    return of_moments(moments(phi, phi_next, discount, method, cond_features, weights))


def of_moments(m: Moments) -> Misalignment:
    """β² = λ_max(N, B), clipped to [0, 1]."""
    root = np.linalg.inv(np.linalg.cholesky(m.B)).T
    spectrum, directions = np.linalg.eigh(root.T @ m.N @ root)
    beta = math.sqrt(min(max(float(spectrum[-1]), 0.0), 1.0))
    return Misalignment(beta, spectrum, m.W @ root @ directions[:, -1], m.dropped, m.indefinite)


def predicted_error(m: Moments, noise: float, n: int) -> float:
    """√(σ²/n · tr(B(AᵀG⁻¹A)⁻¹)): the Bellman error ‖Q̂ − TQ̂‖_μ to expect of LSTD, at most σ√(d/n)/√(1 − β²)."""
    return math.sqrt(noise / n * float(np.trace(m.B @ np.linalg.inv(m.A.T @ m.A))))


def estimates(
    phi: Array, phi_next: Array, r: Array, discount: float, how: How, cond: NDArray[Any] | None, fold: NDArray[np.bool_]
) -> tuple[float, float]:
    """β² and, with crossfit, the squared Bellman error of LSTD on these rows: products of E[δ|s, a] from two halves."""
    squared = float(of_moments(moments(phi, phi_next, discount, how, cond, fold=fold)).spectrum[-1])
    if how != "crossfit" or cond is None:
        return squared, math.nan
    delta = (r - (phi - discount * phi_next) @ ev.lstd(phi, phi_next, r, discount))[:, None]
    one, two = (ev.conditional_mean(cond, delta, half) for half in (fold, ~fold))
    return squared, float(np.nanmean(one * two))


def intervals(found: tuple[float, float], deleted: Array) -> dict[str, tuple[float, float]]:
    """95 % intervals of β and the Bellman error from the jackknife's spread of their squares."""
    half = ev.jackknife(deleted)
    ends = [(math.sqrt(max(x - h, 0)), math.sqrt(max(x + h, 0))) for x, h in zip(found, half) if not math.isnan(x)]
    return {name: (low, min(high, 1.0) if name == "beta" else high)
            for name, (low, high) in zip(("beta", "bellman_error"), ends)}  # fmt: skip


def report_rows(
    phi: Array, phi_next: Array, r: Array, discount: float, cond: NDArray[Any] | None = None,
    target_rows: tuple[Array, Array, Array] | None = None, how: How = "crossfit",
) -> OffPolicyReport:  # fmt: skip
    """The report of rows of features. `target_rows` is (φ, φ̄', weight) under the policy's discounted occupancy."""
    n, d = phi.shape
    if n < max(d + 1, GROUPS):
        raise InputError("log", n, f"{d} features need at least {max(d + 1, GROUPS)} transitions")
    w = ev.lstd(phi, phi_next, r, discount)
    fold, m = ev.halves(n), moments(phi, phi_next, discount, how, cond)
    noise = float(((r - (phi - discount * phi_next) @ w) ** 2).sum()) / (n - len(m.A))
    group = np.random.default_rng(1).permutation(n) % GROUPS
    every = [np.ones(n, bool), *(group != g for g in range(GROUPS))]
    found, *deleted = (estimates(phi[k], phi_next[k], r[k], discount, how, None if cond is None else cond[k], fold[k])
                       for k in every)  # fmt: skip
    ratio = None if target_rows is None else ev.ratio_to_log(target_rows, m.B_raw, discount, estimated=m.indefinite)
    error, own, kappa = predicted_error(m, noise, n), of_moments(m), ev.spectral_radius(np.eye(len(m.A)) - m.A)
    return OffPolicyReport(
        ev.metric_entropy("linear", size=len(m.A), radius=float(abs(phi @ w).max()), scale=max(error, 1e-12)),
        ratio, own.beta, kappa, float(np.linalg.svd(m.A, compute_uv=False)[-1]), error,
        None if math.isnan(found[1]) else math.sqrt(max(found[1], 0)),
        None if ratio is None else math.sqrt(ratio) / (1 - discount) * error, w, own,
        intervals(found, np.array(deleted)), verdict(own.beta, kappa, ratio),
    )  # fmt: skip


def verdict(beta: float, kappa: float, C: float | None) -> str:
    """What to do: rules of thumb of this package, not of the paper."""
    said = ["the features are complete enough" if beta < 0.5 else
            f"usable: errors up to {1 / (1 - beta):.1f} times as large" if beta <= 0.95 else
            "the features are misaligned: change features, not data"]  # fmt: skip
    said += ["use LSTD or minimax, not FQE, which diverges"] if kappa > 1 else []
    return "; ".join(said + (["coverage: the log is too far from the policy"] if C is not None and C > 100 else []))


def off_policy_report(
    log: ev.Log, policy: Callable[[Any], Any] | Array, features: ev.Values | Array, discount: float,
    target_rows: tuple[Array, Array, Array] | None = None, how: How = "crossfit",
) -> OffPolicyReport:  # fmt: skip
    """The report of a log: `policy` and `features` are tables [S, A] and [S, A, d], or functions of batches."""
    phi, phi_next = ev.look_up(features, log.states, log.actions), ev.next_values(features, log, policy)
    cond = np.column_stack([log.states, log.actions])
    if log.states.ndim == 1 and log.states.dtype.kind in "iu":
        cond = np.unique(cond, axis=0, return_inverse=True)[1].ravel()
    return report_rows(phi, phi_next, log.rewards, discount, cond, target_rows, how)


@method(
    Card(
        title="When is Realizability Sufficient for Off-Policy Reinforcement Learning?",
        paper="arXiv 2211.05311",
        year=2023,
        family="exact",
        idea="three factors tell what limits off-policy evaluation: the data, the behaviour policy or the features",
        changes=(),
        composes_with="any critic: its last layer's features, any log",
        claim="LSTD's error falls like n^-1/2 without a floor, amplified by at most 1/(1 − β)",
        example="anypolicy solve realizability",
        look_at="what it finds, printed and drawn in its report",
    ),
)
def realizability(
    instance: Annotated[
        Literal["two-state", "three-state", "random"] | None, Knob("a problem that is made here")
    ] = None,
    p: Annotated[float | None, Knob("parameter of the instance; none: its own", least=0, most=1)] = None,
    states: Annotated[int | None, Knob("states; none: the instance's own", least=1)] = None,
    actions: Annotated[int | None, Knob("actions; none: the instance's own", least=1)] = None,
    features: Annotated[int | None, Knob("size of the features; none: the instance's own", least=1)] = None,
    n: Annotated[int | None, Knob("transitions in the log; none: the instance's own", least=1)] = None,
    discount: knobs.Discount = 0.9,
    how: Annotated[How, Knob("how the log is split and used")] = "crossfit",
    data: Annotated[str, Knob("name of the problem, or a file")] = "",
    seed: knobs.Seed = 0,
) -> Solution:
    """`data` is a .npz file with `phi`, `phi_next` [n, d], `rewards` [n], and may hold `cond` (ids of (s, a), or
    inputs, for crossfit), `target_phi`, `target_phi_next` and `target_weights`. Without it `n` = 2000
    transitions are drawn from an instance (two-state): that log is in its first state with probability `p` = 0.5, the
    random one has 20 `states`, 2 `actions` and 4 `features`."""
    sizes = {"p": p, "states": states, "actions": actions, "features": features, "n": n}
    given = problem(instance, sizes, discount, data, seed)
    found = report_rows(given.phi, given.phi_next, given.rewards, discount, given.cond, given.target, how)
    known = given.exact
    if known is None:
        return solution(given, found, None)
    exact = moments(known.phi, known.phi_next, discount, "exact", None, known.mu.ravel())
    return solution(given, found, (of_moments(exact).beta, ev.spectral_radius(np.eye(len(exact.A)) - exact.A)))
