"""Streams of cases: generated, from scikit-learn, from a file; what cannot be used is named."""

import numpy as np
import pytest

from anypolicy.errors import InputError
from anypolicy.parts.fairness import Panel
from anypolicy.tasks.exact.one_sided import Cases, Halfspaces, load, read_csv


def test_half_spaces():
    s = load("halfspaces", 500, 4, 0)
    assert s.x.shape == (500, 4, 3) and np.abs(s.x).max() <= 1
    assert np.linalg.norm(s.rules.weights[:60], axis=1) == pytest.approx(1)
    assert s.accept[..., 60].all() and not s.accept[..., 61].any()
    clean = s.x[..., 0] + 0.5 * s.x[..., 1] > 0
    assert 0.85 < (clean == s.y).mean() < 0.99
    d = s.auditors[1](s.x[0, 0], s.x[0, 1])
    assert d == pytest.approx(min(1, np.linalg.norm((s.x[0, 0] - s.x[0, 1]) * [0.5, 1.0, 0.1])))


def test_a_real_table():
    """Accept is biopsy: label 1 is malignant, 37 % of all cases. Rules come from the past, which is not in the stream."""
    s = load("breast-cancer", 400, 4, 0)
    assert 0.3 < s.y.mean() < 0.45 and len(s.rules.offsets) == 62
    errors = (s.accept != s.y[:, :, None]).mean((0, 1))
    assert errors.min() < 0.06 and errors[60] == pytest.approx(1 - s.y.mean())
    past = {tuple(row) for row in s.separators}
    assert not past & {tuple(row) for row in s.x.reshape(-1, s.x.shape[2])}
    limits = Panel(s.auditors).limits(s.x)
    off = limits[:, ~np.eye(4, dtype=bool)]
    assert 0 < np.quantile(off, 0.1) < 0.6 and off.max() == 1


def table(path, rows, header="age,purpose,label"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_file(tmp_path):
    rows = [f"{20 + i},{('car', 'home', 'study')[i % 3]},{int(i % 5 > 0)}" for i in range(100)]
    path = table(tmp_path / "loans.csv", rows)
    x, y = read_csv(path)
    assert x.shape == (100, 4) and x[:2].tolist() == [[20, 1, 0, 0], [21, 0, 1, 0]] and y[:2].tolist() == [0, 1]
    s = load(str(path), 30, 3, 0)
    assert s.x.shape[:2] == (30, 3) and set(np.unique(s.y)) <= {0.0, 1.0}
    assert (load(str(path), 30, 3, 0).x == s.x).all()


@pytest.mark.parametrize(
    ("header", "rows", "named"),
    [("age,label", ["3,2"], "line 2: label"), ("age,label", ["3,1", "4,yes"], "line 3: label"), ("age,y", ["3,1"], "label"),
     ("label", ["1"], "label"), ("age,label", [], "label"), ("age,label", ["nan,1"], "finite"),
     ("age,label", ["1,1,5"], "line 2"), ("age,label", ["1,1"] * 50, "past needs labels"),
     ("age,label", ["3,1", "inf,1"], "age, line 3"), ("age,label", ["3,1", ",0"], "line 3: age"), ("age,label", ["3"], "give 2"),
     ("age,label", ["3,0", "3,1"] * 50, "all are alike")],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path, header, rows, named):
    with pytest.raises(InputError, match=named):
        load(str(table(tmp_path / "x.csv", rows, header)), 10, 2, 0)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.csv").write_bytes("größe,label\n1,0\n".encode("latin-1"))
    for name in ("latin.csv", "missing.csv"):
        with pytest.raises(InputError, match="UTF-8"):
            load(str(tmp_path / name), 10, 2, 0)


def test_repeated_columns_do_not_disturb_the_auditors(tmp_path):
    """Auditors weigh directions in which the past varies: a column twice, or one in other units, adds none."""
    rows = [f"{i % 13},{i % 13},{i * 7 % 11},{int(i % 3 > 0)}" for i in range(200)]
    s = load(str(table(tmp_path / "twice.csv", rows, "a,again,b,label")), 20, 4, 0)
    assert all(auditor.matrix.shape == (3, 2) and np.abs(auditor.matrix).max() < 2 for auditor in s.auditors)


def test_cases_that_cannot_be_used():
    rules = Halfspaces(np.ones((1, 2)), np.zeros(1))
    x, y = np.zeros((3, 2, 2)), np.zeros((3, 2))
    with pytest.raises(InputError, match="label of round 1, case 0"):
        Cases("a", x, np.where(np.arange(6).reshape(3, 2) == 2, 0.5, y), rules, (), x[0])
    x[2, 1, 0] = np.inf
    with pytest.raises(InputError, match="features of round 2, case 1"):
        Cases("a", x, y, rules, (), x[0])
    with pytest.raises(InputError, match="one label a case"):
        Cases("a", np.zeros((3, 2, 2)), np.zeros((3, 3)), rules, (), x[0])


def test_scikit_learn_is_asked_for(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"anypolicy\[exact\]"):
        load("breast-cancer", 10, 2, 0)
