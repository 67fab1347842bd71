"""Run directories and their ledgers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.families.base import evaluate
from anypolicy.runs.checkpoint import Position
from anypolicy.runs.directory import FILES, FOLDERS, RunDirectory, append_line, read_lines
from anypolicy.runs.files import make_place
from anypolicy.studies.compare import compare


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


@pytest.mark.parametrize("name", ["updates", "grad_norm", "eval/return"])
def test_a_ledger_holds_numbers(tmp_path, name):
    run = RunDirectory.create(tmp_path / "run", {"steps": 1})
    run.append({"step": 0, "event": "lost", "why": "words", name: 1.5})
    assert run.read()[0][name] == 1.5
    run.append({"step": 1, name: "1.5"})
    with pytest.raises(InputError, match=f"line 2.*'{name}' is no number"):
        run.read()


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


@pytest.mark.parametrize("name", FILES)
def test_a_folder_where_a_file_is_written_is_refused(tmp_path, name):
    RunDirectory.create(tmp_path / "run", {}).__exit__(None, None, None)
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).mkdir()
    with pytest.raises(InputError, match=r"no run directory|not an ordinary file"):
        RunDirectory.open(tmp_path / "run")


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("put", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "dead link"])
def test_a_file_where_a_folder_is_written_is_refused(tmp_path, name, put):
    RunDirectory.create(tmp_path / "run", {}).__exit__(None, None, None)
    put(tmp_path / "run" / name)
    for lock in (True, False):
        with pytest.raises(InputError, match=f"{name}'; it is (not a folder|a link)"):
            RunDirectory.open(tmp_path / "run", lock=lock)


def test_a_folder_named_like_samples_is_refused(tmp_path):
    RunDirectory.create(tmp_path / "run", {}).__exit__(None, None, None)
    (tmp_path / "run" / "samples" / "step-000004.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match="not an ordinary file"):
        RunDirectory.open(tmp_path / "run")


def test_a_file_in_the_place_of_a_folder_ends_a_run_before_its_first_step(tmp_path, monkeypatch):
    out, settings = tmp_path / "run", {"trackers": (), "quiet": True}
    training.train("grpo", task="tabular-lock", steps=1, out=out, **settings)
    monkeypatch.setattr(training.GroupLoop, "step", lambda self: pytest.fail("a step was made"))
    for name in ("samples", "checkpoints"):
        (out / name).rename(out / "kept")
        (out / name).touch()
        with pytest.raises(InputError, match=f"{name}'; it is not a folder"):
            training.resume(out, steps=3, quiet=True)
        with pytest.raises(InputError, match=f"{name}'; it is not a folder"):
            evaluate(out)
        (out / name).unlink()
        (out / "kept").rename(out / name)
    both = {"task": "tabular-lock", "seeds": 2, "steps": 1, **settings}
    for name, put in (("report.html", Path.mkdir), ("rloo", Path.touch), ("rloo/seed-1", Path.touch)):
        study = tmp_path / f"study of {name.replace('/', ' ')}"
        (study / name).parent.mkdir(parents=True)
        put(study / name)
        with pytest.raises(InputError, match="out"):
            compare(["grpo", "rloo"], out=study, **both)


def test_where_a_file_is_to_be_written_its_folder_is_made(tmp_path):
    make_place(tmp_path / "new" / "scores.jsonl")
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").touch()
    for place in (tmp_path / "new", tmp_path / "file" / "scores.jsonl"):
        with pytest.raises(InputError, match="out"):
            make_place(place)
