"""OTR by hand: logits (2, 1, 0, −1), data token 0, κ = 1.3, β = −0.1."""

import math
from dataclasses import replace

import pytest
import torch

import anypolicy.policies.language.logits
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.errors import InputError
from anypolicy.methods.supervised.otr import draw, expected_loss, exploration, one_token_loss, otr
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.logits import Logits
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.stages.targets import reference_target
from tests.helpers import lock_loop, segment

DATA = torch.tensor([0])
PI = [0.643914, 0.236883, 0.087144, 0.032059]
EXPLORED = [0.562565, 0.260676, 0.120789, 0.055970]


def logits(values=(2.0, 1.0, 0.0, -1.0)):
    return torch.tensor([values], dtype=torch.float64, requires_grad=True)


def counts(*n):
    return torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n))[None]


def gradient(loss, z):
    return torch.autograd.grad(loss.sum(), z, retain_graph=True)[0][0].tolist()


def near(values, tolerance=1e-6):
    return pytest.approx(values, abs=tolerance)


def test_policy_and_exploration_policy():
    z = logits()
    assert z.softmax(-1)[0].tolist() == near(PI)
    assert exploration(z, 1.3)[0].tolist() == near(EXPLORED)
    assert not exploration(z, 1.3).requires_grad


@pytest.mark.parametrize(
    ("n", "beta", "value", "slope"),
    [
        ((5, 2, 1, 0), -0.1, 0.208611, [-0.246700, 0.164169, 0.063697, 0.018834]),
        ((0, 6, 2, 0), -0.1, -0.169019, [-0.064391, 0.051312, 0.016286, -0.003206]),
        ((0, 6, 2, 0), 0.0, 0.0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_drawn_tokens(n, beta, value, slope):
    z = logits()
    loss = one_token_loss(z, DATA, counts(*n), beta)
    assert loss.item() == near(value)
    assert gradient(loss, z) == near(slope)


@pytest.mark.parametrize(
    ("kappa", "beta", "slope"),
    [
        (1.3, -0.1, [-0.228489, 0.148968, 0.057291, 0.022230]),
        (1.0, -0.1, [-0.252218, 0.167785, 0.061725, 0.022707]),
        (1.0, 0.0, [-0.229289, 0.152532, 0.056113, 0.020643]),
        (1.0, 1.0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_expectation(kappa, beta, slope):
    z = logits()
    loss = expected_loss(z, DATA, kappa, beta)
    assert gradient(loss, z) == near(slope)
    pi, explored, e = z.detach().softmax(-1)[0], exploration(z, kappa)[0], torch.eye(4, dtype=torch.float64)[0]
    direction = (1 - beta) * explored[0] * (e - pi) + beta * (explored - pi)
    assert gradient(loss, z) == near((-direction).tolist(), 1e-12)


def test_the_expected_loss_and_its_limits():
    assert expected_loss(logits(), DATA, 1.3, -0.1).item() == near(0.161364)
    z = logits()
    pi = z.softmax(-1)[0, 0]
    dft = -pi.detach() * pi.log()
    assert expected_loss(z, DATA, 1.0, 0.0).item() == near(dft.item(), 1e-12)
    ours = gradient(expected_loss(z, DATA, 1.0, -0.1), z)
    assert ours == near([1.1 * g for g in gradient(dft, z)], 1e-12)
    sft = torch.nn.functional.cross_entropy(z, DATA)
    assert gradient(sft, z) == near([-0.356086, 0.236883, 0.087144, 0.032059])


def test_kappa_changes_only_what_is_drawn():
    z = logits()
    weight = exploration(z, 1.3) * torch.tensor([1.0, -0.1, -0.1, -0.1], dtype=torch.float64)
    assert expected_loss(z, DATA, 1.3, -0.1).item() == near(-(weight * z.log_softmax(-1)).sum().item(), 1e-12)


def test_uniform_logits():
    z = logits((0.0, 0.0, 0.0, 0.0))
    assert gradient(expected_loss(z, DATA, 1.3, -0.1), z) == near([-0.206250, 0.068750, 0.068750, 0.068750])


def test_draws_have_the_expectation_and_spread_of_the_exact_form():
    rng = torch.Generator().manual_seed(0)
    draws, each = 20000, 256
    z = logits()
    wide = z.expand(draws, 4)
    drawn = draw(exploration(wide, 1.3), torch.rand(draws, each, generator=rng, dtype=torch.float64))
    share = torch.stack([(drawn == a).double().mean(1) for a in range(4)], 1)
    assert share.mean(0).tolist() == near(EXPLORED, 1e-3)
    loss = one_token_loss(wide, DATA.expand(draws), drawn, -0.1)
    (per_draw,) = torch.autograd.grad(loss.sum(), wide)
    error = per_draw.std(0) / draws**0.5
    want = torch.tensor([-0.228489, 0.148968, 0.057291, 0.022230], dtype=torch.float64)
    assert ((per_draw.mean(0) - want).abs() < 4 * error).all()
    assert per_draw.std(0).tolist() == pytest.approx([0.009145, 0.006624, 0.002817, 0.001554], rel=0.03)


@pytest.mark.parametrize(("p", "missed"), [(0.1, 1.9e-12), (0.01, 0.076315), (0.001, 0.774043)])
def test_how_often_a_data_token_is_never_drawn(p, missed):
    assert (1 - p) ** 256 == pytest.approx(missed, rel=0.03 if missed < 1e-9 else 1e-5)
    if p == 0.01:
        rng = torch.Generator().manual_seed(1)
        probability = torch.tensor([[p, 1 - p]], dtype=torch.float64).expand(4000, 2)
        drawn = draw(probability, torch.rand(4000, 256, generator=rng, dtype=torch.float64))
        assert (drawn != 0).all(1).double().mean().item() == pytest.approx(missed, abs=0.017)


def test_a_token_of_probability_zero_is_never_drawn():
    probability = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    edges = torch.tensor([[0.0, 0.4999999, 0.5, 1 - 2**-53]], dtype=torch.float64)
    assert draw(probability, edges).tolist() == [[1, 1, 3, 3]]


# --- the stage in the loop -------------------------------------------------------------------------------------------
def scored(loss, batch, states):
    """Loss of given states under the identity as head."""
    where = batch.target
    logp = states.log_softmax(-1).gather(-1, batch.response[..., None]).squeeze(-1)
    return loss(Scores(logp, logits=Logits(states[where], lambda x: x)), batch)


def two_targets(pad=0, swapped=False):
    """Targets of 3 and 2 tokens over 5 token ids, with `pad` columns more; float64 states of every position."""
    ids = [[0, 1, 2], [3, 4]]
    order = [1, 0] if swapped else [0, 1]
    groups = [
        Group(str(g), Prompt(str(g), tokens=(g,)), [Trajectory(str(g), [segment(ids[g], [g])], target=True)])
        for g in order
    ]
    batch = from_groups(groups, torch.float64, 8)
    wide = {
        f: torch.cat([getattr(batch, f), getattr(batch, f).new_zeros(2, pad)], 1)
        for f in ("response", "valid", "mask", "target")
    }
    states = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)[order]
    states = torch.cat([states, torch.full((2, pad, 5), 77.0, dtype=torch.float64)], 1).requires_grad_()
    seeds = torch.tensor([11, 12])[order]
    return replace(batch, totals=batch.counted(), row_seed=seeds, **wide), states


@pytest.mark.parametrize("exact", [False, True])
def test_padding_contributes_neither_loss_nor_samples(exact):
    loss = otr(samples=16, exact=exact).loss
    batch, states = two_targets()
    want = scored(loss, batch, states)
    want.terms["one_token"].backward()
    for pad, swapped in ((2, False), (0, True), (3, True)):
        other, more = two_targets(pad, swapped)
        got = scored(loss, other, more)
        assert got.terms["one_token"].item() == near(want.terms["one_token"].item(), 1e-12)
        assert got.metrics["otr/hits"].item() == near(want.metrics["otr/hits"].item(), 1e-12)
        got.terms["one_token"].backward()
        slope = more.grad[[1, 0]] if swapped else more.grad
        torch.testing.assert_close(slope[:, :3], states.grad, atol=1e-12, rtol=0)
        assert not slope[:, 3:].any()


def test_aggregation_is_the_mean_over_sequences_of_token_means():
    batch, states = two_targets()
    per = expected_loss(states[batch.target], batch.response[batch.target], 1.3, -0.1)
    sequence = scored(otr(exact=True).loss, batch, states).terms["one_token"]
    assert sequence.item() == near(((per[:3].mean() + per[3:].mean()) / 2).item(), 1e-12)
    token = scored(otr(exact=True, aggregation="token-mean").loss, batch, states).terms["one_token"]
    assert token.item() == near(per.mean().item(), 1e-12)


def test_a_sequence_without_targets_is_not_counted():
    batch, states = two_targets()
    target = batch.target.clone()
    target[1] = False
    alone = replace(batch, target=target, totals=None)
    alone = replace(alone, totals=alone.counted())
    per = expected_loss(states[0], batch.response[0], 1.3, -0.1)
    assert scored(otr(exact=True).loss, alone, states).terms["one_token"].item() == near(per.mean().item(), 1e-12)
    empty = replace(batch, target=torch.zeros_like(target), totals=None)
    empty = replace(empty, totals=empty.counted())
    for exact in (False, True):
        loss = otr(exact=exact).loss
        assert not loss.active(empty).any()
        assert scored(loss, empty, states).terms["one_token"].item() == 0


def test_same_seed_same_samples_and_new_ones_in_every_pass():
    batch, states = two_targets()
    loss = otr(samples=64).loss
    first, again = (scored(loss, batch, states).terms["one_token"].item() for _ in range(2))
    assert first == again
    assert scored(loss, replace(batch, row_seed=batch.row_seed + 1), states).terms["one_token"].item() != first
    loops = [lock_loop(otr(), seed=s) for s in (0, 0, 1)]
    one, two, other = (loop.row_seeds(loop.collect()[0], 0).tolist() for loop in loops)
    assert one == two
    assert one != other
    assert one != loops[0].row_seeds(loops[0].collect()[0], 1).tolist()


def test_more_samples_come_nearer_to_the_exact_form():
    batch, states = two_targets()
    exact = scored(otr(exact=True).loss, batch, states).terms["one_token"].item()
    gaps = []
    for k in (4, 64, 1024):
        values = [
            scored(otr(samples=k).loss, replace(batch, row_seed=batch.row_seed + 1000 * i), states)
            .terms["one_token"]
            .item()
            for i in range(40)
        ]
        gaps.append(sum((v - exact) ** 2 for v in values) / 40)
    assert gaps[0] / gaps[1] == pytest.approx(16, rel=0.6)
    assert gaps[1] / gaps[2] == pytest.approx(16, rel=0.6)


def test_dft_is_a_setting():
    batch, states = two_targets()
    where = batch.target
    logp = states[where].log_softmax(-1).gather(-1, batch.response[where][:, None]).squeeze(-1)
    dft = -(logp.exp().detach() * logp).mean()
    (want,) = torch.autograd.grad(dft, states)
    ours = scored(otr(exact=True, kappa=1.0, beta=0.0, aggregation="token-mean").loss, batch, states).terms["one_token"]
    assert ours.item() == near(dft.item(), 1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, states)[0], want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("exact", [False, True])
def test_logits_in_chunks_are_the_same_and_are_made_again_in_the_backward_pass(exact, monkeypatch):
    policy = small_transformer(
        vocabulary=11, layers=2, width=16, heads=2, context_length=12, seed=0, eos_id=10, pad_id=0
    )
    policy.module.double()
    prompts = [Prompt(str(i), tokens=tuple(range(1, 3 + i)), reference=tuple(range(4 - i))) for i in range(3)]
    batch = from_groups([Group(p.id, p, [reference_target(policy, p)]) for p in prompts], torch.float64)
    batch = replace(batch, totals=batch.counted(), row_seed=torch.tensor([5, 6, 7]))
    loss, found = otr(samples=32, exact=exact).loss, []
    for chunk in (256, 5):
        sizes = []
        head = policy.head
        monkeypatch.setattr(anypolicy.policies.language.logits, "CHUNK", chunk)
        monkeypatch.setattr(policy, "head", lambda x, head=head, sizes=sizes: sizes.append(len(x)) or head(x))
        policy.module.zero_grad()
        value = loss(policy.score(batch, 1.0, logits=True), batch).terms["one_token"]
        value.backward()
        monkeypatch.setattr(policy, "head", head)
        found.append((value.item(), torch.cat([p.grad.flatten() for p in policy.module.parameters()]), sizes))
    assert found[0][0] == near(found[1][0], 1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-12, rtol=0)
    assert found[0][2] == [12]
    assert sorted(found[1][2]) == sorted([5, 5, 2] * 2)


@pytest.mark.parametrize(
    ("knob", "value"),
    [("samples", 0), ("kappa", 0.0), ("kappa", -1.0), ("kappa", math.nan), ("beta", 1.1), ("beta", math.nan)],
)
def test_settings_that_cannot_be_used(knob, value):
    with pytest.raises(InputError, match=knob):
        otr(**{knob: value})
    assert otr(beta=1.0).loss.beta == 1.0
