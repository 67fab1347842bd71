"""A small decoder-only transformer from scratch, given by a few numbers."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from anypolicy.policies.language.causal_lm import CausalLM


def small_transformer(
    *, vocabulary: int, layers: int, width: int, heads: int, context_length: int, seed: int, eos_id: int, pad_id: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> CausalLM:  # fmt: skip
    """Learned positions, pre-norm, GELU, MLP × 4, final norm, untied head, no dropout (GPT-2's blocks).

    Initialised as PyTorch's Linear and Embedding layers are: uniform ±1/√fan_in and N(0, 1), from `seed` alone.
    """
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=context_length, n_embd=width, n_layer=layers, n_head=heads,
        activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=eos_id, eos_token_id=eos_id, pad_token_id=pad_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(config)
    initialise(model, seed)
    return CausalLM(model, tokenizer, (eos_id,))


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Embeddings N(0, 1), linear layers uniform ±1/√fan_in, from `seed` alone."""
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0, 1, generator=rng)
        elif isinstance(module, Conv1D | nn.Linear):
            fan_in = module.weight.shape[0] if isinstance(module, Conv1D) else module.weight.shape[1]
            bound = 1 / math.sqrt(fan_in)
            module.weight.uniform_(-bound, bound, generator=rng)
            if "bias" in dict(module.named_parameters()):
                module.bias.uniform_(-bound, bound, generator=rng)
