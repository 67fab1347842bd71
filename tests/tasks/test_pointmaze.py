"""Point mazes of Gymnasium-Robotics: ways through the maze, scripted demonstrations, learning from them."""

import numpy as np
import pytest
import torch

from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.families import control
from anypolicy.tasks.control import pointmaze_sparse
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import load_environment
from anypolicy.tasks.control.pointmaze import Ways

SPARSE = "gym/PointMaze_UMaze-v3:continuing_task=false,max_steps=150"


def ways(name):
    env = load_environment(name).make()
    env.reset(seed=0)
    return Ways(env.unwrapped.maze)


def test_ways_through_the_u_are_those_of_the_test_bed():
    w, rng = ways(SPARSE), np.random.default_rng(0)
    assert w.lengths.max() == 6 and np.isfinite(w.lengths).all()
    for _ in range(200):
        position, goal = rng.uniform(-1.5, 1.5, (2, 2))
        for flees in (False, True):
            want = pointmaze_sparse.waypoint(position, goal, flees)
            np.testing.assert_allclose(w.waypoint(position, goal, flees), want)


def test_ways_of_a_larger_maze_are_shortest():
    w = ways("gym/PointMaze_Large-v3")
    assert np.isfinite(w.lengths).all() and w.lengths.max() > 12
    a, b = np.unravel_index(w.lengths.argmax(), w.lengths.shape)
    position, steps = w.centres[a], 0
    while w.cell(position) != b:
        aim = w.waypoint(position, w.centres[b], False)
        assert np.abs(aim - position).sum() == pytest.approx(1)  # a neighbour, never through a wall
        position, steps = aim, steps + 1
    assert steps == w.lengths[a, b]


@pytest.mark.parametrize(("name", "steps"), [(SPARSE, 150), ("gym/PointMaze_Medium-v3:continuing_task=false", 600)])
def test_demonstrations_reach_the_goal_unless_they_flee(name, steps):
    task = load_environment(name)
    good = load_demonstrations("scripted:episodes=5,bad=0", task)
    assert sum(bool(e.terminated[-1]) for e in good) >= 3 and all(e.observation.shape[1] == 6 for e in good)
    for e in good:
        distance = float(torch.linalg.vector_norm(e.observation[-1, 2:4] - e.observation[-1, :2]))
        assert (distance <= 0.45) == bool(e.terminated[-1]) and float(e.reward.sum()) == float(e.terminated[-1])
        assert e.terminated[-1] or len(e.reward) == steps
    fled = load_demonstrations("scripted:episodes=3,bad=1", task)
    assert sum(bool(e.terminated[-1]) for e in fled) <= 1
    with pytest.raises(InputError, match="episodes, seed, bad"):
        load_demonstrations("scripted:goal=1", task)


@pytest.mark.parametrize("task", ["pointmaze-sparse", SPARSE])
def test_a_method_with_a_cloned_base_learns_there_from_the_command_line(task, tmp_path):
    out = tmp_path / "run"
    line = ["train", "expo-expressive", "--task", task, "--demos", "scripted:episodes=6", "--steps", "300", "--out",
            str(out), "--trackers", "--eval-episodes", "1", "--eval-every", "0", "--quiet"]  # fmt: skip
    small = {"hidden": ["32", "32"], "updates": ["1"], "ensemble": ["2"], "samples": ["2"], "edits": ["2"],
             "batch": ["32"], "base-hidden": ["32", "32"], "base-updates": ["100"], "denoising-steps": ["4"],
             "discount": ["0.98"]}  # fmt: skip
    for knob, values in small.items():
        line += [f"--expo-expressive.{knob}", *values]
    assert main(line) == 0
    learner, _ = control.load_controller(out / "policy")
    assert int(learner.modules["policy"].network.count) == 100 + 300
    assert 0 <= control.evaluate_run(out, episodes=1)["eval/success"] <= 1
