"""Workers: real processes that end with the one that waits for them, and errors that leave the others their job."""

import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from anypolicy.engines.environments import EnvironmentFailed
from anypolicy.errors import InputError
from anypolicy.runs.stop import Stopped
from anypolicy.runs.workers import in_workers
from tests.runs.jobs import job


@pytest.mark.parametrize("error", [InputError("metric", "lose", "use loss", choices=("loss", "x")),
                                   EnvironmentFailed("reward", 3.0, "finite"), Stopped(2, "goes on")])  # fmt: skip
def test_errors_go_from_one_process_to_another(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def test_results_come_from_all():
    assert sorted(in_workers(job, [("a", i) for i in range(5)], 2)) == [("a", i) for i in range(5)]
    assert list(in_workers(job, [("a", 1)], 1)) == [("a", 1)]


@pytest.mark.parametrize(("name", "kind", "says"), [("refused", InputError, "metric: got 1; use another"),
                                                    ("odd", RuntimeError, "Unpicklable: one text"),
                                                    ("killed", InputError, "use fewer workers")])  # fmt: skip
def test_an_error_in_one_leaves_the_others_their_job(name, kind, says):
    """Both workers have a job; that of the other is finished, and the third is not begun."""
    results = in_workers(job, [("a", 0), (name, 1)], 2)
    assert next(results) == ("a", 0)
    with pytest.raises(kind, match=says):
        next(results)


PARENT = """
from anypolicy.runs.ending import ended
from anypolicy.runs.workers import in_workers
from tests.runs.jobs import deaf_to_linux, held
if __name__ == "__main__":
    raise SystemExit(ended("compare", lambda: list(in_workers({function}, [("kept",), ("kept",), ("more",)], 2))))
"""


@pytest.fixture
def parent(tmp_path):
    """Starts a parent of two workers that are at work; its output ends when all three have ended."""
    begun = []

    def start(function="held"):
        script = tmp_path / "parent.py"
        script.write_text(PARENT.format(function=function))
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
                                   env={**os.environ, "PYTHONPATH": ":".join(sys.path)})  # fmt: skip
        begun.append(process)
        assert [process.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("function", ["held", "deaf_to_linux"])
def test_killed_with_its_workers(parent, function):
    process = parent(function)
    process.kill()
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_with_what_its_workers_keep(parent, number, code):
    process = parent()
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == "kept\nkept\n"
    assert process.returncode == code


def test_nothing_is_left_where_the_results_are_not_wanted_any_more():
    before = threading.active_count()
    results = in_workers(job, [("a", i) for i in range(4)], 2)
    next(results)
    results.close()
    assert threading.active_count() == before
