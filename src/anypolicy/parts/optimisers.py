"""Optimisers of PyTorch, made of settings that a user gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from anypolicy.errors import InputError

Made = TypeVar("Made", bound=torch.optim.Optimizer)


def make_optimiser(kind: Callable[..., Made], parameters: Iterable[Any], **settings: Any) -> Made:
    """One over parameters, or over groups of them. A setting that it refuses (a rate or a decay below 0, a β of 1) is
    an InputError of that setting's name."""
    try:
        return kind(list(parameters), **settings)
    except ValueError as error:
        name = next((k for k, v in settings.items() if str(error).endswith(str(v))), "optimiser")
        raise InputError(name, settings.get(name, settings), f"{error}: use another") from error
