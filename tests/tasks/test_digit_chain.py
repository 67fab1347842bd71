"""The digit chain: its prompts, its verifier, what its base is trained on; and prompts of other tasks asked again."""

import numpy as np
import pytest
import torch

from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.language.base import Reasks
from anypolicy.tasks.language.digit_chain import (
    END,
    EOS,
    EQUALS,
    LENGTHS,
    PAD,
    START,
    DigitChain,
    examples,
    prompt_ids,
    response_ids,
    train_base,
)  # fmt: skip
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.reverse_and_pick import EOS as STOP
from anypolicy.tasks.language.reverse_and_pick import EQUALS as ASK
from anypolicy.tasks.language.reverse_and_pick import PICK, STEPS, WRONG, ReverseAndPick
from anypolicy.tasks.language.tabular_lock import TabularLock


def test_responses_of_both_modes():
    assert prompt_ids((7, 5, 9)) == (7, 5, 9, EQUALS)
    assert response_ids((7, 5, 9), True) == (START, 7, 2, 1, END, 1, EOS)
    assert response_ids((7, 5, 9), False) == (END, 1, EOS)


def test_prompts_have_the_shares_that_were_asked_for_and_sides_do_not_overlap():
    task = load_task("digit-chain:prompts=400,heldout=100,short=0.5", seed=3)
    lengths = [p.info["digits"] for p in task.train]
    assert len(task.train) == 400
    assert len(task.heldout) == 100
    assert len({p.id for p in [*task.train, *task.heldout]}) == 500
    assert np.mean([n == 2 for n in lengths]) == pytest.approx(0.5, abs=0.08)
    assert set(lengths) == {2, 4, 5, 6, 7}
    assert not {p.tokens for p in task.train} & {p.tokens for p in task.heldout}
    assert all(p.answer == sum(p.tokens[:-1]) % 10 for p in task.train)
    assert DigitChain(3, prompts=400, heldout=100).train == task.train
    assert DigitChain(4, prompts=400, heldout=100).train != task.train


def test_the_verifier_looks_behind_the_only_end():
    task = DigitChain(0, prompts=1, heldout=1)
    prompt = Prompt("p", tokens=prompt_ids((7, 5)), answer=2)
    right = [(START, 7, 2, END, 2, EOS), (END, 2, EOS)]
    wrong = [(START, 7, 2, END, 3, EOS), (END, 2), (END, 2, 2, EOS), (END, EOS), (END,), (START, 7, 2, EOS), (2, EOS),
             (END, 6, END, 2, EOS), (START, EQUALS, END, 2, EOS), (EOS,), ()]  # fmt: skip
    assert all(task.score(prompt, np.array(r), "").correct for r in right)
    assert not any(task.score(prompt, np.array(r), "").correct for r in wrong)


def test_the_base_never_learns_to_choose_no_thinking():
    tokens, wanted = examples(numpy_generator(0, "test"), 64)
    for row, (ids, goal) in enumerate(zip(tokens.tolist(), wanted.tolist(), strict=True)):
        asked = ids.index(EQUALS) + 1
        assert asked - 1 in LENGTHS
        last = ids.index(EOS)
        first = asked if row % 2 == 0 else asked + 1
        assert ids[asked] == (START if row % 2 == 0 else END)
        assert goal == [-100] * first + ids[first : last + 1] + [-100] * (len(ids) - last - 1)
        assert set(ids[last + 1 :]) <= {PAD}


def test_a_base_trained_for_a_moment_can_be_probed():
    policy = small_transformer(
        vocabulary=15, layers=1, width=16, heads=2, context_length=24, seed=0, eos_id=EOS, pad_id=PAD
    )
    before = policy.module.state_dict()["transformer.wte.weight"].clone()
    train_base(policy, 0, steps=2, rows=8)
    assert not torch.equal(before, policy.module.state_dict()["transformer.wte.weight"])
    probe = DigitChain(0, prompts=1, heldout=1).probe(policy)
    assert set(probe) == {f"{name}_{n}" for n in LENGTHS for name in ("direct", "accuracy", "length", "unseen")}
    assert all(0 <= probe[f"direct_{n}"] <= 1 and 1 <= probe[f"length_{n}"] <= 16 for n in LENGTHS)


@pytest.mark.parametrize("setting", ["short=1.5", "shortest=1", "shortest=6,longest=5", "longest=8", "prompts=0"])
def test_settings_that_cannot_be(setting):
    with pytest.raises(InputError, match=r"digit-chain\.(short|prompts)"):
        load_task(f"digit-chain:{setting}")


def test_prompts_asked_again():
    task = ReverseAndPick(0, prompts=4, heldout=2)
    lock = TabularLock(0)
    assert isinstance(task, Reasks)
    assert isinstance(lock, Reasks)
    assert lock.reask(lock.train[0], "reflect", np.array([1]), []) == lock.train[0]
    prompt = Prompt("p", tokens=(1, 2, 3, 4, 5, 6, ASK), answer=(5, 3, 1))
    assert task.reask(prompt, "decompose", None, []).tokens == (STEPS, 1, 2, 3, 4, 5, 6, ASK)
    wrong = np.array([1, 2, 3, 4, 5, 6, PICK, 2, 4, 6, STOP])
    again = task.reask(prompt, "reflect", wrong, [("q", "a")])
    assert again.tokens == (1, 2, 3, 4, 5, 6, WRONG, 2, 4, 6, WRONG, ASK)
    assert again.answer is None
    assert task.reask(prompt, "reflect", np.array([1, 2]), []).tokens == (1, 2, 3, 4, 5, 6, WRONG, WRONG, ASK)
