"""Comparing at equal divergence: where a path first crosses it, and which divergence all runs reached."""

import pytest

from anypolicy.errors import InputError
from anypolicy.evidence.equal_kl import at_divergence, at_equal_divergence
from anypolicy.studies.compare import compare


def rows(*points):
    return [{"eval/kl": k, "eval/x": v} for k, v in points]


def test_linear_between_evaluations_at_the_first_crossing():
    kl, x = [0.0, 1.0, 0.5, 3.0], [0.0, 0.4, 0.9, 0.6]
    assert at_divergence(kl, x, 0.0) == 0
    assert at_divergence(kl, x, 0.5) == pytest.approx(0.2)
    assert at_divergence(kl, x, 1.0) == pytest.approx(0.4)
    assert at_divergence(kl, x, 1.75) == pytest.approx(0.75)
    with pytest.raises(InputError, match="reached only 3"):
        at_divergence(kl, x, 3.1)


def test_the_common_divergence_is_the_least_reach():
    ledgers = {"a": {0: rows((0, 0), (2, 0.2)), 1: rows((0, 0), (4, 0.4))}, "b": {0: rows((0, 0), (1, 0.5)),
               1: rows((0, 0), (8, 0.8))}}  # fmt: skip
    target, final, curves = at_equal_divergence(ledgers, "eval/x", points=3)
    assert target == 1
    assert final["a"] == pytest.approx({0: 0.1, 1: 0.1})
    assert final["b"] == pytest.approx({0: 0.5, 1: 0.1})
    assert [c.name for c in curves] == ["a", "b"]
    assert curves[0].steps == [0, 0.5, 1]
    assert curves[1].values[0] == pytest.approx([0, 0.25, 0.5])


def test_runs_without_a_reference_or_without_a_step_are_refused():
    with pytest.raises(InputError, match="name one with --reference"):
        at_equal_divergence({"a": {0: [{"eval/x": 1.0}]}}, "eval/x")
    with pytest.raises(InputError, match="never left"):
        at_equal_divergence({"a": {0: rows((0, 1), (0, 1))}}, "eval/x")


def test_compare_judges_there(tmp_path):
    study = compare(
        ["online-dpo", "iterative-dpo"], task="tabular-lock:prompts=8,length=2,vocabulary=4", seeds=2, steps=6, prompts=8,
        out=tmp_path / "study", equal_kl=True, quiet=True, trackers=(), eval_every=2,
    )  # fmt: skip
    assert "nats from the reference" in study.metric
    assert len(study.over_kl) == 2
    assert "At equal divergence" in (tmp_path / "study" / "report.html").read_text()
