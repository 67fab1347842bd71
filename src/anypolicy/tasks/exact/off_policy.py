"""An off-policy evaluation to diagnose, from a file or drawn from a known problem, and what is told of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anypolicy.data.arrays import load_arrays
from anypolicy.errors import InputError, settings_of
from anypolicy.parts import evaluation as ev
from anypolicy.parts.reports import Assumption, Chart, Line, Report, Solution
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.exact.evaluation_problems import EvaluationProblem, random_problem, three_state, two_state

Array = NDArray[np.float64]
SIZES = {"two-state": {"p": 0.5, "n": 2000}, "three-state": {"n": 2000},
         "random": {"states": 20, "actions": 2, "features": 4, "n": 2000}, "a file": {}}  # fmt: skip
"""What generated instances are made of, by default."""


@dataclass(frozen=True)
class Given:
    """Rows of features of a log, what regressions may condition on, rows under the policy, the problem if known, and
    what it was made of."""

    phi: Array
    phi_next: Array
    rewards: Array
    discount: float
    cond: NDArray[Any] | None
    target: tuple[Array, Array, Array] | None
    exact: EvaluationProblem | None = None
    settings: Mapping[str, object] = field(default_factory=dict[str, object])


class Misalignment(NamedTuple):
    """β, the eigenvalues of N against B (largest last: β²), and the w whose Bellman image is farthest outside."""

    beta: float
    spectrum: Array
    worst_direction: Array
    dropped: float
    indefinite: bool


@dataclass(frozen=True)
class OffPolicyReport:
    """The three factors, κ and σ_min of the fixed point, errors predicted and found, intervals by name, and a verdict.
    What needs rows under the policy (C, the bound) is None without them."""

    entropy: float
    C: float | None
    beta: float
    kappa: float
    sigma_min: float
    predicted_bellman_error: float
    bellman_error: float | None
    value_error_bound: float | None
    weights: Array
    misalignment: Misalignment
    intervals: dict[str, tuple[float, float]]
    verdict: str


def problem(instance: str | None, sizes: Mapping[str, Any], discount: float, data: str, seed: int) -> Given:
    """The rows of a .npz file, or n rows drawn from a named instance, whose policy rows are exact."""
    if not 0 <= discount < 1:
        raise InputError("discount", discount, "use a number from 0 to below 1")
    if data and instance is not None:
        raise InputError("instance", instance, "give it or data, not both")
    made_of = "a file" if data else instance or "two-state"
    used = settings_of(made_of, sizes, SIZES)
    if data:
        return from_file(data, discount)
    n = used["n"]
    if n < 1:
        raise InputError("n", n, "use 1 or more")
    make = {
        "two-state": lambda: two_state(used["p"], discount),
        "three-state": lambda: three_state(discount),
        "random": lambda: random_problem(used["states"], used["actions"], used["features"], seed, discount),
    }
    made = make[made_of]()
    log = made.log(n, numpy_generator(seed, "log"))
    return Given(ev.look_up(made.features, log.states, log.actions), ev.next_values(made.features, log, made.policy),
                 log.rewards, discount, log.states * made.mu.shape[1] + log.actions,
                 (made.phi, made.phi_next, made.occupancy), made, {"instance": made_of, **used})  # fmt: skip


def from_file(path: str, discount: float) -> Given:
    """Features of (s, a) and of what follows, rewards, and what else the file holds."""
    under = ("target_phi", "target_phi_next", "target_weights")
    arrays = load_arrays(path, ("phi", "phi_next", "rewards"), ("cond", *under))
    phi, cond = np.asarray(arrays["phi"], float), arrays.get("cond")
    if phi.ndim != 2 or not phi.size:
        raise InputError("data[phi]", phi.shape, "its shape must be [rows, features] with at least one of each")
    wanted = {"phi_next": phi.shape, "rewards": phi.shape[:1]}
    if cond is not None:
        wanted["cond"] = (len(phi), *cond.shape[1:2])
    there = [name for name in under if name in arrays]
    if there:
        if len(there) < 3:
            raise InputError("data", there, f"rows under the policy need all of {', '.join(under)}")
        m = len(arrays["target_weights"])
        wanted |= {"target_phi": (m, phi.shape[1]), "target_phi_next": (m, phi.shape[1]), "target_weights": (m,)}
        if (arrays["target_weights"] < 0).any() or arrays["target_weights"].sum() <= 0:
            raise InputError("data[target_weights]", float(arrays["target_weights"].min()), "use weights above 0")
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise InputError(f"data[{name}]", arrays[name].shape, f"its shape must be {shape}")
    rows, next_rows, weight = (np.asarray(arrays.get(name, np.zeros(0)), float) for name in under)
    target = (rows, next_rows, weight) if there else None
    return Given(
        phi, np.asarray(arrays["phi_next"], float), np.asarray(arrays["rewards"], float), discount, cond, target
    )


def solution(given: Given, found: OffPolicyReport, exact: tuple[float, float] | None) -> Solution:
    """The factors, errors and estimators; beside them the exact values where the problem is known."""
    known, m = given.exact, found.misalignment
    whole = Assumption("B̂ is positive", not m.indefinite, "too few rows for its regressions" if m.indefinite else "")
    kept = Assumption(
        "every (s, a) is in both halves", m.dropped == 0, f"{m.dropped:.1%} of rows dropped" if m.dropped else ""
    )
    class_has_q = Assumption("Q^π is in the class", True if known is not None else realizable(found))
    note = f"log of {len(given.phi)} rows, {m.spectrum.size} independent features"
    reports = [
        Report("metric entropy", found.entropy, "exact", "F1: d ln(1 + 2R/ε)", note=note),
        Report("misalignment β", found.beta, "estimate", "F3", found.intervals.get("beta"), (whole, kept)),
        Report("spectral radius κ of FQE", found.kappa, "estimate", note="above 1 FQE and TD diverge"),
        Report("smallest singular value of LSTD", found.sigma_min, "estimate", note="0: LSTD has no solution"),
        Report("Bellman error, predicted", found.predicted_bellman_error, "estimate", "σ²/n tr(B(AᵀG⁻¹A)⁻¹), derived",
               assumptions=(class_has_q, Assumption("noise of equal size everywhere", None))),
    ]  # fmt: skip
    if found.beta < 1:
        reports.append(Report("amplification of the error, at most", 1 / (1 - found.beta), "estimate", "1/(1 − β)"))
    if found.bellman_error is not None:
        reports.append(Report("Bellman error, found", found.bellman_error, "estimate", "E[δ|s, a] from two halves",
                              found.intervals["bellman_error"], (kept,)))  # fmt: skip
    if found.C is not None and found.value_error_bound is not None:
        reports += [
            Report("concentrability C", found.C, "estimate", "F2", assumptions=(whole,)),
            Report("value error, predicted bound", found.value_error_bound, "estimate", "√C/(1 − γ) · predicted",
                   assumptions=(class_has_q,)),
        ]  # fmt: skip
    if known is not None and exact is not None:
        reports += exact_reports(known, found, exact)
    w, diverged = ev.fqe(given.phi, given.phi_next, given.rewards, given.discount)
    estimators = [{"estimator": "LSTD, minimax", "converges": "yes", "weights": np.round(found.weights, 4).tolist()},
                  {"estimator": "FQE, TD", "converges": "no" if diverged else "yes",
                   "weights": "—" if diverged else np.round(w, 4).tolist()}]  # fmt: skip
    tables = {"Verdict": [{"verdict": found.verdict}], "Estimators": estimators}
    return Solution(reports, charts(given, found), tables, given.settings)


def realizable(found: OffPolicyReport) -> bool | None:
    """False where the Bellman error found is surely above twice the predicted one; else a log cannot tell."""
    low = found.intervals.get("bellman_error", (0.0, 0.0))[0]
    return False if low > 2 * found.predicted_bellman_error else None


def exact_reports(known: EvaluationProblem, found: OffPolicyReport, exact: tuple[float, float]) -> list[Report]:
    """What is known of the problem itself, and the theorem's bound beside the error."""
    beta, kappa = exact
    mu, phi_res = known.mu.ravel(), known.phi - known.discount * known.phi_next
    C = ev.concentrability(phi_res, phi_res, known.occupancy, mu)
    error = math.sqrt(float(mu @ known.bellman_error(found.weights) ** 2))
    value_error = abs(float(known.first.ravel() @ (known.phi @ found.weights - known.q)))
    realized = Assumption(
        "Q^π is in the class", bool(abs(known.phi @ np.linalg.lstsq(known.phi, known.q)[0] - known.q).max() < 1e-8)
    )
    return [
        Report("β", beta, "exact", "β² = λ_max(B − AᵀG⁻¹A, B), derived"),
        Report("κ", kappa, "exact"),
        Report("C", C, "exact", "λ_max(B_{d^π}, B_μ)"),
        Report("Bellman error of LSTD", error, "exact", "‖Q̂ − TQ̂‖_μ"),
        Report("value error of LSTD", value_error, "exact", "|E_ρ(Q̂ − Q^π)|"),
        Report("its bound", math.sqrt(C) / (1 - known.discount) * error, "bound", "√C/(1 − γ) · ‖Q̂ − TQ̂‖_μ",
               assumptions=(realized,)),
    ]  # fmt: skip


def charts(given: Given, found: OffPolicyReport) -> list[Chart]:
    """The worst of several features; where the problem is known, error against rows, and of one feature β and κ against
    μ."""
    known, n, d = given.exact, len(given.phi), len(found.weights)
    worst = found.misalignment.worst_direction / abs(found.misalignment.worst_direction).max()
    line = Line("worst direction", [float(i) for i in range(d)], worst.tolist())
    farthest = Chart("Features whose Bellman image is farthest outside the class", "feature", "weight", [line])
    out = [farthest] if d > 1 else []
    if known is None:
        return out
    sizes = [k for k in (n // 64, n // 16, n // 4, n) if k > 4 * d]
    errors = [math.sqrt(float(known.mu.ravel() @ known.bellman_error(ev.lstd(
        given.phi[:k], given.phi_next[:k], given.rewards[:k], given.discount)) ** 2)) for k in sizes]  # fmt: skip
    predicted, at = [found.predicted_bellman_error * math.sqrt(n / k) for k in sizes], [float(k) for k in sizes]
    if sizes:
        out.append(Chart("Bellman error of LSTD", "transitions", "‖Q̂ − TQ̂‖_μ",
                         [Line("found", at, errors), Line("predicted", at, predicted)], "xy"))  # fmt: skip
    if known.mu.shape == (2, 1):
        ps = np.linspace(0.01, 0.99, 99)
        mu, x, y = np.stack([ps, 1 - ps], 1), known.phi[:, 0], known.phi_next[:, 0]
        G, A, B = mu @ x**2, mu @ (x * (x - known.discount * y)), mu @ (x - known.discount * y) ** 2
        out.append(Chart("What the log's distribution does: completeness and convergence are different things",
                         "share of the first state", "",
                         [Line("misalignment β", ps.tolist(), np.sqrt(np.maximum(1 - A**2 / (G * B), 0)).tolist()),
                          Line("κ: FQE diverges above 1", ps.tolist(), abs(1 - A / G).tolist())]))  # fmt: skip
    return out
