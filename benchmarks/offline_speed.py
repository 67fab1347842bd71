"""Offline updates of discrete actions beside d3rlpy: double DQN and CQL, one thread each.

    python benchmarks/offline_speed.py                       both: about ten minutes on a quiet machine
    python benchmarks/offline_speed.py --works dqn --blocks 4 --quick       a look

Three layers of 256 with SELU, 8 observations, 4 actions, batches of 128 drawn from each side's own replay of the same
10,000 transitions. Before anything is timed the loss of one update from the same weights and rows must agree to 1e-5. A
ratio above 1: anypolicy needs less.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import HERE, Worker, finish, in_turn, peer_python, rows

PACKAGES = ["torch==2.13.*", "d3rlpy==2.8.*"]
OBSERVATIONS, ACTIONS, ROWS, REPEAT = 8, 4, 10_000, 100


def make_work(path: Path, seed: int = 0) -> None:
    """Transitions whose reward is their row number over ROWS, in episodes of 20 steps."""
    rng = np.random.default_rng(seed)
    walk = rng.standard_normal((ROWS + 1, OBSERVATIONS)).astype(np.float32)
    np.savez(
        path, observation=walk[:-1], next_observation=walk[1:], action=rng.integers(0, ACTIONS, (ROWS, 1)),
        reward=(np.arange(ROWS) / ROWS).astype(np.float32),
        terminated=(np.arange(ROWS) % 20 == 19).astype(np.float32),
    )  # fmt: skip


def gap_of(sides: dict[str, Worker]) -> float:
    """Relative difference of the losses on the rows that the peer drew, from our weights; the script ends if it is not
    small."""
    sides["ours"].ask("weights")
    theirs = sides["peer"].ask("losses")["loss"]
    ours = sides["ours"].ask("losses")["loss"]
    gap = abs(ours - theirs) / max(abs(theirs), 1e-8)
    if not gap < 1e-5:
        sys.exit(f"not comparable: {ours} {theirs}")
    return gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=("dqn", "cql"), default=["dqn", "cql"])
    parser.add_argument("--blocks", type=int, default=20, help="of each side")
    parser.add_argument("--quick", action="store_true", help="nothing written")
    args = parser.parse_args()
    found, versions = [], {}
    with tempfile.TemporaryDirectory() as name:
        make_work(Path(name) / "data.npz")
        for work in args.works:
            given = {"folder": name, "work": work}
            peer = peer_python("d3rlpy", PACKAGES)
            sides = {"ours": Worker(Path(sys.executable), HERE / "workers/offline_ours.py", given),
                     "peer": Worker(peer, HERE / "workers/offline_d3rlpy.py", given)}  # fmt: skip
            gap = gap_of(sides)
            costs = in_turn(sides, f"once {REPEAT}", args.blocks)
            found += rows(f"offline-{work}", "d3rlpy 2.8", "update", costs, equality=gap)
            for side, worker in sides.items():
                versions |= {f"{side} {k}": v for k, v in worker.ask("versions").items()}
                worker.close()
    finish("offline_speed", found, versions, vars(args), keep=not args.quick)


if __name__ == "__main__":
    main()
