"""SPIN: targets against samples of the round's own policy, on this round's data and the last."""

import numpy as np
import pytest

from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.methods.preference.spin import spin
from tests.helpers import lock_loop
from tests.methods.test_online_dpo import by_hand


def test_the_target_is_chosen_and_the_sample_rejected():
    loop = lock_loop(spin(), prompts=16)
    batch, _ = loop.collect()
    assert len(batch.pairs)
    for chosen, rejected in batch.pairs.tolist():
        row, other = (int((batch.trajectory == t).nonzero()) for t in (chosen, rejected))
        prompt = loop.world.task.train[int(batch.context[batch.context_index[row], -1])]
        assert tuple(batch.response[row].tolist()) == prompt.reference
        assert (batch.version[row] == -1).all() and (batch.version[other] >= 0).all()


def test_the_loss_by_hand():
    """The reference is the policy as the round began: its first loss is ln 2, that after a step of the round is not."""
    loop = lock_loop(spin(beta=0.7, minibatches=1), prompts=16)
    loop.step()
    loop.reference.advance(loop.steps)
    batch, _ = loop.collect()
    assert by_hand(loop, batch, 0.7) == pytest.approx(np.log(2), rel=1e-6)
    assert loop.update(batch)["loss/preference"] == pytest.approx(np.log(2), rel=1e-6)
    want = by_hand(loop, batch, 0.7)
    assert loop.update(batch)["loss/preference"] == pytest.approx(want, rel=1e-5) and want < 0.65


def test_a_sample_that_equals_its_target_makes_no_pair():
    loop = lock_loop(spin(), prompts=16, start="mixture", sigma=0.0)
    _, log = loop.collect()
    assert log["pairs/equal"] > 0
    assert log["pairs/made"] == 16 - log["pairs/equal"]


def test_the_last_rounds_data_comes_again_once():
    loop, sizes = lock_loop(spin(minibatches=1), prompts=8), []
    for _ in range(3):
        batch, _ = loop.collect()
        sizes.append(int(batch.group_id.max()) + 1)
        loop.steps += 1
    assert sizes[0] <= 8 < sizes[1] <= 16
    assert len(loop.replayed) == 8
    assert spin(previous=False).selection.replay is False


def test_it_needs_targets():
    with pytest.raises(InputError, match="no reference response"):
        training.plan("spin", training.Settings("tabular-lock"))


def test_it_comes_closer_to_the_targets():
    loop = lock_loop(spin(), prompts=16)
    start = loop.world.task.probe(loop.world.policy)["success"]
    logs = [loop.step() for _ in range(15)]
    assert loop.world.task.probe(loop.world.policy)["success"] > start + 0.3
    assert all(np.isfinite(list(log.values())).all() for log in logs)
