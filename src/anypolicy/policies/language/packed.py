"""A batch as one sequence without padding, every context once, and the attention that makes this exact.

The tokens of all contexts stand first, then those of all responses. Whatever a model does token by token (embedding,
projections, norms) it does once per token; attention alone knows who belongs to whom: a context sees itself, a response
its context and itself. Attention weights of a few rows at a time are computed and used; where they are many they are
thrown away and computed again in the backward pass, so memory grows with the tokens and not with their squares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from anypolicy.data.batch import Batch
from anypolicy.errors import InputError
from anypolicy.parts.token_logp import at_least_float32

NAME = "anypolicy-packed"
SCORES = 1 << 20
"""Attention scores of one head-block held at a time (4 MiB in float32): they stay in the processor's cache."""
KEPT = 8
"""Attention weights are kept for the backward pass up to this many times the size of the queries."""


@dataclass
class Block:
    """Rows that attend together. Padding repeats a row's first query and key; `own` and `real` say what is not padding.
    Query n of row r is the token queries[r, n] and stands at place first[r] + n of the row's keys."""

    queries: Int[Tensor, "rows queries"]
    keys: Int[Tensor, "rows keys"]
    own: Bool[Tensor, "rows queries"]
    real: Bool[Tensor, "rows keys"]
    first: Int[Tensor, " rows"]
    masks: dict[int | None, Tensor] = field(default_factory=dict[int | None, Tensor])

    def to(self, device: torch.device) -> Block:
        """The tables on a device."""
        queries, keys, own, real, first = (
            x.to(device) for x in (self.queries, self.keys, self.own, self.real, self.first)
        )
        return Block(queries, keys, own, real, first)

    def mask(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "rows queries keys"]:
        """0 where a query sees a key: not padding, not later, less than `window` tokens back; −inf elsewhere."""
        if window not in self.masks:
            place = self.first[:, None] + torch.arange(self.queries.shape[1], device=self.first.device)
            place = torch.where(self.own, place, self.first[:, None])
            back = place[:, :, None] - torch.arange(self.keys.shape[1], device=place.device)
            seen = self.real[:, None] & (back >= 0)
            if window is not None:
                seen &= back < window
            self.masks[window] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
                ~seen, -torch.inf
            )
        return self.masks[window]


@dataclass(frozen=True)
class Packing:
    """`tokens` and their `position`; `before[r, t]` is the place of the state from which response token t of row r is
    predicted (valid tokens only); `blocks` is who attends to whom."""

    tokens: Int[Tensor, " tokens"]
    position: Int[Tensor, " tokens"]
    before: Int[Tensor, "rows response_tokens"]
    blocks: list[Block]

    def to(self, device: torch.device) -> Packing:
        """The tables on a device."""
        if device == self.tokens.device:
            return self
        tokens, position, before = (x.to(device) for x in (self.tokens, self.position, self.before))
        return Packing(tokens, position, before, [b.to(device) for b in self.blocks])


def pack(batch: Batch, heads: int) -> Packing:
    """The packing of a batch. The last token of a response predicts nothing and is left out."""
    inner = batch.valid[:, 1:]
    lengths = batch.context_valid.sum(1)
    total = int(lengths.sum())
    tokens = torch.cat([batch.context[batch.context_valid], batch.response[:, :-1][inner]])
    place = (batch.context_valid.cumsum(1) - 1)[batch.context_valid]
    response_place = (lengths[batch.context_index][:, None] + torch.arange(inner.shape[1]))[inner]
    before = torch.zeros(batch.response.shape, dtype=torch.long)
    before[:, 0] = (lengths.cumsum(0) - 1)[batch.context_index]
    before[:, 1:][inner] = torch.arange(total, len(tokens))
    size = lengths.numpy()
    start = np.concatenate([[0], np.cumsum(size)])[:-1]
    length = inner.sum(1).numpy()
    begin = total + np.concatenate([[0], np.cumsum(length)])[:-1]
    owner = batch.context_index.numpy()
    nothing = np.zeros_like(size)
    blocks = blocks_of(start, nothing, start, size, heads) + blocks_of(start[owner], size[owner], begin, length, heads)
    return Packing(tokens, torch.cat([place, response_place]), before, blocks)


def blocks_of(
    shared: NDArray[np.int64], prefix: NDArray[np.int64], own: NDArray[np.int64], length: NDArray[np.int64], heads: int
) -> list[Block]:
    """Rows with `prefix` keys from place `shared` on and `length` queries (also keys) from `own` on, rows of like
    length together, at most SCORES scores a block."""
    order = np.lexsort((prefix, length))
    order = order[length[order] > 0]
    parts: list[list[int]] = [[]]
    wide = 0
    for row in order.tolist():
        widest = max(wide, int(prefix[row] + length[row]))
        if parts[-1] and (len(parts[-1]) + 1) * int(length[row]) * widest * heads > SCORES:
            parts.append([])
            widest = int(prefix[row] + length[row])
        parts[-1].append(row)
        wide = widest
    return [block(shared[p], prefix[p], own[p], length[p]) for p in parts if p]


def block(
    shared: NDArray[np.int64], prefix: NDArray[np.int64], own: NDArray[np.int64], length: NDArray[np.int64]
) -> Block:
    """Index tables of the rows of one block."""
    query = np.arange(length.max())[None]
    key = np.arange((prefix + length).max())[None]
    p, n, s, o = prefix[:, None], length[:, None], shared[:, None], own[:, None]
    keys = np.where(key < p, s + key, o + np.clip(key - p, 0, n - 1))
    queries = o + np.where(query < n, query, 0)
    made = [torch.from_numpy(x) for x in (queries, keys, query < n, key < p + n, prefix)]
    return Block(made[0], made[1], made[2], made[3], made[4])


class PackedAttention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ + mask) V per block, scores in at least float32, with an optional soft cap
    cap · tanh(s / cap). Keys and values may have fewer heads than queries (grouped-query attention)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Float[Tensor, "tokens heads width"], k: Tensor, v: Tensor, blocks: list[Block], scale: float,
        window: int | None, cap: float | None,
    ) -> Tensor:  # fmt: skip
        out = torch.empty_like(q)
        scores = sum(b.queries.numel() * b.keys.shape[1] for b in blocks) * q.shape[1]
        kept: list[Tensor] = []
        for b in blocks:
            p, *_ = weights(q, k, b, scale, window, cap)
            if cap is None and scores <= KEPT * q.numel():
                kept.append(p)
            o = ungrouped(p @ heads_first(v, b.keys, p.dtype), q.shape[1])
            out.index_copy_(0, b.queries[b.own], o[b.own].to(out.dtype))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.given = blocks, scale, window, cap
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        q, k, v, *kept = ctx.saved_tensors
        blocks, scale, window, cap = ctx.given
        wide = at_least_float32(q.dtype)
        dq = torch.empty_like(q)
        dk, dv = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for i, b in enumerate(blocks):
            p, queries, keys, slope = weights(q, k, b, scale, window, cap, kept[i] if kept else None)
            up = g.index_select(0, b.queries.flatten()).view(*b.queries.shape, *g.shape[1:])
            up = grouped(up * b.own[:, :, None, None], k.shape[1], wide)
            values = heads_first(v, b.keys, wide)
            ds = (up @ values.transpose(-1, -2)).mul_(p)
            ds = ds.sub_(p * ds.sum(-1, keepdim=True))
            ds = ds if slope is None else ds.mul_(slope)
            mine = ungrouped(ds @ keys, q.shape[1])
            dq.index_copy_(0, b.queries[b.own], (mine[b.own] * scale).to(dq.dtype))
            place = b.keys.flatten()
            dk.index_add_(0, place, (ds.transpose(-1, -2) @ queries).transpose(1, 2).flatten(0, 1))
            dv.index_add_(0, place, (p.transpose(-1, -2) @ up).transpose(1, 2).flatten(0, 1))
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def weights(
    q: Tensor, k: Tensor, b: Block, scale: float, window: int | None, cap: float | None, kept: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Attention weights (those `kept`, if given), scaled queries and keys of a block as (rows, key heads, …), and
    d capped / d score."""
    wide = at_least_float32(q.dtype)
    rows, n = b.queries.shape
    queries = grouped(q.index_select(0, b.queries.flatten()).view(rows, n, *q.shape[1:]), k.shape[1], wide) * scale
    keys = heads_first(k, b.keys, wide)
    if kept is not None:
        return kept, queries, keys, None
    scores = queries @ keys.transpose(-1, -2)
    slope = None
    if cap is not None:
        scores = torch.tanh(scores / cap)
        slope = 1 - scores**2
        scores = scores * cap
    seen = b.mask(window, wide)[:, None, None]
    scores.view(rows, k.shape[1], -1, *seen.shape[3:]).add_(seen)
    return torch.softmax(scores, -1), queries, keys, slope


def grouped(x: Float[Tensor, "rows n heads width"], key_heads: int, dtype: torch.dtype) -> Tensor:
    """(rows, key heads, heads/key heads · n, width): the query heads of one key head side by side."""
    rows, n, heads, width = x.shape
    x = x.view(rows, n, key_heads, heads // key_heads, width).permute(0, 2, 3, 1, 4)
    return x.to(dtype).reshape(rows, key_heads, -1, width)


def ungrouped(x: Tensor, heads: int) -> Float[Tensor, "rows n heads width"]:
    rows, key_heads, _, width = x.shape
    return x.view(rows, key_heads, heads // key_heads, -1, width).permute(0, 3, 1, 2, 4).reshape(rows, -1, heads, width)


def heads_first(x: Tensor, places: Int[Tensor, "rows n"], dtype: torch.dtype) -> Float[Tensor, "rows heads n width"]:
    return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:]).transpose(1, 2).to(dtype)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, packing: Packing, scaling: float,
    dropout: float = 0.0, sliding_window: int | None = None, softcap: float | None = None, position_ids: Any = None,
    is_causal: bool = True, **unknown: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls in place of its own attention. An argument we do not know would change the result."""
    given = {k: v for k, v in unknown.items() if v is not None and v is not False}
    if given or dropout or not is_causal:
        raise InputError("attention", ", ".join(given) or "dropout", "the packed pass does not know it")
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    return PackedAttention.apply(q, k, v, packing.blocks, scaling, sliding_window, softcap)[None], None  # type: ignore


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
