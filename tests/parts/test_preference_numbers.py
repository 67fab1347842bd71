"""Worked numbers and identities of the losses of preferences, in float64, and which pairs a group makes."""

import math

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.parts import preference as p
from anypolicy.parts.pairing import make_pairs

D = torch.float64
W, W_REF = torch.tensor([[-0.5, -1.2, -0.3]], dtype=D), torch.tensor([[-0.7, -1.0, -0.9]], dtype=D)
L, L_REF = torch.tensor([[-1.5, -0.4, 0.0]], dtype=D), torch.tensor([[-1.1, -0.6, 0.0]], dtype=D)
KEEP, SHORT = torch.tensor([[True] * 3]), torch.tensor([[True, True, False]])
B = 0.1


def t(*x):
    return torch.tensor(x, dtype=D)


def example():
    """Sums of chosen and rejected response under the policy (with gradient) and under the reference."""
    chosen, rejected = p.sequence_sum(W, KEEP).requires_grad_(), p.sequence_sum(L, SHORT).requires_grad_()
    return chosen, rejected, p.sequence_sum(W_REF, KEEP), p.sequence_sum(L_REF, SHORT)


def h_of(sums):
    return p.margin(*sums)


def mean_of(sums):
    w, lose, rw, rl = sums
    return p.mean_margin(w - rw, lose - rl, t(3), t(2))


def value_and_gradient(loss):
    """loss(sums), ∂/∂ℓ_w and ∂/∂ℓ_l."""
    sums = example()
    value = loss(sums)
    value.sum().backward()
    return float(value.detach()), *(0.0 if x.grad is None else float(x.grad) for x in sums[:2])


def test_the_example():
    w, lose, rw, rl = example()
    assert float((w - rw).detach()) == pytest.approx(0.6, abs=1e-12)
    assert float((lose - rl).detach()) == pytest.approx(-0.2, abs=1e-12)
    assert float(h_of((w, lose, rw, rl)).detach()) == pytest.approx(0.8, abs=1e-12)
    assert float(mean_of((w, lose, rw, rl)).detach()) == pytest.approx(0.3, abs=1e-12)


@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    [
        (lambda s: p.sigmoid(h_of(s), B), 0.653947, -0.048001),
        (lambda s: p.sigmoid(h_of(s), B, 0.1), 0.661947, -0.038001),
        (lambda s: p.robust_sigmoid(h_of(s), B, 0.1), 0.643947, None),
        (lambda s: p.hinge(h_of(s), B), 0.92, -0.1),
        (lambda s: p.squared(h_of(s), B), 17.64, -8.4),
        (lambda s: p.squared(mean_of(s), B), 22.09, 2 * (0.3 - 5) / 3),
        (lambda s: p.scaled_squared(h_of(s), B), 0.1764, 2 * B * (0.08 - 0.5)),
        (lambda s: p.sigmoid(mean_of(s), B), 0.678260, None),
        (lambda s: p.slic(s[0], s[1], s[0], 1.0, 0.5), 2.1, -1.5),
        (lambda s: p.hinge(s[0] - s[1], 0.5), 1.05, -0.5),
        (lambda s: p.sigmoid(h_of(s), B) + p.best_of_two(s[0], t(3)), 1.320614, None),
        (lambda s: p.sigmoid(h_of(s), B) + 0.001 * p.best_of_two(s[0], t(3)), 0.654614, None),
        (lambda s: p.best_of_two(s[0], t(3)), 2 / 3, -1 / 3),
    ],
)
def test_every_loss_of_the_example(loss, value, gradient):
    got, by_chosen, _ = value_and_gradient(loss)
    assert got == pytest.approx(value, abs=5e-7)
    if gradient is not None:
        assert by_chosen == pytest.approx(gradient, abs=5e-7)


@pytest.mark.parametrize(
    "loss",
    [
        lambda h: p.sigmoid(h, B), lambda h: p.sigmoid(h, B, 0.1), lambda h: p.robust_sigmoid(h, B, 0.2),
        lambda h: p.soft_sigmoid(h, B, t(0.7)), lambda h: p.hinge(h, B), lambda h: p.squared(h, B),
        lambda h: p.scaled_squared(h, B),
    ],
)  # fmt: skip
def test_losses_of_the_margin_push_both_sides_equally(loss):
    _, chosen, rejected = value_and_gradient(lambda s: loss(h_of(s)))
    assert chosen == pytest.approx(-rejected, abs=1e-14)
    assert chosen < 0


def test_means_push_by_length():
    _, chosen, rejected = value_and_gradient(lambda s: p.squared(mean_of(s), B))
    assert (chosen, rejected) == pytest.approx((2 * -4.7 / 3, -2 * -4.7 / 2), abs=1e-12)


@pytest.mark.parametrize(
    ("loss", "optimum"),
    [
        (lambda h: p.sigmoid(h, B, 0.1), 21.972246),
        (lambda h: p.soft_sigmoid(h, B, t(0.9)), 21.972246),
        (lambda h: p.soft_sigmoid(h, B, t(0.5)), 0.0),
        (lambda h: p.squared(h, B), 5.0),
        (lambda h: p.scaled_squared(h, B), 5.0),
    ],
)
def test_finite_optima(loss, optimum):
    h = t(optimum).requires_grad_()
    loss(h).sum().backward()
    assert float(h.grad) == pytest.approx(0, abs=1e-8)
    for other in (optimum - 1, optimum + 1):
        assert float(loss(t(other))) > float(loss(h.detach()))


def test_kto_of_the_example():
    good, u = torch.tensor([True, False]), t(0.6, -0.2)
    assert p.kto(u, 0.2, good, B).tolist() == pytest.approx([0.490001, 0.490001], abs=5e-7)
    assert float(p.kto_baseline(t(-0.3, 0.1))) == 0
    assert float(p.kto_baseline(t(0.5, -0.1))) == pytest.approx(0.2)
    assert float(p.kto(u, p.kto_baseline(t(-0.3, 0.1)), good, B)[0]) == pytest.approx(0.485004, abs=5e-7)
    assert p.kto(u, 0.2, good, B, 2.0, 3.0).tolist() == pytest.approx([2 * 0.490001, 3 * 0.490001], abs=2e-6)
    assert p.kto(t(0.0, 0.0), 0.0, good, B).tolist() == [0.5, 0.5]
    with pytest.raises(InputError, match="at least 2"):
        p.kto_baseline(t())


def test_no_gradient_through_the_baseline():
    u = t(0.6, -0.2).requires_grad_()
    assert not p.kto_baseline(u).requires_grad
    p.kto(u, p.kto_baseline(u), torch.tensor([True, False]), B).sum().backward()
    assert float(u.grad[0]) < 0 < float(u.grad[1])


def test_denoisers():
    m = t(0.9).requires_grad_()
    inside = p.diffusion_margin(m, t(1.2), t(1.0), t(1.1), 10.0)
    loss = p.diffusion(m, t(1.2), t(1.0), t(1.1), 10.0)
    loss.sum().backward()
    assert float(inside.detach()) == pytest.approx(1.0, abs=1e-12)
    assert float(loss.detach()) == pytest.approx(0.313262, abs=5e-7)
    assert float(m.grad) == pytest.approx(1.344707, abs=5e-7)
    assert float(p.diffusion_margin(t(0.9), t(1.2), t(1.0), t(1.1), 5000.0)) == pytest.approx(500)
    assert float(p.diffusion(t(0.9), t(1.2), t(1.0), t(1.1), 5000.0)) < 1e-6


def test_where_policy_and_reference_agree():
    zero, ln2 = t(0.0), math.log(2)
    for value in (p.sigmoid(zero, B), p.sigmoid(zero, B, 0.2), p.diffusion(*[t(1.0)] * 4, 5000.0)):
        assert float(value) == pytest.approx(ln2, abs=1e-15)
    assert float(p.hinge(zero, B)) == 1
    assert float(p.squared(zero, B)) == pytest.approx(1 / (4 * B**2))


def test_identities_on_random_margins():
    rng = torch.Generator().manual_seed(0)
    for _ in range(300):
        h = 6 * torch.randn(8, generator=rng, dtype=D)
        beta, eps = float(torch.rand((), generator=rng)) + 0.05, 0.45 * float(torch.rand((), generator=rng))
        torch.testing.assert_close(p.sigmoid(-h, beta) - p.sigmoid(h, beta), beta * h)
        torch.testing.assert_close(p.scaled_squared(h, beta), beta**2 * p.squared(h, beta))
        torch.testing.assert_close(p.sigmoid(h, beta, eps), p.soft_sigmoid(h, beta, torch.full_like(h, 1 - eps)))
        noisy = (1 - eps) * p.robust_sigmoid(h, beta, eps) + eps * p.robust_sigmoid(-h, beta, eps)
        torch.testing.assert_close(noisy, p.sigmoid(h, beta), msg="flipped labels leave the expected loss alone")
        gamma = 1 / (1 + 3 * eps)
        w, lose = h - 2, h.flip(0) - 3
        torch.testing.assert_close(gamma * p.slic(w, lose, w, 1 / gamma, 0.0), p.hinge(w - lose, gamma))


def test_small_beta_is_half_beta_times_the_difference():
    beta = 1e-6
    value, gradient, _ = value_and_gradient(lambda s: p.sigmoid(h_of(s), beta))
    assert value == pytest.approx(math.log(2), abs=1e-6)
    assert gradient / beta == pytest.approx(-0.5, abs=1e-6)


def test_the_hinge_is_at_rest_from_its_kink_on():
    for value, slope in ((9.999, -B), (10.0, 0.0), (11.0, 0.0)):
        h = t(value).requires_grad_()
        p.hinge(h, B).sum().backward()
        assert float(h.grad) == slope


def padded(x, value):
    return torch.cat([x, torch.full((1, 1), value, dtype=D)], 1)


def test_padding_and_tokens_on_which_both_policies_agree():
    more, one = torch.cat([KEEP, torch.zeros(1, 2, dtype=torch.bool)], 1), torch.cat([KEEP, torch.tensor([[True]])], 1)
    wide = torch.cat([W, torch.full((1, 2), -7.0, dtype=D)], 1)
    assert float(p.sequence_sum(wide, more)) == pytest.approx(float(p.sequence_sum(W, KEEP)), abs=1e-12)
    w, lose, rw, rl = (x.detach() for x in example())
    w1, rw1 = p.sequence_sum(padded(W, -0.8), one), p.sequence_sum(padded(W_REF, -0.8), one)
    assert float(p.margin(w1, lose, rw1, rl)) == pytest.approx(float(p.margin(w, lose, rw, rl)), abs=1e-12)
    assert float(p.mean_margin(w1 - rw1, lose - rl, t(4), t(2))) != pytest.approx(0.3)
    assert float(p.hinge(w1 - lose, 0.5)) != pytest.approx(float(p.hinge(w - lose, 0.5)))
    assert float(p.slic(w1, lose, w1, 1.0, 0.5)) != pytest.approx(2.1)
    assert float(p.best_of_two(w1, t(4))) != pytest.approx(2 / 3)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_token_without_probability_is_an_error(bad):
    broken = W.clone()
    broken[0, 1] = bad
    with pytest.raises(InputError, match="row 0, token 1"):
        p.sequence_sum(broken, KEEP)
    assert float(p.sequence_sum(broken, torch.tensor([[True, False, True]]))) == pytest.approx(-0.8)


def test_what_is_logged_of_a_pair():
    log = p.pair_metrics(t(0.6, 0.0, -1.0), t(-0.2, 0.0, 0.0))
    assert log["pairs/accuracy"].tolist() == [1, 0.5, 0]
    assert log["pairs/margin"].tolist() == pytest.approx([0.8, 0, -1])
    assert log["kl/proxy"].tolist() == pytest.approx([0.2, 0, -0.5])


def descend(e):
    """200 steps of plain DPO on the logits of three arms; the margins before and after the last, and the policy."""
    reference = torch.tensor([0.7, 0.3 - e, e], dtype=D).log()
    z = reference.clone().requires_grad_()
    before = after = 0.0
    for _ in range(200):
        u = z.log_softmax(0) - reference
        h = (u[2] - u[0])[None]
        before = float(h.detach())
        [g] = torch.autograd.grad(p.sigmoid(h, B).sum(), z)
        z = (z - g).detach().requires_grad_()
        u = z.log_softmax(0) - reference
        after = float((u[2] - u[0]).detach())
    return before, after, z.detach().softmax(0).tolist()


def test_same_margin_different_fate():
    likely, unlikely = descend(0.1), descend(1e-4)
    for before, after, _ in (likely, unlikely):
        assert before == pytest.approx(13.041103, abs=5e-7)
        assert after == pytest.approx(13.083798, abs=5e-7)
    assert unlikely[2] == pytest.approx([0.0027, 0.8100, 0.1873], abs=5e-5)
    assert likely[2] == pytest.approx([0.0000, 0.0029, 0.9971], abs=5e-5)


# --- pairs -----------------------------------------------------------------------------------------------------------
def by(scores):
    return lambda i, j: scores[i] - scores[j]


def test_numbers_of_pairs():
    for n in range(2, 12):
        better = by(list(range(n)))
        assert len(make_pairs(n, "first_round", better)) == n // 2
        assert len(make_pairs(n, "tournament", better)) == n - 1
        assert make_pairs(n, "best_worst", better) == [(n - 1, 0)]
        assert len(make_pairs(n, "all", better)) == n * (n - 1) // 2


def test_pairs_by_hand():
    better = by([3, 1, 2, 5, 4])
    assert make_pairs(5, "first_round", better) == [(0, 1), (3, 2)]
    assert make_pairs(5, "tournament", better) == [(0, 1), (3, 2), (3, 0), (3, 4)]
    assert make_pairs(5, "best_worst", better) == [(3, 1)]


@pytest.mark.parametrize("pairing", ["first_round", "tournament", "best_worst", "all"])
def test_ties_make_no_pair_and_the_chosen_one_is_better(pairing):
    assert make_pairs(4, pairing, by([1, 1, 1, 1])) == []
    assert make_pairs(1, pairing, by([1])) == []
    rng = torch.Generator().manual_seed(1)
    for _ in range(200):
        scores = torch.randint(3, (7,), generator=rng).tolist()
        assert all(scores[i] > scores[j] for i, j in make_pairs(7, pairing, by(scores)))
