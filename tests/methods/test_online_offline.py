"""The online–offline laboratory: its losses, its exact numbers, and its sources."""

import numpy as np
import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.evaluation.reference import token_kl
from anypolicy.families.exact import solve
from anypolicy.loops.preference_study import (
    BATCH,
    Trained,
    fixed,
    laboratory,
    live,
    measured,
    sampled,
    stream,
    study,
    train,
)
from anypolicy.methods.exact.online_offline import BINS, Point, best_in, correlation, frontier, peak, reports
from anypolicy.parts import preference
from anypolicy.parts.log_linear import (
    accuracy,
    better_log_ratio,
    debiased,
    divergence,
    draw,
    labelled,
    loss_slope,
    margins,
    pair_gradient,
    policy,
    win_rate,
)
from anypolicy.policies.language.logits import Logits


@pytest.fixture(scope="module")
def lab():
    return laboratory(3, prompts=12, answers=20, d=4, pairs=80)


def test_the_softmax_of_large_numbers():
    assert policy(np.array([1000.0]), np.array([[[1.0], [0.0]], [[0.0], [1.0]]])).tolist() == [[1, 0], [0, 1]]


# --- losses ----------------------------------------------------------------------------------------------------------
def test_the_scaled_loss():
    h = torch.tensor([2.0], dtype=torch.float64)
    assert float(preference.scaled_squared(h, 0.1)) == pytest.approx(0.09)
    assert float(loss_slope(np.array([2.0]), 0.1, "squared")[0]) == pytest.approx(-0.06)
    assert float(preference.squared(h, 0.1)) == pytest.approx(9.0)
    for beta, best in ((0.1, 5.0), (0.5, 1.0), (1.0, 0.5)):
        assert loss_slope(np.array([best]), beta, "squared")[0] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("loss", ["squared", "sigmoid", "best-of-two"])
@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_those_of_the_pure_losses(lab, loss, seed):
    rng = np.random.default_rng(seed)
    w = lab.start + rng.normal(size=4)
    got = pair_gradient(w, lab.start, lab.features, lab.pairs, 0.3, loss)
    x = torch.tensor(w, requires_grad=True)
    f, (p, a, b) = torch.tensor(lab.features), torch.tensor(lab.pairs).T
    logp, ref = (f @ x).log_softmax(1), (f @ torch.tensor(lab.start)).log_softmax(1)
    h = preference.margin(logp[p, a], logp[p, b], ref[p, a], ref[p, b])
    losses = {"squared": preference.scaled_squared(h, 0.3), "sigmoid": preference.sigmoid(h, 0.3),
              "best-of-two": preference.best_of_two(logp[p, a], torch.ones(len(p)).double())}  # fmt: skip
    losses[loss].mean().backward()
    assert np.allclose(got, x.grad.numpy(), atol=1e-12)
    assert np.allclose(margins(w, lab.start, lab.features, lab.pairs), h.detach().numpy())
    assert better_log_ratio(w, lab.start, lab.features, lab.pairs) == pytest.approx(float((logp - ref)[p, a].mean()))


def test_the_optimum_on_full_support():
    start, reward, beta = np.array([0.2, 0.5, 0.3]), np.array([1.0, 0.0, -1.0]), 0.1
    wins = 1 / (1 + np.exp(reward[None] - reward[:, None]))
    against = wins.mean(1)
    assert against.tolist() == pytest.approx([0.703952, 0.5, 0.296048], abs=5e-7)
    best = start * np.exp(against / beta)
    assert (best / best.sum()).tolist() == pytest.approx([0.740404, 0.240800, 0.018796], abs=5e-7)
    w = reference = np.log(start)
    i, j = (x.ravel() for x in np.meshgrid(range(3), range(3), indexing="ij"))
    for _ in range(4000):
        h = (w - reference)[i] - (w - reference)[j]
        slope = wins[i, j] * loss_slope(h, beta, "squared") / 9
        gradient = np.bincount(i, slope, 3) - np.bincount(j, slope, 3)
        w = w - 20 * gradient
    assert np.allclose(np.exp(w) / np.exp(w).sum(), best / best.sum(), atol=1e-6)


# --- divergence and win rate -----------------------------------------------------------------------------------------
def stepwise(p, q):
    def logits(x):
        return Logits(torch.tensor([x], dtype=torch.float64).log(), lambda states: states)

    return float(token_kl(logits(p), logits(q)))


def test_divergence_of_a_sequence():
    one, two = stepwise([0.7, 0.2, 0.1], [0.4, 0.4, 0.2]), stepwise([0.5, 0.5], [0.9, 0.1])
    assert (one, two, one + two) == pytest.approx((0.183787, 0.510826, 0.694613), abs=5e-7)
    single = np.log(0.7 / 0.4) + np.log(0.5 / 0.1)
    assert single == pytest.approx(2.169054, abs=5e-7)
    assert divergence(np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])) == pytest.approx(two)
    p, q = [0.7, 0.2, 0.1], [0.4, 0.4, 0.2]
    later = [([0.5, 0.5], [0.9, 0.1]), ([0.2, 0.8], [0.3, 0.7]), ([0.6, 0.4], [0.5, 0.5])]
    mean = one + sum(a * stepwise(*pq) for a, pq in zip(p, later, strict=True))
    joint = [[a * b for a, (s, _) in zip(p, later, strict=True) for b in s]]
    other = [[a * b for a, (_, s) in zip(q, later, strict=True) for b in s]]
    assert mean == pytest.approx(divergence(np.array(joint), np.array(other)))
    assert mean == pytest.approx(0.548525, abs=5e-7)


def test_win_rates():
    rng = np.random.default_rng(0)
    p, q = (rng.dirichlet(np.ones(6), 9) for _ in range(2))
    score = rng.integers(0, 3, (9, 6)).astype(float)
    assert win_rate(p, p, score) == pytest.approx(0.5, abs=1e-12)
    won = (score[:, :, None] > score[:, None]) + 0.5 * (score[:, :, None] == score[:, None])
    assert win_rate(p, q, score) == pytest.approx(np.einsum("xa,xb,xab->x", p, q, won).mean())
    assert win_rate(p, q, score) + win_rate(q, p, score) == pytest.approx(1)
    assert 0 <= win_rate(p, q, score) <= 1


def test_a_preference_model_is_asked_both_ways():
    assert debiased(np.array([0.62, 0.55]), np.array([0.45, 0.60])).tolist() == pytest.approx([0.17, -0.05])


def test_the_start_is_no_classifier(lab):
    h = margins(lab.start, lab.start, lab.features, lab.pairs)
    assert (h == 0).all()
    assert accuracy(h) == 0.5
    assert accuracy(np.array([1.0, -1.0, 0.0, 2.0])) == 0.625


def test_equal_answers_and_ties_make_no_pair():
    score = np.array([[1.0, 2.0, 2.0]])
    x = np.zeros(4, np.int64)
    pairs = labelled(x, np.array([0, 1, 1, 2]), np.array([1, 1, 2, 0]), score)
    assert pairs.tolist() == [[0, 1, 0], [0, 2, 0]]
    none = np.zeros((0, 3), np.int64)
    assert not pair_gradient(np.ones(2), np.zeros(2), np.ones((1, 3, 2)), none, 0.1, "squared").any()


def test_answers_are_drawn_as_often_as_they_are_likely():
    p = np.array([[0.1, 0.2, 0.7], [0.5, 0.0, 0.5]])
    x = np.repeat([0, 1], 20_000)
    y = draw(p, x, np.random.default_rng(0))
    for prompt in (0, 1):
        share = np.bincount(y[x == prompt], minlength=3) / 20_000
        assert np.allclose(share, p[prompt], atol=0.015)
    assert not (y[x == 1] == 1).any()


# --- sources ---------------------------------------------------------------------------------------------------------
def taken(source, n, weights=None):
    batches = source(np.zeros(4) if weights is None else weights)
    return [next(batches) for _ in range(n)]


def test_fixed_pairs_come_in_epochs(lab):
    n = len(lab.pairs) // BATCH
    rows = np.concatenate(taken(fixed(lab.pairs, np.random.default_rng(0)), n))
    assert len(np.unique(rows, axis=0)) <= len(np.unique(lab.pairs, axis=0))
    assert all((lab.pairs == r).all(1).any() for r in rows)
    few = lab.pairs[:5]
    assert len(taken(fixed(few, np.random.default_rng(0)), 1)[0]) == 5


def test_a_stream_keeps_its_batches(lab):
    recorded = [np.full((2, 3), i) for i in range(10)]

    def order(window, seed=0):
        return [int(b[0, 0]) for b in taken(stream(recorded, window, np.random.default_rng(seed)), 10)]

    assert order(1) == list(range(10))
    assert [sorted(order(4)[a:b]) for a, b in ((0, 4), (4, 8), (8, 10))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert sorted(order(10)) == list(range(10))
    assert order(10) != list(range(10))


def test_live_pairs_follow_the_policy(lab):
    best = 200 * (lab.features[0, 0] - lab.features[0].mean(0))
    source = live(lab, lab.score, np.random.default_rng(0))
    favourite = policy(best, lab.features).argmax(1)
    rows = np.concatenate(taken(source, 20, best))
    usual = np.concatenate(taken(source, 20, np.zeros(4)))

    def share(rows):
        return float((favourite[rows[:, 0], None] == rows[:, 1:]).any(1).mean()) if len(rows) else 1.0

    assert share(rows) > share(usual)
    assert len(usual) > len(rows)


def test_a_replayed_stream_is_the_online_run(lab):
    for loss in ("squared", "best-of-two"):
        source = live(lab, lab.proxy, np.random.default_rng(1))
        run = train(lab, source, steps=50, lr=0.5, beta=0.1, loss=loss)
        again = train(lab, stream(run.batches, 1, np.random.default_rng(2)), steps=50, lr=0.5, beta=0.1, loss=loss)
        assert [s for s, _ in run.checkpoints] == [s for s, _ in again.checkpoints]
        assert all((a == b).all() for (_, a), (_, b) in zip(run.checkpoints, again.checkpoints, strict=True))
        other = train(lab, stream(run.batches, 50, np.random.default_rng(2)), steps=50, lr=0.5, beta=0.1, loss=loss)
        assert (other.checkpoints[-1][1] != run.checkpoints[-1][1]).any()


# --- the study -------------------------------------------------------------------------------------------------------
def test_the_laboratory(lab):
    assert lab.score.std() == pytest.approx(1.5)
    x, w, l = lab.pairs.T  # noqa: E741
    assert (lab.score[x, w] > lab.score[x, l]).all()
    assert ((lab.proxy[x, w] > lab.proxy[x, l]).mean()) > 0.85
    again = laboratory(3, prompts=12, answers=20, d=4, pairs=80)
    assert (again.proxy == lab.proxy).all()
    assert (laboratory(4, prompts=12, answers=20, d=4, pairs=80).score != lab.score).any()


def test_the_start_has_its_scale():
    """Each of d weights has standard deviation 0.8/√d."""
    start = laboratory(0, prompts=2, answers=3, d=400, pairs=20).start
    assert start.std() * 20 == pytest.approx(0.8, rel=0.15) and abs(start.mean()) * 20 < 0.2


@pytest.mark.parametrize("far", [1000.0, -1000.0])
def test_scores_of_any_size_have_probabilities(far):
    """Of two answers of which one is so much better, e^−1000 is 0; a third equals the better one."""
    p = policy(np.array([far, 1.0]), np.array([[[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]]))
    assert p.tolist() == ([[0.5, 0.0, 0.5]] if far > 0 else [[0.0, 1.0, 0.0]])


def test_points_and_curves(lab):
    run = Trained([(0, lab.start)])
    start = policy(lab.start, lab.features)
    [point] = measured(lab, run, start)
    assert point == pytest.approx((0, 0.5, 0.5, 0))
    points = [Point(0.6, 0.2, 0.5, 0), Point(1.5, 0.4, 0.6, 0), Point(0.7, 0.3, 0.7, 0), Point(2.5, 0.35, 0.8, 0)]
    assert peak(points).kl == 1.5
    assert best_in(points, 0.5, 1.0) == 0.3
    assert best_in(points, 3.0, 5.0) is None
    assert [p.kl for p in frontier(points)] == [0.6, 0.7, 1.5]
    assert correlation([Point(0, a, a, 0) for a in (0.1, 0.2, 0.4)]) == pytest.approx(1)


def test_runs_that_diverge_are_left_out_and_counted(lab):
    found = study(lab, steps=60, sweep=((0.3, 0.1), (1e6, 0.1)), sources=["offline", "stream, windows of 1"])
    alone = study(lab, steps=60, sweep=((0.3, 0.1),), sources=["offline"])
    assert found.diverged == {"offline": 1, "stream, windows of 1": 0} and alone.diverged == {"offline": 0}
    assert found.points["offline"] == alone.points["offline"]
    none = study(lab, steps=60, sweep=((1e6, 0.1),), sources=["offline"])
    said = {r.quantity: r.value for r in reports(none)}
    assert said["offline: runs that diverged"] == 1 and not [k for k in said if k.startswith("offline: peak")]
    assert all(np.isfinite(list(said.values())))


def test_an_online_run_that_diverges_is_refused(lab, tmp_path):
    with pytest.raises(InputError, match=r"lr: got 1000000\.0; the online run diverges"):
        study(lab, steps=40, lr=1e6)
    with pytest.raises(InputError, match="the online run diverges"):
        solve("online-offline", lr=1e6, steps=40, prompts=12, answers=20, pairs=80, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_without_spread_there_is_no_correlation():
    assert correlation([Point(0, 0.5, a, 0) for a in (0.1, 0.2)]) is None and correlation([]) is None


def test_study_of_a_small_world(lab):
    found = study(lab, steps=60, sweep=((0.3, 0.1),))
    assert found.moved["stream, windows of 1"] == 0
    assert found.moved["stream, windows of 4"] > 0
    assert found.points["stream, windows of 1"] == found.points["online"]
    assert peak(found.points["online"]).win > 0.2
    few = study(lab, steps=60, sweep=((0.3, 0.1),), sources=["offline"])
    assert few.points == {k: found.points[k] for k in ("online", "offline")}
    assert len(sampled(policy(lab.start, lab.features), policy(lab.start, lab.features), lab.score, 100,
                       np.random.default_rng(0))) > 60  # fmt: skip


def test_the_command_draws_its_curves(tmp_path):
    found = solve("online-offline", out=tmp_path / "out", steps=30, prompts=10, answers=15, pairs=60)
    names = [r.quantity for r in found.reports]
    assert "online: peak win rate" in names
    assert len({r["source"] for r in found.tables["Checkpoints"]}) == 8
    assert "Win rate at divergence" in (tmp_path / "out" / "report.html").read_text()
    for field in ("steps", "beta", "answers"):
        with pytest.raises(InputError, match=field):
            solve("online-offline", **{field: 0})


def test_sources_are_compared_in_these_ranges_of_the_divergence():
    assert BINS == ((0.5, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 5.0))
