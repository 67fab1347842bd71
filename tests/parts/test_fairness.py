"""Panels are metrics, the best fair mixture is a linear programme, and what both imply, on hundreds of random instances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from anypolicy.errors import InputError
from anypolicy.parts.fairness import Mahalanobis, Panel, best_fair_mixture, gaps, objections, report


def constant(d):
    return lambda x, other: np.full(np.broadcast_shapes(x.shape, other.shape)[:-1], d)


PI, X = np.array([0.9, 0.5, 0.2]), np.zeros((3, 1))


def test_objections_of_the_sheet():
    metrics = [constant(0.3), constant(0.45), constant(0.1)]
    counts = sum(objections(PI, Panel([m], 0.1).limits(X), 0.1).astype(int) for m in metrics)
    assert counts.tolist() == [[0, 1, 3], [0, 0, 1], [0, 0, 0]]
    assert Panel(metrics, 0.1, 1 / 3).report(PI, X) == (0, 2)
    assert Panel(metrics, 0.1, 1.0).report(PI, X) == (0, 2)
    assert Panel(metrics, 0.61, 1 / 3).report(PI, X) is None
    assert Panel(metrics, 0.59, 1 / 3).report(PI, X) == (0, 2)


@pytest.mark.parametrize(
    ("m", "gamma", "quorum"), [(3, 1 / 3, 1), (3, 0.5, 2), (3, 1.0, 3), (10, 0.3, 3), (7, 1e-9, 1)]
)
def test_quorum(m, gamma, quorum):
    assert Panel([constant(0.1)] * m, 0.1, gamma).quorum == quorum


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_a_panel_is_one_metric(seed):
    """Counting auditors one by one gives the same pairs as the quorum-th smallest distance, and fewer with larger α or γ."""
    rng = np.random.default_rng(seed)
    m, k, gamma, alpha = rng.integers(1, 6), rng.integers(1, 6), rng.uniform(0.01, 1), rng.choice([0, 0.1, 0.3])
    d = np.round(rng.random((m, k, k)), 1)
    panel = Panel([lambda x, other, j=j: d[j] for j in range(m)], alpha, gamma)
    pi, x = np.round(rng.random(k), 1), rng.random((k, 2))
    counts = sum((gaps(pi) > d[j] + alpha).astype(int) for j in range(m))
    np.fill_diagonal(counts, 0)
    against = objections(pi, panel.limits(x), alpha)
    assert (against == (counts >= max(gamma * m - 1e-9, 1e-12))).all()
    pair = panel.report(pi, x)
    if pair is None:
        assert not against.any()
    else:
        best = max(gaps(pi)[i, j] for i, j in np.argwhere(against))
        first = next((i, j) for i, j in np.argwhere(against) if gaps(pi)[i, j] == best)
        assert pair == tuple(first)
    assert not (objections(pi, panel.limits(x), alpha + 0.2) & ~against).any()
    stricter = Panel(panel.metrics, alpha, min(1.0, gamma + 0.3))
    assert not (objections(pi, stricter.limits(x), alpha) & ~against).any()
    assert panel.report(np.full(k, 0.7), x) is None


def test_limits_of_many_rounds_at_once():
    rng = np.random.default_rng(0)
    x, panel = rng.random((5, 4, 3)), Panel([Mahalanobis(np.diag(v)) for v in rng.random((3, 3)) * 3], 0.1, 0.5)
    limits = panel.limits(x)
    assert limits.shape == (5, 4, 4) and limits.max() <= 1
    for t in range(5):
        assert (panel.limits(x[t]) == limits[t]).all()
        ds = sorted(min(1, float(np.linalg.norm((x[t, 0] - x[t, 1]) * np.diag(m.matrix)))) for m in panel.metrics)
        assert limits[t, 0, 1] == pytest.approx(ds[1])


@pytest.mark.parametrize(
    ("settings", "named"),
    [(([],), "panel"), (([constant(0.1)], -0.1), "alpha"), (([constant(0.1)], float("nan")), "alpha"),
     (([constant(0.1)], 0.1, 0.0), "gamma"), (([constant(0.1)], 0.1, 1.5), "gamma")],
)  # fmt: skip
def test_panels_that_cannot_be(settings, named):
    with pytest.raises(InputError, match=f"^{named}"):
        Panel(*settings)


@pytest.mark.parametrize("d", [-0.1, 1.1, float("nan")])
def test_distances_that_cannot_be_name_the_auditor(d):
    with pytest.raises(InputError, match="auditor 1"):
        Panel([constant(0.5), constant(d)]).limits(X)


def instance(seed, constants=False):
    rng = np.random.default_rng(seed)
    rounds, k, n = rng.integers(1, 12), rng.integers(1, 5), rng.integers(1, 7)
    accept = rng.random((rounds, k, n)) < 0.5
    if constants:
        accept = np.concatenate([accept, np.ones((rounds, k, 1), bool)], 2)
    limits = rng.random((rounds, k, k)) * rng.random()
    return rng, accept, rng.integers(0, 50, accept.shape[2]).astype(float), limits


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.sampled_from([-0.1, 0.0, 0.2]))
def test_the_best_fair_mixture_is_that_of_the_whole_programme(seed, alpha):
    _, accept, errors, limits = instance(seed)
    rounds, k, n = accept.shape
    rows = [(accept[t, i].astype(float) - accept[t, j], limits[t, i, j] + alpha)
            for t in range(rounds) for i in range(k) for j in range(k) if i != j]  # fmt: skip
    whole = linprog(errors, np.array([r for r, _ in rows]) if rows else None, [b for _, b in rows] or None,
                    np.ones((1, n)), [1.0])  # fmt: skip
    found = best_fair_mixture(accept, errors, limits, alpha)
    if whole.status == 2:
        assert found is None
        return
    assert found is not None
    assert found @ errors == pytest.approx(whole.fun, abs=1e-4) and found.sum() == pytest.approx(1)
    assert not objections(accept @ found, limits, alpha + 1e-6).any()


def test_a_fair_mixture_by_hand():
    """h_0 separates two cases at distance 0.3, h_1 is constant: at α = 0.1 at most 0.4 of h_0."""
    accept = np.array([[[True, True], [False, True]]])
    limits = np.full((1, 2, 2), 0.3)
    assert best_fair_mixture(accept, np.array([0.0, 1.0]), limits, 0.1) == pytest.approx(np.array([0.4, 0.6]))
    assert best_fair_mixture(accept[:, :, :1], np.array([0.0]), limits, 0.1) is None


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.1, 0.3]))
def test_a_report_is_paid_for_by_epsilon(seed, epsilon):
    """For any policy and any mixture fair at α − ε: rounds with a report × ε ≤ Σ gap(π) − gap(u) at the reported pairs.
    This is what the bound on reports stands on."""
    rng, accept, errors, limits = instance(seed, constants=True)
    alpha = epsilon + rng.choice([0.0, 0.1])
    u = best_fair_mixture(accept, errors, limits, alpha - epsilon)
    assert u is not None  # deciding the same for all cases is fair at α − ε ≥ 0
    paid, reports = 0.0, 0
    for t in range(len(accept)):
        pi = rng.random(accept.shape[1])
        pair = report(pi, limits[t], alpha)
        if pair is not None:
            paid += gaps(pi)[pair] - gaps(accept[t] @ u)[pair]
            reports += 1
    assert paid >= reports * epsilon - 1e-5


def test_a_margin_above_alpha_may_leave_nobody_to_compare_with():
    """Two equal cases: at α − ε < 0 the panel would object even to a policy that treats them alike."""
    accept = np.ones((1, 2, 1), bool)
    assert best_fair_mixture(accept, np.zeros(1), np.zeros((1, 2, 2)), -0.1) is None
    assert best_fair_mixture(accept, np.zeros(1), np.zeros((1, 2, 2)), 0.0) is not None


@pytest.mark.parametrize("gamma", [0.2, 0.4, 0.6, 0.8, 1.0])
def test_the_panels_metric_is_the_quorum_th_smallest_of_the_auditors(gamma):
    rng = np.random.default_rng(0)
    distances = rng.random((5, 6, 6))
    auditors = [lambda x, y, d=d: d for d in distances]
    panel = Panel(auditors, gamma=gamma)
    want = np.sort(distances, axis=0)[round(5 * gamma) - 1]
    assert np.array_equal(panel.limits(np.zeros((6, 1))), want)
