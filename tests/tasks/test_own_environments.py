"""Environments of the user's own: in modules and files that register them."""

import py_compile
import sys
from importlib.util import cache_from_source

import gymnasium
import pytest

from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.families import control
from anypolicy.families.base import evaluate, train
from anypolicy.runs import trust
from anypolicy.runs.directory import RunDirectory
from anypolicy.tasks.control.environments import load_environment

SMALL = [
    "--steps",
    "20",
    "--dqn.hidden",
    "4",
    "--dqn.warmup",
    "10",
    "--dqn.batch",
    "2",
    "--trackers",
    "--eval-episodes",
    "1",
]
SHORT = {
    "steps": 20,
    "trackers": (),
    "eval_episodes": 1,
    "quiet": True,
    "knobs": {"hidden": (4,), "warmup": 10, "batch": 2},
}
CODE = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

class Corridor(gymnasium.Env):
    observation_space, action_space = Box(0, 9, (1,), np.float32), Discrete(2)

    def __init__(self, length=3):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.array([self.at], np.float32), {}

    def step(self, action):
        self.at = max(0, self.at + 2 * int(action) - 1)
        return np.array([min(self.at, 9)], np.float32), -1.0, self.at == self.length, False, {}

gymnasium.register("Corridor-v0", entry_point=Corridor, max_episode_steps=20)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory of a user who has run nothing yet, as Python was before afterwards."""
    monkeypatch.setenv("ANYPOLICY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    modules, allowed, known = dict(sys.modules), set(trust.ALLOWED), dict(gymnasium.registry)
    trust.ALLOWED.clear()
    yield tmp_path
    for name in sys.modules.keys() - modules.keys():
        if name.partition(".")[0] in ("halls", "tower"):
            del sys.modules[name]
    trust.ALLOWED.clear()
    trust.inherit(allowed)
    for name in gymnasium.registry.keys() - known.keys():
        entry = gymnasium.registry[name].entry_point
        if str(getattr(entry, "__module__", entry)).partition(".")[0].partition(":")[0] in ("halls", "tower"):
            del gymnasium.registry[name]


def another_process() -> None:
    """Forget what was imported, registered and allowed here."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("halls", "tower")]:
        del sys.modules[name]
    gymnasium.registry.pop("Corridor-v0", None)
    trust.ALLOWED.clear()


def package(folder):
    """`tower.rooms` registers the environment, which stands in a module that is not imported before it is made."""
    (folder / "tower" / "rooms").mkdir(parents=True)
    (folder / "tower" / "__init__.py").touch()
    (folder / "tower" / "late.py").write_text(CODE.rpartition("gymnasium.register")[0])
    (folder / "tower" / "rooms" / "__init__.py").write_text(
        "import gymnasium\ngymnasium.register('Corridor-v0', entry_point='tower.late:Corridor', max_episode_steps=20)\n"
    )


def test_a_module_of_the_working_directory_registers_its_environment(folder, capsys):
    (folder / "halls.py").write_text(CODE)
    task = "gym/halls:Corridor-v0:length=2,reward_scale=0.5"
    assert main(["train", "dqn", "--task", task, *SMALL, "--quiet", "--out", "run"]) == 0
    with RunDirectory.open("run", lock=False) as run:
        assert run.recipe()["task"] == task
    another_process()
    assert main(["eval", "run", "--episodes", "1"]) == 0
    assert main(["resume", "run", "--steps", "30", "--quiet"]) == 0
    another_process()
    (folder / "halls.py").write_text(CODE + "# changed\n")
    assert main(["eval", "run", "--episodes", "1"]) == 2
    assert "did not name on this command" in capsys.readouterr().err
    assert main(["eval", "run", "--episodes", "1", "--import", "halls"]) == 0


def test_a_package_is_looked_at_as_a_whole(folder):
    package(folder)
    run = train("dqn", task="gym/tower.rooms:Corridor-v0", out="run", **SHORT)
    another_process()
    assert evaluate(run.path)["eval/n"] == 1
    (folder / "tower" / "late.py").write_text("raise SystemExit\n")
    another_process()
    with pytest.raises(InputError, match="did not name on this command"):
        evaluate(run.path)
    with pytest.raises(InputError, match=r"task: got .*it cannot be made: SystemExit"):
        evaluate(run.path, trust=True)


def test_bytecode_of_a_package_is_not_what_runs(folder):
    package(folder)
    late = folder / "tower" / "late.py"
    good = late.read_text()
    late.write_text("open('mark', 'w')\n")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(late), cache_from_source(str(late)), invalidation_mode=mode)
    late.write_text(good)
    trust.allow({"task": "gym/tower.rooms:Corridor-v0"})
    assert load_environment("gym/tower.rooms:Corridor-v0").space.actions == 2
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("named", ["halls.py", "halls"])
def test_what_is_imported_stands_in_the_recipe(folder, named):
    (folder / "halls.py").write_text(CODE)
    assert main(["explain", "dqn", "--task", "gym/Corridor-v0", "--import", named]) == 0
    another_process()
    assert (
        main(["train", "dqn", "--task", "gym/Corridor-v0", "--import", named, *SMALL, "--quiet", "--out", "run"]) == 0
    )
    another_process()
    assert control.evaluate_run("run", episodes=1)["eval/n"] == 1


def test_a_run_of_a_registered_environment_is_evaluated_with_an_import(folder, capsys):
    (folder / "halls.py").write_text(CODE)
    trust.allow({"imports": ("halls",)})
    trust.enter_modules(("halls",))
    train("dqn", task="gym/Corridor-v0", out="run", **SHORT)
    another_process()
    assert main(["eval", "run"]) == 2
    assert "Gymnasium has no such environment" in capsys.readouterr().err
    assert main(["eval", "run", "--import", "halls.py", "--episodes", "1"]) == 0


def test_two_methods_are_compared_in_workers(folder):
    (folder / "halls.py").write_text(CODE)
    arguments = ["--task", "gym/halls:Corridor-v0", "--seeds", "2", "--workers", "2", *SMALL[:2], *SMALL[8:]]
    assert main(["compare", "dqn", "npg-igt", *arguments, "--quiet", "--out", "both"]) == 0


@pytest.mark.parametrize(("settings", "said"), [
    ({"task": "gym/nowhere.at_all:X-v0"}, "task: got 'nowhere.at_all'; Python finds no such module"),
    ({"task": "gym/sys:X-v0"}, "Python finds no such module"),
    ({"task": "gym/halls:Elsewhere-v0"}, "Gymnasium has no such environment"),
    ({"task": "gym/Corridor-v0", "imports": ("no.py",)}, "import: got 'no.py'; there is no such file"),
    ({"task": "gym/Corridor-v0", "imports": ("\\0.py",)}, "there is no such file"),
    ({"task": "gym/Corridor-v0", "imports": ("a b",)}, "Python finds no such module"),
    ({"task": "gym/Corridor-v0", "imports": ("bad.py",)}, "import: got .*cannot be imported: ZeroDivisionError"),
    ({"task": "gym/Corridor-v0", "imports": ("gymnasium.py",)}, "a module called gymnasium is loaded already"),
])  # fmt: skip
def test_what_cannot_be_imported_is_one_error(folder, settings, said):
    (folder / "halls.py").write_text(CODE)
    (folder / "bad.py").write_text("1 / 0\n")
    (folder / "gymnasium.py").touch()
    with pytest.raises(InputError, match=said):
        train("dqn", **settings)
