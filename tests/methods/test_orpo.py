"""ORPO on a batch: the worked number, its gradient by finite differences of the plain formula, and certain responses."""

import math

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.methods.preference.orpo import OddsRatio, log_odds, orpo
from anypolicy.policies.language.base import Scores
from anypolicy.stages.pairs import PairLoss
from tests.methods.test_dpo import CHOSEN, REJECTED, example, filled


def formula(chosen, rejected, lam):
    """The objective, in plain numbers."""
    p, q = (math.exp(sum(x) / len(x)) for x in (chosen, rejected))
    odds = p / (1 - p) / (q / (1 - q))
    return -math.log(p) - lam * math.log(odds / (1 + odds))


@pytest.mark.parametrize("lam", [0.0, 0.1, 1.0])
def test_the_example(lam):
    batch = example([([1, 2, 3], 1.0), ([4, 5], 0.0)])
    x = filled(batch, [CHOSEN, REJECTED]).requires_grad_()
    terms, log = PairLoss(OddsRatio(lam))(Scores(x), batch)
    terms["preference"].backward()
    assert float(terms["preference"].detach()) == pytest.approx(formula(CHOSEN, REJECTED, lam), abs=1e-12)
    assert "kl/proxy" not in log and float(log["pairs/margin"]) == pytest.approx(-0.1)
    for row, values in enumerate((CHOSEN, REJECTED)):
        for t in range(len(values)):
            sides = []
            for step in (1e-6, -1e-6):
                moved = [list(CHOSEN), list(REJECTED)]
                moved[row][t] += step
                sides.append(formula(*moved, lam))
            assert float(x.grad[row, t]) == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_log_odds():
    p = torch.tensor([0.5, 0.9, 0.1], dtype=torch.float64)
    assert log_odds(p.log()).tolist() == pytest.approx([0.0, math.log(9), -math.log(9)])


def test_a_response_of_probability_one_has_a_finite_loss_and_gradient():
    batch = example([([1], 1.0), ([2], 0.0)])
    x = torch.tensor([[0.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    terms, _ = PairLoss(OddsRatio(0.1))(Scores(x), batch)
    terms["preference"].backward()
    assert terms["preference"].isfinite() and x.grad.isfinite().all()


def test_settings():
    with pytest.raises(InputError, match="lam"):
        orpo(lam=-0.1)
