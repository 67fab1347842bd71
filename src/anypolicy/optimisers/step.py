"""Optimiser steps of controllers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from anypolicy.parts.optimisers import make_optimiser


def adam(parameters: Iterable[nn.Parameter], lr: float) -> Adam:
    """Adam with the update of all parameters in one kernel."""
    return make_optimiser(Adam, parameters, lr=lr, fused=True)


def adamw(parameters: Iterable[nn.Parameter], lr: float) -> AdamW:
    """Adam with PyTorch's own decoupled decay of the weights, 0.01."""
    return make_optimiser(AdamW, parameters, lr=lr, fused=True)


def check_moments(optimiser: torch.optim.Optimizer, parameter: Tensor, saved: Mapping[str, Tensor]) -> None:
    """Refuse, by a ValueError, saved moments that are not a parameter's; there are none before its first step."""
    names = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimiser, Adam) else set[str]()
    if saved and set(saved) != names:
        raise ValueError(f"moments {', '.join(sorted(saved))}")
    for name, x in saved.items():
        shape = torch.Size() if name == "step" else parameter.shape
        if x.shape != shape or x.dtype != (torch.float32 if name == "step" else parameter.dtype):
            raise ValueError(f"{name} of shape {tuple(x.shape)} and type {x.dtype}")


def apply(optimiser: torch.optim.Optimizer, loss: Tensor, *, max_norm: float | None = None) -> None:
    """One optimiser step on a loss, the gradient scaled to a norm of at most `max_norm`."""
    optimiser.zero_grad()
    loss.backward()
    if max_norm is not None:
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], max_norm)
    optimiser.step()
