"""Transitions as rows of one matrix: float32, or bytes where observations hold pictures."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

from anypolicy.data.transitions import Transitions, unpack, width
from anypolicy.errors import InputError


class Packing:
    """How a transition becomes a row. The first `pixels` numbers of an observation are whole numbers from 0 to 255 and
    take a byte each; without pixels a row is `Transitions.rows`."""

    def __init__(self, observations: int, actions: int, pixels: int = 0):
        self.observations, self.actions, self.pixels = observations, actions, pixels
        self.numbers = width(observations - pixels, actions)
        self.width = 4 * self.numbers + -(-2 * pixels // 4) * 4 if pixels else self.numbers

    def empty(self, capacity: int) -> Shaped[Tensor, "capacity width"]:
        """Room for rows; memory is taken as they come."""
        return torch.empty(capacity, self.width, dtype=torch.uint8 if self.pixels else torch.float32)

    def rows(self, transitions: Transitions) -> Shaped[Tensor, "batch width"]:
        """One row each. Raises InputError where a number is not finite, or a pixel no byte."""
        rows, n = transitions.rows().float(), self.pixels
        if not n:
            return rows
        after = self.observations + self.actions
        seen = torch.cat([rows[:, :n], rows[:, after : after + n]], 1)
        if bool((seen != seen.clamp(0, 255).round()).any()):
            raise InputError("observation", "no byte", "pixels must be whole numbers from 0 to 255")
        numbers = torch.cat([rows[:, n:after], rows[:, after + n :]], 1).contiguous()
        out = torch.zeros(len(rows), self.width, dtype=torch.uint8)
        out[:, : 4 * self.numbers] = numbers.view(torch.uint8)
        out[:, 4 * self.numbers : 4 * self.numbers + 2 * n] = seen.to(torch.uint8)
        return out

    def unpack(self, rows: Shaped[Tensor, "batch width"]) -> Transitions:
        """The inverse of `rows`."""
        n = self.pixels
        if not n:
            return unpack(rows, self.observations, self.actions)
        short = unpack(rows[:, : 4 * self.numbers].view(torch.float32), self.observations - n, self.actions)
        before, after = rows[:, 4 * self.numbers :][:, : 2 * n].float().split(n, 1)
        return Transitions(
            torch.cat([before, short.observation], 1), short.action, short.reward,
            torch.cat([after, short.next_observation], 1), short.terminated, short.truncated, short.discount,
        )  # fmt: skip
