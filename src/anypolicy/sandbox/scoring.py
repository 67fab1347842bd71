"""What the isolated process runs that scores what policies wrote: a clean parent that forks one child an answer.

Given to Python as text, after `isolate.py` where the machine can isolate and by itself where it cannot, with a
configuration that holds the text of `inside.py`, which knows plain data. The parent imports the scorers, which takes
long, and never reads an answer; a child reads one, says one number and is gone. So no answer runs in a process where
another has run. Nothing but the standard library may be imported here.

Frames come on the standard input: the number of parts (8 bytes), the length of each, the parts, JSON of plain data.
One part is a scorer to load: its modules and the arguments of its `make`. More are requests behind an empty part, each
the number of a scorer (4 bytes) and the arguments of its function. Every reply is a record: a verdict and a float64.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import select
import signal
import struct
import sys
import time
import types
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:  # what is imported here costs time at every start
    from collections.abc import Callable
    from typing import Any

RECORD = struct.Struct("<Bd")
M_TOP_PAD, M_MMAP_THRESHOLD, MADV_HUGEPAGE = -2, -3, 14
HEAP, LARGE_PAGE = 256 << 20, 2 << 20
SCORED, REFUSED, UNREADABLE, TIMEOUT, ENDED = range(5)


DECODE: list[Callable[[Any], Any]] = []


class Refused(Exception):
    """A scorer raises it for an answer that it must not read."""


def exactly(n: int) -> bytes:
    """So many bytes of the standard input; the process ends with it."""
    parts: list[bytes] = []
    while n:
        data = os.read(0, min(n, 1 << 20))
        if not data:
            os._exit(0)
        parts.append(data)
        n -= len(data)
    return b"".join(parts)


def frame() -> list[bytes]:
    """The parts of the next frame."""
    (count,) = struct.unpack("<Q", exactly(8))
    return [exactly(n) for n in struct.unpack(f"<{count}Q", exactly(8 * count))]


def plain(part: bytes) -> Any:
    """Plain data, as `inside.py` reads it."""
    return DECODE[0](json.loads(part))


def module(name: str, source: str) -> types.ModuleType:
    """A module by its source, where others find it by its name."""
    for i, c in enumerate(name):
        if c == "." and name[:i] not in sys.modules:
            package = sys.modules[name[:i]] = types.ModuleType(name[:i])
            package.__path__ = []
    made = sys.modules[name] = types.ModuleType(name)
    types.FunctionType(compile(source, name, "exec"), made.__dict__)()
    return made


def load(scorers: list[Callable[..., float]], part: bytes) -> bytes:
    """Add the function that a scorer's `make` returns; what went wrong, if something did, with its length before it."""
    modules, given = plain(part)
    made = types.ModuleType("none")
    try:
        for name, source in modules:
            made = module(name, source)
        scorers.append(made.make(*given))
    except Exception as error:
        said = f"{type(error).__name__}: {error}".encode()
        return RECORD.pack(UNREADABLE, len(said)) + said
    gc.collect()
    gc.freeze()  # children that collect garbage would copy what they share with this process
    return RECORD.pack(SCORED, 0.0)


def answered(score: Callable[..., float], request: bytes) -> bytes:
    """One request's record."""
    try:
        value = float(score(*plain(request)))
        return RECORD.pack(SCORED, value)
    except Refused:
        return RECORD.pack(REFUSED, 0.0)
    except Exception:  # several scorers raise on text that they cannot read
        return RECORD.pack(UNREADABLE, 0.0)


def begin(scorers: list[Callable[..., float]], part: bytes, limits: dict[str, int]) -> tuple[int, int]:
    """A child that answers one request, and the pipe on which it does."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return read, pid
    try:
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        os.dup2(os.open("/dev/null", os.O_RDWR), 0)
        for stream in (1, 2):
            os.dup2(0, stream)
        os.dup2(write, 3)
        os.closerange(4, 1 << 10)
        seconds = limits["cpu_seconds"]
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        for name, most in ((resource.RLIMIT_AS, limits["memory"]), (resource.RLIMIT_NPROC, 0),
                           (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 16)):  # fmt: skip
            resource.setrlimit(name, (most, most))
        (number,) = struct.unpack("<I", part[:4])
        os.write(3, answered(scorers[number], part[4:]))
    finally:
        os._exit(0)


def ended(fd: int, pid: int, said: bytes, late: bool) -> bytes:
    """The record of a child that is gone: its own if it is whole."""
    os.close(fd)
    if late:
        os.kill(pid, signal.SIGKILL)
    _, how = os.waitpid(pid, 0)
    if late or (os.WIFSIGNALED(how) and os.WTERMSIG(how) == signal.SIGXCPU):
        return RECORD.pack(TIMEOUT, 0.0)
    return said if len(said) == RECORD.size and said[0] <= UNREADABLE else RECORD.pack(ENDED, 0.0)


def batch(scorers: list[Callable[..., float]], parts: list[bytes], limits: dict[str, int]) -> bytes:
    """The records of many requests, some at a time, in the order given."""
    records, waiting = [b""] * len(parts), list(range(len(parts)))[::-1]
    running: dict[int, tuple[int, int, float, bytes]] = {}
    while waiting or running:
        while waiting and len(running) < limits["at_once"]:
            i = waiting.pop()
            fd, pid = begin(scorers, parts[i], limits)
            running[fd] = i, pid, time.monotonic() + limits["seconds"], b""
        left = min(until for _, _, until, _ in running.values()) - time.monotonic()
        ready = select.select(list(running), [], [], max(left, 0.0))[0]
        for fd, (i, pid, until, said) in list(running.items()):
            data = os.read(fd, 64) if fd in ready else b""
            late = time.monotonic() >= until or len(said + data) > RECORD.size
            if data and not late:
                running[fd] = i, pid, until, said + data
            elif late or fd in ready:
                del running[fd]
                records[i] = ended(fd, pid, said, late)
    return b"".join(records)


def large_pages() -> None:
    """Let the heap grow in large pages: a fork, which copies a table of all pages, then takes a third of the time."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    libc.mallopt(M_TOP_PAD, HEAP)
    libc.mallopt(M_MMAP_THRESHOLD, HEAP)
    begin = -(-libc.sbrk(0) // LARGE_PAGE) * LARGE_PAGE
    held = [bytes(LARGE_PAGE // 16) for _ in range(64)]  # more than what is free, so that the heap grows
    libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(libc.sbrk(0) - begin), MADV_HUGEPAGE)
    del held


def main() -> None:
    config = json.loads(sys.argv[1])
    inside: dict[str, Any] = {"__name__": "inside"}
    types.FunctionType(compile(config["inside"], "inside", "exec"), inside)()
    DECODE.append(inside["decode"])
    builtins.Refused = Refused  # type: ignore[attr-defined]
    sys.path += config["packages"]
    large_pages()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints while it is imported is no reply
    os.write(replies, RECORD.pack(SCORED, 0.0))
    scorers: list[Callable[..., float]] = []
    while True:
        parts = frame()
        if len(parts) == 1:
            said = load(scorers, parts[0])
        else:
            said = batch(scorers, parts[1:], config["scoring"])
        while said:
            said = said[os.write(replies, said) :]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
