"""The example of CONTRIBUTING works as it stands; links of the documentation lead somewhere."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from anypolicy import catalogue
from anypolicy.cli.app import main
from anypolicy.compose import compose
from anypolicy.evidence.claims import counted, judge, load, table
from anypolicy.runs.strict_json import json_text
from anypolicy.runs.trust import allow
from tests.helpers import lock_loop

ROOT = Path(__file__).parents[1]


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
BEFORE = '''"""An example."""
import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.data.transitions import Transitions
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OffPolicyRecipe, OnPolicyRecipe, fed
from anypolicy.methods.preference.dpo import recorded_pairs
from anypolicy.methods.supervised.sft import sft
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.choices import epsilon_greedy, taken
from anypolicy.parts.reports import Report, Solution
from anypolicy.parts.td import generalised_advantage
from anypolicy.policies.control.actors import actor_for
from anypolicy.policies.control.mlp import MLP
from anypolicy.policies.language.base import Scores
from anypolicy.stages.pairs import Pair, PairLoss
from anypolicy.stages.recipe import GroupRecipe, LossTerms
from anypolicy.stages.targets import reduce_targets, target_of
from anypolicy.tasks.control.environments import Space

'''
STAGES = "from anypolicy.stages.needs import Needs\n"
PAIRS = '{"prompt": "1+1=", "chosen": "2", "rejected": "3"}\n{"prompt": "2+2=", "chosen": "4", "rejected": "5"}\n'
POLICY = ["--policy", "transformer:layers=1,width=8,heads=2", "--steps", "2", "--prompts", "1", "--eval-every", "0"]
CARTPOLE = ["--task", "gym/CartPole-v1", "--steps", "200", "--eval-episodes", "1"]
RUNS = (
    ("preference", STAGES, ["train", "exponential-pairs", "--task", "pairs.jsonl:heldout=0", *POLICY]),
    ("supervised", STAGES, ["train", "focal", "--task", "chosen.jsonl:heldout=0", *POLICY]),
    ("control", "", ["train", "expected-sarsa", *CARTPOLE, "--expected-sarsa.warmup", "50"]),
    ("control", "", ["train", "reward-to-go", *CARTPOLE]),
    ("exact", "", ["solve", "birthday"]),
)


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_the_examples_of_other_families(number, tmp_path, monkeypatch, capsys):
    family, needs, arguments = RUNS[number]
    assert len(EXAMPLES) == len(RUNS) + 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    (tmp_path / "chosen.jsonl").write_text(
        PAIRS.replace('"chosen"', '"response"').replace(', "rejected": "3"', "").replace(', "rejected": "5"', "")
    )
    path = tmp_path / "mine.py"
    card = f'CARD = Card("t", "p", 2026, "{family}", "i", (), "c", "none")\n'
    path.write_text(BEFORE + needs + card + EXAMPLES[number + 1])
    known = catalogue.methods(None)
    try:
        if arguments[0] == "solve":
            catalogue.load_file(path, trust=True)
            assert main(arguments) == 0 and "0.5073" in capsys.readouterr().out
            return
        more = ["--quiet", "--trackers", "--method-file", str(path), "--out", "run"]
        assert main([*arguments, *more]) == 0
        assert (tmp_path / "run" / "report.html").exists()
    finally:
        catalogue.REGISTERED.clear()
        catalogue.REGISTERED.update(known)


def test_the_example_method(tmp_path, monkeypatch):
    code = EXAMPLES[0]
    path = tmp_path / "median.py"
    path.write_text(code)
    known = catalogue.methods(None)
    try:
        monkeypatch.chdir(tmp_path)
        command = ["train", "sapo+median-baseline", "--task", "tabular-lock", "--steps", "2", "--quiet", "--trackers"]
        assert main([*command, "--method-file", str(path), "--out", "run"]) == 0
        loop = lock_loop(compose("sapo+median-baseline").recipe)
        before = loop.world.policy.module.logits.detach().clone()
        loop.step()
        assert not torch.equal(before, loop.world.policy.module.logits)
    finally:
        catalogue.REGISTERED.clear()
        catalogue.REGISTERED.update(known)


EVIDENCE = ROOT / "docs" / "evidence"
CLAIMS = sorted(ROOT.glob("claims/*.py"))


def judged_anew(path, written):
    """What the checks of today say of recorded runs."""
    for file in CLAIMS:
        allow({"claim": file})
    module = load(path)
    by_seed = [{arm: written["runs"][arm][seed] for arm in module.ARMS} for seed in range(written["seeds"])]
    return judge(written["slug"], module, by_seed)


def test_the_readme_has_all_claims_as_they_were_judged():
    assert table(EVIDENCE) in (ROOT / "README.md").read_text(), "write it anew: make readme"
    assert f"Of {len(CLAIMS)} claims: {counted(EVIDENCE)}." in (ROOT / "README.md").read_text(), "make readme"


@pytest.mark.parametrize("path", CLAIMS, ids=lambda p: p.stem)
def test_the_record_of_every_claim_is_what_its_checks_say_of_its_runs(path):
    written = json.loads((EVIDENCE / f"{path.stem.replace('_', '-')}.json").read_text())
    verdict = judged_anew(path, written)
    checks = [asdict(c) | {"measured": c.measured._asdict()} for c in verdict.checks]
    fresh = json.loads(json_text(asdict(verdict) | {"checks": checks}))
    stored = {k: written[k] for k in fresh}
    for c in stored["checks"]:
        c["measured"] = pytest.approx(c["measured"], rel=1e-9, abs=1e-12)
        c["values"] = pytest.approx(c["values"], rel=1e-9, abs=1e-12)
    assert fresh == stored
    made = [seed for p in written["provenance"] for seed in p["seeds"]]
    assert made == list(range(written["seeds"]))
    assert any(c.core for c in verdict.checks) and verdict.scope


def test_the_readme_shows_what_reproduce_prints():
    written = json.loads((EVIDENCE / "ngrpo.json").read_text())
    printed = str(judged_anew(ROOT / "claims" / "ngrpo.py", written)).splitlines()
    shown = "\n".join(f"    {line}".rstrip() for line in printed)
    assert shown in (ROOT / "README.md").read_text(), shown


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    made = {"methods/index.md", "metrics.md", "add-a-method.md", "claims.md"}
    made |= {f"{up}methods/{slug}.md" for up in ("", "../") for slug in catalogue.methods(None)}
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists() or target in made, target


PYTHON = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)


def test_the_page_on_python_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "\n".join(PYTHON).replace('"smollm2-135m"', '"transformer:layers=1,width=32,heads=2"')
    small = re.sub(r"steps=(\d[\d_]*)", lambda m: f"steps={4 if m[1] == '200' else 150 if '_' in m[1] else 2}", small)
    small = small.replace("steps=2)\nrun.plot", "steps=2, max_tokens=4, prompts=4)\nrun.plot").replace(
        "seeds=5", "seeds=2"
    )
    small = small.replace("steps=150", "steps=150, eval_episodes=1, hidden=(8,), batch=4, warmup=20")
    names: dict[str, object] = {}
    exec(compile(small, "docs/python.md", "exec"), names)
    assert names["action"].shape == (1,) and len(names["study"].arms) == 2
