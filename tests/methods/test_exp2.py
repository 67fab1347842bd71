"""Exp2 with one-sided feedback: the numbers worked by hand, identities, and bounds on hundreds of random instances."""

import json
import math
import re
import runpy
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anypolicy import catalogue
from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.families.exact import solve
from anypolicy.loops.one_sided import History, Naive, full_label_weights, plain_rate, run
from anypolicy.methods.exact.exp2 import Exp2, exp2, exp2_step
from anypolicy.parts.fairness import best_fair_mixture, gaps, objections
from anypolicy.parts.one_sided import (
    estimates,
    exponential_weights,
    label_losses,
    loss_bound,
    penalties,
    regret_bound,
    resampled_mean,
    rule_losses,
    second_moment,
    theory_rate,
    violation_bound,
)  # fmt: skip
from anypolicy.tasks.exact.one_sided import Cases, Halfspaces, halfspaces, load

SEEDS = st.integers(0, 2**32 - 1)
ROWS = np.array([[True, False, True], [False, True, True]])  # cases, rules: h_0 = (1, 0), h_1 = (0, 1), h_2 = (1, 1)
START, ETA = np.array([0.0, 0.2, 0.5]), 0.7


def seen(y, accepted):
    return np.where(accepted, y, np.nan)


@pytest.mark.parametrize(("accepted", "y", "loss"), [(1, 1, 0.0), (1, 0, 1.0), (0, 1, 0.5), (0, 0, 0.5)])
def test_identity_of_the_loss(accepted, y, loss):
    of_accepting, of_rejecting = label_losses(seen(np.array([y]), np.array([accepted == 1])), np.array([accepted == 1]))
    assert (of_accepting if accepted else of_rejecting)[0] == loss
    assert loss == 0.5 * (accepted != y) + 0.5 * (y == 0)


def test_weights():
    w = exponential_weights(START, ETA)
    assert w.tolist() == pytest.approx([0.388493, 0.337740, 0.273767], abs=1e-6)
    assert (ROWS @ w).tolist() == pytest.approx([0.662260, 0.611507], abs=1e-6)


@pytest.mark.parametrize(
    ("drawn", "feedback", "want"),
    [(0, "semi", (9.455077, 0.2, 3.519962)), (0, "full", (4.5, 0.7, 2.5)),
     (1, "semi", (0.0, 3.315734, 2.135305)), (1, "full", (4.5, 2.335305, 4.135305)),
     (2, "semi", (3.019962, 1.835305, 5.155267))],
)  # fmt: skip
def test_one_round(drawn, feedback, want):
    accepted = ROWS[:, drawn]
    got = exp2_step(START, ROWS, accepted, seen(np.array([1, 0]), accepted), (0, 1), 2.0, ETA, feedback)
    assert got.tolist() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("feedback", ["semi", "full"])
def test_the_mean_increment(feedback):
    w = exponential_weights(START, ETA)
    steps = [exp2_step(START, ROWS, a, seen(np.array([1, 0]), a), (0, 1), 2.0, ETA, feedback) - START for a in ROWS.T]
    assert (w @ np.stack(steps)).tolist() == pytest.approx([4.5, 1.5, 3.0], abs=1e-12)


def test_bounds_of_the_sheet():
    assert theory_rate(4, 8000, 62, 0.0) == pytest.approx(0.007183, abs=1e-6)
    assert regret_bound(4, 8000, 62, 0.0) == pytest.approx(2298.42, abs=0.01)
    assert regret_bound(4, 8000, 62, 0.0) == pytest.approx(2 * 4 * math.sqrt(2.5 * 8000 * math.log(62)))
    c = 8000**0.25
    assert c == pytest.approx(9.457416, abs=1e-6)
    assert second_moment(4, c) == pytest.approx(849.031, abs=1e-3)
    assert loss_bound(4, 8000, 62, c) == pytest.approx(7487.66, abs=0.01)
    assert violation_bound(4, 8000, 62, c, 0.2) == pytest.approx(12417.6, abs=0.1)
    assert violation_bound(4, 10**6, 62, 10**1.5, 0.2) == pytest.approx(357860.5, abs=0.1)


def test_the_theorys_rate_is_the_best_and_bounds_hold_at_any_other():
    best = theory_rate(4, 500, 10, 3.0)
    for factor in (0.2, 0.5, 0.9, 1.1, 2.0, 5.0):
        other = loss_bound(4, 500, 10, 3.0, factor * best)
        assert other == pytest.approx(loss_bound(4, 500, 10, 3.0) * (factor + 1 / factor) / 2)
    assert loss_bound(4, 500, 1, 3.0, 0.0) == 0 and violation_bound(4, 500, 10, 0.0, 0.1) == math.inf


@pytest.mark.parametrize(("q", "most", "mean"), [(0.1, 20, 8.784233), (0.3, 10, 3.239175)])
def test_resampling_mean(q, most, mean):
    assert resampled_mean(q, most) == pytest.approx(mean, abs=1e-6)
    series = sum(min(j, most) * (1 - q) ** (j - 1) * q for j in range(1, 2000))
    assert resampled_mean(q, most) == pytest.approx(series, rel=1e-9)
    assert 1 - q * resampled_mean(q, most) == pytest.approx((1 - q) ** most)


def small_round(seed):
    """A random round: cases × rules, weights, labels, a pair or none, a penalty."""
    rng = np.random.default_rng(seed)
    k, n, eta, c = rng.integers(1, 5), rng.integers(1, 6), rng.uniform(0.01, 2), rng.choice([0.0, 1.0, 8.0])
    accept, y, losses = rng.random((k, n)) < 0.5, rng.integers(0, 2, k), rng.random(n) * 2
    pair = tuple(rng.permutation(k)[:2].tolist()) if k > 1 and rng.random() < 0.7 else None
    return accept, y, losses, pair, c, eta


def true_losses(accept, y, pair, c):
    of_accepting, of_rejecting = 1.0 - y, np.full(len(y), 0.5)
    unfair, unkind = penalties(len(y), pair, c)
    return (
        of_accepting + unfair,
        of_rejecting + unkind,
        rule_losses(accept, of_accepting + unfair, of_rejecting + unkind),
    )


@settings(max_examples=200)
@given(SEEDS, st.sampled_from(["semi", "full"]))
def test_estimates_are_unbiased_and_no_larger_than_the_bound_says(seed, feedback):
    """Over all draws: mean = the penalised loss; Σ w_h E ℓ̂_h² ≤ k Σ ℓ² ≤ B_C. The bound on regret stands on both."""
    accept, y, losses, pair, c, eta = small_round(seed)
    k = len(y)
    w = exponential_weights(losses, eta)
    steps = np.stack([exp2_step(losses, accept, a, seen(y, a), pair, c, eta, feedback) - losses for a in accept.T])
    of_accepting, of_rejecting, true = true_losses(accept, y, pair, c)
    assert w @ steps == pytest.approx(true, rel=1e-9, abs=1e-9)
    assert (steps > -1e-12).all()
    second = w @ (steps**2 @ w)
    assert second <= k * float((of_accepting**2 + of_rejecting**2).sum()) * (1 + 1e-9)
    assert k * float((of_accepting**2 + of_rejecting**2).sum()) <= second_moment(k, c) + 1e-9


def test_the_second_moment_is_reached():
    """One case, all rules accept or all reject: k Σ ℓ² with the worst labels is B_C up to the side never played."""
    accept, y = np.ones((1, 3), bool), np.zeros(1)
    step = exp2_step(np.zeros(3), accept, accept[:, 0], y, None, 0.0, 0.1)
    assert float(np.mean(step**2)) == 1.0 and second_moment(1, 0.0) == 1.25


@settings(max_examples=300)
@given(SEEDS)
def test_exponential_weights_on_every_path(seed):
    """Σ_t ⟨w_t, ℓ_t⟩ − min_h L_h ≤ ln n/η + (η/2) Σ_t ⟨w_t, ℓ_t²⟩ for losses ≥ 0, whatever they are."""
    rng = np.random.default_rng(seed)
    rounds, n, eta = rng.integers(1, 60), rng.integers(1, 8), rng.uniform(0.001, 3)
    losses = rng.random((rounds, n)) ** 4 * rng.choice([0.1, 1.0, 30.0]) * (rng.random((rounds, n)) < rng.random())
    w = exponential_weights(losses.cumsum(0) - losses, eta)
    excess = (w * losses).sum() - losses.sum(0).min()
    assert excess <= math.log(n) / eta + eta / 2 * (w * losses**2).sum() + 1e-9


def test_its_constant_cannot_be_smaller():
    """A rule of little weight that loses a little: the step of the proof is reached to three digits."""
    w, x, eta = np.array([1e-4, 1 - 1e-4]), np.array([1.0, 0.0]), 1e-3
    mixed = -math.log(w @ np.exp(-eta * x)) / eta
    assert w @ x - mixed == pytest.approx(eta / 2 * (w @ x**2), rel=1e-3)


def stream(rng, rounds, cases, rules):
    """Random rules as indicators of one-hot features, labels of one of several kinds, and a panel's limits."""
    accept = rng.random((rounds, cases, rules)) < rng.random(rules)
    accept[..., -1] = False
    kind = rng.integers(4)
    favourite = accept[..., rng.integers(rules)]
    noise = rng.random((rounds, cases)) < rng.uniform(0, 0.4)
    y = [favourite ^ noise, rng.random((rounds, cases)) < 0.5, np.ones((rounds, cases), bool),
         accept[..., 0] ^ (np.arange(rounds) > rounds // 2)[:, None]][kind]  # fmt: skip
    half = Halfspaces(np.eye(rules), np.full(rules, 0.5))
    return Cases("random", accept.astype(float), y.astype(float), half, (), np.eye(rules))


def against(history, s, weights):
    """Expected errors of π_t above those of a mixture."""
    return float(np.abs(history.pi - s.y).sum() - np.abs(s.accept @ weights - s.y).sum())


@pytest.fixture
def unchecked(monkeypatch):
    """Shapes are checked in all other tests; here a hundred thousand rounds would take minutes."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("block", range(5))
def test_regret_without_a_penalty_is_below_its_bound(block, unchecked):
    """Forty random instances a block, where the bound is well below the number of decisions."""
    for seed in range(40):
        rng = np.random.default_rng([block, seed])
        rounds, cases, n = 200, int(rng.integers(1, 4)), int(rng.integers(2, 5))
        s = stream(rng, rounds, cases, n)
        feedback = "full" if seed % 2 else "semi"
        learner = Exp2(s.rules, n, 0.0, theory_rate(cases, rounds, n, 0.0), rng, feedback)
        history = run(s, learner, np.ones((rounds, cases, cases)), 0.1)
        errors = (s.accept != s.y[:, :, None]).sum((0, 1))
        bound = regret_bound(cases, rounds, n, 0.0)
        assert bound < 0.3 * rounds * cases
        assert against(history, s, np.eye(n)[errors.argmin()]) <= bound, (block, seed)
        assert history.regret(float(errors.min())) <= bound, (block, seed)
        assert history.violations == 0


@pytest.mark.parametrize("block", range(5))
def test_reports_and_regret_with_a_penalty_are_below_their_bounds(block, unchecked):
    """Twenty random instances a block; C = √T makes the bound on reports smaller than the number of rounds."""
    for seed in range(20):
        rng = np.random.default_rng([block, seed, 1])
        rounds, cases, n = 400, 2, int(rng.integers(2, 4))
        s, c, alpha = stream(rng, rounds, cases, n), math.sqrt(rounds), float(rng.uniform(0.4, 0.6))
        limits = rng.random((rounds, cases, cases)) * 0.3
        learner = Exp2(s.rules, n, c, theory_rate(cases, rounds, n, c), rng)
        history = run(s, learner, limits, alpha)
        errors = (s.accept != s.y[:, :, None]).sum((0, 1)).astype(float)
        fair = best_fair_mixture(s.accept, errors, limits, 0.0)
        bound = violation_bound(cases, rounds, n, c, alpha)
        assert fair is not None and bound < 0.7 * rounds
        assert history.violations <= bound, (block, seed)
        assert against(history, s, fair) <= regret_bound(cases, rounds, n, c), (block, seed)
        assert (history.violated == objections(history.pi, limits, alpha).any((1, 2))).all()


@settings(max_examples=50)
@given(SEEDS)
def test_penalised_regret_adds_up(seed):
    """Σ E ℓ(π_t) − ℓ(u) = half the errors' difference + C × difference of the gaps at reported pairs."""
    rng = np.random.default_rng(seed)
    s, c, limits = stream(rng, 40, 3, 4), 2.5, rng.random((40, 3, 3)) * 0.5
    history = run(s, Exp2(s.rules, 4, c, 0.05, rng), limits, 0.1)
    u = rng.dirichlet(np.ones(4))
    total = half = paid = 0.0
    for t in range(40):
        pair = tuple(history.pairs[t].tolist()) if history.violated[t] else None
        of_accepting, of_rejecting, true = true_losses(s.accept[t], s.y[t], pair, c)
        total += history.pi[t] @ of_accepting + (1 - history.pi[t]) @ of_rejecting - u @ true
        half += 0.5 * (np.abs(history.pi[t] - s.y[t]).sum() - np.abs(s.accept[t] @ u - s.y[t]).sum())
        if pair:
            paid += gaps(history.pi[t])[pair] - gaps(s.accept[t] @ u)[pair]
    assert total == pytest.approx(half + c * paid, abs=1e-9)


def test_labels_of_rejected_cases_cannot_matter():
    s, limits = halfspaces(150, 4, seed=3), np.full((150, 4, 4), 0.2)

    def history(y):
        other = Cases(s.name, s.x, y, s.rules, s.auditors, s.separators)
        return run(other, Exp2(s.rules, 62, 4.0, 0.02, np.random.default_rng(0)), limits, 0.1)

    first = history(s.y)
    again = history(np.where(first.accepted, s.y, 1 - s.y))
    assert 0 < first.accepted.mean() < 1
    assert (first.pi == again.pi).all() and (first.accepted == again.accepted).all()


def test_without_reports_the_penalty_does_not_matter():
    s = halfspaces(200, 4)
    nobody = np.ones((200, 4, 4))
    a, b = (run(s, Exp2(s.rules, 62, c, 0.02, np.random.default_rng(0)), nobody, 0.1) for c in (0.0, 9.0))
    assert (a.pi == b.pi).all() and a.violations == b.violations == 0


def test_one_case_has_no_pairs_and_equal_rules_no_regret():
    s = halfspaces(100, 1)
    assert run(s, Exp2(s.rules, 62, 5.0, 0.1, np.random.default_rng(0)), np.zeros((100, 1, 1)), 0.0).violations == 0
    same = Halfspaces(np.repeat(s.rules.weights[:1], 3, 0), np.repeat(s.rules.offsets[:1], 3))
    equal = Cases("equal", s.x, s.y, same, s.auditors, s.separators)
    history = run(equal, Exp2(same, 3, 0.0, 0.1, np.random.default_rng(0)), np.ones((100, 1, 1)), 0.1)
    assert history.regret(float((same(s.x) != s.y[:, :, None]).sum((0, 1)).min())) == 0


def test_what_cannot_be_used_is_named():
    accepted = np.array([True, True])
    with pytest.raises(InputError, match="label of accepted case 1"):
        exp2_step(START, ROWS, accepted, np.array([1.0, np.nan]), None, 0.0, ETA)
    with pytest.raises(InputError, match="probability of the decision on case 0"):
        exp2_step(
            START[:2], ROWS[:, :2] | np.array([[True], [False]]), np.array([False, False]), np.zeros(2), None, 0.0, ETA
        )


def test_feedback_full_has_less_variance_than_semi():
    """At the round of the sheet, over the draws."""
    w = exponential_weights(START, ETA)
    spread = {}
    for feedback in ("semi", "full"):
        steps = np.stack(
            [exp2_step(START, ROWS, a, seen(np.array([1, 0]), a), (0, 1), 2.0, ETA, feedback) for a in ROWS.T]
        )
        spread[feedback] = float(w @ ((steps - w @ steps) ** 2).sum(1))
    assert spread["full"] < 0.5 * spread["semi"]


def test_estimates_take_counts_for_probabilities():
    accepted = np.array([True, False])
    got = estimates(np.array([0.0, np.nan]), accepted, np.array([3.0, 2.0]), (0, 1), 4.0)
    assert [x.tolist() for x in got] == [[15.0, 0.0], [0.0, 9.0]]
    got = estimates(np.array([0.0, np.nan]), accepted, np.array([3.0, 2.0]), (0, 1), 4.0, "full")
    assert [x.tolist() for x in got] == [[7.0, 0.0], [0.5, 4.5]]


def test_history():
    h = History(np.array([[0.5, 1.0]]), np.array([[True, False]]), np.array([[-1, -1]]), np.array([[0.0, 1.0]]))
    assert h.errors.tolist() == [2.0] and h.violations == 0 and h.regret(0.5) == 1.5


def test_baselines():
    """Labels unseen taken for 0: where all labels are 1 it still learns to reject; with all labels seen it accepts."""
    x = np.ones((400, 2, 1))
    two = Halfspaces(np.zeros((2, 1)), np.array([-1.0, 1.0]))
    s = Cases("all good", x, np.ones((400, 2)), two, (), np.ones((1, 1)))
    rejecting = [run(s, Naive(two, 2, 0.1, np.random.default_rng(seed)), np.ones((400, 2, 2)), 0.1).accepted[-50:].mean()
                 for seed in range(20)]  # fmt: skip
    assert min(rejecting) == 0.0
    fair = run(s, Exp2(two, 2, 0.0, 0.1, np.random.default_rng(0)), np.ones((400, 2, 2)), 0.1)
    assert fair.accepted[-50:].mean() == 1.0
    w = full_label_weights(s)
    assert w[0].tolist() == [0.5, 0.5] and w[-1, 0] > 0.999
    assert plain_rate(s) == pytest.approx(math.sqrt(8 * math.log(2) / 400) / 2), "√(8 ln n/T)/k"


def test_penalty_buys_fairness():
    found = exp2(rounds=300, seed=1)
    rows = found.tables["Frontier"]
    unfair, wrong = ([r[key] for r in rows] for key in ("rounds with a report", "error rate"))
    assert rows[0]["C"] == 0 and unfair[0] > 2 * unfair[-1] and wrong[0] < wrong[-1]
    by = {r.quantity: r for r in found.reports}
    assert by["regret bound"].value == pytest.approx(
        regret_bound(4, 300, 62, 300**0.25, 5 * theory_rate(4, 300, 62, 300**0.25))
    )
    assert by["regret"].value < by["regret bound"].value and not by["regret bound"].failed
    assert "says nothing" in by["bound on rounds with a report"].note
    assert [c.title for c in found.charts] == [
        "Accuracy and fairness", "Errors above the best mixture fair at α − ε", "Rounds with a report",
    ]  # fmt: skip
    assert exp2(rounds=300, seed=1).tables == found.tables
    known = found.tables["Best mixtures in hindsight"]
    assert [r["learner"] for r in known] == [f"best mixture fair at {0.1 * k:.2g}" for k in range(1, 11)]
    fairer = [(r["rounds with a report"], -r["error rate"]) for r in known]
    assert fairer == sorted(fairer) and fairer[0] < fairer[-1], "what may be less fair errs less"


def test_a_bound_without_a_comparator_is_void():
    found = exp2(rounds=60, epsilon=0.2)
    by = {r.quantity: r for r in found.reports}
    assert by["bound on rounds with a report"].failed and by["regret bound"].failed and "regret" not in by


def test_without_a_penalty_the_best_rule_is_the_comparator():
    by = {r.quantity: r for r in exp2(rounds=60, penalty=0.0, rate=1.0).reports}
    assert by["regret bound"].value == pytest.approx(2 * 4 * math.sqrt(2.5 * 60 * math.log(62)))
    assert by["regret"].value == pytest.approx((by["error rate"].value - by["error rate of the best rule"].value) * 240)
    assert by["regret"].note == "errors above the best rule" and "bound on rounds with a report" not in by


@pytest.mark.parametrize(
    ("knob", "value"),
    [("rounds", 0), ("cases", 0), ("penalty", -1.0), ("rate", 0.0), ("alpha", -0.1), ("gamma", 0.0), ("epsilon", 0.0),
     ("data", "german"), ("data", "missing.csv"), ("penalty", math.inf)],
)  # fmt: skip
def test_impossible_settings(knob, value):
    with pytest.raises(InputError, match=f"^{knob}"):
        exp2(**{"rounds": 20, knob: value})


def test_a_real_table():
    found = solve("exp2", data="breast-cancer", rounds=150, penalty=0.0)
    by = {r.quantity: r.value for r in found.reports}
    assert by["error rate of the best rule"] < 0.06 and by["error rate"] < 0.25
    naive = next(r for r in found.tables["Beside baselines"] if str(r["learner"]).startswith("unseen"))
    assert 0 <= naive["accepted"] <= 1


def test_command_line(tmp_path, capsys):
    assert main(["solve", "exp2", "--exp2.rounds", "60", "--out", str(tmp_path / "found")]) == 0
    written = json.loads((tmp_path / "found" / "solution.json").read_text())
    assert written["settings"]["rounds"] == 60 and written["settings"]["alpha"] == 0.1
    assert written["settings"]["penalty"] == 60**0.25 and written["settings"]["epsilon"] == 0.1
    page = (tmp_path / "found" / "report.html").read_text()
    assert "Accuracy and fairness" in page and "Beside baselines" in page
    assert main(["solve", "exp2", "--exp2.gamma", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: exp2.gamma: got 2.0")
    assert main(["show", "exp2"]) == 0 and "w_h ∝ exp(−η L̂_h)" in capsys.readouterr().out
    assert catalogue.get("exp2", "exact").family == "exact"


def test_the_example_of_the_page(tmp_path, capsys):
    page = Path(__file__).parents[2] / "docs" / "fairness.md"
    [code] = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    runpy.run_path(str(tmp_path / "example.py"))
    reports, errors, accepted = map(float, capsys.readouterr().out.split())
    assert 0 <= reports < 500 and 0 < errors < 2 and 0 < accepted < 1


def test_a_stream_by_name_is_the_same_every_time():
    a, b, c = load("halfspaces", 5, 4, 0), load("halfspaces", 5, 4, 0), load("halfspaces", 5, 4, 1)
    assert (a.x == b.x).all() and not (a.x == c.x).any() and len(a.rules.offsets) == 62
