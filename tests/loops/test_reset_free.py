"""Two tasks in a world that is not reset."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from anypolicy.data.replay import Replay
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError
from anypolicy.families.control import load_controller, resume, train_controller
from anypolicy.learners.base import Acted, Needs, tensors_of
from anypolicy.learners.recipe import OffPolicyRecipe
from anypolicy.loops.reset_free import Agents, ResetFreeLoop
from anypolicy.runs import drive
from anypolicy.runs.stop import Stopped
from anypolicy.tasks.control.back_and_forth import BackAndForth
from anypolicy.tasks.control.environments import EnvironmentTask, load_environment, space_of
from tests.helpers import StopAt


class Line(gymnasium.Env):
    """A point on a line that moves by its action; its place at reset is the start, the goal is 1 away."""

    def __init__(self):
        parts = {k: Box(-np.inf, np.inf, (1,), np.float64) for k in ("observation", "achieved_goal", "desired_goal")}
        self.observation_space, self.action_space = Dict(parts), Box(-1, 1, (1,), np.float32)
        self.place, self.goal, self.resets = np.zeros(1), np.zeros(1), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 1)
        self.goal, self.resets = self.place + 1, self.resets + 1
        return self.seen(), {}

    def seen(self):
        return {"observation": self.place, "achieved_goal": self.place, "desired_goal": self.goal}

    def step(self, action):
        self.place = self.place + 0.5 * action
        return self.seen(), -1.0, False, False, {"is_success": abs(self.place - self.goal)[0] < 0.1}

    def get_state(self):
        return {"place": self.place.tolist(), "goal": self.goal.tolist()}

    def set_state(self, value):
        self.place, self.goal = np.array(value["place"]), np.array(value["goal"])


def test_a_success_changes_the_task_and_a_failure_tries_again_in_place():
    env = BackAndForth(Line(), horizon=3)
    seen, _ = env.reset(seed=0)
    start = seen[0]
    assert seen.tolist() == pytest.approx([start, start + 1, 0])
    for _ in range(2):
        last, reward, won, cut, _ = env.step(np.array([1.0]))
    assert (won, cut, reward) == (True, False, 1.0)
    back, _ = env.reset()
    assert back.tolist() == pytest.approx([last[0], start, 1])
    for _ in range(3):
        last, reward, won, cut, _ = env.step(np.array([0.1]))
    assert (won, cut, reward) == (False, True, 0.0)
    again, _ = env.reset()
    assert again.tolist() == pytest.approx([last[0], start, 1])
    assert env.unwrapped.resets == env.world_resets == 1


def test_safety_resets_and_judges():
    env = BackAndForth(Line(), horizon=1, forced_every=3, judges=[lambda o: True, lambda o: False])
    env.reset(seed=0)
    tasks = []
    for _ in range(7):
        tasks.append(env.task)
        env.step(np.zeros(1))
        env.reset()
    assert tasks == [0, 1, 1, 1, 1, 1, 1]
    assert env.world_resets == 3


class Recorder:
    """A learner that goes where its goal is and remembers what it was given."""

    needs = Needs()

    def __init__(self, t):
        self.t, self.batches = t, []
        self.weight = torch.nn.Linear(1, 1)
        self.modules, self.optimisers = {"net": self.weight}, {"sgd": torch.optim.SGD(self.weight.parameters(), lr=0.1)}

    def act(self, observation, generator, *, explore):
        assert int(observation[0, -1]) == self.t
        action = (2 * (observation[:, 1:2] - observation[:, :1])).clamp(-1, 1)
        return Acted(action, action)

    def update(self, batches, generator):
        self.batches.append(batches)
        return {"loss/critic": 0.0}


def looped(steps, **settings):
    make = lambda: BackAndForth(Line(), horizon=5)  # noqa: E731
    space = space_of(make(), "line")
    task = EnvironmentTask("line", make, space, 5)
    agents = Agents([Recorder(t) for t in range(2)])
    recipe = OffPolicyRecipe(lambda *_: agents, batch=6, updates=2, warmup=10, capacity=500, offline_share=0.5)
    loop = ResetFreeLoop(dataclasses.replace(recipe, **settings), agents, Environments(task.vector(1), 0), space, 0)
    return loop, loop.run(steps)


def test_each_agent_sees_its_own_task_and_is_held_to_its_own_steps():
    loop, log = looped(60)
    assert loop.own[0] + loop.own[1] == 60 and min(loop.own) > 15
    for t, agent in enumerate(loop.learner.learners):
        batches = [b for call in agent.batches for b in call]
        assert batches and all((b.observation[:, -1] == t).all() for b in batches)
        assert len(batches) <= 2 * loop.own[t]
        assert len(loop.replays[t]) == loop.own[t]
    assert log["success/0"] > 0.5 and log["success/1"] > 0.5 and log["resets/forced"] == 0
    kept = [r.all() for r in loop.replays]
    for rows in kept:
        assert (rows.next_observation[:, -1] == rows.observation[:, -1]).all()
        assert rows.terminated.sum() > 3


def test_demonstrations_go_to_their_task():
    loop, _ = looped(5)
    demos = Replay(4, 3, 1)
    rows = loop.replays[0].all().select(torch.tensor([0, 0, 0, 0]))
    flags = torch.tensor([0.0, 1, 0, 1])
    seen = torch.cat([rows.observation[:, :2], flags[:, None]], 1)
    demos.add(dataclasses.replace(rows, observation=seen))
    loop.offline = demos
    assert [len(p) for p in loop.parts] == [2, 2]
    demos.restore({"rows": demos.matrix[:1].clone(), "next": torch.tensor(1)})
    with pytest.raises(InputError, match="none of task 1"):
        loop.offline = demos
    with pytest.raises(InputError, match="n_step"):
        looped(5, n_step=3)


def test_a_run_there_and_back_resumes_to_the_same_bits(tmp_path, monkeypatch):
    assert load_environment("back-and-forth").space.tasks == 2
    knobs = {"hidden": (16, 16), "ensemble": 2, "batch": 8, "warmup": 10, "critic_actor_ratio": 1}
    common = {"task": "back-and-forth:horizon=8", "knobs": knobs, "demos": "scripted:episodes=6,worlds=2", "quiet": True,
              "eval_every": 0, "eval_episodes": 1, "checkpoint_every": 20, "trackers": ()}  # fmt: skip
    whole = train_controller("serl", steps=40, out=tmp_path / "whole", **common)
    with monkeypatch.context() as patch:
        patch.setattr(drive, "first_signal", StopAt(15))  # in the middle of a row
        with pytest.raises(Stopped):
            train_controller("serl", steps=20, out=tmp_path / "part", **common)
    resume(tmp_path / "part", quiet=True)
    part = resume(tmp_path / "part", steps=40, quiet=True)
    a, b = tensors_of(whole.learner), tensors_of(part.learner)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert {k.split("-")[0] for k in a} == {"0", "1"}
    rows = [r for r in whole.rows if "event" not in r]
    assert rows[-1]["resets/forced"] == 0
    loaded, _ = load_controller(whole.path / "policy")
    assert torch.equal(tensors_of(loaded)["1-actor.net.weights.0"], a["1-actor.net.weights.0"])
