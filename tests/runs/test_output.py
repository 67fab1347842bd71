"""A run whose output nobody reads any more goes on and keeps everything."""

import io
import os
import subprocess
import sys

import pytest

from anypolicy.cli.app import main
from anypolicy.families import language as training
from anypolicy.runs.output import Lasting, lasting_output
from anypolicy.studies.compare import compare
from tests.runs.test_resume import LOCK, result

NAMES = ("stdout", "stderr")


@pytest.fixture
def unread(monkeypatch):
    """Standard output and standard error are a pipe whose reader is gone."""
    read, write = os.pipe()
    os.close(read)
    streams = [os.fdopen(os.dup(write), "w", buffering=1) for _ in NAMES]
    os.close(write)
    for name, stream in zip(NAMES, streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    yield
    monkeypatch.undo()
    for stream in streams:
        stream.close()


CLAIM = """
from anypolicy.evidence.checks import Check
CLAIM, SEEDS, ARMS = "c", 2, ("a",)
def run(arm, seed):
    print("said by the claim", flush=True)
    return {"x": float(seed)}
CHECKS = [Check("n", "> -9", lambda r: r["a"]["x"], above=-9.0)]
"""
BOTH = ["grpo", "rloo", "--task", "tabular-lock", "--steps", "2", "--seeds", "2", "--trackers"]


def test_commands_whose_output_nobody_reads_do_all_their_work(unread, tmp_path):
    run, study, claims = tmp_path / "run", tmp_path / "study", tmp_path / "claims"
    assert main([*LOCK, "--out", str(run)]) == 0 and (run / "report.html").is_file() and (run / "policy").is_dir()
    assert main(["resume", str(run)]) == 0
    assert main(["compare", *BOTH, "--out", str(study)]) == 0 and (study / "curves.svg").is_file()
    claims.mkdir()
    (claims / "mine.py").write_text(CLAIM)
    assert main(["reproduce", "mine", "--claims", str(claims)]) == 0
    assert (tmp_path / "docs" / "evidence" / "mine.json").is_file()
    assert main(["methods"]) == 0 and main(["train", "nothing", "--task", "x"]) == 2


def test_the_python_api_does_so_too(unread, tmp_path):
    settings = {"task": "tabular-lock", "steps": 2, "trackers": ()}
    assert training.train("grpo", out=tmp_path / "run", **settings).rows[-1]["step"] == 2
    assert compare(["grpo", "rloo"], seeds=2, out=tmp_path / "study", **settings).arms


def test_a_reward_that_prints_does_not_fail_because_nobody_reads(unread, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def score(prompt, responses):\n    print(prompt)\n    return [1.0 for _ in responses]\n")
    assert main([*LOCK, "--reward", f"{path}:score", "--out", str(tmp_path / "run")]) == 0


def test_a_reader_that_leaves_after_one_line_ends_no_training(tmp_path):
    command = [sys.executable, "-m", "anypolicy", *LOCK, "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as p:
        assert p.stdout.readline()
        p.stdout.close()
        assert p.wait() == 0
    assert main([*LOCK, "--quiet", "--out", str(tmp_path / "whole")]) == 0
    assert result(tmp_path / "run") == result(tmp_path / "whole") and (tmp_path / "run" / "report.html").is_file()


def test_what_cannot_be_written_is_lost_and_other_faults_are_not_hidden():
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    Lasting(full).writelines(["a\n", "b\n"])
    Lasting(full).flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    full.close()
    gone = io.StringIO()
    gone.close()
    Lasting(gone).write("a")
    with pytest.raises(UnicodeEncodeError):
        Lasting(io.TextIOWrapper(io.BytesIO(), "ascii")).write("ä")


def test_streams_are_put_back(capsys):
    before = sys.stdout, sys.stderr
    with lasting_output():
        print("out")
        print("err", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr() == ("out\n", "err\n")
