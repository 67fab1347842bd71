"""Frames and forces of an arm's tip: twists between tip and base, poses seen from where an episode began, impedance
control whose error is limited (arXiv 2401.16013, section 4.5).

A twist is (v, ω): linear velocity first. A pose is a position and a rotation matrix.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

FrameMap = Literal["blockdiag", "repo"]
"""How a twist is carried between frames: see `adjoint`."""


def adjoint(
    rotation: Float[Tensor, "3 3"], position: Float[Tensor, " 3"], frame_map: FrameMap = "blockdiag"
) -> Float[Tensor, "6 6"]:
    """What maps the tip's own (v, ω) to base axes: blockdiag(R, R). "repo" is [[R, 0], [[p]× R, R]] as in the authors'
    code; that order of blocks belongs to (ω, v) and, applied to (v, ω), depends on where the base stands."""
    out = torch.block_diag(rotation, rotation)
    if frame_map == "repo":
        out[3:, :3] = skew(position) @ rotation
    return out


def skew(p: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """[p]×, so that [p]× x = p × x."""
    x, y, z = p.unbind()
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)


def to_base(
    twist: Float[Tensor, " 6"], rotation: Float[Tensor, "3 3"], position: Float[Tensor, " 3"],
    frame_map: FrameMap = "blockdiag",
) -> Float[Tensor, " 6"]:  # fmt: skip
    """A twist in the tip's frame, in the base's."""
    return adjoint(rotation, position, frame_map) @ twist


def to_tip(
    twist: Float[Tensor, " 6"], rotation: Float[Tensor, "3 3"], position: Float[Tensor, " 3"],
    frame_map: FrameMap = "blockdiag",
) -> Float[Tensor, " 6"]:  # fmt: skip
    """The inverse of `to_base`: velocities that are observed, and commands of a person who took over."""
    return torch.linalg.solve(adjoint(rotation, position, frame_map), twist)


def relative_pose(
    start_position: Float[Tensor, " 3"], start_rotation: Float[Tensor, "3 3"],
    position: Float[Tensor, " 3"], rotation: Float[Tensor, "3 3"],
) -> tuple[Float[Tensor, " 3"], Float[Tensor, "3 3"]]:  # fmt: skip
    """T_{b0}⁻¹ T_{bt}: a pose seen from the pose at the beginning of the episode."""
    return start_rotation.T @ (position - start_position), start_rotation.T @ rotation


def rotation_of(vector: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """The rotation by |vector| about vector: the exponential of [vector]×."""
    return torch.linalg.matrix_exp(skew(vector))


def limited(error: Float[Tensor, "*axes"], limit: Float[Tensor, "*axes"] | float) -> Float[Tensor, "*axes"]:
    """An error clipped to [−Δ, Δ] on every axis. It belongs between the subtraction p − p_ref and the gains, in the
    fast loop: then the spring never pulls harder than K Δ, whatever a policy asks for."""
    bound = torch.as_tensor(limit, dtype=error.dtype)
    return torch.minimum(torch.maximum(error, -bound), bound)


def impedance(
    error: Float[Tensor, "*axes"], velocity: Float[Tensor, "*axes"], stiffness: float, damping: float,
    limit: Float[Tensor, "*axes"] | float | None = None, integral: Float[Tensor, "*axes"] | float = 0.0,
    integral_gain: float = 0.0,
) -> Float[Tensor, "*axes"]:  # fmt: skip
    """F = −K e − D v − K_i ∫e with e = p − p_ref, limited to ±Δ if a `limit` is given."""
    e = error if limit is None else limited(error, limit)
    return -stiffness * e - damping * velocity - integral_gain * integral


def leaky(
    integral: Float[Tensor, "*axes"], error: Float[Tensor, "*axes"], bound: float, leak: float = 1.0
) -> Float[Tensor, "*axes"]:
    """∫e ← clip(leak · ∫e + e, ±bound), zeroed by the caller at every new target."""
    return (leak * integral + error).clamp(-bound, bound)


def force_bound(stiffness: float, limit: float, damping: float, rate: float) -> float:
    """K Δ + 2 D Δ f: the most that spring and damper pull together at `rate` fast ticks a second, since between two
    ticks a limited reference moves 2 Δ at most."""
    return stiffness * limit + 2 * damping * limit * rate


def low_pass(reference: Float[Tensor, "*axes"], target: Float[Tensor, "*axes"], share: float) -> Float[Tensor, "*axes"]:
    """x_d ← f x_target + (1 − f) x_d."""
    return share * target + (1 - share) * reference
