"""Random numbers. They are drawn on the processor, wherever they are used: a seed means the same on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

CPU = torch.device("cpu")


def normal_like(x: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Standard normal numbers of x's shape and type."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(tuple(shape), generator=generator).to(device)


def uniform(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Numbers from [0, 1)."""
    return torch.rand(tuple(shape), generator=generator).to(device)


def indices(below: int, shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Whole numbers from 0 to below − 1."""
    return torch.randint(below, tuple(shape), generator=generator).to(device)


def permutation(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """0 … n − 1 in random order."""
    return torch.randperm(n, generator=generator).to(device)
