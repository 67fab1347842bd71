"""Every stage of every method in one method of each kind, and every advantage with every loss, selection and sampler: it
runs, or it is refused with a reason that a card or a stage declares. `make test-all` puts it into every other method."""

import itertools
import math
import os
import re

import pytest
import torch

from anypolicy import catalogue
from anypolicy.compose import STAGES, compose
from anypolicy.errors import InputError
from anypolicy.stages.checks import check, stages
from tests.helpers import lock_loop

METHODS = sorted(catalogue.methods())


def kind(slug):
    """What decides how a stage of another method fares in a method: whether it samples, and how many, what its rollout
    gives, whether scores are recorded, whether it has a critic, and what its loss learns from."""
    recipe = compose(slug).recipe
    loss, gives = recipe.loss.needs, recipe.rollout.gives
    return (min(recipe.rollout.group_size, 2), gives.targets, gives.kinds, gives.behaviour, recipe.reward.needs.recorded,
            recipe.critic is None, loss.targets, loss.kinds, loss.pairs, loss.logits, loss.behaviour)  # fmt: skip


REPRESENTATIVES = sorted({kind(slug): slug for slug in reversed(METHODS)}.values())
"""The first method of each kind."""
EVERYWHERE = bool(os.environ.get("EVERY_PAIR"))


def partners(slug):
    """In which methods the stages of one are tried: one of each kind, those that a card names with it, or all."""
    own = catalogue.get(slug).card.conflicts
    named = {other.partition(".")[0] for _, other in own}
    named |= {m for m in METHODS for _, other in catalogue.get(m).card.conflicts if other.partition(".")[0] == slug}
    return sorted({*(METHODS if EVERYWHERE else (*REPRESENTATIVES, *named))} & {*METHODS} - {slug})


PAIRS = [(a, f"{b}.{stage}") for b in METHODS for stage in catalogue.get(b).card.changes for a in partners(b)]
COMPARED = ("advantage", "loss", "selection", "sampler")


def declared(origin):
    """The reason that some card gives against stages of these origins, if one does."""
    for slug in set(origin.values()):
        for (own, other), reason in catalogue.get(slug).card.conflicts.items():
            rival, _, stage = other.partition(".")
            if origin.get(own) == slug and origin.get(stage) == rival:
                return reason
    return None


def apart(slug, stage):
    """Stages that sampled responses have no use for: supervised ones, and losses that ask which kind each answer is."""
    own = getattr(compose(slug).recipe, stage)
    return catalogue.get(slug).card.family == "supervised" or (stage in STAGES and own.needs.kinds)


def needs_partner(recipe):
    """What stages declare themselves: an advantage with value targets goes with a critic, what compares responses needs
    groups of at least so many, and what learns from targets or compares nothing is not for sampled responses."""
    valued, size = recipe.advantage.needs.value, recipe.rollout.group_size
    users = [s.needs for s in (recipe.sampler, recipe.reward, recipe.advantage, recipe.selection, recipe.loss)]
    gives, loss = recipe.rollout.gives, recipe.loss.needs
    untaught = loss.targets and not gives.targets
    least = [n.responses for n in users]
    most = [size if n.most_responses is None else n.most_responses for n in users]
    by_hand, known = not gives.behaviour, not loss.behaviour
    verdicts = recipe.selection.needs.verdicts or recipe.advantage.needs.verdicts
    unread = recipe.reward.needs.recorded and (not by_hand or verdicts)
    unkind = loss.kinds and not gives.kinds
    unseen = recipe.reference.moves and not any(s.needs.reference for s in stages(recipe))
    return (
        unread
        or unkind
        or unseen
        or (by_hand and not known)
        or untaught
        or not max(least) <= size <= min(most)
        or valued != (recipe.critic is not None)
    )


def distinct(stage):
    """Methods that give this stage for sampled responses, one for each different stage."""
    found = {}
    for slug in ["grpo", *METHODS]:
        if slug == "grpo" or (stage in catalogue.get(slug).card.changes and not apart(slug, stage)):
            found.setdefault(repr(getattr(compose(slug).recipe, stage)), slug)
    return sorted(found.values())


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_pair(a, b):
    slug, stage = b.split(".")
    origin = {s: slug if s == stage else a for s in STAGES}
    if reason := declared(origin):
        with pytest.raises(InputError, match=re.escape(reason)):
            compose(f"{a}+{b}")
        return
    composition = compose(f"{a}+{b}")
    assert composition.origin == origin
    if needs_partner(composition.recipe):
        with pytest.raises(InputError):
            check(composition.recipe, 8)
        return
    check(composition.recipe, 8)
    loop = lock_loop(composition.recipe)
    before = loop.world.policy.module.logits.detach().clone()
    loop.step()
    assert not torch.equal(before, loop.world.policy.module.logits)


@pytest.mark.parametrize(("advantage", "loss"), itertools.product(distinct("advantage"), distinct("loss")))
def test_with_every_selection_and_sampler(advantage, loss):
    for selection, sampler in itertools.product(distinct("selection"), distinct("sampler")):
        owners = dict(zip(COMPARED, (advantage, loss, selection, sampler), strict=True))
        critic = "+ppo.critic" if compose(advantage).recipe.advantage.needs.value else ""
        spec = "+".join(["grpo", *(f"{slug}.{stage}" for stage, slug in owners.items() if slug != "grpo")]) + critic
        if reason := declared(owners):
            with pytest.raises(InputError, match=re.escape(reason)):
                compose(spec)
            continue
        loop = lock_loop(compose(spec, {"grpo": {"group_size": 4}}).recipe, prompts=4, length=2)
        check(loop.recipe, 4)
        before = loop.world.policy.module.logits.detach().clone()
        log = loop.step()
        assert all(math.isfinite(x) for x in log.values()), spec
        assert torch.isfinite(loop.world.policy.module.logits).all(), spec
        if log["updates"]:
            assert not torch.equal(before, loop.world.policy.module.logits), spec


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
        ("nope", "did you mean|no such method"),
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
