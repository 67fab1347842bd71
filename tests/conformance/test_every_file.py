"""What every method must have beside its file: numbers from an independent formula, a claim, a line of the documentation.
A method that lacks one is named here; what stands elsewhere, and what has no claim of its own, is said here and nowhere else."""

import ast
import re
from pathlib import Path

import pytest

from anypolicy import catalogue

ROOT = Path(__file__).parents[2]
METHODS = catalogue.methods(None)
PAGES = "\n".join(p.read_text() for p in sorted((ROOT / "docs").glob("*.md")))
NUMBERS = {
    **dict.fromkeys(("grpo", "dr-grpo", "gspo", "rloo", "reinforce-pp", "ppo"), "test_group_baselines"),
    **dict.fromkeys(("vrpo-ol", "diffu-grpo"), "test_bgpo"),
    **dict.fromkeys(("bcq", "bve", "cql", "crr", "dqn", "mce", "qr-dqn", "rem"), "test_offline_choices"),
    "diffusion-spin": "test_seppo", "dsrl-sac": "test_dsrl", "lipschitz-certificate": "test_lipschitz_bc",
}  # fmt: skip
"""Methods whose numbers stand in the test of others."""
ARMS = {
    "bc": "offline_dataset", "bcq": "offline_dataset", "cql": "offline_dataset", "crr": "offline_dataset",
    "dqn": "offline_dataset", "mce": "offline_dataset", "bradley-terry": "pf_ppo_learned", "diffu-grpo": "bgpo",
    "mdlm": "bgpo", "vrpo-ol": "bgpo", "diffusion-sft": "seppo", "diffusion-spin": "seppo", "dsrl-sac": "dsrl",
    "dapo": "vade", "dpo": "drift", "spin": "drift", "iterative-dpo": "drift", "online-dpo": "mcts_dpo", "ipo": "copg",
    "grpo": "ngrpo", "gspo": "sapo", "sft": "otr",
}  # fmt: skip
"""Methods that are measured in the claim of another."""
SEVERAL = {"lipschitz-bc": "lipschitz_imitation", "lipschitz-certificate": "lipschitz_imitation"}
"""Ways to the same statement, of which one is measured."""
UNMEASURED = {
    "bve": "of the nine learners of arXiv 2111.04714 six are measured: the claim's time is spent on those that differ most",
    "qr-dqn": "as bve",
    "rem": "as bve",
    "cispo": "its statement is of models of billions of parameters; its numbers show that the gradient is the paper's",
    "ppo-control": "a baseline of control: its numbers are those of CleanRL's update, and props is measured beside its own on-policy half",
    "dr-grpo": "its statement is of lengths of long reasoning, which no test-bed here has",
    "rloo": "a baseline: its statement is that of unbiasedness, an identity of its numbers",
    "reinforce-pp": "a baseline",
    "ppo": "a baseline: what pf-ppo is measured beside is its own rule `none`",
    "diffusion-dpo": "its statement is of text-to-image models; seppo's claim measures preferences on what runs here",
    "kto": "a baseline: its statement is of models of billions of parameters",
    "orpo": "as kto",
    "simpo": "as kto",
    "slic": "as kto",
    "td3": "a baseline of control: its numbers are those of its authors' update",
}
"""Methods without a claim, and why."""


def file_of(slug):
    return ROOT / "tests" / "methods" / f"{NUMBERS.get(slug, 'test_' + slug.replace('-', '_'))}.py"


def names_of(path):
    """Modules that a test imports from, and words in quotes."""
    tree, out = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            out |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            out.add(node.value)
    return out


@pytest.mark.parametrize("slug", METHODS)
def test_a_method_has_numbers(slug):
    path = file_of(slug)
    assert path.is_file(), f"{slug} has no numbers: write {path.relative_to(ROOT)}, or say in NUMBERS where they stand"
    assert {METHODS[slug].build.__module__, slug} & names_of(path), f"{path.name} knows nothing of {slug}"
    assert "approx" in path.read_text() or "assert_close" in path.read_text(), f"{path.name} compares no number"


@pytest.mark.parametrize("slug", METHODS)
def test_a_method_has_a_claim_or_a_reason(slug):
    own = ROOT / "claims" / f"{slug.replace('-', '_')}.py"
    said = [own.is_file(), slug in ARMS, slug in SEVERAL, slug in UNMEASURED]
    assert sum(said) == 1, f"{slug}: write claims/{own.name}, or enter it once in ARMS, SEVERAL or UNMEASURED"
    if other := ARMS.get(slug):
        words = re.split(r"[^a-z0-9_-]+", (ROOT / "claims" / f"{other}.py").read_text())
        assert {slug, slug.replace("-", "_")} & set(words), f"claims/{other}.py does not measure {slug}"
    if other := SEVERAL.get(slug):
        assert (ROOT / "claims" / f"{other}.py").is_file()


@pytest.mark.parametrize("slug", METHODS)
def test_a_method_has_a_line_of_documentation(slug):
    """By its slug, in backticks or as a link to its page: what a reader can copy into a command."""
    named = rf"`{re.escape(slug)}[`+]|\[{re.escape(slug)}\]\(methods/{re.escape(slug)}\.md[)#]"
    assert re.search(named, PAGES), f"no page of docs/ names `{slug}`"


def test_what_is_said_here_is_of_methods_that_there_are():
    for table in (NUMBERS, ARMS, SEVERAL, UNMEASURED):
        assert table.keys() <= METHODS.keys()
    assert all(not (ROOT / "tests" / "methods" / f"test_{slug.replace('-', '_')}.py").exists() for slug in NUMBERS)
