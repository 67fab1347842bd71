"""Settings that no optimiser and no network can have, and what a diverged policy says."""

import pytest
import torch

from anypolicy.engines.base import Sampling
from anypolicy.engines.native import draw
from anypolicy.errors import InputError
from anypolicy.parts.optimisers import make_optimiser
from anypolicy.policies.control.mlp import MLP


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -1.0}, {"eps": -1.0}, {"betas": (1.0, 0.9)}]
)
def test_what_an_optimiser_refuses_is_an_input_error(wrong):
    weights = [torch.nn.Parameter(torch.ones(1))]
    assert isinstance(make_optimiser(torch.optim.AdamW, weights, lr=0.1), torch.optim.AdamW)
    name = "optimiser" if "betas" in wrong else next(iter(wrong))
    with pytest.raises(InputError, match=f"^{name}: "):
        make_optimiser(torch.optim.AdamW, weights, **wrong)


@pytest.mark.parametrize(
    ("sizes", "stack", "field"), [((2, 0, 1), None, "hidden"), ((2, -1, 1), 3, "hidden"), ((2, 1), 0, "ensemble")]
)
def test_networks_have_widths(sizes, stack, field):
    with pytest.raises(InputError, match=field):
        MLP(sizes, torch.Generator(), stack=stack)


@pytest.mark.parametrize("vocabulary", [8, 3000])
@pytest.mark.parametrize(
    "sampling", [Sampling(4), Sampling(4, temperature=0.0), Sampling(4, top_k=2), Sampling(4, top_p=0.5)]
)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_diverged_policy_draws_no_token(vocabulary, sampling, number):
    logits = torch.zeros(2, vocabulary)
    token, logp = draw(logits, sampling, torch.Generator().manual_seed(0))
    assert token.shape == (2,) and logp.isfinite().all()
    logits[1, 3] = number
    with pytest.raises(InputError, match="diverged"):
        draw(logits, sampling, torch.Generator().manual_seed(0))
