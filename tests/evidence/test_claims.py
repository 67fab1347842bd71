"""The claim runner on a claim that takes no time."""

import ast
import json
from pathlib import Path

import pytest

from anypolicy.errors import InputError
from anypolicy.evidence.claims import counted, run_claim, table
from anypolicy.evidence.provenance import digest
from anypolicy.studies.reproduce import reproduce

CLAIM = '''"""Two numbers."""
from anypolicy.evidence.checks import Amendment, Check
from pathlib import Path
CLAIM, SEEDS, ARMS, CURVE = "b is larger", 5, ("a", "b"), "x"
def run(arm, seed):
    with (Path(__file__).parent / "log").open("a") as f:
        f.write(f"{arm}{seed} ")
    end = seed * 0.01 + (arm == "b") * (1 + 0.001 * seed)
    return {"end": end, "curve": [(0, 0.0), (1, end)]}
CHECKS = [
    Check("b above a", "> 0", lambda r: r["b"]["end"] - r["a"]["end"], above=0.5),
    Check("seeds matter", "< 0", lambda r: r["a"]["end"], below=0.0, core=False),
    Check("b is above a on every seed", "> 0", lambda r: r["b"]["end"] - r["a"]["end"], above=0.0, kind="each"),
]
NOTE = "b is ahead by {0:.2f}, at worst by {2.point:.1f}"
AMENDMENTS = (Amendment("five seeds for four", "2026-12-01", "after a look", "four do not decide"),)
'''

ROOT = Path(__file__).parents[2]


def test_a_claim_is_run_judged_recorded_and_not_run_again(tmp_path):
    (tmp_path / "claims").mkdir()
    path = tmp_path / "claims" / "some_method.py"
    path.write_text(CLAIM)
    verdict = reproduce("some-method", claims=tmp_path / "claims")
    assert verdict.verdict == "confirmed"
    assert [c.verdict for c in verdict.checks] == ["confirmed", "undecided", "confirmed"]
    written = json.loads((tmp_path / "docs" / "evidence" / "some-method.json").read_text())
    assert written["runs"]["b"][3]["end"] == pytest.approx(1.033)
    assert written["runs"]["a"][1]["curve"] == [[0, 0.0], [1, 0.01]]
    assert written["checks"][0]["measured"]["point"] == pytest.approx(1.002)
    assert written["scope"] == "Two numbers." and written["note"] == "b is ahead by 1.00 [1.00, 1.00], at worst by 1.0"
    assert written["amendments"][0]["looked"] == "after a look"
    [made] = written["provenance"]
    assert made["seeds"] == [0, 1, 2, 3, 4] and made["claim_sha256"] == digest([path], path.parent)
    assert made["processor_seconds"] >= 0 and made["machine"] and len(made["sources_sha256"]) == 64
    assert "<svg" in (tmp_path / "docs" / "evidence" / "some-method.svg").read_text()
    assert "b above a: expected > 0, measured 1 [1, 1]" in str(verdict)
    assert "measured 1, the worst of 5 seeds" in str(verdict)
    reproduce("some-method", claims=tmp_path / "claims", seeds=6)
    assert sorted((path.parent / "log").read_text().split()) == sorted(f"{a}{s}" for a in "ab" for s in range(6))
    path.write_text(CLAIM.replace("above=0.5", "above=2.0"))
    assert reproduce("some-method", claims=tmp_path / "claims").verdict == "short of the expected effect"
    assert table(tmp_path / "docs" / "evidence").splitlines()[2:] == [
        "| `some-method` | short of the expected effect | b is ahead by 1.00 [1.00, 1.00], at worst by 1.0 |"
    ]
    assert "1 short of the expected effect, 0 refuted" in counted(tmp_path / "docs" / "evidence")


def test_recorded_runs_are_kept_judged_anew_and_added_to(tmp_path):
    path = tmp_path / "some_method.py"
    path.write_text(CLAIM)
    run_claim(path, out=tmp_path, quiet=True, trust=True)
    before = json.loads((tmp_path / "some-method.json").read_text())
    path.write_text(CLAIM.replace("above=0.5", "above=2.0, refuted=1.5"))
    assert run_claim(path, out=tmp_path, quiet=True, trust=True, keep=True).verdict == "refuted"
    again = json.loads((tmp_path / "some-method.json").read_text())
    assert again["runs"] == before["runs"] and again["provenance"] == before["provenance"]
    log = tmp_path / "log"
    assert len(log.read_text().split()) == 10
    verdict = run_claim(path, out=tmp_path, quiet=True, trust=True, keep=True, seeds=7)
    assert sorted(log.read_text().split()[10:]) == ["a5", "a6", "b5", "b6"] and verdict.seeds == 7
    more = json.loads((tmp_path / "some-method.json").read_text())
    assert [p["seeds"] for p in more["provenance"]] == [[0, 1, 2, 3, 4], [5, 6]]
    assert more["runs"]["a"][:5] == before["runs"]["a"]
    assert more["provenance"][1]["claim_sha256"] != more["provenance"][0]["claim_sha256"]
    assert run_claim(path, out=tmp_path, quiet=True, trust=True, keep=True).seeds == 7  # none is thrown away


def test_a_claim_may_load_the_one_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYPOLICY_HOME", str(tmp_path / "home"))
    (tmp_path / "other.py").write_text(CLAIM)
    path = tmp_path / "some_method.py"
    beside = 'from anypolicy.evidence.claims import load\nload(Path(__file__).with_name("other.py"))\n'
    path.write_text(CLAIM.replace("from pathlib import Path\n", f"from pathlib import Path\n{beside}"))
    with pytest.raises(InputError, match="--trust"):
        run_claim(path, out=tmp_path, quiet=True)
    assert run_claim(path, out=tmp_path, quiet=True, trust=True).verdict == "confirmed"


def test_what_cannot_be_kept_is_refused(tmp_path):
    path = tmp_path / "some_method.py"
    path.write_text(CLAIM)
    with pytest.raises(InputError, match="there is no such evidence"):
        run_claim(path, out=tmp_path, quiet=True, trust=True, keep=True)
    for text in ("{", "[]", '{"runs": {"a": []}, "provenance": []}', '{"runs": {"a": [1], "b": []}, "provenance": []}'):
        (tmp_path / "some-method.json").write_text(text)
        with pytest.raises(InputError, match="does not hold the runs of this claim"):
            run_claim(path, out=tmp_path, quiet=True, trust=True, keep=True)


def test_bad_claims(tmp_path):
    (tmp_path / "x.py").write_text("CLAIM = 1")
    with pytest.raises(InputError, match="no SEEDS"):
        run_claim(tmp_path / "x.py", out=tmp_path, trust=True)
    with pytest.raises(InputError, match="did you mean 'x'"):
        reproduce("xx", claims=tmp_path)


def test_stages_of_claims_say_what_they_need():
    """A stage without `needs` stops a claim only when its arm is run."""
    for path in sorted((ROOT / "claims").glob("*.py")):
        for node in (n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)):
            calls = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__call__"]
            stage = any(a.arg in ("batch", "groups", "world") for f in calls for a in f.args.args)
            assert not stage or "needs" in ast.unparse(node), f"{path.name}: {node.name}"
