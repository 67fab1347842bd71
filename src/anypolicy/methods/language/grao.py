"""GRAO: group relative alignment optimisation, imitation and exploration weighed against each other.

Paper: arXiv 2508.07750, eq. 3 (objective), eq. 4 (advantages).
Idea: every response is compared with a reference answer. Reinforce the better ones, imitate the reference while the own
responses lose to it, and move probability between each response and the reference by that response's advantage.
Changes: rollout (the reference stands beside the group), reward (+1, 0, −1: better, equal, worse than the reference),
advantage (of responses and reference), loss (three terms of mean token log-probabilities), optimiser (AdamW 1e-6,
weight decay 0.01).
Silent: whether mean and std run over the responses alone or over the reference too; the text says both. With
`stats="outputs+reference"` a group that loses altogether imitates (A_y = √G), which is the stated purpose; with
"outputs" std is 0 there, so A_y is clipped to ±5. The limit of the gradient norm is not said; here 1. A prompt without
a reference keeps its absolute rewards and has no part of the reference. Their judge is a language model; here any
reward of the task, or your own, applied to the reference as well.
Differs: no code was published. The objective has no importance ratio; `reuse_ratio` weighs the gradient by it for
batches that are used more than once.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.data.records import Group, Prompt
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.parts.advantages import group_index, group_normalise, group_sum
from anypolicy.parts.reduce import reduce
from anypolicy.parts.surrogate import token_ratio
from anypolicy.policies.language.base import Scores
from anypolicy.stages.common import GroupRollout, NoClip, PolicyLoss, VerifierReward
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.recipe import GroupRecipe, LossTerms, Reward, World
from anypolicy.stages.targets import REFERENCE, reference_target
from anypolicy.tasks.language.base import Task

Stats = Literal["outputs+reference", "outputs"]


@dataclass(frozen=True)
class ReferenceRollout:
    """Ordinary groups, each with its prompt's reference response as a target."""

    needs, gives = Needs(), Gives()
    group_size: int = 8

    def check_task(self, task: Task) -> None:
        if all(p.reference is None for p in task.train):
            raise InputError("task", task.name, f"none of its prompts has a reference response: {REFERENCE}")

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        groups = GroupRollout(self.group_size)(world, prompts, generator)
        for group in groups:
            if group.prompt.reference is not None:
                group.trajectories.append(reference_target(world.policy, group.prompt))
        return groups


@dataclass(frozen=True)
class ComparedReward:
    """R(o, y) = sign(score(o) − score(y)), the scores by another reward that sees responses and reference as one
    group. Prompts without a reference keep the scores."""

    score: Reward = field(default_factory=VerifierReward)

    @property
    def needs(self) -> Needs:
        return self.score.needs

    def __call__(self, world: World, groups: list[Group]) -> None:
        for group in groups:
            known = group.prompt.reference is not None
            reference = [reference_target(world.policy, group.prompt)] if known else []
            self.score(world, [replace(group, trajectories=[*group.trajectories, *reference])])
            for t in group.trajectories if known else []:
                t.reward = float((t.reward > reference[0].reward) - (t.reward < reference[0].reward))
                t.rewards = {"comparison": t.reward}


@dataclass(frozen=True)
class ComparedAdvantage:
    """A = (R − mean) / (population std + eps) of responses and, with R(y, y) = 0, of the reference (eq. 4). Responses
    without a token are left out."""

    stats: Stats = "outputs+reference"
    eps: float = 1e-6
    needs = Needs(responses=2)
    limit: float = 5.0

    def __call__(self, batch: Batch) -> Float[Tensor, " trajectories"]:
        sampled = batch.sampled
        reward = torch.where(sampled & (batch.length > 0), batch.reward, torch.nan)
        if self.stats == "outputs+reference":
            reward = torch.where(sampled, reward, 0)
            return group_normalise(reward, batch.group_id, std="population", eps=self.eps)
        own = group_normalise(reward, batch.group_id, std="population", eps=self.eps)
        group, real = group_index(batch.group_id), ~reward.isnan()
        n = group_sum(real.to(reward.dtype), group).clamp(min=1)
        mean = group_sum(reward.nan_to_num(), group) / n
        spread = torch.sqrt(group_sum(torch.where(real, reward - mean, 0).square(), group) / n)
        return torch.where(sampled, own, (-mean / (spread + self.eps)).clamp(-self.limit, self.limit))


@dataclass(frozen=True)
class AlignmentLoss:
    """−mean over prompts of [ mean_i A_i L(o_i) + β A_y L(y) + λ mean_i A_i (L(o_i) − L(y)) ], L the mean token
    log-probability (eq. 3)."""

    beta: float = 0.5
    lam: float = 0.6
    reuse_ratio: bool = False
    needs = Needs(whole_groups=True)

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        assert batch.advantage is not None
        rows = (batch.mask & (batch.advantage != 0)).any(1) & (batch.weight != 0)
        if batch.target is None:
            return rows
        own = (batch.target & (batch.advantage != 0)).any(1)
        group = group_index(batch.group_id[batch.trajectory])
        moved = group_sum((rows | own).to(batch.weight.dtype), group) > 0
        return rows | (batch.target.any(1) & moved & (batch.weight != 0))

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms:
        assert batch.advantage is not None
        totals, advantage, weight = batch.counted(), batch.advantage, batch.weight[:, None]
        ratio = token_ratio(scores.logp, batch.logp_old).detach() if self.reuse_ratio else 1.0
        own = weight * ratio * advantage * scores.logp
        explored = reduce(own, batch.mask, "group-mean-token-mean", totals=totals)
        terms, aligned = {"exploration": -explored}, explored
        if batch.target is not None:
            theirs, counts = weight * scores.logp, totals.target
            imitated = reduce(advantage * theirs, batch.target, "group-mean-token-mean", totals=counts)
            shifted = mean_advantage(batch)[:, None] * theirs
            terms["imitation"] = -self.beta * imitated
            aligned = explored - reduce(shifted, batch.target, "group-mean-token-mean", totals=counts)
        metrics = PolicyLoss(NoClip())(scores, batch).metrics if batch.mask.any() else {}
        return LossTerms(terms | {"alignment": -self.lam * aligned}, metrics)


def mean_advantage(batch: Batch) -> Float[Tensor, " rows"]:
    """mean_i A_i of every row's group, over its responses with a token; the batch holds whole groups, rows whose A is 0
    aside."""
    totals = batch.counted()
    assert batch.advantage is not None and totals.group_sequences is not None
    each = torch.where(batch.mask, batch.advantage, 0).sum(1) / totals.sequence_tokens.clamp(min=1)
    return group_sum(each, group_index(batch.group_id[batch.trajectory])) / totals.group_sequences.clamp(min=1)


@method(
    Card(
        title="Group Relative Alignment Optimization",
        paper="arXiv 2508.07750",
        year=2025,
        family="language",
        idea="reinforce responses that beat a reference answer, imitate the reference while they lose to it",
        changes=("rollout", "reward", "advantage", "loss", "optimiser"),
        composes_with="samplers, selections; its four stages belong together",
        claim="it passes the reference's score, which SFT cannot, in a third of GRPO's steps",
        example="anypolicy train grao --task tabular-lock:references=true --steps 60",
        look_at="probe/success: 0.23 to 0.94 with seed 0",
    )
)
def grao(
    group_size: knobs.GroupSize = 8,
    beta: Annotated[float, Knob("weight of the imitation term", least=0)] = 0.5,
    lam: Annotated[float, Knob("weight of the alignment term", least=0)] = 0.6,
    stats: Annotated[
        Stats, Knob("mean and deviation of rewards: with or without the reference response")
    ] = "outputs+reference",
    reuse_ratio: Annotated[bool, Knob("the importance ratio stands in all terms")] = False,
) -> GroupRecipe:
    """Comparison with the task's references, three terms, no clip, no KL."""
    base = grpo(group_size)
    return replace(
        base,
        rollout=ReferenceRollout(group_size),
        reward=ComparedReward(),
        advantage=ComparedAdvantage(stats),
        loss=AlignmentLoss(beta, lam, reuse_ratio),
        optimiser=replace(base.optimiser, lr=1e-6, weight_decay=0.01),
    )
