"""Worked numbers of the paper (arXiv 2509.18851, eq. 5–7) in float64, and the identities of NGRPO."""

import math
from dataclasses import replace

import pytest
import torch

from anypolicy.compose import compose
from anypolicy.errors import InputError
from anypolicy.methods.language.ngrpo import CalibratedAdvantage, ngrpo
from anypolicy.stages.common import Clip, KeepAll, PolicyLoss
from tests.helpers import batch_of, gradient

WANT = {0: (None, -0.333332), 1: (1.763830, -0.503951), 2: (1.333331, -0.666665), 3: (1.054091, -0.843272),
        4: (0.843272, -1.054091), 5: (0.666665, -1.333331), 6: (0.503951, -1.763830), 7: (0.333332, -2.666659),
        8: (0.0, None)}  # fmt: skip
SUMS = [-2.666659, -1.763830, -1.333331, -1.054091, -0.843272, -0.666665, -0.503951, -0.333332, 0.0]


def right(k, n=8):
    return [1.0] * k + [0.0] * (n - k)


@pytest.mark.parametrize("k", range(9))
def test_advantages_by_number_correct(k):
    a = CalibratedAdvantage()(batch_of([right(k)]))
    high, low = WANT[k]
    if high is not None:
        assert a[:k].tolist() == pytest.approx([high] * k, abs=1e-6)
    if low is not None:
        assert a[k:].tolist() == pytest.approx([low] * (8 - k), abs=1e-6)
    assert float(a.sum()) == pytest.approx(SUMS[k], abs=2e-6)


def test_population_std_gives_other_numbers():
    population = CalibratedAdvantage(std="population")
    assert population(batch_of([right(0)]))[0] == pytest.approx(-0.353552, abs=1e-6)
    assert population(batch_of([right(1)]))[:2].tolist() == pytest.approx([1.870824, -0.534521], abs=1e-6)


def test_small_groups_two_virtual_rewards_and_another_maximum():
    assert CalibratedAdvantage()(batch_of([right(0, 4)]))[0] == pytest.approx(-0.447213, abs=1e-6)
    assert CalibratedAdvantage(count=2)(batch_of([right(0, 4)]))[0] == pytest.approx(-0.645496, abs=1e-6)
    got = CalibratedAdvantage(maximum=2.0)(batch_of([[1.0, 0, 0, 1]]))
    assert got.tolist() == pytest.approx([0.239045, -0.956182, -0.956182, 0.239045], abs=1e-6)
    assert CalibratedAdvantage()(batch_of([[0.0]]))[0] == pytest.approx(-0.707106, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"), [(1.25, 1, -1.24), (0.7, -1, 0.84), (0.7, 1, -0.7), (1.3, -1, 1.3)]
)
def test_asymmetric_clip(ratio, advantage, loss):
    gate = ngrpo().loss.gate
    r, a = torch.tensor([ratio], dtype=torch.float64), torch.tensor([float(advantage)], dtype=torch.float64)
    assert float(-gate(r, a, r.log())) == pytest.approx(loss, abs=1e-12)


def test_without_virtual_rewards_and_with_its_clip_it_is_grpo():
    batch = batch_of([right(3), [0.2, 0.9, 0.4, 0.5, 0, 1, 0, 1]])
    plain = compose("grpo").recipe
    ours = ngrpo(virtual_count=0, clip_low=0.2, clip_high=0.2)
    assert torch.equal(ours.advantage(batch), plain.advantage(batch))
    token_mean = replace(plain.loss, aggregation="token-mean", kl=None, kl_coef=0.0, entropy_coef=1e-3)
    assert ours.loss == token_mean
    assert replace(ours, selection=KeepAll()).selection == plain.selection


def test_order_and_copies_under_new_ids_change_nothing_but_copies_under_the_same_ids_do():
    one = CalibratedAdvantage()(batch_of([right(2)]))
    twice = CalibratedAdvantage()(batch_of([right(2), right(2)]))
    assert torch.equal(twice[:8], one)
    assert torch.equal(CalibratedAdvantage()(batch_of([right(2)[::-1]])), one.flip(0))
    assert not torch.allclose(CalibratedAdvantage()(batch_of([right(2) * 2]))[:8], one)


def test_degenerate_rewards():
    assert not CalibratedAdvantage()(batch_of([right(8)])).any()
    got = CalibratedAdvantage()(batch_of([[0.0, math.nan, 0.0, 0.0, 0.0]]))
    assert got.tolist() == pytest.approx([-0.447213, 0, -0.447213, -0.447213, -0.447213], abs=1e-6)
    with pytest.raises(InputError, match="virtual_reward"):
        CalibratedAdvantage()(batch_of([[0.0, 1.5]]))


def test_only_all_correct_groups_are_dropped_and_surplus_is_carried():
    choice = ngrpo().selection(batch_of([right(8), right(0), right(3), right(1)]), 2)
    assert choice.groups.tolist() == [False, True, True, False]
    assert choice.surplus.tolist() == [False, False, False, True]
    assert not choice.short
    assert ngrpo().selection(batch_of([right(8), right(0)]), 2).short


def test_the_entropy_bonus_lets_gradient_through_the_entropy():
    loss = PolicyLoss(Clip(), aggregation="token-mean", entropy_coef=1e-3)
    batch = batch_of([right(2, 4)])
    batch = replace(batch, advantage=batch.to_rows(batch.reward))
    assert loss.needs.entropy
    value, _ = gradient(loss, batch, torch.zeros(4, 1, dtype=torch.float64), entropy=True)
    assert value == pytest.approx(-0.5)
