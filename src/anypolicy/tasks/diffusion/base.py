"""Tasks of diffusion models: samples that were preferred, what they are of, and how good what a model makes is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from anypolicy.policies.diffusion.denoisers import DiffusionModel, Label


class Examples(Protocol):
    """Pictures in [0, 1] (or points) and what they are of."""

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int]) -> tuple[Tensor, list[Label]]: ...


@dataclass(frozen=True)
class PictureTask:
    """`winners` and `losers` are pairs row by row, where there are losers. `base` makes the model that learning starts
    from unless another is given, `fresh` an untrained one of a seed, `judge` numbers for samples and what they are to
    be of; `judged_by` says by what. `suggested` are settings of methods that fit its size."""

    name: str
    winners: Examples
    losers: Examples | None
    heldout: Examples
    labels: Sequence[Label]
    base: Callable[[], DiffusionModel] | None = None
    fresh: Callable[[int], DiffusionModel] | None = None
    judge: Callable[[Tensor, Sequence[Label]], dict[str, float]] | None = None
    judged_by: Callable[[], str] = lambda: "the denoising error on held-out images alone"
    suggested: Mapping[str, Any] = field(default_factory=dict[str, Any])
