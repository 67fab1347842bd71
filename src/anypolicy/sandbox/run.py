"""Run untrusted Python and say how it went."""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from anypolicy.errors import InputError
from anypolicy.sandbox import backends

Verdict = Literal["passed", "failed", "stopped"]
START = 120.0
WATCH = 0.05
REASON = 2000  # characters
REPORTS: dict[str, dict[str, type]] = {
    "program": {"ending": str, "code": int},
    "together": {"ending": str, "code": int, "marked": bool},
    "judge": {"passed": int, "failed": int, "first": str, "end": str},
}


@dataclass(frozen=True)
class Limits:
    """What a program may use. Sizes in bytes.

    `seconds` of wall clock for all of it, `cpu_seconds` for each process. `memory` is address space for each process
    and resident memory for all together (looked at twenty times a second; pages shared by a fork count for each).
    `disk` and `files` bound /tmp. Up to `processes` processes and threads. `output` bytes on each of the two streams.
    """

    seconds: float = 10.0
    cpu_seconds: int = 5
    memory: int = 512 << 20
    disk: int = 32 << 20
    file_size: int = 16 << 20
    files: int = 2000
    open_files: int = 64
    processes: int = 16
    output: int = 256 << 10

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            whole = f.name == "seconds" or type(value) is int
            if isinstance(value, bool) or not isinstance(value, int | float) or not whole or not 0 < value < 2**62:
                raise InputError(f"limits.{f.name}", value, "use a number above 0 (whole, but for seconds)")


LIMITS = Limits()


@dataclass(frozen=True)
class Program:
    """A whole program. It passes when it exits with 0, which says only that: a program can do so at any point."""

    source: str
    stdin: str | bytes = ""


@dataclass(frozen=True)
class Candidate:
    """Code that must pass tests.

    With `functions`, the names that the tests call, the candidate runs in one process and the tests in another. Values
    pass between them as plain data (numbers, text, bytes, lists, tuples, sets, dictionaries, None). The candidate sees
    the arguments of each call and nothing else: neither the tests nor the process that counts them, so it can neither
    print, exit, patch nor compare its way to a pass (an object that equals everything arrives as an error). What is
    left to it is to recognise arguments. Every `assert` of the tests is counted, whether or not one before it failed.

    Without, both run in one process, which must hand back a random mark after the last test: leaving early by
    os._exit, sys.exit or a crash is no pass. A candidate that patches what the tests use, returns objects that equal
    everything, or looks for the mark in its own process's memory can still cheat; nothing in one process prevents it.
    """

    source: str
    tests: str
    functions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        try:
            tree = ast.parse(self.tests)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise InputError("tests", self.tests, f"they are no Python: {error}") from error
        if self.functions is None:
            return
        if not self.functions or not all(name.isidentifier() for name in self.functions):
            raise InputError("functions", self.functions, "name the candidate's functions that the tests call")
        if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
            raise InputError("tests", self.tests, "they need at least one assert: nothing else is counted")


Work = Program | Candidate


@dataclass(frozen=True)
class Result:
    """How it went: passed, failed, or stopped by a limit, and the reason in words where it did not pass.

    `code` is the exit code (negative: a signal) where there is one; `tests_passed` of `tests` asserts were true.
    """

    verdict: Verdict
    reason: str
    output: str
    errors: str
    code: int | None
    seconds: float
    tests_passed: int = 0
    tests: int = 0

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def run(work: Work | str, limits: Limits = LIMITS, backend: backends.Backend = "auto") -> Result:
    """Run a program, or a candidate with tests, isolated from this machine; a text is a program without input.

    The interpreter is this one's base interpreter with its standard library. A program sees no network, no process
    but its own, no file but that interpreter, no environment; it can write in its own /tmp only. docs/sandbox.md says
    what this protects from and what not. Raises InputError where the machine cannot isolate, never runs without.
    """
    work = Program(work) if isinstance(work, str) else work
    tool = backends.choose(backend)
    running = Running(work, limits, tool)
    try:
        running.follow()
    finally:
        running.end()
    return running.result()


def run_many(
    works: Iterable[Work | str], limits: Limits = LIMITS, backend: backends.Backend = "auto", at_once: int = 0
) -> list[Result]:
    """Run many, `at_once` at a time (0: one for each processor this process may use); results in the order given."""
    one = functools.partial(run, limits=limits, backend=backend)
    with ThreadPoolExecutor(at_once or os.cpu_count() or 1) as pool:
        return list(pool.map(one, works))


@functools.cache
def source(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def payload(work: Work) -> tuple[str, bytes]:
    """The mode and what goes down the standard input: texts with their length before them, then the program's own."""

    def text(**values: Any) -> bytes:
        data = json.dumps(values).encode()
        return f"{len(data):08x}".encode() + data

    if isinstance(work, Program):
        own = work.stdin if isinstance(work.stdin, bytes) else work.stdin.encode("utf-8", "surrogatepass")
        return "program", text(program=work.source) + own
    if work.functions is None:
        return "together", text(candidate=work.source, tests=work.tests)
    return "judge", text(candidate=work.source) + text(tests=work.tests, functions=work.functions)


class Running:
    """One sandbox from start to end, as this process sees it."""

    def __init__(self, work: Work, limits: Limits, tool: str):
        self.limits, self.tool = limits, tool
        self.mode, self.input = payload(work)
        self.stopped, self.ready = "", 0.0
        self.begun = time.monotonic()
        status, theirs = os.pipe()
        proc = os.open("/proc", os.O_PATH)
        try:
            self.process = self.start(theirs, proc)
        except OSError:
            os.close(status)
            raise
        finally:
            os.close(theirs)
            os.close(proc)
        self.status = status
        self.got = {name: bytearray() for name in ("output", "errors", "status")}

    def start(self, status: int, proc: int) -> subprocess.Popen[bytes]:
        environment = backends.environment()
        config = {"mode": self.mode, "limits": asdict(self.limits), "status": status, "proc": proc,
                  "environment": environment}  # fmt: skip
        command, config = backends.begin(self.tool, config)
        texts = [source(name) for name in (("counting.py",) if self.mode == "judge" else ()) + ("inside.py",)]
        command += [backends.python(), "-sSPB", "-c", source("isolate.py"), json.dumps(config), *texts]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
            cwd="/", pass_fds=(status, proc), start_new_session=True,
        )  # fmt: skip

    def follow(self) -> None:
        """Feed the input and collect what comes, until all is closed or a limit is passed."""
        p = self.process
        assert p.stdin and p.stdout and p.stderr
        with selectors.DefaultSelector() as watch:
            for fd, name in ((p.stdout.fileno(), "output"), (p.stderr.fileno(), "errors"), (self.status, "status")):
                watch.register(fd, selectors.EVENT_READ, name)
            os.set_blocking(p.stdin.fileno(), False)
            watch.register(p.stdin, selectors.EVENT_WRITE, "input")
            looked = self.begun
            while any(key.data != "input" for key in watch.get_map().values()) and not self.stopped:
                for key, _ in watch.select(WATCH):
                    if key.data == "input":
                        self.feed(watch)
                    elif not self.take(key.fd, key.data):
                        watch.unregister(key.fd)
                now = time.monotonic()
                self.look(now, memory=now - looked >= WATCH)
                looked = now if now - looked >= WATCH else looked

    def feed(self, watch: selectors.BaseSelector) -> None:
        stdin = self.process.stdin
        assert stdin
        try:
            self.input = self.input[os.write(stdin.fileno(), self.input[: 1 << 16]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.input = b""
        if not self.input:
            watch.unregister(stdin)
            stdin.close()

    def take(self, fd: int, name: str) -> bool:
        """Collect one piece; False at the end."""
        data = os.read(fd, 1 << 16)
        self.got[name] += data
        if name == "status" and not self.ready and self.got[name].startswith(b"ready\n"):
            self.ready = time.monotonic()
        if len(self.got[name]) > self.limits.output and name != "status":
            self.stopped = f"more than {self.limits.output} bytes of {name}"
        if name == "status" and len(self.got[name]) > 1 << 20:
            self.stopped = "a report of more than a megabyte"
        return bool(data)

    def look(self, now: float, *, memory: bool) -> None:
        """Stop what takes too long or too much memory."""
        if not self.ready:
            if now - self.begun > START:
                self.stopped = f"it did not start within {START:g} seconds"
        elif now - self.ready > self.limits.seconds + (self.mode == "judge"):  # the judge ends by itself
            self.stopped = f"{self.limits.seconds:g} seconds are over"
        elif memory and resident(self.process.pid) > self.limits.memory:
            self.stopped = f"more than {self.limits.memory} bytes of memory"

    def end(self) -> None:
        """End everything that still runs, and close what is open."""
        p = self.process
        if not self.stopped:  # nothing in the sandbox runs any more: its end shows how
            with contextlib.suppress(subprocess.TimeoutExpired):
                p.wait(5)
        for pid in (*children(p.pid), p.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        p.wait()
        for stream in (p.stdin, p.stdout, p.stderr):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        os.close(self.status)

    def result(self) -> Result:
        """The verdict, from the report of the first process of the sandbox and from what was seen from outside."""
        output, errors = (self.got[k][: self.limits.output].decode("utf-8", "replace") for k in ("output", "errors"))
        if not self.ready:
            said = (errors.strip().splitlines() or [self.stopped or "it ended without a word"])[-1]
            raise InputError("sandbox", self.tool, f"this machine cannot isolate programs with it ({said})")
        seconds = time.monotonic() - self.ready
        report = {} if self.stopped else read_report(self.mode, bytes(self.got["status"]).removeprefix(b"ready\n"))
        verdict, reason = self.judge(report, errors)
        count = report.get("passed", 0), report.get("passed", 0) + report.get("failed", 0)
        reason = reason[:REASON].encode("utf-8", "replace").decode()
        return Result(verdict, reason, output, errors, report.get("code"), seconds, *count)

    def judge(self, report: dict[str, Any], errors: str) -> tuple[Verdict, str]:
        if self.stopped:
            return "stopped", self.stopped
        if not report:
            return "stopped", f"the sandbox's first process ended without a report ({self.ending()})"
        if "broken" in report:
            return "failed", report["broken"]
        if self.mode == "judge":
            if report["passed"] and not report["failed"]:
                return "passed", ""
            late = limit(report["end"])
            return ("stopped", late) if late else ("failed", report["first"] or "no assert was reached")
        if self.mode == "together" and report["marked"]:
            return "passed", ""
        if report["code"] == 0:
            return ("passed", "") if self.mode == "program" else ("failed", "it ended before its tests did")
        late, last = limit(report["ending"]), errors.strip().splitlines()[-1:] if report["code"] > 0 else []
        return ("stopped", late) if late else ("failed", ": ".join([report["ending"], *last]))

    def ending(self) -> str:
        """How the sandbox's first process ended, as the tool outside hands it on."""
        code = self.process.returncode
        number = -code if code < 0 else code - 128
        if number in set(signal.Signals):
            return f"signal {signal.Signals(number).name}"
        return f"exit code {code} of {self.tool}"  # some versions of unshare do not hand a signal on


def read_report(mode: str, text: bytes) -> dict[str, Any]:
    """What the sandbox's first process says at its end; {} for no word, `broken` for what it cannot have meant."""
    if not text:
        return {}
    try:
        report = json.loads(text)
    except (ValueError, RecursionError):
        report = None
    if isinstance(report, dict):
        for kinds in (REPORTS[mode], {"broken": str}):
            if report.keys() == kinds.keys() and all(fits(report[k], kind) for k, kind in kinds.items()):
                return report
    return {"broken": "the report of the sandbox's first process cannot be read"}


def fits(value: Any, kind: type) -> bool:
    """Whether a value of a report has its type and a size it may have."""
    return type(value) is kind and (kind is not int or -256 < value < 1 << 31)


def limit(ending: str) -> str:
    """Which limit an ending shows, if any."""
    if "time is up" in ending:
        return "time is up"
    return "cpu time is used up" if "SIGXCPU" in ending else ""


def children(pid: int) -> list[int]:
    """The child processes of a process; none where it has gone."""
    out: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                out += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return out


def resident(pid: int) -> int:
    """Resident memory, in bytes, of a process and all below it, without what is only mapped from files.

    A process may have any bytes as its name, which stands in the same file.
    """
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_bytes().split(b"\n"):
            if line.startswith((b"RssAnon:", b"RssShmem:")):
                total += int(line.split()[1]) << 10
    return total + sum(resident(child) for child in children(pid))
