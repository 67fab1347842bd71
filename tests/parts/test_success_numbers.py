"""Rewards from a classifier, its losses, shifted pictures."""

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.parts.augment import random_shift
from anypolicy.parts.success import (
    classifier_loss,
    gradient_penalty,
    log_reward,
    mixup_loss,
    smoothed,
    success_reward,
)
from anypolicy.policies.control.classifier import SuccessClassifier, fit, vice_update
from anypolicy.policies.control.pictures import ConvEncoder, Perception


def test_rewards_of_logits(f64):
    logit = f64(-1.0, 0.0, 2.0)
    assert logit.sigmoid().tolist() == pytest.approx([0.268941, 0.5, 0.880797], abs=1e-6)
    assert success_reward(logit).tolist() == [0, 1, 1]
    assert log_reward(logit).tolist() == pytest.approx([-1.313262, -0.693147, -0.126928], abs=1e-6)
    assert log_reward(f64(-800.0, 0.0))[0] == -800


def test_smoothing_and_mix_up(f64):
    assert smoothed(f64(1.0, 0.0)).tolist() == pytest.approx([0.9, 0.1])
    y = [torch.tensor([v], dtype=torch.float64) for v in (0.4, 0.9, 0.1)]
    assert float(mixup_loss(*y, 0.3)) == pytest.approx(0.777015, abs=1e-6)
    assert float(mixup_loss(*y, 1.0)) == pytest.approx(float(classifier_loss(*y[:2])))


def test_gradient_penalty(f64):
    assert float(gradient_penalty(f64(3.0, 4.0)[None])) == pytest.approx(((25 + 2e-6) ** 0.5 - 1) ** 2)
    zero = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    gradient_penalty(zero).backward()
    assert zero.grad.isfinite().all()


def test_a_shift_moves_whole_pictures_each_its_own_way():
    rng, by = torch.Generator().manual_seed(0), 2
    picture = torch.arange(36.0).view(1, 1, 6, 6).repeat(200, 3, 1, 1)
    moved = random_shift(picture, by, rng)
    wide = torch.nn.functional.pad(picture[:1], (by,) * 4, mode="replicate")[0, 0]
    places = {}
    for one in moved:
        assert torch.equal(one[0], one[1]) and torch.equal(one[0], one[2])
        hits = [(i, j) for i in range(5) for j in range(5) if torch.equal(wide[i : i + 6, j : j + 6], one[0])]
        assert len(hits) == 1
        places[hits[0]] = places.get(hits[0], 0) + 1
    assert len(places) > 20
    assert random_shift(picture, 0, rng) is picture


def test_an_observation_and_the_next_are_shifted_independently():
    net = Perception(3 * 64 + 2, [(8, 8, 3)], torch.Generator().manual_seed(0), channels=(4,), features=8)
    rng, x = torch.Generator().manual_seed(1), torch.rand(20, 194)
    one, two = net.shifted(x, rng), net.shifted(x, rng)
    assert not torch.equal(one, two)
    assert torch.equal(one[:, -2:], x[:, -2:]) and torch.equal(two[:, -2:], x[:, -2:])
    net.shift = 0
    assert torch.equal(net.shifted(x, rng), x)


def test_perception_puts_features_before_the_other_numbers():
    net = Perception(3 * 64 + 2, [(8, 8, 3)], torch.Generator().manual_seed(0), channels=(4, 8), features=5)
    x = torch.cat([torch.randint(256, (3, 192)).float(), torch.randn(3, 2)], 1)
    seen = net(x)
    assert seen.shape == (3, 7) and torch.equal(seen[:, 5:], x[:, -2:])
    picture = x[:, :192].view(3, 8, 8, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen[:, :5], net.encoders[0](picture))
    plain = Perception(4, [], torch.Generator())
    assert plain(x[:, :4]) is not None and not list(plain.parameters()) and plain.width == 4
    with pytest.raises(InputError, match="at least 31"):
        ConvEncoder((30, 40, 3), torch.Generator(), (32, 64, 128, 256), 256)


def rings(n: int, rng: torch.Generator):
    """Successes lie within ½ of the middle, failures beyond 1."""
    near = torch.rand(n, 2, generator=rng) * 0.7 - 0.35
    angle = torch.rand(n, generator=rng) * 6.2832
    return near, torch.stack([angle.cos(), angle.sin()], 1) * 1.5


def test_a_classifier_learns_from_examples():
    rng = torch.Generator().manual_seed(0)
    net = SuccessClassifier(2, [], rng)
    good, bad = rings(60, rng)
    losses = fit(net, good, bad, rng, lr=1e-3)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    new_good, new_bad = rings(200, rng)
    assert success_reward(net(new_good)).mean() > 0.95 and success_reward(net(new_bad)).mean() < 0.05
    assert torch.equal(net(good), net(good))
    for empty in ("successes", "failures"):
        with pytest.raises(InputError, match=empty):
            fit(net, *(x[:0] if name == empty else x for name, x in (("successes", good), ("failures", bad))), rng)


def test_a_classifier_of_pictures_learns():
    rng = torch.Generator().manual_seed(0)
    net = SuccessClassifier(8 * 8 * 3, [(8, 8, 3)], rng, channels=(8,), hidden=32)
    dark, bright = (torch.randint(a, a + 100, (30, 192), generator=rng).float() for a in (0, 150))
    fit(net, bright, dark, rng, updates=40, batch=32, lr=1e-2)
    assert (net(bright) > 0).all() and (net(dark) < 0).all()


def test_vice_keeps_an_exploited_state_from_being_called_success():
    """A classifier that takes a wrong state for success unlearns it once the policy goes there."""
    rng = torch.Generator().manual_seed(0)
    net = SuccessClassifier(8, [], rng)
    good, bad, trap = (
        torch.tensor([*at, 1, 1, 1, 1, 1, 1]) + 0.2 * torch.randn(128, 8, generator=rng)
        for at in ((2.0, 0.0), (-1.0, 0.0), (2.0, 2.0))
    )
    fit(net, good, bad, rng)
    assert success_reward(net(trap)).mean() > 0.9
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-4)
    losses = [vice_update(net, optimiser, good, trap, rng) for _ in range(120)]
    assert success_reward(net(trap)).mean() < 0.1 and success_reward(net(good)).mean() > 0.9
    assert sum(losses[-10:]) < sum(losses[:10])
