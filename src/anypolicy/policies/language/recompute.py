"""Gradient checkpointing: less memory for a third more time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks whose activations can be left out."""
    return [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]


@contextmanager
def recomputing(module: nn.Module, again: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Generator[None]:
    """Within it every block keeps its inputs alone. The backward pass computes it again, within `again()`."""
    blocks: list[Any] = blocks_of(module)
    for block in blocks:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), again()),
        )  # fmt: skip
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def recompute(policy: Policy) -> None:
    """Let a policy score so. Raises InputError for one whose blocks cannot be computed again."""
    if not hasattr(policy, "recompute"):
        why = f"a {type(policy).__name__} reads its prompts into a cache, or is small: leave it out"
        raise InputError("recompute", True, why)
    if not blocks_of(policy.module):
        raise InputError("recompute", True, "the model's class has no blocks that transformers can compute again")
    policy.recompute = True  # type: ignore[attr-defined]
