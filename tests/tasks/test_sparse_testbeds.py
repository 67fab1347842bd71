"""Sparse Reacher, PointMaze and FetchReach: rewards, ends, successes, demonstrators, exact continuation."""

import numpy as np
import pytest
import torch

from anypolicy.data.demonstrations import load_episodes, save_episodes
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError
from anypolicy.tasks.control import fetchreach_sparse, pointmaze_sparse, reacher_sparse
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import load_environment

SHAPES = {"reacher-sparse": (10, 2, 50), "pointmaze-sparse": (6, 2, 150), "fetchreach-sparse": (13, 4, 50)}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_settings(name):
    task = load_environment(name)
    assert (task.space.observations, task.space.actions, task.horizon) == SHAPES[name]
    assert set(task.space.low) == {-1.0} and set(task.space.high) == {1.0}
    assert load_environment(f"{name}:max_steps=7").horizon == 7
    with pytest.raises(InputError, match="radius" if name == "reacher-sparse" else "max_steps"):
        load_environment(f"{name}:nonsense=1")


@pytest.mark.parametrize("name", SHAPES)
def test_an_episode_goes_on_bit_for_bit(name):
    task = load_environment(f"{name}:max_steps=20")
    one, two = Environments(task.vector(2), 3), Environments(task.vector(2), 99)
    rng = np.random.default_rng(0)
    acts = [torch.from_numpy(rng.uniform(-1, 1, (2, task.space.actions))).float() for _ in range(60)]
    for a in acts[:27]:
        one.step(a)
    two.step(acts[0])
    two.restore(one.state())
    for a in acts[27:]:
        s, t = one.step(a), two.step(a)
        assert torch.equal(s.next_observation, t.next_observation) and torch.equal(s.reward, t.reward)
        assert torch.equal(s.terminated, t.terminated) and torch.equal(s.truncated, t.truncated)
        assert torch.equal(one.current, two.current)
    assert one.take() == two.take()


def test_reacher_pays_inside_the_radius_and_succeeds_at_the_end():
    env = reacher_sparse.reacher_sparse(radius=0.15, max_steps=6)
    raw = env.env
    seen, _ = env.reset(seed=1)
    paid = []
    for t in range(6):
        o, reward, terminated, truncated, info = env.step(np.array([0.3, -0.3]))
        inner = raw.unwrapped._get_obs()
        np.testing.assert_allclose(o, inner * [1, 1, 1, 1, 5, 5, 0.1, 0.1, 5, 5], rtol=1e-6)
        assert reward == float(np.linalg.norm(inner[8:]) < 0.15) and not terminated and truncated == (t == 5)
        assert info["success"] == (truncated and reward == 1)
        paid.append(reward)
    assert seen.shape == (10,) and set(paid) <= {0.0, 1.0}


def test_reacher_demonstrations_are_of_two_kinds():
    episodes = reacher_sparse.demonstrations(40, seed=0)
    last = np.array([float(torch.linalg.vector_norm(e.observation[-1, 8:])) / 5 for e in episodes])
    good = np.array([bool(e.reward[-1]) for e in episodes])
    assert 10 <= good.sum() <= 30
    assert last[good].max() < 0.02 and np.median(last[good]) < 0.01 and last[~good].min() > 0.025
    assert all(len(e.reward) == 50 and e.truncated.sum() == e.truncated[-1] == 1 for e in episodes)
    assert all(bool(e.reward[-1]) for e in reacher_sparse.demonstrations(5, bad=0.0))
    missed = [not e.reward[-1] for e in reacher_sparse.demonstrations(20, bad=1.0)]
    assert sum(missed) >= 19  # where the arm does not reach the point beside the target it may come near the target


def test_the_arms_posture_reaches_the_target():
    for elbow in (1, -1):
        first, second = reacher_sparse.posture(np.array([0.07, -0.11]), elbow)
        tip = 0.1 * np.array([np.cos(first), np.sin(first)]) + 0.11 * np.array(
            [np.cos(first + second), np.sin(first + second)]
        )
        np.testing.assert_allclose(tip, [0.07, -0.11], atol=1e-12)
        assert np.sign(second) == elbow


def test_pointmaze_demonstrations_are_of_two_kinds():
    episodes = pointmaze_sparse.demonstrations(40, seed=0)
    won = [bool(e.terminated[-1]) for e in episodes]
    assert 10 <= sum(won) <= 30
    for e, w in zip(episodes, won, strict=True):
        assert float(e.reward.sum()) == float(w) and bool(e.truncated[-1]) != w and (w or len(e.reward) == 150)
        distance = float(torch.linalg.vector_norm(e.observation[-1, :2] - e.observation[-1, 4:]))
        assert (distance <= 0.45) == w
    kind = [bool(e.terminated[-1]) for e in pointmaze_sparse.demonstrations(20, bad=0.0)]
    assert sum(kind) >= 15  # the others have the whole maze to cross and run out of time


def test_waypoints_of_the_maze():
    start, goal = np.array([-1.1, 0.9]), np.array([-0.9, -1.0])
    assert pointmaze_sparse.waypoint(start, goal, False).tolist() == [0, 1]
    assert pointmaze_sparse.waypoint(np.array([1.0, -0.9]), goal, False).tolist() == [0, -1]
    assert pointmaze_sparse.waypoint(goal + 0.1, goal, False) is goal
    near = np.array([-0.9, -0.4])
    np.testing.assert_allclose(pointmaze_sparse.waypoint(near, goal, True), [-0.9, 0.2])
    assert pointmaze_sparse.waypoint(start, goal, True).tolist() == [0, 1]


def test_fetchreach_demonstrations_end_at_the_goal():
    episodes = fetchreach_sparse.demonstrations(3, seed=1)
    for e in episodes:
        assert e.terminated.tolist() == [0.0] * (len(e.reward) - 1) + [1.0] and torch.equal(e.reward, e.terminated)
        assert float(torch.linalg.vector_norm(e.observation[-1, :3] - e.observation[-1, 10:])) < 0.05


def test_scripted_demonstrations_by_name(tmp_path):
    task = load_environment("reacher-sparse")
    episodes = load_demonstrations("scripted:episodes=3,seed=7", task)
    again = load_demonstrations("scripted:episodes=2,seed=7", task)
    assert len(episodes) == 3 and all(torch.equal(a.action, b.action) for a, b in zip(episodes, again, strict=False))
    other = load_demonstrations("scripted:episodes=1,seed=8", task)
    assert not torch.equal(other[0].action, episodes[0].action)
    save_episodes(tmp_path / "d.safetensors", episodes)
    assert torch.equal(load_demonstrations(str(tmp_path / "d.safetensors"), task)[2].reward, episodes[2].reward)
    assert len(load_episodes(tmp_path / "d.safetensors")) == 3
    for spec, match in (("scripted:episode=3", "episodes"), ("scripted:episodes=0", "above 0"),
                        ("scripted:bad=2", "between 0 and 1")):  # fmt: skip
        with pytest.raises(InputError, match=match):
            load_demonstrations(spec, task)
    with pytest.raises(InputError, match="no scripted demonstrator"):
        load_demonstrations("scripted", load_environment("gym/Pendulum-v1"))
