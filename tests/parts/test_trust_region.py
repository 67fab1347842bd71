"""Natural gradient, step length and line search: worked numbers, identities, degenerate cases."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from anypolicy.errors import InputError
from anypolicy.parts.trust_region import (
    backtrack,
    conjugate_gradient,
    fisher_product,
    flat,
    load_flat,
    policy_update,
    trust_region_step,
)


def damped(diagonal: torch.Tensor, damping: float):
    return lambda v: diagonal * v + damping * v


def test_direction_step_and_expected_improvement(f64):
    g, fisher = f64(0.3, -0.4), f64(4.0, 1.0)
    product = damped(fisher, 0.1)
    x = conjugate_gradient(product, g)
    assert x.tolist() == pytest.approx([0.073171, -0.363636], abs=1e-6)
    assert float(0.5 * x @ product(x)) == pytest.approx(0.083703, abs=1e-6)
    step, expected = trust_region_step(g, product, 0.01)
    assert step.tolist() == pytest.approx([0.025291, -0.125689], abs=1e-6)
    undamped = float(0.5 * (fisher * step.square()).sum())
    assert undamped == pytest.approx(0.009178, abs=1e-6) and undamped < 0.01
    assert float(0.5 * step @ product(step)) == pytest.approx(0.01, abs=1e-12)
    assert float(expected) == pytest.approx(0.057863, abs=1e-6)


def test_conjugate_gradient_solves_in_as_many_iterations_as_unknowns():
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(6, 6, generator=rng, dtype=torch.float64)
    matrix, b = a @ a.T + 0.5 * torch.eye(6, dtype=torch.float64), torch.randn(6, generator=rng, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, b)
    torch.testing.assert_close(conjugate_gradient(lambda v: matrix @ v, b, 12, 1e-20), exact)
    gaps = [float((conjugate_gradient(lambda v: matrix @ v, b, n, 0.0) - exact) @ matrix @
                  (conjugate_gradient(lambda v: matrix @ v, b, n, 0.0) - exact)) for n in range(6)]  # fmt: skip
    assert all(after < before for before, after in pairwise(gaps))


def test_no_gradient_makes_no_step_and_a_singular_fisher_matrix_a_finite_one(f64):
    zero = f64(0.0, 0.0)
    step, expected = trust_region_step(zero, damped(f64(4.0, 1.0), 0.1), 0.01)
    assert step.tolist() == [0, 0] and float(expected) == 0
    step, _ = trust_region_step(f64(0.3, -0.4), damped(f64(4.0, 0.0), 0.1), 0.01)
    assert step.isfinite().all() and float(step @ f64(0.3, -0.4)) > 0
    step, expected = trust_region_step(f64(0.3, -0.4), damped(zero, 0.0), 0.01)
    assert step.tolist() == [0, 0] and float(expected) == 0
    with pytest.raises(InputError, match="max_kl"):
        trust_region_step(zero, damped(zero, 1.0), 0.0)


def test_fisher_product_is_the_fisher_matrix_of_a_gaussian():
    """Over mean and log-deviation it is diag(1/σ², 2)."""
    mean = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([0.2, -0.7], dtype=torch.float64, requires_grad=True)
    old = Normal(mean.detach(), log_std.detach().exp())
    kl = kl_divergence(old, Normal(mean, log_std.exp())).sum()
    product = fisher_product(kl, [mean, log_std], 0.1)
    columns = torch.stack([product(row) for row in torch.eye(4, dtype=torch.float64)])
    want = torch.diag(torch.tensor([math.exp(-0.4), math.exp(1.4), 2, 2], dtype=torch.float64))
    torch.testing.assert_close(columns, want + 0.1 * torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(("bend", "want"), [(0.5, 1.0), (1.5, 0.5), (7.0, 0.125), (1e6, 0.0)])
def test_the_line_search_halves_until_a_tenth_of_the_promise_is_kept(f64, bend, want):
    """f(x) = −x + bend x²: the step s falls by s − bend s², of which s was expected; more than a tenth where
    s < 0.9 / bend."""
    loss = lambda x: (-x + bend * x.square()).sum()  # noqa: E731
    new, taken = backtrack(loss, f64([0.0]), f64([1.0]), f64(1.0))
    assert float(new) == want and taken == (want > 0)


def test_numbers_go_into_parameters_and_back():
    parameters = [torch.zeros(2, 3), torch.zeros(4)]
    load_flat(parameters, torch.arange(10.0))
    assert flat(parameters).tolist() == list(range(10)) and parameters[0].shape == (2, 3)


def test_the_first_order_rise_is_that_of_the_policy_gradient(f64):
    """A step on a bandit of one action: the mean moves toward what is better, inside the trust region."""
    mean = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    action = f64([[-1.0], [0.5], [2.0]])
    kl, taken = policy_update(
        lambda: Normal(mean.expand(3, 1), 1.0), action, action.squeeze(1) - 0.5, [mean], 0.01, 0.1
    )
    assert taken and float(mean) > 0 and kl == pytest.approx(float(mean.detach()) ** 2 / 2)
    assert kl == pytest.approx(0.01 / 1.1)
    before = mean.detach().clone()
    assert policy_update(lambda: Normal(mean.expand(3, 1), 1.0), action, 0 * action.squeeze(1), [mean], 0.01, 0.1) == (
        0.0,
        False,
    )
    assert torch.equal(mean.detach(), before)


def test_a_fall_of_exactly_the_share_that_is_asked_is_too_little(f64):
    line = lambda x: x.sum()  # noqa: E731
    new, taken = backtrack(line, f64([1.0]), f64([-1.0]), f64(4.0), accept=0.25)  # falls by 1, where 4 × 0.25 is asked
    assert not taken and float(new) == 1.0
    assert backtrack(line, f64([1.0]), f64([-1.0]), f64(3.9), accept=0.25)[1]
