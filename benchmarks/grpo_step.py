"""One whole GRPO step beside TRL (transformers engine): generation, rewards, advantages, update; one thread each.

    python benchmarks/grpo_step.py             twenty blocks of each, results in benchmarks/results/
    python benchmarks/grpo_step.py --blocks 4 --quick

In 0, 50 and 90 % of the groups all rewards are equal. Loss and gradient on given rows must agree before anything is
timed. A ratio above 1 means that anypolicy needs less.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import finish, in_turn, memory, peer_python, rows
from grpo_work import MODELS, PEER, agree, make_model, make_work, workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("prompts", 10), ("group", 8), ("prompt", 32), ("completion", 64), ("blocks", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", choices=[*MODELS], default="1m")
    parser.add_argument("--quick", action="store_true", help="nothing written")
    args = parser.parse_args()
    python, found, versions = peer_python("trl", PEER), [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", args.model)
        make_work(folder / "work.json", args.prompts, args.group, args.prompt, args.completion)
        for percent in (0, 50, 90):
            silent = args.prompts * percent // 100
            sides = workers(folder, python, {"group": args.group, "completion": args.completion, "silent": silent})
            gap = agree(sides, folder)
            costs = in_turn(sides, "step 1", args.blocks)
            found += rows(f"grpo-step-{percent}", "trl 1.16", "step", costs, gradient_difference=gap)
            found.append(memory(f"grpo-step-{percent}", "trl 1.16", sides))
            for side, worker in sides.items():
                versions |= {f"{side} {k}": v for k, v in worker.ask("versions").items()}
                worker.close()
    finish("grpo_step", found, versions, vars(args), keep=not args.quick)


if __name__ == "__main__":
    main()
