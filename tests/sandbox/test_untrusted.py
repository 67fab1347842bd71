"""Whatever comes back from a candidate or a sandbox is a verdict, never an error in the process that asked."""

import json
import os
import signal

import pytest

from anypolicy.errors import InputError
from anypolicy.sandbox import Candidate, Limits, run
from anypolicy.sandbox.inside import decode
from anypolicy.sandbox.run import Running, children, read_report

WIDE = Limits(seconds=60, cpu_seconds=20)
TESTS = "assert f(2) == 3\nassert f(3) == 4\n"
RAW = """
import json, os
def write(data):
    for fd in range(3, 64):
        try:
            os.write(fd, data)
        except OSError:
            pass
"""

REPLIES = {
    "three megabytes": 'b"x" * 3_000_000 + b"\\n"',
    "two values": 'b\'{"value": 3, "error": ["ValueError", "x"]}\\n\'',
    "two replies": 'b\'{"value": 3}\\n{"value": 4}\\n\'',
    "neither": 'b"{}\\n"',
    "a list": 'b"[3]\\n"',
    "a number": 'b"3\\n"',
    "another kind": 'b\'{"result": 3}\\n\'',
    "a raw list": 'b\'{"value": [3]}\\n\'',
    "two kinds": 'b\'{"value": {"list": [3], "set": [3]}}\\n\'',
    "unknown type": 'b\'{"value": {"object": [3]}}\\n\'',
    "unhashable element": 'b\'{"value": {"set": [{"list": []}]}}\\n\'',
    "unhashable key": 'b\'{"value": {"dict": [[{"list": []}, 3]]}}\\n\'',
    "half a pair": 'b\'{"value": {"dict": [[3]]}}\\n\'',
    "text as a list": 'b\'{"value": {"list": "abc"}}\\n\'',
    "bytes that are none": 'b\'{"value": {"bytes": "xyz"}}\\n\'',
    "integer that is none": 'b\'{"value": {"int": 3.5}}\\n\'',
    "integer of many digits": 'b\'{"value": \' + b"9" * 100_000 + b"}\\n"',
    "half a complex number": 'b\'{"value": {"complex": [1]}}\\n\'',
    "deep": 'b\'{"value": \' + b\'{"list": [\' * 100_000 + b"]}" * 100_000 + b"}\\n"',
    "error of three": 'b\'{"error": ["ValueError", "x", "y"]}\\n\'',
    "error of numbers": 'b\'{"error": [1, 2]}\\n\'',
    "error of lists": 'b\'{"error": [["ValueError"], {}]}\\n\'',
    "not UTF-8": 'b\'{"value": "\\xff"}\\n\'',
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_that_is_none_fails(name, backend):
    source = RAW + f"def f(x):\n    write({REPLIES[name]})\n    return x + 1"
    result = run(Candidate(source, TESTS, ("f",)), WIDE, backend)
    assert (result.verdict, result.tests_passed, result.tests) == ("failed", 0, 2), result
    assert result.reason == "line 1 of the tests: Lost: the candidate's answer cannot be read"


def test_a_reply_of_three_megabytes_is_shortened(backend):
    reply = 'json.dumps({"error": ["x" * 3_000_000, "y"]}).encode() + b"\\n"'
    source = RAW + f"def f(x):\n    write({reply})\n    os._exit(0)"
    result = run(Candidate(source, TESTS, ("f",)), WIDE, backend)
    assert (result.verdict, result.tests_passed, result.tests) == ("failed", 0, 2), result
    assert result.reason == "line 1 of the tests: Unknown: " + "x" * 100 + ": y"


RAISED = {
    "long name": ("type('A' * 300_000, (Exception,), {})('told')", "Unknown: " + "A" * 100 + ": told"),
    "long text": ("ValueError('x' * 3_000_000)", "ValueError: " + "x" * 1000),
    "surrogates": ("ValueError('\\ud800')", "ValueError: ?"),
    "text that cannot be made": ("type('A', (Exception,), {'__str__': lambda self: 1 / 0})()", "Unknown: A"),
    "no exception of that name": ("type('print', (Exception,), {})('told')", "Unknown: print: told"),
    "words of ours": ("ValueError('time is up, signal SIGXCPU')", "ValueError: time is up, signal SIGXCPU"),
}  # fmt: skip


@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize("where", ["f", "the source"])
def test_an_exception_of_any_kind_fails(name, where, backend):
    code, reason = RAISED[name]
    source = f"def f(x):\n    raise {code}" if where == "f" else f"raise {code}"
    result = run(Candidate(source, TESTS, ("f",)), WIDE, backend)
    assert (result.verdict, result.tests_passed, result.tests) == ("failed", 0, 2), result
    assert result.reason == ("line 1 of the tests: " if where == "f" else "") + reason


def test_answers_have_a_largest_size(backend):
    source = "def f(x): return 'x' * x"
    tests = f"assert len(f(1 << 20)) == 1 << 20\nassert f({17 << 20})\nassert f(1) == 'x'"
    result = run(Candidate(source, tests, ("f",)), WIDE, backend)
    assert (result.verdict, result.tests_passed, result.tests) == ("failed", 1, 3)
    assert result.reason == "line 2 of the tests: Lost: an answer of more than 16777216 bytes"


def test_a_candidate_that_closes_its_pipe_and_goes_on_fails(backend):
    source = "import os, time\ndef f(x):\n    os.closerange(3, 64)\n    time.sleep(100)"
    result = run(Candidate(source, TESTS, ("f",)), WIDE, backend)
    assert (result.verdict, result.tests) == ("failed", 2)
    assert result.reason.endswith("Lost: the candidate's process ended: it closed its pipe")


@pytest.mark.parametrize("value", [[3], {"list": {}}, {"set": "ab"}, {"dict": {"a": 1}}, {"x": []}, {}, {"complex": "ab"}, {"bytes": 3}])  # fmt: skip
def test_values_are_read_strictly(value):
    with pytest.raises((TypeError, ValueError, KeyError)):
        decode(value)


# --- from the sandbox to this process --------------------------------------------------------------------------------
GOOD = {"passed": 3, "failed": 0, "first": "", "end": ""}
REPORTS = {
    "not JSON": b"ready", "half": json.dumps(GOOD).encode()[:-3], "two": json.dumps(GOOD).encode() * 2, "list": b"[]",
    "null": b"null", "NaN": b"NaN", "deep": b"[" * 100_000, "not UTF-8": b'{"passed": "\xff"}', "many digits": b"9" * 10_000,
} | {
    f"{field} {value!r}"[:30]: json.dumps(GOOD | {field: value}).encode()
    for field, values in {"passed": ("3", True, 3.0, float("nan"), None, [3], 1 << 40), "first": (3, None), "more": (1,)}.items()
    for value in values
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_of_another_shape_is_none(name):
    assert read_report("judge", json.dumps(GOOD).encode()) == GOOD
    assert set(read_report("judge", REPORTS[name])) == {"broken"}
    assert set(read_report("program", json.dumps(GOOD).encode())) == {"broken"}
    assert read_report("judge", b"") == {}


def test_a_report_that_is_none_fails(backend, monkeypatch):
    take = Running.take

    def altered(self, fd, name):
        more = take(self, fd, name)
        self.got["status"] = self.got["status"].replace(b'"code"', b'"cod')
        return more

    monkeypatch.setattr(Running, "take", altered)
    result = run("print(1)", WIDE, backend)
    assert (result.verdict, result.reason) == ("failed", "the report of the sandbox's first process cannot be read")
    assert (result.output, result.code) == ("1\n", None)


def test_a_process_may_have_any_name(backend):
    """Its name stands in the file from which its memory is read."""
    source = r"""
import ctypes, os, select
ctypes.CDLL(None).prctl(15, b'\xff\x0bRssAnon: x')
select.select([], [], [], 0.3)
"""
    result = run(source, WIDE, backend)
    assert result.passed, result


# --- the end of the first process ------------------------------------------------------------------------------------
def test_what_ended_the_first_process_is_said(backend, monkeypatch):
    """From outside it can be ended, as by a machine out of memory. Some versions of unshare keep the signal to themselves."""

    def look(self, now, *, memory):
        if self.ready:
            for first in children(self.process.pid):
                os.kill(first, signal.SIGKILL)

    monkeypatch.setattr(Running, "look", look)
    result = run("import time; time.sleep(100)", WIDE, backend)
    assert (result.verdict, result.code) == ("stopped", None)
    how = result.reason.removeprefix("the sandbox's first process ended without a report ")
    assert how == "(signal SIGKILL)" or (how, backend) == ("(exit code 1 of unshare)", "unshare")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGXCPU, signal.SIGIO, signal.SIGKILL])
def test_signals_from_inside_change_nothing(number, backend):
    source = f"import os\ndef f(x):\n    os.kill(1, {int(number)})\n    return x + 1"
    result = run(Candidate(source, TESTS, ("f",)), WIDE, backend)
    assert (result.passed, result.tests_passed) == (True, 2), result


def test_tests_that_take_too_long_are_stopped_by_name(backend):
    tests = "assert f(2) == 3\nwhile True:\n    try:\n        x = 1\n    except BaseException:\n        pass"
    result = run(Candidate("def f(x): return x + 1", tests, ("f",)), Limits(seconds=60, cpu_seconds=1), backend)
    assert (result.verdict, result.reason) == ("stopped", "cpu time is used up")
    assert (result.tests_passed, result.tests) == (1, 2)


def test_tests_too_deep_to_parse_are_refused():
    with pytest.raises(InputError, match="no Python"):
        Candidate("", "assert " + "(" * 1000 + "f" + ")" * 1000, ("f",))
    with pytest.raises(InputError, match="no Python"):
        Candidate("", "assert " + "-" * 200_000 + "f(1)", ("f",))
