"""Worked numbers of the shared core: advantages, clip, KL, aggregation, sequence ratio."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import tensor

from anypolicy.errors import InputError
from anypolicy.parts.advantages import gae, group_normalise, leave_one_out, returns_to_go, token_rewards, whiten
from anypolicy.parts.kl import kl
from anypolicy.parts.log_linear import divergence
from anypolicy.parts.mdp import check_distribution, check_kernel
from anypolicy.parts.reduce import count, reduce
from anypolicy.parts.surrogate import clip_active, clipped, clipped_value_loss, sequence_ratio, token_ratio

D = torch.float64


def group(*rewards):
    r = tensor(rewards, dtype=D)
    return r, torch.zeros(len(r), dtype=torch.long)


def near(got, want, tol=1e-6):
    torch.testing.assert_close(got, tensor(want, dtype=D), atol=tol, rtol=0)


def test_group_advantages_of_two_right_of_four():
    r, g = group(1, 0, 0, 1)
    near(group_normalise(r, g), [0.866024, -0.866024, -0.866024, 0.866024])
    near(group_normalise(r, g, eps=1e-4), [0.865875, -0.865875, -0.865875, 0.865875])
    near(group_normalise(r, g, std="population"), [0.999998, -0.999998, -0.999998, 0.999998])
    near(group_normalise(r, g, std="none"), [0.5, -0.5, -0.5, 0.5])
    near(leave_one_out(r, g), [0.666667, -0.666667, -0.666667, 0.666667])


def test_group_advantages_of_one_right_of_eight():
    r, g = group(1, 0, 0, 0, 0, 0, 0, 0)
    near(group_normalise(r, g), [2.474867] + [-0.353552] * 7)
    near(group_normalise(r, g, std="none"), [0.875] + [-0.125] * 7)
    near(leave_one_out(r, g), [1.0] + [-0.142857] * 7)


def test_group_advantages_of_graded_rewards():
    r, g = group(0.2, 0.9, 0.4, 0.5)
    near(group_normalise(r, g), [-1.019046, 1.358728, -0.339682, 0.0])
    near(leave_one_out(r, g), [-0.4, 0.533333, -0.133333, 0.0])


@pytest.mark.parametrize("value", [0.7, 0.1, 1 / 3])
def test_an_all_equal_group_gets_exactly_zero_in_float32(value):
    r = torch.full((8,), value)
    assert not group_normalise(r, torch.zeros(8, dtype=torch.long)).any()


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(-3, 3), st.floats(0.5, 4), st.integers(0, 10**6))
def test_invariants(rewards, shift, scale, seed):
    r, g = group(*rewards)
    if r.std() < 1e-3:
        return
    for f in (group_normalise, leave_one_out, lambda r, g: group_normalise(r, g, std="none")):
        torch.testing.assert_close(f(r + shift, g), f(r, g), atol=1e-5, rtol=1e-5)
        assert abs(float(f(r, g).sum())) < 1e-6
    torch.testing.assert_close(group_normalise(scale * r, g), group_normalise(r, g), atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(leave_one_out(scale * r, g), scale * leave_one_out(r, g))
    order = torch.randperm(len(r), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(group_normalise(r[order], g), group_normalise(r, g)[order])


def test_groups_are_found_by_id_not_by_order():
    r = tensor([1.0, 0.2, 0.0, 0.9, 0.0, 0.4, 1.0, 0.5], dtype=D)
    g = tensor([7, 3, 7, 3, 7, 3, 7, 3])
    got = group_normalise(r, g)
    near(got[g == 7], [0.866024, -0.866024, -0.866024, 0.866024])
    near(got[g == 3], [-1.019046, 1.358728, -0.339682, 0.0])


def test_batch_std_is_that_of_the_raw_rewards():
    r = tensor([1.0, 0, 0, 1, 0.2, 0.9, 0.4, 0.5], dtype=D)
    g = tensor([0, 0, 0, 0, 1, 1, 1, 1])
    near(group_normalise(r, g, std="batch")[:1], [0.5 / (float(r.std()) + 1e-6)])


def test_nan_reward_is_left_out_of_the_statistics_and_gets_zero():
    r, g = group(1, 0, math.nan, 0, 1)
    near(group_normalise(r, g), [0.866024, -0.866024, 0.0, -0.866024, 0.866024])
    near(leave_one_out(r, g), [0.666667, -0.666667, 0.0, -0.666667, 0.666667])


def test_a_group_of_one_gets_zero():
    r, g = group(1.0)
    near(group_normalise(r, g), [0.0])
    near(leave_one_out(r, g), [0.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "symmetric", "higher"),
    [(1.3, 1, -1.2, -1.28), (1.3, -1, 1.3, 1.3), (0.7, 1, -0.7, -0.7), (0.7, -1, 0.8, 0.8), (1.25, 1, -1.2, -1.25)],
)
def test_clip(ratio, advantage, symmetric, higher):
    r, a = tensor([ratio], dtype=D), tensor([float(advantage)], dtype=D)
    near(-clipped(r, a, 0.2, 0.2), [symmetric])
    near(-clipped(r, a, 0.2, 0.28), [higher])


def test_dual_clip_bounds_the_loss_of_negative_advantages():
    r, a = tensor([9.0, 9.0], dtype=D), tensor([-1.0, 1.0], dtype=D)
    near(-clipped(r, a, 0.2, 0.2, dual=3.0), [3.0, -1.2])


@pytest.mark.parametrize(
    ("logp", "ref", "values", "slopes"),
    [
        (-1.2, -1.0, (-0.2, 0.02, 0.0214028), (1, -0.2, -0.2214028)),
        (-0.5, -2.0, (1.5, 1.125, 0.7231302), (1, 1.5, 0.7768698)),
    ],
)
def test_kl_values_and_gradients(logp, ref, values, slopes):
    for name, value, slope in zip(("k1", "k2", "k3"), values, slopes, strict=True):
        x = tensor([logp], dtype=D, requires_grad=True)
        y = kl(x, tensor([ref], dtype=D), name)
        y.sum().backward()
        near(y.detach(), [value], 1e-7)
        near(x.grad, [slope], 1e-7)


def test_k3_plus_has_the_value_of_k3_and_the_gradient_of_k2():
    x = tensor([-0.5], dtype=D, requires_grad=True)
    y = kl(x, tensor([-2.0], dtype=D), "k3+")
    y.sum().backward()
    near(y.detach(), [0.7231302], 1e-7)
    near(x.grad, [1.5])


L = tensor([[1.0, 2, 3, 9], [4, 9, 9, 9], [9, 9, 9, 9]], dtype=D)
M = tensor([[True, True, True, False], [True, False, False, False], [False] * 4])


@pytest.mark.parametrize(
    ("mode", "value"),
    [("token-mean", 2.5), ("seq-mean-token-mean", 3.0), ("seq-mean-token-sum", 5.0), ("const", 0.833333)],
)
def test_aggregation(mode, value):
    near(reduce(L, M, mode, max_tokens=4), value)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "const"])
def test_parts_with_the_totals_of_the_whole_add_up(mode):
    whole = count(M)
    parts = [
        reduce(L[i : i + 1], M[i : i + 1], mode, max_tokens=4,
               totals=whole._replace(sequence_tokens=whole.sequence_tokens[i : i + 1]))
        for i in range(3)
    ]  # fmt: skip
    near(sum(parts), float(reduce(L, M, mode, max_tokens=4)))


def test_segments_of_one_trajectory_are_one_sequence():
    totals = count(M, tensor([0, 0, 1]))
    assert totals.sequences == 1
    assert totals.rows == 2
    assert totals.sequence_tokens.tolist() == [4, 4, 0]
    near(reduce(L, M, "seq-mean-token-mean", totals=totals), 2.5)


def test_unknown_mode_is_an_input_error():
    with pytest.raises((InputError, TypeCheckError), match="token-mean"):
        reduce(L, M, "mean")
    with pytest.raises(InputError, match="max_tokens"):
        reduce(L, M, "const")


def test_sequence_ratio_and_its_gradient():
    logp = tensor([[0.1, -0.3, 0.1]], dtype=D, requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    s = sequence_ratio(logp, torch.zeros(1, 3, dtype=D), mask)
    near(s[0, 0].detach(), 0.9672161, 1e-7)
    loss = reduce(-clipped(s, torch.ones_like(s), 9.0, 9.0), mask, "seq-mean-token-mean")
    loss.backward()
    near(loss.detach(), -0.9672161, 1e-7)
    near(logp.grad, [[-0.3224054] * 3], 1e-7)


def test_token_ratio_is_clamped():
    assert torch.isfinite(token_ratio(tensor([[500.0]]), tensor([[0.0]]))).all()


def test_returns_gae_and_whitening():
    mask = tensor([[True, True, False, True]])
    reward = token_rewards(tensor([1.0]), mask, torch.zeros(1, 4), tensor([[0.5, 0.0, 0.0, 0.0]]), 0.1)
    torch.testing.assert_close(reward, tensor([[0.05, 0.0, 0.0, 1.0]]))
    torch.testing.assert_close(returns_to_go(reward, mask), tensor([[1.05, 1.0, 0.0, 1.0]]))
    value = tensor([[0.2, 0.4, 9.0, 0.6]])
    delta = [0.05 + 0.4 - 0.2, 0.6 - 0.4, 1 - 0.6]
    a3, a2 = delta[2], delta[1] + 0.95 * delta[2]
    want = tensor([[delta[0] + 0.95 * a2, a2, 0.0, a3]])
    torch.testing.assert_close(gae(reward, value, mask, lam=0.95), want)
    white = whiten(want, mask)
    assert abs(float(white[mask].mean())) < 1e-6
    assert abs(float(white[mask].std()) - 1) < 1e-4
    assert not whiten(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)).any()


def test_gae_with_lambda_one_is_return_minus_value():
    rng = torch.Generator().manual_seed(0)
    reward, value = torch.rand(3, 5, generator=rng), torch.rand(3, 5, generator=rng)
    mask = torch.ones(3, 5, dtype=torch.bool)
    torch.testing.assert_close(gae(reward, value, mask), returns_to_go(reward, mask) - value)


def test_clipped_value_loss():
    got = clipped_value_loss(tensor([2.0, 0.1], dtype=D), tensor([0.0, 0.0], dtype=D), tensor([2.0, 0.0], dtype=D), 0.5)
    near(got, [0.5 * 1.5**2, 0.5 * 0.1**2])


def test_the_clip_is_active_where_it_takes_the_gradient_away():
    """A > 0 above 1 + high, A < 0 below 1 − low, neither on the edge itself nor on the other side."""
    r = tensor([0.5, 0.75, 0.9, 1.0, 1.25, 1.26, 2.0], dtype=D)
    for a, want in ((1.0, [0, 0, 0, 0, 0, 1, 1]), (-1.0, [1, 0, 0, 0, 0, 0, 0]), (0.0, [0] * 7)):
        assert clip_active(r, torch.full_like(r, a), 0.25, 0.25).tolist() == [bool(x) for x in want]
    assert clip_active(r, torch.ones_like(r), 0.25, 0.5).tolist() == [False] * 6 + [True]
    assert clip_active(r, -torch.ones_like(r), 0.05, 0.25).tolist() == [True] * 3 + [False] * 4
    for low, high, a in ((0.25, 0.5, 1.0), (0.1, 0.25, -1.0)):  # off the edges the gradient says so itself
        off = tensor([0.5, 0.8, 0.95, 1.1, 1.3, 2.0], dtype=D).requires_grad_()
        [g] = torch.autograd.grad(clipped(off, torch.full_like(off, a), low, high).sum(), off)
        assert torch.equal(g == 0, clip_active(off, torch.full_like(off, a), low, high))


def test_distributions_are_refused_by_each_of_their_faults():
    """A sum, an infinity, and one number below 0 beside others that make the sum."""
    check_distribution(np.array([[0.25, 0.75], [1.0, 0.0]]), "p")
    for row in ([0.5, 0.6], [np.inf, 0.0], [-0.5, 1.5]):
        with pytest.raises(InputError, match=r"p\[1\]"):
            check_distribution(np.array([[0.5, 0.5], row]), "p")
        with pytest.raises(InputError, match=r"kernel\[state 1, action 0\]"):
            check_kernel(np.array([[[0.5, 0.5]], [row]]))


def test_whitening_values_that_are_all_equal_gives_exactly_zero():
    equal = torch.full((1, 13), 0.1)  # whose mean is not 0.1 in float32
    assert float((equal - equal.mean()).abs().max()) > 0
    for std in ("sample", "population"):
        assert not whiten(equal, torch.ones(1, 13, dtype=torch.bool), std).any()


def test_groups_are_counted_where_every_row_is_a_sequence_of_its_own():
    mask = tensor([[1, 1], [1, 0], [0, 0], [1, 1]], dtype=torch.bool)
    totals = count(mask, group=tensor([7, 7, 7, 9]))
    assert (totals.groups, totals.pairs, totals.rows, totals.sequences) == (2.0, 1.0, 4.0, 3.0)
    assert totals.group_sequences is not None and totals.group_sequences.tolist() == [2.0, 2.0, 2.0, 1.0]
    assert count(mask).groups == count(mask, torch.arange(4)).groups


def test_the_divergence_of_two_policies_is_a_mean_over_prompts():
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    each = (p * np.log(p / q)).sum(1)
    assert divergence(p, q) == pytest.approx(each.sum() / 2, rel=1e-12)
