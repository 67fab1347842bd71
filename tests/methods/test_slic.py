"""SLiC on a batch: the worked number, and that the reference leaves its loss alone."""

from dataclasses import replace

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.methods.preference.slic import Calibration, slic
from anypolicy.policies.language.base import Scores
from anypolicy.stages.pairs import PairLoss
from tests.methods.test_dpo import CHOSEN, REJECTED, example, filled, worked


def test_the_example():
    terms, _, gradient = worked(Calibration())
    assert float(terms["preference"].detach()) == pytest.approx(2.1, abs=1e-12)
    assert gradient[0].tolist() == pytest.approx([-1.5] * 3)
    assert gradient[1, :2].tolist() == pytest.approx([1.0] * 2)


def test_the_reference_is_only_logged():
    batch = example([([1, 2, 3], 1.0), ([4, 5], 0.0)])
    found = []
    for shift in (0.0, 3.0):
        other = replace(batch, logp_ref=torch.full(batch.response.shape, -shift, dtype=torch.float64))
        terms, log = PairLoss(Calibration())(Scores(filled(batch, [CHOSEN, REJECTED])), other)
        found.append((float(terms["preference"]), float(log["pairs/chosen"])))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_beyond_the_margin_only_the_likelihood_moves_it():
    batch = example([([1], 1.0), ([2], 0.0)])
    batch = replace(batch, logp_ref=torch.zeros(2, 1, dtype=torch.float64))
    x = torch.tensor([[-1.0], [-2.5]], dtype=torch.float64, requires_grad=True)
    terms, _ = PairLoss(Calibration(1.0, 0.5))(Scores(x), batch)
    terms["preference"].backward()
    assert x.grad.flatten().tolist() == [-0.5, 0.0]


def test_settings():
    for wrong in ({"delta": 0.0}, {"coef": -0.1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            slic(**wrong)
