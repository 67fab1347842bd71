"""The one door for scorers that are not ours and read what a policy wrote: another process, one child an answer."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import inspect
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

from anypolicy.errors import InputError
from anypolicy.sandbox import backends
from anypolicy.sandbox.inside import encode
from anypolicy.sandbox.run import Limits, source

Verdict = Literal["scored", "refused", "unreadable", "timeout", "ended"]
VERDICTS: tuple[Verdict, ...] = ("scored", "refused", "unreadable", "timeout", "ended")
"""A score; an answer that must not be read; one that cannot be read; time is up; the child died (of memory, say)."""
RECORD = struct.Struct("<Bd")
CPU_SECONDS, SECONDS, MEMORY = 2, 60.0, 4 << 30
UNISOLATED = "ANYPOLICY_UNISOLATED"
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONMALLOC": "malloc"}
"""One thread, and memory where `scoring.large_pages` has an influence on it."""


class Outcome(NamedTuple):
    """What became of one answer, and its score (0 unless it was scored)."""

    verdict: Verdict
    value: float = 0.0


class Scorer(NamedTuple):
    """A function by the names and sources of its modules, in the order they import each other. They may import what is
    installed and nothing else of ours; `make(*given)` of the last returns the function, which may raise the built-in
    `Refused` for an answer that must not be read. `isolated` says that it may run only where this machine can isolate
    it."""

    name: str
    modules: tuple[tuple[str, str], ...]
    given: tuple[Any, ...] = ()
    isolated: bool = False

    @classmethod
    def of(cls, name: str, *modules: str, given: tuple[Any, ...] = (), isolated: bool = False) -> Scorer:
        """The scorer of modules of ours, by their names."""
        return cls(name, tuple((m, inspect.getsource(importlib.import_module(m))) for m in modules), given, isolated)


class Door:
    """A process that holds scorers and forks one child for each answer; safe among threads.

    It is isolated as `sandbox.run` isolates (no file but the interpreter and what is installed, no network, no
    environment; a child can write no byte). Where the machine cannot isolate, it is a process of its own with the same
    limits on each child, and refuses scorers that are to be isolated unless ANYPOLICY_UNISOLATED=1 allows them. An
    answer has CPU_SECONDS of processor time, and SECONDS of wall clock, which only waiting can use up.
    """

    def __init__(self, cpu_seconds: int = CPU_SECONDS, seconds: float = SECONDS, at_once: int = 0) -> None:
        self.at_once = at_once or os.cpu_count() or 1
        self.scoring = {"cpu_seconds": cpu_seconds, "seconds": seconds, "at_once": self.at_once, "memory": MEMORY}
        self.process: subprocess.Popen[bytes] | None = None
        self.status: int | None = None
        self.reason = ""
        self.numbers: dict[bytes, int] = {}
        self.lock = threading.RLock()
        atexit.register(self.close)

    def score(self, scorer: Scorer, requests: Sequence[tuple[Any, ...]]) -> list[Outcome]:
        """The scorer's word on each request, whose last answers wait for no other's deadline. Requests are arguments
        of the scorer's function, plain data. Raises InputError where the scorer cannot be loaded or may not run."""
        if not requests:
            return []
        with self.lock:
            for last in (False, True):
                number = struct.pack("<I", self.number(scorer))
                try:
                    self.send([b"", *(number + plain(r) for r in requests)])
                    said = self.read(RECORD.size * len(requests))
                    return [Outcome(VERDICTS[verdict], value) for verdict, value in RECORD.iter_unpack(said)]
                except (BrokenPipeError, EOFError) as error:  # somebody ended it: begin anew, once
                    self.close()
                    if last:
                        raise RuntimeError("the process that scores answers was ended from outside, twice") from error
        raise AssertionError

    def number(self, scorer: Scorer) -> int:
        """The scorer's number in the process; it is started and the scorer loaded where it has none."""
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.start()
        if self.reason and scorer.isolated and os.environ.get(UNISOLATED) != "1":
            raise InputError(
                "sandbox", scorer.name, f"it evaluates what a policy wrote, and this machine cannot isolate it "
                f"({self.reason}); {UNISOLATED}=1 in the environment runs it in a process of its own all the same",
            )  # fmt: skip
        part = plain((scorer.modules, scorer.given))
        if part not in self.numbers:
            self.send([part])
            verdict, length = RECORD.unpack(self.read(RECORD.size))
            if VERDICTS[verdict] != "scored":
                told = self.read(int(length)).decode("utf-8", "replace")
                raise InputError("scorer", scorer.name, f"it cannot be loaded ({told})")
            self.numbers[part] = len(self.numbers)
        return self.numbers[part]

    def start(self) -> None:
        """Isolated where this machine can; else in a process of its own, with the reason kept."""
        try:
            self.begin(isolated=True)
        except InputError as error:
            self.close()
            self.reason = error.allowed
            self.begin(isolated=False)

    def begin(self, *, isolated: bool) -> None:
        packages = [p for p in map(os.path.realpath, sys.path) if p.endswith(("site-packages", "dist-packages"))]
        environment = backends.environment() | ENVIRONMENT
        config: dict[str, Any] = {"packages": packages, "scoring": self.scoring, "environment": environment,
                                  "inside": source("inside.py")}  # fmt: skip
        python, scoring = [backends.python(), "-sSPB", "-c"], source("scoring.py")
        if isolated:
            tool = backends.choose("auto")
            status, theirs = os.pipe()
            proc = os.open("/proc", os.O_PATH)
            limits = Limits(cpu_seconds=1 << 40, memory=MEMORY, processes=self.at_once + 4)
            config |= {"limits": asdict(limits), "status": theirs, "proc": proc}
            command, config = backends.begin(tool, config, packages)
            command += [*python, source("isolate.py"), json.dumps(config), scoring]
            passed = theirs, proc
            self.status = status
        else:
            command, passed = [*python, scoring, json.dumps(config)], ()
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd="/", pass_fds=passed,
                stderr=subprocess.PIPE if isolated else None,
                start_new_session=True,  # Ctrl-C does not reach it: it ends with its input
            )  # fmt: skip
        finally:
            for fd in passed:
                os.close(fd)
        try:
            self.read(RECORD.size)
        except EOFError as error:
            said = self.process.stderr.read().decode("utf-8", "replace").strip() if self.process.stderr else ""
            last = (said.splitlines() or ["it ended without a word"])[-1]
            raise InputError("sandbox", "scorers", f"they do not start here: {last}") from error

    def send(self, parts: list[bytes]) -> None:
        assert self.process is not None and self.process.stdin is not None
        lengths = struct.pack(f"<{len(parts) + 1}Q", len(parts), *map(len, parts))
        self.process.stdin.write(b"".join([lengths, *parts]))
        self.process.stdin.flush()

    def read(self, n: int) -> bytes:
        assert self.process is not None and self.process.stdout is not None
        said = self.process.stdout.read(n)
        if len(said) < n:
            raise EOFError
        return said

    def close(self) -> None:
        """End the process, if there is one."""
        process, self.process, self.numbers = self.process, None, {}
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            process.wait()
        if self.status is not None:
            os.close(self.status)
            self.status = None


def plain(x: Any) -> bytes:
    """Plain data as `scoring.py` reads it."""
    return json.dumps(encode(x)).encode()


door = Door()
