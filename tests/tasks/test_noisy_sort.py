"""Noisy sort: its verdicts, its split, its references, and a base that slips as often as it was taught to."""

import numpy as np
import pytest

from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.runs.seeds import generator
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.noisy_sort import EOS, EQUALS
from anypolicy.tasks.split import place


def test_prompts_and_verdicts():
    task = load_task("noisy-sort:length=4,prompts=50,heldout=20,references=true", seed=1)
    assert (len(task.train), len(task.heldout), task.max_tokens) == (50, 20, 5)
    for split, held in ((task.train, False), (task.heldout, True)):
        for p in split:
            assert p.tokens[-1] == EQUALS
            assert p.reference == p.answer == (*sorted(p.tokens[:-1]), EOS)
            assert (place("".join(map(str, p.tokens[:-1]))) < 0.2) == held
    p = next(p for p in task.train if p.tokens[0] > p.tokens[1])
    assert task.score(p, np.array(p.answer), "").correct
    for wrong in (p.answer[:-1], (*p.tokens[:-1], EOS), (*p.answer, EOS)):
        assert not task.score(p, np.array(wrong), "").correct
    assert load_task("noisy-sort:prompts=3,heldout=1").train[0].reference is None
    for bad in ("length=0", "noise=1.0", "prompts=0"):
        with pytest.raises(InputError, match="noisy-sort"):
            load_task(f"noisy-sort:{bad}")


def test_the_base_slips_as_taught():
    task = load_task("noisy-sort:length=2,prompts=200,heldout=200", seed=0)
    policy = task.make_policy(0)
    prompts = task.heldout
    answers = NativeEngine(policy).generate(
        [Request(policy.encode(p), 4) for p in prompts], Sampling(3), generator(0, "test")
    )
    right = [task.score(p, s.response, "").correct for p, rows in zip(prompts, answers, strict=True) for s, _ in rows]
    assert np.mean(right) == pytest.approx(0.82**2, abs=0.08)
