"""Controllers as a user runs them: command line, recording, films, what cannot be used."""

import json

import gymnasium
import numpy as np
import pytest
import torch

from anypolicy import control
from anypolicy.cli import main
from anypolicy.data.demonstrations import load_episodes
from anypolicy.errors import InputError
from anypolicy.runs.directory import RunDirectory
from anypolicy.tasks.demonstrations import load_demonstrations
from anypolicy.tasks.environments import load_environment

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
        control.record(run, episodes=1, out=str(tmp_path / "demos.pkl"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["train", "sac", "--task", "gym/CartPole-v1"], "needs a box of actions"),
        (["train", "sac", "--task", "tiny-add"], "a controller learns in"),
        (["train", "sac", "--task", "gym/Pendulum-v1", "--demos", "x"], "uses no demonstrations"),
        (["train", "sac", "--task", "gym/Pendulum-v1", "--steps", "0"], "above 0"),
        (["train", "grpo+sac", "--task", "gym/Pendulum-v1"], "it trains a controller"),
        (["reward-model", "sac", "--pairs", "x"], "it trains a controller"),
        (["compare", "sac", "grpo", "--task", "gym/Pendulum-v1"], "it trains a policy"),
        (["train", "grpo", "--task", "gym/Pendulum-v1"], "task"),
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
            if Fragile.broken and self.env.unwrapped.np_random is not None and self.count() > 70:
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
        done = control.resume(tmp_path / "run", quiet=True)
        assert done.evaluations()[-1]["step"] == 60
        with RunDirectory.open(tmp_path / "run", lock=False) as folder:
            assert folder.recipe()["steps"] == 60
    finally:
        del gymnasium.registry["Fragile-v0"]


def test_compare_judges_controllers(tmp_path, capsys):
    file = tmp_path / "other.py"
    file.write_text('''
"""Other: a copy for the test."""
from anypolicy.catalogue import Card, method
from anypolicy.methods.control.sac import sac

@method(Card(title="t", paper="p", year=2024, family="control", idea="i", changes=(), composes_with="c", claim="c"),
        slug="other-sac", trains="controller")
def other(lr: float = 1e-4, hidden: tuple[int, ...] = (16, 16), warmup: int = 20, batch: int = 8):
    """A copy."""
    return sac(lr=lr, hidden=hidden, warmup=warmup, batch=batch)
''')
    from anypolicy import catalogue, studies

    catalogue.load_file(file)
    try:
        small = {"hidden": (16, 16), "warmup": 20, "batch": 8}
        study = studies.compare(["sac", "other-sac"], task="gym/Pendulum-v1:max_steps=30", seeds=2, out=tmp_path / "study",
                                knobs={"sac": small}, steps=40, trackers=(), eval_episodes=1, quiet=True)  # fmt: skip
        assert study.metric == "eval/return" and study.unit == "steps"
        assert "40 steps" in str(study)
    finally:
        del catalogue.REGISTERED["other-sac"]
