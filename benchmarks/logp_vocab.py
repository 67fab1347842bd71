"""Log-probabilities and their gradients at vocabulary 151,936, hidden 256, 4,096 tokens; one thread each.

    python benchmarks/logp_vocab.py                ten blocks each of ours, TRL's chunked path and the plain way
    python benchmarks/logp_vocab.py --blocks 3 --quick

Values and gradients of all three must agree to 1e-5 before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import HERE, Worker, finish, in_turn, memory, peer_python, rows
from grpo_work import PEER
from safetensors.torch import load_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("tokens", 4096), ("width", 256), ("vocabulary", 151_936), ("blocks", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--quick", action="store_true", help="nothing written")
    args = parser.parse_args()
    pythons = {"ours": Path(sys.executable), "trl": peer_python("trl", PEER), "plain": Path(sys.executable)}
    found, versions = [], {}
    with tempfile.TemporaryDirectory() as name:
        given = {k: getattr(args, k) for k in ("tokens", "width", "vocabulary")}
        out = {way: str(Path(name) / f"{way}.safetensors") for way in pythons}
        sides = {
            way: Worker(python, HERE / "workers/logp.py", given | {"way": way, "out": out[way]})
            for way, python in pythons.items()
        }
        gaps = {}
        for worker in sides.values():
            worker.ask("gradient")
        ours = load_file(out["ours"])
        for way in ("trl", "plain"):
            theirs = load_file(out[way])
            gaps[way] = max(float((ours[k] - v).abs().max() / v.abs().max()) for k, v in theirs.items())
            if not gaps[way] < 1e-5:
                sys.exit(f"not comparable: {way} differs by {gaps[way]:.1e}")
        for worker in sides.values():
            versions |= worker.ask("versions")
        for way, label in (("trl", "trl 1.16 chunked"), ("plain", "plain torch")):
            costs = in_turn({"ours": sides["ours"], "peer": sides[way]}, "once 1", args.blocks)
            suffix = "" if way == "trl" else "-plain"
            found += rows(f"logp-vocab{suffix}", label, "pass", costs, difference=gaps[way])
            found.append(memory(f"logp-vocab{suffix}", label, {"ours": sides["ours"], "peer": sides[way]}))
        for worker in sides.values():
            worker.close()
    finish("logp_vocab", found, versions, vars(args), keep=not args.quick)


if __name__ == "__main__":
    main()
