"""One GRPO step beside TRL: the same model, prompts, rewards and lengths, one thread each, in interleaved blocks.

    python benchmarks/language_step.py            twenty blocks of each, results in benchmarks/results/
    python benchmarks/language_step.py --quick    four blocks, nothing written

Loss and gradient of both sides must agree before anything is timed. A ratio above 1 means that anypolicy needs less.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, Worker, peer_python, ratio, write
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PEER = ["torch==2.13.*", "transformers==5.24.*", "trl==1.16.0"]


def make_work(folder: Path, prompts: int, group: int, prompt: int, completion: int) -> None:
    """A random Qwen2 of about a million parameters with a word tokenizer, prompts, completions and rewards."""
    vocabulary = {"<unk>": 0, "<eos>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, 512)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, eos_token_id=1, pad_token_id=2, bos_token_id=1,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    fast.save_pretrained(folder / "model")
    lengths = torch.randint(completion // 2, completion + 1, (prompts, group)).tolist()
    work = {
        "prompts": torch.randint(3, 512, (prompts, prompt)).tolist(),
        "completions": [[torch.randint(3, 512, (n,)).tolist() for n in row] for row in lengths],
        "rewards": torch.rand(prompts, group).tolist(),
        # the behaviour policy is the current one and noise, so that ratios differ and some are clipped
        "noise": [[(0.3 * torch.randn(n)).tolist() for n in row] for row in lengths],
    }
    (folder / "work.json").write_text(json.dumps(work))


def agree(ours: Worker, peer: Worker, folder: Path) -> float:
    """Largest difference of the gradients, relative to the largest entry; stops if the two compute different things."""
    a, b = ours.ask("gradient")["loss"], peer.ask("gradient")["loss"]
    x, y = load_file(folder / "ours.safetensors"), load_file(folder / "peer.safetensors")
    if x.keys() != y.keys():
        sys.exit(f"not comparable: gradients of {sorted(x.keys() ^ y.keys())[:3]} on one side only")
    scale = max(float(v.abs().max()) for v in y.values())
    gap = max(float((x[k] - y[k]).abs().max()) for k in y) / scale
    if not (abs(a - b) <= 1e-5 * abs(b) and gap <= 1e-5):
        sys.exit(f"not comparable: loss {a} and {b}, gradients differ by {gap:.1e}")
    return gap


def measure(kind: str, folder: Path, python: Path, args: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """Blocks A B B A … of one kind of work in fresh processes: costs of both sides and the gradients' difference."""
    given = {"model": str(folder / "model"), "work": str(folder / "work.json"), "group": args.group,
             "completion": args.completion, "lr": 1e-6, "scratch": str(folder / "scratch")}  # fmt: skip
    ours = Worker(Path(sys.executable), HERE / "workers/ours.py", given | {"out": str(folder / "ours.safetensors")})
    peer = Worker(python, HERE / "workers/trl_grpo.py", given | {"out": str(folder / "peer.safetensors")})
    gap = agree(ours, peer, folder)
    sides: dict[str, Any] = {"ours": ours, "peer": peer}
    costs: dict[str, Any] = {"ours": [], "peer": []}
    n = 3 if kind == "update" else 1
    for w in (ours, peer):
        w.ask(f"{kind} 2")
    for block in range(args.blocks):
        for side in ("ours", "peer") if block % 2 == 0 else ("peer", "ours"):
            costs[side].append(sides[side].ask(f"{kind} {n}"))
    memory = {side: w.ask("memory")["growth"] for side, w in sides.items()}
    versions = {f"{side} {k}": v for side, w in sides.items() for k, v in w.ask("versions").items()}
    ours.close()
    peer.close()
    return {"costs": costs, "memory": memory, "versions": versions}, gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("prompts", 4), ("group", 8), ("prompt", 32), ("completion", 64), ("blocks", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--quick", action="store_true", help="four blocks, nothing written")
    args = parser.parse_args()
    args.blocks = 4 if args.quick else args.blocks
    python, ratios, versions = peer_python("trl", PEER), [], {}
    table = Table("work", "anypolicy", "TRL", "ratio [95 %]")
    with tempfile.TemporaryDirectory() as name:
        make_work(Path(name), args.prompts, args.group, args.prompt, args.completion)
        for kind in ("update", "step"):
            found, gap = measure(kind, Path(name), python, args)
            versions |= found["versions"]
            for unit in ("cpu", "wall"):
                a, b = ([c[unit] for c in found["costs"][side]] for side in ("ours", "peer"))
                point, low, high = ratio(a, b)
                ratios.append({"name": f"{kind}-{unit}", "ratio": point, "low": low, "high": high, "peer": "trl 1.16",
                               "unit": f"seconds ({unit}) per {kind}", "ours": float(np.median(a)),
                               "theirs": float(np.median(b)), "gradient_difference": gap})  # fmt: skip
            m = found["memory"]
            ratios.append({
                "name": f"{kind}-memory", "ratio": m["peer"] / m["ours"], "low": None, "high": None, "peer": "trl 1.16",
                "unit": "MiB grown since start", "ours": m["ours"], "theirs": m["peer"],
            })  # fmt: skip
    for r in ratios:
        interval = f" [{r['low']:.2f}, {r['high']:.2f}]" if r["low"] else ""
        table.add_row(r["name"], f"{r['ours']:.4g}", f"{r['theirs']:.4g}", f"{r['ratio']:.2f}{interval}")
    Console().print(table)
    if not args.quick:
        print(write("language_step", ratios, versions, vars(args)))


if __name__ == "__main__":
    main()
