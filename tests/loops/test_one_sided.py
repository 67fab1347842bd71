"""Rounds with labels of accepted cases only: what happened, and the baselines, worked out rule by rule."""

import math

import numpy as np
import pytest

from anypolicy.loops.one_sided import History, Naive, full_label_weights, mixed_row, plain_rate, run
from anypolicy.tasks.exact.one_sided import Cases, Halfspaces

NEVER = np.full((2, 2), 2.0)


def stream(seed=0, rounds=6, cases=3, rules=4):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((rounds, cases, 2)), (rng.random((rounds, cases)) < 0.6).astype(float)
    return Cases(
        "few", x, y, Halfspaces(rng.standard_normal((rules, 2)), rng.standard_normal(rules)), (), np.ones((1, 2))
    )


def test_the_rate_of_weights_on_plain_errors():
    assert plain_rate(stream()) == pytest.approx(math.sqrt(8 * math.log(4) / 6) / 3)
    assert plain_rate(stream(rounds=8, cases=2, rules=5)) == pytest.approx(math.sqrt(math.log(5)) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_weights_that_see_all_labels_know_the_rounds_before(seed):
    s = stream(seed)
    eta, got = plain_rate(s), full_label_weights(s)
    for t in range(6):
        wrong = [sum(s.accept[r, i, h] != s.y[r, i] for r in range(t) for i in range(3)) for h in range(4)]
        w = [math.exp(-eta * x) for x in wrong]
        assert got[t] == pytest.approx([x / sum(w) for x in w])


@pytest.mark.parametrize("seed", range(4))
def test_the_naive_learner_takes_what_it_does_not_see_for_0(seed):
    s, eta = stream(seed), 0.7
    learner, losses = Naive(s.rules, 4, eta, np.random.default_rng(seed)), [0] * 4
    for t in range(6):
        w = [math.exp(-eta * x) for x in losses]
        pi, accepted = learner.decide(s.x[t])
        assert pi == pytest.approx([sum(w[h] for h in range(4) if s.accept[t, i, h]) / sum(w) for i in range(3)])
        assert any((accepted == s.accept[t, :, h]).all() for h in range(4))
        learner.update(np.where(accepted, s.y[t], np.nan), None)
        for h in range(4):
            losses[h] += sum(s.accept[t, i, h] != (s.y[t, i] if accepted[i] else 0) for i in range(3))
        assert learner.losses.tolist() == losses


class Fixed:
    """Decides as it is told, and keeps what it is shown."""

    def __init__(self, pi, accepted):
        self.left, self.shown = list(zip(pi, accepted, strict=True)), []

    def decide(self, x):
        return self.left[len(self.shown)]

    def update(self, seen, pair):
        self.shown.append((seen.tolist(), pair))


def test_a_run_shows_accepted_labels_and_one_pair_a_round():
    """Gaps above limit + α: none, 0.9 − 0.2, 0.5 − 0.1 of which the limit allows 0.35."""
    s = stream(rounds=3, cases=2)
    s = Cases("few", s.x, np.array([[1.0, 0], [0, 1], [1, 1]]), s.rules, (), s.separators)
    pi, accepted = np.array([[0.5, 0.4], [0.2, 0.9], [0.5, 0.1]]), np.array([[1, 0], [1, 1], [0, 0]], bool)
    limits = np.array([np.full((2, 2), 0.05), np.full((2, 2), 0.05), [[0, 0.25], [0, 0]]])
    learner = Fixed(pi, accepted)
    history = run(s, learner, limits, 0.1)
    assert [pair for _, pair in learner.shown] == [None, (1, 0), (0, 1)]
    assert np.array_equal([seen for seen, _ in learner.shown], [[1, np.nan], [0, 1], [np.nan] * 2], equal_nan=True)
    assert history.pairs.tolist() == [[-1, -1], [1, 0], [0, 1]] and history.violations == 2
    assert history.errors.tolist() == [0, 1, 2] and history.regret(1.0) == 2
    assert history.row("a") == pytest.approx(
        {"learner": "a", "error rate": 0.5, "rounds with a report": 2 / 3, "accepted": 0.5}
    )
    nothing = History(pi, accepted, np.full((3, 2), -1), s.y)
    assert nothing.violations == 0 and nothing.row("b")["rounds with a report"] == 0


def test_rates_of_mixtures_are_expectations():
    """Of two rules, accept where x > 0 and accept always, weights ¼ and ¾: cases are accepted with 1 and ¾."""
    x, y = np.array([[[1.0], [-1.0]], [[-2.0], [-3.0]]]), np.array([[1.0, 0.0], [1.0, 1.0]])
    s = Cases("two", x, y, Halfspaces(np.array([[1.0], [0.0]]), np.array([0.0, -1.0])), (), np.ones((1, 1)))
    limits = np.stack([NEVER * 0 + 0.2, NEVER])
    got = mixed_row("m", s, np.array([0.25, 0.75]), limits, 0.01)
    assert got == pytest.approx({"learner": "m", "error rate": (0 + 0.75 + 0.25 + 0.25) / 4, "rounds with a report": 0.5,
                                 "accepted": 3.25 / 4})  # fmt: skip
    each = mixed_row("m", s, np.array([[0.25, 0.75], [1.0, 0.0]]), limits, 0.1)
    assert each["accepted"] == pytest.approx(1.75 / 4) and each["rounds with a report"] == 0
