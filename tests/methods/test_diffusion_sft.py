"""Fine-tuning on winners: the denoising loss of arXiv 2006.11239, eq. 14, by hand."""

import pytest
import torch

from anypolicy.loops.diffusion import Batch
from anypolicy.methods.diffusion.diffusion_sft import diffusion_sft
from anypolicy.policies.diffusion.denoisers import PointDiffusion


def test_loss_and_gradient_by_hand():
    """x_t = √ᾱ x₀ + √(1 − ᾱ) ε, and the mean of (ε − ε_θ(x_t, t))² over numbers and samples; losers do not count."""
    model, rng = PointDiffusion(0, hidden=(16,)), torch.Generator().manual_seed(0)
    x, condition = torch.randn(6, 2, generator=rng), model.condition([0] * 6)
    noise, t = torch.randn(6, 2, generator=rng.manual_seed(5)), torch.randint(20, (6,), generator=rng)
    kept = model.kept[t][:, None]
    with torch.enable_grad():
        seen = model.predict(kept.sqrt() * x + (1 - kept).sqrt() * noise, t, condition)
        loss = ((noise - seen) ** 2).sum() / 12
        grad = torch.autograd.grad(loss, list(model.module.parameters()))
    norm = float(torch.cat([g.flatten() for g in grad]).norm())
    for loser in (None, x + 5):
        learner = diffusion_sft(batch=6, lr=0.0, weight_decay=0.0, warmup=4).learner(model, 0)
        log = learner.update(Batch(x, condition, loser), 0, torch.Generator().manual_seed(5))
        assert log["loss/denoising"] == log["error/winner"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert log["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_pieces_and_the_rise_of_the_rate():
    ends = []
    for micro in (100, 4):
        model, rng = PointDiffusion(0, hidden=(16,)), torch.Generator().manual_seed(0)
        model.micro = micro
        learner = diffusion_sft(batch=6, lr=0.01, warmup=4).learner(model, 0)
        rates = [
            learner.update(Batch(torch.randn(6, 2, generator=rng), model.condition([0] * 6), None), i, rng)["lr"]
            for i in range(5)
        ]
        assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
        ends.append(torch.cat([p.flatten() for p in model.module.parameters()]))
    assert torch.allclose(*ends, atol=1e-5)
