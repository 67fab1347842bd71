"""A classifier of success: trained once from examples, or along with a policy (VICE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, Optimizer

from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.parts.noise import indices, permutation, uniform
from anypolicy.parts.optimisers import make_optimiser
from anypolicy.parts.success import (
    classifier_loss,
    gradient_penalty,
    log_reward,
    mixup_loss,
    smoothed,
    success_reward,
)
from anypolicy.policies.control.mlp import matrix
from anypolicy.policies.control.pictures import Perception, Shape


class SuccessClassifier(nn.Module):
    """Encoder → Linear 256 → dropout → LayerNorm → ReLU → Linear 1: the logit of success."""

    def __init__(
        self, observations: int, images: Sequence[Shape], generator: torch.Generator, *, hidden: int = 256,
        dropout: float = 0.1, channels: Sequence[int] = (32, 64, 128, 256),
    ):  # fmt: skip
        super().__init__()
        self.perception, self.dropout = Perception(observations, images, generator, channels=channels), dropout
        self.first = nn.Parameter(matrix(self.perception.width, hidden, generator, "xavier", None))
        self.bias, self.norm = nn.Parameter(torch.zeros(hidden)), nn.LayerNorm(hidden)
        self.last, self.offset = (
            nn.Parameter(matrix(hidden, 1, generator, "xavier", None)),
            nn.Parameter(torch.zeros(1)),
        )

    def forward(self, observation: Float[Tensor, "batch observations"]) -> Float[Tensor, " batch"]:
        return self.head(self.perception(observation))

    def head(
        self, features: Float[Tensor, "batch features"], generator: torch.Generator | None = None
    ) -> Float[Tensor, " batch"]:
        """The logit of features; with a generator hidden units are dropped."""
        x = torch.addmm(self.bias, features, self.first)
        if generator is not None and self.dropout:
            x = x * (uniform(x.shape, generator, x.device) >= self.dropout) / (1 - self.dropout)
        return (functional.relu(self.norm(x)) @ self.last + self.offset).squeeze(-1)


def fit(
    net: SuccessClassifier, successes: Float[Tensor, "positives observations"],
    failures: Float[Tensor, "negatives observations"], generator: torch.Generator, *, updates: int = 100,
    batch: int = 256, lr: float = 1e-4,
) -> list[float]:  # fmt: skip
    """Train on observations that are successes and others: half of each in every batch, pictures shifted, binary
    cross-entropy; the losses."""
    for name, rows in (("successes", successes), ("failures", failures)):
        if not len(rows):
            raise InputError(name, 0, "a classifier needs at least one example of each kind")
    optimiser, losses = make_optimiser(Adam, net.parameters(), lr=lr), list[float]()
    half = batch // 2
    label = halves(half, successes.device)
    for _ in range(updates):
        drawn = [x[indices(len(x), (half,), generator, x.device)] for x in (successes, failures)]
        seen = net.perception.shifted(torch.cat(drawn), generator)
        loss = classifier_loss(net.head(net.perception(seen), generator), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def halves(n: int, device: torch.device) -> Float[Tensor, " both"]:
    """n ones, then n zeros."""
    return torch.cat([torch.ones(n, device=device), torch.zeros(n, device=device)])


def vice_update(
    net: SuccessClassifier, optimiser: Optimizer, goals: Float[Tensor, "half observations"],
    visited: Float[Tensor, "half observations"], generator: torch.Generator, *, penalty: float = 10.0,
) -> float:  # fmt: skip
    """One step of VICE: goal examples against as many of all states visited, both also shifted; smoothed labels,
    mix-up of features with λ ~ U(0, 1) = Beta(1, 1), and a gradient penalty between the two halves; the loss."""
    half = len(goals)
    seen = torch.cat([goals, visited])
    features = net.perception(torch.cat([seen, net.perception.shifted(seen, generator)]))
    label = smoothed(halves(half, seen.device).repeat(2))
    share, order = uniform((), generator, seen.device), permutation(4 * half, generator, seen.device)
    mixed = share * features + (1 - share) * features[order]
    loss = mixup_loss(net.head(mixed, generator), label, label[order], share)
    between = uniform((half, 1), generator, seen.device)
    point = between * features[:half] + (1 - between) * features[half : 2 * half]
    point = point if point.requires_grad else point.requires_grad_()
    slope = torch.autograd.grad(net.head(point).sum(), point, create_graph=True)[0]
    loss = loss + penalty * gradient_penalty(slope)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return float(loss.detach())


class LearnedReward(nn.Module):
    """The reward of a classifier, and what it needs to be learnt: `kind` "classifier" (1 at success, which ends the
    return), "log-classifier" (ln σ, which never does: a sum of negative numbers would gain by ending) or "vice"
    (as "classifier", refined along with the policy; `share` of a batch, its first rows, are demonstrations)."""

    def __init__(self, kind: str, classifier: SuccessClassifier, observations: int, *, pool: int = 256,
                 share: float = 0.5, lr: float = 3e-4):  # fmt: skip
        super().__init__()
        self.kind, self.share, self.classifier = kind, share, classifier
        self.goals: Tensor
        self.register_buffer("goals", torch.zeros(pool, observations))
        self.optimiser = make_optimiser(Adam, classifier.parameters(), lr=lr)

    def prepare(self, offline: Transitions, generator: torch.Generator) -> None:
        """Train the classifier: the last states of demonstrations that ended well against all others."""
        won = offline.terminated > 0
        if not won.any():
            raise InputError("demos", "no episode that terminates", "a classifier learns from ends in success")
        successes = offline.next_observation[won]
        fit(self.classifier, successes, offline.next_observation[~won], generator)
        self.goals.copy_(successes[indices(len(successes), (len(self.goals),), generator, successes.device)])

    def refine(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """The step of VICE that belongs to an update, if any: goals against all states visited, not last ones only."""
        if self.kind != "vice":
            return {}
        visited = batch.next_observation[int(self.share * len(batch)) :]
        goals = self.goals[indices(len(self.goals), (len(visited),), generator, self.goals.device)]
        return {"loss/classifier": vice_update(self.classifier, self.optimiser, goals, visited, generator)}

    @torch.no_grad()
    def forward(self, batch: Transitions) -> Transitions:
        """The batch with the rewards of the classifier as it is now; those that were stored do not matter."""
        logit = self.classifier(batch.next_observation)
        if self.kind == "log-classifier":
            return replace(batch, reward=log_reward(logit), terminated=torch.zeros_like(logit))
        success = success_reward(logit)
        return replace(batch, reward=success, terminated=torch.maximum(batch.terminated, success))
