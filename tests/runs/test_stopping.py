"""Signals and the clock: what a run keeps, where it says that it goes on, and that its bits are those of the whole run."""

import os
import signal
import threading

import pytest

from anypolicy.families import control
from anypolicy.families import language as training
from anypolicy.runs import drive as driving
from anypolicy.runs.checkpoint import Position, latest_checkpoint
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.drive import Schedule, drive
from anypolicy.runs.recipes import keep
from anypolicy.runs.stop import SIGNALS, Stopped
from tests.forks import CommandLine
from tests.helpers import StopAt
from tests.runs.test_resume import LOCK, PENDULUM, result


def driven(run: RunDirectory, learn=lambda n, pause: {}, evaluate=lambda step: {}, first=None, **schedule):
    """A run of ten steps that does nothing but what is given; the positions that were saved."""
    saved = list[Position]()

    def save(at: Position) -> None:
        saved.append(at)
        keep(run, at, {}, {}, {})

    s = Schedule(**{"steps": 10, "eval_every": 5, "checkpoint_every": 5, **schedule})
    drive(
        run,
        s,
        first or Position(0, 0),
        title="t",
        trackers=(),
        written={},
        quiet=True,
        learn=learn,
        evaluate=evaluate,
        save=save,
    )
    return saved


@pytest.fixture
def run(tmp_path):
    with RunDirectory.create(tmp_path / "run", {}) as made:
        yield made


def at(step: int, number: int = signal.SIGINT):
    """A `learn` in whose step of that number (from 1) a signal comes, once."""
    calls = []

    def learn(n, pause):
        calls.append(n)
        if len(calls) == step:
            signal.raise_signal(number)
        return {"call": len(calls)}

    return learn


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_in_hand_is_finished_and_kept(run, number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(Stopped, match=rf"`anypolicy resume {run.path}` goes on from step 3") as stop:
        driven(run, at(3, number))
    assert stop.value.code == 128 + number and isinstance(stop.value, KeyboardInterrupt)
    assert [r["step"] for r in run.read()] == [0, 0, 1, 2] and latest_checkpoint(run.path).name == "000003"
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize("last", [5, 10])
def test_a_signal_in_an_evaluation_waits_for_it(run, last):
    """In the last one too: who waits for the run (a comparison, say) begins no other."""

    def evaluate(step):
        if step == last:
            signal.raise_signal(signal.SIGINT)
        return {"seen": step}

    with pytest.raises(Stopped, match=f"from step {last}"):
        driven(run, evaluate=evaluate, checkpoint_every=0)
    assert run.read()[-1] == {"step": last, "event": "eval", "seen": last}
    assert latest_checkpoint(run.path).name == f"{last:06d}"


@pytest.mark.parametrize("looks", range(2, 6))
def test_whenever_a_signal_comes_there_is_a_checkpoint_of_the_last_step(run, looks, monkeypatch):
    monkeypatch.setattr(driving, "first_signal", StopAt(looks))
    steps, saved = [], []
    monkeypatch.setattr("tests.runs.test_stopping.keep", lambda run, at, *rest: saved.append(at.step))
    with pytest.raises(Stopped):
        driven(run, learn=lambda n, pause: steps.append(n) or {}, stride=1)
    assert sum(steps) == saved[-1] > 0


def test_the_second_signal_stops_at_once(run):
    def learn(n, pause):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    with pytest.raises(KeyboardInterrupt):
        driven(run, learn)
    assert latest_checkpoint(run.path) is None


def test_between_the_steps_of_a_row_it_can_stop_too(run):
    """The row is open in the checkpoint, and the run that goes on ends it where it would have ended."""

    def learn(n, pause):
        pause(1)
        signal.raise_signal(signal.SIGINT)
        pause(2)
        raise AssertionError("it went on")

    with pytest.raises(Stopped, match="from step 2"):
        driven(run, learn, stride=4, eval_every=0)
    asked = []
    driven(run, lambda n, pause: asked.append(n) or {}, first=Position(2, 0), stride=4, eval_every=0)
    assert asked == [2, 1, 3, 2]
    assert [r["step"] for r in run.read() if "event" not in r] == [0, 4, 5, 8]


def test_what_the_process_ignores_stays_ignored(run):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        driven(run, at(3))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(run.read()) == 13


def test_outside_the_main_thread_nothing_is_handled(run):
    before, seen = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(
        target=driven, args=(run, lambda n, pause: seen.append(signal.getsignal(signal.SIGINT)) or {})
    )
    thread.start()
    thread.join()
    assert seen == [before] * 10


def test_checkpoints_come_by_the_clock(run, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(driving.time, "monotonic", lambda: clock[0])

    def learn(n, pause):
        for made in range(1, n):
            clock[0] += 100.0
            pause(made)
        clock[0] += 100.0
        return {}

    saved = driven(run, learn, stride=5, eval_every=0, checkpoint_every=0, minutes=5.0)
    assert saved == [Position(3, 0), Position(6, 5), Position(9, 5), Position(10, 10)]
    assert driven(run, learn, stride=5, eval_every=0, checkpoint_every=0) == [Position(10, 10)]


def test_a_run_stopped_at_once_says_that_it_begins_again(tmp_path):
    with pytest.raises(Stopped, match=r"begins at step 0 \(there is no checkpoint yet\)"):  # noqa: SIM117
        with RunDirectory.create(tmp_path / "run", {}):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def anypolicy(tmp_path_factory):
    line = CommandLine(tmp_path_factory.mktemp("command-line"))
    yield line.run
    line.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("command", "place", "every"),
    [(LOCK, ("update", 2), 3), (PENDULUM, ("environment", 47), 30)],
    ids=["lock", "pendulum"],
)
def test_a_stopped_command_resumes_to_the_same_bits(anypolicy, tmp_path, command, place, every, number, code):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert anypolicy(*command, "--out", str(whole)).returncode == 0
    died = anypolicy(*command, "--out", str(run), kill=(*place, number))
    assert died.returncode == code, died.stderr
    step = int(latest_checkpoint(run).name)
    assert step % every, "a checkpoint that was due all the same"
    assert f"`anypolicy resume {run}` goes on from step {step}" in died.stderr
    went_on = anypolicy("resume", str(run))
    assert went_on.returncode == 0 and f"goes on from step {step}" in went_on.stderr
    assert result(run) == result(whole)


def test_two_signals_stop_at_once_and_say_where_it_goes_on(anypolicy, tmp_path):
    run = tmp_path / "run"
    died = anypolicy(*LOCK, "--out", str(run), kill=("update", 14, signal.SIGINT, 2))
    assert died.returncode == 130
    assert f"`anypolicy resume {run}` goes on from step 3" in died.stderr and latest_checkpoint(run).name == "000003"


def test_what_is_repeated_says_so(anypolicy, tmp_path):
    command = [
        "compare",
        "grpo",
        "rloo",
        "--task",
        "tabular-lock",
        "--steps",
        "8",
        "--seeds",
        "2",
        "--trackers",
        "--out",
    ]
    died = anypolicy(*command, str(tmp_path / "study"), kill=("update", 3, signal.SIGTERM))
    assert died.returncode == 143
    assert "the same command goes on" in died.stderr and "anypolicy resume" not in died.stderr
    assert latest_checkpoint(tmp_path / "study" / "grpo" / "seed-0").name == "000003"
    assert anypolicy(*command, str(tmp_path / "study")).returncode == 0


def test_the_python_api_stops_in_the_same_way(tmp_path, monkeypatch):
    step, calls = training.GroupLoop.step, []

    def stops(loop):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(loop)

    monkeypatch.setattr(training.GroupLoop, "step", stops)
    settings = {"task": "tabular-lock", "steps": 5, "trackers": (), "quiet": True}
    with pytest.raises(KeyboardInterrupt, match="goes on from step 2"):
        training.train("grpo", out=tmp_path / "run", **settings)
    training.resume(tmp_path / "run", quiet=True)
    training.train("grpo", out=tmp_path / "whole", **settings)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_checkpoints_by_the_clock_change_no_bit(tmp_path):
    knobs = {"hidden": (16, 16), "warmup": 5, "batch": 8}
    settings = {"task": "gym/Pendulum-v1:max_steps=8", "steps": 30, "eval_every": 15, "eval_episodes": 1,
                "trackers": (), "quiet": True, "knobs": knobs}  # fmt: skip
    for name, minutes in (("none", 0.0), ("at every step", 1e-9)):
        control.train_controller("sac", out=tmp_path / name, checkpoint_minutes=minutes, **settings)
    assert result(tmp_path / "none") == result(tmp_path / "at every step")


def test_leftovers_are_swept_from_every_folder_of_a_run(tmp_path):
    run = training.train("grpo", task="tabular-lock", steps=1, out=tmp_path / "run", trackers=(), quiet=True).path
    for folder in (run, run / "samples", run / "checkpoints"):
        (folder / ".writing-abc").write_text("half")
    training.resume(run, quiet=True)
    assert not list(run.rglob(".writing-*"))


def test_a_folder_named_like_a_number_is_no_checkpoint(tmp_path):
    run = training.train("grpo", task="tabular-lock", steps=1, out=tmp_path / "run", trackers=(), quiet=True).path
    for name in ("²", "٣", "3a"):
        (run / "checkpoints" / name).mkdir()
    assert latest_checkpoint(run).name == "000001"
    assert training.resume(run, quiet=True).rows[-1]["step"] == 1
