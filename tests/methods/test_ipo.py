"""IPO on a batch: the worked numbers of its three forms, and its optimum."""

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.methods.preference.ipo import Squared, ipo
from tests.methods.test_dpo import worked


@pytest.mark.parametrize(
    ("form", "value", "chosen", "rejected"),
    [
        ("mean", 22.09, -2 * 4.7 / 3, 2 * 4.7 / 2),
        ("sum", 17.64, -8.4, 8.4),
        ("scaled", 0.1764, -0.084, 0.084),
    ],
)
def test_the_example(form, value, chosen, rejected):
    terms, _, gradient = worked(Squared(0.1, form))
    assert float(terms["preference"].detach()) == pytest.approx(value, abs=1e-10)
    assert gradient[0].tolist() == pytest.approx([chosen] * 3, abs=1e-12)
    assert gradient[1, :2].tolist() == pytest.approx([rejected] * 2, abs=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_scaled_and_plain_rest_at_the_same_margin(beta):
    h = torch.tensor([2.0], dtype=torch.float64)

    class Given:
        margin = h

    plain, scaled = float(Squared(beta, "sum")(Given)), float(Squared(beta, "scaled")(Given))
    assert scaled == pytest.approx(beta**2 * plain)
    if beta == 0.1:
        assert (scaled, plain) == pytest.approx((0.09, 9.0))
    Given.margin = torch.tensor([1 / (2 * beta)], dtype=torch.float64, requires_grad=True)
    Squared(beta, "scaled")(Given).sum().backward()
    assert float(Given.margin.grad) == pytest.approx(0, abs=1e-12)


def test_settings():
    assert ipo().loss.objective == Squared(0.1, "mean")
    with pytest.raises(InputError, match="beta"):
        ipo(beta=-1.0)
