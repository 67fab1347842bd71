"""RSO: pairs among samples of the optimal policy, which statistical rejection makes of samples of the first policy.

Paper: arXiv 2309.06657 (ICLR 2024): the sampler (algorithm 1, theorem 1), rewards from comparisons (eq. 7), losses
(eq. 8 to 10).
Idea: the optimum of reward and divergence is known up to a constant, π_sft exp(r/β)/Z; samples of it, and not of
whoever wrote the pairs, are what its maximum-likelihood fit should see. Rejection makes them without training anything.
Changes: rollout (candidates of the reference policy), selection (rejection sampling, pairs of what is accepted), loss,
optimiser.
Silent: fewer different candidates than are to be accepted; here all of them are, and `rso/short` counts it. Equal
rewards make no pair. Where M of the rejection sampler comes from: as in the paper's listing, the candidates' maximum.
Differs: candidates are drawn anew whenever a prompt comes up, the paper draws them once. Its pairwise reward model is
here any reward that compares a group's responses (`parts/rejection.py` has eq. 7); one that scores single responses
differs from eq. 7 by a constant, which changes nothing. The paper samples at temperature 0.7 among the 40 likeliest
tokens (`--temperature 0.7 --top-k 40`) and fits with Adafactor; here AdamW, `lr` 1e-5 as there. `direct` learns from
recorded responses with scores, `sft` from samples without rejection: DPO is sigmoid-norm with `direct` and γ = β, SLiC
hinge with `direct` or `sft`. Log-probabilities are sums over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.data.records import Group, Prompt
from anypolicy.engines.base import ask
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.preference import CONFLICTS
from anypolicy.methods.preference.dpo import Sigmoid, recorded_pairs
from anypolicy.methods.preference.online_dpo import sampled_pairs
from anypolicy.parts.pairing import Pairing
from anypolicy.parts.preference import hinge
from anypolicy.parts.rejection import acceptance, rejection_sample
from anypolicy.runs.seeds import generator
from anypolicy.stages.common import group_of
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.pairs import MakePairs, Objective, Pair, PairLoss, check_positive, contents
from anypolicy.stages.recipe import Choice, GroupRecipe, World

Source = Literal["rso", "sft", "direct"]
LossName = Literal["sigmoid-norm", "hinge-norm", "hinge"]


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 − γh) of the margin to the reference, or without one (`normalised` False) of ℓ_w − ℓ_l."""

    gamma: float = 0.05
    normalised: bool = True

    @property
    def needs(self) -> Needs:
        return Needs(reference=self.normalised)

    def __post_init__(self) -> None:
        check_positive(gamma=self.gamma)

    def __call__(self, pair: Pair) -> Float[Tensor, " pairs"]:
        return hinge(pair.margin if self.normalised else pair.chosen.logp - pair.rejected.logp, self.gamma)


@dataclass(frozen=True)
class ReferenceRollout:
    """`group_size` responses of the reference policy to every prompt."""

    needs, gives = Needs(reference=True), Gives()
    group_size: int = 64

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        assert world.reference is not None
        requests = [ask(world.policy, prompt, self.group_size) for prompt in prompts]
        sampled = world.reference.generate(requests, world.sampling, generator)
        return [group_of(p, answers) for p, answers in zip(prompts, sampled, strict=True)]


def candidates(batch: Batch) -> dict[int, list[int]]:
    """The different responses of every group that have a reward, the first of equal ones."""
    said, group, seen = contents(batch), batch.group_id.tolist(), set[tuple[int, bytes]]()
    out: dict[int, list[int]] = {}
    present = torch.unique(batch.trajectory[batch.chosen.any(1)])
    for t in present[~batch.reward[present].isnan()].tolist():
        if (group[t], said[t]) not in seen:
            seen.add((group[t], said[t]))
            out.setdefault(group[t], []).append(t)
    return out


@dataclass(frozen=True)
class RejectionPairs:
    """Of every group up to `accepted` responses by rejection sampling, the others are dropped; and pairs among those
    that are left, in an order drawn anew."""

    needs = Needs(advantage=False, responses=2)
    max_rounds = 1
    beta: float = 0.5
    accepted: int = 8
    pairing: Pairing = "first_round"

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise InputError("beta", self.beta, "use 0 (the best candidates) or more")
        if self.accepted < 2:
            raise InputError("accepted", self.accepted, "a pair needs at least 2")

    def __call__(self, batch: Batch, target: int) -> Choice:
        kept, rates, found = torch.zeros(len(batch.reward), dtype=torch.bool), list[float](), candidates(batch)
        for g, own in found.items():
            rng, rewards = generator(batch.seed, "rejection", g), batch.reward[own].double().tolist()
            chosen = rejection_sample(
                rewards, self.beta, self.accepted, lambda rng=rng: float(torch.rand((), generator=rng))
            )
            kept[[own[i] for i in chosen]] = True
            rates.append(sum(acceptance(rewards, self.beta)) / len(own) if self.beta else 1 / len(own))
        only = replace(batch, reward=batch.reward.where(kept, torch.nan))
        choice, n = MakePairs(self.pairing)(only, target), max(len(found), 1)
        log = {"pairs/equal": float((~batch.reward.isnan()).sum()) - sum(map(len, found.values())),
               "rso/rate": sum(rates) / n, "rso/accepted": float(kept.sum()) / n,
               "rso/short": sum(len(own) < self.accepted for own in found.values()) / n}  # fmt: skip
        mask = kept[batch.trajectory][:, None].expand_as(batch.mask)
        return choice._replace(mask=mask, metrics={**choice.metrics, **log})


def loss_of(name: LossName, gamma: float) -> Objective:
    """One of the three losses, γ their scale."""
    return Sigmoid(gamma) if name == "sigmoid-norm" else Hinge(gamma, name == "hinge-norm")


@method(
    Card(
        title="Statistical rejection sampling improves preference optimization",
        paper="arXiv 2309.06657",
        year=2023,
        family="preference",
        idea="reject samples of the first policy until what is left is the optimal policy's; learn from pairs of them",
        changes=("rollout", "selection", "loss", "optimiser"),
        composes_with="samplers, rewards, other losses of pairs; with a reference that moves it goes in rounds",
        claim="pairs by rejection sampling end above pairs of plain samples, those above pairs of unknown origin",
        example="anypolicy train rso --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.87 with seed 0",
        conflicts=CONFLICTS,
        metrics={
            "rso/rate": "mean over groups of exp((r − max r)/β), the share of candidates that a first round accepts",
            "rso/accepted": "mean number of responses that are accepted in a group",
            "rso/short": "share of groups with fewer different candidates than are to be accepted",
        },
    )
)
def rso(
    beta: Annotated[
        float, Knob("β of the policy that responses are drawn from; ∞: the reference itself", above=0, infinite=True)
    ] = 0.5,
    gamma: Annotated[float, Knob("scale of log-ratios in the loss", above=0)] = 0.05,
    loss: Annotated[LossName, Knob("loss of a pair")] = "sigmoid-norm",
    source: Annotated[Source, Knob("responses: by rejection sampling, or as sampled")] = "rso",
    samples: Annotated[int, Knob("random draws", least=1)] = 64,
    accepted: Annotated[int, Knob("responses kept of a prompt", least=1)] = 8,
    pairing: Annotated[Pairing, Knob("which responses of a prompt are compared")] = "first_round",
) -> GroupRecipe:
    """8 of 64 candidates accepted at β = 0.5, four pairs a prompt, logistic loss with γ = 0.05."""
    term = PairLoss(loss_of(loss, gamma))
    if source == "direct":
        return recorded_pairs(term, pairing, 0)
    selection = RejectionPairs(beta, accepted, pairing)
    recipe = sampled_pairs(term, samples, pairing)
    return replace(
        recipe, rollout=ReferenceRollout(samples if source == "rso" else accepted),
        selection=selection if source == "rso" else MakePairs(pairing),
        optimiser=replace(recipe.optimiser, lr=1e-5),
    )  # fmt: skip
