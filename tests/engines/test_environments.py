"""Environments: auto-reset undone once, books of episodes, snapshots, bad environments."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from anypolicy.engines.environments import EnvironmentFailed, Environments
from anypolicy.engines.snapshots import put_back, snapshot
from anypolicy.errors import InputError
from anypolicy.tasks.control.environments import load_environment


class Counter(gymnasium.Env):
    """Shows the step of the episode; ends by itself at 3, or is cut at 2 in every other episode."""

    observation_space, action_space = Box(-np.inf, np.inf, (1,), np.float32), Box(-1, 1, (1,), np.float32)

    def __init__(self, broken=None):
        self.episodes, self.t, self.broken = 0, 0, broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes, self.t = self.episodes + 1, 0
        return self.seen(), {}

    def seen(self):
        return np.array([100 * self.episodes + self.t], np.float32)

    def step(self, action):
        self.t += 1
        over = self.t == 3
        cut = self.t == 2 and self.episodes % 2 == 0
        observation, reward = self.seen(), float(self.t)
        if self.broken == "nan":
            observation = observation * np.nan
        if self.broken == "shape":
            observation = np.zeros(2, np.float32)
        if self.broken == "reward":
            reward = float("inf")
        return observation, reward, over, cut, {"is_success": over}


def vector(mode, n=2, **settings):
    return SyncVectorEnv([lambda: Counter(**settings)] * n, autoreset_mode=mode)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_both_auto_reset_modes_give_the_same_transitions(mode):
    envs, got = Environments(vector(mode), 0), []
    while len(got) < 10:
        s = envs.step(torch.zeros(2, 1))
        if s.real[0]:
            got.append((float(s.observation[0]), float(s.reward[0]), float(s.next_observation[0]),
                        float(s.terminated[0]), float(s.truncated[0])))  # fmt: skip
    first = [(100, 1, 101, 0, 0), (101, 2, 102, 0, 0), (102, 3, 103, 1, 0)]
    second = [(200, 1, 201, 0, 0), (201, 2, 202, 0, 1)]
    third = [(300 + a, r, 300 + b, d, u) for (a, r, b, d, u) in [(0, 1, 1, 0, 0), (1, 2, 2, 0, 0), (2, 3, 3, 1, 0)]]
    assert got[:8] == first + second + third
    ended = envs.take()
    assert ended.returns[:6:2] == [6, 3, 6] and ended.lengths[:6:2] == [3, 2, 3] and ended.successes[:6:2] == [1, 0, 1]
    assert envs.take().means() == {"episode/count": 0.0}


def test_an_environment_that_does_not_reset_is_refused():
    with pytest.raises(InputError, match="autoreset_mode"):
        Environments(vector(AutoresetMode.DISABLED), 0)


@pytest.mark.parametrize(("broken", "match"), [("nan", "finite"), ("reward", "one finite number"), ("shape", "shape")])
def test_what_an_environment_must_not_give(broken, match):
    envs = Environments(vector(AutoresetMode.SAME_STEP, broken=broken), 0)
    with pytest.raises(InputError, match=match):
        envs.step(torch.zeros(2, 1))


def test_a_policy_that_has_diverged_is_told_apart_from_an_environment_that_fails():
    envs = Environments(vector(AutoresetMode.SAME_STEP), 0)
    with pytest.raises(InputError, match="the policy has diverged"):
        envs.step(torch.tensor([[0.0], [float("nan")]]))
    assert not envs.failed
    envs = Environments(vector(AutoresetMode.SAME_STEP, broken="shape"), 0)
    with pytest.raises(EnvironmentFailed, match="ValueError"):
        envs.step(torch.zeros(2, 1))
    assert envs.failed and envs.state() is None


def test_actions_are_scaled_to_the_box_and_clipped():
    task = load_environment("gym/Pendulum-v1")
    envs = Environments(task.vector(3), 0)
    got = envs.native(torch.tensor([[-1.0], [0.5], [7.0]]))
    np.testing.assert_allclose(got, [[-2.0], [1.0], [2.0]])
    assert (task.space.observations, task.space.actions, task.space.discrete, task.horizon) == (3, 1, False, 200)
    assert task.space.low == (-2.0,)
    cart = load_environment("gym/CartPole-v1")
    assert cart.space.discrete and cart.space.actions == 2 and cart.space.action_width == 1
    assert Environments(cart.vector(1), 0).native(torch.tensor([[1.0]])).tolist() == [1]


IDS = ["Pendulum-v1", "CartPole-v1", "MountainCarContinuous-v0", "Acrobot-v1", "HalfCheetah-v5", "Hopper-v5",
       "Humanoid-v5", "Reacher-v5", "Ant-v5"]  # fmt: skip


@pytest.mark.parametrize("name", IDS)
def test_an_episode_goes_on_bit_for_bit(name):
    task = load_environment(f"gym/{name}:max_steps=40")
    one = Environments(task.vector(1), 3)
    rng = np.random.default_rng(0)
    width = task.space.action_width
    acts = [torch.from_numpy(rng.integers(0, 2, (1, width)) if task.space.discrete else rng.uniform(-1, 1, (1, width)))
            .float() for _ in range(90)]  # fmt: skip
    for a in acts[:31]:
        one.step(a)
    state = one.state()
    two = Environments(task.vector(1), 99)
    two.step(acts[0])
    two.restore(state)
    for a in acts[31:]:
        s, t = one.step(a), two.step(a)
        assert torch.equal(s.next_observation, t.next_observation) and torch.equal(s.reward, t.reward)
        assert torch.equal(s.terminated, t.terminated) and torch.equal(s.truncated, t.truncated)
        assert torch.equal(one.current, two.current)
    assert one.take() == two.take()


def test_an_environment_of_unknown_kind_has_no_snapshot():
    assert snapshot(Counter()) is None
    assert Environments(vector(AutoresetMode.SAME_STEP), 0).state() is None
    cart = gymnasium.make("CartPole-v1")
    cart.reset(seed=0)
    saved = snapshot(cart)
    before = cart.step(0)[0]
    put_back(cart, saved)
    assert np.array_equal(cart.step(0)[0], before)


def test_text_is_no_state():
    one, two = gymnasium.make("CartPole-v1"), gymnasium.make("CartPole-v1")
    for env, path in ((one, "/tmp/one.xml"), (two, "/tmp/two.xml")):
        env.reset(seed=0)
        env.unwrapped.model_file = path
    saved = snapshot(one)
    assert "/tmp" not in json.dumps(saved)
    put_back(two, saved)
    assert two.unwrapped.model_file == "/tmp/two.xml"


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("gym/Pendulum-v2", "did you mean"), ("gymm/Pendulum-v1", "gym/…"), ("gym/Pendulum-v1:reward_scale=x", "number"),
        ("gym/Pendulum-v1:gravity=9.81,nonsense=1", "cannot be made"), ("tabular-lock", "gym/…"),
    ],
)  # fmt: skip
def test_environments_that_cannot_be_made(spec, match):
    with pytest.raises(InputError, match=match):
        load_environment(spec)


def test_action_spaces_that_no_controller_knows(monkeypatch):
    class Unbounded(Counter):
        action_space = Box(-np.inf, np.inf, (1,), np.float32)

    class Mixed(Counter):
        action_space = gymnasium.spaces.Tuple((Discrete(2), Box(-1, 1, (1,))))

    for kind, word in ((Unbounded, "bounded"), (Mixed, "one box or discrete")):
        gymnasium.register("Odd-v0", entry_point=lambda kind=kind: kind())
        try:
            with pytest.raises(InputError, match=word):
                load_environment("gym/Odd-v0")
        finally:
            del gymnasium.registry["Odd-v0"]


def test_goals_are_part_of_the_observation_and_reached_ones_are_not():
    maze = load_environment("gym/PointMaze_UMaze-v3")
    assert maze.space.observations == 6
    grid = load_environment("gym/MiniGrid-Empty-5x5-v0")
    assert grid.space.observations == 147 and grid.space.discrete
    lake = load_environment("gym/FrozenLake-v1")
    assert lake.space.observations == 16


def test_pictures_come_first_and_the_space_says_so():
    task = load_environment("tip:images=true")
    assert task.space.images == ((32, 32, 3),)
    assert (task.space.pixels, task.space.observations) == (3072, 3072 + 18)
    env = task.make()
    seen, _ = env.reset(seed=0)
    inner = env.unwrapped
    np.testing.assert_array_equal(seen[:3072], inner.picture().ravel())
    assert seen.dtype == np.float32 and env.observation_space.contains(seen)
    assert load_environment("tip").space.images == ()
