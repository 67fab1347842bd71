"""Iterative DPO: what the reference is in a round, and how many updates a round makes."""

import pytest
import torch

from anypolicy.methods.preference.iterative_dpo import iterative_dpo
from anypolicy.stages.reference import Fixed, PerRound
from tests.helpers import lock_loop


def test_the_reference_is_the_policy_the_round_began_with():
    loop = lock_loop(iterative_dpo(), prompts=16)
    for _ in range(3):
        before = loop.world.policy.module.logits.detach().clone()
        log = loop.step()
        assert torch.equal(loop.reference.policy.module.logits, before)
        assert log["updates"] == 4
    assert not torch.equal(loop.reference.start.module.logits, before)


def test_the_first_update_of_every_round_is_at_the_reference():
    recipe = iterative_dpo(minibatches=1)
    loop = lock_loop(recipe, prompts=16)
    for _ in range(3):
        log = loop.step()
        assert log["loss/preference"] == pytest.approx(0.6931472, abs=1e-6)
        assert log["pairs/margin"] == pytest.approx(0, abs=1e-6)


def test_settings():
    assert iterative_dpo().reference == PerRound(1)
    assert iterative_dpo(reference="init").reference == Fixed()
    assert iterative_dpo(samples=6).rollout.group_size == 6
