"""A masked-diffusion language model as a policy: a bidirectional network that predicts masked tokens from all others.

It takes any Hugging Face class that gives logits for the same position it stands at: masked language models of
transformers, and LLaDA's own class (arXiv 2502.09992).
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from anypolicy.data.batch import Batch
from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.parts.token_logp import at_least_float32
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.logits import Logits
from anypolicy.policies.language.recompute import recomputing
from anypolicy.policies.language.text import (
    chat_end,
    prompt_ids,
    quiet_transformers,
    response_ids,
    single_token,
    stop_tokens,
    text_of,
)
from anypolicy.policies.language.transformer import initialise

NEVER = -1e4
"""Logit of the mask token: its probability is exactly 0 and no gradient meets an infinity."""


class MaskedDiffusionLM:
    """`model` and its tokenizer (None for tasks made of token ids). The model stays in eval mode: no dropout.

    `score` is the estimate of one pass with every token that the policy chose masked: what a method made for
    token-by-token policies gets. The methods for masked diffusion ask for `score_masked`.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, stop_ids: tuple[int, ...] | None = None
    ):
        self.module: nn.Module = model.eval()
        self.tokenizer = tokenizer
        self.config: Any = model.config
        self.family = str(self.config.model_type)
        embedding: Any = model.get_input_embeddings()
        self.vocabulary, self.hidden_size = (int(n) for n in embedding.weight.shape)
        longest = [getattr(self.config, name, None) for name in ("max_position_embeddings", "max_sequence_length")]
        self.context_length = int(next((n for n in longest if n), 1 << 20))
        self.turn_end = chat_end(tokenizer)
        self.stop_ids = stop_tokens(model, tokenizer, self.turn_end) if stop_ids is None else stop_ids
        self.mask_id = mask_token(self.config, tokenizer, self.vocabulary)
        self.pads, self.recompute = True, False
        self.pads = self.sees_both_sides()

    @torch.no_grad()
    def sees_both_sides(self) -> bool:
        """Refuse a causal model; whether the model leaves padding out (LLaDA's own class does not: rows of equal length
        are then computed together)."""
        n = min(6, self.context_length - 1)
        tokens = torch.arange(n)[None] % self.vocabulary
        changed = tokens.clone()
        changed[0, -1] = (changed[0, -1] + 1) % self.vocabulary
        everything = torch.ones_like(tokens, dtype=torch.bool)
        first = self.logits(tokens, everything)
        if torch.equal(first[0, 0], self.logits(changed, everything)[0, 0]):
            raise InputError(
                "policy", self.family, "its attention is causal: a masked-diffusion policy has to see both sides"
            )
        wide = torch.cat([tokens, tokens[:, :1]], 1)
        padded = self.logits(wide, torch.arange(n + 1)[None] < n)[:, :n]
        loose = 1e-4 if self.dtype in (torch.float32, torch.float64) else 0.05
        return torch.allclose(padded, first, atol=loose * float(first.abs().max()), rtol=0)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    # --- text --------------------------------------------------------------------------------------------------------
    def encode(self, prompt: Prompt) -> Tokens:
        return prompt_ids(prompt, self.tokenizer, self.family, self.vocabulary)

    def encode_reference(self, prompt: Prompt) -> Tokens:
        return response_ids(prompt, self.tokenizer, self.stop_ids, self.vocabulary, self.turn_end)

    def decode(self, tokens: Tokens) -> str:
        return text_of(tokens, self.tokenizer)

    def token(self, text: str) -> int:
        return single_token(text, self.tokenizer)

    # --- prediction --------------------------------------------------------------------------------------------------
    def logits(
        self, tokens: Int[Tensor, "rows tokens"], valid: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens vocabulary"]:
        """The model's logits; rows are padded on the right. Nothing is said about attention beyond padding: it is the
        model's own, which sees both sides."""
        tokens, valid = tokens.to(self.device), valid.to(self.device)
        if valid.all():
            return self.module(input_ids=tokens).logits
        if self.pads:
            return self.module(input_ids=tokens, attention_mask=valid.long()).logits
        length, out = valid.sum(1), None
        for n in length.unique().tolist():
            rows = (length == n).nonzero().squeeze(1)
            part = self.module(input_ids=tokens[rows, :n]).logits
            out = part.new_zeros(*tokens.shape, part.shape[2]) if out is None else out
            out = out.index_copy(0, rows, nn.functional.pad(part, (0, 0, 0, tokens.shape[1] - n)))
        assert out is not None
        return out

    def predict(
        self, tokens: Int[Tensor, "rows tokens"], valid: Bool[Tensor, "rows tokens"], where: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "n vocabulary"]:
        """Logits, at least in float32, at the positions `where`; the mask token is never predicted (arXiv 2406.07524,
        section 3.2.3)."""
        with recomputing(self.module) if self.recompute else nullcontext():
            z = self.logits(tokens, valid)[where]
        return z.to(at_least_float32(z.dtype)).index_fill(-1, torch.tensor(self.mask_id, device=z.device), NEVER)

    def masked_logits(
        self, batch: Batch, masked: Tensor, context_masked: Tensor | None = None
    ) -> Float[Tensor, "n vocabulary"]:
        """Logits of the masked response tokens of every row, in the order of `batch.response[masked]`."""
        tokens, valid, start = lay_out(batch, masked, self.mask_id, context_masked)
        if tokens.shape[1] > self.context_length:
            raise InputError(
                "prompt", f"{tokens.shape[1]} tokens with its response", f"the policy holds {self.context_length}"
            )
        where = torch.zeros_like(valid)
        row, place = masked.nonzero(as_tuple=True)
        where[row, start[row] + place] = True
        return self.predict(tokens, valid, where)

    def score_masked(
        self, batch: Batch, masked: Bool[Tensor, "rows tokens"], temperature: float,
        context_masked: Bool[Tensor, "rows context_tokens"] | None = None,
    ) -> Float[Tensor, "rows tokens"]:  # fmt: skip
        """log p(y_i | y_t, x) of the masked tokens, in nats, under the temperature."""
        z = self.masked_logits(batch, masked, context_masked)
        chosen = batch.response[masked][:, None].to(z.device)
        logp = torch.log_softmax(z / temperature, -1).gather(1, chosen).squeeze(1).cpu()
        return logp.new_zeros(masked.shape).masked_scatter(masked, logp)

    def score(
        self, batch: Batch, temperature: float, *, entropy: bool = False, hidden: bool = False, logits: bool = False
    ) -> Scores:
        """The one-pass estimate: every token that the policy chose (or that is a target) is masked at once."""
        masked = batch.chosen if batch.target is None else batch.chosen | batch.target
        z = self.masked_logits(batch, masked) / temperature
        all_logp = torch.log_softmax(z, -1)
        logp = all_logp.gather(1, batch.response[masked][:, None].to(z.device)).squeeze(1).cpu()
        zeros = logp.new_zeros(masked.shape)
        spread = zeros.masked_scatter(masked, -(all_logp.exp() * all_logp).sum(-1).cpu()) if entropy else None
        wanted = None
        if logits:
            assert batch.target is not None
            wanted = Logits(z[batch.target[masked]], lambda x: x)
        states = self.states(batch, masked) if hidden else None
        return Scores(zeros.masked_scatter(masked, logp), spread, states, wanted)

    def states(self, batch: Batch, masked: Tensor) -> Float[Tensor, "rows tokens width"]:
        """Last hidden states at the response tokens."""
        tokens, valid, start = lay_out(batch, masked, self.mask_id, None)
        if not self.pads and not valid.all():
            raise InputError("policy", self.family, "it cannot leave padding out, so it takes no value head: use none")
        ids, seen = tokens.to(self.device), valid.long().to(self.device)
        out = self.module(input_ids=ids, attention_mask=seen, output_hidden_states=True)
        place = (start[:, None] + torch.arange(batch.response.shape[1])).clamp(max=tokens.shape[1] - 1)
        return out.hidden_states[-1][torch.arange(len(tokens))[:, None], place]

    # --- what a policy that writes token by token has ----------------------------------------------------------------
    def prefill(self, contexts: list[Tokens]) -> tuple[Any, Tensor]:
        raise InputError("engine", self.family, "it does not write token by token: generate with a DenoisingEngine")

    def step(self, state: Any, tokens: Tensor) -> Tensor:
        raise InputError("engine", self.family, "it does not write token by token: generate with a DenoisingEngine")

    def save(self, folder: Path) -> None:
        """Hugging Face format; config.json names the mask token."""
        quiet_transformers()
        model: Any = self.module
        self.config.mask_token_id = self.mask_id
        model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def mask_token(config: Any, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int) -> int:
    """The mask token's id: config.json's, else the tokenizer's."""
    found = next((i for s in (config, tokenizer) if (i := getattr(s, "mask_token_id", None)) is not None), None)
    if found is None:
        raise InputError(
            "policy", str(config.model_type),
            "neither its config nor its tokenizer has a mask token (mask_token_id), so it is no masked-diffusion model",
        )  # fmt: skip
    if not 0 <= int(found) < vocabulary:
        raise InputError("mask_token_id", found, f"the model's vocabulary has {vocabulary} tokens")
    return int(found)


def lay_out(
    batch: Batch, masked: Bool[Tensor, "rows tokens"], mask_id: int,
    context_masked: Bool[Tensor, "rows context_tokens"] | None,
) -> tuple[Int[Tensor, "rows wide"], Bool[Tensor, "rows wide"], Int[Tensor, " rows"]]:  # fmt: skip
    """Every row as context + response with its masks, padded on the right; which tokens are no padding, and where the
    response begins."""
    context, seen = batch.context[batch.context_index], batch.context_valid[batch.context_index]
    if context_masked is not None:
        context = context.masked_fill(context_masked, mask_id)
    tokens = torch.cat([context, batch.response.masked_fill(masked, mask_id)], 1)
    start = seen.sum(1)
    order = torch.arange(tokens.shape[1]) + (context.shape[1] - start)[:, None]
    valid = torch.arange(tokens.shape[1]) < (start + batch.valid.sum(1))[:, None]
    wide = int(valid.sum(1).max())
    tokens = tokens.gather(1, order.clamp(max=tokens.shape[1] - 1)).masked_fill(~valid, 0)
    return tokens[:, :wide], valid[:, :wide], start


def small_denoiser(
    *, vocabulary: int, layers: int, width: int, heads: int, context_length: int, seed: int, eos_id: int, mask_id: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> MaskedDiffusionLM:  # fmt: skip
    """A small bidirectional transformer from scratch: ModernBERT's blocks (rotary positions, pre-norm, gated GELU),
    every layer sees all tokens, no dropout, untied head. Weights from `seed` alone, as those of `small_transformer`."""
    config = ModernBertConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=context_length, layer_types=["full_attention"] * layers,
        tie_word_embeddings=False, pad_token_id=None, bos_token_id=None, cls_token_id=None, sep_token_id=None,
        eos_token_id=eos_id,
    )  # fmt: skip
    config.mask_token_id = mask_id
    with torch.random.fork_rng(devices=[]):
        model = ModernBertForMaskedLM(config)
    initialise(model, seed)
    return MaskedDiffusionLM(model, tokenizer, (eos_id,))
