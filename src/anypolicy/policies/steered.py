"""A frozen policy made from noise, as a black box whose noise somebody else chooses."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Adam

from anypolicy.data.replay import Replay
from anypolicy.errors import InputError
from anypolicy.policies.generative import Generative, Kind, clone

STEERABLE: tuple[Kind, ...] = ("flow", "ddim")
"""Kinds whose noise decides the action."""


def check_steering(kind: Kind, magnitude: float) -> None:
    """Refuses what cannot be steered."""
    if kind not in STEERABLE:
        raise InputError("base", kind, "its noise must decide the action", choices=STEERABLE)
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

    def fit(self, data: Replay | None, updates: int, batch: int, lr: float, generator: torch.Generator) -> None:
        """Behaviour cloning, once and before anything is steered; frozen again after it."""
        if not data:
            raise InputError("demos", None, "the base learns from demonstrations: give them, or a trained base")
        network = self.policy.network
        network.standardise(data.all().observation)
        parameters = [*network.online.requires_grad_(True).parameters()]
        clone(self.policy, Adam(parameters, lr=lr, fused=True), data, updates, batch, generator)
        self.policy.requires_grad_(False)
