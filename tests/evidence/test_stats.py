"""Statistics against rliable and against simulation."""

import numpy as np
import pytest

from anypolicy.errors import InputError
from anypolicy.evidence import compare
from anypolicy.evidence.compare import compare_runs
from anypolicy.evidence.plots import Curve, save_curves
from anypolicy.evidence.stats import Interval, bootstrap, iqm, mean_interval, probability_of_improvement, seeds_needed
from anypolicy.studies.compare import summarise

RNG = np.random.default_rng(0)


def test_aggregates_equal_those_of_rliable():
    from rliable import metrics

    for shape in ((5, 1), (7, 3), (10, 6)):
        x, y = RNG.normal(size=shape), RNG.normal(0.3, 1, size=shape)
        assert iqm(x) == pytest.approx(metrics.aggregate_iqm(x))
        assert probability_of_improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y))
    ties = np.array([[1.0], [2.0], [2.0]])
    assert probability_of_improvement(ties, ties) == pytest.approx(metrics.probability_of_improvement(ties, ties))


def test_bootstrap_interval_is_near_that_of_rliable():
    from rliable import library, metrics

    x = RNG.normal(size=(12, 4))
    _, theirs = library.get_interval_estimates({"a": x}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=4000)
    mine = bootstrap(x, draws=4000)
    assert [mine.low, mine.high] == pytest.approx(theirs["a"][:, 0].tolist(), abs=0.04)


def test_the_t_interval_of_five_runs_covers_what_it_says_and_the_bootstrap_does_not():
    t, boot = 0, 0
    for i in range(400):
        x = RNG.normal(size=5)
        low, high = mean_interval(x)[1:]
        t += low <= 0 <= high
        b = bootstrap(x[:, None], lambda s: float(s.mean()), draws=200, seed=i)
        boot += b.low <= 0 <= b.high
    assert 0.92 < t / 400 < 0.98
    assert boot / 400 < 0.92


def test_needed_seeds_have_the_promised_power():
    n = seeds_needed([0.1, 0.9, 0.5, 0.4, 0.6])
    x = np.array([0.1, 0.9, 0.5, 0.4, 0.6])
    found = 0
    for _ in range(1000):
        low = mean_interval(RNG.normal(x.mean(), x.std(ddof=1), n)).low
        found += low > 0
    assert 0.76 < found / 1000 < 0.99
    assert seeds_needed([0.1, 0.2]) is None
    assert seeds_needed([0.0, 0.0, 0.0]) is None


def comparison(a, b):
    final = {"a": dict(enumerate(a)), "b": dict(enumerate(b))}
    cost = {"a": dict.fromkeys(range(len(a)), 30.0), "b": dict.fromkeys(range(len(b)), 20.0)}
    curves = [Curve(n, [0, 1], [[0.0, v] for v in r.values()]) for n, r in final.items()]
    return compare_runs(final, curves=curves, costs=cost, metric="eval/accuracy", task="t")


def test_figures_are_the_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        save_curves(tmp_path / f"{name}.svg", [Curve("x", [0, 1], [[0.0, 1.0], [0.5, 2.0]])], y="y")
        comparison([0.9, 0.92, 0.91], [0.5, 0.55, 0.52]).report(tmp_path / f"{name}.html")
    for kind in ("svg", "html"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_runs_without_a_finite_value_are_left_out_and_named(tmp_path):
    rows = {
        arm: {s: [{"step": 0, "event": "eval", "eval/return": 0.0, "eval/n": 1.0},
                  {"step": 9, "event": "eval", "eval/n": 1.0} | ({} if s in lost else {"eval/return": base + s / 10})]
              for s in range(4)}
        for arm, base, lost in (("a", 5.0, [2]), ("b", 1.0, []))
    }  # fmt: skip
    c = summarise(rows, None, tmp_path, "t", ("eval/success", "eval/return"), "")
    assert c.metric == "eval/return" and c.left_out == {"a": [2]}
    assert c.sentences()[0] == "a: seeds 2 ended without a finite eval/return and are left out"
    assert c.differences[0].pairs == 3
    page = (tmp_path / "report.html").read_text()
    assert "nan" not in page.split("Every run")[1] and "<td>—</td>" in page
    for s in (0, 1):
        del rows["a"][s][1]["eval/return"]
    with pytest.raises(InputError, match="too many runs"):
        summarise(rows, None, tmp_path, "t", ("eval/success", "eval/return"), "")


def test_a_clear_winner_is_named_with_its_cost(tmp_path):
    c = comparison([0.9, 0.92, 0.91, 0.93], [0.5, 0.55, 0.52, 0.51])
    assert c.winner == "a"
    assert "a better than b by 0.395" in str(c)
    assert "1.50× the tokens" in str(c)
    page = c.report(tmp_path / "r.html").read_text()
    assert "a better than b" in page
    assert page.count("plotly.js v") == 1
    assert 'src="http' not in page


def test_noise_names_no_winner_but_says_how_many_seeds_are_missing():
    c = comparison([0.5, 0.7, 0.4, 0.65], [0.55, 0.45, 0.5, 0.6])
    assert c.winner is None
    assert "cannot tell" in str(c)
    assert "more seeds" in str(c)


def test_two_seeds_or_no_spread_decide_nothing():
    assert comparison([0.52, 0.5], [0.5, 0.48]).winner is None
    assert comparison([0.52, 0.5, 0.54], [0.5, 0.48, 0.52]).winner is None


def test_several_methods_share_the_error_probability(monkeypatch):
    monkeypatch.setattr(compare, "seeds_needed", lambda gaps: None)
    for name in ("bootstrap", "improvement_interval"):  # none of the three decides, all take long
        monkeypatch.setattr(compare, name, lambda *_, **__: Interval(0.0, 0.0, 0.0))
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(300):
        final = {n: dict(enumerate(rng.normal(size=5))) for n in "abcde"}
        c = compare_runs(final, curves=[], costs={n: dict.fromkeys(range(5), 1.0) for n in final}, metric="m", task="t")
        wrong += any(d.decided for d in c.differences)
    assert wrong / 300 < 0.08
