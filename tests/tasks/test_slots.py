"""Slots: the task's own numbers, and the base that it starts from."""

import math

import numpy as np
import pytest
import torch

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group
from anypolicy.errors import InputError
from anypolicy.stages.targets import reference_target
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.slots import ROWS, VALUES, Slots


def test_prompts_are_pictures_of_their_answers():
    task = load_task("slots:items=20,heldout=5,noise=0", seed=2)
    assert (len(task.train), len(task.heldout)) == (20, 5)
    for p in (*task.train, *task.heldout):
        [picture] = p.media["images"]
        assert picture.shape == (6, 8)
        assert np.array_equal(picture, task.table[torch.arange(ROWS), torch.tensor(p.answer)].numpy())
        assert p.reference == tuple(VALUES + v for v in p.answer)
    again = load_task("slots:items=20,heldout=5,noise=0", seed=2)
    assert [p.answer for p in again.train] == [p.answer for p in task.train]
    assert [p.answer for p in load_task("slots:items=20,noise=0", seed=3).train] != [p.answer for p in task.train]


def test_both_wordings_are_right():
    task = Slots(0, items=2, heldout=1)
    p = task.train[0]
    truth = np.array(p.answer)
    mixed = truth + 6 * (np.arange(6) % 2)
    assert task.score(p, truth, "").correct
    assert task.score(p, np.array(p.reference), "").correct
    assert task.score(p, mixed, "").reward == 1
    mixed[2] = (truth[2] + 1) % 6
    mixed[3] = 12
    assert task.score(p, mixed, "").reward == pytest.approx(4 / 6)
    assert not task.score(p, mixed, "").correct


@pytest.mark.parametrize("wording", [2.0, 7.0])
def test_the_base_says_the_usual_and_hardly_ever_the_experts_wording(wording):
    task = Slots(0, items=200, heldout=200, wording=wording)
    policy = task.make_policy(0)
    floor = 0.4 * 5 / 6
    assert floor - 0.05 < task.probe(policy)["wrong"] < floor + 0.12
    batch = from_groups([Group(p.id, p, [reference_target(policy, p)]) for p in task.train])
    logp = policy.score(batch, 1.0).logp.mean()
    assert -wording - 3 < float(logp) < math.log(0.6) - wording + 0.5
    again = task.make_policy(0)
    assert all(torch.equal(a, b) for a, b in zip(policy.module.parameters(), again.module.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{"items": 0}, {"heldout": 0}, {"noise": -1.0}, {"usual": 1.5}, {"wording": -1.0}])
def test_bad_settings(settings):
    with pytest.raises(InputError, match=f"slots.{next(iter(settings))}"):
        Slots(0, **settings)
