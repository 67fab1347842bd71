"""The example on every method's card is a command that runs; what it says to look at is measured there."""

import shlex

import pytest

from anypolicy import catalogue
from anypolicy.cli.app import main
from anypolicy.runs.directory import RunDirectory

METHODS = catalogue.methods(None)
WITHOUT = {
    "adaptthink", "bcq", "bradley-terry", "bve", "cql", "crr", "diffusion-dpo", "expo-expressive", "hnpg",
    "lipschitz-certificate", "mce", "mcts-dpo", "qr-dqn", "rem", "resfit", "rlpd", "serl",
}  # fmt: skip
"""Methods for which no command of two minutes was found that shows something."""
PRETRAINED = ("digit-chain", "noisy-sort", "slots", "tiny-add")
"""Tasks whose base policy is trained first, for longer than a test may take."""
LONG = (*PRETRAINED, "online-offline")
RUN = [slug for slug, m in METHODS.items() if m.card.example and not any(t in m.card.example for t in LONG)]


def words_of(slug, command):
    """The command in its smallest size."""
    words = shlex.split(command)[1:]
    if words[0] == "train":
        n = "300" if METHODS[slug].family == "control" else "1"
        words[words.index("--steps") + 1] = n
        words += ["--quiet", "--trackers", "none", "--out", "run"]
        words += ["--eval-episodes", "1"] if METHODS[slug].family == "control" else []
        words += [f"--{slug}.base-updates", "10"] if slug.startswith("dsrl") else []
    return words


def test_every_method_has_an_example_or_is_known_to_have_none():
    assert {slug for slug, m in METHODS.items() if not m.card.example} == WITHOUT
    assert all(bool(m.card.look_at) == bool(m.card.example) for m in METHODS.values())
    assert all(f" {slug}" in m.card.example for slug, m in METHODS.items() if m.card.example)


@pytest.mark.parametrize("slug", RUN)
def test_the_first_step_of_every_example(slug, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in METHODS[slug].card.example.split(" && "):
        assert main(words_of(slug, command)) == 0, capsys.readouterr().err
    if METHODS[slug].family != "exact":
        named = METHODS[slug].card.look_at.partition(":")[0]
        with RunDirectory.open("run", lock=False) as run:
            assert named in run.read()[0], f"the evaluation has no {named}"


def test_try_runs_the_example_and_says_what_to_look_at(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["try", "rloo"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("$ anypolicy train rloo --task tabular-lock --steps 60") and "look at probe/success" in out
    assert main(["try", "mcts-dpo"]) == 2 and "no example yet" in capsys.readouterr().err
    assert main(["try", "rlo"]) == 2 and "did you mean" in capsys.readouterr().err
