"""Worked numbers of the actor-critic core."""

import math

import pytest
import torch

from anypolicy.parts.squashed import log_slope, squashed
from anypolicy.parts.td import (
    critic_loss,
    generalised_advantage,
    n_step,
    polyak,
    soft_target,
    subset,
    temperature_loss,
)


def test_squashed_gaussian(f64):
    mean, log_std, noise = f64(0.3, -1.2), f64(-0.5, 0.2), f64(0.7, -0.4)
    u = mean + log_std.exp() * noise
    action, logp = squashed(mean, log_std, noise)
    assert u.tolist() == pytest.approx([0.724571, -1.688561], abs=1e-6)
    assert action.tolist() == pytest.approx([0.619733, -0.933964], abs=1e-6)
    each = -(noise**2) / 2 - log_std - 0.5 * math.log(2 * math.pi) - log_slope(u)
    assert each.tolist() == pytest.approx([-0.179318, 0.859040], abs=1e-6)
    assert float(logp) == pytest.approx(0.679722, abs=1e-6)
    assert float(logp) - 2 * math.log(1.5) == pytest.approx(-0.131208, abs=1e-6)
    assert float(log_slope(torch.tensor(12.0, dtype=torch.float64))) == pytest.approx(-22.613706, abs=1e-6)
    assert log_slope(torch.tensor([12.0, -40.0])).isfinite().all()


def test_soft_target_and_critic_loss(f64):
    r, d = f64(1.0, -0.5, 2.0), f64(0.0, 0.0, 1.0)
    q_next, logp = torch.stack([f64(10.0, 3.0, 7.0), f64(9.0, 4.0, 8.0)]), f64(-1.5, 0.4, -2.0)
    y = soft_target(r, 0.99 * (1 - d), q_next, logp, 0.2)
    assert y.tolist() == pytest.approx([10.207, 2.3908, 2.0], abs=1e-6)
    q = torch.stack([f64(10.5, 3.0, 1.0), f64(11.0, 2.5, 2.5)])
    assert float(critic_loss(q, y)) == pytest.approx(0.391291, abs=1e-6)
    assert soft_target(r, 0 * d, q_next, logp, 0.2).tolist() == r.tolist()


@pytest.mark.parametrize(("form", "loss", "slope"), [("alpha", 0.606667, 0.606667), ("log_alpha", -4.881962, 3.033333)])
def test_temperature(f64, form, loss, slope):
    log_alpha = torch.tensor(0.2, dtype=torch.float64).log().requires_grad_()
    value = temperature_loss(log_alpha, f64(-1.5, 0.4, -2.0), -2.0, form)
    value.backward()
    assert float(value.detach()) == pytest.approx(loss, abs=1e-6)
    assert float(log_alpha.grad) == pytest.approx(slope, abs=1e-6)
    for logp, sign in ((-0.2, 1), (2.0, -1)):  # entropies 0.2 and −2 against H = −1: α falls, α rises
        log_alpha.grad = None
        temperature_loss(log_alpha, f64(logp, logp), -1.0, form).backward()
        assert sign * float(log_alpha.grad) > 0


def test_subset_of_critics(f64):
    q = torch.stack([f64(5.0, 6.0, 4.0, 7.0), f64(2.0, 1.0, 3.0, 0.5)]).T
    assert q[[0, 2]].amin(0).tolist() == [4, 2]
    assert q.mean(0).tolist() == [5.5, 1.625]
    pairs = [q[[i, j]].amin(0) for i in range(4) for j in range(i)]
    assert torch.stack(pairs).mean(0).tolist() == pytest.approx([4.666667, 0.916667], abs=1e-6)
    rng = torch.Generator().manual_seed(0)
    drawn = torch.stack([subset(4, 2, rng) for _ in range(3000)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    counts = torch.bincount((1 << drawn).sum(1), minlength=13)
    assert sorted(counts.nonzero().squeeze(1).tolist()) == [3, 5, 6, 9, 10, 12]
    assert (counts[counts > 0] - 500).abs().max() < 100
    with_replacement = torch.stack([subset(4, 2, rng, replacement=True) for _ in range(200)])
    assert (with_replacement[:, 0] == with_replacement[:, 1]).any()
    assert subset(2, 2, rng).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("end", "at", "want"),
    [
        (None, 3, (34.39, 44.39, 54.39, 57.1, 59.0)),
        ("terminated", 3, (34.39, 7.94, 6.6, 4.0, 59.0)),
        ("truncated", 3, (34.39, 44.39, 47.1, 49.0, 59.0)),
    ],
)
def test_n_step(f64, end, at, want):
    reward, after = f64(1.0, 2.0, 3.0, 4.0, 5.0), f64(20.0, 30.0, 40.0, 50.0, 60.0)
    flags = {name: torch.zeros(5, dtype=torch.float64) for name in ("terminated", "truncated")}
    if end:
        flags[end][at] = 1
    total, last, power = n_step(reward, flags["terminated"], flags["truncated"], 3, 0.9)
    target = total + power * (1 - flags["terminated"][last]) * after[last]
    assert target.tolist() == pytest.approx(list(want), abs=1e-9)


def test_success_one_step_later_and_none(f64):
    total, last, power = n_step(f64(0.0, 1.0), f64(0.0, 1.0), f64(0.0, 0.0), 3, 0.99)
    assert float(total[0]) == pytest.approx(0.99) and int(last[0]) == 1
    _, _, power = n_step(f64(0.0, 0.0, 0.0, 0.0), f64(0, 0, 0, 0), f64(0, 0, 0, 0), 3, 0.99)
    assert float(power[0]) == pytest.approx(0.970299)


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        (None, (1.815958, 0.978158, 1.149557, 2.394)),
        ("terminated", (0.5198, -0.4, 1.149557, 2.394)),
        ("truncated", (1.171566, 0.293, 1.149557, 2.394)),
    ],
)
def test_generalised_advantage(f64, kind, want):
    reward, value = f64(1.0, 0.0, -1.0, 2.0), f64(0.5, 0.4, 0.3, 0.2)
    after = f64(0.4, 0.7 if kind == "truncated" else 0.3, 0.2, 0.6)
    flags = {name: torch.zeros(4, 1, dtype=torch.float64) for name in ("terminated", "truncated")}
    if kind:
        flags[kind][1] = 1
    column = lambda x: x[:, None]  # noqa: E731
    got = generalised_advantage(column(reward), column(value), column(after), **flags, discount=0.99, lam=0.95)
    assert got.squeeze(1).tolist() == pytest.approx(list(want), abs=1e-6)


def test_undiscounted_advantages(f64):
    r, v = f64(0.0, 0.0, 1.0)[:, None], f64(0.2, 0.5, 0.6)[:, None]
    ends = f64(0.0, 0.0, 1.0)[:, None]
    after = torch.cat([v[1:], torch.zeros(1, 1, dtype=torch.float64)])
    got = generalised_advantage(r, v, after, ends, 0 * ends, 1.0, 0.97)
    assert got.squeeze(1).tolist() == pytest.approx([0.773360, 0.488, 0.4], abs=1e-6)


def test_polyak():
    target = [torch.ones(1, dtype=torch.float64)]
    for _ in range(3):
        polyak(target, [torch.zeros(1, dtype=torch.float64)], 0.005)
    assert float(target[0]) == pytest.approx(0.985075, abs=1e-6)
    assert math.log(0.5) / math.log(0.995) == pytest.approx(138.3, abs=0.05)
