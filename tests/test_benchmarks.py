"""The pure pieces of the benchmarks."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import common  # noqa: E402


def test_ratio_of_medians_with_interval():
    rng = np.random.default_rng(0)
    ours, peer = rng.normal(1, 0.02, 20).tolist(), rng.normal(2, 0.04, 20).tolist()
    point, low, high = common.ratio(ours, peer)
    assert low < point < high
    assert point == pytest.approx(2, abs=0.05)
    assert common.ratio([1.0], [3.0]) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda p: p.stem)
def test_result_files_have_one_form(path):
    value = json.loads(path.read_text())
    assert value["versions"]
    for r in value["ratios"]:
        assert {"name", "ratio", "low", "high", "peer", "unit"} <= r.keys()
        assert r["low"] is None or r["low"] <= r["ratio"] <= r["high"]


def test_the_documentation_has_the_times_that_are_recorded():
    recorded = json.loads((ROOT / "benchmarks" / "results" / "exact.json").read_text())["settings"]["paper"]
    page = (ROOT / "docs" / "exact.md").read_text()
    assert len(recorded) == 6
    for instances in recorded.values():
        for name, seconds in instances.items():
            assert f"| {name} | {seconds:.2g} |" in page


def test_writing_results(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    row = {"name": "x", "ratio": 2.0, "low": 1.9, "high": 2.1, "peer": "p", "unit": "s"}
    path = common.write("some", [row], {"torch": "1"}, {"n": 1})
    assert json.loads(path.read_text())["ratios"] == [row]
