"""How a token is drawn: both ways against the inverse of the running sum, written out."""

import math

import pytest
import torch

from anypolicy.engines import native
from anypolicy.engines.base import Sampling
from anypolicy.engines.native import draw, filled, pick
from anypolicy.errors import InputError
from anypolicy.policies.language import logits as blocks

SIZES = (1, 2, 16, 17, 100, 101, 4096, 4097, 4999, 49152 // 8)
"""Squares, primes, and what a block divides."""


def drawn(vocabulary, rows=64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, vocabulary, generator=rng, dtype=torch.float64)


def uniform(rows, seed=1):
    return torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(p, u):
    """The first token at which the running sum reaches a share u of the whole, row by row."""
    out = []
    for row, share in zip(p.tolist(), u.flatten().tolist(), strict=True):
        total, wanted = 0.0, share * math.fsum(row)
        for i, x in enumerate(row):
            total += x
            if total >= wanted and x > 0:
                out.append(i)
                break
    return out


@pytest.mark.parametrize("vocabulary", SIZES)
def test_blocks_draw_what_one_running_sum_draws(vocabulary):
    z = drawn(vocabulary)
    token, logp = pick(z, torch.Generator().manual_seed(1))
    assert token.tolist() == places(z.softmax(-1), 1 - uniform(len(z)))
    torch.testing.assert_close(logp, z.log_softmax(-1).gather(1, token[:, None]).squeeze(1))


@pytest.mark.parametrize("vocabulary", SIZES)
def test_a_small_vocabulary_draws_by_one_running_sum(vocabulary, monkeypatch):
    monkeypatch.setattr(native, "FEW", 1 << 20)
    z, cold = drawn(vocabulary), Sampling(1, temperature=0.7)
    token, logp = draw(z, cold, torch.Generator().manual_seed(1))
    assert token.tolist() == places((z / 0.7).softmax(-1), uniform(len(z)))
    torch.testing.assert_close(logp, (z / 0.7).log_softmax(-1).gather(1, token[:, None]).squeeze(1))


@pytest.mark.parametrize("few", [0, 1 << 20])
@pytest.mark.parametrize("vocabulary", [12, 13])
def test_frequencies_are_the_probabilities(few, vocabulary, monkeypatch):
    monkeypatch.setattr(native, "FEW", few)
    z, n = drawn(vocabulary, rows=1, seed=2) / 3, 20_000
    token, _ = draw(z.expand(n, -1), Sampling(1), torch.Generator().manual_seed(3))
    expected = n * z.softmax(-1)[0]
    chi = ((torch.bincount(token, minlength=vocabulary) - expected) ** 2 / expected).sum()
    assert chi < 2.5 * vocabulary


@pytest.mark.parametrize(("size", "large"), [(native.FEW, False), (native.FEW + 1, True)])
def test_large_vocabularies_are_drawn_by_blocks_unless_the_distribution_is_cut(size, large, monkeypatch):
    asked = []
    monkeypatch.setattr(native, "pick", lambda *given: asked.append(given) or pick(*given))
    for sampling in (Sampling(1), Sampling(1, temperature=0.5), Sampling(1, temperature=0.0), Sampling(1, top_k=3),
                     Sampling(1, top_p=0.9)):  # fmt: skip
        draw(drawn(size, rows=2), sampling, torch.Generator().manual_seed(0))
    assert len(asked) == 2 * large


@pytest.mark.parametrize("vocabulary", [16, 17])
@pytest.mark.parametrize("share", [0.0, 0.5, 1 - 2.0**-53])
def test_a_token_without_probability_is_never_drawn(vocabulary, share, monkeypatch):
    z = torch.zeros(3, vocabulary)
    z[:, :2] = z[:, -2:] = -torch.inf
    monkeypatch.setattr(torch, "rand", lambda *shape, **more: torch.full(shape, share, dtype=torch.float64))
    for few in (0, 1 << 20):
        monkeypatch.setattr(native, "FEW", few)
        token, logp = draw(z, Sampling(1), torch.Generator())
        assert ((token >= 2) & (token < vocabulary - 2)).all()
        torch.testing.assert_close(logp, torch.full((3,), -math.log(vocabulary - 4)))


@pytest.mark.parametrize("few", [0, 1 << 20])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_probability_is_refused(few, temperature, monkeypatch):
    monkeypatch.setattr(native, "FEW", few)
    for bad in (torch.nan, torch.inf):
        z = torch.zeros(2, 8)
        z[1, 3] = bad
        with pytest.raises(InputError, match="diverged"):
            draw(z, Sampling(1, temperature=temperature), torch.Generator())


def test_truncation_keeps_the_likeliest():
    p = torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15]])
    for sampling, kept in ((Sampling(1, top_k=2), {1, 3}), (Sampling(1, top_p=0.7), {1, 3}),
                           (Sampling(1, top_p=0.71), {1, 3, 4}), (Sampling(1, top_k=3, top_p=0.5), {1, 3})):  # fmt: skip
        rest = native.truncated(p.log(), sampling)
        assert set(rest.isfinite().nonzero()[:, 1].tolist()) == kept
        token, logp = draw(p.log().expand(200, -1), sampling, torch.Generator().manual_seed(0))
        assert set(token.tolist()) == kept
        torch.testing.assert_close(logp, p[0].log()[token])  # of the whole distribution


def test_entropy_is_that_of_the_distribution_drawn_from():
    z = drawn(7, rows=3)
    p = (z / 0.5).softmax(-1)
    torch.testing.assert_close(native.entropy(z, 0.5), -(p * p.log()).sum(-1).float())
    assert float(native.entropy(torch.zeros(1, 8), 0.0)) == pytest.approx(math.log(8))


def test_rows_behind_the_end_fill_the_places_of_those_that_leave():
    for keep, want in (([1, 1, 1], [0, 1, 2]), ([0, 1, 0, 1, 1], [3, 1, 4]), ([1, 0, 0, 0, 1], [0, 4]), ([0, 0], [])):
        assert filled(torch.tensor(keep, dtype=torch.bool)).tolist() == want


@pytest.mark.parametrize("positions", [1, 3, 4, 5, 8, 11])
def test_logits_in_chunks_are_the_whole(positions, monkeypatch):
    """Value and gradient, with positions that do and do not divide into chunks."""
    rng = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(n, 6, generator=rng, dtype=torch.float64).requires_grad_() for n in (positions, 9))
    token = torch.randint(9, (positions,), generator=rng)

    def nll(z, token):
        return -z.log_softmax(-1).gather(1, token[:, None]).squeeze(1)

    got = []
    for chunk in (4, 1 << 20):
        monkeypatch.setattr(blocks, "CHUNK", chunk)
        value = blocks.Logits(states, lambda x: x @ weight.T).map(nll, token)
        got.append((value, *torch.autograd.grad((value * torch.arange(1, positions + 1)).sum(), (states, weight))))
    for a, b in zip(*got, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(got[0][0], nll(states @ weight.T, token))
