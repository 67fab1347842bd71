"""Worked numbers of the paper (arXiv 2511.20347, eq. 5–8) in float64."""

import math
from dataclasses import replace

import pytest
import torch

from anypolicy.compose import compose
from anypolicy.errors import InputError
from anypolicy.methods.language.sapo import SoftGate, gate_weight, soft_gate
from anypolicy.stages.common import PolicyLoss
from tests.helpers import batch_of, gradient


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_gate_and_weight_at_temperature_one():
    r = t(0, 0.5, 0.8, 1, 1.2, 1.5, 2, 3)
    f = [1.075766, 1.510163, 1.800664, 2, 2.199336, 2.489837, 2.924234, 3.523188]
    w = [0.786448, 0.940015, 0.990066, 1, 0.990066, 0.940015, 0.786448, 0.419974]
    assert soft_gate(r, 1.0).tolist() == pytest.approx(f, abs=1e-6)
    assert gate_weight(r, 1.0).tolist() == pytest.approx(w, abs=1e-6)


def test_other_temperatures():
    assert soft_gate(t(0.5, 1, 2, 3), 1.05).tolist() == pytest.approx(
        [1.415938, 1.904762, 2.822000, 3.393917], abs=1e-6
    )
    assert gate_weight(t(1.5, 2, 3), 1.05).tolist() == pytest.approx([0.934140, 0.768110, 0.388779], abs=1e-6)
    assert gate_weight(t(1.5, 3), 0.95).tolist() == pytest.approx([0.945649, 0.452721], abs=1e-6)


@pytest.mark.parametrize(
    ("advantage", "loss", "slopes"),
    [
        (1.0, -2.158433, (-0.117502, -0.25, -0.297020, -0.393224)),
        (-1.0, 2.061682, (0.116767, 0.25, 0.296717, 0.384055)),
    ],
)
def test_one_response(advantage, loss, slopes):
    batch = batch_of([[0.0]], lengths=[[4]])
    batch = replace(batch, advantage=torch.full((1, 4), advantage, dtype=torch.float64))
    value, grad = gradient(PolicyLoss(SoftGate()), batch, t(0.5, 1, 1.2, 2).log()[None])
    assert value == pytest.approx(loss, abs=1e-6)
    assert grad[0].tolist() == pytest.approx(slopes, abs=1e-6)


def test_two_responses_are_averaged_as_sequences():
    batch = batch_of([[1.0, 0.0]], lengths=[[2, 3]])
    batch = replace(batch, advantage=t(1.0, -1.0)[:, None].expand(2, 3))
    value, _ = gradient(PolicyLoss(SoftGate()), batch, torch.stack([t(0.1, -0.2, 0), t(0.05, 0.3, -0.4)]))
    assert value == pytest.approx(-0.016893, abs=1e-6)


def test_limits_of_the_temperature():
    assert float(soft_gate(t(1.7), 1e-4) - 2 / 1e-4) == pytest.approx(0.7, abs=1e-4)
    assert float(gate_weight(t(1.1), 1e4)) < 1e-12


def test_the_mean_gate_is_near_the_gate_of_the_mean():
    z = t(0.1, -0.05, 0.3, -0.2, 0.02)
    gap = abs(float((1 / torch.cosh(z / 2) ** 2).mean() - 1 / torch.cosh(z.mean() / 2) ** 2))
    assert gap == pytest.approx(0.006775, abs=1e-6)
    assert gap <= float(z.var(correction=0)) / 4 == pytest.approx(0.006856, abs=1e-6)


def test_an_outlier_token_clips_a_whole_gspo_sequence_but_one_sapo_token():
    batch = batch_of([[1.0]], lengths=[[4]])
    batch = replace(batch, advantage=torch.ones(1, 4, dtype=torch.float64))
    log_ratio = t(0, 0, 0, 2)[None]
    _, hard = gradient(compose("gspo").recipe.loss, batch, log_ratio)
    assert not hard.any()
    assert gate_weight(log_ratio.exp(), 1.0)[0].tolist() == pytest.approx([1, 1, 1, 0.006697], abs=1e-6)


def test_on_policy_gradients_of_grpo_gspo_and_sapo_agree():
    batch = batch_of([[1.0, 0.0, 0.3]], lengths=[[2, 5, 3]])
    advantage = compose("grpo").recipe.advantage(batch)
    batch = replace(batch, advantage=batch.to_rows(advantage))
    zero = torch.zeros_like(batch.logp_old)
    want = -batch.advantage / (3 * batch.mask.sum(1, keepdim=True)) * batch.mask
    grpo = replace(compose("grpo").recipe.loss, kl=None, kl_coef=0.0)
    for loss in (grpo, compose("gspo").recipe.loss, compose("sapo").recipe.loss):
        _, grad = gradient(loss, batch, zero)
        torch.testing.assert_close(grad, want, atol=1e-12, rtol=0)


def test_weight_is_symmetric_and_falls_on_both_sides():
    x = torch.linspace(0, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(gate_weight(1 + x, 1.0), gate_weight(1 - x, 1.0))
    assert (gate_weight(1 + x, 1.0).diff() < 0).all()
    assert ((gate_weight(1 + x, 1.0) > 0) & (gate_weight(1 + x, 1.0) <= 1)).all()


def test_zero_advantage_and_huge_ratios():
    batch = batch_of([[1.0, 0.0]])
    batch = replace(batch, advantage=t(0.0, 1.0)[:, None])
    value, grad = gradient(PolicyLoss(SoftGate()), batch, t(0.5, 100.0)[:, None])
    assert math.isfinite(value)
    assert grad[0] == 0
    assert abs(float(grad[1])) < 1e-6


@pytest.mark.parametrize("name", ["tau_pos", "tau_neg"])
def test_temperatures_must_be_positive(name):
    with pytest.raises(InputError, match=name):
        SoftGate(**{name: 0.0})
