"""Replay: transitions packed into one matrix, so that a batch is one gather."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from anypolicy.data.packed import Packing
from anypolicy.data.transitions import Transitions, concatenate, unpack
from anypolicy.errors import InputError
from anypolicy.parts.noise import CPU
from anypolicy.parts.td import n_step


class Replay:
    """The newest `capacity` transitions. Memory is taken as they come; the first `pixels` numbers of an observation
    take a byte each. It stands on the processor; what is taken from it goes to `device`."""

    def __init__(
        self, capacity: int, observations: int, actions: int, pixels: int = 0, device: torch.device = CPU
    ):  # fmt: skip
        if capacity < 1:
            raise InputError("capacity", capacity, "use at least 1")
        self.device = device
        self.observations, self.actions, self.packing = observations, actions, Packing(observations, actions, pixels)
        try:
            self.matrix = self.packing.empty(capacity)
        except RuntimeError as error:
            raise InputError("capacity", capacity, "so many do not fit into memory: use fewer") from error
        self.size = self.next = 0

    def __len__(self) -> int:
        return self.size

    @property
    def capacity(self) -> int:
        return len(self.matrix)

    def add(self, transitions: Transitions) -> None:
        """Append; the oldest are overwritten when it is full."""
        rows = self.packing.rows(transitions)
        place = (self.next + torch.arange(len(rows))) % self.capacity
        self.matrix[place] = rows
        self.next = (self.next + len(rows)) % self.capacity
        self.size = min(self.size + len(rows), self.capacity)

    def rows(self, n: int, generator: torch.Generator) -> Shaped[Tensor, "batch width"]:
        """n packed rows, uniformly with replacement."""
        if not self.size:
            raise InputError("replay", "empty", "nothing can be drawn from it: add transitions first")
        return self.matrix.index_select(0, torch.randint(self.size, (n,), generator=generator)).to(self.device)

    def sample(self, n: int, generator: torch.Generator) -> Transitions:
        """n transitions, uniformly with replacement."""
        return self.packing.unpack(self.rows(n, generator))

    def all(self) -> Transitions:
        """Everything it holds, oldest first."""
        order = (torch.arange(self.size) + (self.next if self.size == self.capacity else 0)) % self.capacity
        return self.packing.unpack(self.matrix[order].to(self.device))

    def newest(self, n: int) -> Transitions:
        """The last n that were added, oldest first."""
        if not 0 < n <= self.size:
            raise InputError("newest", n, f"the replay holds {self.size}")
        rows = self.matrix[(self.next - n + torch.arange(n)) % self.capacity]
        return self.packing.unpack(rows.to(self.device))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {"rows": self.matrix[: self.size], "next": torch.tensor(self.next)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        rows = tensors["rows"]
        if rows.dim() != 2 or rows.shape[1] != self.matrix.shape[1] or len(rows) > self.capacity:
            raise InputError("replay", tuple(rows.shape), f"this replay holds {tuple(self.matrix.shape)}")
        self.matrix[: len(rows)] = rows
        self.size, self.next = len(rows), int(tensors["next"])
        if not 0 <= self.next <= len(rows):
            raise InputError("replay", self.next, f"the next row is one of {len(rows)}")


def mixed(
    online: Replay, offline: Replay | None, batches: int, size: int, share: float, generator: torch.Generator
) -> list[Transitions]:
    """`batches` batches of `size` transitions, the first floor(share · size) rows of each from `offline` (symmetric
    sampling: 0.5); all from the one that is not empty if the other is."""
    k = int(share * size) if offline is not None and len(offline) else 0
    if not len(online):
        k = size
    parts: list[Tensor] = []
    if k:
        assert offline is not None
        parts.append(offline.rows(batches * k, generator).view(batches, k, -1))
    if k < size:
        parts.append(online.rows(batches * (size - k), generator).view(batches, size - k, -1))
    rows = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return [online.packing.unpack(x) for x in rows]


class NStep:
    """Joins the steps of every environment to transitions over up to n of them (see `parts.td.n_step`), inside one
    episode: what an end cuts short is shorter."""

    def __init__(self, n: int, discount: float, environments: int):
        if n < 1:
            raise InputError("n_step", n, "use at least 1")
        self.n, self.discount = n, discount
        self.waiting: list[list[Transitions]] = [[] for _ in range(environments)]

    def add(self, steps: Transitions, environments: Tensor) -> Transitions | None:
        """One step of the given environments; the transitions that are complete now, if any."""
        if self.n == 1:
            return steps
        done: list[Transitions] = []
        for i, e in enumerate(environments.tolist()):
            window = self.waiting[e]
            window.append(steps.select(torch.tensor([i])))
            ended = bool(window[-1].terminated[0] or window[-1].truncated[0])
            if ended or len(window) == self.n:
                joined = join(concatenate(window), self.n, self.discount)
                done.append(joined if ended else joined.select(torch.tensor([0])))
                self.waiting[e] = [] if ended else window[1:]
        return concatenate(done) if done else None

    def state(self) -> list[list[list[float]]]:
        """The steps that wait, as plain numbers."""
        return [[x.rows()[0].tolist() for x in window] for window in self.waiting]

    def restore(self, state: list[list[list[float]]], observations: int, actions: int) -> None:
        """The inverse of `state`."""
        if len(state) != len(self.waiting):
            raise ValueError(f"steps wait in {len(state)} environments, the run has {len(self.waiting)}")
        self.waiting = [[unpack(torch.tensor([row]), observations, actions) for row in window] for window in state]


def join(steps: Transitions, n: int, discount: float) -> Transitions:
    """Consecutive one-step transitions as n-step ones (fewer at an end)."""
    returns, last, power = n_step(steps.reward, steps.terminated, steps.truncated, n, discount)
    return Transitions(steps.observation, steps.action, returns, steps.next_observation[last], steps.terminated[last],
                       steps.truncated[last], power)  # fmt: skip


def chunked(steps: Transitions, chunk: int, discount: float) -> Transitions:
    """The consecutive one-step transitions of one episode as chunks of actions, one from every step on: n-step
    transitions whose action is that of `chunk` steps side by side. Where the episode ends inside a chunk its last
    action stands in the places that were not executed."""
    places = (torch.arange(len(steps))[:, None] + torch.arange(chunk)).clamp(max=len(steps) - 1)
    return replace(join(steps, chunk, discount), action=steps.action[places].flatten(1))
