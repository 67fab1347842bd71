"""What an isolated process runs: a program, a candidate beside tests in another process, or both in one.

Given to Python as text by `isolate.py`, in the sandbox's first process. It says what it saw on a pipe that no other
process has. Nothing but the standard library may be imported.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import runpy
import select
import signal
import site
import sys
import time
import types

TYPE_CHECKING = False
if TYPE_CHECKING:  # what is imported here costs time in every run: the rest waits until it is needed
    from typing import Any

    Config = dict[str, Any]


# --- plain values between two processes ------------------------------------------------------------------------------
def encode(x: Any) -> Any:
    """Plain data as JSON; what a subclass adds is left out."""
    if x is None or isinstance(x, bool):
        return x
    if isinstance(x, float | str):
        return float(x) if isinstance(x, float) else str.__str__(x)
    if isinstance(x, int):
        return int(x) if abs(x) < 1 << 63 else {"int": hex(x)}
    for kind in (list, tuple, set, frozenset):
        if isinstance(x, kind):
            return {kind.__name__: [encode(v) for v in x]}
    if isinstance(x, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in x.items()]}
    if isinstance(x, bytes | bytearray):
        return {"bytes": x.hex()}
    if isinstance(x, complex):
        return {"complex": [x.real, x.imag]}
    raise TypeError(f"{type(x).__name__} is no plain data: it cannot pass between tests and candidate")


def decode(x: Any) -> Any:
    """The inverse of `encode`."""
    if not isinstance(x, dict):
        return x
    [(kind, value)] = x.items()
    if kind == "int":
        return int(value, 16)
    if kind == "bytes":
        return bytes.fromhex(value)
    if kind == "complex":
        return complex(*value)
    if kind == "dict":
        return {decode(k): decode(v) for k, v in value}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(v) for v in value)


# --- the candidate ---------------------------------------------------------------------------------------------------
def save(name: str, source: str) -> str:
    path = f"/tmp/{name}.py"
    with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        file.write(source)
    return path


def run_code(code: types.CodeType, namespace: dict[str, Any]) -> None:
    """Run a compiled module in a namespace."""
    types.FunctionType(code, namespace)()


def serve(source: str, requests: int, replies: int) -> None:
    """The candidate's process: run its source, then answer calls of its functions, one JSON line each."""
    incoming, outgoing = os.fdopen(requests, "r"), os.fdopen(replies, "w")
    namespace: dict[str, Any] = {}
    call: Any = lambda: namespace.update(runpy.run_path(save("candidate", source), run_name="candidate"))  # noqa: E731
    while True:
        try:
            reply = {"value": encode(call())}
        except BaseException as error:
            reply = {"error": [type(error).__name__, str(error)[:1000]]}
        sys.stdout.flush()
        outgoing.write(json.dumps(reply) + "\n")
        outgoing.flush()
        line = incoming.readline()
        if not line:
            os._exit(0)
        name, given, named = json.loads(line)
        call = lambda n=name, a=given, k=named: namespace[n](*decode(a), **decode(k))  # noqa: E731


class Lost(Exception):
    """The candidate gave no usable answer."""


class Candidate:
    """The judge's side of the candidate's process."""

    def __init__(self, source: str, deadline: float, others: list[int]):
        self.deadline, self.buffer, self.end = deadline, b"", ""
        requests, self.requests = os.pipe()
        self.replies, replies = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            begin_own()
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            for fd in (self.requests, self.replies, *others):
                os.close(fd)
            serve(source, requests, replies)
        os.close(requests)
        os.close(replies)

    def call(self, name: str, given: Any, named: Any) -> Any:
        if self.end:
            raise Lost(self.end)
        line = json.dumps([name, encode(given), encode(named)]).encode() + b"\n"
        os.set_blocking(self.requests, False)
        while line:
            try:
                line = line[os.write(self.requests, line) :]
            except BlockingIOError:
                self.wait([], [self.requests])
            except BrokenPipeError:
                break
        return self.answer()

    def function(self, name: str) -> Any:
        return lambda *given, **named: self.call(name, given, named)

    def wait(self, read: list[int], write: list[int]) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0 or not any(select.select(read, write, [], left)):
            os.kill(self.pid, signal.SIGKILL)
            self.end = "time is up"
            raise Lost(self.end)

    def answer(self) -> Any:
        while b"\n" not in self.buffer:
            self.wait([self.replies], [])
            data = os.read(self.replies, 1 << 20)
            if not data:
                self.end = "the candidate's process ended: " + ending(os.waitpid(self.pid, 0)[1])
                raise Lost(self.end)
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        reply = json.loads(line)
        if "value" in reply:
            return decode(reply["value"])
        name, text = map(str, reply["error"])
        raise same_error(name, text)


def same_error(name: str, text: str) -> Exception:
    """The candidate's exception, where it is one of Python's own that takes a text."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:
            pass
    return Lost(f"{name}: {text}")


def ending(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.WEXITSTATUS(status)}"


# --- the judge -------------------------------------------------------------------------------------------------------
def counted(tests: str) -> types.CodeType:
    """Every assert of the tests counts as passed or failed and lets the tests go on; asserted constants are dropped."""
    import ast

    class Counted(ast.NodeTransformer):
        def visit_Assert(self, node: ast.Assert) -> ast.stmt:
            if isinstance(node.test, ast.Constant) and node.test.value:
                return ast.copy_location(ast.Pass(), node)
            [new] = ast.parse("try:\n    judge_passed()\nexcept:\n    judge_failed()").body
            assert isinstance(new, ast.Try)
            new.body.insert(0, node)
            return ast.copy_location(new, node)

    return compile(ast.fix_missing_locations(Counted().visit(ast.parse(tests))), "tests", "exec")


class Judge:
    """Counts, and remembers what failed first."""

    def __init__(self) -> None:
        self.passed, self.failed, self.first = 0, 0, ""

    def good(self) -> None:
        self.passed += 1

    def bad(self) -> None:
        self.failed += 1
        if not self.first:
            kind, error, trace = sys.exc_info()
            lines: list[int] = []
            while trace is not None:
                if trace.tb_frame.f_code.co_filename == "tests":
                    lines.append(trace.tb_lineno)
                trace = trace.tb_next
            where = f"line {lines[-1]} of the tests: " if lines else ""
            self.first = where + f"{kind.__name__ if kind else ''}: {error}".rstrip(": ")


def judge(config: Config, status: int, deadline: float) -> Config:
    """Tests here, the candidate's functions in another process that never has the tests' text."""
    candidate = Candidate(receive()["candidate"], deadline, [status])
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: no other process may look into this one
    given, seen = receive(), Judge()
    try:
        candidate.answer()  # that its source has run
    except Exception as error:
        seen.first = f"{type(error).__name__}: {error}"
        candidate.end = candidate.end or f"the candidate's source failed: {seen.first}"
    import random

    random.seed(0)
    space: dict[str, Any] = {"__name__": "tests", "judge_passed": seen.good, "judge_failed": seen.bad}
    for name in given["functions"]:
        space[name] = candidate.function(name)
    try:
        run_code(counted(given["tests"]), space)
    except BaseException:
        seen.bad()
    return {"passed": seen.passed, "failed": seen.failed, "first": seen.first, "end": candidate.end}


def together(config: Config, status: int, deadline: float) -> Config:
    """Program and tests in one process, which must hand back a random mark once the tests have ended."""
    given, mark = receive(), os.urandom(32)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for fd in (status, read):
                os.close(fd)
            begin_own()
            space = runpy.run_path(save("program", given["candidate"]), run_name="program")
            run_code(compile(given["tests"], "tests", "exec"), space)
            sys.stdout.flush()
            os.write(write, mark)
            os._exit(0)
        except BaseException as error:
            show(type(error), error, error.__traceback__)
            sys.stderr.flush()
            os._exit(1)
    os.close(write)
    ended = wait_for(pid)
    os.set_blocking(read, False)
    try:
        said = os.read(read, 64)
    except BlockingIOError:
        said = b""
    return ended | {"marked": said == mark}


def program(config: Config, status: int, deadline: float) -> Config:
    """A program on its own, with what is left of the standard input."""
    path = save("program", receive()["program"])
    pid = os.fork()
    if pid == 0:
        os.close(status)
        begin_own()
        sys.excepthook = show
        runpy.run_path(path, run_name="__main__")
        sys.exit(0)
    return wait_for(pid)


def begin_own() -> None:
    """Make a forked process look like a fresh interpreter."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    site.setquit()
    site.sethelper()
    sys.argv = [""]
    sys.path.insert(0, "/tmp")


def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """An uncaught exception, from the program's own first line on."""
    import traceback

    first = trace
    while first is not None and not first.tb_frame.f_code.co_filename.startswith("/tmp/"):
        first = first.tb_next
    traceback.print_exception(kind, error, first)


def wait_for(pid: int) -> Config:
    """The end of one child, with those that others left behind reaped meanwhile. Both signals stay pending until they
    are asked for: a handler that runs just before a wait would not end the wait."""
    waking = {signal.SIGCHLD, signal.SIGIO}
    signal.pthread_sigmask(signal.SIG_BLOCK, waking)
    while True:
        ended, how = os.waitpid(-1, os.WNOHANG)
        if ended == pid:
            return {"ending": ending(how), "code": os.waitstatus_to_exitcode(how)}
        if not ended and signal.sigwait(waking) == signal.SIGIO:
            signal.getsignal(signal.SIGIO)(signal.SIGIO, None)  # type: ignore[operator, misc]


def receive() -> Config:
    """One length and one JSON text from the standard input, and not a byte more."""
    return json.loads(exactly(int(exactly(8), 16)))


def exactly(n: int) -> bytes:
    out = b""
    while len(out) < n:
        data = os.read(0, n - len(out))
        if not data:
            raise EOFError("the input ended early")
        out += data
    return out


def main() -> None:
    config = json.loads(sys.argv[1])
    status = config["status"]
    deadline = time.monotonic() + config["limits"]["seconds"]
    os.write(status, b"ready\n")
    report = {"program": program, "judge": judge, "together": together}[config["mode"]](config, status, deadline)
    os.write(status, json.dumps(report).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
