"""Control beside its peers: SAC updates, PPO end to end, drawing from a replay, ten seeds; one thread each.

    python benchmarks/control_speed.py                               all of it: about an hour on a quiet machine
    python benchmarks/control_speed.py --works sac-update-2 --peers sb3 sbx --blocks 4 --quick       a look

Networks of two hidden layers, 17 observations, 6 actions, batches of 256. Before anything is timed: with
Stable-Baselines3 the losses of one update from the same weights, rows and noise agree to 1e-5; with the others sizes,
batch, rates and number of critics are set alike and `equality` in the result is null. Rows drawn from a replay are rows
of the data. Every one of ten seeds is compared with its own single run in tests. A ratio above 1: anypolicy needs less.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import finish, in_turn, rows
from control_work import PEERS, make_work, sample_gap, sides_of, update_gap

WORKS: dict[str, tuple[str, dict[str, Any], int, tuple[str, ...]]] = {
    "sac-update-2": ("update", {"critics": 2}, 40, ("sb3", "sbx", "tianshou", "torchrl", "d3rlpy")),
    "sac-update-10": ("update", {"critics": 10}, 10, ("sb3", "sbx", "torchrl", "d3rlpy")),
    "ppo": ("rollout and update", {"task": "CartPole-v1"}, 2, ("sb3", "sbx")),
    "ppo-pendulum": ("rollout and update", {"task": "Pendulum-v1"}, 2, ("sb3", "sbx")),
    "replay-sample": ("batch", {}, 1000, ("sb3", "tianshou", "torchrl", "d3rlpy")),
    "seeds-10": ("50 steps of ten seeds", {"seeds": 10}, 1, ("sb3", "loop")),
}
"""Name → unit of work, settings of the workers, units in a block, peers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--peers", nargs="+", choices=[*PEERS, "loop"], default=[*PEERS, "loop"])
    parser.add_argument("--blocks", type=int, default=20, help="of each side")
    parser.add_argument("--quick", action="store_true", help="nothing written")
    args = parser.parse_args()
    found, versions = [], {}
    with tempfile.TemporaryDirectory() as name:
        make_work(Path(name) / "data.npz")
        for work in args.works:
            unit, settings, repeat, peers = WORKS[work]
            for peer in [p for p in peers if p in args.peers]:
                sides = sides_of(Path(name), peer, work, settings)
                compare = {"sac-update-2": update_gap, "sac-update-10": update_gap, "replay-sample": sample_gap}
                gap = compare[work](sides) if work in compare else None
                costs = in_turn(sides, f"once {repeat}", args.blocks)
                label = PEERS[peer][0] if peer in PEERS else "one seed after the other"
                found += rows(f"{work}-{peer}", label, unit, costs, equality=gap)
                for side, worker in sides.items():
                    versions |= {f"{side} {k}": v for k, v in worker.ask("versions").items()}
                    worker.close()
    finish("control_speed", found, versions, vars(args), keep=not args.quick)


if __name__ == "__main__":
    main()
