"""Chunks of actions: rewards and ends inside them, books of episodes, demonstrations, what cannot be chunked."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from anypolicy.data.replay import chunked
from anypolicy.data.transitions import Transitions
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError
from anypolicy.families import control
from anypolicy.learners.recipe import OffPolicyRecipe
from anypolicy.loops.control import transitions
from anypolicy.tasks.control.chunks import Chunks, in_chunks
from anypolicy.tasks.control.environments import load_environment


class Paying(gymnasium.Env):
    """Pays what `rewards` says at each step of the episode, shows the step and the last action; the goal is reached in
    the step `goal` alone."""

    observation_space, action_space = Box(-np.inf, np.inf, (2,), np.float32), Box(-2, 2, (1,), np.float32)

    def __init__(self, rewards=(0.0, 0.0, 1.0, 1.0), ends="terminated", goal=None):
        self.rewards, self.ends, self.goal, self.t = rewards, ends, goal, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.array([0, 0], np.float32), {}

    def step(self, action):
        reward, self.t = self.rewards[self.t], self.t + 1
        over = self.t == len(self.rewards)
        info = {} if self.goal is None else {"is_success": self.t == self.goal}
        seen = np.array([self.t, action[0]], np.float32)
        return seen, reward, over and self.ends == "terminated", over and self.ends == "truncated", info


def acted(*unit):
    return torch.tensor([unit]).float()


def vector(mode=AutoresetMode.SAME_STEP, chunk=4, discount=0.99, copies=1, **settings):
    made = SyncVectorEnv([lambda: Chunks(Paying(**settings), chunk, discount)] * copies, autoreset_mode=mode)
    return Environments(made, 0)


def test_rewards_are_discounted_inside_and_the_rest_counts_less():
    s = vector(rewards=(0, 0, 1, 1, 5)).step(acted(-1, -0.5, 0.5, 1))
    t = transitions(s, acted(0, 0, 0, 0), lambda x: x, 0.99)
    assert float(t.reward) == pytest.approx(1.950399, abs=1e-6) and float(t.continues) == pytest.approx(0.99**4)
    assert s.next_observation.tolist() == [[4, 2]] and s.took.tolist() == [4]


@pytest.mark.parametrize(("ends", "continues"), [("terminated", 0.0), ("truncated", 0.99**3)])
def test_an_end_inside_a_chunk_cuts_it(ends, continues):
    envs = vector(rewards=(0, 0, 1), ends=ends)
    s = envs.step(acted(-1, -0.5, 0.5, 1))
    t = transitions(s, acted(0, 0, 0, 0), lambda x: x, 0.99)
    assert float(t.reward) == pytest.approx(0.9801) and float(t.continues) == pytest.approx(continues)
    assert float(t.discount) == pytest.approx(0.99**3) and s.took.tolist() == [3]
    assert s.next_observation.tolist() == [[3, 1]] and envs.current.tolist() == [[0, 0]]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_books_count_steps_and_rewards_as_they_were_paid(mode):
    envs, real = vector(mode, rewards=(1, 2, 3, 4, 5), chunk=2, discount=0.5, copies=2, goal=1), 0
    while real < 6:
        s = envs.step(acted(0, 0).repeat(2, 1))
        real += int(s.real[0])
        if s.real[0]:
            assert float(s.reward[0]) in (1 + 0.5 * 2, 3 + 0.5 * 4, 5)
    ended = envs.take()
    assert ended.returns == [15] * 4 and ended.lengths == [5] * 4 and ended.successes == [1] * 4


def test_a_chunk_is_the_same_actions_one_by_one():
    """Online chunks, and those of a recorded episode that begin where they do, are the same transitions."""
    task = load_environment("pointmaze-sparse:max_steps=23")
    wide, h, discount = in_chunks(task, 5, 0.9), 5, 0.9
    assert (wide.space.actions, wide.space.low, wide.horizon) == (10, (-1.0,) * 10, 23)
    one, many = (Environments(t.vector(1), 7) for t in (task, wide))
    rng, singles, rows = torch.Generator().manual_seed(0), [], []
    for _ in range(5):
        action = torch.rand(1, 10, generator=rng) * 2 - 1
        rows.append(transitions(many.step(action), action, lambda x: x, discount))
        for part in action.split(2, 1):
            if len(singles) < 23:
                singles.append(transitions(one.step(part), part, lambda x: x, discount))
    steps = Transitions(*(torch.cat([getattr(s, f.name) for s in singles]) for f in dataclasses.fields(Transitions)))
    joined = chunked(steps, h, discount)
    assert len(joined) == 23
    for i, row in enumerate(rows):
        for f in dataclasses.fields(Transitions):
            a, b = getattr(row, f.name)[0], getattr(joined, f.name)[h * i]
            if f.name == "action" and i == 4:  # three steps were executed
                a, b = a[:6], b[:6]
            torch.testing.assert_close(a, b, msg=f"{f.name} of chunk {i}")
    assert joined.action[-1].tolist() == steps.action[-1].tolist() * 5
    assert joined.action[20].tolist() == [*steps.action[20:].flatten().tolist(), *steps.action[-1].tolist() * 2]
    assert rows[4].truncated.tolist() == [1] and float(rows[4].discount) == pytest.approx(0.9**3)


def test_a_chunked_episode_goes_on_bit_for_bit():
    task = in_chunks(load_environment("reacher-sparse:max_steps=10"), 4, 0.95)
    one, two, rng = Environments(task.vector(2), 1), Environments(task.vector(2), 9), torch.Generator().manual_seed(0)
    acts = [torch.rand(2, 8, generator=rng) * 2 - 1 for _ in range(9)]
    for a in acts[:4]:
        one.step(a)
    two.restore(one.state())
    for a in acts[4:]:
        s, t = one.step(a), two.step(a)
        assert torch.equal(s.next_observation, t.next_observation) and torch.equal(s.took, t.took)
    assert one.take() == two.take()


def test_what_cannot_be_chunked():
    task = load_environment("gym/Pendulum-v1")
    assert in_chunks(task, 1, 0.9) is task and task.one_by_one() is task
    assert in_chunks(task, 3, 0.9).one_by_one() is task
    with pytest.raises(InputError, match="chunk"):
        in_chunks(task, 0, 0.9)
    with pytest.raises(InputError, match="has choices"):
        in_chunks(load_environment("gym/CartPole-v1"), 2, 0.9)
    recipe = OffPolicyRecipe(lambda space, seed: None, n_step=3, chunk=2)
    with pytest.raises(InputError, match="n_step"):
        control.task_of(recipe, "gym/Pendulum-v1")
