"""Every stage of every method in every other method: it runs, or it is refused with a reason."""

import itertools

import pytest
import torch

from anypolicy import catalogue
from anypolicy.compose import STAGES, compose
from anypolicy.errors import InputError
from anypolicy.loops.group import check
from tests.helpers import lock_loop

METHODS = sorted(catalogue.methods())
PAIRS = [
    (a, f"{b}.{stage}")
    for a, b in itertools.permutations(METHODS, 2)
    for stage in catalogue.get(b).card.changes
]  # fmt: skip
REFUSED = {("ngrpo", "dapo.selection"), ("dapo", "ngrpo.advantage")}


def needs_partner(spec):
    """An advantage with a critic and its critic only go together; group advantages need groups."""
    a, b = spec.split("+")
    one_each, critics = {"ppo", "reinforce-pp"}, {"ppo", "pf-ppo"}
    slug, stage = b.split(".")
    if stage in ("critic", "advantage") and (a in critics) != (slug in critics):
        return True
    grouped = {"grpo", "dr-grpo", "dapo", "gspo", "rloo", "sapo", "vade"}
    advantage_of = b.split(".")[0] if b.endswith(".advantage") else a
    rollout_of = b.split(".")[0] if b.endswith(".rollout") else a
    selection_of = b.split(".")[0] if b.endswith(".selection") else a
    return rollout_of in one_each and (advantage_of in grouped or selection_of == "dapo")


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_pair(a, b):
    if (a, b) in REFUSED:
        with pytest.raises(InputError, match="all-wrong"):
            compose(f"{a}+{b}")
        return
    composition = compose(f"{a}+{b}")
    slug, stage = b.split(".")
    assert composition.origin == {s: slug if s == stage else a for s in STAGES}
    if needs_partner(f"{a}+{b}"):
        with pytest.raises(InputError):
            check(composition.recipe, 8)
        return
    check(composition.recipe, 8)
    loop = lock_loop(composition.recipe)
    before = loop.world.policy.module.logits.detach().clone()
    loop.step()
    assert not torch.equal(before, loop.world.policy.module.logits)


def test_the_example_of_the_design():
    c = compose("grpo+ngrpo.advantage+sapo.loss+vade.sampler")
    assert {s: c.origin[s] for s in ("advantage", "loss", "sampler", "rollout")} == {
        "advantage": "ngrpo", "loss": "sapo", "sampler": "vade", "rollout": "grpo",
    }  # fmt: skip
    assert c.recipe.advantage == compose("ngrpo").recipe.advantage


def test_a_whole_method_gives_what_it_changes():
    c = compose("ngrpo+vade")
    assert [s for s, owner in c.origin.items() if owner == "vade"] == ["sampler"]


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("ngrpo+sapo", r"both change the loss: write ngrpo\+sapo.loss"),
        ("nope", "did you mean|use one of"),
        ("ngrp", "did you mean 'ngrpo'"),
        ("grpo+ngrpo.advntage", "did you mean 'advantage'"),
        ("grpo+ngrpo.loss+sapo.loss", "taken twice"),
        ("ngrpo+grpo", "changes no stage"),
        ("grpo.loss", "begin with a whole method"),
    ],
)
def test_errors_say_what_to_write(spec, match):
    with pytest.raises(InputError, match=match):
        compose(spec)


def test_settings_are_checked():
    assert compose("ngrpo", {"ngrpo": {"virtual_reward": 2.0}}).recipe.advantage.maximum == 2.0
    with pytest.raises(InputError, match="did you mean 'virtual_reward'"):
        compose("ngrpo", {"ngrpo": {"virtual_rewards": 2.0}})
    with pytest.raises(InputError, match="changes nothing here"):
        compose("grpo+ngrpo.advantage", {"ngrpo": {"clip_low": 0.1}})
    with pytest.raises(InputError, match="only the methods"):
        compose("grpo", {"sapo": {"tau_pos": 2.0}})
