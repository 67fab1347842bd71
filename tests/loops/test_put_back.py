"""What a checkpoint holds is put back as it was, or refused where it is read."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from anypolicy.data.replay import NStep
from anypolicy.errors import InputError
from anypolicy.learners.base import load_tensors, tensors_of
from anypolicy.loops.diffusion import Pool
from anypolicy.methods.language.vade import ThompsonSampler
from anypolicy.methods.preference.online_dpo import online_dpo
from anypolicy.optimisers.step import adam, apply
from anypolicy.optimisers.updater import Updater
from anypolicy.parts.moments import Moments
from anypolicy.stages.recipe import Optimiser
from anypolicy.stages.reference import CheckpointPool
from tests.helpers import lock_loop

WRONG = {
    "missing": lambda name, x: {k: v for k, v in x.items() if k != name},
    "type": lambda name, x: x | {name: x[name].int()},
    "shape": lambda name, x: x | {name: x[name][None]},
}


def updater(kind: str = "adamw") -> Updater:
    """One that has taken a step on three weights."""
    weights = torch.nn.Parameter(torch.ones(3))
    made = Updater(Optimiser(kind=kind, lr=0.1), {"policy": ([weights], 0.1)})  # type: ignore[arg-type]
    weights.sum().backward()
    made.accumulate()
    made.step()
    return made


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("how", WRONG)
def test_moments_that_are_not_the_optimisers_are_refused(how, name):
    one = updater()
    with pytest.raises(ValueError, match=r"moments|step|exp_avg"):
        updater().restore(WRONG[how](f"policy.0.{name}", one.tensors()), 1)


def test_moments_of_another_optimiser_and_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="moments exp_avg"):
        updater("sgd").restore(updater().tensors(), 1)
    with pytest.raises(ValueError, match="weight of shape"):
        updater().restore(updater().tensors() | {"policy.0.weight": torch.ones(1)}, 1)
    two = updater("sgd")
    two.restore(updater("sgd").tensors(), 1)


@dataclass
class Learns:
    """A network and its optimiser."""

    modules: dict[str, Any] = field(default_factory=lambda: {"net": torch.nn.Linear(2, 1)})
    optimisers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        net = self.modules["net"]
        self.optimisers["net"] = adam(net.parameters(), 0.1)
        apply(self.optimisers["net"], net(torch.ones(1, 2)).sum())


@pytest.mark.parametrize("how", WRONG)
def test_moments_of_a_controller_are_its_own(how):
    one = Learns()
    load_tensors(Learns(), tensors_of(one))
    with pytest.raises(ValueError, match=r"moments|exp_avg"):
        load_tensors(Learns(), WRONG[how]("net/0/exp_avg", tensors_of(one)))


def test_a_pool_holds_copies_of_its_model():
    pool, other = Pool(3), Pool(3)
    for p in (pool, other):
        p.add(torch.nn.Linear(2, 1))
    other.restore(pool.tensors())
    assert torch.equal(other[0]["weight"], pool[0]["weight"])
    for wrong in ({"0/weight": torch.zeros(1, 2)}, {"0/weight": torch.zeros(1, 2), "0/bias": torch.zeros(2)}):
        with pytest.raises(ValueError, match="another model"):
            other.restore(wrong)


def test_a_pool_of_references_holds_its_policy():
    recipe = replace(online_dpo(), reference=CheckpointPool(2, 3))
    one, two = lock_loop(recipe), lock_loop(recipe)
    one.step()
    state, tensors = one.state(), one.tensors()
    with pytest.raises(ValueError, match="another model"):
        two.restore(state, tensors | {"reference.pool.0.0": torch.zeros(1)})
    two.restore(state | {"reference": {"pool": 0, "known": []}}, tensors)
    with pytest.raises(InputError, match="pool is empty"):
        two.step()


def test_counts_are_one_a_prompt_and_not_negative():
    order = ThompsonSampler().begin(3, 0)
    good = order.state()
    order.restore(good)
    for wrong in ({"alpha": [0.0]}, {"visits": [[0, 0, 0]]}, {"beta": [0.0, -1.0, 0.0]}, {"alpha": ["a", "b", "c"]}):
        with pytest.raises(ValueError, match="counts"):
            ThompsonSampler().begin(3, 0).restore(good | wrong)


def test_steps_wait_in_as_many_environments_as_there_are():
    NStep(2, 0.9, 2).restore(NStep(2, 0.9, 2).state(), 1, 1)
    with pytest.raises(ValueError, match="3 environments, the run has 2"):
        NStep(2, 0.9, 2).restore(NStep(2, 0.9, 3).state(), 1, 1)


@pytest.mark.parametrize("wrong", [None, 3, [1], [1, 0.5, None], [1, float("nan"), 0], [-1, 0.5, 0], [1, 0.5, -1]])
def test_moments_of_rewards_are_three_numbers(wrong):
    assert Moments.kept([]) == Moments() and Moments.kept([2, 0.5, 1.0]) == Moments(2, 0.5, 1.0)
    with pytest.raises(InputError, match="checkpoint"):
        Moments.kept(wrong)


def test_what_a_stage_remembers_is_of_its_kind():
    world = lock_loop(online_dpo()).world
    known = world.remembered("means", dict[str, float], {})
    known["a"] = 0.5
    assert world.remembered("means", dict[str, float], {}) is known
    world.memory["means"] = {"a": "x"}
    with pytest.raises(InputError, match="means"):
        world.remembered("means", dict[str, float], {})
