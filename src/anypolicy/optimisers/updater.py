"""The optimiser step: float32 master weights where the model is narrower, gradients added up in float32."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from anypolicy.optimisers.step import check_moments
from anypolicy.parts.optimisers import make_optimiser
from anypolicy.stages.recipe import Optimiser


class Updater:
    """Adds up micro-batch gradients and takes optimiser steps.

    Parameters in bfloat16 get float32 master weights: an update smaller than bfloat16 can hold is kept, not lost. The
    gradient norm is clipped per set of parameters (policy and critic apart, each with its own learning rate).
    """

    def __init__(self, settings: Optimiser, sets: dict[str, tuple[Iterable[nn.Parameter], float]]):
        self.settings = settings
        self.parameters: dict[str, list[nn.Parameter]] = {}
        self.masters: dict[str, list[Tensor]] = {}
        groups = []
        for name, (parameters, lr) in sets.items():
            trained = [p for p in parameters if p.requires_grad]
            for p in trained:
                p.grad = None
            wide = [p if p.dtype in (torch.float32, torch.float64) else p.detach().float() for p in trained]
            self.parameters[name], self.masters[name] = trained, wide
            groups.append({"params": wide, "lr": lr, "initial_lr": lr})
        s = settings
        if s.kind == "adamw":
            self.torch: torch.optim.Optimizer = make_optimiser(
                torch.optim.AdamW, groups, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay, fused=True
            )
        else:
            self.torch = make_optimiser(torch.optim.SGD, groups, weight_decay=s.weight_decay)
        self.updates = 0

    def accumulate(self) -> None:
        """Add the gradients of the last backward pass to the masters' and free them."""
        for name, parameters in self.parameters.items():
            for p, master in zip(parameters, self.masters[name], strict=True):
                if p is not master and p.grad is not None:
                    g = p.grad.float()
                    master.grad = g if master.grad is None else master.grad.add_(g)
                    p.grad = None

    def step(self) -> dict[str, float]:
        """Clip, update, copy the masters back; the gradient norm of each set before clipping."""
        norms: dict[str, float] = {}
        limit = self.settings.grad_clip
        for name, masters in self.masters.items():
            norm = nn.utils.clip_grad_norm_(masters, math.inf if limit is None else limit)
            norms["grad_norm" if name == "policy" else f"grad_norm/{name}"] = float(norm)
        warm = min((self.updates + 1) / self.settings.warmup, 1.0) if self.settings.warmup else 1.0
        for group in self.torch.param_groups:
            group["lr"] = group["initial_lr"] * warm
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameters in self.parameters.items():
                for p, master in zip(parameters, self.masters[name], strict=True):
                    if p is not master:
                        p.copy_(master)
        self.updates += 1
        return norms | {"lr": self.torch.param_groups[0]["lr"]}

    def tensors(self) -> dict[str, Tensor]:
        """Masters and moments by name, for a checkpoint. The model's own weights follow from the masters."""
        out: dict[str, Tensor] = {}
        for name, masters in self.masters.items():
            for i, master in enumerate(masters):
                out[f"{name}.{i}.weight"] = master.detach()
                for key, value in self.torch.state.get(master, {}).items():
                    out[f"{name}.{i}.{key}"] = value
        return out

    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Put back what `tensors` gave; the parameters are overwritten too."""
        self.updates = updates
        with torch.no_grad():
            for name, masters in self.masters.items():
                for i, (p, master) in enumerate(zip(self.parameters[name], masters, strict=True)):
                    prefix = f"{name}.{i}."
                    mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                    if (weight := mine.pop("weight")).shape != master.shape:
                        raise ValueError(f"{prefix}weight of shape {tuple(weight.shape)}")
                    master.copy_(weight)
                    p.copy_(master)
                    check_moments(self.torch, master, mine)
                    if mine:
                        self.torch.state[master] = {k: v.to(master.device, copy=True) for k, v in mine.items()}
