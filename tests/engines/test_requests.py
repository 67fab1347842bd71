"""Openings that were not sampled, and limits of single requests."""

import numpy as np
import pytest
import torch

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.policies.language.transformer import small_transformer

CONTEXT = np.array([3, 4, 5], np.int64)


@pytest.fixture(scope="module")
def engine():
    return NativeEngine(
        small_transformer(
            vocabulary=12, layers=1, width=16, heads=2, context_length=24, seed=0, eos_id=11, pad_id=10
        )
    )  # fmt: skip


def answers(engine, *requests, limit=8):
    return engine.generate(list(requests), Sampling(limit), torch.Generator().manual_seed(0), 5)


def test_a_forced_token_has_its_given_probability_and_is_trained(engine):
    [plain] = answers(engine, Request(CONTEXT, 6, (7,)))
    [forced] = answers(engine, Request(CONTEXT, 6, (7,), (float(np.log(0.5)),)))
    for (a, stop), (b, same) in zip(plain, forced, strict=True):
        assert a.response.tolist() == b.response.tolist()
        assert stop == same
        assert b.response[0] == 7
        assert (a.mask[0], b.mask[0]) == (False, True)
        assert (float(a.logp[0]), float(b.logp[0])) == (0.0, pytest.approx(np.log(0.5)))
        assert b.version.tolist() == [-1] + [5] * (len(b.response) - 1)
        assert b.mask.all()


def test_what_follows_a_forced_token_is_scored_as_it_was_sampled(engine):
    [forced] = answers(engine, Request(CONTEXT, 6, (7,), (-0.25,)))
    group = Group("g", Prompt("p"), [Trajectory(str(i), [s], reward=0.0) for i, (s, _) in enumerate(forced)])
    batch = from_groups([group])
    logp = engine.policy.score(batch, 1.0).logp
    sampled = batch.mask & (batch.version >= 0)
    assert sampled.sum() == batch.mask.sum() - 6
    torch.testing.assert_close(logp[sampled], batch.logp_old[sampled], atol=1e-5, rtol=1e-5)
    assert (batch.logp_old[:, 0] == -0.25).all()


def test_a_request_may_have_a_lower_limit_and_its_opening_counts(engine):
    short, one, free = answers(
        engine, Request(CONTEXT, 4, (7,), (0.0,), 3), Request(CONTEXT, 2, (7,), (0.0,), 1), Request(CONTEXT, 4)
    )
    assert max(len(s.response) for s, _ in short) == 3
    assert all(stop == "length" for s, stop in short if s.response[-1] != 11)
    assert [(s.response.tolist(), stop) for s, stop in one] == [([7], "length")] * 2
    assert max(len(s.response) for s, _ in free) > 3
    assert all(len(s.response) <= 8 for s, _ in answers(engine, Request(CONTEXT, 4, max_tokens=99))[0])
    with pytest.raises(InputError, match="max_tokens = 1"):
        answers(engine, Request(CONTEXT, 1, (7, 7), max_tokens=1))


def test_the_same_kind_of_engine_for_another_policy(engine):
    other = small_transformer(
        vocabulary=12, layers=1, width=16, heads=2, context_length=24, seed=1, eos_id=11, pad_id=10
    )
    assert engine.of(other).policy is other
