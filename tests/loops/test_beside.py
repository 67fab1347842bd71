"""The divergence of whole responses, exact on tables of independent tokens, and held-out pairs."""

import math

import pytest
import torch

from anypolicy.data.records import Prompt
from anypolicy.engines.base import Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.evaluation.reference import ordered_pairs, sequence_kl, token_kl
from anypolicy.policies.language.logits import Logits
from anypolicy.policies.language.table import TablePolicy
from anypolicy.stages.recipe import World
from anypolicy.tasks.language.tabular_lock import TabularLock


def logits(*rows):
    return Logits(torch.tensor(rows, dtype=torch.float64).log(), lambda x: x)


def test_divergence_of_two_distributions():
    got = token_kl(logits([0.7, 0.2, 0.1]), logits([0.4, 0.4, 0.2]))
    assert got.tolist() == pytest.approx([0.183787], abs=5e-7)
    assert token_kl(logits([0.5, 0.5]), logits([0.9, 0.1])).tolist() == pytest.approx([0.510826], abs=5e-7)
    assert float(token_kl(logits([0.7, 0.2, 0.1]), logits([0.4, 0.4, 0.2])) + 0.510826) == pytest.approx(
        0.694613, abs=1e-6
    )


def tables():
    """Two tables of independent tokens, and their exact divergence."""
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 2, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return TablePolicy(a), TablePolicy(b), (p.exp() * (p - q)).sum(-1).sum(1)


def test_divergence_of_tables_is_exact():
    policy, reference, exact = tables()
    task = TabularLock(0, prompts=3, length=2, vocabulary=4)
    world = World(policy, NativeEngine(policy), task, Sampling(2, temperature=0.3), 0)
    prompts = [Prompt(str(i), tokens=(i,)) for i in range(3)]
    mean, error = sequence_kl(world, reference, prompts)
    assert mean == pytest.approx(float(exact.mean()), rel=1e-6)
    assert error == pytest.approx(float(exact.std()) / math.sqrt(3), rel=1e-6)
    assert sequence_kl(world, policy, prompts)[0] == 0


def test_held_out_pairs():
    policy, reference, _ = tables()
    given = {"responses": [(0, 1), (2, 3)], "scores": [1.0, 0.0]}
    prompts = [Prompt(str(i), tokens=(i,), info=given) for i in range(3)]
    own = ordered_pairs(policy, policy, prompts)
    assert (own["eval/pair_accuracy"], own["eval/margin"], own["eval/pairs"]) == (0.5, 0, 3)
    log = ordered_pairs(policy, reference, prompts)
    u = (policy.module.logits.log_softmax(-1) - reference.module.logits.log_softmax(-1)).detach()
    h = u[:, 0, 0] + u[:, 1, 1] - u[:, 0, 2] - u[:, 1, 3]
    assert log["eval/margin"] == pytest.approx(float(h.mean()), rel=1e-5)
    assert log["eval/pair_accuracy"] == float((h > 0).double().mean())
    assert ordered_pairs(policy, reference, [Prompt("x", tokens=(0,))]) == {}
