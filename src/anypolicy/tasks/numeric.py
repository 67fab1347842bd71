"""math-verify behind a deadline.

A response is written by a policy and may be 9^9^9^9: computing that never returns, and no signal can stop it. So the
comparison runs in a process of its own, this file as a script, which is ended when its time is up.
"""

from __future__ import annotations

import atexit
import json
import logging
import subprocess
import sys
import threading
from typing import Any

DEADLINE = 5.0
MEMORY = 4 << 30


class Judge:
    """Asks the process whether a response has the answer's value; starts it when needed. Safe among threads."""

    def __init__(self, deadline: float = DEADLINE):
        self.deadline = deadline
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        atexit.register(self.close)

    def __call__(self, response: str, answer: str) -> bool:
        """False also where the comparison takes longer than the deadline (seconds)."""
        with self.lock:
            process = self.process or self.start()
            assert process.stdin is not None and process.stdout is not None
            over = threading.Event()

            def end() -> None:
                over.set()
                process.kill()

            timer = threading.Timer(self.deadline, end)
            timer.start()
            process.stdin.write(json.dumps([response, answer]) + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
            timer.cancel()
            if over.is_set() or not said:
                self.close()
            if not said and not over.is_set():
                raise RuntimeError("the process that runs math-verify ended by itself; see its message above")
            return said == "true\n"

    def start(self) -> subprocess.Popen[str]:
        """Wait until it has imported math-verify, which is not part of any response's time."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C does not reach it: it ends with its input
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            self.close()
            raise RuntimeError("the process that runs math-verify did not start; see its message above")
        return self.process

    def close(self) -> None:
        """End the process, if there is one."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()


def same(math_verify: Any, response: str, answer: str) -> bool:
    """Whether the last expression of the response has the answer's value; False where it is too large to compute."""
    try:
        gold = math_verify.parse(answer, parsing_timeout=None)
        found = math_verify.parse(response, parsing_timeout=None)
        return bool(math_verify.verify(gold, found, timeout_seconds=None))
    except (MemoryError, RecursionError):
        return False


def serve() -> None:
    """One JSON pair (response, answer) a line in, true or false a line out."""
    import math_verify

    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    logging.disable(logging.WARNING)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(same(math_verify, *json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
