"""Mean and variance of all numbers seen so far, merged batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from anypolicy.errors import InputError, fits


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations of finite numbers."""

    number: int = 0
    mean: float = 0.0
    square: float = 0.0

    @property
    def std(self) -> float:
        """The population standard deviation."""
        return math.sqrt(self.square / self.number) if self.number else 0.0

    @classmethod
    def kept(cls, values: Any) -> Moments:
        """The moments whose fields a checkpoint holds in this order, or nothing."""
        if not fits(list[float], values) or len(values) not in (0, 3) or not all(map(math.isfinite, values)):
            raise InputError("checkpoint", values, "moments are three finite numbers: put the checkpoint back")
        made = cls(*values)
        if min(made.number, made.square) < 0:
            raise InputError("checkpoint", values, "number and squares are 0 or more: put the checkpoint back")
        return made

    def add(self, values: Sequence[float]) -> Moments:
        """The moments after more numbers (Chan, Golub and LeVeque's merge); what is not finite is left out."""
        x = [v for v in values if math.isfinite(v)]
        if not x:
            return self
        mean = x[0] if min(x) == max(x) else math.fsum(x) / len(x)
        square = math.fsum((v - mean) ** 2 for v in x)
        n, gap = self.number + len(x), mean - self.mean
        return Moments(n, self.mean + gap * len(x) / n, self.square + square + gap**2 * self.number * len(x) / n)
