"""Rollouts of whole episodes."""

import json

import pytest
import torch
from gymnasium.vector import AutoresetMode

from anypolicy.engines.environments import Environments
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OnPolicyRecipe
from anypolicy.loops.control import OnPolicyLoop
from anypolicy.tasks.control.environments import Space, load_environment
from tests.engines.test_environments import vector


class Watcher:
    """Acts with nothing and keeps what it is shown."""

    modules, optimisers, needs = {}, {}, Needs()

    def __init__(self):
        self.seen = []

    def act(self, observation, generator, *, explore):
        action = torch.rand(len(observation), 1, generator=generator)
        return Acted(action, action)

    def update(self, batches, generator):
        self.seen.append(batches[0])
        return {"length": float(batches[0].reward.shape[0])}


def loop_of(n, episodes, horizon=100):
    recipe = OnPolicyRecipe(lambda space, seed: Watcher(), horizon, 0.9, n, episodes=episodes)
    space = Space(1, 1, False, (-1.0,), (1.0,))
    return OnPolicyLoop(recipe, Watcher(), Environments(vector(AutoresetMode.SAME_STEP, n), 0), space, 0)


@pytest.mark.parametrize("n", [1, 2])
def test_episodes_are_whole_and_one_after_the_other(n):
    loop = loop_of(n, 2)
    loop.run(1)
    t = loop.learner.seen[0]
    assert t.observation.shape == (5 * n, 1, 1) and t.reward.shape == (5 * n, 1)
    assert t.reward.squeeze(1).tolist() == [1, 2, 3, 1, 2] * n
    assert t.terminated.squeeze(1).tolist() == [0, 0, 1, 0, 0] * n
    assert t.truncated.squeeze(1).tolist() == [0, 0, 0, 0, 1] * n
    assert t.next_observation.flatten().tolist()[:5] == [101, 102, 103, 201, 202]
    assert loop.steps == 5 * n and loop.environments.current.flatten().tolist() == [300] * n


def test_a_copy_that_is_ready_first_begins_anew_with_the_others():
    loop = loop_of(2, 1)
    loop.environments.vector.envs[0].unwrapped.episodes = 2  # its next step ends an even episode: one step earlier
    log = loop.run(1)
    assert loop.learner.seen[0].reward.squeeze(1).tolist() == [1, 2, 1, 2, 3]
    assert loop.environments.current.flatten().tolist() == [400, 200] and loop.environments.counts.tolist() == [0, 0]
    assert log["episode/count"] == 2 and log["episode/length"] == 2.5  # the spare episode's step is in no book


def test_long_episodes_are_cut_and_counted():
    loop = loop_of(1, 3, horizon=2)
    log = loop.run(1)
    t = loop.learner.seen[0]
    assert t.reward.squeeze(1).tolist() == [1, 2] * 3 and not t.terminated.any()
    assert t.truncated.squeeze(1).tolist() == [0, 1] * 3
    assert t.next_observation.flatten().tolist() == [101, 102, 201, 202, 301, 302]
    assert log["episode/count"] == 3 and log["episode/return"] == 3 and log["episode/success"] == 0


def test_what_goes_beyond_is_made_less_next_time():
    loop, logs = loop_of(1, 2), []
    for _ in range(6):
        logs.append(loop.run(2))
    assert loop.steps == 15 and [("length" in row) for row in logs] == [True, False, True, False, False, True]


def test_a_saved_state_goes_on_to_the_same_episodes():
    def make():
        task = load_environment("gym/CartPole-v1")
        recipe = OnPolicyRecipe(lambda space, seed: Watcher(), 15, 0.9, 2, episodes=2)
        return OnPolicyLoop(recipe, Watcher(), Environments(task.vector(2), 3), task.space, 0)

    whole = make()
    whole.run(100)
    state = json.loads(json.dumps(whole.state()))
    whole.run(100)
    other = make()
    assert other.restore(state, {"learner": {}})
    other.run(100)
    for a, b in zip(whole.learner.seen[-len(other.learner.seen) :], other.learner.seen, strict=True):
        assert torch.equal(a.observation, b.observation) and torch.equal(a.truncated, b.truncated)
