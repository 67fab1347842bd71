"""One GRPO update beside TRL on given completions and rewards: loss, backward, clipping, AdamW; one thread each.

    python benchmarks/grpo_update.py            three models, three lengths: about half an hour on a quiet machine
    python benchmarks/grpo_update.py --models 1m --blocks 4 --quick      a look, nothing written

Loss and gradient of both sides must agree before anything is timed. A ratio above 1 means that anypolicy needs less.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import finish, in_turn, memory, peer_python, rows
from grpo_work import MODELS, PEER, agree, make_model, make_work, workers

LENGTHS = ((32, 64), (128, 32), (256, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*MODELS, "smollm2-135m"]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--blocks", type=int, default=20, help="of each side; a fifth of it for SmolLM2")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="nothing written")
    args = parser.parse_args()
    python, found, versions = peer_python("trl", PEER), [], {}
    for model in args.models:
        large = model == "smollm2-135m"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_model(folder / "model", model)
            for prompt, completion in LENGTHS:
                make_work(folder / "work.json", 1 if large else 4, args.group, prompt, completion)
                sides = workers(folder, python, {"group": args.group, "completion": completion})
                gap = agree(sides, folder)
                repeat = 1 if large else 3
                costs = in_turn(sides, f"update {repeat}", max(args.blocks // 5, 2) if large else args.blocks)
                label = f"grpo-update-{prompt}-{completion}" + ("" if model == "1m" else f"-{model}")
                found += rows(label, "trl 1.16", "update", costs, gradient_difference=gap)
                found.append(memory(label, "trl 1.16", sides))
                for side, worker in sides.items():
                    versions |= {f"{side} {k}": v for k, v in worker.ask("versions").items()}
                    worker.close()
    finish("grpo_update", found, versions, vars(args), keep=not args.quick)


if __name__ == "__main__":
    main()
