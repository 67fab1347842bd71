"""A GGUF file as a policy."""

from __future__ import annotations

from collections.abc import Callable
from os.path import isfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from anypolicy.data.readers import first_line
from anypolicy.errors import RAISED, InputError
from anypolicy.policies.language.causal_lm import CausalLM

Made = TypeVar("Made")


def from_gguf(path: Path, dtype: str) -> CausalLM:
    """A GGUF file, its packed weights unpacked to ordinary ones; the quantisation marks go, so it can be saved."""
    if not isfile(path):
        raise InputError("policy", str(path), "there is no such file")
    check_gguf(path)
    folder, name = str(path.parent), path.name
    try:
        config: Any = AutoConfig.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
        if config.num_hidden_layers * config.hidden_size**2 > 16 * path.stat().st_size:
            raise ValueError("it describes a larger model than it holds")
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=getattr(torch, dtype),
            quantization_config=GgufConfig(gguf_file=name, dequantize=True), trust_remote_code=False,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    except Exception as error:  # what gguf and transformers raise has no common type
        raise InputError("policy", str(path), f"it cannot be read as GGUF ({first_line(error)})") from error
    unmark(model)
    return tried(lambda: CausalLM(model, tokenizer), str(path))


def check_gguf(path: Path) -> None:
    """Refuse a file that claims more tensors and settings than its bytes can describe (at least 24 and 13 each)."""
    with path.open("rb") as file:
        head = file.read(24)
    tensors, settings = (int.from_bytes(head[i : i + 8], "little") for i in (8, 16))
    if len(head) < 24 or head[:4] != b"GGUF" or 24 * tensors + 13 * settings > path.stat().st_size:
        raise InputError("policy", str(path), "it is no whole GGUF file: copy it again")


def unmark(model: Any) -> None:
    """Forget that the weights were once quantised: they are not any more."""
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "is_quantized"),
                        (model, "quantization_method")):  # fmt: skip
        if name in vars(owner):
            delattr(owner, name)


def tried(make: Callable[[], Made], source: str) -> Made:
    """A policy of what was loaded; it predicts some tokens first, which a config that does not fit cannot."""
    try:
        return make()
    except InputError:
        raise
    except RAISED as error:  # the model's own code, with whatever numbers its config has
        raise InputError("policy", source, f"it cannot predict ({first_line(error)}): mend its config") from error
