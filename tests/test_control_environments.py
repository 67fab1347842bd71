"""Runs in environments without a limit, with a state of NumPy's values, or that reuse their pictures."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from anypolicy.cli.app import main
from anypolicy.data.demonstrations import Episode, save_episodes
from anypolicy.engines.environments import Environments
from anypolicy.evidence.film import film
from anypolicy.families import control
from anypolicy.runs.checkpoint import latest_checkpoint, load_checkpoint
from anypolicy.runs.directory import RunDirectory
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import load_environment

SMALL = [
    "--dqn.hidden",
    "8",
    "--dqn.warmup",
    "10",
    "--dqn.batch",
    "4",
    "--trackers",
    "--eval-episodes",
    "1",
    "--eval-every",
    "0",
]


def test_an_environment_without_a_limit_gets_one_and_says_so(tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["dqn", "--task", "gym/CliffWalking-v1", "--steps", "20"]
    assert main(["explain", *arguments]) == 0
    assert "gym/CliffWalking-v1 gives its episodes no limit: they are cut (truncated) after 1,000 steps" in (
        said := capsys.readouterr().out
    )
    assert "episodes of 1000 steps" in said
    assert main(["train", *arguments, *SMALL, "--out", str(run)]) == 0
    assert "no limit" in capsys.readouterr().err
    with RunDirectory.open(run, lock=False) as folder:
        assert folder.recipe()["task"] == "gym/CliffWalking-v1:max_steps=1000"
        assert all(r["eval/length"] <= 1000 for r in folder.read() if r.get("event") == "eval")
    assert main(["resume", str(run), "--steps", "30", "--quiet"]) == 0
    assert main(["train", *arguments, *SMALL, "--quiet", "--out", str(tmp_path / "quiet")]) == 0
    assert "no limit" not in capsys.readouterr().err


def test_the_limit_cuts_and_does_not_terminate():
    task = load_environment("gym/CliffWalking-v1:is_slippery=false")
    assert (task.horizon, task.assumed, task.name) == (
        1000,
        True,
        "gym/CliffWalking-v1:is_slippery=false,max_steps=1000",
    )
    envs = Environments(task.vector(1), 0)
    steps = [envs.step(torch.zeros(1, 1)) for _ in range(1000)]
    assert steps[-1].truncated.tolist() == [1] and not any(s.terminated.any() for s in steps)
    assert not any(s.truncated.any() for s in steps[:-1])
    given = load_environment("gym/CliffWalking-v1:max_steps=30")
    assert (given.horizon, given.assumed) == (30, False)
    with pytest.raises(control.InputError, match="max_steps"):
        load_environment("gym/CliffWalking-v1:max_steps=0")


def test_an_environment_that_keeps_a_limit_itself_keeps_it():
    class Patient(gymnasium.Env):
        observation_space, action_space = Box(-1, 1, (1,), np.float32), Box(-1, 1, (1,), np.float32)
        max_steps = 7

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 0.0, False, False, {}

    gymnasium.register("Patient-v0", entry_point=Patient)
    try:
        task = load_environment("gym/Patient-v0")
        assert (task.horizon, task.assumed) == (7, False)
        envs = Environments(task.vector(1), 0)
        assert [envs.step(torch.zeros(1, 1)).truncated.item() for _ in range(8)] == [0] * 6 + [1, 0]
        assert load_environment("gym/Patient-v0:max_steps=9").horizon == 9
    finally:
        del gymnasium.registry["Patient-v0"]
    assert not load_environment("gym/MiniGrid-Empty-5x5-v0").assumed


class Drawn(gymnasium.Env):
    """A walk whose state is NumPy's, and whose pictures are one array."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}
    observation_space, action_space = Box(-np.inf, np.inf, (2,), np.float64), Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode, self.at, self.t = render_mode, np.zeros(2), np.int64(0)
        self.canvas = np.zeros((16, 16, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at[:], self.t = 0, np.int64(0)
        return self.at, {}

    def step(self, action):
        self.at += action[0] + self.np_random.normal(size=2)
        self.t += 1
        return self.at, float(-self.at @ self.at), False, False, {}

    def render(self):
        self.canvas[:] = 30 * self.t
        return self.canvas

    def get_state(self):
        return {"at": self.at, "t": self.t}

    def set_state(self, value):
        self.at[:], self.t = value["at"], value["t"]


@pytest.fixture
def drawn():
    gymnasium.register("Drawn-v0", entry_point=Drawn, max_episode_steps=6)
    yield "gym/Drawn-v0"
    del gymnasium.registry["Drawn-v0"]


def test_a_run_in_an_environment_with_its_own_state_is_the_same_in_two_parts(drawn, tmp_path):
    def trained(name, steps):
        return control.train_controller(
            "sac", task=drawn, knobs={"hidden": (8,), "warmup": 10, "batch": 4}, steps=steps, out=tmp_path / name,
            checkpoint_every=20, eval_every=20, eval_episodes=1, trackers=(), quiet=True,
        )  # fmt: skip

    whole, _ = trained("whole", 40), trained("part", 20)
    part = control.resume(tmp_path / "part", steps=40, quiet=True)
    a, b = (load_checkpoint(latest_checkpoint(r.path)).tensors for r in (whole, part))
    assert all(torch.equal(a[k][n], b[k][n]) for k in a for n in a[k])
    assert not [r for r in part.rows if r.get("event") == "restarted"]
    rows = a["replay"]["rows"]
    ends = rows[:, -2] == 1
    assert int(ends.sum()) == 6 and (rows[ends][:, 3:5] != 0).all()


def test_a_film_shows_every_frame_of_an_environment_that_draws_on_one_canvas(drawn, tmp_path):
    import imageio.v3 as imageio

    p = control.plan("sac", control.ControlSettings(drawn), {"hidden": (8,)})
    assert film(control.learner_for(p), p.task, tmp_path / "film.gif", 0) == 6
    frames = imageio.imread(tmp_path / "film.gif", index=None)
    assert len({int(f.mean()) // 10 for f in frames}) == 6


@pytest.mark.parametrize(
    ("name", "flags", "match"),
    [
        ("terminated", [0, 0.5], "terminated: got 'episode 0, row 1: 0.5'; a flag is 0 or 1"),
        ("truncated", [0, 2], "row 1: 2"), ("terminated", [0, float("nan")], "row 1: nan"),
        ("truncated", [1, 0], "episode 0 has ended in row 0 and goes on"),
    ],
)  # fmt: skip
def test_flags_of_recorded_episodes(name, flags, match, drawn, tmp_path):
    z = torch.zeros(2)
    given = {"terminated": z, "truncated": z, name: torch.tensor(flags).float()}
    save_episodes(tmp_path / "demos.safetensors", [Episode(torch.zeros(3, 2), z[:, None], z, **given)])
    with pytest.raises(control.InputError, match=match):
        load_demonstrations(str(tmp_path / "demos.safetensors"), load_environment(drawn))
