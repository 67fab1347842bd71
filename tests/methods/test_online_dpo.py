"""Online DPO: pairs of fresh responses, ties that train nothing, and the penalty for a missing end."""

import math

import pytest
import torch

from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.methods.preference.online_dpo import EndPenalty, online_dpo
from anypolicy.stages.needs import Needs
from tests.helpers import lock_loop, segment


class Fixed:
    needs = Needs()

    def __call__(self, world, groups):
        for t in (t for g in groups for t in g.trajectories):
            t.reward, t.rewards = 1.0, {"task": 1.0}


def test_a_response_without_an_end_loses():
    group = Group("g", Prompt("g"), [Trajectory("a", [segment([1])]), Trajectory("b", [segment([2])], stop="length")])
    EndPenalty(Fixed(), 0.25)(None, [group])
    assert [t.reward for t in group.trajectories] == [1.0, 0.75]
    assert group.trajectories[1].rewards == {"task": 1.0, "missing_end": -0.25}
    assert online_dpo(missing_end=1.0).reward == EndPenalty(online_dpo().reward, 1.0)


def test_pairs_are_those_with_different_rewards():
    loop = lock_loop(online_dpo(), prompts=16)
    batch, metrics = loop.collect()
    for chosen, rejected in batch.pairs.tolist():
        assert batch.reward[chosen] > batch.reward[rejected]
        assert batch.group_id[chosen] == batch.group_id[rejected]
    assert metrics["pairs/made"] == len(batch.pairs) > 0
    assert metrics["pairs/tied"] + metrics["pairs/made"] <= 16
    assert batch.rows == 2 * len(batch.pairs)
    assert (batch.version >= 0).all()


def test_the_reference_stands_still():
    loop = lock_loop(online_dpo())
    before = loop.reference.policy.module.logits.detach().clone()
    for _ in range(3):
        loop.step()
    assert torch.equal(loop.reference.policy.module.logits, before)
    assert loop.reference.start is loop.reference.policy
    assert not loop.reference.known


def by_hand(loop, batch, beta):
    """−ln σ(β[(ℓ_w − ℓ_ref,w) − (ℓ_l − ℓ_ref,l)]), mean over the pairs, token by token from both tables."""
    ours, theirs = (
        p.module.logits.detach().log_softmax(-1).tolist() for p in (loop.world.policy, loop.reference.policy)
    )

    def ratio(trajectory):
        row = int((batch.trajectory == trajectory).nonzero())
        prompt = int(batch.context[batch.context_index[row], -1])
        return sum(ours[prompt][t][v] - theirs[prompt][t][v] for t, v in enumerate(batch.response[row].tolist()))

    margins = [ratio(w) - ratio(other) for w, other in batch.pairs.tolist()]
    return sum(math.log1p(math.exp(-beta * h)) for h in margins) / len(margins)


def test_the_loss_of_fresh_pairs_by_hand():
    loop = lock_loop(online_dpo(beta=0.7), prompts=16)
    for _ in range(3):
        loop.step()
    batch, _ = loop.collect()
    want = by_hand(loop, batch, 0.7)
    log = loop.update(batch)
    assert log["loss/preference"] == pytest.approx(want, rel=1e-5) and abs(want - math.log(2)) > 0.01
    assert online_dpo().loss.objective.beta == 0.1 and online_dpo().optimiser.minibatches == 1
