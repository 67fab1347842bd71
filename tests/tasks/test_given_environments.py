"""Environments that a program gives as they are."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import ClipReward, TimeLimit

import anypolicy as ap
from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.objects import handed
from anypolicy.tasks.control.environments import load_environment

SHORT = {"trackers": (), "eval_episodes": 1, "quiet": True, "knobs": {"hidden": (4,), "warmup": 10, "batch": 2}}


class Unrecorded(gymnasium.Wrapper):
    """A wrapper that does not say how it was made."""


class Hall(gymnasium.Env):
    """A step to the right pays."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}
    observation_space, action_space = Box(-1, 1, (2,), np.float32), Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode, self.t = render_mode, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.shown(), {}

    def shown(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action):
        self.t += 1
        return self.shown(), float(action), self.t == 7, False, {}

    def render(self):
        return np.full((16, 16, 3), 20 * self.t, np.uint8)

    def get_state(self):
        return self.t

    def set_state(self, t):
        self.t = t


def make_hall():
    return TimeLimit(Hall(), 5)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def loaded(task, settings=""):
    """The task of an object."""
    with handed({"task": task}) as named:
        return load_environment(named["task"] + settings)


@pytest.mark.parametrize(("task", "name", "horizon"), [
    (make_hall, "object/make_hall", 5),
    (Hall, "object/Hall:max_steps=1000", 1000),
    (lambda render_mode=None: gymnasium.make("CartPole-v1", render_mode=render_mode), "object/lambda", 500),
    (gymnasium.make("CartPole-v1", max_episode_steps=9), "object/CartPole-v1", 9),
])  # fmt: skip
def test_a_run_is_made_resumed_and_loaded_with_what_made_it(task, name, horizon):
    whole = ap.train("dqn", task=task, steps=60, out="whole", **SHORT)
    assert (whole.task.name, whole.task.horizon) == (name, horizon)
    ap.train("dqn", task=task, steps=30, eval_every=6, checkpoint_every=12, out="run", **SHORT)
    for call in (ap.resume, ap.load, ap.evaluate):
        with pytest.raises(InputError, match=r"hand it in again, as in ap\.resume\(run, task=…\)"):
            call("run")
    assert main(["eval", "run"]) == 2
    resumed = ap.resume("run", steps=60, task=task, quiet=True)
    weights = [{k: v.tolist() for k, v in r.learner.critic.state_dict().items()} for r in (whole, resumed)]
    assert weights[0] == weights[1]
    assert ap.load("run", task=task).predict(whole.task.make().observation_space.sample())[0] in (0, 1)
    assert ap.evaluate("run", episodes=2, task=task)["eval/n"] == 2


def test_the_default_folder_and_the_recipe_have_its_name():
    run = ap.train("dqn", task=make_hall, steps=12, **SHORT)
    assert run.path.name == "dqn-object-make_hall-0"
    with RunDirectory.open(run.path, lock=False) as folder:
        assert folder.recipe()["task"] == "object/make_hall"
    assert "object/make_hall" in ap.explain("dqn", task=make_hall)


def test_it_is_filmed_where_it_draws(tmp_path):
    pytest.importorskip("imageio")
    ap.train("dqn", task=Hall, steps=12, out="run", **SHORT)
    ap.evaluate("run", episodes=1, video=tmp_path / "hall.gif", task=Hall)
    assert (tmp_path / "hall.gif").stat().st_size > 0


def test_an_environment_is_made_anew_with_its_settings_and_wrappers():
    task = loaded(gymnasium.make("Pendulum-v1", g=3.0, render_mode="human"))
    made = task.make(render_mode="rgb_array")
    assert (made.unwrapped.g, made.render_mode, task.horizon) == (3.0, "rgb_array", 200)
    assert task.make().render_mode is None
    clipped = loaded(ClipReward(gymnasium.make("Pendulum-v1"), -1.0, 0.0)).make()
    clipped.reset(seed=0)
    assert min(clipped.step(np.zeros(1, np.float32))[1] for _ in range(50)) == -1.0
    with pytest.raises(InputError, match=r"cannot be made anew .* give a function that makes it"):
        loaded(Unrecorded(gymnasium.make("Pendulum-v1")))


def needy(length):
    return Hall()


HALL = Hall()
SEVERAL = gymnasium.vector.SyncVectorEnv([Hall])


@pytest.mark.parametrize(("task", "said"), [
    (HALL, "it was not made by gymnasium.make, .*: give a function that makes it"),
    (lambda: HALL, "it returned the same environment twice"),
    (SEVERAL, "it is several environments in one"),
    (lambda: SEVERAL, "must return a gymnasium.Env"),
    (needy, "it cannot be called without length: give a name, a function"),
    (lambda: None, "lambda must return a gymnasium.Env"),
    (lambda: 1 / 0, "it cannot be made: ZeroDivisionError"),
    (object(), "give a name, a function"),
    (7, "task: got 7; use text"),
    (None, "task: got None; use text"),
])  # fmt: skip
def test_what_makes_no_copies_is_one_error(task, said):
    with pytest.raises(InputError, match=said):
        ap.train("dqn", task=task, steps=20, out="run", **SHORT)


def test_a_run_that_has_a_name_takes_no_other_task():
    ap.train("dqn", task="gym/CartPole-v1", steps=12, out="run", **SHORT)
    with pytest.raises(InputError, match="the run was begun with 'gym/CartPole-v1'"):
        ap.resume("run", task=make_hall)
    with pytest.raises(InputError, match=r"task\.g: .*has its settings in Python"):
        loaded(make_hall, ":g=3")


def test_methods_are_compared_on_it():
    knobs = {"dqn": SHORT["knobs"]}
    settings = {"steps": 20, "trackers": (), "eval_episodes": 1, "seeds": 2, "quiet": True, "knobs": knobs}
    assert ap.compare(["dqn", "npg-igt"], task=make_hall, **settings).task == "object/make_hall"
    with pytest.raises(InputError, match="other processes do not have the objects given as task"):
        ap.compare(["dqn", "npg-igt"], task=lambda: Hall(), workers=2, out="three", **settings)
