"""Seeds, intervals of proportions, tracker names."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import binomtest

from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.runs import processor
from anypolicy.runs.files import check_unused, disk_errors, write_text
from anypolicy.runs.metrics import documented, wilson
from anypolicy.runs.notes import notes
from anypolicy.runs.processor import quota
from anypolicy.runs.seeds import generator, numpy_generator
from anypolicy.runs.trackers import check_trackers


def test_streams_are_pinned_and_apart():
    assert numpy_generator(0, "sampler", 3).integers(0, 1000, 4).tolist() == [95, 905, 115, 499]
    assert torch.randint(0, 1000, (4,), generator=generator(0, "sampling", 3, 0)).tolist() == [364, 29, 222, 361]
    firsts = {float(numpy_generator(s, *n).random()) for s in (0, 1) for n in (("a",), ("a", 1), ("a", "1"), ("b",))}
    assert len(firsts) == 8


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (96, 200)])
def test_wilson_is_scipys(right, n):
    want = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((want.low, want.high), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_names():
    assert documented("loss/policy")
    assert documented("probe/success_hard")
    assert not documented("loss")
    assert not documented("lossy/policy")
    assert documented("mine", {"mine": "x"})


def test_trackers_are_checked_by_name():
    check_trackers(("tensorboard",))
    with pytest.raises(InputError, match="did you mean 'wandb'"):
        check_trackers(("wand",))


def test_numpy_integers_do_not_change_a_stream():
    assert numpy_generator(np.int64(3), "a").random() == numpy_generator(3, "a").random()


def test_notes_of_a_run_that_learnt_nothing():
    learnt = [{"step": 0, "updates": 2.0, "reward/mean": 0.5}, {"step": 1, "updates": 0.0, "reward/mean": 0.0}]
    assert notes(learnt) == [] and notes([{"step": 0, "event": "eval", "eval/return": -3.0}]) == []
    idle = notes([{"step": 0, "updates": 0.0, "reward/mean": 1.0}])
    assert len(idle) == 1 and "no update moved" in idle[0] and "differed in reward" in idle[0]
    assert len(notes([{"updates": 1.0, "grad_norm": 0.0, "reward/mean": 1.0}])) == 1
    warm = notes([{"step": 0, "updates": 0.0, "episode/count": 2.0, "episode/return": 3.0}])
    assert len(warm) == 1 and "warm-up" in warm[0]
    assert "every reward" in notes([{"updates": 1.0, "reward/mean": 0.0, "reward/std": 0.0}])[0]
    assert notes([{"updates": 1.0, "reward/mean": 0.0, "reward/std": 1.0}]) == []
    assert "returned 0" in notes([{"episode/return": 0.0}, {"eval/return": 0.0}])[0]
    assert notes([{"episode/return": 0.0}, {"eval/return": 1.0}]) == []
    assert notes([{"event": "lost", "why": "rows are gone"}]) == ["NOTE: rows are gone"]


@pytest.mark.parametrize(
    ("command", "says"),
    [(["grpo", "--task", "tabular-lock", "--reward", "nothing.py:nothing"], ("no update moved", "every reward of")),
     (["sac", "--task", "gym/Pendulum-v1:max_steps=8", "--sac.warmup", "50", "--eval-episodes", "1"], ("warm-up",))],
    ids=["language", "control"],
)  # fmt: skip
def test_a_run_that_learnt_nothing_says_so_at_its_end_and_in_its_report(tmp_path, monkeypatch, capsys, command, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing.py").write_text("def nothing(prompt, responses):\n    return [0.0] * len(responses)\n")
    assert main(["train", *command, "--steps", "20", "--trackers", "--out", "run"]) == 0
    shown, page = capsys.readouterr().out, (tmp_path / "run" / "report.html").read_text()
    assert all(x in shown and x in page for x in says)


def test_threads_are_at_most_what_a_container_is_granted(tmp_path, monkeypatch):
    groups = tmp_path / "sys/fs/cgroup"
    (groups / "box" / "inner").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box/inner\n")
    (groups / "box/inner/cpu.max").write_text("max 100000\n")
    assert quota(tmp_path) is None
    (groups / "box/cpu.max").write_text("250000 100000\n")
    assert quota(tmp_path) == 2.5
    for started, granted, threads in ((8, 2.5, 2), (2, 8.0, 2), (4, 0.5, 1), (4, None, 4)):
        monkeypatch.setattr(processor, "STARTED", started)
        monkeypatch.setattr(processor, "quota", lambda granted=granted: granted)
        assert processor.choose_threads() == threads


def test_threads_of_the_older_control_groups(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu:/\n0::/\n")
    cpu = tmp_path / "sys/fs/cgroup/cpu"
    cpu.mkdir(parents=True)
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    for text, want in (("-1\n", None), ("150000\n", 1.5)):
        (cpu / "cpu.cfs_quota_us").write_text(text)
        assert quota(tmp_path) == want


@pytest.mark.parametrize(("given", "spins"), [({}, "2000"), ({"OMP_WAIT_POLICY": "active"}, "None")])
def test_waiting_threads_do_not_spin_for_long_unless_told(given, spins):
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    code = "import sys, anypolicy, os; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    said = subprocess.run([sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == spins


@pytest.mark.parametrize("place", ["a" * 300, "file/x", "nothing/x"])
def test_what_cannot_be_written_is_one_error(tmp_path, place):
    (tmp_path / "file").touch()
    path = tmp_path / place
    with pytest.raises(InputError, match="cannot be written"):
        write_text(path, "text")
    with pytest.raises(InputError, match="cannot be written"), disk_errors(path):
        save_file({"x": torch.zeros(1)}, path)


def test_a_place_to_write_to_is_free(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new", tmp_path / "empty"):
        check_unused(path, folder=True)
    for path, folder in ((tmp_path / "file", False), (tmp_path / "file", True), (tmp_path, True), (tmp_path, False)):
        with pytest.raises(InputError, match="choose another"):
            check_unused(path, folder=folder)


def test_leftovers_of_killed_writers_go_when_they_are_old(tmp_path):
    old, new = tmp_path / ".writing-old", tmp_path / ".writing-new"
    old.mkdir()
    new.write_text("another process writes this")
    os.utime(old, (0, 0))
    write_text(tmp_path / "file", "text")
    assert not old.exists() and new.exists()
