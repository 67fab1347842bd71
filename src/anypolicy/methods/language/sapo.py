"""SAPO: soft adaptive policy optimisation.

Paper: arXiv 2511.20347, eq. 5 (objective), eq. 6 (gate), eq. 7–8 (gradient weight), section 5.1 (temperatures).
Idea: a smooth sigmoid of the token ratio in place of the hard clip; it fades faster where the advantage is negative.
Changes: loss (soft gate, no KL), optimiser (each batch in 4 mini-batches: at ratio 1 the gate is the plain gradient).
Silent: learning rate and group size of the ablation; those of GRPO. A = 0 uses tau_neg, which changes nothing.
Differs: verl clamps the log-ratio to ±20 as here; AReaL averages over tokens, not over sequences; a published snippet
multiplies the gate by the ratio again, which is not the paper's objective.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.stages.common import PolicyLoss
from anypolicy.stages.recipe import GroupRecipe


def soft_gate(ratio: Float[Tensor, "*shape"], tau: Float[Tensor, "*shape"] | float) -> Float[Tensor, "*shape"]:
    """f(r; τ) = (4/τ) · σ(τ (r − 1)) (eq. 6)."""
    return 4 / tau * torch.sigmoid(tau * (ratio - 1))


def gate_weight(ratio: Float[Tensor, "*shape"], tau: Float[Tensor, "*shape"] | float) -> Float[Tensor, "*shape"]:
    """w(r) = 4 p (1 − p), p = σ(τ (r − 1)): df/d logp = w r (eq. 7–8). 1 at r = 1, falling on both sides."""
    p = torch.sigmoid(tau * (ratio - 1))
    return 4 * p * (1 - p)


@dataclass(frozen=True)
class SoftGate:
    """f(r; τ) · A with τ = tau_pos where A > 0, else tau_neg."""

    tau_pos: float = 1.0
    tau_neg: float = 1.05

    def __post_init__(self) -> None:
        for name in ("tau_pos", "tau_neg"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "use a number above 0")

    def tau(self, advantage: Tensor) -> Tensor:
        return torch.where(advantage > 0, self.tau_pos, self.tau_neg).to(advantage.dtype)

    def __call__(self, ratio: Tensor, advantage: Tensor, logp: Tensor) -> Tensor:
        return soft_gate(ratio, self.tau(advantage)) * advantage

    def metrics(self, ratio: Tensor, advantage: Tensor) -> dict[str, Tensor]:
        weight = gate_weight(ratio, self.tau(advantage))
        return {"gate/weight": weight, "gate/faded": (weight < 0.5).to(weight.dtype), "gate/weight_min": weight}


@method(
    Card(
        title="Soft Adaptive Policy Optimization",
        paper="arXiv 2511.20347",
        year=2025,
        family="language",
        idea="weight each token by a sigmoid gate of its importance ratio, sharper for negative advantages",
        changes=("loss", "optimiser"),
        composes_with="every advantage, sampler and selection",
        claim="with an exact verifier and much reuse it ends above GRPO's clip and GSPO; with noise above no clip",
        example="anypolicy train sapo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.92 with seed 0",
        metrics={
            "gate/weight": "mean gate weight w of trained tokens (1 at ratio 1)",
            "gate/faded": "share of trained tokens with gate weight below 0.5",
            "gate/weight_min": "smallest gate weight",
        },
    )
)
def sapo(
    group_size: knobs.GroupSize = 8,
    tau_pos: Annotated[float, Knob("temperature of the gate where the advantage is positive", above=0)] = 1.0,
    tau_neg: Annotated[float, Knob("temperature of the gate where it is negative", above=0)] = 1.05,
) -> GroupRecipe:
    """−mean over sequences of token means of f(r; τ) · A."""
    base = grpo(group_size)
    return replace(base, loss=PolicyLoss(SoftGate(tau_pos, tau_neg)), optimiser=replace(base.optimiser, minibatches=4))
