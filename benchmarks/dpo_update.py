"""One DPO update beside TRL on given pairs: loss, backward, clipping, AdamW; one thread each.

    python benchmarks/dpo_update.py             three models, three lengths: about half an hour on a quiet machine
    python benchmarks/dpo_update.py --models 1m --blocks 4 --quick      a look, nothing written

`update` computes the reference's log-probabilities anew on both sides, `known` has them on both. Loss and gradient of
both sides must agree before anything is timed. A ratio above 1 means that anypolicy needs less.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import finish, in_turn, memory, peer_python, rows
from grpo_work import MODELS, PEER, agree, make_model, make_work, workers

LENGTHS = ((32, 64), (128, 32), (256, 64))
"""Tokens of the prompt and of the longest answer."""
SCRIPTS = ("dpo_ours.py", "trl_dpo.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*MODELS, "smollm2-135m"]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--blocks", type=int, default=20, help="of each side; a fifth of it for SmolLM2")
    parser.add_argument("--pairs", type=int, default=16, help="in an update; a quarter of it for SmolLM2")
    parser.add_argument("--quick", action="store_true", help="nothing written")
    args = parser.parse_args()
    python, found, versions = peer_python("trl", PEER), [], {}
    for model in args.models:
        large = model == "smollm2-135m"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_model(folder / "model", model)
            for prompt, completion in LENGTHS:
                make_work(folder / "work.json", max(args.pairs // 4, 1) if large else args.pairs, 2, prompt, completion)
                sides = workers(folder, python, {"completion": completion}, SCRIPTS)
                gap = agree(sides, folder)
                for command in ("update", "known"):
                    costs = in_turn(sides, f"{command} 1", max(args.blocks // 5, 2) if large else args.blocks)
                    label = f"dpo-{command}-{prompt}-{completion}" + ("" if model == "1m" else f"-{model}")
                    found += rows(label, "trl 1.16", "update", costs, gradient_difference=gap)
                found.append(memory(f"dpo-{prompt}-{completion}-{model}", "trl 1.16", sides))
                for side, worker in sides.items():
                    versions |= {f"{side} {k}": v for k, v in worker.ask("versions").items()}
                    worker.close()
    finish("dpo_update", found, versions, vars(args), keep=not args.quick)


if __name__ == "__main__":
    main()
