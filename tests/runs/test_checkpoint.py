"""Checkpoints: whole or not there, verified, without executable content."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.runs.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint


def save(run, step, value=1.0):
    return save_checkpoint(
        run, step, {"optimiser": {"a": torch.full((3,), value)}}, {"x": 0.1 + 0.2, "n": float("inf")}
    )


def test_round_trip_and_only_the_newest_is_kept(tmp_path):
    save(tmp_path, 1)
    folder = save(tmp_path, 12, 0.25)
    assert latest_checkpoint(tmp_path) == folder
    assert [f.name for f in folder.parent.iterdir()] == ["000012"]
    got = load_checkpoint(folder)
    assert (got.step, got.state) == (12, {"x": 0.1 + 0.2, "n": float("inf")})
    assert torch.equal(got.tensors["optimiser"]["a"], torch.full((3,), 0.25))


def test_nothing_in_it_can_be_executed(tmp_path):
    folder = save(tmp_path, 3)
    assert {f.suffix for f in folder.iterdir()} == {".safetensors", ".json"}
    for f in folder.glob("*.safetensors"):
        size = int.from_bytes(f.read_bytes()[:8], "little")
        assert json.loads(f.read_bytes()[8 : 8 + size])
    for f in folder.glob("*.json"):
        json.loads(f.read_text())


@pytest.mark.parametrize("name", ["optimiser.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_found(tmp_path, name, damage):
    path = save(tmp_path, 3) / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[-2] ^= 0xFF
        path.write_bytes(data)
    with pytest.raises(InputError, match="checkpoint"):
        load_checkpoint(path.parent)


@pytest.mark.parametrize(
    "change",
    [{"format": "something-else"}, {"version": 99}, {"version": 0}, {"step": 4}, {"files": []}, {"files": {}},
     {"files": {"state.json": {}}}, {"step": None}],
)  # fmt: skip
def test_foreign_checkpoints_are_refused(tmp_path, change):
    path = save(tmp_path, 3) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="checkpoint"):
        load_checkpoint(path.parent)


def test_numbers_are_compared_as_numbers_and_other_things_are_left_alone(tmp_path):
    save(tmp_path, 999_999)
    for name in ("best", "0-mine"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "notes.txt").touch()
    folder = save(tmp_path, 1_000_000)
    assert latest_checkpoint(tmp_path) == folder
    left = {f.name for f in folder.parent.iterdir()}
    assert left == {"1000000", "best", "0-mine", "notes.txt"}


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    good = save(tmp_path, 1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(InputError, match="disk is full"):
            save_checkpoint(tmp_path, 2, {"optimiser": {"a": torch.zeros(1 << 16)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert latest_checkpoint(tmp_path) == good
    assert [f.name for f in good.parent.iterdir()] == ["000001"]
    load_checkpoint(good)


WRITER = """
import sys, torch
from pathlib import Path
from anypolicy.runs.checkpoint import save_checkpoint
for step in range(1, 10000):
    save_checkpoint(Path(sys.argv[1]), step, {"optimiser": {"a": torch.full((100000,), float(step))}}, {"step": step})
    print(step, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path):
    """Killed four times, each time after another number of finished checkpoints and so somewhere inside the next."""
    for after in (1, 2, 3, 5):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ)
        for _ in range(after):
            child.stdout.readline()
        child.kill()
        child.wait()
        got = load_checkpoint(latest_checkpoint(tmp_path))
        assert got.state["step"] == got.step
        assert got.tensors["optimiser"]["a"][0] == got.step
    save(tmp_path, 99999)
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["099999"]
