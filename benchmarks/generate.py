"""Generation alone: SmolLM2-135M in bfloat16, 8 prompts × 8 rows, 64–256 new tokens of uneven length, two threads.

    python benchmarks/generate.py             ours beside transformers `generate` and its continuous batching, in turn
    python benchmarks/generate.py --blocks 2 --quick

Continuous batching takes one limit for a whole batch, so beside it all rows have the mean length; its cache has room
for all rows and its batch for one token of each (by default it takes most of the machine's memory, and longer).

Before anything is timed, both sides must find the same 16 greedy tokens for every row in float32. (In bfloat16 they
part sooner: its eight bits leave ties, and each side adds up in its own order.)
The script measures what this machine can read and multiply, and prints the share of that bound which was reached.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, Worker, finish, in_turn, memory, peer_python, rows
from grpo_work import PEER

from anypolicy.policies.language.smollm2 import smollm2_folder

LAYERS, KEY_WIDTH, PARAMETERS, EMBEDDING = 30, 192, 134_515_008, 49_152 * 576


def bound(given: dict[str, Any], measured: dict[str, float]) -> dict[str, float]:
    """Least seconds by memory alone (weights once a step, the caches of living rows, each prompt's once), by
    arithmetic alone, and step by step by the slower of the two."""
    rng = np.random.default_rng(0)
    for _ in range(given["prompts"]):
        rng.integers(3, 40_000, given["prompt"])
    lengths = rng.integers(given["least"], given["most"] + 1, (given["prompts"], given["group"]))
    read, multiply, both = 0.0, 0.0, 0.0
    for t in range(given["most"]):
        alive = lengths > t
        cached = alive.sum() * (t + 1) + alive.any(1).sum() * given["prompt"]
        a = 2 * (PARAMETERS + cached * 2 * LAYERS * KEY_WIDTH) / measured["bytes"]
        attended = alive.sum() * (t + 1 + given["prompt"]) * 4 * LAYERS * 576
        b = (2 * alive.sum() * PARAMETERS + attended) / measured["flops"]
        read, multiply, both = read + a, multiply + b, both + max(a, b)
    return {"memory": float(read), "arithmetic": float(multiply), "either": float(both)}


def check(given: dict[str, Any], peer: str, tokens: int = 16) -> None:
    """In float32 both sides find the same greedy tokens for every row."""
    given = given | {"dtype": "float32", "least": tokens, "most": tokens, "even": tokens}
    ours = Worker(Path(sys.executable), HERE / "workers/generate.py", given | {"engine": "ours"})
    theirs = Worker(peer_python("trl", PEER), HERE / "workers/generate.py", given | {"engine": peer})
    a, b = ours.ask("greedy")["tokens"], theirs.ask("greedy")["tokens"]
    ours.close(), theirs.close()
    if a != b:
        apart = sum(x != y for x, y in zip(a, b, strict=True))
        sys.exit(f"not comparable: {apart} of {len(a)} rows have other greedy tokens in float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("prompts", 8), ("group", 8), ("prompt", 60), ("least", 64), ("most", 256), ("threads", 2),
                        ("blocks", 5)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--peers", nargs="+", default=["generate", "continuous batching"])
    parser.add_argument("--quick", action="store_true", help="nothing written")
    args = parser.parse_args()
    given = {k: getattr(args, k) for k in ("prompts", "group", "prompt", "least", "most", "threads")}
    given["dtype"] = "bfloat16"
    given["model"] = str(smollm2_folder())
    found, versions, least, measured = [], {}, {}, {}
    for peer in args.peers:
        given["even"] = 0 if peer == "generate" else (args.least + args.most) // 2
        check(given, peer)
        ours = Worker(Path(sys.executable), HERE / "workers/generate.py", given | {"engine": "ours"})
        theirs = Worker(peer_python("trl", PEER), HERE / "workers/generate.py", given | {"engine": peer})
        versions |= ours.ask("versions")
        sides = {"ours": ours, "peer": theirs}
        costs = in_turn(sides, "once 1", args.blocks)
        label = "generate" if peer == "generate" else "generate-continuous"
        name = f"transformers {versions['transformers']} {peer}"
        made = rows(label, name, "rollout", costs)
        found += [made[1] | {"name": label}, made[0] | {"name": f"{label}-cpu"}, memory(label, name, sides)]
        theirs.close()
        if peer == "generate":
            measured = ours.ask("bounds")
            least = bound(given, measured)
            seconds = made[1]["ours"]
            print(f"{measured['tokens'] / seconds:.0f} tokens/s; this machine reads {measured['bytes'] / 1e9:.1f} GB/s "
                  f"and multiplies {measured['flops'] / 1e9:.0f} GFLOP/s")  # fmt: skip
            for what, value in least.items():
                print(f"  bound by {what}: {value:.2f} s of {seconds:.2f} s: {value / seconds:.0%}")
        ours.close()
        settings = vars(args) | {"bounds": least, "measured": measured}
        finish("generate", found, versions, settings, keep=not args.quick)


if __name__ == "__main__":
    main()
