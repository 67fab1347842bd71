"""The same GRPO work for both sides: a model folder, prompts, completions, rewards; and what makes them comparable."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from common import HERE, Worker
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from anypolicy.policies.language.smollm2 import smollm2_folder

PEER = ["torch==2.13.*", "transformers==5.24.*", "trl==1.16.0"]
MODELS = {
    "1m": {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4},
    "5m": {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6},
}
WORDS = 512
"""Word tokens that prompts and completions are made of."""


def make_model(folder: Path, name: str) -> None:
    """A random Qwen2 of the named size, or SmolLM2-135M, with a word tokenizer, as a Hugging Face folder."""
    if name == "smollm2-135m":
        folder.mkdir()
        for file in smollm2_folder().iterdir():
            if file.suffix == ".safetensors" or file.name == "config.json":
                shutil.copy(file, folder)
    else:
        torch.manual_seed(0)
        common = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
        Qwen2ForCausalLM(
            Qwen2Config(**MODELS[name], **common, eos_token_id=1, pad_token_id=2, bos_token_id=1)
        ).save_pretrained(folder)
    vocabulary = {"<unk>": 0, "<eos>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def make_work(path: Path, prompts: int, group: int, prompt: int, completion: int) -> None:
    """Prompts, completions of half to full length, rewards, and a behaviour policy that is the current one and noise,
    so that ratios differ and some are clipped."""
    torch.manual_seed(0)
    lengths = torch.randint(completion // 2, completion + 1, (prompts, group)).tolist()
    work = {
        "prompts": torch.randint(3, WORDS, (prompts, prompt)).tolist(),
        "completions": [[torch.randint(3, WORDS, (n,)).tolist() for n in row] for row in lengths],
        "rewards": torch.rand(prompts, group).tolist(),
        "noise": [[(0.3 * torch.randn(n)).tolist() for n in row] for row in lengths],
    }
    path.write_text(json.dumps(work))


def workers(
    folder: Path, python: Path, settings: dict[str, Any], files: tuple[str, str] = ("ours.py", "trl_grpo.py")
) -> dict[str, Worker]:
    """A fresh process of each side, running one of the two `files`, on the model and work in `folder`."""
    given = settings | {"model": str(folder / "model"), "work": str(folder / "work.json"), "lr": 1e-6,
                        "scratch": str(folder / "scratch")}  # fmt: skip
    scripts = {"ours": (Path(sys.executable), files[0]), "peer": (python, files[1])}
    return {
        side: Worker(binary, HERE / "workers" / script, given | {"out": str(folder / f"{side}.safetensors")})
        for side, (binary, script) in scripts.items()
    }


def agree(sides: dict[str, Worker], folder: Path) -> float:
    """Largest difference of the gradients, relative to the largest entry; stops if the two compute different things."""
    a, b = (sides[side].ask("gradient")["loss"] for side in ("ours", "peer"))
    x, y = load_file(folder / "ours.safetensors"), load_file(folder / "peer.safetensors")
    if x.keys() != y.keys():
        sys.exit(f"not comparable: gradients of {sorted(x.keys() ^ y.keys())[:3]} on one side only")
    scale = max(float(v.abs().max()) for v in y.values())
    gap = max(float((x[k] - y[k]).abs().max()) for k in y) / scale
    if not (abs(a - b) <= 1e-5 * abs(b) and gap <= 1e-5):
        sys.exit(f"not comparable: loss {a} and {b}, gradients differ by {gap:.1e}")
    return gap
