"""The example of CONTRIBUTING works as it stands; links of the documentation lead somewhere."""

import json
import re
from pathlib import Path

import pytest
import torch

from anypolicy import catalogue
from anypolicy.cli import main
from anypolicy.compose import compose
from tests.helpers import lock_loop

ROOT = Path(__file__).parents[1]


def test_the_example_method(tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
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


@pytest.mark.parametrize("claim", sorted(ROOT.glob("claims/*.py")), ids=lambda p: p.stem)
def test_the_readme_has_the_verdict_of_every_claim(claim):
    slug = claim.stem.replace("_", "-")
    found = ROOT / "docs" / "evidence" / f"{slug}.json"
    verdict = json.loads(found.read_text())["verdict"] if found.exists() else "not measured yet"
    assert f"| `{slug}` | {verdict} |" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    made = {"methods/index.md", "metrics.md", "add-a-method.md"}
    made |= {f"{up}methods/{slug}.md" for up in ("", "../") for slug in catalogue.methods(None)}
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists() or target in made, target
