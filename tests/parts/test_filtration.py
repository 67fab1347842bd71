"""Filtration rules and R² as functions (arXiv 2409.06957, section 4), in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anypolicy.errors import InputError
from anypolicy.parts.filtration import equal_count_means, fit_line, keep, power_weights, rank_weights, ranked
from anypolicy.parts.moments import Moments

R = torch.tensor([0.9, 0.2, -0.1, -0.5, -0.8], dtype=torch.float64)
ONE = torch.zeros(5, dtype=torch.long)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weights_over_ranks():
    assert rank_weights("best-random", 5).tolist() == [0.5, 0.125, 0.125, 0.125, 0.125]
    torch.testing.assert_close(
        rank_weights("best-random", 5), torch.tensor([0.4, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64) / 0.8
    )
    assert rank_weights("best-worst", 5).tolist() == [0.5, 0, 0, 0, 0.5]
    assert rank_weights("best-of-n", 5).tolist() == [1, 0, 0, 0, 0]
    assert rank_weights("none", 4).tolist() == [0.25] * 4
    for rule in ("none", "best-of-n", "best-random", "best-worst"):
        assert rank_weights(rule, 1).tolist() == [1]
    assert torch.equal(rank_weights("best-worst", 2), rank_weights("best-random", 2))
    with pytest.raises(InputError, match="ranks"):
        rank_weights("power", 3)


@pytest.mark.parametrize(
    ("rule", "mean"), [("none", -0.06), ("best-of-n", 0.9), ("best-random", 0.3), ("best-worst", 0.05)]
)
def test_expected_reward_of_one_draw(rule, mean):
    assert float((rank_weights(rule, 5) * R).sum()) == pytest.approx(mean, abs=1e-12)
    picked = torch.cat([keep(rule, R, ONE, rng(i), with_replacement=True, n_keep=50) for i in range(200)])
    assert float(R[picked].mean()) == pytest.approx(mean, abs=0.03)


def test_power_weights():
    want = [0.462857, 0.022857, 0.005714, 0.142857, 0.365714]
    assert power_weights(R, 2.0).tolist() == pytest.approx(want, abs=1e-6)
    assert power_weights(R, 1.0).tolist() == pytest.approx([0.36, 0.08, 0.04, 0.2, 0.32], abs=1e-12)
    assert power_weights(torch.zeros(4), 2.0).tolist() == [0.25] * 4
    with pytest.raises(InputError, match=r"\[-1, 1\]"):
        power_weights(torch.tensor([0.3, -1.5]), 1.0)


def test_r_squared():
    reward = torch.tensor([-0.9, -0.8, -0.1, 0.1, 0.2, 0.8, 0.9, 0.85, -0.85, 0], dtype=torch.float64)
    score = torch.tensor([0, 0, 1, 0, 1, 1, 1, 1, 0, 0], dtype=torch.float64)
    assert fit_line(reward, score) == pytest.approx((0.579414, 0.488412, 0.591002), abs=1e-6)
    assert fit_line(reward, 3 * reward - 1) == pytest.approx((3, -1, 1))
    assert all(math.isnan(x) for x in fit_line(reward, torch.ones(10)))
    assert fit_line(torch.ones(4), torch.tensor([0.0, 1, 0, 1])) == pytest.approx((0, 0.5, 0))


def test_equal_count_groups():
    reward = torch.tensor([0.3, -1.0, 0.1, 0.9, -0.2], dtype=torch.float64)
    score = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    x, s = equal_count_means(reward, score, 2)
    assert x.tolist() == pytest.approx([(-1 - 0.2 + 0.1) / 3, 0.6])
    assert s.tolist() == pytest.approx([1 / 3, 1.0])
    assert len(equal_count_means(reward, score, 10)[0]) == 5


def test_two_rows_of_every_prompt_in_their_own_order():
    reward = torch.tensor([0.1, 0.9, -0.3, 0.2, 0.5, -0.7, 0.0, 0.6, 0.4, -0.1], dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 0, 0, 7, 7, 7, 7, 7])
    assert keep("best-worst", reward, group, rng()).tolist() == [1, 2, 5, 7]
    assert keep("best-of-n", reward, group, rng()).tolist() == [1, 7]
    assert keep("none", reward, group, rng()).tolist() == list(range(10))
    others = set()
    for seed in range(60):
        kept = keep("best-random", reward, group, rng(seed)).tolist()
        assert len(kept) == 4 and {1, 7} <= set(kept) and sum(i < 5 for i in kept) == 2
        others |= set(kept) - {1, 7}
    assert others == {0, 2, 3, 4, 5, 6, 8, 9}


def test_thresholds():
    reward = torch.tensor([0.8, -0.9, 0.1, 0.6, -0.2], dtype=torch.float64)
    assert keep("top", reward, ONE, rng(), high=0.5).tolist() == [0, 3]
    assert keep("top-bottom", reward, ONE, rng(), high=0.5, low=-0.5).tolist() == [0, 1, 3]
    counts = torch.zeros(5)
    for seed in range(400):
        counts[keep("top-random", reward, ONE, rng(seed), high=0.5)] += 1
    assert counts[[0, 3]].tolist() == [400, 400]
    assert all(150 < c < 250 for c in counts[[1, 2, 4]].tolist())


def test_degenerate_rewards():
    for seed in range(10):
        kept = keep("best-worst", torch.zeros(5), ONE, rng(seed)).tolist()
        assert len(set(kept)) == 2
    nan = torch.tensor([math.nan, 0.4, math.nan, 0.1, 0.3])
    assert keep("best-worst", nan, ONE, rng()).tolist() == [1, 3]
    assert ranked(nan, rng()).tolist() == [1, 4, 3]
    assert keep("best-worst", torch.full((5,), math.nan), ONE, rng()).tolist() == []
    two = torch.tensor([0.1, 0.7])
    for rule in ("none", "best-worst", "best-random"):
        assert keep(rule, two, ONE[:2], rng()).tolist() == [0, 1]
        assert keep(rule, two[:1], ONE[:1], rng()).tolist() == [0]


@given(
    st.lists(st.floats(-1, 1, allow_subnormal=False).map(lambda x: round(x, 3)), min_size=3, max_size=12),
    st.integers(0, 99),
)
def test_ranks_survive_increasing_transforms(values, seed):
    reward = torch.tensor(values, dtype=torch.float64)
    group = torch.arange(len(values)) % 2
    for rule in ("best-of-n", "best-random", "best-worst"):
        one = keep(rule, reward, group, rng(seed))
        assert torch.equal(one, keep(rule, torch.exp(3 * reward) - 5, group, rng(seed)))


def test_power_does_not():
    shifted = (R + 1) / 2
    assert not torch.allclose(power_weights(R, 2.0), power_weights(shifted, 2.0), atol=0.1)


def test_power_draws_from_the_whole_buffer():
    reward = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    kept = keep("power", reward, torch.tensor([0, 0, 1, 1]), rng(), n_keep=2)
    assert len(kept) == 4
    assert set(kept.tolist()) <= {0, 1}


def test_moments_of_parts_are_those_of_the_whole():
    values = [0.5, -1.25, 3.0, math.nan, 0.0, 0.75, 2.0]
    parts = Moments().add(values[:2]).add([]).add([math.nan]).add(values[2:5]).add(values[5:])
    whole = torch.tensor([v for v in values if v == v], dtype=torch.float64)
    assert parts.number == 6
    assert parts.mean == pytest.approx(float(whole.mean()))
    assert parts.std == pytest.approx(float(whole.std(correction=0)))
    assert Moments().std == 0
    assert Moments().add([0.1] * 7).add([0.1] * 3) == (10, 0.1, 0.0)
