"""Worked numbers of the paper (arXiv 2511.18902, figure 2) and properties of the posterior."""

import math

import numpy as np
import pytest

from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.errors import InputError
from anypolicy.methods.language.vade import ThompsonSampler, information_gain, update_counts
from tests.helpers import segment


def counts(alpha, beta, chosen, right, wrong, fast=0.2, slow=0.999):
    a, b = np.array(alpha, float), np.array(beta, float)
    return update_counts(a, b, np.array(chosen), np.array(right, float), np.array(wrong, float), fast, slow)


def group(position, verdicts):
    trajectories = [Trajectory(str(i), [segment([1])], correct=v) for i, v in enumerate(verdicts)]
    return Group(str(position), Prompt(str(position)), trajectories, position=position)


def test_the_update_of_the_papers_figure():
    a, b = counts([0.1, 2.7, 9.0], [8.4, 5.3, 0.2], [0, 1], [1, 4], [7, 4])
    assert a.tolist() == pytest.approx([1.02, 4.54, 8.991])
    assert b.tolist() == pytest.approx([8.68, 5.06, 0.1998])


def test_information_gain():
    p = np.array([0, 0.13, 0.2, 1 / 3, 0.5, 0.9, 1])
    want = [0, 0.098397, 0.128, 0.148148, 0.125, 0.009, 0]
    assert information_gain(p).tolist() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [(0, 0, 0.083333), (1, 7, 0.109091), (4, 4, 0.113636), (7, 1, 0.036364), (0, 8, 0.068182), (8, 0, 0.013636)],
)
def test_expected_gain_under_the_posterior(a, b, want):
    def log_beta(x, y):
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    assert math.exp(log_beta(a + 2, b + 3) - log_beta(a + 1, b + 1)) == pytest.approx(want, abs=1e-6)
    draws = information_gain(np.random.default_rng(0).beta(a + 1, b + 1, 20000))
    assert abs(draws.mean() - want) < 4 * draws.std() / math.sqrt(len(draws))


def test_one_bad_visit_dominates():
    order = ThompsonSampler().begin(1, 0)
    for right in (8, 8, 0):
        order.observe([group(0, [True] * right + [False] * (8 - right))])
    assert order.alpha[0] == pytest.approx(1.92)
    assert order.beta[0] == pytest.approx(8.0)
    assert (order.alpha[0] + 1) / (order.alpha[0] + order.beta[0] + 2) == pytest.approx(0.244966, abs=1e-6)


def test_fixed_point_of_always_right():
    order = ThompsonSampler().begin(2, 0)
    for _ in range(60):
        order.observe([group(0, [True] * 8)])
    assert order.alpha[0] == pytest.approx(10.0)
    assert order.beta[0] == pytest.approx(0.0, abs=1e-12)


def test_without_forgetting_it_is_the_beta_bernoulli_posterior():
    order = ThompsonSampler(fast=1.0, slow=1.0).begin(2, 0)
    for right in (3, 5, 1):
        order.observe([group(1, [True] * right + [False] * (8 - right))])
    assert (order.alpha.tolist(), order.beta.tolist()) == ([0, 9], [0, 15])


def test_drawing():
    order = ThompsonSampler().begin(20, 5)
    again = ThompsonSampler().begin(20, 5)
    first = order.draw(6, 0, 0)
    assert first == again.draw(6, 0, 0)
    assert first != ThompsonSampler().begin(20, 6).draw(6, 0, 0)
    assert len(set(first)) == 6
    assert sorted(order.draw(20, 1, 0)) == list(range(20))
    assert sorted(order.draw(50, 1, 0)) == list(range(20))


def test_the_draw_prefers_prompts_of_middling_difficulty():
    order = ThompsonSampler().begin(30, 0)
    order.alpha, order.beta = np.r_[np.full(20, 50.0), np.full(10, 17.0)], np.r_[np.zeros(20), np.full(10, 33.0)]
    assert set(order.draw(10, 0, 0)) == set(range(20, 30))


def test_warm_start_visits_every_prompt_first():
    order = ThompsonSampler(init="warm").begin(12, 0)
    seen = []
    for step in range(3):
        drawn = order.draw(4, step, 0)
        seen += drawn
        order.observe([group(i, [True] * 8) for i in drawn])
    assert sorted(seen) == list(range(12))


def test_fewer_answers_and_aborted_rollouts():
    order = ThompsonSampler().begin(3, 0)
    order.alpha[:] = 1.0
    order.observe([group(0, [True, False, None]), group(1, [None, None])])
    assert order.alpha.tolist() == pytest.approx([1.2, 0.999, 0.999])
    assert order.beta.tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert order.visits.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("right", "wrong"), [(9, -1), (float("nan"), 1)])
def test_impossible_counts(right, wrong):
    with pytest.raises(InputError, match="correct"):
        counts([0], [0], [0], [right], [wrong])


@pytest.mark.parametrize(("p", "want"), [(0.05, 0.336580), (0.1, 0.569533), (1 / 3, 0.960829), (0.5, 0.992188)])
def test_probability_of_a_group_with_signal(p, want):
    assert 1 - p**8 - (1 - p) ** 8 == pytest.approx(want, abs=1e-6)
    draws = np.random.default_rng(1).binomial(8, p, 20000)
    assert abs(((draws > 0) & (draws < 8)).mean() - want) < 0.015


def test_state_round_trip():
    order = ThompsonSampler().begin(5, 0)
    order.observe([group(2, [True, False])])
    other = ThompsonSampler().begin(5, 0)
    other.restore(order.state())
    assert other.draw(3, 7, 1) == order.draw(3, 7, 1)
    assert other.alpha.tolist() == order.alpha.tolist()
