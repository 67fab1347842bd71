"""Logits for losses that need the whole distribution, never whole in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 256
"""Positions whose logits stand in memory at a time."""


@dataclass(frozen=True)
class Logits:
    """The logits of chosen positions: `head(states)`, made chunk by chunk and again in the backward pass."""

    states: Float[Tensor, "positions width"]
    head: Callable[[Tensor], Tensor]

    def map(self, f: Callable[..., Tensor], *beside: Tensor) -> Tensor:
        """f(logits of a chunk, the same positions of `beside` …) of all chunks, joined, on the processor. f may be
        called twice for a chunk, so it must give the same both times: what it draws comes in through `beside`."""
        beside = tuple(x.to(self.states.device) for x in beside)

        def one(states: Tensor, *rest: Tensor) -> Tensor:
            return f(self.head(states), *rest)

        if len(self.states) <= CHUNK:
            return one(self.states, *beside).cpu()
        parts = zip(*(x.split(CHUNK) for x in (self.states, *beside)), strict=True)
        return torch.cat([checkpoint(one, *p, use_reentrant=False, preserve_rng_state=False) for p in parts]).cpu()
