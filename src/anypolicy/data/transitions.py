"""What a controller learns from: transitions, packed one to a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.errors import InputError


@dataclass(frozen=True)
class Transitions:
    """(s, a, R, s′, terminated, truncated, γᵏ), one to a row. `action` is the policy's, in [−1, 1] (or the index of a
    discrete one); `next_observation` is what the environment really showed last, never the first observation of the
    next episode; `terminated` and `truncated` (0 or 1) are never one flag: only the first ends the return. `reward` is
    the discounted sum over the k steps up to s′, `discount` is γᵏ."""

    observation: Float[Tensor, "batch observations"]
    action: Float[Tensor, "batch actions"]
    reward: Float[Tensor, " batch"]
    next_observation: Float[Tensor, "batch observations"]
    terminated: Float[Tensor, " batch"]
    truncated: Float[Tensor, " batch"]
    discount: Float[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def continues(self) -> Float[Tensor, " batch"]:
        """γᵏ (1 − terminated): what multiplies the value of s′. A truncated episode goes on."""
        return self.discount * (1 - self.terminated)

    def rows(self) -> Float[Tensor, "batch width"]:
        """All fields side by side. Raises InputError where a number is not finite, or a flag neither 0 nor 1."""
        flags = torch.stack([self.reward, self.terminated, self.truncated, self.discount], 1)
        rows = torch.cat([self.observation, self.action, self.next_observation, flags], 1)
        if not rows.isfinite().all():
            parts = {"observation": self.observation, "action": self.action, "reward": self.reward,
                     "next observation": self.next_observation}  # fmt: skip
            name = next((k for k, v in parts.items() if not v.isfinite().all()), "discount")
            raise InputError(name, "NaN or infinite", "the environment must give finite numbers: mend or clip them")
        if not (ended := flags[:, 1:3]).mul(ended).equal(ended):
            raise InputError("terminated, truncated", "another number", "a flag is 0 or 1")
        return rows

    def select(self, index: Tensor) -> Transitions:
        """The given rows."""
        return self.each(lambda x: x[index])

    def each(self, change: Callable[[Tensor], Tensor]) -> Transitions:
        """Every field changed in the same way."""
        return Transitions(*(change(getattr(self, name)) for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> Transitions:
        """All on a device."""
        return self if self.reward.device == device else self.each(lambda x: x.to(device))

    def drawn(self, n: int, generator: torch.Generator) -> Transitions:
        """n rows, uniformly with replacement; none if there are none."""
        return self.select(torch.randint(len(self), (n,), generator=generator)) if len(self) else self


def width(observations: int, actions: int) -> int:
    """Columns of a packed row."""
    return 2 * observations + actions + 4


def unpack(rows: Float[Tensor, "batch width"], observations: int, actions: int) -> Transitions:
    """Packed rows as transitions; every field is a view, unknown to autograd: no gradient flows into a replay."""
    o, a, n, flags = rows.unsafe_split_with_sizes([observations, actions, observations, 4], -1)
    reward, terminated, truncated, discount = flags.unbind(-1)
    return Transitions(o, a, reward, n, terminated, truncated, discount)


def concatenate(parts: list[Transitions]) -> Transitions:
    """One after the other."""
    return Transitions(*(torch.cat([getattr(p, name) for p in parts]) for name in Transitions.__dataclass_fields__))
