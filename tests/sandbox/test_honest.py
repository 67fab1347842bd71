"""Honest programs and tests run as they would anywhere; what cannot be run is refused in words."""

import subprocess

import pytest

from anypolicy.errors import InputError
from anypolicy.sandbox import Candidate, Limits, Program, backends, run, run_many
from anypolicy.sandbox.inside import decode, encode

WIDE = Limits(seconds=120, cpu_seconds=60)

HONEST = {
    "arithmetic": ("print(sum(range(10)))", "45\n"),
    "libraries": (
        "import asyncio, bisect, collections, csv, ctypes, dataclasses, datetime, decimal, fractions, functools, hashlib, heapq, itertools\n"
        "import json, math, multiprocessing, random, re, sqlite3, statistics, string, threading, typing, unittest, zlib, zoneinfo\n"
        "print(zoneinfo.ZoneInfo('Europe/Berlin'), hashlib.md5(b'a').hexdigest())",
        "Europe/Berlin 0cc175b9c0f1b6a831c399e269772661\n",
    ),
    "files": ("open('/tmp/a', 'w').write('x'); import tempfile\nwith tempfile.TemporaryFile('w+') as f:\n    f.write(open('a').read()); f.seek(0); print(f.read())", "x\n"),
    "own module": ("open('/tmp/mine.py', 'w').write('x = 3')\nimport mine; print(mine.x)", "3\n"),
    "unicode": ("print('Grüße 🎈 \\u4e2d')", "Grüße 🎈 中\n"),
    "main": ("if __name__ == '__main__':\n    print('main')", "main\n"),
    "exit": ("import sys\nprint('x', end='')\nsys.exit()", "x"),
    "quit": ("print(1); quit()", "1\n"),
    "at exit": ("import atexit; atexit.register(print, 'bye')", "bye\n"),
    "threads": ("from concurrent.futures import ThreadPoolExecutor as T\nprint(list(T(3).map(abs, [-1, 2])))", "[1, 2]\n"),
    "processes": ("from multiprocessing import Pool, set_start_method\nset_start_method('fork')\nwith Pool(2) as p:\n    print(p.map(abs, [-1, 2]))", "[1, 2]\n"),
    "asyncio": ("import asyncio\nasync def f(): return 5\nprint(asyncio.run(f()))", "5\n"),
    "socket pair": ("import socket\na, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))", "b'x'\n"),
    "pickle of its own class": ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)", "A\n"),
    "unit tests": ("import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(1, 1)\nunittest.main()", ""),
    "random": ("import random; random.seed(1); print(random.randint(0, 9))", "2\n"),
    "the same hash": ("print(hash('a') == hash('a'), {'b', 'a'} == {'a', 'b'})", "True True\n"),
    "devices": ("open('/dev/null', 'w').write('x'); print(len(open('/dev/urandom', 'rb').read(3)))", "3\n"),
    "killed child": ("import os\npid = os.fork()\nif not pid:\n    os.abort()\nprint(os.waitpid(pid, 0)[1] & 127, os.listdir())", "6 ['program.py']\n"),
    "database file": ("import sqlite3\nwith sqlite3.connect('a.db') as d:\n    d.execute('create table a (b)')\n    d.execute('insert into a values (3)')\n"
                      "print(sqlite3.connect('a.db').execute('select * from a').fetchall())", "[(3,)]\n"),
    "locks": ("import fcntl\nwith open('x', 'w') as f:\n    fcntl.lockf(f, fcntl.LOCK_EX)\n    print(fcntl.fcntl(f, fcntl.F_GETFD))", "1\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs(name, backend):
    text, output = HONEST[name]
    result = run(text, WIDE, backend)
    assert (result.verdict, result.reason, result.output, result.code) == ("passed", "", output, 0), result


def test_input(backend):
    text = "import sys\nprint(input()); print(sys.stdin.read(), end='')"
    assert run(Program(text, "ä b\nrest\n"), WIDE, backend).output == "ä b\nrest\n"
    big = bytes(range(256)) * 4000
    result = run(Program("import sys; print(sum(sys.stdin.buffer.read()))", big), WIDE, backend)
    assert result.output == f"{sum(big)}\n"


FAILED = {
    "uncaught": ("def f():\n    raise ValueError('no')\nf()", 1, "exit code 1: ValueError: no"),
    "exit code": ("import sys; sys.exit(7)", 7, "exit code 7"),
    "exit text": ("import sys; sys.exit('why')", 1, "exit code 1: why"),
    "syntax": ("x = = 1", 1, "exit code 1: SyntaxError: invalid syntax"),
    "signal": ("import os; os.kill(os.getpid(), 15)", -15, "signal SIGTERM"),
    "abort": ("import os; os.abort()", -6, "signal SIGABRT"),
    "crash": ("import ctypes; ctypes.string_at(0)", -11, "signal SIGSEGV"),
    "failing unit test": ("import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.fail()\nunittest.main()", 1, "exit code 1: FAILED (failures=1)"),
    "not UTF-8": ("\udcff", 1, "exit code 1: SyntaxError"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILED)
def test_failing_programs(name, backend):
    text, code, reason = FAILED[name]
    result = run(text, WIDE, backend)
    assert (result.verdict, result.code) == ("failed", code), result
    assert result.reason.startswith(reason)


def test_a_traceback_shows_the_program_and_nothing_of_the_sandbox(backend):
    result = run("def f():\n    return 1 / 0\nprint('first')\nf()", WIDE, backend)
    assert result.output == "first\n"
    assert result.errors.splitlines()[:2] == [
        "Traceback (most recent call last):",
        '  File "/tmp/program.py", line 4, in <module>',
    ]
    assert "inside" not in result.errors and "<string>" not in result.errors


# --- candidates ------------------------------------------------------------------------------------------------------
def test_functions_apart_from_their_tests(backend):
    source = """
import collections
def add(a, b=1): return a + b
def count(text): return collections.Counter(text)
def same(x): return x
def fail(kind): raise {'value': ValueError, 'key': KeyError, 'own': type('Own', (Exception,), {})}[kind]('told')
"""
    tests = """
def same_value(x):
    return same(x) == x and type(same(x)) is type(x)
assert add(1) == 2 and add(a=2, b=5) == 7, 'sums'
assert count('aab') == {'a': 2, 'b': 1}
for x in (None, True, 0, -1.5, float('inf'), 'ä', '\\ud800', b'x', 1j, [1, [2]], (1,), {1, 2}, frozenset('a'), {'a': 1, 2: (3,)}, 10**5000):
    assert same_value(x), x
assert True
try:
    fail('value')
except ValueError as error:
    assert str(error) == 'told'
try:
    fail('key')
except LookupError as error:
    assert 'told' in str(error)
try:
    fail('own')
except Exception as error:
    assert 'Own: told' in str(error)
"""
    result = run(Candidate(source, tests, ("add", "count", "same", "fail")), WIDE, backend)
    assert result.passed, result
    assert (result.tests_passed, result.tests) == (20, 20)


def test_asserts_are_counted_whatever_comes_before(backend):
    tests = "assert f(1) == 1\nassert f(2) == 0\nassert f('x') == 'x'\nassert f(0) == 0, 'zero'"
    result = run(Candidate("def f(x): return 10 // x and x", tests, ("f",)), WIDE, backend)
    assert (result.verdict, result.tests_passed, result.tests) == ("failed", 1, 4)
    assert result.reason == "line 2 of the tests: AssertionError"
    result = run(Candidate("def f(x): return x", "assert f(1) == 1\nf.x\nassert f(1) == 1", ("f",)), WIDE, backend)
    assert (result.verdict, result.tests_passed, result.tests) == ("failed", 1, 2)
    assert "AttributeError" in result.reason


def test_a_slow_call_costs_its_own_assert_and_those_after_it(backend):
    source = "def f(x):\n    while x == 2: pass\n    return x"
    tests = "\n".join(f"assert f({i}) == {i}" for i in range(4))
    result = run(Candidate(source, tests, ("f",)), Limits(seconds=60, cpu_seconds=1), backend)
    assert (result.verdict, result.tests_passed, result.tests) == ("stopped", 2, 4)
    assert result.reason == "cpu time is used up"


def test_what_a_candidate_prints_is_kept(backend):
    assert (
        run(Candidate("def f(x):\n    print('got', x)\n    return x", "assert f(3) == 3", ("f",)), WIDE, backend).output
        == "got 3\n"
    )


def test_tests_in_the_same_process(backend):
    source = "class Stack(list):\n    def push(self, x): self.append(x)"
    tests = "s = Stack(); s.push(1)\nassert s.pop() == 1"
    assert run(Candidate(source, tests), WIDE, backend).passed
    result = run(Candidate(source, tests.replace("== 1", "== 2")), WIDE, backend)
    assert (result.verdict, result.reason) == ("failed", "exit code 1: AssertionError")


def test_tests_draw_the_same_random_numbers(backend):
    tests = "import random\nassert f(random.random()) < 0"
    results = {
        run(Candidate("def f(x):\n    print(x)\n    return x", tests, ("f",)), WIDE, backend).output for _ in range(2)
    }
    assert len(results) == 1 and len(results.pop()) > 5


def test_many_keep_their_order(backend):
    works = [f"print({i})" for i in range(8)] + [
        Program("print(input())", "x"),
        Candidate("def f(): return 1", "assert f() == 1", ("f",)),
    ]
    results = run_many(works, WIDE, backend, at_once=3)
    assert [r.output for r in results] == [f"{i}\n" for i in range(8)] + ["x\n", ""]
    assert all(r.passed for r in results)
    assert run_many([], WIDE, backend) == []


def test_plain_values_survive_the_way():
    for x in (1, True, 1 << 70, -(1 << 70), "x", [{"int": 3}], {(1, 2): {3}}, b"\xff", 2j):
        assert decode(encode(x)) == x
    with pytest.raises(TypeError, match="no plain data"):
        encode(object())


# --- what cannot be run ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Limits(seconds=0), "limits.seconds.*above 0"), (lambda: Limits(memory=1.5), "limits.memory.*whole"),
        (lambda: Limits(processes=-1), "limits.processes"), (lambda: Limits(output=True), "limits.output"),
        (lambda: Limits(seconds=float("nan")), "limits.seconds"), (lambda: Limits(seconds="3"), "limits.seconds"),
        (lambda: Candidate("", "assert x ==", ("x",)), "no Python"), (lambda: Candidate("", "f()", ("f",)), "assert"),
        (lambda: Candidate("", "assert f()", ()), "name the candidate's functions"),
        (lambda: Candidate("", "assert f()", ("f g",)), "name the candidate's functions"),
        (lambda: run("1", backend="bwarp"), "did you mean 'bwrap'"),
    ],
)  # fmt: skip
def test_impossible_settings(make, match):
    with pytest.raises(InputError, match=match):
        make()


@pytest.fixture
def fresh():
    backends.choose.cache_clear()
    yield
    backends.choose.cache_clear()


def test_a_machine_without_the_tools_is_refused(monkeypatch, fresh):
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="install bubblewrap"):
        run("print(1)")
    with pytest.raises(InputError, match="install util-linux"):
        run("print(1)", backend="unshare")


def test_another_system_is_refused(monkeypatch, fresh):
    monkeypatch.setattr(backends.sys, "platform", "darwin")
    with pytest.raises(InputError, match="only be isolated on Linux"):
        run("print(1)")


def test_without_bubblewrap_unshare_is_used(monkeypatch, fresh):
    found = backends.shutil.which
    monkeypatch.setattr(backends.shutil, "which", lambda name: None if name == "bwrap" else found(name))
    assert backends.choose("auto") == "unshare"


def test_a_machine_that_forbids_namespaces_is_refused(backend, monkeypatch, tmp_path):
    """The tool is there and fails, as in a container without rights: nothing runs, and the tool's own words are told."""
    tool = tmp_path / backend
    tool.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setattr(backends.shutil, "which", lambda name: str(tool))
    with pytest.raises(InputError, match=r"cannot isolate.*No permissions to create new namespace"):
        run("print(1)", backend=backend)


@pytest.mark.parametrize("left_out", ["--pid", "--mount", "--net", "--ipc", "--uts"])
def test_a_tool_that_isolates_too_little_is_noticed(monkeypatch, left_out):
    begin = backends.begin

    def less(*given):
        command, config = begin(*given)
        return [part for part in command if part != left_out], config

    monkeypatch.setattr(backends, "begin", less)
    with pytest.raises(InputError, match=r"cannot isolate.*(first process|machine's own)"):
        run("print(1)", backend="unshare")


def test_root_without_its_rights_is_refused(monkeypatch):
    monkeypatch.setattr(backends.os, "geteuid", lambda: 0)
    monkeypatch.setattr(backends.Path, "read_text", lambda self: "Name:\tx\nCapEff:\t00000000a80425fb\n")
    with pytest.raises(InputError, match="CAP_SYS_ADMIN"):
        backends.privileged()


def test_both_backends_are_here(backend):
    version = subprocess.run([backend, "--version"], capture_output=True, text=True).stdout
    assert "bubblewrap" in version or "util-linux" in version
