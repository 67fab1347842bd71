"""Jobs in several processes, which end with the process that waits for them, however that ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

from anypolicy.errors import InputError, outliving
from anypolicy.runs.output import lasting_output
from anypolicy.runs.stop import Stopped
from anypolicy.runs.trust import ALLOWED, inherit

PR_SET_PDEATHSIG = 1


def in_workers(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """`function(*job)` of every job as they finish: here, or in `workers` processes. After an exception no further job
    begins; it is raised when those at work have ended. Where this process is stopped the workers are asked to stop as
    a run is, and waited for; where it is stopped once more they are killed."""
    if workers <= 1:
        yield from (function(*job) for job in jobs)
        return
    waiting, pool, failed = deque(jobs), list[Worker](), list[BaseException]()
    try:
        pool += [Worker(function) for _ in range(min(workers, len(jobs)))]
        busy = {w.pipe: w for w in pool if w.give(waiting)}
        while busy:
            for pipe in cast(list[Connection], wait(list(busy))):
                fine, value = busy[pipe].answer()
                failed += [] if fine else [value]
                if failed or not busy[pipe].give(waiting):
                    del busy[pipe]
                if fine:
                    yield value
        if failed:
            raise failed[0]
    except BaseException:
        for w in pool:
            w.process.terminate()
        raise
    finally:
        end(pool)


class Worker:
    """A process that does one job after the other."""

    def __init__(self, function: Callable[..., Any]):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, function, tuple(ALLOWED)))
        with deaf_to_the_keyboard():
            self.process.start()
        theirs.close()

    def give(self, waiting: deque[tuple[Any, ...]]) -> bool:
        """The next of the jobs that wait, if there is one."""
        if not waiting:
            return False
        with suppress(OSError):  # it has died: `answer` says so
            self.pipe.send(waiting.popleft())
        return True

    def answer(self) -> tuple[bool, Any]:
        """Whether the job came to its end, and the result or the exception."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            how = "was killed: use fewer workers if memory is short" if self.process.exitcode == -9 else "has ended"
            return False, InputError("workers", f"exit code {self.process.exitcode}", f"one of the processes {how}")


def end(pool: list[Worker]) -> None:
    """Wait until all have ended; kill them where that is cut short."""
    try:
        for w in pool:
            w.pipe.close()
        for w in pool:
            w.process.join()
    except BaseException:
        for w in pool:
            w.process.kill()
        raise


@contextmanager
def deaf_to_the_keyboard() -> Generator[None]:
    """Processes that are started now do not hear Ctrl-C, which goes to all of a terminal: who started them decides."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def work(pipe: Connection, function: Callable[..., Any], allowed: tuple[str, ...]) -> None:
    """The process of a worker: jobs come by the pipe and results go back, until it is closed. It may run the code that
    the process that started it may run."""
    die_with_parent()
    inherit(allowed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError, Stopped), lasting_output():
        while True:
            pipe.send(done(function, pipe.recv()))


def done(function: Callable[..., Any], job: tuple[Any, ...]) -> tuple[bool, Any]:
    """What `Worker.answer` gives."""
    try:
        with outliving("workers"):
            return True, function(*job)
    except Stopped:
        raise
    except BaseException as error:
        said = traceback.format_exc()
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))  # type: ignore[reportAttributeAccessIssue]
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        if not isinstance(error, InputError):
            error.add_note(f"in a worker:\n{said}")
        return False, error


def die_with_parent() -> None:
    """This process is killed when the one that started it ends: by Linux, and elsewhere by a thread that waits."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
