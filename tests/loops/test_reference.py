"""Reference policies that stand still and that move: where they are at every step, and that a checkpoint keeps them."""

from dataclasses import replace

import pytest
import torch
import yaml

from anypolicy.errors import InputError
from anypolicy.methods.language.rloo import rloo
from anypolicy.methods.preference.online_dpo import online_dpo
from anypolicy.policies.language.table import TablePolicy
from anypolicy.stages.checks import check
from anypolicy.stages.reference import CheckpointPool, Fixed, MovingAverage, PerRound, Reference
from tests.helpers import lock_loop


def walk(mode, steps):
    """The reference's first logit at every step, while the policy's is the number of the step."""
    learner = TablePolicy(torch.zeros(1, 1, 2))
    reference = Reference(mode, TablePolicy(torch.zeros(1, 1, 2)), learner, 0)
    out = []
    for step in range(steps):
        with torch.no_grad():
            learner.module.logits.fill_(float(step))
        reference.advance(step)
        out.append(float(reference.policy.module.logits.detach()[0, 0, 0]))
    assert float(reference.start.module.logits.detach()[0, 0, 0]) == 0
    return out


def test_where_it_is():
    assert walk(Fixed(), 4) == [0, 0, 0, 0]
    assert walk(PerRound(), 4) == [0, 1, 2, 3]
    assert walk(PerRound(3), 7) == [0, 0, 0, 3, 3, 3, 6]
    assert walk(MovingAverage(0.5), 4) == [0, 0.5, 1.25, 2.125]
    assert walk(MovingAverage(1.0), 4) == [0, 1, 2, 3]


def test_the_pool_draws_among_the_policies_it_holds():
    found = walk(CheckpointPool(2, 3), 60)
    assert found[:2] == [0, 0]
    for step, x in enumerate(found):
        held = [2 * i for i in range(step // 2 + 1)][-3:]
        assert x in held
    assert len(set(found)) > 15
    assert found == walk(CheckpointPool(2, 3), 60)


@pytest.mark.parametrize("mode", [PerRound(2), MovingAverage(0.3), CheckpointPool(1, 3)])
def test_a_checkpoint_keeps_it(mode):
    recipe = replace(online_dpo(), reference=mode)
    one, two = lock_loop(recipe), lock_loop(recipe)
    for _ in range(3):
        one.step()
    state = yaml.safe_load(yaml.safe_dump(one.state()))
    two.restore(state, {k: v.clone() for k, v in one.tensors().items()})
    for _ in range(3):
        assert one.step() == two.step()
    ours, theirs = (x.reference.policy.module.logits.detach() for x in (one, two))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, one.reference.start.module.logits)


@pytest.mark.parametrize(
    "wrong",
    [lambda: PerRound(0), lambda: MovingAverage(0.0), lambda: MovingAverage(1.5), lambda: CheckpointPool(0),
     lambda: CheckpointPool(1, 0)],
)  # fmt: skip
def test_impossible_settings(wrong):
    with pytest.raises(InputError, match="reference"):
        wrong()


def test_a_moving_reference_needs_someone_who_looks_at_it():
    with pytest.raises(InputError, match="no stage"):
        check(replace(rloo(kl_coef=0.0), reference=PerRound()), 8)
    check(replace(online_dpo(), reference=PerRound()), 8)


def test_another_architecture_cannot_follow():
    with pytest.raises(InputError, match="its parameters"):
        Reference(PerRound(), TablePolicy(torch.zeros(1, 1, 3)), TablePolicy(torch.zeros(1, 1, 2)), 0)
