"""Denoising errors, losses of pairs and distances between sets of samples, against numbers worked out elsewhere."""

import math

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.parts.denoising import (
    denoising_error,
    energy_distance,
    frechet,
    noised,
)
from anypolicy.parts.preference import diffusion_margin, sigmoid


def test_targets():
    rng = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(5, 2, 3, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    kept = torch.rand(5, generator=rng, dtype=torch.float64)
    x, target = noised(x0, noise, kept, "epsilon")
    assert torch.equal(target, noise)
    for i in range(5):
        assert torch.allclose(x[i], kept[i].sqrt() * x0[i] + (1 - kept[i]).sqrt() * noise[i])
    x, v = noised(x0, noise, kept, "v_prediction")
    k = kept.view(-1, 1, 1, 1)
    assert torch.allclose(k.sqrt() * x - (1 - k).sqrt() * v, x0)
    assert torch.allclose((1 - k).sqrt() * x + k.sqrt() * v, noise)


def test_the_error_is_a_mean_over_numbers():
    predicted, target = torch.zeros(2, 3, 4), torch.stack([torch.full((3, 4), 2.0), torch.full((3, 4), 0.5)])
    assert denoising_error(predicted, target).tolist() == [4.0, 0.25]


def test_agrees_with_the_form_with_sums():
    """β of means is 2 D β T ω of sums."""
    rng = torch.Generator().manual_seed(1)
    for _ in range(300):
        d = int(torch.randint(1, 50, (), generator=rng))
        sums = torch.rand(4, 6, generator=rng, dtype=torch.float64) * d
        weight = float(torch.rand((), generator=rng)) * 0.2
        means = sums / d
        got = sigmoid(diffusion_margin(*means, beta=2 * d * weight), 1.0)
        want = -torch.nn.functional.logsigmoid(-weight * ((sums[0] - sums[2]) - (sums[1] - sums[3])))
        assert torch.allclose(got, want, atol=1e-12)


def test_what_is_not_finite_is_refused():
    zeros = torch.zeros(2, 3)
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="row 1"):
            denoising_error(torch.tensor([[0.0] * 3, [0.0, bad, 0.0]]), zeros)


def test_frechet(f64):
    rng = torch.Generator().manual_seed(3)
    a = torch.randn(4000, 3, generator=rng, dtype=torch.float64)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    shift = f64(1.0, -2.0, 0.5)
    assert frechet(a, a + shift) == pytest.approx(5.25, abs=1e-9)
    # one dimension: (μ − μ')² + (σ − σ')²
    x = a[:, :1]
    assert frechet(x, 3 * x + 1) == pytest.approx(float((2 * x.mean() + 1).square() + (2 * x.std()).square()), rel=1e-9)
    mix = torch.randn(3, 3, generator=rng, dtype=torch.float64)
    b = a @ mix
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)
    from scipy.linalg import sqrtm

    ca, cb = a.T.cov().numpy(), b.T.cov().numpy()
    want = float((a.mean(0) - b.mean(0)).square().sum()) + (ca + cb - 2 * sqrtm(ca @ cb).real).trace()
    assert frechet(a, b) == pytest.approx(want, rel=1e-8)
    with pytest.raises(InputError, match="at least 2"):
        frechet(a[:1], b)


def test_energy_distance(f64):
    assert energy_distance(f64([[0.0], [1.0]]), f64([[0.0], [1.0]])) == pytest.approx(2 * 0.5 - 1 - 1)
    assert energy_distance(f64([[0.0], [1.0]]), f64([[5.0], [7.0]])) == pytest.approx(2 * 5.5 - 1 - 2)
    rng = torch.Generator().manual_seed(4)
    a, b = (torch.randn(2000, 2, generator=rng) for _ in range(2))
    assert abs(energy_distance(a, b)) < 0.01 < energy_distance(a, b + 1)
    with pytest.raises(InputError, match="at least 2"):
        energy_distance(a[:1], b)
