"""FTPL with resampling: its leader, its counts, its separation of what is audited from what is played."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.loops.one_sided import run
from anypolicy.methods.exact.context_semi_bandit_ftpl import (
    ContextSemiBanditFTPL,
    Finite,
    Linear,
    context_semi_bandit_ftpl,
    counted,
)  # fmt: skip
from anypolicy.parts.fairness import best_fair_mixture, gaps
from anypolicy.parts.one_sided import resampled_mean
from anypolicy.tasks.exact.one_sided import Cases, Halfspaces, halfspaces


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_the_leader_is_the_best_rule_with_its_noise(seed):
    """Against the definition: argmin of L̂(h) + Σ_z h(z) ξ_accept(z) + (1 − h(z)) ξ_reject(z)."""
    rng = np.random.default_rng(seed)
    rules = Halfspaces(rng.standard_normal((5, 2)), rng.standard_normal(5))
    z, x, history = rng.standard_normal((4, 2)), rng.standard_normal((3, 2)), rng.standard_normal((3, 2))
    oracle, (accept, reject) = Finite(rules, z), rng.random((2, 3)) * 5
    oracle.add(history, accept, reject)
    xi = rng.laplace(0, 3, (2, 6, 4))
    got = oracle.decide(x, xi[0] - xi[1])
    for r in range(6):
        values = [
            sum(accept[i] if rules(history[i])[h] else reject[i] for i in range(3))
            + sum(xi[0, r, d] if rules(z[d])[h] else xi[1, r, d] for d in range(4))
            for h in range(5)
        ]
        assert got[r].tolist() == rules(x)[:, int(np.argmin(values))].tolist()


def test_counts():
    draws = np.array([[True, False, False], [True, True, False], [False, True, False]])
    got = counted(draws, np.array([False, True, True]))
    assert got.tolist() == [3.0, 2.0, 3.0]


@pytest.mark.parametrize(("q", "most", "mean"), [(0.1, 20, 8.784233), (0.3, 10, 3.239175)])
def test_counts_have_the_mean_of_the_sheet(q, most, mean):
    rng = np.random.default_rng(0)
    draws = rng.random((most, 200_000)) < q
    assert counted(draws, np.ones(200_000, bool)).mean() == pytest.approx(mean, rel=0.01)
    assert resampled_mean(q, most) == pytest.approx(mean, abs=1e-6)


def test_the_side_that_was_played_is_counted():
    """A case accepted with probability 0.9: 1/q is about 1.1 where it was accepted and 10 where it was not."""
    draws = np.random.default_rng(0).random((60, 50_000)) < 0.9
    for accepted, q in ((True, 0.9), (False, 0.1)):
        got = counted(draws, np.full(50_000, accepted)).mean()
        assert got == pytest.approx(resampled_mean(q, 60), rel=0.02)


class Recorder(Finite):
    """Keeps the noise it is asked with."""

    def decide(self, x, noise):
        self.noise = noise
        return super().decide(x, noise)


def test_audited_played_and_counted_draws_are_different_ones():
    s = halfspaces(20, 4)
    oracle = Recorder(s.rules, s.separators[:8])
    learner = ContextSemiBanditFTPL(oracle, 8, 0.0, 0.05, 30, 10, np.random.default_rng(0))
    pi, accepted = learner.decide(s.x[0])
    decisions = Finite(s.rules, s.separators[:8]).decide(s.x[0], oracle.noise)
    assert len(oracle.noise) == 41 and len(np.unique(oracle.noise, axis=0)) == 41
    assert pi.tolist() == decisions[:30].mean(0).tolist() and (accepted == decisions[30]).all()
    learner.update(np.where(accepted, s.y[0], np.nan), None)
    j = counted(decisions[31:], accepted)
    of_accepting = np.where(accepted, (1 - s.y[0]) * j, 0)
    of_rejecting = np.where(accepted, 0, 0.5 * j)
    accept = s.rules(s.x[0])
    assert oracle.losses == pytest.approx(of_accepting @ accept + of_rejecting @ ~accept)


def test_noise_has_the_scale_it_says():
    s = halfspaces(1, 2)
    oracle = Recorder(s.rules, s.separators[:4])
    ContextSemiBanditFTPL(oracle, 4, 0.0, 0.05, 4000, 1, np.random.default_rng(0)).decide(s.x[0])
    assert oracle.noise.std() == pytest.approx(2 / 0.05, rel=0.03)  # difference of two Laplace variables: √2 √2 scale


@pytest.mark.parametrize("seed", range(4))
def test_it_learns_and_every_report_is_paid_for(seed):
    """Rules that accept all or none, labels mostly 1. Then: reports × ε ≤ Σ gap(π_t) − gap(u), as for any learner."""
    rng = np.random.default_rng(seed)
    two = Halfspaces(np.zeros((2, 1)), np.array([-1.0, 1.0]))
    s = Cases("good", np.ones((150, 2, 1)), (rng.random((150, 2)) < 0.9).astype(float), two, (), np.ones((4, 1)))
    learner = ContextSemiBanditFTPL(Finite(two, s.separators), 4, 0.0, 1.0, 20, 30, rng)
    assert run(s, learner, np.ones((150, 2, 2)), 0.1).accepted[-50:].mean() > 0.9
    s, limits = halfspaces(80, 3, seed), rng.random((80, 3, 3)) * 0.3
    z = s.separators[:8]
    history = run(s, ContextSemiBanditFTPL(Finite(s.rules, z), 8, 2.0, 0.1, 20, 20, rng), limits, 0.2)
    errors = (s.accept != s.y[:, :, None]).sum((0, 1)).astype(float)
    u = best_fair_mixture(s.accept, errors, limits, 0.1)
    at = np.flatnonzero(history.violated)
    pair = tuple(history.pairs[at].T)
    paid = gaps(history.pi)[(at, *pair)] - gaps(s.accept @ u)[(at, *pair)]
    assert len(at) and paid.sum() >= 0.1 * len(at) - 1e-5


def test_the_linear_oracle():
    """Costs that a line can tell apart are; without noise to speak of every draw is the same; one-sided costs are constant."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (200, 2))
    oracle = Linear(np.zeros((1, 2)))
    assert oracle.decide(x[:3], np.array([[1.0], [-1.0], [0.0]])).tolist() == [[False] * 3, [True] * 3, [False] * 3]
    worth = x[:, 0] > 0.1
    oracle.add(x, np.where(worth, 0.0, 1.0), np.full(200, 0.5))
    got = oracle.decide(x, np.full((2, 1), 1e-9))
    assert (got[0] == got[1]).all() and (got[0] == worth).mean() > 0.95


def test_a_run_with_the_linear_oracle():
    found = context_semi_bandit_ftpl(rounds=6, cases=2, oracle="linear", draws=3, most=3, separators=4)
    assert 0 <= next(r.value for r in found.reports if r.quantity == "error rate") <= 1


def test_the_result_says_what_it_rests_on():
    found = context_semi_bandit_ftpl(rounds=40, draws=10, most=10)
    by = {r.quantity: r for r in found.reports}
    told = by["rules that the separators tell apart"]
    assert told.failed and "of 62 rules differ" in told.assumptions[0].why
    assert not any(r.kind == "bound" for r in found.reports)  # none is proved here
    assert "regret" in by and next(r["C"] for r in found.tables["Frontier"]) == 0


@pytest.mark.parametrize(
    ("knob", "value"),
    [("noise", 0.0), ("draws", 0), ("most", 0), ("separators", 0), ("separators", 65), ("gamma", 0.0)],
)
def test_impossible_settings(knob, value):
    with pytest.raises(InputError, match=f"^{knob}"):
        context_semi_bandit_ftpl(rounds=10, **{knob: value})


def test_command_line(capsys):
    name = "--context-semi-bandit-ftpl"
    assert main(["solve", "context-semi-bandit-ftpl", f"{name}.rounds", "10", f"{name}.draws", "5"]) == 0
    assert "rounds with a" in capsys.readouterr().out
    assert main(["show", "context-semi-bandit-ftpl"]) == 0
