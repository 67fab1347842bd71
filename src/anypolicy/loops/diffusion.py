"""The loop of diffusion models: draw samples that somebody preferred, let the learner update.

A learner writes its paper's update out and calls parts. It has `modules`, `optimisers` and `pools` (by name: all that a
checkpoint holds of it) and `update`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anypolicy.errors import InputError
from anypolicy.learners.base import Trained, load_tensors, tensors_of
from anypolicy.loops.control import averages, logged
from anypolicy.parts.optimisers import make_optimiser
from anypolicy.policies.diffusion.denoisers import DiffusionModel, Weights, copied, encoded, pieces
from anypolicy.runs.seeds import generator
from anypolicy.runs.stop import Pause, go_on
from anypolicy.tasks.diffusion.base import Examples


class Batch(NamedTuple):
    """Encoded winners, their conditions, and losers of the same conditions where the method learns from pairs."""

    winner: Tensor
    condition: Tensor
    loser: Tensor | None


def described(weights: Weights) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of every tensor."""
    return {name: (x.shape, x.dtype) for name, x in weights.items()}


class Pool:
    """Frozen copies of a network, the oldest first; beyond `capacity` the oldest goes."""

    def __init__(self, capacity: int | None = None):
        if capacity is not None and capacity < 1:
            raise InputError("capacity", capacity, "keep at least 1 checkpoint")
        self.capacity = capacity
        self.copies = list[dict[str, Tensor]]()

    def __len__(self) -> int:
        return len(self.copies)

    def __getitem__(self, k: int) -> Weights:
        return self.copies[k]

    def add(self, module: nn.Module) -> None:
        """A copy of what is trained, as it is now."""
        self.copies.append(copied(module))
        if self.capacity is not None:
            del self.copies[: -self.capacity]

    def draw(self, rng: torch.Generator) -> int:
        """The index of a copy, each with the same probability."""
        if not self.copies:
            raise InputError("pool", "empty", "there is no checkpoint to take as a reference: add the first one")
        return int(torch.randint(len(self.copies), (), generator=rng))

    def tensors(self) -> dict[str, Tensor]:
        return {f"{k}/{name}": x for k, weights in enumerate(self.copies) for name, x in weights.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        copies = defaultdict[int, dict[str, Tensor]](dict)
        for key, value in tensors.items():
            k, _, name = key.partition("/")
            copies[int(k)][name] = value if not self.copies else value.to(next(iter(self.copies[0].values())).device)
        own = [described(weights) for weights in self.copies[:1]]
        self.copies = [copies[k] for k in sorted(copies)]
        if any(described(weights) not in own for weights in self.copies):
            raise ValueError("a copy in it is of another model")


class DiffusionLearner(Trained, Protocol):
    """What every learner of diffusion has."""

    @property
    def pools(self) -> Mapping[str, Pool]: ...

    def update(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, float]:
        """Update number `step`, counted from 0; numbers for the ledger."""
        ...


@dataclass(frozen=True)
class DiffusionRecipe:
    """`learner(model, seed)` makes the learner; every update sees `batch` winners, with losers if it `needs_pairs`."""

    learner: Callable[[DiffusionModel, int], DiffusionLearner]
    batch: int
    needs_pairs: bool = False


class DiffusionLoop:
    """`run(n)` makes n updates. Rows are drawn with replacement: one winner is enough."""

    def __init__(
        self, recipe: DiffusionRecipe, model: DiffusionModel, winners: Examples, losers: Examples | None, seed: int
    ):  # fmt: skip
        if not len(winners):
            raise InputError("task", "no winners", "a method learns from at least one sample that somebody preferred")
        self.recipe, self.model, self.winners, self.losers, self.seed = recipe, model, winners, losers, seed
        self.learner, self.steps = recipe.learner(model, seed), 0
        self.logs = defaultdict[str, list[float]](list)

    def batch(self, step: int) -> Batch:
        rows = torch.randint(len(self.winners), (self.recipe.batch,), generator=generator(self.seed, "batch", step))
        winner, labels = self.winners.take(rows.tolist())
        loser = None
        if self.recipe.needs_pairs:
            assert self.losers is not None
            loser = encoded(self.model, self.losers.take(rows.tolist())[0])
        condition = torch.cat([self.model.condition(labels[p]) for p in pieces(len(labels), self.model.micro)])
        return Batch(encoded(self.model, winner), condition, loser)

    def run(self, steps: int, pause: Pause = go_on) -> dict[str, float]:
        """The means of what the updates logged."""
        for made in range(1, steps + 1):
            rng = generator(self.seed, "update", self.steps)
            for name, value in self.learner.update(self.batch(self.steps), self.steps, rng).items():
                self.logs[name].append(value)
            self.steps += 1
            if made < steps:
                pause(made)
        out, self.logs = averages(self.logs), defaultdict(list)
        return out | {"updates": float(self.steps)}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        pools = {f"pool-{name}": pool.tensors() for name, pool in self.learner.pools.items()}
        return {"learner": tensors_of(self.learner), **pools}

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "logs": dict(self.logs)}

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
        load_tensors(self.learner, tensors["learner"])
        for name, pool in self.learner.pools.items():
            pool.restore(tensors[f"pool-{name}"])
        self.steps, self.logs = state["steps"], logged(state)


def adamw(module: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """AdamW over what is trained."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return make_optimiser(torch.optim.AdamW, trained, lr=lr, weight_decay=weight_decay, fused=True)


def descend(optimiser: Optimizer, step: int, warmup: int, clip: float) -> dict[str, float]:
    """One step along the gradients that were added up, their norm clipped; the rate rises over `warmup` steps."""
    norm = nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], clip)
    if not norm.isfinite():
        raise InputError("gradient", float(norm), "it must be finite: lower the learning rate or beta")
    share = min((step + 1) / warmup, 1.0) if warmup else 1.0
    for group in optimiser.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * share
    optimiser.step()
    optimiser.zero_grad()
    return {"grad_norm": float(norm), "lr": optimiser.param_groups[0]["lr"]}


def mean_of(rows: list[Tensor]) -> float:
    """The mean over pieces of a batch."""
    return float(torch.cat(rows).mean())
