"""Settings of methods: what each means and what it may be, said once, in the annotation of a parameter or a field.

    clip: Annotated[float, Knob("ratios may move by this much", least=0)] = 0.2

`catalogue.build` checks the range before any work; `--help`, `show` and the method pages print meaning and range. The
default is the paper's, unless the method's file says otherwise. Settings that many methods share stand here.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any

from anypolicy.errors import InputError


@dataclass(frozen=True)
class Knob:
    """The meaning of a setting (with its unit) and the numbers it may be; of a tuple each. `infinite`: it may be +∞."""

    meaning: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    infinite: bool = False

    @property
    def range(self) -> str:
        """The range in words; "" where there is none."""
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        bounds = (("of at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    @property
    def limits(self) -> str:
        """The range as it stands in a list."""
        return self.range.removeprefix("of ")

    def allows(self, value: Any) -> bool:
        """Whether a value is in the range; what is no number is."""
        if isinstance(value, list | tuple):
            return all(self.allows(x) for x in value)  # type: ignore[reportUnknownVariableType]
        if isinstance(value, bool) or not isinstance(value, Real):
            return True
        x = float(value)
        return not (
            (self.least is not None and x < self.least)
            or (self.above is not None and x <= self.above)
            or (self.most is not None and x > self.most)
            or (self.below is not None and x >= self.below)
        )


def knobs_of(build: Callable[..., Any]) -> dict[str, Knob]:
    """What a method's function or dataclass says of its settings, by name."""
    hints = typing.get_type_hints(build, include_extras=True)
    found = ((k, m) for k, hint in hints.items() for m in getattr(hint, "__metadata__", ()) if isinstance(m, Knob))
    return dict(found)


def check_knobs(knobs: Mapping[str, Knob], given: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse numbers outside their ranges, and infinite ones where they mean nothing."""
    for name, value in given.items():
        if name in knobs and not knobs[name].allows(value):
            raise InputError(f"{prefix}{name}", value, f"use a number {knobs[name].range}")


def said(knob: Knob | None, default: Any) -> str:
    """Meaning, range and default in one line."""
    meaning, allowed = (knob.meaning, knob.limits) if knob else ("", "")
    shown = "∞" if default == math.inf else "none" if default is None else default
    return f"{meaning} ({f'{allowed}; ' if allowed else ''}default {shown})"


# --- settings that many methods share --------------------------------------------------------------------------------
Hidden = Annotated[tuple[int, ...], Knob("widths of the hidden layers", least=1)]
LearningRate = Annotated[float, Knob("learning rate", above=0)]
Discount = Annotated[float, Knob("discount γ of a step", least=0, most=1)]
BatchSize = Annotated[int, Knob("transitions in a batch", least=1)]
Updates = Annotated[int, Knob("updates for every environment step", least=1)]
Warmup = Annotated[
    int | None, Knob("environment steps before it learns; none: ten episodes, at most 5,000", least=0)
]  # fmt: skip
Capacity = Annotated[int, Knob("transitions that the replay holds", least=1)]
Polyak = Annotated[float, Knob("share of the way that targets move at every update, τ", least=0, most=1)]
CopyEvery = Annotated[int, Knob("updates between two copies of the network to its target", least=1)]
Ensemble = Annotated[int, Knob("critics", least=1)]
Subset = Annotated[int, Knob("critics, drawn anew, whose minimum is a target's value", least=1)]
InitialTemperature = Annotated[float, Knob("temperature α of the entropy at the beginning", above=0)]
TargetEntropy = Annotated[float | None, Knob("entropy that α is learnt to hold, nats; none: the paper's rule")]
BackupEntropy = Annotated[bool, Knob("targets have the entropy of the next action in them")]
LayerNorm = Annotated[bool, Knob("layer normalisation in the critics")]
OfflineShare = Annotated[float, Knob("share of each batch that comes from demonstrations", least=0, most=1)]
Chunk = Annotated[int, Knob("actions that are decided at once and executed one after the other", least=1)]
Copies = Annotated[int, Knob("copies of the environment", least=1)]
GAELambda = Annotated[float, Knob("λ of generalised advantage estimation", least=0, most=1)]
Epochs = Annotated[int, Knob("passes over a rollout", least=0)]
Minibatches = Annotated[int, Knob("mini-batches of a pass", least=1)]
BaseRate = Annotated[float, Knob("learning rate of a cloned base", above=0)]
BaseFolder = Annotated[str | None, Knob("policy/ folder of a run whose policy is the base; none: it is cloned")]
BaseHidden = Annotated[tuple[int, ...], Knob("widths of the hidden layers of a cloned base", least=1)]
BaseUpdates = Annotated[int, Knob("updates by which a base is cloned", least=0)]
DenoisingSteps = Annotated[int, Knob("steps from noise to an action", least=1)]
GroupSize = Annotated[int, Knob("responses sampled to a prompt", least=1)]
KLCoef = Annotated[float, Knob("weight of the divergence from the reference", least=0)]
Beta = Annotated[float, Knob("β: how strongly the policy is held to its reference", above=0)]
ClipLow = Annotated[float, Knob("importance ratios are clipped this far below 1", least=0, infinite=True)]
ClipHigh = Annotated[float, Knob("importance ratios are clipped this far above 1", least=0, infinite=True)]
ClipRange = Annotated[float, Knob("importance ratios are clipped this far from 1", least=0, infinite=True)]
StreamWindow = Annotated[
    int, Knob("0: shuffled epochs; above, rows are a stream: batches of so many steps are shuffled", least=0)
]  # fmt: skip
Seed = Annotated[int, Knob("decides everything random", least=0)]
