"""JSON without NaN and Infinity: missing in what is reported, exact in what is gone on from, and old files still read."""

import json
import math

import pytest

from anypolicy.runs.checkpoint import Position, load_checkpoint, save_checkpoint
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.strict_json import json_text, json_value

HARD = {"best": -math.inf, "rows": [1.5, math.nan, (math.inf, {"x": math.nan})], "text": "NaN", "none": None, "n": 3}


def strict(text):
    """Only what the standard knows."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_numbers_that_are_not_finite_are_nothing_to_report():
    got = strict(json_text(HARD, indent=1))
    assert got == {"best": None, "rows": [1.5, None, [None, {"x": None}]], "text": "NaN", "none": None, "n": 3}
    assert json_text({"b": 1, "a": "ü"}, sort_keys=True, ensure_ascii=False) == '{"a": "ü", "b": 1}'


def test_state_comes_back_as_it_was():
    got = json_value(json_text(HARD, exact=True))
    strict(json_text(HARD, exact=True))
    assert got["best"] == -math.inf and math.isnan(got["rows"][1]) and got["rows"][2][0] == math.inf
    assert math.isnan(got["rows"][2][1]["x"])
    assert {k: got[k] for k in ("text", "none", "n")} == {"text": "NaN", "none": None, "n": 3}
    for other in ({"not finite": "far"}, {"not finite": [1]}, {"not finite": "inf", "n": 1}):
        assert json_value(json_text(other, exact=True)) == other


def test_a_checkpoint_keeps_them_and_an_old_one_is_read(tmp_path):
    state = {"best": -math.inf, "reward": [math.nan, 1.0]}
    folder = save_checkpoint(tmp_path, 3, {}, state)
    strict((folder / "state.json").read_text())
    got = load_checkpoint(folder).state
    assert got["best"] == -math.inf and math.isnan(got["reward"][0]) and got["reward"][1] == 1.0
    assert json_value(json.dumps(state))["best"] == -math.inf


def test_a_ledger_says_that_a_number_is_missing(tmp_path):
    with RunDirectory.create(tmp_path / "run", {"task": "x"}) as run:
        run.append({"step": 0, "loss": math.nan, "reward": 1.0})
        run.append({"step": 1, "loss": math.inf, "reward": 2.0})
        run.write_samples("eval", [{"reward": math.nan, "answer": None}])
        path = run.path / "metrics.jsonl"
        assert [strict(line)["loss"] for line in path.read_text().splitlines()] == [None, None]
        assert run.read() == [{"step": 0, "reward": 1.0}, {"step": 1, "reward": 2.0}]
        assert run.read_samples("eval") == [{"reward": None, "answer": None}]
        path.write_text('{"step": 0, "loss": NaN, "reward": 1.0}\n{"step": 1, "loss": -Infinity}\n{"step": 2}\n')
        assert run.read() == [{"step": 0, "reward": 1.0}, {"step": 1}, {"step": 2}]
        run.truncate_to(Position(2, 2))
        assert [strict(line)["loss"] for line in path.read_text().splitlines()] == [None, None]
