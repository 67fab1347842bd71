"""A whole GRPO step at the size users have, beside TRL: SmolLM2-135M in bfloat16, 8 prompts × 8 responses of 64–256
tokens of uneven length; generation, rewards, advantages, update; two threads.

    python benchmarks/smollm2_step.py             three blocks of each: about half an hour on a quiet machine
    python benchmarks/smollm2_step.py --blocks 1 --most 96 --quick

Both sides have the same lengths. TRL makes its update in eight passes of eight rows (all at once it needs more memory
than a laptop has) and keeps weights and moments in bfloat16; ours are float32 beside the bfloat16 ones. Before anything
is timed, loss and gradient of given rows must agree in float32. The script measures what this machine can read and
multiply and prints the share of that bound which was reached.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, Worker, finish, in_turn, memory, peer_python, rows
from generate import LAYERS, PARAMETERS, bound
from grpo_work import PEER, agree, make_model, make_work, workers

from anypolicy.policies.language.smollm2 import smollm2_folder


def check(folder: Path, python: Path) -> float:
    """Loss and gradient of a few given rows agree in float32."""
    make_work(folder / "work.json", 2, 4, 16, 24)
    sides = workers(folder, python, {"group": 4, "completion": 24})
    gap = agree(sides, folder)
    for worker in sides.values():
        worker.close()
    return gap


def least(given: dict[str, Any], lengths: list[int]) -> dict[str, float]:
    """Seconds that generation and update need at the least: the former as in generate.py, the latter three times the
    operations of a forward pass that reads every prompt once."""
    ours = Worker(Path(sys.executable), HERE / "workers/generate.py",
                  given | {"engine": "ours", "even": 0, "model": str(smollm2_folder())})  # fmt: skip
    measured = ours.ask("bounds")
    ours.close()
    tokens = given["prompts"] * given["prompt"] + sum(lengths)
    attended = sum(4 * LAYERS * 576 * n * (given["prompt"] + n / 2) for n in lengths)
    update = 3 * (2 * PARAMETERS * tokens + attended) / measured["flops"]
    generation = bound(given, measured)["either"]
    return measured | {"generation": generation, "update": update, "step": generation + update}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("prompts", 8), ("group", 8), ("prompt", 60), ("least", 64), ("most", 256), ("threads", 2),
                        ("blocks", 3)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--quick", action="store_true", help="nothing written")
    args = parser.parse_args()
    sizes = {k: getattr(args, k) for k in ("prompts", "group", "prompt", "least", "most", "threads")}
    rng = np.random.default_rng(0)
    lengths = rng.integers(args.least, args.most + 1, args.prompts * args.group).tolist()
    python, versions = peer_python("trl", PEER), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", "smollm2-135m")
        gap = check(folder, python)
        needed = least(sizes | {"dtype": "bfloat16"}, lengths)
        make_work(folder / "work.json", args.prompts, args.group, args.prompt, 2)
        given = {"group": args.group, "completion": args.most, "dtype": "bfloat16", "threads": args.threads}
        sides = workers(folder, python, given | {"lengths": lengths, "passes": args.prompts})
        costs = in_turn(sides, "step 1", args.blocks)
        cpu, wall = rows("smollm2-step", "trl 1.16", "step", costs, gradient_difference=gap)
        found = [wall | {"name": "smollm2-step"}, cpu | {"name": "smollm2-step-cpu"}]
        found.append(memory("smollm2-step", "trl 1.16", sides))
        for side, worker in sides.items():
            versions |= {f"{side} {k}": v for k, v in worker.ask("versions").items()}
            worker.close()
    print(f"bound {needed['step']:.1f} s of {wall['ours']:.1f} s: {needed['step'] / wall['ours']:.0%} "
          f"(generation {needed['generation']:.1f} s, update {needed['update']:.1f} s)")  # fmt: skip
    finish("smollm2_step", found, versions, vars(args) | {"lengths": lengths, "bound": needed}, keep=not args.quick)


if __name__ == "__main__":
    main()
