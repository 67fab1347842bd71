"""Log-probabilities of chosen tokens from hidden states, without ever holding the logits of a whole batch.

The vocabulary is walked in blocks: the normaliser is put together from the blocks', and the backward pass computes each
block's logits once more. Memory is one block instead of tokens × vocabulary, and every weight is read once per pass.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOGITS = 1 << 22
"""Logits held at a time (16 MiB in float32). What fits into one block is not computed twice."""


def token_logp(
    states: Float[Tensor, "tokens width"], weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None, targets: Int[Tensor, " tokens"], temperature: float = 1.0,
    cap: float | None = None, entropy: bool = False,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:  # fmt: skip
    """log softmax(z / temperature)[target] in nats, z = states · weightᵀ + bias, with `cap` soft-capped to
    cap · tanh(z / cap); with `entropy` also −Σ p log p over the vocabulary. Both carry gradients. Computed in at least
    float32 from logits rounded to the weights' type."""
    logp, spread = TokenLogp.apply(states, weight, bias, targets, temperature, cap, entropy)  # type: ignore
    return logp, spread if entropy else None


class TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float,
        cap: float | None, entropy: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        parts: list[Tensor] = []
        means: list[Tensor] = []
        kept: Tensor | None = None
        picked = states.new_zeros(len(states), dtype=at_least_float32(states.dtype))
        edges = block_edges(len(states), len(weight))
        for begin, end in edges:
            z = logits(states, weight[begin:end], None if bias is None else bias[begin:end], temperature, cap)
            row, column = inside(targets, begin, end)
            picked[row] = z[row, column]
            logp = torch.log_softmax(z, -1)
            parts.append(z.amax(-1) - logp.amax(-1))
            if entropy:
                means.append(parts[-1] + (logp.exp() * logp).sum(-1))
            kept = logp if len(edges) == 1 else None
        each = torch.stack(parts)
        whole = torch.logsumexp(each, 0)
        share = (each - whole).exp()
        spread = whole - (share * torch.stack(means)).sum(0) if entropy else torch.zeros_like(whole)
        ctx.save_for_backward(states, weight, bias, targets, whole, share, spread, kept)
        ctx.given = edges, temperature, cap, entropy
        return picked - whole, spread

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor, g_entropy: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        states, weight, bias, targets, whole, share, spread, kept = ctx.saved_tensors
        edges, temperature, cap, entropy = ctx.given
        dstates = torch.zeros_like(states, dtype=g.dtype) if ctx.needs_input_grad[0] else None
        dweight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        dbias = torch.empty_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for (begin, end), weighed in zip(edges, share, strict=True):
            part = weight[begin:end]
            if kept is None:
                z = logits(states, part, None if bias is None else bias[begin:end], temperature, cap)
            else:
                z = kept + whole[:, None] if cap is not None else kept
            dz = torch.softmax(z, -1)
            scale = (-g * weighed)[:, None]
            if entropy:
                logp = kept if kept is not None else z - whole[:, None]
                scale = scale - (g_entropy * weighed)[:, None] * (logp + spread[:, None])
            dz *= scale
            row, column = inside(targets, begin, end)
            dz[row, column] += g[row]
            if temperature != 1:
                dz /= temperature
            if cap is not None:
                dz *= 1 - (z * (temperature / cap)) ** 2
            if dbias is not None:
                dbias[begin:end] = dz.sum(0)
            dz = dz.to(weight.dtype)
            if dstates is not None:
                dstates += dz @ part
            if dweight is not None:
                torch.mm(dz.T, states, out=dweight[begin:end])
        return None if dstates is None else dstates.to(states.dtype), dweight, dbias, None, None, None, None


def logits(
    states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, cap: float | None
) -> Float[Tensor, "tokens block"]:
    z = torch.nn.functional.linear(states, weight, bias)
    z = z.to(at_least_float32(z.dtype))
    if cap is not None:
        z = torch.tanh(z / cap) * cap
    return z if temperature == 1 else z / temperature


def block_edges(tokens: int, vocabulary: int) -> list[tuple[int, int]]:
    """Vocabulary ranges of about LOGITS logits, at least 512 columns wide."""
    wide = max(512, LOGITS // max(tokens, 1))
    return [(a, min(a + wide, vocabulary)) for a in range(0, vocabulary, wide)]


def inside(targets: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Rows whose target lies in the block, and its column there."""
    row = torch.nonzero((targets >= begin) & (targets < end)).squeeze(1)
    return row, targets[row] - begin


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
