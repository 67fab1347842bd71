"""Run directories and their ledgers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anypolicy.errors import InputError
from anypolicy.runs.checkpoint import Position
from anypolicy.runs.directory import RunDirectory, append_line, read_lines


def test_create_open_and_refuse(tmp_path):
    with RunDirectory.create(tmp_path / "run", {"method": "grpo", "seed": 3}) as run:
        run.append({"step": 0, "x": 0.1})
        with pytest.raises(InputError, match="another process"):
            RunDirectory.open(tmp_path / "run")
    with RunDirectory.open(tmp_path / "run") as run:
        assert run.recipe() == {"method": "grpo", "seed": 3}
        assert run.read() == [{"step": 0, "x": 0.1}]
    with pytest.raises(InputError, match="anypolicy resume"):
        RunDirectory.create(tmp_path / "run", {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(InputError, match="is no run"):
        RunDirectory.create(tmp_path / "other", {})
    with pytest.raises(InputError, match="no run directory"):
        RunDirectory.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    assert not list(tmp_path.glob(".writing-*"))


@given(st.lists(st.integers(0, 6), max_size=12), st.integers(0, 7), st.text(max_size=8))
def test_cutting_the_ledger(tmp_path_factory, steps, at, rest):
    path = tmp_path_factory.mktemp("run") / "run"
    with RunDirectory.create(path, {}) as run:
        for s in sorted(steps):
            run.append({"step": s, "value": s / 3})
        with (path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 0, "half' + rest.replace("\n", "").replace("\r", ""))
        run.truncate_to(Position(at, at))
        assert run.read() == [{"step": s, "value": s / 3} for s in sorted(steps) if s < at]
        run.append({"step": at})
        assert run.read()[-1] == {"step": at}


def test_a_full_disk_takes_the_cut_line_back():
    with pytest.raises(InputError, match="disk is full"):
        append_line(Path("/dev/full"), {"step": 1})


def test_policy_folder_is_replaced_as_a_whole(tmp_path):
    with RunDirectory.create(tmp_path / "run", {}) as run:
        run.save_policy(lambda folder: (folder / "a").write_text("1"))

        def broken(folder):
            (folder / "b").write_text("2")
            raise RuntimeError("stop")

        with pytest.raises(RuntimeError):
            run.save_policy(broken)
        assert [f.name for f in (run.path / "policy").iterdir()] == ["a"]
        run.save_policy(lambda folder: (folder / "c").write_text("3"))
        assert [f.name for f in (run.path / "policy").iterdir()] == ["c"]
        assert not list(run.path.glob(".writing-*"))


def test_samples_and_lines(tmp_path):
    with RunDirectory.create(tmp_path / "run", {}) as run:
        odd = [{"response": "ü\n\u2028\x85\ud800"}]
        run.write_samples("step-1", odd)
        assert run.read_samples("step-1") == odd
        assert run.read_samples("none") == []
    (tmp_path / "x.jsonl").write_text(json.dumps({"a": 1}) + "\n" + '{"a": ')
    assert read_lines(tmp_path / "x.jsonl") == [{"a": 1}]


def test_a_kill_while_a_folder_is_replaced_is_mended(tmp_path):
    with RunDirectory.create(tmp_path / "run", {}) as run:
        run.save_policy(lambda folder: (folder / "a").write_text("1"))
    (tmp_path / "run" / "policy").rename(tmp_path / "run" / ".old-policy")
    with RunDirectory.open(tmp_path / "run") as run:
        assert (run.path / "policy" / "a").read_text() == "1"
        assert not list(run.path.glob(".old-*"))


@pytest.mark.parametrize("name", [".", "file/run", "x" * 300])
def test_places_where_no_run_can_be(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(InputError, match="out"):
        RunDirectory.create(Path(name), {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_broken_line_in_the_ledger_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 1}\n')
    with pytest.raises(InputError, match="line 2"):
        read_lines(tmp_path / "m.jsonl")


@pytest.mark.parametrize("name", ["metrics.jsonl", "groups.jsonl", "timing.jsonl"])
def test_a_ledger_that_is_no_file_is_not_read(tmp_path, name):
    """A device may have no end."""
    with RunDirectory.create(tmp_path / "run", {}) as run:
        (run.path / name).symlink_to("/dev/zero")
        with pytest.raises(InputError, match="no ordinary file"):
            run.truncate_to(Position(0, 0))


@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "groups.jsonl", "timing.jsonl", ".lock", "checkpoints", "checkpoints/000001", "samples",
             "policy", "reward-model", "tensorboard"],
)  # fmt: skip
def test_a_run_whose_parts_are_links_writes_nowhere_else(tmp_path, name, lock):
    """Where somebody hands us a folder, going on with it must not change another run."""
    (other := tmp_path / "other").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("{}")
    link = tmp_path / "run" / name
    if link.is_dir():
        link.rmdir()
    for target in (other, tmp_path / "not there"):
        link.symlink_to(target)
        with pytest.raises(InputError, match="it is a link"):
            RunDirectory.open(tmp_path / "run", lock=lock)
        link.unlink()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "run")
    with RunDirectory.open(tmp_path / "elsewhere", lock=lock) as run:
        assert run.read() == []
    assert not list(other.iterdir()) and not (tmp_path / "not there").exists()


@pytest.mark.parametrize("name", [".writing-x", ".old-kept", ".old-gone"])
def test_leftovers_that_are_links_or_files_are_swept(tmp_path, name):
    (other := tmp_path / "other").mkdir()
    (other / "file").write_text("mine")
    (run := tmp_path / "run").mkdir()
    (run / "recipe.yaml").write_text("{}")
    (run / "kept").write_text("kept")
    for make in (lambda path: path.symlink_to(other), lambda path: path.write_text("x")):
        make(run / name)
        RunDirectory.open(run).__exit__(None, None, None)
        assert not (run / name).exists() and not [p for p in run.iterdir() if p.is_symlink()]
        assert (other / "file").read_text() == "mine" and (run / "kept").read_text() == "kept"
