"""Diffusion-DPO: worked numbers, one noise for both, the reference stays, what it learns."""

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.loops.diffusion import Batch
from anypolicy.methods.diffusion.diffusion_dpo import diffusion_dpo
from anypolicy.parts.preference import diffusion_margin, sigmoid
from anypolicy.policies.diffusion.denoisers import PointDiffusion, copied, error_of


def worked(m_w, m_l, ref_w, ref_l, beta):
    w, loser = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (m_w, m_l))
    inside = diffusion_margin(w, loser, *(torch.tensor([x], dtype=torch.float64) for x in (ref_w, ref_l)), beta)
    loss = sigmoid(inside, 1.0)
    loss.sum().backward()
    return float(inside), float(loss), float(w.grad), float(loser.grad)


def test_worked_numbers():
    inside, loss, up, down = worked(0.9, 1.2, 1.0, 1.1, 10.0)
    assert inside == pytest.approx(1.0, abs=1e-12)
    assert loss == pytest.approx(0.313262, abs=1e-6)
    assert (up, down) == (pytest.approx(1.344707, abs=1e-6), pytest.approx(-1.344707, abs=1e-6))
    inside, loss, *_ = worked(0.9, 1.2, 1.0, 1.1, 5000.0)
    assert inside == pytest.approx(500, abs=1e-9) and loss < 1e-6


def test_one_pass_over_pairs_is_two_over_samples():
    model = PointDiffusion(0, hidden=(16, 16))
    rng = torch.Generator().manual_seed(0)
    winner, loser = (torch.randn(6, 2, generator=rng) for _ in range(2))
    learner = diffusion_dpo(beta=3.0, batch=6, lr=0.0, weight_decay=0.0).learner(model, 0)
    with torch.no_grad():
        for p in model.module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    condition = model.condition([0] * 6)
    log = learner.update(Batch(winner, condition, loser), 0, torch.Generator().manual_seed(5))
    again = torch.Generator().manual_seed(5)
    noise = torch.randn(6, 2, generator=again)
    t = torch.randint(20, (6,), generator=again)
    reference = learner.pools["reference"][0]
    m = [error_of(model, x, noise, t, condition, w) for w in (None, reference) for x in (winner, loser)]
    inside = -1.5 * ((m[0] - m[1]) - (m[2] - m[3]))
    assert log["pairs/margin"] == pytest.approx(float(inside.mean()), rel=1e-5)
    assert log["loss/preference"] == pytest.approx(float(torch.nn.functional.softplus(-inside).mean()), rel=1e-6)
    assert log["pairs/accuracy"] == pytest.approx(float((inside > 0).float().mean()))


def test_equal_samples_of_a_pair_teach_nothing():
    """The same noise and time for both: everything cancels to the last bit."""
    model = PointDiffusion(0, hidden=(16,))
    learner = diffusion_dpo(batch=8, lr=0.1, warmup=0, weight_decay=0.0).learner(model, 0)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    log = learner.update(Batch(x, model.condition([0] * 8), x), 0, torch.Generator())
    assert log["pairs/margin"] == 0 and log["loss/preference"] == pytest.approx(0.693147, abs=1e-6)
    assert log["grad_norm"] < 1e-4


def test_the_reference_stays_and_micro_batches_change_nothing():
    logs, ends = [], []
    for micro in (100, 3):
        model = PointDiffusion(0, hidden=(16,))
        model.micro = micro
        learner = diffusion_dpo(beta=2.0, batch=8, lr=0.01, warmup=2).learner(model, 0)
        first, rng = copied(model.module), torch.Generator().manual_seed(0)
        for step in range(3):
            batch = Batch(
                torch.randn(8, 2, generator=rng) + 2, model.condition([0] * 8), torch.randn(8, 2, generator=rng)
            )
            log = learner.update(batch, step, rng)
        assert all(torch.equal(first[k], learner.pools["reference"][0][k]) for k in first)
        assert log["lr"] == 0.01
        logs.append(log)
        ends.append(torch.cat([p.flatten() for p in model.module.parameters()]))
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert torch.allclose(*ends, atol=1e-5) and len(learner.pools["reference"]) == 1


def test_it_pulls_winners_up_against_losers():
    model, rng = PointDiffusion(0, hidden=(32, 32)), torch.Generator().manual_seed(0)
    learner = diffusion_dpo(beta=2.0, batch=64, lr=3e-3, warmup=0).learner(model, 0)
    seen = []
    for step in range(40):
        winner, loser = torch.randn(64, 2, generator=rng) * 0.1 + 2, torch.randn(64, 2, generator=rng) * 0.1 - 2
        seen.append(learner.update(Batch(winner, model.condition([0] * 64), loser), step, rng))
    assert seen[-1]["loss/preference"] < 0.6 < seen[0]["loss/preference"]
    assert seen[-1]["pairs/accuracy"] > 0.9
    assert seen[-1]["error/winner"] < seen[-1]["error/loser"]


def test_a_network_that_breaks_is_told():
    model = PointDiffusion(0, hidden=(8,))
    learner = diffusion_dpo(batch=4).learner(model, 0)
    with torch.no_grad():
        next(iter(model.module.parameters())).fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        learner.update(Batch(torch.zeros(4, 2), model.condition([0] * 4), torch.ones(4, 2)), 0, torch.Generator())
