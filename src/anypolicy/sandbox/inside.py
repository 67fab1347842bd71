"""What an isolated process runs: a program, a candidate beside tests in another process, or both in one.

Given to Python as text by `isolate.py`, in the sandbox's first process. It says what it saw on a pipe that no other
process has. Nothing but the standard library may be imported.
"""

from __future__ import annotations

import builtins
import contextlib
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

    from anypolicy.sandbox.counting import Judge, Lost, counted, in_words

    Config = dict[str, Any]


LONGEST = 16 << 20  # bytes of one answer


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
    """The inverse of `encode`; what it cannot have made is an error of some kind."""
    if not isinstance(x, dict | list):
        return x
    if isinstance(x, list):
        raise TypeError("a list says of which kind it is")
    [(kind, value)] = x.items()
    if kind == "int":
        return int(value, 16)
    if kind == "bytes":
        return bytes.fromhex(value)
    if kind == "complex":
        real, imaginary = map(float, value)
        return complex(real, imaginary)
    if not isinstance(value, list):
        raise TypeError(f"a {kind} is a list")
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
            reply = json.dumps({"value": encode(call())})
        except BaseException as error:
            try:
                text = str(error)
            except Exception:
                text = ""
            reply = json.dumps({"error": [type(error).__name__[:100], text[:1000]]})
        sys.stdout.flush()
        outgoing.write(reply + "\n")
        outgoing.flush()
        line = incoming.readline()
        if not line:
            os._exit(0)
        name, given, named = json.loads(line)
        call = lambda n=name, a=given, k=named: namespace[n](*decode(a), **decode(k))  # noqa: E731


class Candidate:
    """The judge's side of the candidate's process. Nothing that comes from it is believed; `end` says why it ended."""

    def __init__(self, source: str, deadline: float, others: list[int]):
        self.deadline, self.end = deadline, ""
        requests, self.requests = os.pipe()
        self.replies, replies = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                begin_own()
                os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
                for fd in (self.requests, self.replies, *others):
                    os.close(fd)
                serve(source, requests, replies)
            finally:
                os._exit(1)
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
            raise self.lost("time is up")

    def lost(self, why: str) -> Lost:
        """End the candidate for good."""
        self.end = why
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return Lost(why)

    def answer(self) -> Any:
        """The value of one reply, or the exception it names; anything but one well-formed reply ends the candidate."""
        line = bytearray()
        while not line.endswith(b"\n"):
            self.wait([self.replies], [])
            data = os.read(self.replies, 1 << 20)
            if not data:
                raise self.lost("the candidate's process ended: " + self.ending())
            line += data
            if len(line) > LONGEST:
                raise self.lost(f"an answer of more than {LONGEST} bytes")
        try:
            [(kind, value)] = json.loads(line).items()
            value = {"value": decode, "error": lambda pair: same_error(*pair)}[kind](value)
        except Exception:
            raise self.lost("the candidate's answer cannot be read") from None
        if kind == "error":
            raise value
        return value

    def ending(self) -> str:
        """How its process ended. One that only closed its pipe is ended."""
        process = os.pidfd_open(self.pid)
        if not select.select([process], [], [], min(1.0, max(0.0, self.deadline - time.monotonic())))[0]:
            return "it closed its pipe"
        return ending(os.waitpid(self.pid, 0)[1])


def same_error(name: str, text: str) -> Exception:
    """The candidate's exception, where it is one of Python's own that takes a text."""
    if not isinstance(name, str) or not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError("an exception has a name and a text")
    name, text = name[:100], text[:1000]
    kind = vars(builtins).get(name)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:
            pass
    return Unknown(f"{name}: {text}")


class Unknown(Exception):
    """An exception of the candidate's own kind."""


def ending(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.WEXITSTATUS(status)}"


# --- the judge -------------------------------------------------------------------------------------------------------
def judge(config: Config, status: int, deadline: float) -> Config:
    """Tests here, the candidate's functions in another process that never has the tests' text."""
    candidate = Candidate(receive()["candidate"], deadline, [status])
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: no other process may look into this one
    given, seen = receive(), Judge()

    def report() -> Config:
        seen.end(candidate.end)
        return {"passed": seen.passed, "failed": seen.failed, "first": seen.first, "end": candidate.end}

    def over(*_: Any) -> None:
        if time.process_time() > config["limits"]["cpu_seconds"] / 2:  # it is not one that the candidate sent
            candidate.end = "the tests ended: signal SIGXCPU"
            tell(status, report())
            os._exit(0)

    signal.signal(signal.SIGXCPU, over)
    try:
        candidate.answer()  # that its source has run
    except Exception as error:
        seen.first = in_words(error)
        candidate.end = candidate.end or "the candidate's source failed"
    import random

    random.seed(0)
    space = {"__name__": "tests"} | seen.names()
    for name in given["functions"]:
        space[name] = seen.watched(candidate.function(name))
    try:
        run_code(counted(given["tests"]), space)
    except BaseException:
        seen.bad()
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    return report()


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
    signal.signal(signal.SIGINT, signal.default_int_handler)
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


def tell(status: int, report: Config) -> None:
    """All of a report; a signal may end a write early."""
    data = json.dumps(report).encode()
    while data:
        data = data[os.write(status, data) :]


def main() -> None:
    config = json.loads(sys.argv[1])
    status = config["status"]
    deadline = time.monotonic() + config["limits"]["seconds"]
    os.write(status, b"ready\n")
    try:
        report = {"program": program, "judge": judge, "together": together}[config["mode"]](config, status, deadline)
    except BaseException as error:
        if os.getpid() != 1:  # the program's own process
            raise
        report = {"broken": f"{type(error).__name__}: {error}"[:1000]}
    tell(status, report)
    os._exit(0)


if __name__ == "__main__":
    main()
