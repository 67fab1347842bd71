"""Worked numbers of flow matching and of diffusion."""

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.parts.diffusion import (
    betas_of,
    cosine_betas,
    ddim_indices,
    ddim_step,
    ddpm_mean,
    denoised,
    diffused,
    noise_loss,
    vp_betas,
)
from anypolicy.parts.flow import euler, flow_loss, straight


def test_schedules():
    vp = [0.057764, 0.146577, 0.227018, 0.299878, 0.365869, 0.425641, 0.479778, 0.528813, 0.573226, 0.613452]
    assert vp_betas(10).tolist() == pytest.approx(vp, abs=1e-6)
    assert float((1 - vp_betas(10)).prod()) == pytest.approx(0.006409, abs=1e-6)
    assert cosine_betas(5).tolist() == pytest.approx([0.101294, 0.279544, 0.473635, 0.724052, 0.999], abs=1e-6)
    assert torch.equal(betas_of("vp", 7), vp_betas(7)) and torch.equal(betas_of("cosine", 7), cosine_betas(7))


def test_one_step_forward_and_back(f64):
    betas = vp_betas(10)
    kept = (1 - betas).cumprod(0)
    x = diffused(f64(0.4, -0.7), f64(0.5, 1.0), kept[4:5])
    assert x.tolist() == pytest.approx([0.635580, 0.483182], abs=1e-6)
    guess = f64(0.45, 1.1)
    assert denoised(x, guess, kept[4]).tolist() == pytest.approx([0.480989, -0.861979], abs=1e-6)
    assert ddim_step(x, guess, kept[4], kept[2]).tolist() == pytest.approx([0.656035, -0.002904], abs=1e-6)
    assert ddpm_mean(x, guess, betas[4], kept[4]).tolist() == pytest.approx([0.555165, 0.012819], abs=1e-6)


def test_the_right_noise_leads_back_to_the_action(f64):
    kept, action, noise = (1 - vp_betas(10)).cumprod(0), f64(0.4, -0.7), f64(0.5, 1.0)
    x = diffused(action, noise, kept[9:])
    for k, after in zip(ddim_indices(10, 5), [*ddim_indices(10, 5)[1:], None], strict=True):
        x = diffused(action, noise, kept[k : k + 1])
        one = torch.ones((), dtype=torch.float64)
        x = ddim_step(x, noise, kept[k], one if after is None else kept[after])
        want = action if after is None else diffused(action, noise, kept[after : after + 1])
        torch.testing.assert_close(x, want)


def test_an_estimate_outside_the_box_is_clipped_and_the_noise_follows(f64):
    kept, x = f64(0.25), f64(2.0, -0.1)
    got = ddim_step(x, f64(0.0, 0.0), kept, torch.ones((), dtype=torch.float64))
    assert got.tolist() == pytest.approx([1.0, -0.2])
    half = ddim_step(x, f64(0.0, 0.0), kept, f64(0.5))
    noise = (2.0 - 0.5) / 0.75**0.5
    assert float(half[0]) == pytest.approx(0.5**0.5 + 0.5**0.5 * noise)


def test_indices_of_ddim():
    assert ddim_indices(100, 8) == [84, 72, 60, 48, 36, 24, 12, 0]
    assert ddim_indices(20, 20) == list(range(19, -1, -1))
    for steps in (0, 21):
        with pytest.raises(InputError, match="1 to 20"):
            ddim_indices(20, steps)


def test_sum_and_mean_over_actions(f64):
    a, b = f64([1.0, 2.0, 0.0], [0.0, 0.0, 3.0]), f64([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    assert float(noise_loss(a, b)) == pytest.approx((5 + 9) / 2)
    assert float(noise_loss(a, b, "mean")) == pytest.approx((5 + 9) / 6)
    assert float(flow_loss(a, b)) == pytest.approx(14 / 6)


def test_flow(f64):
    x, velocity = straight(f64(0.3, -1.0), f64(0.8, 0.2), f64([0.25]))
    assert x.tolist() == pytest.approx([0.425, -0.7], abs=1e-9)
    assert velocity.tolist() == pytest.approx([0.5, 1.2], abs=1e-9)
    end = euler(lambda x, t: -x, f64(0.3, -1.0), 10)
    assert end.tolist() == pytest.approx([0.104604, -0.348678], abs=1e-6)
    fine = euler(lambda x, t: -x, f64(0.3, -1.0), 100_000)
    assert fine.tolist() == pytest.approx([0.110364, -0.367879], abs=1e-5)


def test_euler_is_told_the_time_and_reaches_the_action_along_the_straight_line(f64):
    times, z, a = [], f64(0.3, -1.0), f64(0.8, 0.2)
    end = euler(lambda x, t: times.append(t) or a - z, z, 4)
    assert times == [0.0, 0.25, 0.5, 0.75]
    torch.testing.assert_close(end, a)
