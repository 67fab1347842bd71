"""What stages find in the world: the frozen reference, a memory that is saved, checks before any work."""

from dataclasses import dataclass, replace

import pytest
import torch

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.base import Request, Sampling
from anypolicy.errors import InputError
from anypolicy.families.language import fit, reference_of
from anypolicy.loops.describe import describe
from anypolicy.loops.group import GroupLoop
from anypolicy.stages.common import DropSolved, SumReward, VerifierReward
from anypolicy.stages.needs import Needs
from anypolicy.stages.rewards import own_rewards
from anypolicy.tasks.language.tabular_lock import TabularLock
from tests.helpers import lock_loop, segment


@dataclass(frozen=True)
class Counting:
    """A reward that counts its calls in the memory."""

    needs = Needs(reference=True)

    def check(self, world):
        if world.seed == 13:
            raise InputError("seed", 13, "use another")

    def __call__(self, world, groups):
        world.memory["calls"] = world.memory.get("calls", 0) + 1
        for t in (t for g in groups for t in g.trajectories):
            t.reward, t.rewards = float(world.memory["calls"]), {"calls": 0.0}


def counting():
    return replace(compose("grpo").recipe, reward=SumReward((VerifierReward(), Counting())))


def test_memory_lasts_is_saved_and_put_back():
    loop = lock_loop(counting())
    for _ in range(3):
        loop.step()
    state = loop.state()
    assert state["memory"]["calls"] == 3
    loop.step()
    assert state["memory"]["calls"] == 3
    other = lock_loop(counting())
    other.step()
    other.restore(state, {k: v.clone() for k, v in loop.updater.tensors().items()})
    other.step()
    assert other.state()["memory"]["calls"] == 4
    before = {k: v for k, v in state.items() if k != "memory"}
    other.restore(before, {k: v.clone() for k, v in loop.updater.tensors().items()})
    assert other.state()["memory"] == {}


def test_every_stage_may_ask_for_the_reference_and_its_engine_samples_from_the_first_weights():
    policy = lock_loop(compose("grpo").recipe).world.policy
    assert reference_of(compose("dapo").recipe, policy) is None
    assert reference_of(replace(compose("dapo").recipe, reward=counting().reward), policy) is not policy
    loop = lock_loop(counting())
    request = [Request(loop.world.policy.encode(loop.world.task.train[0]), 64)]

    def sample(engine):
        [answers] = engine.generate(request, Sampling(3), torch.Generator().manual_seed(0))
        return [s.response.tolist() for s, _ in answers]

    first = sample(loop.world.engine)
    assert sample(loop.world.reference) == first
    with torch.no_grad():
        loop.world.policy.module.logits.copy_(-loop.world.policy.module.logits)
    assert sample(loop.world.reference) == first
    assert sample(loop.world.engine) != first


def test_stages_refuse_a_world_before_any_work():
    with pytest.raises(InputError, match="use another"):
        lock_loop(counting(), seed=13)
    with pytest.raises(InputError, match="use another"):
        next(fit(counting(), TabularLock(13), TabularLock(13).make_policy(0), steps=1, prompts=2, seed=13))


def group(stage, correct, masked=True):
    trajectories = []
    for i, right in enumerate(correct):
        s = segment([1, 2])
        s.mask[:] = masked
        trajectories.append(Trajectory(f"{stage}/{i}", [s], reward=float(right), correct=bool(right)))
    return Group(stage, Prompt("p"), trajectories, stage)


def test_stages_of_a_rollout_are_logged_apart():
    log = describe([group("direct", [0, 0]), group("again", [1, 0]), group("again", [1, 1])], {})
    assert (log["accuracy/direct"], log["accuracy/again"], log["prompts/direct"], log["prompts/again"]) == (
        0,
        0.75,
        1,
        2,
    )
    assert not any(name.startswith(("accuracy/", "prompts/")) for name in describe([group("direct", [0, 1])], {}))


def test_generated_tokens_are_those_that_a_policy_sampled():
    one = group("direct", [0, 1], masked=False)
    one.trajectories[0].segments[0].version[0] = -1
    assert describe([one], {})["tokens/generated"] == 3


def test_responses_without_a_trained_token_count_in_no_selection():
    batch = from_groups([group("a", [1, 0]), group("b", [1, 0], masked=False), group("c", [1, 1])])
    for selection in (DropSolved(), DropSolved(all_wrong=True)):
        assert selection(batch, 2).groups.tolist() == [True, False, False]
        assert selection(batch, 2).short


def test_targets_of_dropped_groups_stay_and_those_of_carried_groups_come_later():
    class Teaching:
        """One wrong and one right response and a target for every prompt."""

        group_size = 2

        def __call__(self, world, prompts, generator):
            groups = []
            for p in prompts:
                made = group("direct", [0, int(p.id[5:]) % 2])
                for t in made.trajectories:
                    t.segments[0].context[:] = p.tokens[0]
                made.trajectories.append(Trajectory("t", [segment([3], list(p.tokens))], target=True))
                groups.append(replace(made, prompt=p))
            return groups

    @dataclass(frozen=True)
    class Known:
        needs = Needs(labels=True)

        def __call__(self, world, groups):
            pass

    for carry in (False, True):
        selection = Few(DropSolved(all_wrong=True, carry=carry))
        recipe = replace(compose("grpo").recipe, rollout=Teaching(), reward=Known(), selection=selection)
        world = lock_loop(compose("grpo").recipe).world
        loop = GroupLoop(recipe, world, prompts=8, micro_tokens=99, reference=None)
        batch, log = loop.collect()
        kept, carried = int(log["groups/kept"]), int(log["groups/carried"])
        assert kept == 1
        assert int(batch.target.any(1).sum()) == 8 - carried
        assert int(batch.mask.any(1).sum()) == 2 * kept
        assert (carried > 0) == carry


@dataclass(frozen=True)
class Few:
    """Another selection with a target of one group."""

    needs = Needs()
    inner: DropSolved
    max_rounds = 1

    def __call__(self, batch, target):
        return self.inner(batch, 1)


@pytest.mark.parametrize("value", [1.1e18, -1e308, float("inf"), float("nan")])
def test_rewards_that_no_float32_can_square_are_refused(value):
    assert own_rewards(lambda p, texts: [1e18])([(Prompt("p"), ["a"])]) == [[{"<lambda>": 1e18}]]
    with pytest.raises(InputError, match="at most 1e\\+18"):
        own_rewards(lambda p, texts: [value])([(Prompt("p"), ["a"])])
