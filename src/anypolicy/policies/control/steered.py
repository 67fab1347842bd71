"""A frozen policy made from noise, as a black box whose noise somebody else chooses."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.errors import InputError
from anypolicy.policies.control.generative import Generative, Kind

STEERABLE: tuple[Kind, ...] = ("flow", "ddim")
"""Kinds whose noise decides the action."""


def check_steering(kind: Kind, magnitude: float) -> None:
    """Refuses what cannot be steered."""
    if kind not in STEERABLE:
        raise InputError("base_policy", kind, "its noise must decide the action", choices=STEERABLE)
    if not magnitude > 0:
        raise InputError("magnitude", magnitude, "use a number above 0")


class Steered:
    """π(s, b u) of a policy that is never differentiated and never changed. Raises InputError for a policy whose
    action is not decided by its noise, or does not depend on it."""

    def __init__(self, policy: Generative, magnitude: float, observations: int):
        self.policy, self.magnitude = policy.requires_grad_(False), magnitude
        rng = torch.Generator().manual_seed(0)
        seen, w = torch.randn(64, observations, generator=rng), torch.randn(64, policy.actions, generator=rng)
        once = policy.decode(seen, w)
        if not torch.equal(once, policy.decode(seen, w)):
            raise InputError("base", type(policy).__name__, "the same noise must always give the same action")
        if torch.equal(once, policy.decode(seen, -w)):
            raise InputError("base", type(policy).__name__, "its noise changes nothing: there is nothing to steer")

    def __call__(
        self, observation: Float[Tensor, "batch observations"], u: Float[Tensor, "batch actions"]
    ) -> Float[Tensor, "batch actions"]:
        """The action of w = b u."""
        return self.policy.decode(observation, self.magnitude * u.detach())
