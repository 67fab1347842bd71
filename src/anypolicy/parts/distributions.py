"""Distributions over actions, one row a state: a diagonal Gaussian, a categorical, and several categoricals that are
independent, with one interface."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypolicy.parts.noise import normal_like


@dataclass(frozen=True)
class Gaussian:
    """N(m, diag σ²) over a box, not squashed."""

    mean: Float[Tensor, "*batch actions"]
    log_std: Float[Tensor, "*batch actions"]

    def sample(self, generator: torch.Generator) -> Float[Tensor, "*batch actions"]:
        """m + σ ε."""
        return self.mean + self.log_std.exp() * normal_like(self.mean, generator)

    def mode(self) -> Float[Tensor, "*batch actions"]:
        """m."""
        return self.mean

    def logp(self, action: Float[Tensor, "*batch actions"]) -> Float[Tensor, "*batch"]:
        """Σ_j −((a − m)/σ)²/2 − ln σ − ½ ln 2π."""
        z = (action - self.mean) * torch.exp(-self.log_std)
        return (-z.square() / 2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Σ_j ln σ + ½ ln 2πe."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def divergence(self, other: Gaussian) -> Float[Tensor, "*batch actions"]:
        """KL(this ‖ other), one number for every action: ln(s/σ) + (σ² + (m − μ)²)/(2 s²) − ½."""
        gap, s = self.log_std - other.log_std, torch.exp(-other.log_std)
        return ((2 * gap).exp() + ((self.mean - other.mean) * s).square()) / 2 - gap - 0.5

    def select(self, rows: Int[Tensor, " rows"]) -> Gaussian:
        """The given states."""
        return Gaussian(self.mean[rows], self.log_std[rows])


@dataclass(frozen=True)
class Categorical:
    """Choices with log-probabilities ln p. An action is its index, a float in a column."""

    log_probabilities: Float[Tensor, "*batch choices"]

    def sample(self, generator: torch.Generator) -> Float[Tensor, "*batch 1"]:
        """An index drawn from p."""
        p = self.log_probabilities.exp()
        drawn = torch.multinomial(p.view(-1, p.shape[-1]).cpu(), 1, generator=generator)
        return drawn.view(*p.shape[:-1], 1).to(p.device, p.dtype)

    def mode(self) -> Float[Tensor, "*batch 1"]:
        """The likeliest choice."""
        return self.log_probabilities.argmax(-1, keepdim=True).to(self.log_probabilities.dtype)

    def logp(self, action: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch"]:
        """ln p of the index."""
        return self.log_probabilities.gather(-1, action.long()).squeeze(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """−Σ p ln p."""
        return -(self.log_probabilities.exp() * self.log_probabilities).sum(-1)

    def divergence(self, other: Categorical) -> Float[Tensor, "*batch 1"]:
        """KL(this ‖ other) = Σ p ln(p/q)."""
        gap = self.log_probabilities - other.log_probabilities
        return (self.log_probabilities.exp() * gap).sum(-1, keepdim=True)

    def select(self, rows: Int[Tensor, " rows"]) -> Categorical:
        """The given states."""
        return Categorical(self.log_probabilities[rows])


@dataclass(frozen=True)
class Factored:
    """Several choices at once, independent of one another given the state: π(a|s) = Π_j p_j(a_j). An action is the
    index of each, a float in its column."""

    parts: tuple[Categorical, ...]

    def sample(self, generator: torch.Generator) -> Float[Tensor, "*batch factors"]:
        """An index drawn from every p_j, one factor after the other."""
        return torch.cat([p.sample(generator) for p in self.parts], -1)

    def mode(self) -> Float[Tensor, "*batch factors"]:
        """The likeliest choice of each, which is the likeliest of all combinations."""
        return torch.cat([p.mode() for p in self.parts], -1)

    def logp(self, action: Float[Tensor, "*batch factors"]) -> Float[Tensor, "*batch"]:
        """Σ_j ln p_j(a_j)."""
        each = [p.logp(a) for p, a in zip(self.parts, action.split(1, -1), strict=True)]
        return torch.stack(each, -1).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Σ_j H(p_j)."""
        return torch.stack([p.entropy() for p in self.parts], -1).sum(-1)

    def divergence(self, other: Factored) -> Float[Tensor, "*batch factors"]:
        """KL(p_j ‖ q_j) of every factor, whose sum is that of the whole."""
        return torch.cat([p.divergence(q) for p, q in zip(self.parts, other.parts, strict=True)], -1)

    def select(self, rows: Int[Tensor, " rows"]) -> Factored:
        """The given states."""
        return Factored(tuple(p.select(rows) for p in self.parts))
