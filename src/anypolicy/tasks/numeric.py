"""The comparison of values behind a deadline.

The grammar of `expressions` bounds what a policy wrote, but proving that two expressions are equal may take for ever,
and no signal can stop it. So it runs in a process of its own, which is ended when its time is up.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import threading
from pathlib import Path

from anypolicy.tasks.values import same

DEADLINE = 5.0
MEMORY = 4 << 30
SOURCE = str(Path(__file__).parents[2])
START = f"import sys; sys.path.insert(0, {SOURCE!r}); from anypolicy.tasks.numeric import serve; serve()"


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
                raise RuntimeError("the process that compares values ended by itself; see its message above")
            return said == "true\n"

    def start(self) -> subprocess.Popen[str]:
        """Wait until it has imported sympy, which is not part of any response's time."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C does not reach it: it ends with its input
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            self.close()
            raise RuntimeError("the process that compares values did not start; see its message above")
        return self.process

    def close(self) -> None:
        """End the process, if there is one."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()


def serve() -> None:
    """One JSON pair (response, answer) a line in, true or false a line out."""
    import sympy as sympy

    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(same(*json.loads(line))), flush=True)
