"""CISPO: the gradient of every token by hand, also beyond the clip, and REINFORCE on the first update."""

from dataclasses import replace

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.methods.language.cispo import ClippedWeight, cispo
from anypolicy.policies.language.base import Scores
from anypolicy.stages.common import Clip, NoClip, PolicyLoss
from tests.methods.test_dpo import example, filled

OLD = [[-1.0, -2.0, -0.5], [-0.7, -1.5]]
NEW = [[-0.2, -2.0, -1.5], [-0.6, -3.0]]


def gradient(gate, aggregation="token-mean"):
    batch = example([([1, 2, 3], 1.0), ([4, 5], 0.0)])
    advantage = batch.to_rows(torch.tensor([0.5, -2.0], dtype=torch.float64))
    batch = replace(batch, logp_old=filled(batch, OLD), advantage=advantage)
    x = filled(batch, NEW).requires_grad_()
    terms, log = PolicyLoss(gate, aggregation=aggregation)(Scores(x), batch)
    terms["policy"].backward()
    return float(terms["policy"].detach()), x.grad, log


def test_every_token_has_the_gradient_of_its_clipped_weight():
    """−A w/5 with w = min(π/π_old, 1.28): five tokens in all."""
    _, grad, log = gradient(ClippedWeight())
    w = [[1.28, 1.0, torch.e**-1], [torch.e**0.1, torch.e**-1.5]]
    want = [[-0.5 * v / 5 for v in w[0]], [2.0 * v / 5 for v in w[1]]]
    assert grad[0].tolist() == pytest.approx(want[0])
    assert grad[1, :2].tolist() == pytest.approx(want[1])
    assert float(log["ratio/clipped"]) == pytest.approx(1 / 5)


def test_the_loss_is_the_weighted_likelihood():
    value, _, _ = gradient(ClippedWeight(high=10.0))
    ratio = [torch.e**0.8, 1.0, torch.e**-1, torch.e**0.1, torch.e**-1.5]
    terms = zip(ratio, [0.5] * 3 + [-2.0] * 2, NEW[0] + NEW[1], strict=True)
    assert value == pytest.approx(-sum(r * a * x for r, a, x in terms) / 5)


def test_where_the_surrogate_is_clipped_it_still_learns():
    _, clipped, _ = gradient(Clip(0.2, 0.28))
    _, ours, _ = gradient(ClippedWeight(0.2, 0.28))
    assert clipped[0, 0] == 0 and ours[0, 0] != 0


def test_unclipped_its_gradient_is_that_of_the_plain_surrogate():
    _, plain, _ = gradient(NoClip())
    _, ours, _ = gradient(ClippedWeight(high=1e9))
    assert torch.allclose(plain, ours, rtol=0, atol=1e-15)


def test_settings():
    for wrong in ({"clip_low": 1.1}, {"clip_low": -0.1}, {"clip_high": -0.1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            cispo(**wrong)
    assert cispo().loss == PolicyLoss(ClippedWeight(1.0, 0.28), aggregation="token-mean")
