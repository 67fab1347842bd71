"""Frames, impedance and their test-beds."""

import math

import numpy as np
import pytest
import torch

from anypolicy.engines.snapshots import put_back, snapshot
from anypolicy.errors import InputError
from anypolicy.parts.frames import (
    adjoint,
    force_bound,
    impedance,
    leaky,
    limited,
    low_pass,
    relative_pose,
    rotation_of,
    to_base,
    to_tip,
)
from anypolicy.tasks.control.environments import load_environment
from anypolicy.tasks.control.tip import tip
from anypolicy.tasks.control.wall import DAMPING, MASS, STIFFNESS, WALL_STIFFNESS, wall


def quarter(f64):
    return rotation_of(f64(0.0, 0.0, math.pi / 2)), f64(0.5, 0.1, 0.2)


@pytest.mark.parametrize(
    ("frame_map", "want"), [("blockdiag", [0, 0.01, 0.02, 0, 0, 0.1]), ("repo", [0, 0.01, 0.02, 0, -0.01, 0.105])]
)
def test_worked_frame_map(f64, frame_map, want):
    rotation, position = quarter(f64)
    a = f64(0.01, 0.0, 0.02, 0.0, 0.0, 0.1)
    base = to_base(a, rotation, position, frame_map)
    assert base.tolist() == pytest.approx(want, abs=1e-12)
    torch.testing.assert_close(to_tip(base, rotation, position, frame_map), a)


def test_only_the_diagonal_map_forgets_where_the_base_is(f64):
    rotation, position = quarter(f64)
    elsewhere = position + f64(1.0, -2.0, 0.5)
    assert torch.equal(adjoint(rotation, position), adjoint(rotation, elsewhere))
    assert not torch.equal(adjoint(rotation, position, "repo"), adjoint(rotation, elsewhere, "repo"))


def test_relative_pose(f64):
    rotation, position = quarter(f64)
    seen, turn = relative_pose(position, rotation, position + f64(0.05, 0.0, -0.05), rotation)
    assert seen.tolist() == pytest.approx([0, -0.05, -0.05], abs=1e-12)
    torch.testing.assert_close(turn, torch.eye(3, dtype=torch.float64))


def test_worked_impedance(f64):
    e, delta, still = f64(0.05, -0.002, -0.03), f64(0.003, 0.003, 0.01), torch.zeros(3, dtype=torch.float64)
    assert limited(e, delta).tolist() == [0.003, -0.002, -0.01]
    assert impedance(e, still, 2000.0, 89.0, delta).tolist() == pytest.approx([-6, 4, 20])
    assert impedance(e, still, 2000.0, 89.0).tolist() == pytest.approx([-100, 4, 60])
    assert impedance(e, f64(1.0, 0.0, 0.0), 2000.0, 89.0, delta, f64(0.1, 0.0, 0.0), 5.0).tolist() == pytest.approx(
        [-6 - 89 - 0.5, 4, 20]
    )
    assert force_bound(2000.0, 0.003, 89.0, 1000.0) == pytest.approx(540)


def test_integral_and_filter(f64):
    assert leaky(f64(0.09, -0.05), f64(0.05, 0.01), 0.1).tolist() == pytest.approx([0.1, -0.04])
    assert leaky(f64(0.08, 0.0), f64(0.0, 0.0), 0.1, leak=0.5).tolist() == pytest.approx([0.04, 0])
    assert low_pass(f64(1.0, 0.0), f64(3.0, 0.0), 0.25).tolist() == [1.5, 0]


def pressed(limits: str, seed: int, **settings) -> dict[str, float]:
    """Push as hard as the policy can, for three seconds."""
    env = wall(limits, fragile=1e9, **settings)
    env.reset(seed=seed)
    info = {}
    for _ in range(30):
        info = env.step(np.ones(1, np.float32))[-1]
    return info | {"force": env.contact, "depth": env.x - env.wall}


@pytest.mark.parametrize("seed", range(3))
def test_a_limited_error_bounds_the_force_whatever_is_asked_for(seed):
    limited_, free = pressed("error", seed), pressed("none", seed)
    spring = STIFFNESS * 0.003
    assert limited_["peak_pull"] <= 2 * spring < force_bound(STIFFNESS, 0.003, DAMPING, 1000.0)
    assert limited_["force"] == pytest.approx(spring, rel=1e-3)
    fastest = spring / DAMPING  # where spring and damper balance
    assert limited_["peak_force"] <= spring + fastest * math.sqrt(WALL_STIFFNESS * MASS) + 50 * fastest
    assert free["force"] > 10 * limited_["force"]
    assert free["peak_force"] > 3 * limited_["peak_force"]
    assert pressed("error", seed, delta=10.0) == free


def test_clipping_the_action_alone_is_slow_in_free_space():
    ways = {}
    for limits in ("error", "action"):
        env = wall(limits)
        env.reset(seed=3)
        env.wall = 1.0
        for _ in range(6):
            env.step(np.ones(1, np.float32))
        ways[limits] = env.x
    assert ways["action"] == pytest.approx(6 * 0.003, rel=0.1)
    assert ways["error"] > 1.5 * ways["action"]


def test_the_wall_is_won_by_a_gentle_press_and_lost_by_a_hard_one():
    env = wall()
    env.reset(seed=0)
    outs = [env.step(np.ones(1, np.float32)) for _ in range(20)]
    won = next(o for o in outs if o[2])
    assert won[1] == 1 and won[4]["is_success"] == 1
    env = wall("none", fragile=5.0)
    env.reset(seed=0)
    lost = next(o for o in (env.step(np.ones(1, np.float32)) for _ in range(20)) if o[2])
    assert lost[1] == 0 and lost[4]["is_success"] == 0


def rollout(env, actions, **options):
    seen, _ = env.reset(seed=0, options=options)
    out = [seen]
    for a in actions:
        out.append(env.step(a)[0])
    return [np.concatenate([o[k].ravel() for k in sorted(o)]) for o in out]


@pytest.mark.parametrize(("frame_map", "same"), [("blockdiag", True), ("repo", False)])
def test_moving_the_start_is_moving_the_target(f64, frame_map, same):
    turn, move = rotation_of(f64(0.3, -0.5, 1.2)).numpy(), np.array([0.2, -0.1, 0.3])
    target = np.array([0.03, -0.02, 0.04])
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 6)).astype(np.float32)
    one = rollout(tip(frame_map=frame_map), actions, position=np.zeros(3), rotation=np.eye(3), target=target)
    two = rollout(tip(frame_map=frame_map), actions, position=move, rotation=turn, target=move + turn @ target)
    assert np.allclose(one, two, atol=1e-5) is same
    away = [rollout(tip("base"), actions, position=p, rotation=np.eye(3), target=p + target) for p in (0 * move, move)]
    assert not np.allclose(*away, atol=1e-3)


def test_an_intervention_is_the_action_that_would_have_done_it(f64):
    env = tip()
    env.reset(seed=1, options={"rotation": rotation_of(f64(0.2, 0.4, 1.0)).numpy()})
    before = env.unwrapped.position
    base = np.array([0.5, -0.3, 0.1, 0.2, 0.0, -0.4], np.float32)
    env.step(env.intervention(base))
    np.testing.assert_allclose(env.unwrapped.position - before, 0.01 * base[:3], atol=1e-8)


def test_the_camera_sees_the_target_from_the_tip(f64):
    turn = rotation_of(f64(0.0, 0.0, 1.3)).numpy()
    views = []
    for rotation in (np.eye(3), turn):
        env = tip(images=True)
        seen, _ = env.reset(seed=0, options={"position": np.zeros(3), "rotation": rotation,
                                             "target": rotation @ np.array([0.03, 0.0, 0.01])})  # fmt: skip
        views.append(seen["picture"])
        assert "target_position" not in seen
    assert np.array_equal(*views)
    red = views[0][..., 0] > 100
    assert red.any() and red[:, :16].sum() == 0 < red[:, 16:].sum()


@pytest.mark.parametrize("name", ["tip", "wall", "tip:images=true"])
def test_a_snapshot_goes_on_as_before(name):
    task = load_environment(name)
    env, other = task.make(), task.make()
    for e in (env, other):
        e.reset(seed=4)
    action = np.full(task.space.actions, 0.7, np.float32)
    for _ in range(3):
        env.step(action)
    put_back(other, snapshot(env))
    for _ in range(3):
        a, b = env.step(action), other.step(action)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:4] == b[1:4]


def test_settings_of_the_test_beds_are_checked():
    for spec in ("wall:delta=0.0", "wall:limits=hard", "tip:turned=9.0", "tip:horizon=0"):
        with pytest.raises(InputError):
            load_environment(spec)
