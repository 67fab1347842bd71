"""How much memory a run of a language policy takes, from the sizes of its model alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from anypolicy.errors import RAISED
from anypolicy.policies.language.packed import KEPT

GIB = 2**30
LOGITS = 3 * (1 << 24)
"""Bytes of the logits of a few tokens, their probabilities and slopes, in float32 (`parts/token_logp.py`)."""


@dataclass(frozen=True)
class Sizes:
    """What memory depends on: parameters, layers, and numbers a token has in each part of a layer."""

    parameters: int
    layers: int
    width: int
    inner: int
    heads: int
    keys: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any, parameters: int) -> Sizes:
        """Of a Hugging Face config; where it says nothing of a size, what its family takes by default."""
        c = config.get_text_config()
        width = int(c.hidden_size)
        heads = int(getattr(c, "num_attention_heads", 1))
        head = int(getattr(c, "head_dim", None) or width // heads)
        inner = int(getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None) or 4 * width)
        keys = int(getattr(c, "num_key_value_heads", None) or heads) * head
        return cls(parameters, int(c.num_hidden_layers), width, inner, heads, keys, int(c.vocab_size))

    def kept(self, tokens: int, length: int, *, recompute: bool) -> int:
        """Numbers that a forward pass keeps for the backward pass, of responses that are so long with their prompts. A
        block keeps both of its inputs before and after the norms, queries, keys, values, attention weights, what
        attention gives, and four times its inner width."""
        attention = min(KEPT * self.width, self.heads * length)
        block = 6 * self.width + attention + 4 * self.keys + 4 * self.inner
        return tokens * (self.layers * self.width + block if recompute else self.layers * block)

    def cached(self, rows: int, tokens: int) -> int:
        """Keys and values of rows that are written."""
        return rows * tokens * self.layers * 2 * self.keys


def sizes_of(spec: str) -> Sizes | None:
    """Sizes of a policy, without its weights; None where nothing here says them (no file is fetched)."""
    sized = re.fullmatch("(transformer|masked-diffusion):?(.*=.*)?", spec)
    if sized:
        given = dict(pair.split("=") for pair in (sized[2] or "").split(",") if pair)
        layers, width = int(given.get("layers", 2)), int(given.get("width", 64))
        return Sizes(
            12 * layers * width**2 + 2 * 259 * width, layers, width, 4 * width, int(given.get("heads", 4)), width, 259
        )  # fmt: skip
    if spec == "smollm2-135m":
        return Sizes(134_515_008, 30, 576, 1536, 9, 192, 49_152)
    if not isfile(Path(spec) / "config.json"):
        return None
    try:
        config = AutoConfig.from_pretrained(spec, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return Sizes.of(config, sum(p.numel() for p in model.parameters()))
    except RAISED:
        return None


@dataclass(frozen=True)
class Load:
    """What a run asks of the model: tokens in a forward pass, rows that are written at once and how long they become,
    and what stands beside the policy."""

    tokens: int
    rows: int
    length: int
    narrow: bool
    adapters: bool
    reference: bool
    recompute: bool
    gpu: bool


def estimate(sizes: Sizes, load: Load) -> dict[str, float]:
    """Bytes of each part at its largest, and the peak: weights and the optimiser's state stay; gradients and
    activations of an update, the cache of the responses, and (on the processor) the copy that becomes a checkpoint
    come one after the other."""
    n, wide = sizes.parameters, 2 if load.narrow else 4
    trained = 0.02 * n if load.adapters else n
    parts = {
        "weights": wide * n, "reference": wide * n * load.reference,
        "optimiser": (12 if load.narrow else 8) * trained, "gradients": 4.0 * trained,
        "activations": LOGITS + wide * sizes.kept(load.tokens, load.length, recompute=load.recompute),
        "cache": wide * sizes.cached(load.rows, load.length) + 8.0 * load.rows * sizes.vocabulary,
    }  # fmt: skip
    parts["checkpoint"] = 0.0 if load.gpu else 12 * trained
    stays = parts["weights"] + parts["reference"] + parts["optimiser"]
    return parts | {"peak": stays + max(parts["gradients"] + parts["activations"], parts["cache"], parts["checkpoint"])}


def told(parts: dict[str, float]) -> str:
    """One line."""
    shown = ", ".join(f"{k} {v / GIB:.2g}" for k, v in parts.items() if k != "peak" and v > 0.005 * parts["peak"])
    return f"about {parts['peak'] / GIB:.2g} GiB at the peak ({shown})"
