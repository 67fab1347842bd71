"""Controllers as a user runs them: command line, recording, films, what cannot be used."""

import json
import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from safetensors.torch import save_file

from anypolicy.cli.app import main
from anypolicy.data.demonstrations import Episode, load_episodes, save_episodes
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError
from anypolicy.evidence.film import film
from anypolicy.families import control
from anypolicy.families.base import explain
from anypolicy.learners.base import Needs
from anypolicy.runs.checkpoint import latest_checkpoint, load_checkpoint
from anypolicy.runs.directory import RunDirectory
from anypolicy.studies.compare import compare
from anypolicy.studies.record import record
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import load_environment

SMALL = ["--sac.hidden", "16", "16", "--sac.warmup", "20", "--sac.batch", "8", "--trackers", "--eval-episodes", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run from the command line."""
    out = tmp_path_factory.mktemp("control") / "run"
    assert (
        main(["train", "sac", "--task", "gym/Pendulum-v1", "--steps", "60", *SMALL, "--out", str(out), "--quiet"]) == 0
    )
    return out


def test_the_command_line_trains_resumes_evaluates_and_explains(run, capsys, tmp_path):
    assert main(["explain", "sac", "--task", "gym/Hopper-v5"]) == 0
    said = capsys.readouterr().out
    assert "11 numbers seen, 3 actions" in said and "episodes of 1000 steps" in said
    assert main(["resume", str(run), "--steps", "80"]) == 0
    assert "mean return" in capsys.readouterr().out
    assert main(["eval", str(run), "--episodes", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["eval/n"] == 2
    assert "<svg" in (run / "report.html").read_text() or "plotly" in (run / "report.html").read_text()
    assert main(["eval", str(run), "--prompts", "3"]) == 2
    assert main(["resume", str(run), "--steps", "10"]) == 2


def test_a_film_of_an_episode(run, tmp_path):
    control.evaluate_run(run, episodes=1, video=tmp_path / "film.gif")
    import imageio.v3 as imageio

    frames = imageio.imread(tmp_path / "film.gif", index=None)
    assert frames.shape[0] >= 150 and frames.shape[1:] == (500, 500, 3)
    assert np.ptp(frames[0].astype(int) - frames[40]) > 0
    with pytest.raises(InputError, match=r"\.mp4 or \.gif"):
        control.evaluate_run(run, episodes=1, video=tmp_path / "film.avi")


def test_recorded_episodes_are_demonstrations_again(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    file = tmp_path / "demos.safetensors"
    assert main(["record", str(run), "--episodes", "2", "--out", str(file)]) == 0
    assert "400 steps" in capsys.readouterr().out
    assert main(["record", str(run), "--episodes", "2", "--out", "minari:pendulum/sac-v0"]) == 0
    task = load_environment("gym/Pendulum-v1")
    both = [load_demonstrations(spec, task) for spec in (str(file), "pendulum/sac-v0")]
    for a, b in zip(*both, strict=True):
        for name in ("observation", "action", "reward", "terminated", "truncated"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-5, rtol=1e-5)
    assert both[0][0].truncated[-1] == 1 and not both[0][0].terminated.any()
    env = task.make()
    env.reset(seed=0)
    assert len(load_episodes(file)) == 2
    for spec, word in (("nowhere/at-all-v0", "no Minari data set"), (str(tmp_path / "x.txt"), "no file of episodes")):
        with pytest.raises(InputError, match=word):
            load_demonstrations(spec, task)
    with pytest.raises(InputError, match="3 observations and 1 actions"):
        load_demonstrations(str(file), load_environment("gym/Hopper-v5"))
    with pytest.raises(InputError, match="name a"):
        record(run, episodes=1, out=str(tmp_path / "demos.pkl"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["train", "sac", "--task", "gym/CartPole-v1"], "needs a box of actions"),
        (["train", "sac", "--task", "tiny-add"], "a controller learns in"),
        (["train", "sac", "--task", "gym/Pendulum-v1", "--demos", "x"], "uses no demonstrations"),
        (["train", "sac", "--task", "gym/Pendulum-v1", "--steps", "0"], "above 0"),
        (["train", "grpo+sac", "--task", "gym/Pendulum-v1"], "it is of the control family: use `anypolicy train sac` alone"),
        (["scores", "sac", "--task", "x"], "it is of the control family: use `anypolicy train sac` alone"),
        (["compare", "sac", "grpo", "--task", "gym/Pendulum-v1"], "it is of the language family: use `anypolicy train grpo` alone"),
        (["train", "grpo", "--task", "gym/Pendulum-v1"], "task"),
        (["train", "sac", "--task", "gym/Pendulum-v1", "--sac.batch", "0"], "sac.batch: got 0; use a number of at least 1"),
        (["train", "sac", "--task", "gym/Pendulum-v1", "--sac.discount", "1.5"], "sac.discount: got 1.5; use a number from 0 to 1"),
        (["train", "sac", "--task", "gym/Pendulum-v1", "--sac.lr", "-1"], "sac.lr: got -1.0; use a number above 0"),
        (["train", "dsrl", "--task", "gym/CartPole-v1", "--demos", "x"], "a base makes actions of a box"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(arguments, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert match in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_environment_that_fails_in_the_middle_leaves_a_run_that_goes_on(tmp_path):
    class Fragile(gymnasium.Wrapper):
        broken = True

        def step(self, action):
            if Fragile.broken and self.env.unwrapped.np_random is not None and self.count() > 75:
                raise RuntimeError("the motor is gone")
            return self.env.step(action)

        def count(self):
            Fragile.steps = getattr(Fragile, "steps", 0) + 1
            return Fragile.steps

    def make(render_mode=None):
        return Fragile(gymnasium.make("Pendulum-v1"))

    gymnasium.register("Fragile-v0", entry_point=make, max_episode_steps=200)
    try:
        knobs = {"hidden": (16, 16), "warmup": 20, "batch": 8}
        settings = {"task": "gym/Fragile-v0:max_steps=30", "steps": 60, "out": tmp_path / "run", "trackers": (),
                    "eval_episodes": 1, "eval_every": 0, "checkpoint_every": 20}  # fmt: skip
        with pytest.raises(InputError, match=r"the motor is gone.*resume"):
            control.train_controller("sac", knobs=knobs, quiet=True, **settings)
        Fragile.broken = False
        saved = load_checkpoint(latest_checkpoint(tmp_path / "run"))
        assert saved.step == 45 and len(saved.tensors["replay"]["rows"]) == 45  # the evaluation at 0 made 30 steps
        done = control.resume(tmp_path / "run", quiet=True)
        assert done.evaluations()[-1]["step"] == 60
        [row] = [r for r in done.rows if r.get("event") == "restarted"]
        assert row["step"] == 45 and "the motor is gone" in row["why"] and "began anew" in row["why"]
        with RunDirectory.open(tmp_path / "run", lock=False) as folder:
            assert folder.recipe()["steps"] == 60
    finally:
        del gymnasium.registry["Fragile-v0"]


class Faulty(gymnasium.Env):
    """Works until it is asked for more than `steps` steps; each process of a run has its own count."""

    observation_space, action_space = Box(-np.inf, np.inf, (2,), np.float32), Box(-1, 1, (1,), np.float32)
    fault, steps, made = "", 10**9, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.fault == "reset":
            raise RuntimeError("no power")
        return np.zeros(3 if self.fault == "shape at first" else 2, np.float32), {}

    def step(self, action):
        Faulty.made += 1
        fault = self.fault if Faulty.made > self.steps else ""
        seen = self.np_random.normal(size=3 if fault == "shape" else 2).astype(np.float32)
        reward = {"word": "good", "none": None, "two": np.ones(2)}.get(fault, 1.0)
        if fault == "raises":
            raise RuntimeError("the motor is gone")
        return seen * np.nan if fault == "nan" else seen, reward, False, False, {}


@pytest.fixture
def faulty(monkeypatch):
    """Registers the environment; called with a fault and a number of steps it makes it fail so."""
    gymnasium.register("Faulty-v0", entry_point=Faulty, max_episode_steps=10)
    yield lambda fault, steps: [monkeypatch.setattr(Faulty, k, v) for k, v in
                                {"fault": fault, "steps": steps, "made": 0}.items()]  # fmt: skip
    del gymnasium.registry["Faulty-v0"]


FAULTY = ["train", "sac", "--task", "gym/Faulty-v0", "--steps", "60", "--checkpoint-every", "20", *SMALL, "--quiet"]


@pytest.mark.parametrize("fault", ["nan", "shape", "word", "none", "two", "raises"])
def test_what_goes_wrong_in_the_middle_is_one_error_and_loses_no_replay(fault, faulty, tmp_path, capsys):
    faulty(fault, 10 + 33)
    run = str(tmp_path / "run")
    assert main([*FAULTY, "--eval-every", "0", "--out", run]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: task") and "goes on from the checkpoint of step 33" in line
    faulty("", 0)
    assert main(["resume", run, "--quiet"]) == 0
    saved = load_checkpoint(latest_checkpoint(tmp_path / "run"))
    assert saved.step == 60 and len(saved.tensors["replay"]["rows"]) == 60


def test_an_evaluation_that_fails_keeps_the_run(faulty, tmp_path, capsys):
    """Evaluations come at 0, 25 and 50; the one at 50 fails, and nothing has to begin anew."""
    whole, run = str(tmp_path / "whole"), str(tmp_path / "run")
    assert main([*FAULTY, "--eval-every", "25", "--out", whole]) == 0
    faulty("raises", 10 + 25 + 10 + 25 + 5)
    assert main([*FAULTY, "--eval-every", "25", "--out", run]) == 2
    assert "goes on from the checkpoint of step 50" in capsys.readouterr().err
    faulty("", 0)
    assert main(["resume", run, "--quiet"]) == 0
    assert load_checkpoint(latest_checkpoint(tmp_path / "run")).step == 60


@pytest.mark.parametrize(("fault", "match"), [("reset", "no power"), ("shape at first", "shape")])
def test_what_is_wrong_at_the_first_reset_is_known_before_any_training(fault, match, faulty, tmp_path, capsys):
    faulty(fault, 0)
    assert main([*FAULTY, "--out", str(tmp_path / "run")]) == 2
    assert match in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "actions", "match"),
    [
        ("Pendulum-v1", [], "it holds no episode"),
        ("Pendulum-v1", [3, 0], "whole numbers above 0"),
        ("Pendulum-v1", [3, -2.0], r"episode 1 holds an action of 2: actions are kept in \[−1, 1\]"),
        ("CartPole-v1", [3, 2.0], "action: got 'episode 1, row 0: 2'; the task has actions 0 to 1"),
        ("CartPole-v1", [3, 0.5], "episode 1, row 0: 0.5"),
    ],
)
def test_demonstrations_that_cannot_be_used(name, actions, match, tmp_path, capsys):
    """An episode of so many steps, or of two steps with that action."""
    width = 3 if name.startswith("Pendulum") else 4
    made = []
    for a in actions:
        n, action = (2, a) if isinstance(a, float) else (a, 0.0)
        z = torch.zeros(n)
        made.append(Episode(torch.zeros(n + 1, width), torch.full((n, 1), action), z, z, z))
    path = tmp_path / "demos.safetensors"
    if made:
        save_episodes(path, made)
    else:
        empty = {name: torch.zeros(0) for name in ("reward", "terminated", "truncated")}
        wide = {"observation": torch.zeros(0, 3), "action": torch.zeros(0, 1)}
        save_file({"length": torch.zeros(0, dtype=torch.int64), **wide, **empty}, path)
    assert main(["train", "bc", "--task", f"gym/{name}", "--demos", str(path), "--out", str(tmp_path / "run")]) == 2
    assert re.search(match, capsys.readouterr().err) and not (tmp_path / "run").exists()


def test_a_test_bed_without_pictures_is_not_filmed(tmp_path):
    p = control.plan("sac", control.ControlSettings("wall"), {"hidden": (8,)})
    with pytest.raises(InputError, match="wall draws no pictures"):
        film(control.learner_for(p), p.task, tmp_path / "film.gif", 0)


def test_choices_count_from_zero_wherever_the_environment_begins():
    class Signed(gymnasium.Env):
        observation_space, action_space = Box(-1, 1, (1,), np.float32), Discrete(3, start=-1)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.array([action], np.float32), float(action), False, False, {}

    gymnasium.register("Signed-v0", entry_point=Signed)
    try:
        task = load_environment("gym/Signed-v0")
        assert task.space.actions == 3 and task.space.discrete
        envs = Environments(task.vector(3), 0)
        assert envs.step(torch.tensor([[0.0], [1.0], [2.0]])).reward.tolist() == [-1, 0, 1]
    finally:
        del gymnasium.registry["Signed-v0"]


def test_compare_judges_controllers(tmp_path, capsys):
    file = tmp_path / "other.py"
    file.write_text('''
"""Other: a copy for the test."""
from anypolicy.catalogue import Card, method
from anypolicy.methods.control.sac import SoftActorCritic

@method(Card(title="t", paper="p", year=2024, family="control", idea="i", changes=(), composes_with="c", claim="c"),
        slug="other-sac")
def other(lr: float = 1e-4, hidden: tuple[int, ...] = (16, 16), warmup: int = 20, batch: int = 8):
    """A copy."""
    return SoftActorCritic(lr=lr, hidden=hidden, warmup=warmup, batch=batch).recipe()
''')
    from anypolicy import catalogue

    try:
        assert "other-sac in gym" in explain("other-sac", task="gym/Pendulum-v1", method_file=(file,))
        small = {"hidden": (16, 16), "warmup": 20, "batch": 8}
        study = compare(["sac", "other-sac"], task="gym/Pendulum-v1:max_steps=30", seeds=2, out=tmp_path / "study",
                                knobs={"sac": small}, steps=40, trackers=(), eval_episodes=1, quiet=True)  # fmt: skip
        assert study.metric == "eval/return" and study.unit == "steps"
        assert "40 steps" in str(study)
    finally:
        del catalogue.REGISTERED["other-sac"]


@pytest.mark.parametrize(("method", "task"), [("hnpg", "combination-lock:horizon=3"), ("resfit", "gym/Pendulum-v1")])
def test_a_loop_does_not_run_without_the_demonstrations_it_needs(method, task):
    p = control.plan(method, control.ControlSettings(task, demos="given.safetensors", envs=1))
    assert p.recipe.needs_offline
    environments = Environments(p.task.vector(1), 0)
    learner = type("Learner", (), {"needs": Needs(), "modules": {}})()
    loop = control.loop_of(p.recipe, learner, environments, p.task.space, 0, horizon=p.task.horizon)
    with pytest.raises(InputError, match="demos: got None; this loop learns from demonstrations"):
        loop.run(1)
    environments.close()
