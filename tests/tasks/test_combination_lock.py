"""The combination lock: sizes, observations, probabilities, rewards, behaviour data, exact snapshots."""

import numpy as np
import pytest
import torch

from anypolicy.data.demonstrations import load_episodes
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError
from anypolicy.tasks.control.combination_lock import Lock, behaviour_data, choice_probabilities, choose, main
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import load_environment

HORIZONS = {3: (0.342600, 0.375470), 5: (0.370002, 0.401502), 10: (0.387846, 0.418454), 30: (0.396139, 0.426332),
            50: (0.395113, 0.425358)}  # fmt: skip
"""horizon → success and mean return of the behaviour policy"""


def test_width_of_observations():
    assert [Lock(h, 0, 0.1).width for h in (5, 12, 13, 28, 30, 50, 60)] == [16, 16, 32, 32, 64, 64, 64]


def test_an_observation_without_noise():
    seen = Lock(5, 0, 0.0).observe(np.array([1]), 2, np.random.default_rng(0))
    assert seen[0].tolist() == [2, -2, 2, -2, 0, 0, 0, 0, 2, -2, 2, -2, 0, 0, 0, 0]


def test_noise_stands_on_the_first_numbers_only():
    lock, rng = Lock(5, 0, 0.1), np.random.default_rng(0)
    g = lock.observe(np.full(20_000, 2), 5, rng) @ lock.matrix / lock.width
    clean = np.zeros(16)
    clean[[2, 8]] = 1
    np.testing.assert_allclose(g.mean(0), clean, atol=0.004)
    np.testing.assert_allclose(g.std(0), [0.1] * 8 + [0.0] * 8, atol=0.002)


def test_probabilities_of_choices():
    p = choice_probabilities(np.array([0, 0.1, 0.2, -0.3]))
    np.testing.assert_allclose(p, [0.089629, 0.243636, 0.662272, 0.004462], atol=1e-6)
    assert choice_probabilities(np.eye(10)[3])[3] == pytest.approx(0.999592, abs=1e-6)
    assert choice_probabilities(np.array([500.0, -500.0])).tolist() == [1, 0]
    rng = np.random.default_rng(0)
    mean = choice_probabilities(rng.random((200_000, 10))).mean(0)
    np.testing.assert_allclose(mean, np.full(10, 0.1), atol=0.002)


def test_choices_follow_their_probabilities():
    p, rng = np.array([0.5, 0.0, 0.3, 0.2]), np.random.default_rng(0)
    drawn = choose(np.tile(p, (50_000, 1)), rng.random(50_000))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 50_000, p, atol=0.01)
    assert choose(p[None], np.array([0.5])).tolist() == [2]
    assert choose(p[None], np.array([np.nextafter(1, 0)])).tolist() == [3]


@pytest.mark.parametrize("horizon", HORIZONS)
def test_exact_return_of_the_behaviour_policy(horizon):
    right = choice_probabilities(np.eye(10)[0])[0]
    q = ((1 - 1 / horizon) * right + 0.1 / horizon) ** horizon
    assert (q, q + 0.05 * (1 - q)) == pytest.approx(HORIZONS[horizon], abs=1e-6)


@pytest.mark.parametrize("horizon", [3, 5])
def test_the_data_have_that_return(horizon):
    data = list(behaviour_data(Lock(horizon, 4, 0.1), 20_000, 0))
    paid = torch.stack([e.reward for e in data])
    success, mean = HORIZONS[horizon]
    assert float(paid[:, -1].mean()) == pytest.approx(mean, abs=0.015)
    assert float((paid[:, -1] == 1).float().mean()) == pytest.approx(success, abs=0.015)
    assert (paid[:, :-1] == 0).all() and set(paid[:, -1].unique().tolist()) == {0.0, float(np.float32(0.1)), 1.0}
    assert data[0].observation[:, -1].tolist() == list(range(horizon + 1))
    assert data[0].terminated.tolist() == [0] * (horizon - 1) + [1] and not data[0].truncated.any()


def test_random_data_fall():
    paid = torch.stack([e.reward[-1] for e in behaviour_data(Lock(5, 0, 0.1), 20_000, 0, "random")])
    assert float(paid.mean()) == pytest.approx(0.05, abs=0.004)
    assert float((paid == 1).float().mean()) < 1e-3


def test_dynamics():
    lock, rng, n = Lock(3, 1, 0.1), np.random.default_rng(0), 20_000
    begun = lock.begin(n, rng)
    assert begun.mean() == pytest.approx(0.5, abs=0.02) and set(begun) == {0, 1}
    sure = 10 * np.eye(10)
    for state in (0, 1):
        rows = np.full(n, state)
        after, reward, good = lock.advance(rows, 1, sure[lock.right[state, 1]][None].repeat(n, 0), rng)
        assert good.all() and not reward.any() and after.mean() == pytest.approx(0.5, abs=0.02)
        wrong = sure[(lock.right[state, 1] + 1) % 10][None].repeat(n, 0)
        after, reward, good = lock.advance(rows, 1, wrong, rng)
        assert (after == 2).all() and not good.any() and not reward.any()
        _, reward, _ = lock.advance(rows, 2, sure[lock.right[state, 2]][None].repeat(n, 0), rng)
        assert (reward == 1).all()
    for right in lock.right[:, 2]:
        after, reward, good = lock.advance(np.full(n, 2), 2, sure[right][None].repeat(n, 0), rng)
        assert (after == 2).all() and not good.any()
        assert reward.mean() == pytest.approx(0.05, abs=0.003) and set(reward) == {0.0, 0.1}


def test_one_combination_is_one_lock():
    assert np.array_equal(Lock(5, 3, 0.1).right, Lock(5, 3, 0.0).right)
    assert not np.array_equal(Lock(5, 3, 0.1).right, Lock(5, 4, 0.1).right)


def test_the_environment_says_the_step_and_goes_on_from_a_snapshot():
    task = load_environment("combination-lock:horizon=4,combination=2")
    assert (task.space.observations, task.space.actions, task.space.steps, task.horizon) == (17 - 8, 10, 4, 4)
    one, two = Environments(task.vector(3), 0), Environments(task.vector(3), 99)
    rng = torch.Generator().manual_seed(0)
    actions = [torch.rand(3, 10, generator=rng) * 2 - 1 for _ in range(11)]
    for a in actions[:6]:
        one.step(a)
    assert one.current[:, -1].tolist() == [2, 2, 2]
    two.restore(one.state())
    for a in actions[6:]:
        x, y = one.step(a), two.step(a)
        for field in ("observation", "reward", "next_observation", "terminated"):
            assert torch.equal(getattr(x, field), getattr(y, field))
    assert one.take().means()["episode/length"] == 4


def test_sure_actions_open_it():
    task = load_environment("combination-lock:horizon=3,combination=1,noise=0.0")
    lock, env = Lock(3, 1, 0.0), Environments(task.vector(20), 0)
    for step in range(3):
        state = (env.current[:, :-1].double() @ torch.from_numpy(lock.matrix) / lock.width)[:, :3].argmax(1)
        best = np.eye(10)[lock.right[state.numpy(), step]]
        env.step(torch.from_numpy(best).float())
    assert env.take().means() == {"episode/count": 20, "episode/return": 1, "episode/length": 3, "episode/success": 1}


def test_a_film_shows_where_it_is():
    env = load_environment("combination-lock:horizon=3").make("rgb_array")
    env.reset(seed=0)
    for step in range(3):
        bright = np.argwhere((env.render() == (250, 220, 80)).all(2)) // 32
        assert set(map(tuple, bright)) == {(env.unwrapped.state[0], step)}
        env.step(np.zeros(10, np.float32))
    assert env.render().shape == (96, 128, 3)


def test_the_step_is_appended_where_asked_for():
    plain, timed = (load_environment(f"gym/Pendulum-v1:max_steps=7{more}") for more in ("", ",time=true"))
    assert plain.space.steps is None and timed.space.steps == 7
    assert timed.space.observations == plain.space.observations + 1
    env = Environments(timed.vector(1), 0)
    seen = [float(env.step(torch.zeros(1, 1)).next_observation[0, -1]) for _ in range(9)]
    assert seen == [1, 2, 3, 4, 5, 6, 7, 1, 2]
    two = Environments(timed.vector(1), 5)
    two.restore(env.state())
    assert float(two.step(torch.zeros(1, 1)).next_observation[0, -1]) == 3


def test_units_of_actions():
    space = load_environment("gym/Pendulum-v1").space
    unit = torch.tensor([[-1.0], [0.25], [3.0]], dtype=torch.float64)
    assert space.native(unit).squeeze(1).tolist() == [-2, 0.5, 6]
    assert torch.equal(space.unit(space.native(unit)), unit)


def test_data_are_written_and_read(tmp_path):
    out = tmp_path / "lock.safetensors"
    main([str(out), "--horizon", "4", "--combination", "2", "--episodes", "7", "--seed", "5"])
    want = list(behaviour_data(Lock(4, 2, 0.1), 7, 5))
    for a, b in zip(want, load_episodes(out), strict=True):
        assert torch.equal(a.observation, b.observation) and torch.equal(a.action, b.action)
    task = load_environment("combination-lock:horizon=4,combination=2")
    assert len(load_demonstrations(str(out), task)) == 7
    native = task.space.native(want[0].action)
    assert native.min() >= -1e-6 and native.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("spec", "field"),
    [("horizon=0", "combination-lock.horizon"), ("horizon=4093", "combination-lock.horizon"), ("noise=-1.0", "combination-lock.noise"),
     ("combination=-1", "combination-lock.combination"), ("horizn=5", "combination-lock.horizn")],
)  # fmt: skip
def test_settings_that_make_no_lock(spec, field):
    with pytest.raises(InputError, match=field):
        load_environment(f"combination-lock:{spec}")


def test_a_file_name_that_cannot_be_read_later(tmp_path):
    with pytest.raises(SystemExit, match="safetensors"):
        main([str(tmp_path / "lock.npz")])
    with pytest.raises(SystemExit, match="episodes"):
        main([str(tmp_path / "lock.safetensors"), "--episodes", "0"])
