"""A Hugging Face causal language model as a policy. The prompt of a group is computed once, in sampling and in the
update; nothing is computed for padding."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from anypolicy.data.batch import Batch, from_groups
from anypolicy.data.records import Group, Prompt, Segment, Tokens, Trajectory
from anypolicy.errors import InputError
from anypolicy.parts.token_logp import logits, token_logp
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.decoder import Decoder, DecoderState, Unsupported
from anypolicy.policies.language.logits import Logits
from anypolicy.policies.language.packed import NAME, Packing, pack
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

TRIED = 8
"""Tokens that trying the fast passes takes at least."""
TOO_SHORT = f"its context is below {TRIED} tokens, too short to try the fast pass"


@dataclass
class CacheState:
    """Keys and values of every row, which of them are padding, and the next position."""

    cache: DynamicCache
    valid: Tensor
    position: Tensor

    def select(self, rows: Tensor) -> CacheState:
        rows = rows.to(self.valid.device)
        return CacheState(gather_cache(self.cache, rows), self.valid[rows], self.position[rows])


@dataclass
class RereadState:
    """The tokens of every row, left-padded: for models without a cache of keys and values, which read all of it again
    for each new token."""

    tokens: Tensor
    valid: Tensor

    def select(self, rows: Tensor) -> RereadState:
        return RereadState(self.tokens[rows], self.valid[rows])


def read_scores(
    states: Float[Tensor, "rows tokens width"], batch: Batch, temperature: float, output: Any, cap: float | None, *,
    entropy: bool, hidden: bool,
) -> Scores:  # fmt: skip
    """Log-probabilities only where a response token stands that is read; the logits of a few blocks at a time."""
    wanted = batch.valid if batch.read is None else batch.read
    targets = batch.response[wanted].to(states.device)
    picked, spread = token_logp(
        states[wanted], output.weight, getattr(output, "bias", None), targets, temperature, cap, entropy
    )
    zeros = picked.new_zeros(wanted.shape, device="cpu")
    return Scores(
        zeros.masked_scatter(wanted, picked.cpu()),
        None if spread is None else zeros.masked_scatter(wanted, spread.cpu()),
        states if hidden else None,
    )


def save_merged(module: nn.Module, model: PreTrainedModel, folder: Path) -> None:
    """The model's files; where `module` is an adapter around it, merged into a copy."""
    quiet_transformers()
    own: Any = module
    (model if own is model else copy.deepcopy(own).merge_and_unload()).save_pretrained(folder)


def gather_cache(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A new cache of the given rows; differentiable, and the old one stays as it was."""
    new = DynamicCache()
    layers: list[Any] = list(cache.layers)
    for i, layer in enumerate(layers):
        new.update(layer.keys.index_select(0, rows), layer.values.index_select(0, rows), i)
    return new


class HasHead:
    """A Hugging Face model (`module`; `config` is that of its text part) whose logits a linear layer makes."""

    module: nn.Module
    config: Any

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def model(self) -> PreTrainedModel:
        """The model itself, without an adapter around it."""
        return self.module.get_base_model() if hasattr(self.module, "get_base_model") else self.module  # type: ignore

    @property
    def output(self) -> Any:
        """The linear layer that makes logits."""
        return self.model.get_output_embeddings()

    @property
    def cap(self) -> float | None:
        """The family's soft cap on logits, if it has one."""
        return getattr(self.config, "final_logit_softcapping", None)

    def head(self, states: Tensor) -> Float[Tensor, "n vocabulary"]:
        """Logits in at least float32."""
        return logits(states, self.output.weight, getattr(self.output, "bias", None), 1.0, self.cap)


class CausalLM(HasHead):
    """`model` and its tokenizer (None for tasks made of token ids). The model stays in eval mode: no dropout."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, stop_ids: tuple[int, ...] | None = None
    ):
        self.module = model.eval()
        self.decoder: Decoder | None = None
        self.caches, self.recompute = True, False
        self.tokenizer = tokenizer
        config: Any = model.config.get_text_config()
        self.config = config
        self.heads = int(getattr(config, "num_attention_heads", 1))
        self.family = str(config.model_type)
        self.hidden_size = int(config.hidden_size)
        self.context_length = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
        self.turn_end = chat_end(tokenizer)
        self.stop_ids = stop_tokens(model, tokenizer, self.turn_end) if stop_ids is None else stop_ids
        self.check_head()
        self.configs = list(
            {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values()
        )
        self.prepare()

    def prepare(self) -> None:
        """Choose the fast passes where they give what the model's own forward pass gives; else say why not."""
        self.decoder, self.packs = None, False
        if why := self.packing_differs():
            print(f"note: {self.family}: {why}; each row reads its own prompt (slower updates)", file=sys.stderr)
        self.packs = not why
        try:
            self.decoder = self.verified_decoder() if self.caches and self.device.type == "cpu" else None
        except Unsupported as reason:
            print(f"note: {self.family}: {reason}; the model's own cache is used (slower generation)", file=sys.stderr)

    @torch.no_grad()
    def check_head(self) -> None:
        """Refuse a family whose logits are not head(last state), padding left out; a cache that is not keys and values
        is not used."""
        contexts = [np.zeros(1, np.int64), np.arange(max(min(3, self.context_length - 1), 1)) % self.vocabulary]
        new = torch.tensor([1, 0])
        try:
            state, first = self.read(contexts)
            ours = torch.cat([first, self.step(state.select(torch.tensor([0, 1])), new)])
        except (IndexError, AttributeError, TypeError, ValueError) as error:
            print(
                f"note: {self.family}: its cache is not keys and values ({error}); it reads all tokens again for each "
                "new one (much slower generation)", file=sys.stderr,
            )  # fmt: skip
            self.caches = False
            state, first = self.read(contexts)
            ours = torch.cat([first, self.step(state, new)])
        whole = [torch.tensor([[*c.tolist(), int(t)]], device=self.device) for c, t in zip(contexts, new, strict=True)]
        own = torch.cat([self.model(input_ids=x).logits[0, [i]] for i in (-2, -1) for x in whole]).to(ours.dtype)
        loose = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.1
        if not torch.allclose(ours, own, atol=loose * float(own.abs().max()), rtol=0):
            raise InputError("policy", self.family, "its logits are scaled in a way this adapter does not know")

    @torch.no_grad()
    def packing_differs(self) -> str:
        """Why the packed pass cannot be used on this model; empty if it gives what the plain pass gives."""
        if self.context_length < TRIED:
            return TOO_SHORT
        rng = np.random.default_rng(0)
        size = min(self.vocabulary, 64)
        long = min(self.context_length - 4, 40)
        made = [(rng.integers(0, size, n), rng.integers(0, size, 3)) for n in (long, long, 2)]
        segments = [
            Segment(c, r, np.zeros(3, np.float32), np.ones(3, np.bool_), np.zeros(3, np.int64)) for c, r in made
        ]
        segments[1].context = segments[0].context
        batch = from_groups([Group("", Prompt(""), [Trajectory("", [s])]) for s in segments])
        try:
            packing = pack(batch, self.heads)
            packed, plain = self.hidden_packed(batch, packing), self.hidden_plain(batch)
        except (InputError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            return f"the packed pass does not run on it ({str(error).splitlines()[0]})"
        windows = {w for b in packing.blocks for w in b.masks} - {None}
        kinds = getattr(self.config, "layer_types", None) or ["sliding_attention"]
        if getattr(self.config, "sliding_window", None) and "sliding_attention" in kinds and not windows:
            return "its attention does not say how far back it sees"
        gap = float((packed - plain)[batch.valid].abs().max() / plain[batch.valid].abs().max())
        loose = 1e-5 if self.dtype in (torch.float32, torch.float64) else 0.1
        return "" if gap < loose else f"the packed pass differs by {gap:.0e}"

    @torch.no_grad()
    def verified_decoder(self) -> Decoder:
        """A decoder whose logits are those of the model's own forward pass, over a few tokens and a change of rows."""
        if self.context_length < TRIED:
            raise Unsupported(TOO_SHORT)
        decoder = Decoder(self.model)
        rng = np.random.default_rng(1)
        size = self.vocabulary
        contexts = [rng.integers(0, size, n) for n in (min(self.context_length - 4, 70), 3)]
        own, _ = self.read(contexts)
        assert isinstance(own, CacheState)
        decoder.refresh()
        fast = decoder.state(own.cache, own.valid)
        for rows in ([0, 1, 1], [0, 2], [1]):
            own, fast = own.select(torch.tensor(rows)), fast.select(torch.tensor(rows))
            tokens = torch.from_numpy(rng.integers(0, size, len(rows)))
            want = self.step(own, tokens)
            gap = float((decoder.step(fast, tokens) - want).abs().max() / want.abs().max())
            if not gap < (1e-4 if self.dtype == torch.float32 else 0.1):
                raise Unsupported(f"fast decoding differs by {gap:.0e}")
        return decoder

    @property
    def vocabulary(self) -> int:
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    # --- text --------------------------------------------------------------------------------------------------------
    def encode(self, prompt: Prompt) -> Tokens:
        """The prompt's own ids, or its messages through the chat template with the assistant's turn opened."""
        return prompt_ids(prompt, self.tokenizer, self.family, self.vocabulary)

    def encode_reference(self, prompt: Prompt) -> Tokens:
        """The ids themselves, or the text's ids; the end-of-sequence token follows unless a stop token ends them."""
        return response_ids(prompt, self.tokenizer, self.stop_ids, self.vocabulary, self.turn_end)

    def decode(self, tokens: Tokens) -> str:
        return text_of(tokens, self.tokenizer)

    def token(self, text: str) -> int:
        return single_token(text, self.tokenizer)

    # --- scoring -----------------------------------------------------------------------------------------------------
    def score(
        self, batch: Batch, temperature: float, *, entropy: bool = False, hidden: bool = False, logits: bool = False
    ) -> Scores:
        """Scores of the response tokens: packed where that is known to be exact, else the plain path."""
        self.check_length(batch)
        packed = self.packs and bool(batch.context_valid.any(1).all())
        states = self.hidden_packed(batch) if packed else self.hidden_plain(batch)
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

    def hidden_packed(self, batch: Batch, packing: Packing | None = None) -> Float[Tensor, "rows tokens width"]:
        """States before each response token; every context once, no padding."""
        packing = (packing or pack(batch, self.heads)).to(self.device)
        with self.packed_attention(), self.recomputed(self.packed_attention):
            out = self.model.base_model(
                input_ids=packing.tokens[None], position_ids=packing.position[None], use_cache=False, packing=packing
            )
        return out.last_hidden_state[0][packing.before]

    @contextmanager
    def packed_attention(self) -> Generator[None]:
        """Within it the model attends as `packed.attend`."""
        before = [c._attn_implementation for c in self.configs]
        try:
            for c in self.configs:
                c._attn_implementation = NAME
            yield
        finally:
            for c, name in zip(self.configs, before, strict=True):
                c._attn_implementation = name

    def recomputed(self, again: Callable[[], AbstractContextManager[Any]] = nullcontext) -> AbstractContextManager[Any]:
        """Gradient checkpointing, if it is asked for."""
        return recomputing(self.model, again) if self.recompute else nullcontext()

    def hidden_plain(self, batch: Batch) -> Float[Tensor, "rows tokens width"]:
        """States before each response token, every row with its own context."""
        tokens = torch.cat([batch.context[batch.context_index], batch.response], 1).to(self.device)
        valid = torch.cat([batch.context_valid[batch.context_index], batch.valid], 1).to(self.device)
        position = (valid.cumsum(1) - 1).clamp(min=0)
        with self.recomputed():
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
        return read_scores(states, batch, temperature, self.output, self.cap, entropy=entropy, hidden=hidden)

    # --- generation --------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def prefill(self, contexts: list[Tokens]) -> tuple[CacheState | DecoderState | RereadState, Tensor]:
        state, logits = self.read(contexts)
        if self.decoder is None or isinstance(state, RereadState):
            return state, logits
        self.decoder.refresh()
        return self.decoder.state(state.cache, state.valid), logits

    def read(self, contexts: list[Tokens]) -> tuple[CacheState | RereadState, Tensor]:
        """The model's own cache after the contexts (their tokens, if it has none), and the logits of what follows."""
        wide = max(len(c) for c in contexts)
        if wide > self.context_length:
            raise InputError("prompt", f"{wide} tokens", f"the policy holds {self.context_length}")
        tokens = np.zeros((len(contexts), wide), np.int64)
        valid = np.zeros((len(contexts), wide), np.bool_)
        for i, c in enumerate(contexts):
            tokens[i, wide - len(c) :], valid[i, wide - len(c) :] = c, True
        ids, mask = torch.from_numpy(tokens).to(self.device), torch.from_numpy(valid).to(self.device)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        if not self.caches:
            states = self.trunk(ids, mask, position, None)[:, -1]
            return RereadState(ids, mask), self.head(states)
        cache = DynamicCache()
        states = self.trunk(ids, mask, position, cache)[:, -1]
        return CacheState(cache, mask, mask.sum(1)), self.head(states)

    @torch.no_grad()
    def step(self, state: CacheState | DecoderState | RereadState, tokens: Tensor) -> Tensor:
        if isinstance(state, DecoderState):
            assert self.decoder is not None
            return self.decoder.step(state, tokens)
        tokens = tokens.to(self.device)
        state.valid = torch.cat([state.valid, state.valid.new_ones(len(tokens), 1)], 1)
        if isinstance(state, RereadState):
            state.tokens = torch.cat([state.tokens, tokens[:, None]], 1)
            position = (state.valid.cumsum(1) - 1).clamp(min=0)
            return self.head(self.trunk(state.tokens, state.valid, position, None)[:, -1])
        states = self.trunk(tokens[:, None], state.valid, state.position[:, None], state.cache)
        state.position = state.position + 1
        return self.head(states[:, -1])

    def save(self, folder: Path) -> None:
        """Hugging Face format; an adapter is merged into a copy of the weights it adapts."""
        save_merged(self.module, self.model, folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
