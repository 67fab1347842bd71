"""This checkout beside an earlier revision of itself: the same work by both, in turn, one thread each.

    python benchmarks/compare_revisions.py main~20              all works: about ten minutes on a quiet machine
    python benchmarks/compare_revisions.py main~20 --works grpo-step sac-update-2 --blocks 6

A ratio above 1: this checkout needs less. It ends with 1 if a work needs over 5 % more processor time with the whole
interval (`make bench-compare REV=…`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import control_work
import offline_speed
from common import HERE, Worker, finish, in_turn, rows
from grpo_work import make_model, make_work

from anypolicy.policies.language.smollm2 import smollm2_folder

WORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "grpo-update": ("ours.py", "update 4", {}),
    "grpo-step": ("ours.py", "step 1", {}),
    "dpo-update": ("dpo_ours.py", "update 4", {}),
    "generate": ("generate.py", "once 1", {"engine": "ours", "prompts": 4, "group": 4, "prompt": 60, "least": 16,
                                           "most": 64, "even": 0, "threads": 1, "dtype": "bfloat16"}),
    "sac-update-2": ("control_ours.py", "once 40", {"critics": 2}),
    "sac-update-10": ("control_ours.py", "once 10", {"critics": 10}),
    "ppo": ("control_ours.py", "once 2", {"task": "CartPole-v1"}),
    "replay-sample": ("control_ours.py", "once 1000", {}),
    "seeds-10": ("control_ours.py", "once 1", {"seeds": 10}),
    "dqn": ("offline_ours.py", "once 100", {}),
    "cql": ("offline_ours.py", "once 100", {}),
}  # fmt: skip
"""Name → worker, command of a block, settings."""


def prepare(folder: Path, work: str) -> dict[str, Any]:
    """What a worker is given: models and data in `folder`, made once."""
    script, _, settings = WORKS[work]
    if script == "generate.py":
        return settings | {"model": str(smollm2_folder())}
    if script == "control_ours.py":
        control_work.make_work(folder / "data.npz")
        return settings | {"data": str(folder / "data.npz"), "weights": str(folder / "weights.npz"), "work": work}
    if script == "offline_ours.py":
        offline_speed.make_work(folder / "data.npz")
        return {"folder": str(folder), "work": work}
    pairs = script == "dpo_ours.py"
    make_model(folder / "model", "1m")
    make_work(folder / "work.json", *((16, 2) if pairs else (10, 8)), 32, 64)
    return {"model": str(folder / "model"), "work": str(folder / "work.json"), "lr": 1e-6, "group": 8,
            "completion": 64, "out": str(folder / "out.safetensors")}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="what git knows it by")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--blocks", type=int, default=12, help="of each side")
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        old = Path(name) / "old"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(old), args.revision], check=True)
        try:
            for work in args.works:
                folder = Path(name) / work
                folder.mkdir()
                given, (script, command, _) = prepare(folder, work), WORKS[work]
                sides = {
                    side: Worker(Path(sys.executable), root / "benchmarks" / "workers" / script, given,
                                 os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"})
                    for side, root in (("ours", HERE.parent), ("peer", old))
                }  # fmt: skip
                found += rows(work, args.revision, command, in_turn(sides, command, args.blocks))[:1]
                for worker in sides.values():
                    worker.close()
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], check=True)
    finish("compare_revisions", found, {}, vars(args), keep=False)
    worse = [r["name"] for r in found if r["high"] < 1 / 1.05]
    print(f"more than 5 % slower than {args.revision}: {', '.join(worse) or 'none'}")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
