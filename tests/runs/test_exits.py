"""sys.exit in code of others (an environment, a reward, a verifier, a claim, a method) is a failure of that code; it ends
no command, and least of all with status 0."""

import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from anypolicy import catalogue
from anypolicy.cli.app import main
from anypolicy.data.records import Prompt
from anypolicy.engines.environments import EnvironmentFailed, Environments
from anypolicy.errors import InputError
from anypolicy.runs.trackers import TrackerAdapter
from anypolicy.stages.rewards import load_reward, own_rewards
from anypolicy.tasks.control.environments import load_environment
from anypolicy.tasks.language.verify import verify
from tests.runs.test_stopping import driven, run  # noqa: F401


class Exits(gymnasium.Env):
    """Ends the process in the named method, `after` so many calls of it."""

    observation_space, action_space = Box(-1, 1, (2,), np.float32), Discrete(2)
    made = 0

    def __init__(self, where="step", after=0):
        self.where, self.after = where, after
        type(self).made += where == "__init__"
        if type(self).made > after:
            type(self).made = 0
            sys.exit(0)

    def called(self, where):
        self.after -= where == self.where
        if self.after < 0:
            sys.exit(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.called("reset")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.called("step")
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def close(self):
        self.called("close")


gymnasium.register("Exits-v0", entry_point=Exits, max_episode_steps=4)
SMALL = [
    "--envs",
    "1",
    "--eval-episodes",
    "1",
    "--trackers",
    "--dqn.hidden",
    "4",
    "--dqn.warmup",
    "4",
    "--dqn.batch",
    "2",
]


def test_an_environment_that_exits_has_failed():
    for where in ("reset", "step"):
        with pytest.raises(EnvironmentFailed, match=r"SystemExit.*must not raise"):
            act(f"gym/Exits-v0:where={where},after=2")
    for after in (0, 1):
        with pytest.raises(InputError, match="cannot be made: SystemExit"):
            act(f"gym/Exits-v0:where=__init__,after={after}")


def act(spec):
    """Two episodes of uniform actions."""
    environments = Environments(load_environment(spec).vector(1), 0)
    for _ in range(8):
        environments.step(torch.zeros(1, 1))


@pytest.mark.parametrize("where", ["reset", "step"])
def test_a_run_whose_environment_exits_has_failed(tmp_path, capsys, where):
    command = ["train", "dqn", "--task", f"gym/Exits-v0:where={where},after=6", "--steps", "40", *SMALL]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "SystemExit" in said and "`anypolicy resume` goes on" in said


def test_an_environment_that_exits_when_it_is_closed_costs_nothing(capsys):
    with pytest.raises(InputError, match="cannot be closed: SystemExit"):
        load_environment("gym/Exits-v0:where=close")
    environments = Environments(load_environment("gym/Exits-v0:where=close,after=1").vector(1), 0)
    environments.vector.envs[0].unwrapped.after = 0
    environments.close()
    assert "failed when it was closed (SystemExit" in capsys.readouterr().err


def test_a_reward_that_exits_has_failed():
    with pytest.raises(InputError, match=r"reward <lambda>: got 'SystemExit: 0'; .*prompt 'p'"):
        own_rewards(lambda prompt, texts: sys.exit(0))([(Prompt("p"), ["a"])])


def test_a_verifier_that_exits_has_failed():
    class Task:
        def score(self, prompt, response, text):
            sys.exit(0)

    with pytest.raises(InputError, match=r"verifier: got 'sys\.exit\(0\)'"):
        verify(Task(), [(None, (), "text")])


CLAIM = """
import sys
from anypolicy.evidence.checks import Check
CLAIM, SEEDS, ARMS = "c", 2, ("a",)
def run(arm, seed):
    return {"x": 1.0}
CHECKS = [Check("n", "> -9", lambda r: 0.0, above=-9.0)]
"""
EXITS = {"import": "import sys", "run": 'return {"x": 1.0}', "check": "lambda r: 0.0"}


@pytest.mark.parametrize(("where", "workers"), [("import", 1), ("run", 1), ("run", 2), ("check", 1)])
def test_a_claim_that_exits_has_failed(tmp_path, capsys, where, workers):
    how = {"import": "import sys\nsys.exit(0)", "run": "sys.exit(0)", "check": "lambda r: sys.exit(0)"}[where]
    path = tmp_path / "claims" / "mine.py"
    path.parent.mkdir()
    path.write_text(CLAIM.replace(EXITS[where], how))
    command = ["reproduce", "mine", "--claims", str(path.parent), "--workers", str(workers)]
    assert main(command) == 2 and "claim: " in capsys.readouterr().err


def test_files_that_exit_when_they_are_imported(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import sys\nsys.exit(0)\n")
    for load in (lambda: catalogue.load_file(path, trust=True), lambda: load_reward(f"{path}:score")):
        with pytest.raises(InputError, match="cannot be imported: SystemExit: 0"):
            load()


def test_a_tracker_that_exits_is_left(capsys):
    tracker = TrackerAdapter("mine", lambda numbers, step: sys.exit(0), lambda: None)
    tracker.log({"x": 1.0}, 3)
    assert not tracker.alive and "tracker mine failed" in capsys.readouterr().err


def test_a_run_of_code_that_exits_has_failed(run):  # noqa: F811
    with pytest.raises(InputError, match=r"run: got 'sys\.exit\(0\)'"):
        driven(run, lambda n, pause: sys.exit(0))


METHOD = """
import sys
from dataclasses import replace
from anypolicy.catalogue import Card, method
from anypolicy.methods.language.grpo import grpo

@method(Card("Mine", "none", 2026, "language", "exit", ("advantage",), "all", "none"))
def exits_itself(size: int = 4):
    sys.exit(0)
"""


def test_a_command_of_code_that_exits_has_failed(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(METHOD)
    command = ["explain", "exits-itself", "--task", "tabular-lock", "--method-file", str(tmp_path / "mine.py")]
    assert main(command) == 2 and "command: got 'sys.exit(0)'" in capsys.readouterr().err
    assert main(["explain", "--help"]) == 0 and main(["nothing"]) == 2
