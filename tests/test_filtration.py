"""The table of filtration rules: its numbers, its pick, and when it refuses one."""

import json
import math

import numpy as np
import pytest

import anypolicy as ap
from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.studies.filtration import Filtration, Row, Scored, read_scores


def noisy(prompts=300, seed=0):
    """A reward model that is sure, or says something in the middle."""
    rng = np.random.default_rng(seed)
    out = []
    for n in range(prompts):
        rate = rng.beta(4, 4)
        for _ in range(5):
            right = rng.random() < rate
            sure = rng.uniform(0.6, 1.0) * (1 if right else -1)
            out.append(Scored(str(n), sure if rng.random() < 0.7 else rng.uniform(-0.6, 0.6), float(right)))
    return out


def test_best_worst_is_picked_where_the_middle_is_noise():
    table = ap.filtration_table(noisy())
    rows = {r.rule: r for r in table.rows}
    assert [rows[k].kept for k in ("none", "best-of-n", "best-random", "best-worst", "power 2")] == [
        1500,
        300,
        600,
        600,
        600,
    ]
    assert (
        rows["best-worst"].r_squared
        > rows["best-random"].r_squared
        > rows["none"].r_squared
        > rows["best-of-n"].r_squared
    )
    assert table.pick == max(table.rows, key=lambda r: r.r_squared).rule
    assert f"pick: {table.pick}" in str(table)
    again = ap.filtration_table(noisy())
    assert [tuple(r) for r in again.rows] == [tuple(r) for r in table.rows]
    drawn = ap.filtration_table(noisy(), with_replacement=True, n_keep=4)
    assert {r.kept for r in drawn.rows} == {1200}


def test_pick_by_groups():
    rows = [Row("a", 9, 0.5, 0.9), Row("b", 9, 0.6, 0.8)]
    assert Filtration(rows, "sample", 10).pick == "b"
    assert Filtration(rows, "bins", 10).pick == "a"


def test_undefined_r_squared_is_not_ranked():
    table = ap.filtration_table([Scored(s.prompt, s.reward, 1.0) for s in noisy(20)])
    assert all(math.isnan(r.r_squared) and math.isnan(r.binned) for r in table.rows)
    assert table.pick is None
    assert "undefined" in str(table) and "no pick" in str(table)
    one = Filtration([Row("a", 9, 0.5, 0.5), Row("b", 9, math.nan, math.nan)], "sample", 10)
    assert one.pick is None
    assert Filtration([Row("a", 9, 0.5, 0.5), Row("b", 9, 0.5, 0.5)], "sample", 10).pick is None
    some = Filtration([Row("a", 9, 0.5, 0.5), Row("b", 9, math.nan, math.nan), Row("c", 9, 0.4, 0.4)], "sample", 10)
    assert some.pick == "a"


def test_powers_need_scaled_rewards():
    table = ap.filtration_table([s._replace(reward=3 * s.reward) for s in noisy(50)])
    notes = {r.rule: r.note for r in table.rows}
    assert "[-1, 1]" in notes["power 2"] and notes["best-worst"] == ""


def test_command_line(tmp_path, capsys):
    path = tmp_path / "scores.jsonl"
    rows = [{"prompt": s.prompt, "reward": s.reward, "score": bool(s.score)} for s in noisy(60)]
    rows.append({"prompt": "0", "reward": None, "score": 1})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert len(read_scores(path)) == 300
    assert main(["filtration", str(path), "--bins", "5", "--by", "bins"]) == 0
    out = capsys.readouterr().out
    assert "R² in 5 groups" in out and "pick: " in out
    for text, says in (('{"prompt": "a", "reward": 1}', "score"), ('{"prompt": "a", "reward": "x", "score": 1}', "numbers"),
                       ('{"prompt": "a", "reward": null, "score": 1}', "no response")):  # fmt: skip
        path.write_text(text)
        assert main(["filtration", str(path)]) == 2
        assert says in capsys.readouterr().err
    assert main(["filtration", str(tmp_path / "none.jsonl")]) == 2
    with pytest.raises(InputError, match="bins"):
        ap.filtration_table(noisy(3), bins=1)
