"""Per-token estimators of the divergence to a reference policy."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.errors import InputError

Estimator = Literal["k1", "k2", "k3", "k3+"]


def kl(
    logp: Float[Tensor, "*shape"], logp_ref: Float[Tensor, "*shape"], estimator: Estimator
) -> Float[Tensor, "*shape"]:
    """Estimate KL(π ‖ π_ref) on sampled tokens, d = logp − logp_ref, in nats.

    - k1: d. Unbiased value; as an on-policy loss its gradient has zero mean, so use it inside the reward
    - k2: d²/2. Its expected on-policy gradient is that of KL(π ‖ π_ref)
    - k3: exp(−d) + d − 1 ≥ 0. Its expected on-policy gradient is that of KL(π_ref ‖ π)
    - k3+: the value of k3 with the gradient of k2 (straight-through)
    """
    d = logp - logp_ref
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.exp(-d.clamp(-20, 20)) + d - 1
    if estimator == "k3+":
        k2 = d.square() / 2
        return k2 - k2.detach() + kl(logp, logp_ref, "k3").detach()
    raise InputError("kl", estimator, f"use one of {', '.join(get_args(Estimator))}", choices=get_args(Estimator))
