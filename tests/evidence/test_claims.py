"""The claim runner on a claim that takes no time."""

import json

import pytest

from anypolicy.errors import InputError
from anypolicy.evidence.claims import Check, run_claim
from anypolicy.evidence.stats import Interval
from anypolicy.studies import reproduce

CLAIM = """
from anypolicy.evidence.checks import Check
from pathlib import Path
CLAIM, SEEDS, ARMS, CURVE = "b is larger", 4, ("a", "b"), "x"
def run(arm, seed):
    with (Path(__file__).parent / "log").open("a") as f:
        f.write(f"{arm}{seed} ")
    end = seed * 0.01 + (arm == "b")
    return {"end": end, "curve": [(0, 0.0), (1, end)]}
CHECKS = [
    Check("b above a", "> 0", lambda r: r["b"]["end"] - r["a"]["end"], above=0.5),
    Check("seeds matter", "< 0", lambda r: r["a"]["end"], below=0.0, core=False),
]
"""


def test_a_claim_is_run_judged_recorded_and_not_run_again(tmp_path):
    (tmp_path / "claims").mkdir()
    path = tmp_path / "claims" / "some_method.py"
    path.write_text(CLAIM)
    verdict = reproduce("some-method", claims=tmp_path / "claims")
    assert verdict.verdict == "confirmed"
    assert [c.verdict for c in verdict.checks] == ["confirmed", "undecided"]
    written = json.loads((tmp_path / "docs" / "evidence" / "some-method.json").read_text())
    assert written["runs"]["b"][3]["end"] == pytest.approx(1.03)
    assert written["checks"][0]["measured"]["point"] == pytest.approx(1.0)
    assert "<svg" in (tmp_path / "docs" / "evidence" / "some-method.svg").read_text()
    assert "b above a: expected > 0, measured 1.000" in str(verdict)
    reproduce("some-method", claims=tmp_path / "claims", seeds=5)
    assert sorted((path.parent / "log").read_text().split()) == sorted(f"{a}{s}" for a in "ab" for s in range(5))
    path.write_text(CLAIM.replace("above=0.5", "above=2.0"))
    assert reproduce("some-method", claims=tmp_path / "claims").verdict == "refuted"


@pytest.mark.parametrize(
    ("bounds", "measured", "verdict"),
    [
        ({"above": 1.0}, (2, 1.1, 3), "confirmed"), ({"above": 1.0}, (2, 0.9, 3), "undecided"),
        ({"above": 1.0}, (0, -1, 0.9), "refuted"), ({"below": 1.0}, (0, -1, 0.9), "confirmed"),
        ({"below": 1.0}, (2, 1.1, 3), "refuted"), ({"below": 1.0}, (1, 0.5, 1.5), "undecided"),
    ],
)  # fmt: skip
def test_verdicts(bounds, measured, verdict):
    assert Check("c", "e", lambda r: 0.0, **bounds).judge(Interval(*measured)) == verdict


def test_bad_claims(tmp_path):
    (tmp_path / "x.py").write_text("CLAIM = 1")
    with pytest.raises(InputError, match="no SEEDS"):
        run_claim(tmp_path / "x.py", out=tmp_path, trust=True)
    with pytest.raises(InputError, match="did you mean 'x'"):
        reproduce("xx", claims=tmp_path)
