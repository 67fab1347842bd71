"""On a machine with a GPU: a whole GRPO step and its update beside TRL on the same GPU, and ten seeds of SAC in one
process beside Stable-Baselines3 one after the other.

    python benchmarks/gpu_grpo.py                                            SmolLM2-135M in bfloat16
    python benchmarks/gpu_grpo.py --device cpu --model 1m --dtype float32 --most 16 --least 8 --quick     does it run?

Loss and gradient of given rows must agree in float32 before anything is timed. A block ends when the GPU has done what
it was asked for; memory is the most that the GPU has held. Rates, batches and lengths are those of smollm2_step.py.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, in_turn, memory, peer_python, rows
from control_work import PEERS, make_work, sides_of
from grpo_work import MODELS, PEER, agree, make_model, workers
from grpo_work import make_work as make_rows


def language(args: argparse.Namespace, versions: dict[str, str]) -> list[dict[str, Any]]:
    """Step and update beside TRL."""
    python, found = peer_python("trl", PEER), list[dict[str, Any]]()
    lengths = np.random.default_rng(0).integers(args.least, args.most + 1, args.prompts * args.group).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", args.model)
        make_rows(folder / "work.json", args.prompts, args.group, args.prompt, args.most)
        given = {"group": args.group, "completion": args.most, "device": args.device, "threads": args.threads}
        exact = workers(folder, python, given)
        gap = agree(exact, folder)
        for worker in exact.values():
            worker.close()
        given |= {"dtype": args.dtype, "lengths": lengths, "passes": args.passes}
        sides = workers(folder, python, given)
        for work, more in (("update", {"gradient_difference": gap}), ("step", {"gradient_difference": gap})):
            found += rows(f"gpu-{work}", "trl 1.16", work, in_turn(sides, f"{work} 1", args.blocks), **more)
        found.append(memory("gpu-step", "trl 1.16", sides))
        for side, worker in sides.items():
            versions |= {f"{side} {k}": v for k, v in worker.ask("versions").items()}
            worker.close()
    return found


def control(args: argparse.Namespace, versions: dict[str, str]) -> list[dict[str, Any]]:
    """Ten seeds of SAC on Pendulum."""
    with tempfile.TemporaryDirectory() as name:
        make_work(Path(name) / "data.npz")
        sides = sides_of(Path(name), "sb3", "seeds-10", {"seeds": args.seeds, "device": args.device})
        costs = in_turn(sides, "once 1", args.blocks)
        for side, worker in sides.items():
            versions |= {f"{side} {k}": v for k, v in worker.ask("versions").items()}
            worker.close()
    return rows("gpu-seeds-10-sb3", PEERS["sb3"][0], "50 steps of ten seeds", costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("prompts", 8), ("group", 8), ("prompt", 60), ("least", 64), ("most", 256), ("threads", 8),
                        ("passes", 1), ("seeds", 10), ("blocks", 10)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--model", choices=["smollm2-135m", *MODELS], default="smollm2-135m")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--quick", action="store_true", help="nothing written")
    args, versions = parser.parse_args(), dict[str, str]()
    found = language(args, versions) + control(args, versions)
    finish("gpu_grpo", found, versions, vars(args), keep=not args.quick)


if __name__ == "__main__":
    main()
