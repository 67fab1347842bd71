"""A Hugging Face causal language model as a policy. The prompt of a group is computed once, in sampling and in the
update: gradients flow through the cache that the group's responses share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from anypolicy.data.batch import Batch
from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.policies.base import Scores
from anypolicy.policies.logits import Logits

SHARED_PREFIX = ("llama", "qwen2", "qwen3", "gpt2")
"""Families whose shared-prefix scores are tested to equal the plain ones."""


@dataclass
class CacheState:
    """Keys and values of every row, which of them are padding, and the next position."""

    cache: DynamicCache
    valid: Tensor
    position: Tensor

    def select(self, rows: Tensor) -> CacheState:
        return CacheState(gather_cache(self.cache, rows), self.valid[rows], self.position[rows])


def gather_cache(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A new cache of the given rows; differentiable, and the old one stays as it was."""
    new = DynamicCache()
    layers: list[Any] = list(cache.layers)
    for i, layer in enumerate(layers):
        new.update(layer.keys.index_select(0, rows), layer.values.index_select(0, rows), i)
    return new


class CausalLM:
    """`model` and its tokenizer (None for tasks made of token ids). The model stays in eval mode: no dropout."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, stop_ids: tuple[int, ...] | None = None
    ):
        self.module: nn.Module = model.eval()
        self.tokenizer = tokenizer
        config = model.config.get_text_config()
        self.family = str(config.model_type)
        self.hidden_size = int(config.hidden_size)
        self.context_length = int(config.max_position_embeddings)
        self.stop_ids = stop_tokens(model, tokenizer) if stop_ids is None else stop_ids
        self.check_head()
        if self.family not in SHARED_PREFIX:
            print(
                f"note: {self.family} is not tested with a shared prefix; each row reads its own prompt",
                file=sys.stderr,
            )

    @torch.no_grad()
    def check_head(self) -> None:
        """Refuse a family whose logits are not head(last state) or whose cache is not keys and values."""
        tokens = torch.tensor([[0, 1]])
        try:
            state, first = self.prefill([np.zeros(1, np.int64)])
            gather_cache(state.cache, torch.tensor([0]))
            ours = torch.cat([first, self.step(state, tokens[0, 1:])])
        except (IndexError, AttributeError, TypeError) as error:
            raise InputError("policy", self.family, f"its cache is not keys and values ({error})") from error
        own = self.model(input_ids=tokens).logits[0].to(ours.dtype)
        loose = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.1
        if not torch.allclose(ours, own, atol=loose * float(own.abs().max()), rtol=0):
            raise InputError("policy", self.family, "its logits are scaled in a way this adapter does not know")

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def model(self) -> PreTrainedModel:
        """The model itself, without an adapter around it."""
        return self.module.get_base_model() if hasattr(self.module, "get_base_model") else self.module  # type: ignore

    # --- text --------------------------------------------------------------------------------------------------------
    def encode(self, prompt: Prompt) -> Tokens:
        """The prompt's own ids, or its messages through the chat template with the assistant's turn opened."""
        if prompt.tokens is not None:
            return np.array(prompt.tokens, np.int64)
        if self.tokenizer is None:
            raise InputError("policy", self.family, "it has no tokenizer, so it needs a task of token ids")
        if self.tokenizer.chat_template is not None:
            ids = self.tokenizer.apply_chat_template(
                list(prompt.messages), add_generation_prompt=True, return_dict=False
            )  # fmt: skip
        elif len(prompt.messages) == 1:
            ids = self.tokenizer.encode(prompt.messages[0]["content"])
            if ids and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]
        else:
            raise InputError("policy", self.family, "its tokenizer has no chat template, so give one message a prompt")
        return np.array(ids, np.int64)

    def encode_reference(self, prompt: Prompt) -> Tokens:
        """The ids themselves, or the text's ids; the end-of-sequence token follows unless a stop token ends them."""
        ids = reference_ids(prompt, self.tokenizer)
        if ids[-1] not in self.stop_ids:
            own = None if self.tokenizer is None else self.tokenizer.eos_token_id
            ids = [*ids, self.stop_ids[0] if own is None else own]
        return np.array(ids, np.int64)

    def decode(self, tokens: Tokens) -> str:
        if self.tokenizer is None:
            return " ".join(str(t) for t in tokens)
        return str(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))

    # --- scoring -----------------------------------------------------------------------------------------------------
    def score(
        self, batch: Batch, temperature: float, *, entropy: bool = False, hidden: bool = False, logits: bool = False
    ) -> Scores:
        """Scores of the response tokens: shared prefix where the family is known to allow it, else the plain path."""
        self.check_length(batch)
        shared = self.family in SHARED_PREFIX and bool(batch.context_valid.any(1).all())
        states = self.hidden_shared(batch) if shared else self.hidden_plain(batch)
        scores = self.scores_of(states, batch, temperature, entropy=entropy, hidden=hidden)
        return scores._replace(logits=self.target_logits(states, batch, temperature)) if logits else scores

    def target_logits(self, states: Tensor, batch: Batch, temperature: float) -> Logits:
        """Logits where a target token is predicted."""
        assert batch.target is not None
        return Logits(states[batch.target], lambda x: self.head(x) / temperature)

    def check_length(self, batch: Batch) -> None:
        longest = int((batch.context_valid.sum(1)[batch.context_index] + batch.valid.sum(1)).max())
        if longest > self.context_length:
            raise InputError("prompt", f"{longest} tokens with its response", f"the policy holds {self.context_length}")

    def score_plain(self, batch: Batch, temperature: float, *, entropy: bool = False, hidden: bool = False) -> Scores:
        """The same from one ordinary forward pass over context + response of every row: the oracle of `score`."""
        return self.scores_of(self.hidden_plain(batch), batch, temperature, entropy=entropy, hidden=hidden)

    def hidden_shared(self, batch: Batch) -> Float[Tensor, "rows tokens width"]:
        """States before each response token: contexts forward once, responses on the expanded cache."""
        cache = DynamicCache()
        position = (batch.context_valid.cumsum(1) - 1).clamp(min=0)
        first = self.trunk(batch.context, batch.context_valid, position, cache)[:, -1][batch.context_index]
        if batch.response.shape[1] == 1:
            return first[:, None]
        rows = batch.context_index
        inputs, valid = batch.response[:, :-1], batch.valid[:, :-1]
        start = batch.context_valid.sum(1)[rows, None]
        seen = torch.cat([batch.context_valid[rows], valid], 1)
        rest = self.trunk(inputs, seen, start + torch.arange(inputs.shape[1]), gather_cache(cache, rows))
        return torch.cat([first[:, None], rest], 1)

    def hidden_plain(self, batch: Batch) -> Float[Tensor, "rows tokens width"]:
        """States before each response token, every row with its own context."""
        tokens = torch.cat([batch.context[batch.context_index], batch.response], 1)
        valid = torch.cat([batch.context_valid[batch.context_index], batch.valid], 1)
        position = (valid.cumsum(1) - 1).clamp(min=0)
        states = self.trunk(tokens, valid, position, None)
        return states[:, batch.context.shape[1] - 1 : -1]

    def trunk(self, tokens: Tensor, valid: Tensor, position: Tensor, cache: DynamicCache | None) -> Tensor:
        """Last hidden states, after the final norm."""
        limit = self.context_length - 1
        out = self.model.base_model(
            input_ids=tokens, attention_mask=valid.long(), position_ids=position.clamp(max=limit),
            cache=cache, use_cache=cache is not None,
        )  # fmt: skip
        return out.last_hidden_state

    def scores_of(
        self, states: Tensor, batch: Batch, temperature: float, *, entropy: bool, hidden: bool
    ) -> Scores:  # fmt: skip
        """Logits only where a response token stands."""
        wanted = batch.valid
        logits = self.head(states[wanted])
        logits = logits if temperature == 1 else logits / temperature
        logp_all = torch.log_softmax(logits, -1)
        picked = logp_all.gather(1, batch.response[wanted][:, None]).squeeze(1)
        zeros = picked.new_zeros(wanted.shape)
        spread = zeros.masked_scatter(wanted, -(logp_all.exp() * logp_all).sum(-1)) if entropy else None
        return Scores(zeros.masked_scatter(wanted, picked), spread, states if hidden else None)

    def head(self, states: Tensor) -> Float[Tensor, "n vocabulary"]:
        """Logits in at least float32, with the family's soft cap if it has one."""
        output: Any = self.model.get_output_embeddings()
        logits: Tensor = output(states)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    # --- generation --------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def prefill(self, contexts: list[Tokens]) -> tuple[CacheState, Tensor]:
        wide = max(len(c) for c in contexts)
        if wide > self.context_length:
            raise InputError("prompt", f"{wide} tokens", f"the policy holds {self.context_length}")
        tokens = np.zeros((len(contexts), wide), np.int64)
        valid = np.zeros((len(contexts), wide), np.bool_)
        for i, c in enumerate(contexts):
            tokens[i, wide - len(c) :], valid[i, wide - len(c) :] = c, True
        mask = torch.from_numpy(valid)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache()
        states = self.trunk(torch.from_numpy(tokens), mask, position, cache)[:, -1]
        return CacheState(cache, mask, mask.sum(1)), self.head(states)

    @torch.no_grad()
    def step(self, state: CacheState, tokens: Tensor) -> Tensor:
        state.valid = torch.cat([state.valid, torch.ones(len(tokens), 1, dtype=torch.bool)], 1)
        states = self.trunk(tokens[:, None], state.valid, state.position[:, None], state.cache)
        state.position = state.position + 1
        return self.head(states[:, -1])

    def save(self, folder: Path) -> None:
        """Hugging Face format; an adapter is merged into a copy of the weights it adapts."""
        quiet_transformers()
        model: Any = self.module
        if model is not self.model:
            import copy

            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def reference_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """A prompt's reference as ids, without a stop token of our own."""
    given = prompt.reference
    if isinstance(given, str):
        if tokenizer is None:
            raise InputError("reference", given[:40], "the policy has no tokenizer: give the reference as token ids")
        given = tuple(tokenizer.encode(given, add_special_tokens=False))
    if not given:
        raise InputError("reference", given, f"prompt {prompt.id!r} needs a reference response that is not empty")
    return list(given)


def quiet_transformers() -> None:
    """Its bars and advice would stand in the middle of ours."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """End-of-sequence ids of the generation settings, the model and the tokenizer."""
    found: set[int] = set()
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        ids: Any = getattr(source, "eos_token_id", None)
        many: list[Any] = list(ids) if isinstance(ids, list | tuple) else [ids]
        found |= {int(i) for i in many if i is not None}
    return tuple(sorted(found))
