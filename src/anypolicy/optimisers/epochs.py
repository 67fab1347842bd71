"""Several passes over the same rows in shuffled mini-batches: how on-policy methods use a rollout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Numbers = dict[str, Tensor]
Bound = tuple[str, float | None]
"""A number's name and the value above which the passes stop (None: never)."""


def passes(
    loss: Callable[[Tensor], tuple[Tensor, Numbers]], rows: int, optimiser: Optimizer, generator: torch.Generator, *,
    epochs: int, parts: int, grad_clip: float, before: Bound = ("", None), after: Bound = ("", None),
) -> tuple[dict[str, list[Tensor]], int]:  # fmt: skip
    """`loss(rows)` gives a mini-batch's loss and numbers for the ledger; `parts` mini-batches, which differ by at most
    one row, make an epoch. The bound `before` is looked at in every mini-batch before its step, which then is not
    taken; `after` in the last one of every epoch. Returns all numbers, and how many steps were taken."""
    logs: dict[str, list[Tensor]] = defaultdict(list)
    parameters, steps = [p for group in optimiser.param_groups for p in group["params"]], 0
    for _ in range(epochs):
        for part in torch.randperm(rows, generator=generator).tensor_split(parts):
            value, log = loss(part)
            for name, number in log.items():
                logs[name].append(number.detach())
            if exceeded(logs, before):
                return logs, steps
            optimiser.zero_grad()
            value.backward()
            logs["grad_norm"].append(nn.utils.clip_grad_norm_(parameters, grad_clip))
            optimiser.step()
            steps += 1
        if exceeded(logs, after):
            break
    return logs, steps


def exceeded(logs: dict[str, list[Tensor]], bound: Bound) -> bool:
    """Whether the newest number is above its bound."""
    name, value = bound
    return value is not None and float(logs[name][-1]) > value


def means(logs: dict[str, list[Tensor]]) -> dict[str, float]:
    """The mean of every number."""
    return {name: float(torch.stack(numbers).mean()) for name, numbers in logs.items()}
