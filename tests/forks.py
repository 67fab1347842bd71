"""The command line in processes of its own, each a fork of one that has everything imported."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SERVER = """
import json, os, resource, signal, sys
import anypolicy.engines.native, anypolicy.loops.control, anypolicy.optimisers.updater, anypolicy.runs.checkpoint, anypolicy.studies
from anypolicy.cli.app import main

PLACES = {
    "generation": (anypolicy.engines.native, "draw"),
    "update": (anypolicy.optimisers.updater.Updater, "step"),
    "environment": (anypolicy.loops.control.OffPolicyLoop, "step"),
    "checkpoint": (anypolicy.runs.checkpoint, "save_file"),
    "rename": (anypolicy.runs.checkpoint, "digest"),
}

def killed_at(place, count, number=signal.SIGKILL, times=1):
    owner, name = PLACES[place]
    original, calls = getattr(owner, name), 0
    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return original(*args, **kwargs)
    setattr(owner, name, counted)

for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for number, path in ((1, job["out"]), (2, job["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if job["largest_file"]:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)
        if job["kill"]:
            killed_at(*job["kill"])
        code = main(job["args"])
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its code (−9: killed) and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


class CommandLine:
    """`run(*arguments)`; `kill` is (place, count) and perhaps a signal and how often: the process gets it at that call,
    by default one that kills. `largest_file` in bytes stands in for a full disk."""

    def __init__(self, folder: Path):
        self.folder = folder
        env = os.environ | {"PYTHONHASHSEED": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, *args: str, kill: tuple | None = None, largest_file: int = 0) -> Ended:
        out, err = self.folder / "stdout", self.folder / "stderr"
        job = {"args": args, "kill": kill, "largest_file": largest_file, "out": str(out), "err": str(err)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return Ended(int(self.process.stdout.readline()), out.read_text(), err.read_text())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
