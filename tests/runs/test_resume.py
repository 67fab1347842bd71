"""A killed run that is resumed ends with the same bits as one that was never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from anypolicy.errors import InputError
from anypolicy.families import language as training
from tests.forks import CommandLine

LOCK = ["train", "ngrpo+vade", "--task", "tabular-lock", "--steps", "16", "--checkpoint-every", "3", "--trackers"]
ADD = ["train", "grpo", "--task", "tiny-add:base_accuracy=0.02", "--steps", "7", "--checkpoint-every", "2", "--prompts",
       "6", "--epochs", "2", "--trackers"]  # fmt: skip

PENDULUM = ["train", "sac", "--task", "gym/Pendulum-v1", "--steps", "90", "--sac.hidden", "16", "16", "--sac.warmup", "20",
            "--sac.batch", "8", "--checkpoint-every", "30", "--eval-every", "30", "--eval-episodes", "1",
            "--trackers"]  # fmt: skip


@pytest.fixture(scope="module")
def anypolicy(tmp_path_factory):
    """The command line, each time in a process of its own."""
    line = CommandLine(tmp_path_factory.mktemp("command-line"))
    yield line.run
    line.close()


def result(run: Path):
    rows = (run / "metrics.jsonl").read_text().splitlines()
    final = sorted((run / "checkpoints").iterdir())[-1]
    return rows, {
        f"{f.name}/{k}": v.numpy().tobytes() for f in final.glob("*.safetensors") for k, v in load_file(f).items()
    }


PLACES = (("generation", 23), ("update", 5), ("checkpoint", 2), ("rename", 3))


@pytest.mark.parametrize(
    ("command", "places"),
    [(LOCK, PLACES), (ADD, PLACES), (PENDULUM, (("environment", 47), ("checkpoint", 3), ("rename", 5)))],
    ids=["tabular-lock", "tiny-add", "pendulum"],
)
def test_killed_anywhere_and_resumed(anypolicy, tmp_path, command, places):
    assert anypolicy(*command, "--out", str(tmp_path / "whole")).returncode == 0
    want = result(tmp_path / "whole")
    for place, count in places:
        run = tmp_path / place
        died = anypolicy(*command, "--out", str(run), kill=(place, count))
        assert died.returncode == -9, (place, died.stderr)
        went_on = anypolicy("resume", str(run))
        assert went_on.returncode == 0, went_on.stderr
        assert result(run) == want, place
        assert not list(run.glob("**/.writing-*"))


def test_a_full_disk_ends_with_one_error_and_a_run_that_goes_on(anypolicy, tmp_path):
    assert anypolicy(*LOCK, "--out", str(tmp_path / "whole")).returncode == 0
    died = anypolicy(*LOCK, "--out", str(tmp_path / "run"), largest_file=6000)
    assert died.returncode == 2
    assert "disk is full" in died.stderr
    assert "Traceback" not in died.stderr
    assert anypolicy("resume", str(tmp_path / "run")).returncode == 0
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_a_run_can_be_made_longer_and_equals_the_long_one(tmp_path):
    common = {"task": "tabular-lock", "trackers": (), "quiet": True, "eval_every": 4, "checkpoint_every": 4}
    training.train("grpo", steps=4, out=tmp_path / "short", **common)
    training.resume(tmp_path / "short", steps=8, quiet=True)
    training.train("grpo", steps=8, out=tmp_path / "long", **common)
    assert result(tmp_path / "short") == result(tmp_path / "long")


def test_a_longer_run_stays_longer_and_a_shorter_one_is_refused(tmp_path):
    run = training.train("grpo", task="tabular-lock", steps=4, out=tmp_path / "run", trackers=(), quiet=True).path
    training.resume(run, steps=6, quiet=True)
    assert training.resume(run, quiet=True).rows[-1]["step"] == 6
    before = (run / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match="6 steps already"):
        training.resume(run, steps=1, quiet=True)
    assert (run / "metrics.jsonl").read_text() == before


def test_resuming_with_another_recipe_is_refused_and_the_run_stays_usable(tmp_path):
    run = training.train("grpo", task="tabular-lock", steps=2, out=tmp_path / "run", trackers=(), quiet=True).path
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"lr": 0.5}))
    with pytest.raises(InputError, match=r"lr: 0.1 → 0.5"):
        training.resume(run, steps=4, quiet=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert training.resume(run, steps=4, quiet=True).rows[-1]["step"] == 4


def test_tensorboard_has_the_ledger(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = training.train("grpo", task="tabular-lock", steps=3, out=tmp_path / "run", quiet=True)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    got = [e.value for e in events.Scalars("reward/mean")]
    assert got == pytest.approx([r["reward/mean"] for r in run.rows if "event" not in r])


def test_the_policy_folder_holds_the_final_weights(tmp_path):
    run = training.train("grpo", task="tabular-lock", steps=2, out=tmp_path / "run", trackers=(), quiet=True)
    saved = load_file(run.path / "policy" / "table.safetensors")["logits"]
    assert saved.equal(run.policy.module.logits.detach())
    assert json.loads((run.path / "policy" / "config.json").read_text())["type"] == "table"
    more = training.train("grpo", task="tabular-lock", policy=str(run.path / "policy"), steps=1, out=tmp_path / "more",
                          trackers=(), quiet=True)  # fmt: skip
    assert more.rows[0]["probe/success"] == run.rows[-1]["probe/success"]


def test_bits_do_not_depend_on_the_environment(tmp_path):
    env = os.environ | {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "anypolicy", *LOCK, "--out"]
    subprocess.run([*command, str(tmp_path / "a")], check=True, capture_output=True, env=env)
    subprocess.run([*command, str(tmp_path / "b")], check=True, capture_output=True, env=env | {"PYTHONHASHSEED": "8"})
    assert result(tmp_path / "a") == result(tmp_path / "b")
