"""Linear mixture models of dynamics: P(t|s, a) = Σ_i φ_i(t|s, a) θ_i with known φ and unknown θ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from anypolicy.errors import InputError
from anypolicy.parts.mdp import check_kernel, simplex


def norm(x: Float[ndarray, "*batch d"], inverse: Float[ndarray, "*some d d"]) -> Float[ndarray, "*batch"]:
    """‖x‖_{Σ⁻¹}, of Σ⁻¹."""
    return np.sqrt(np.maximum((np.einsum("...i,...ij->...j", x, inverse) * x).sum(-1), 0.0))


@dataclass(frozen=True)
class LinearMixtureModel:
    """`phi[i, s, a, t]`. With `simplex`, √d·φ_i are candidate kernels and θ = √d·w with weights w that sum to 1. The
    scale is that of the theory: ‖φ_V(s, a)‖₂ ≤ 1 for every V with values in [0, 1], ‖θ‖₂ ≤ `bound` (√d by default)."""

    phi: Float[ndarray, "d states actions states"]
    simplex: bool = True
    bound: float | None = None

    def __post_init__(self) -> None:
        if self.phi.ndim != 4 or self.phi.shape[1] != self.phi.shape[3] or not self.phi.size:
            raise InputError("phi", self.phi.shape, "its shape must be [d, states, actions, states]")
        if self.simplex:
            check_kernel(self.phi * math.sqrt(self.d), "√d·phi")
            return
        for name, part in (("largest", np.maximum(self.phi, 0)), ("smallest", np.minimum(self.phi, 0))):
            # V = 1 where φ_i has this sign is one of the V that the norm is bounded for
            length = np.linalg.norm(np.einsum("jsat,isat->ijsa", self.phi, (part != 0) * 1.0), axis=1).max(0)
            bad = np.argwhere(~(length <= 1 + 1e-8))
            if len(bad):
                s, a = bad[0]
                raise InputError(f"phi[state {s}, action {a}]", float(length[s, a]),
                                 f"‖φ_V‖ must be at most 1 for V in [0, 1], also for that of the {name} values: "
                                 "divide φ and multiply the weights")  # fmt: skip

    @classmethod
    def of_kernels(cls, kernels: Float[ndarray, "d states actions states"]) -> LinearMixtureModel:
        """A mixture of d kernels: φ = P_i/√d."""
        kernels = np.asarray(kernels, dtype=np.float64)
        if kernels.ndim != 4:
            raise InputError("kernels", kernels.shape, "their shape must be [d, states, actions, states]")
        check_kernel(kernels, "kernels")
        return cls(kernels / math.sqrt(len(kernels)))

    @property
    def d(self) -> int:
        return self.phi.shape[0]

    @property
    def states(self) -> int:
        return self.phi.shape[1]

    @property
    def actions(self) -> int:
        return self.phi.shape[2]

    @property
    def theta_bound(self) -> float:
        """B."""
        return math.sqrt(self.d) if self.bound is None else self.bound

    def phi_v(self, values: Float[ndarray, "*batch states"]) -> Float[ndarray, "*batch states actions d"]:
        """φ_V(s, a) = Σ_t φ(t|s, a) V(t)."""
        d, states, actions, _ = self.phi.shape
        flat = self.phi.transpose(1, 2, 0, 3).reshape(states * actions * d, states)
        return (values @ flat.T).reshape(*values.shape[:-1], states, actions, d)

    def project(self, theta: Float[ndarray, "*batch d"]) -> Float[ndarray, "*batch d"]:
        """θ whose weights lie on the simplex; as it is where φ are no kernels."""
        return math.sqrt(self.d) * simplex(theta / math.sqrt(self.d)) if self.simplex else theta

    def kernel(self, theta: Float[ndarray, " d"]) -> Float[ndarray, "states actions states"]:
        """Σ_i φ_i θ_i: rows may be no distributions where θ is an estimate that was not projected."""
        return np.einsum("isat,i->sat", self.phi, theta)

    def theta_of(self, kernel: Float[ndarray, "states actions states"]) -> Float[ndarray, " d"]:
        """The θ that gives a kernel, or an error that names the row farthest from every mixture."""
        flat = self.phi.reshape(self.d, -1).T
        theta = np.linalg.lstsq(flat, kernel.ravel(), rcond=None)[0]
        gap = abs(self.kernel(theta) - kernel).max(-1)
        if not gap.max() <= 1e-8:
            s, a = np.unravel_index(int(np.nanargmax(gap)), gap.shape)
            raise InputError(f"kernel[state {s}, action {a}]", kernel[s, a].tolist(),
                             f"no mixture of the features gives this row: off by {gap[s, a]:.3g}")  # fmt: skip
        return theta

    @property
    def identified(self) -> bool:
        """Whether different θ are different dynamics: the φ_i are linearly independent."""
        return bool(np.linalg.matrix_rank(self.phi.reshape(self.d, -1)) == self.d)
