"""The process that scores answers, with a scorer that runs whatever it is given: nothing gets out, nothing stays."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anypolicy.errors import InputError
from anypolicy.sandbox import backends
from anypolicy.sandbox.scorers import Door, Outcome, Scorer

RUNS = Scorer(
    "runs anything",
    (
        (
            "runs",
            """
import os, socket, struct, sys, threading
state = []
def make():
    def score(text):
        exec(text, globals())
        return value
    return score
""",
        ),
    ),
    isolated=True,
)
HALF = Scorer("half", (("half", "def make(divisor):\n    return lambda n: n / divisor"),), (2,))


@pytest.fixture(scope="module")
def door():
    made = Door(cpu_seconds=1, seconds=4.0)
    yield made
    made.close()


def values(door, *texts):
    return [o.value if o.verdict == "scored" else o.verdict for o in door.score(RUNS, [(t,) for t in texts])]


def test_scores_come_in_the_order_given_whatever_each_takes(door):
    texts = [f"import time; time.sleep({0.2 if i % 3 == 0 else 0}); value = {i}" for i in range(9)]
    assert values(door, *texts) == [float(i) for i in range(9)]
    assert door.score(HALF, [(n,) for n in range(5)]) == [Outcome("scored", n / 2) for n in range(5)]
    assert door.score(HALF, []) == []


def test_no_answer_runs_where_another_has_run(door):
    leave = "state.append(1); value = len(state)"
    assert values(door, leave, leave, leave) == [1.0, 1.0, 1.0]
    assert values(door, "globals()['make'] = None; sys.modules['os'] = None; value = 1", "value = 2") == [1.0, 2.0]


@pytest.mark.parametrize(
    "text",
    [
        "value = len(open('/etc/passwd').read())", "value = len(os.listdir('/home'))", "value = len(os.listdir('/proc'))",
        "open('/tmp/left', 'wb', 0).write(b'x'); value = 1", "value = socket.socket().fileno()", "value = os.fork() and 1",
        "threading.Thread(target=print).start(); value = 1", "os.kill(1, 9); value = len(os.listdir('/proc/1'))",
        "os.write(4, b'x'); value = 1", "value = 'a text'", "value = [1]", "value = 10 ** 400",
    ],
)  # fmt: skip
def test_what_cannot_be_done(door, text):
    assert values(door, text, "value = 7") == ["unreadable", 7.0]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("while True: pass", "timeout"), ("value = 9 ** 9 ** 9 ** 9", "timeout"), ("import time; time.sleep(99)", "timeout"),
        ("os._exit(0)", "ended"), ("raise SystemExit", "ended"), ("os.kill(os.getpid(), 9)", "ended"), ("os.write(3, b'x' * 20); os._exit(0)", "timeout"),
        ("os.write(3, b'xx'); os._exit(0)", "ended"), ("import ctypes; ctypes.string_at(0)", "ended"),
    ],
)  # fmt: skip
def test_how_an_answer_can_end(door, text, verdict):
    assert values(door, text, "value = 7") == [verdict, 7.0]


def test_memory_is_bounded(door):
    assert values(door, "x = bytes(1 << 36); value = 1") == ["unreadable"]


def test_its_environment_is_its_own(door, monkeypatch):
    monkeypatch.setenv("A_SECRET", "1")
    door.close()
    assert values(door, "value = 'A_SECRET' in os.environ", "value = len(os.listdir('/tmp'))") == [0.0, 0.0]


def test_not_a_number_passes_as_what_it_is(door):
    assert math.isnan(values(door, "value = float('nan')")[0])


def test_a_scorer_that_cannot_be_loaded_says_why(door):
    for source, why in (("import nothing_of_that_name", "No module named"), ("def make(): 1 / 0", "division by zero")):
        with pytest.raises(InputError, match=f"odd.*cannot be loaded.*{why}"):
            door.score(Scorer("odd", (("odd", source),)), [(1,)])
    assert door.score(HALF, [(4,)]) == [Outcome("scored", 2.0)]


def test_where_the_machine_cannot_isolate(monkeypatch):
    def lacking(backend):
        raise InputError("sandbox.backend", backend, "the machine has no such tool: install bubblewrap")

    monkeypatch.setattr(backends, "choose", lacking)
    monkeypatch.delenv("ANYPOLICY_UNISOLATED", raising=False)
    door = Door(cpu_seconds=1)
    assert door.score(HALF, [(4,)]) == [Outcome("scored", 2.0)]
    with pytest.raises(InputError, match=r"runs anything.*install bubblewrap.*ANYPOLICY_UNISOLATED=1"):
        values(door, "value = 1")
    monkeypatch.setenv("ANYPOLICY_UNISOLATED", "1")
    assert values(door, "state.append(1); value = len(state)", "value = len(state)", "while 1: pass") == [
        1,
        0,
        "timeout",
    ]
    door.close()


def test_a_process_that_was_ended_is_begun_anew(door):
    door.score(HALF, [(4,)])
    os.kill(door.process.pid, signal.SIGKILL)
    assert door.score(HALF, [(6,)]) == [Outcome("scored", 3.0)]


def test_it_ends_with_the_process_that_began_it(tmp_path):
    code = (
        "from anypolicy.sandbox.scorers import door, Scorer; import time\n"
        "door.score(Scorer('half', (('half', 'def make():\\n    return lambda n: n / 2'),)), [(1,)])\n"
        "print(door.process.pid, flush=True); time.sleep(60)"
    )
    begun = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert begun.stdout is not None
    pid = int(begun.stdout.readline())
    begun.kill()
    begun.wait()
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]:
            return
        time.sleep(0.02)
    pytest.fail("it still runs")
