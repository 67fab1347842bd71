"""SimPO on a batch: the worked number and its gradient, and that it holds no reference."""

import math

import pytest
import torch

from anypolicy.compose import compose
from anypolicy.errors import InputError
from anypolicy.families.language import reference_of
from anypolicy.loops.group import GroupLoop
from anypolicy.methods.preference.simpo import MeanMargin, simpo
from anypolicy.policies.language.base import Scores
from anypolicy.stages.pairs import PairLoss
from tests.helpers import lock_loop
from tests.methods.test_dpo import CHOSEN, REJECTED, example, filled


def measured(beta, gamma):
    """Loss, gradient and metrics of one pair; its batch has no log-probabilities of a reference."""
    batch = example([([1, 2, 3], 1.0), ([4, 5], 0.0)])
    x = filled(batch, [CHOSEN, REJECTED]).requires_grad_()
    terms, log = PairLoss(MeanMargin(beta, gamma))(Scores(x), batch)
    terms["preference"].backward()
    return float(terms["preference"].detach()), x.grad, log


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 0.0), (10.0, 3.0)])
def test_the_example(beta, gamma):
    """ℓ_w/3 = −2/3, ℓ_l/2 = −0.95."""
    loss, grad, log = measured(beta, gamma)
    margin = beta * (-2 / 3 + 0.95) - gamma
    assert loss == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-12)
    slope = beta / (1 + math.exp(margin))
    assert grad[0].tolist() == pytest.approx([-slope / 3] * 3)
    assert grad[1, :2].tolist() == pytest.approx([slope / 2] * 2)
    assert float(log["pairs/chosen"]) == pytest.approx(-2.0) and "kl/proxy" not in log


def test_equal_means_give_the_margin_alone():
    batch = example([([1, 2], 1.0), ([4], 0.0)])
    x = filled(batch, [[-1.0, -1.0], [-1.0]])
    terms, _ = PairLoss(MeanMargin(2.0, 1.0))(Scores(x), batch)
    assert float(terms["preference"]) == pytest.approx(math.log1p(math.e))


def test_no_second_policy_is_held():
    policy = lock_loop(simpo_of_samples()).world.policy
    assert reference_of(simpo(), policy) is None


def simpo_of_samples():
    return compose("online-dpo+simpo.loss").recipe


def test_it_learns_from_sampled_pairs_without_a_reference():
    loop = lock_loop(simpo_of_samples())
    loop = GroupLoop(loop.recipe, loop.world, prompts=8, micro_tokens=1 << 20, reference=None)
    before = loop.world.policy.module.logits.detach().clone()
    loop.step()
    assert loop.reference is None and not torch.equal(before, loop.world.policy.module.logits)


def test_settings():
    for wrong in ({"beta": 0.0}, {"gamma": -0.1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            simpo(**wrong)
