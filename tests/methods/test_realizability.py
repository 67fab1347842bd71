"""When is realizability sufficient: worked numbers, bounds on random problems, estimates against the truth, bad input."""

import json
import math

import numpy as np
import pytest
from scipy.linalg import eigh

from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.families import exact
from anypolicy.methods.exact.realizability import (
    misalignment,
    moments,
    of_moments,
    off_policy_report,
    predicted_error,
    report_rows,
    verdict,
)
from anypolicy.parts import evaluation as ev
from anypolicy.parts import mdp
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.exact.evaluation_problems import EvaluationProblem, random_problem, three_state, two_state


def close(*values, tol=1e-6):
    return pytest.approx(values if len(values) > 1 else values[0], abs=tol)


def plain(e):
    """G, A, B of a known problem, without whitening."""
    mu, phi, off = e.mu.ravel()[:, None], e.phi, e.phi - e.discount * e.phi_next
    return phi.T @ (mu * phi), phi.T @ (mu * off), off.T @ (mu * off)


def beta_of(e):
    return misalignment(e.phi, e.phi_next, e.discount, "exact", weights=e.mu.ravel()).beta


def kappa_of(e):
    m = moments(e.phi, e.phi_next, e.discount, "exact", weights=e.mu.ravel())
    return ev.spectral_radius(np.eye(len(m.A)) - m.A)


def rows_of(e, log):
    cond = log.states * e.mu.shape[1] + log.actions
    return ev.look_up(e.features, log.states, log.actions), ev.next_values(e.features, log, e.policy), log.rewards, cond


# --- worked numbers ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("p", "a", "beta", "kappa"),
    [(0.5, -0.2, 0.976187, 1.08), (0.9, -0.68, 0.621882, 1.523077), (0.1, 0.28, 0.887755, None),
     (0.2, None, 0.976187, 0.952941), (1 / 3, 0.0, 1.0, None)],
)  # fmt: skip
def test_two_states(p, a, beta, kappa):
    e = two_state(p)
    G, A, B = (float(x[0, 0]) for x in plain(e))
    assert a is None or close(a) == A
    assert beta_of(e) == close(beta)
    assert kappa is None or kappa_of(e) == close(kappa)
    if p == 0.5:
        m = moments(e.phi, e.phi_next, 0.9, "exact", weights=e.mu.ravel())
        assert close(2.5, 0.34) == (G, B) and float(m.N[0, 0]) * G == close(0.324)
        assert 1 - beta_of(e) ** 2 == close(0.047059) and close(0.047059) == A**2 / (G * B)
    if p == 1 / 3:
        with pytest.raises(InputError, match="singular"):
            ev.lstd(e.phi, e.phi_next, e.reward.ravel(), 0.9, weights=e.mu.ravel())
        assert ev.lstd(e.phi, e.phi_next, e.reward.ravel(), 0.9, ridge=0.1, weights=e.mu.ravel()) == close(0.0)


def test_completeness_and_convergence_are_different_things():
    """Small κ with β near 1 and the other way round; LSTD solves both."""
    for p, diverges in ((0.2, False), (0.9, True), (0.5, True)):
        e = two_state(p)
        rewards = (e.phi - 0.9 * e.phi_next) @ np.array([3.0])
        assert float(ev.lstd(e.phi, e.phi_next, rewards, 0.9, weights=e.mu.ravel())[0]) == close(3.0)
        w, diverged = ev.fqe(e.phi, e.phi_next, rewards, 0.9, weights=e.mu.ravel())
        assert diverged is diverges
        assert diverged or float(w[0]) == close(3.0)


def test_with_a_table_everything_is_complete():
    e = random_problem(6, 2, 3, 1)
    eye, next_rows = np.eye(12), mdp.pair_kernel(e.kernel, e.policy)
    mu, r = e.mu.ravel(), e.reward.ravel()
    assert misalignment(eye, next_rows, 0.9, "exact", weights=mu).beta == close(0.0)
    w, diverged = ev.fqe(eye, next_rows, r, 0.9, weights=mu)
    assert not diverged
    assert np.allclose(ev.lstd(eye, next_rows, r, 0.9, weights=mu), e.q, atol=1e-9) and np.allclose(w, e.q, atol=1e-7)


def test_three_states():
    e = three_state()
    G, A, B = plain(e)
    assert A.ravel().tolist() == close(0.345, -0.43, -0.006, 0.292)
    assert G.ravel().tolist() == close(0.575, 0.15, 0.15, 1.1)
    assert B.ravel().tolist() == close(0.21852, -0.30024, -0.30024, 0.48688)
    assert beta_of(e) == close(0.167014) and kappa_of(e) == close(0.8)
    assert e.occupancy.tolist() == close(0.282051, 0.376068, 0.341880)
    off = e.phi - 0.8 * e.phi_next
    assert ev.concentrability(off, off, e.occupancy, e.mu.ravel()) == close(1.641296)
    assert ev.density_ratio_bound(e.occupancy, e.mu.ravel()) == close(1.709402)
    assert e.reward.ravel().tolist() == close(2.2, 0.7, -2.0)
    assert ev.lstd(e.phi, e.phi_next, e.reward.ravel(), 0.8, weights=e.mu.ravel()).tolist() == close(1.0, -2.0)


def test_value_error_of_another_q():
    e, w = three_state(), np.array([1.2, -1.5])
    residual, mu = e.bellman_error(w), e.mu.ravel()
    off = float(e.first.ravel() @ (e.phi @ w - e.q))
    assert off == close(0.2) and float(e.occupancy @ residual) / 0.2 == close(0.2)
    error = math.sqrt(mu @ residual**2)
    assert error == close(0.265354)
    assert math.sqrt(1.641296) / 0.2 * error == close(1.699767, tol=1e-5)
    W = ev.whitening(e.phi, mu)
    fitted = e.phi @ W @ (W.T @ (e.phi.T @ (mu * residual)))
    excess = float(mu @ fitted**2)
    assert excess == close(0.068600) and (1 - beta_of(e) ** 2) * error**2 == close(0.068449)


def test_finite_class():
    Qs = np.array([(0, 0), (1, 2), (2, 4), (1, 1)], dtype=float)[:, :, None]
    log = ev.Log(np.array([0, 0, 1, 1, 1]), np.zeros(5, int), np.array([1, 0, 0.5, -0.5, 0]), np.array([1, 1, 1, 1, 0]))
    index, excess = ev.minimax_finite(Qs, log, np.ones((2, 1)), 0.5)
    own = [
        float(
            (
                (ev.look_up(q, log.states, log.actions) - log.rewards - 0.5 * ev.next_values(q, log, np.ones((2, 1))))
                ** 2
            ).mean()
        )
        for q in Qs
    ]
    assert own == close(0.3, 1.15, 3.7, 0.35)
    assert index == 0 and excess.tolist() == close(0.0, 0.8, 2.4, 0.0)
    functions = [lambda s, a, q=q: q[s, a] for q in Qs]
    again = ev.minimax_finite(functions, log, lambda s: np.ones((len(s), 1)), 0.5)
    assert again[0] == 0 and np.array_equal(again[1], excess)


def test_metric_entropy_and_ranks():
    assert ev.metric_entropy("finite", size=8) == close(math.log(8))
    assert ev.metric_entropy("linear", size=3, radius=2.0, scale=0.1) == close(3 * math.log(41))
    x = np.random.default_rng(0).normal(size=(50, 4))
    x[:, 3] = x[:, 0]
    assert ev.metric_entropy("network", features=x, radius=2.0, scale=0.1) == close(3 * math.log(41))
    assert ev.entropy_rank(np.eye(5)) == close(5.0) and 1 < ev.entropy_rank(x) < 3
    with pytest.raises(InputError, match="last layer"):
        ev.metric_entropy("network")


# --- what must hold on every problem ----------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(120))
def test_bounds_on_random_problems(seed):
    rng = np.random.default_rng(seed)
    states, actions = (int(n) for n in rng.integers(2, 7, 2))
    d, discount = int(rng.integers(1, min(states * actions, 6))), float(rng.uniform(0.3, 0.95))
    e = random_problem(states, actions, d, seed, discount)
    mu, off = e.mu.ravel(), e.phi - discount * e.phi_next
    m = moments(e.phi, e.phi_next, discount, "exact", weights=mu)
    found = of_moments(m)
    C = ev.concentrability(off, off, e.occupancy, mu)
    assert ev.density_ratio_bound(e.occupancy, mu) * (1 + 1e-9) >= C
    G, A, B = plain(e)
    least = eigh(A.T @ np.linalg.solve(G, A), B, eigvals_only=True)[0]
    assert 1 - found.beta**2 == pytest.approx(least, abs=1e-6)
    assert e.occupancy.sum() == close(1.0) and np.allclose(e.phi @ e.weights, e.q)

    W = ev.whitening(e.phi, mu)
    for w in [*rng.normal(size=(20, d)), found.worst_direction + e.weights]:
        # inf over Q' of ‖Q' − TQ‖ ≤ β ‖Q − TQ‖, with equality in the worst direction; the excess is what is left
        residual = e.bellman_error(w)
        size = mu @ residual**2
        inside = mu @ (e.phi @ W @ (W.T @ (e.phi.T @ (mu * residual)))) ** 2
        assert size - inside <= found.beta**2 * size + 1e-9
        assert inside >= (1 - found.beta**2) * size - 1e-9
        value = abs(e.first.ravel() @ (e.phi @ w - e.q))
        assert value == close(abs(e.occupancy @ residual) / (1 - discount), tol=1e-8)
        assert value <= math.sqrt(C) / (1 - discount) * math.sqrt(size) + 1e-9
        assert e.occupancy @ residual**2 <= C * size + 1e-9
    assert size - inside == pytest.approx(found.beta**2 * size, abs=1e-6 * max(size, 1))
    by_hand = np.trace(B @ np.linalg.inv(A.T @ np.linalg.solve(G, A))) / 100
    assert predicted_error(m, 1.0, 100) ** 2 == pytest.approx(by_hand, rel=1e-5)
    assert predicted_error(m, 1.0, 100) <= math.sqrt(d / 100 / max(1 - found.beta**2, 1e-12)) + 1e-9
    _, diverged = ev.fqe(e.phi, e.phi_next, e.reward.ravel(), discount, weights=mu)
    assert diverged == (ev.spectral_radius(np.eye(d) - m.A) > 1)


@pytest.mark.parametrize("seed", range(20))
def test_what_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    e = random_problem(5, 2, 3, seed)
    mu, beta, change = e.mu.ravel(), beta_of(e), rng.normal(size=(3, 3))
    assert 0 <= beta <= 1
    assert misalignment(e.phi @ change, e.phi_next @ change, 0.9, "exact", weights=mu).beta == close(beta)
    assert misalignment(1e6 * e.phi, 1e6 * e.phi_next, 0.9, "exact", weights=mu).beta == close(beta)
    twice = [np.concatenate([x, x[:, :1]], 1) for x in (e.phi, e.phi_next)]
    assert misalignment(*twice, 0.9, "exact", weights=mu).beta == close(beta)
    assert np.allclose(twice[0] @ ev.lstd(*twice, e.reward.ravel(), 0.9, weights=mu), e.q)
    assert misalignment(e.phi, e.phi_next, 0.0, "exact", weights=mu).beta == close(0.0)
    feature_ratio = eigh(e.phi.T @ (e.occupancy[:, None] * e.phi), plain(e)[0], eigvals_only=True)[-1]
    assert ev.concentrability(e.phi, e.phi, e.occupancy, mu) == pytest.approx(feature_ratio)
    # β² = 1 − λ_min whichever way it is written
    m = moments(e.phi, e.phi_next, 0.9, "exact", weights=mu)
    assert np.allclose(m.N, m.B - m.A.T @ m.A, atol=1e-9)


def test_lstd_is_the_minimax_choice():
    """Among 41 linear Q near it none has a smaller excess against the whole linear class."""
    e = random_problem(6, 2, 3, 4)
    log = e.log(500, np.random.default_rng(0))
    phi, phi_next, r, _ = rows_of(e, log)
    w = ev.lstd(phi, phi_next, r, 0.9)
    W = ev.whitening(phi)

    def excess(v):
        residual = phi @ v - r - 0.9 * phi_next @ v
        return float((phi @ W @ (W.T @ (phi.T @ residual / 500))) ** 2 @ np.ones(500))

    rng = np.random.default_rng(1)
    assert excess(w) == close(0.0)
    assert min(excess(w + 0.1 * rng.normal(size=3)) for _ in range(40)) > 1e-3


# --- from samples -----------------------------------------------------------------------------------------------------
def test_crossfit_and_double_find_beta_and_naive_overstates_it():
    e = random_problem(20, 2, 4, 3)
    found, truth = {"crossfit": [], "double": [], "naive": []}, beta_of(e)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        log = e.log(8000, rng)
        phi, phi_next, _, cond = rows_of(e, log)
        again = (rng.random((8000, 1)) > e.kernel.cumsum(-1)[log.states, log.actions]).sum(1)
        other = ev.next_values(e.features, ev.Log(log.states, log.actions, log.rewards, again), e.policy)
        found["crossfit"].append(misalignment(phi, phi_next, 0.9, "crossfit", cond).beta)
        found["double"].append(misalignment(phi, np.stack([phi_next, other]), 0.9, "double").beta)
        found["naive"].append(misalignment(phi, phi_next, 0.9, "naive").beta)
    assert np.mean(found["crossfit"]) == close(truth, tol=0.03)
    assert np.mean(found["double"]) == close(truth, tol=0.03)
    assert np.mean(found["naive"]) > truth + 0.08


def test_naive_is_exact_where_nothing_is_random():
    e = two_state(0.5)
    log = e.log(4000, np.random.default_rng(0))
    phi, phi_next, _, cond = rows_of(e, log)
    share = float((log.states == 0).mean())
    for how in ("naive", "crossfit"):
        assert misalignment(phi, phi_next, 0.9, how, cond).beta == close(beta_of(two_state(share)), tol=1e-5)


def test_intervals_cover():
    """Of 40 logs the jackknife's 95 % interval of β holds the truth in at least 33, and is shorter with more rows."""
    e = random_problem(10, 2, 3, 2)
    truth, width, held = beta_of(e), {}, 0
    for n, seeds in ((1000, 40), (9000, 3)):
        widths = []
        for seed in range(seeds):
            *rows, cond = rows_of(e, e.log(n, np.random.default_rng(seed)))
            found = report_rows(*rows, 0.9, cond)
            low, high = found.intervals["beta"]
            widths.append(high - low)
            held += n == 1000 and low <= truth <= high
        width[n] = float(np.median(widths))
    assert held >= 33
    assert width[9000] < 0.6 * width[1000]


def test_lstds_error_is_as_predicted():
    """E‖Q̂ − TQ̂‖² · n ≈ tr(B(AᵀG⁻¹A)⁻¹)σ² over 400 logs in which only the reward is random."""
    e = two_state(0.7)
    m = moments(e.phi, e.phi_next, 0.9, "exact", weights=e.mu.ravel())
    squared, rng = [], np.random.default_rng(0)
    for _ in range(400):
        phi, phi_next, r, _ = rows_of(e, e.log(2000, rng))
        squared.append(e.mu.ravel() @ e.bellman_error(ev.lstd(phi, phi_next, r, 0.9)) ** 2)
    assert math.sqrt(np.mean(squared)) == pytest.approx(predicted_error(m, 1.0, 2000), rel=0.08)
    assert predicted_error(m, 1.0, 2000) == close(math.sqrt(1 / 2000 / (1 - beta_of(e) ** 2)))


def test_continuous_states():
    """s' = cos 3s + noise, features 1 and s: random Fourier features find β as many next states per s do."""
    rng, n = np.random.default_rng(0), 3000
    s = rng.uniform(-1, 1, (n, 1))
    after = np.cos(3 * s) + 0.5 * rng.normal(size=(n, 1))

    def features(states, actions):
        return np.concatenate([np.ones_like(states), states], 1)

    log = ev.Log(s, np.zeros(n, int), s[:, 0], after)
    found = off_policy_report(log, lambda x: np.ones((len(x), 1)), features, 0.9)
    truth = misalignment(features(s, None), features(np.cos(3 * s), None), 0.9, "exact").beta
    assert found.beta == close(truth, tol=0.04) and 0.5 < truth < 0.9
    assert found.intervals["beta"][0] < truth < found.intervals["beta"][1]
    assert misalignment(features(s, None), features(after, None), 0.9, "naive").beta > truth + 0.04


def test_the_error_found_tells_when_q_is_not_in_the_class():
    """A class of constants cannot hold Q^π of a reward that differs: the residual found is far above the predicted."""
    base = random_problem(6, 2, 1, 0)
    reward = np.linspace(-5, 5, 12).reshape(6, 2)
    e = EvaluationProblem(base.kernel, reward, 0.1, base.policy, np.ones((6, 2, 1)), base.mu, base.first, 0.5)
    *rows, cond = rows_of(e, e.log(4000, np.random.default_rng(0)))
    found = report_rows(*rows, 0.5, cond)
    true = math.sqrt(e.mu.ravel() @ e.bellman_error(found.weights) ** 2)
    assert (
        found.bellman_error == pytest.approx(true, rel=0.05)
        and found.bellman_error > 10 * found.predicted_bellman_error
    )
    assert found.intervals["bellman_error"][0] < true < found.intervals["bellman_error"][1]


def test_terminal_steps_have_no_future():
    e = random_problem(4, 2, 2, 0)
    log = e.log(50, np.random.default_rng(0))
    ended = ev.Log(log.states, log.actions, log.rewards, log.next_states, np.arange(50) % 2 == 0)
    rows = ev.next_values(e.features, ended, e.policy)
    assert (rows[::2] == 0).all() and np.array_equal(rows[1::2], ev.next_values(e.features, log, e.policy)[1::2])


def test_verdicts():
    assert verdict(0.2, 0.9, 3.0) == "the features are complete enough"
    assert "2.5 times" in verdict(0.6, 0.9, None)
    assert "change features" in verdict(0.97, 0.9, None)
    assert "not FQE" in verdict(0.2, 1.1, None) and "coverage" in verdict(0.2, 0.9, 101.0)


# --- the command, files, bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize("instance", ["two-state", "three-state", "random"])
def test_solving_puts_the_bound_beside_the_error(instance):
    found = exact.solve("realizability", instance=instance, n=1500, discount=0.8)
    by_name = {r.quantity: r for r in found.reports}
    bound = by_name["its bound"]
    assert bound.kind == "bound" and not bound.failed and bound.value >= by_name["value error of LSTD"].value
    low, high = by_name["misalignment β"].interval
    assert low - 0.02 <= by_name["β"].value <= high + 0.02
    assert by_name["concentrability C"].value == pytest.approx(by_name["C"].value, rel=0.35)
    titles = [c.title.split()[0] for c in found.charts]
    assert titles == (["Bellman", "What"] if instance == "two-state" else ["Features", "Bellman"])


def test_a_file(tmp_path, capsys):
    e = random_problem(8, 2, 3, 5)
    phi, phi_next, r, cond = rows_of(e, e.log(3000, numpy_generator(0, "file")))
    path = tmp_path / "log.npz"
    np.savez(path, phi=phi, phi_next=phi_next, rewards=r, cond=cond, target_phi=e.phi, target_phi_next=e.phi_next,
             target_weights=e.occupancy)  # fmt: skip
    assert main(["solve", "realizability", "--realizability.data", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "misalignment" in capsys.readouterr().out
    reports = {r["quantity"]: r for r in json.loads((tmp_path / "out" / "solution.json").read_text())["reports"]}
    low, high = reports["misalignment β"]["interval"]
    assert low <= beta_of(e) <= high
    assert reports["Bellman error, predicted"]["assumptions"][0]["holds"] is None
    log = e.log(3000, numpy_generator(0, "file"))
    same = off_policy_report(log, e.policy, e.features, 0.9, (e.phi, e.phi_next, e.occupancy))
    assert close(reports["concentrability C"]["value"]) == same.C and same.beta == close(
        reports["misalignment β"]["value"]
    )
    without = off_policy_report(log, e.policy, e.features, 0.9)
    assert without.C is None and without.value_error_bound is None


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"phi": None}, "data", "'phi'"),
        ({"phi_next": np.zeros((5, 3))}, "data[phi_next]", "(40, 2)"),
        ({"rewards": np.full(40, np.nan)}, "data[rewards][0]", "finite"),
        ({"phi": np.zeros((0, 2))}, "data[phi]", "at least one"),
        ({"phi": np.zeros((40, 2))}, "features", "all are zero"),
        ({"target_phi": np.ones((3, 2))}, "data", "all of"),
        ({"cond": None}, "cond_features", "naive"),
        ({"cond": np.arange(40)}, "cond_features", "both halves"),
        ({"rewardz": np.ones(3)}, "data[rewardz]", "did you mean 'rewards'"),
        ({"rewards": np.array(["a"] * 40)}, "data[rewards]", "numbers"),
        ({"target_phi": np.eye(2), "target_phi_next": np.zeros((2, 2)), "target_weights": np.ones(2),
          "phi": np.ones((40, 1)) * [1.0, 0.0], "phi_next": np.zeros((40, 2))}, "concentrability", "[0.0, 1.0]"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(change, field, says, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"phi": rng.normal(size=(40, 2)), "phi_next": rng.normal(size=(40, 2)), "rewards": rng.normal(size=40),
              "cond": np.arange(40) % 4} | change  # fmt: skip
    path = tmp_path / "log.npz"
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError) as error:
        exact.solve("realizability", data=str(path))
    assert field in error.value.field and says in str(error.value), error.value


@pytest.mark.parametrize(
    ("given", "field"),
    [({"instance": "two-state", "states": 5}, "states"), ({"instance": "random", "p": 0.5}, "p"),
     ({"instance": "three-state", "features": 2}, "features"), ({"actions": 2}, "actions"), ({"p": 1.5}, "realizability.p"), ({"discount": 1.0}, "discount"), ({"n": 0}, "realizability.n"), ({"n": 10}, "log"),
     ({"instance": "random", "states": 0}, "realizability.states")],
)  # fmt: skip
def test_bad_settings(given, field):
    with pytest.raises(InputError) as error:
        exact.solve("realizability", **given)
    assert error.value.field == field


def test_what_an_instance_or_a_file_does_not_use_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"p: got .*; random does not use this setting, only two-state: leave it out"):
        exact.solve("realizability", instance="random", p=0.3)
    path = str(tmp_path / "log.npz")
    for given in ({"n": 100}, {"features": 2}, {"instance": "random"}):
        with pytest.raises(InputError, match=f"{next(iter(given))}.*(a file does not use|not both)"):
            exact.solve("realizability", data=path, **given)
    used = exact.solve("realizability", instance="random", states=5, n=200).settings
    assert used == {"instance": "random", "states": 5, "actions": 2, "features": 4, "n": 200}


def test_bad_tables_are_named():
    e = random_problem(3, 2, 2, 0)
    log = e.log(30, np.random.default_rng(0))
    with pytest.raises(InputError, match=r"policy\[state 1\]"):
        off_policy_report(log, np.array([[0.5, 0.5], [0.5, 0.6], [1, 0]]), e.features, 0.9)
    with pytest.raises(InputError, match="log row"):
        ev.look_up(e.features[:2], log.states, log.actions)
    with pytest.raises(InputError, match="no transitions"):
        ev.Log(*[np.zeros(0, int)] * 4)
    with pytest.raises(InputError, match=r"log.states"):
        ev.Log(np.zeros(2, int), np.zeros(3, int), np.zeros(3), np.zeros(3, int))
    with pytest.raises(InputError, match="infinite"):
        ev.density_ratio_bound(np.array([0.5, 0.5]), np.array([1.0, 0.0]))
    kernel = e.kernel.copy()
    kernel[2, 1, 0] += 0.1
    with pytest.raises(InputError, match=r"kernel\[state 2, action 1\]"):
        EvaluationProblem(kernel, e.reward, 1.0, e.policy, e.features, e.mu, e.first, 0.9)
    with pytest.raises(InputError, match="one candidate"):
        ev.minimax_finite([], log, e.policy, 0.9)
    with pytest.raises(InputError, match="row 1"):
        ev.lstd(np.array([[1.0], [np.nan]]), np.ones((2, 1)), np.ones(2), 0.9)
