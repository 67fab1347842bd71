"""The sandbox beside a bare subprocess: the same programs, interpreter and flags, in interleaved blocks.

    python benchmarks/sandbox.py            twenty blocks of each, results in benchmarks/results/
    python benchmarks/sandbox.py --quick    four blocks, nothing written

Seconds of wall clock for each program. A ratio below 1 is what isolation costs: 0.5 is twice the time of a subprocess.
Beside them the process that scores answers (one child an answer) and the same scorers in this process, a step's worth
of answers at a time; for these the milliseconds say more than the ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from common import ratio, write
from rich.console import Console
from rich.table import Table

from anypolicy.sandbox import Candidate, run, run_many
from anypolicy.sandbox.backends import BACKENDS, python
from anypolicy.sandbox.scorers import door
from anypolicy.tasks.language.reasoning_gym import ReasoningGymTask

SOURCE = "def double(x):\n    return 2 * x\n"
TESTS = "".join(f"assert double({i}) == {2 * i}\n" for i in range(8))


def bare(_: int) -> None:
    """The program and its tests in a plain interpreter."""
    subprocess.run([python(), "-sSPB", "-c", SOURCE + TESTS], check=True, capture_output=True)


def bare_many(n: int, at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(bare, range(n)))


def kinds(backend: str, at_once: int) -> dict[str, tuple[Callable[[int], object], Callable[[int], object]]]:
    """Kind of work: (ours, the bare subprocess), each a function of the number of programs."""
    candidate = Candidate(SOURCE, TESTS, ("double",))

    def one_by_one(work: Candidate | str) -> Callable[[int], object]:
        return lambda n: [run(work, backend=backend) for _ in range(n)]  # type: ignore[arg-type]

    alone: Callable[[int], object] = lambda n: [bare(i) for i in range(n)]  # noqa: E731
    return {
        f"{backend}-program": (one_by_one(SOURCE + TESTS), alone),
        f"{backend}-candidate": (one_by_one(candidate), alone),
        f"{backend}-batch": (
            lambda n: run_many([candidate] * n, backend=backend, at_once=at_once),  # type: ignore[arg-type]
            lambda n: bare_many(n, at_once),
        ),
    }


def scorers(answers: int) -> dict[str, tuple[Callable[[int], object], Callable[[int], object]]]:
    """The same for answers to data sets of reasoning-gym: (a batch of right answers by the door, in this process)."""
    out: dict[str, tuple[Callable[[int], object], Callable[[int], object]]] = {}
    for name in ("chain_sum", "countdown"):
        task = ReasoningGymTask(name, 0, size=2 * answers)
        pairs = [(entry["answer"], entry) for entry in list(task.entries.values())[:answers]]
        out[f"answers-{name}"] = (
            lambda n, task=task, pairs=pairs: [door.score(task.scorer, pairs) for _ in range(n)],
            lambda n, task=task, pairs=pairs: [task.dataset.score_answer(*p) for _ in range(n) for p in pairs],
        )
    return out


def measure(
    ours: Callable[[int], object], peer: Callable[[int], object], blocks: int, n: int
) -> dict[str, list[float]]:
    """Blocks A B B A …: seconds for each program."""
    costs: dict[str, list[float]] = {"ours": [], "peer": []}
    sides = {"ours": ours, "peer": peer}
    for work in sides.values():
        work(n)
    for block in range(blocks):
        for side in ("ours", "peer") if block % 2 == 0 else ("peer", "ours"):
            begun = time.perf_counter()
            sides[side](n)
            costs[side].append((time.perf_counter() - begun) / n)
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--programs", type=int, default=8, help="programs in a block")
    parser.add_argument("--answers", type=int, default=64, help="answers scored at a time")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="four blocks, nothing written")
    args = parser.parse_args()
    args.blocks = 4 if args.quick else args.blocks
    ratios, table = [], Table("work", "sandbox", "beside", "ratio [95 %]", "programs or answers/s")
    works = [(name, *sides, 1, "bare subprocess") for b in BACKENDS for name, sides in kinds(b, args.at_once).items()]
    works += [(name, *sides, args.answers, "this process") for name, sides in scorers(args.answers).items()]
    for name, ours, peer, each, beside in works:
        costs = {k: [s / each for s in v] for k, v in measure(ours, peer, args.blocks, args.programs).items()}
        point, low, high = ratio(costs["ours"], costs["peer"])
        own, theirs = float(np.median(costs["ours"])), float(np.median(costs["peer"]))
        unit = "seconds per program" if each == 1 else "seconds per answer"
        ratios.append({"name": name, "ratio": point, "low": low, "high": high, "peer": beside,
                       "unit": unit, "ours": own, "theirs": theirs})  # fmt: skip
        table.add_row(name, f"{own:.6f}", f"{theirs:.6f}", f"{point:.2g} [{low:.2g}, {high:.2g}]", f"{1 / own:.1f}")
    Console().print(table)
    if not args.quick:
        versions = {"python": platform.python_version(), "kernel": platform.release().split("-")[0]}
        for tool in BACKENDS:
            versions[tool] = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout.split()[-1]
        print(write("sandbox", ratios, versions, vars(args)))


if __name__ == "__main__":
    main()
