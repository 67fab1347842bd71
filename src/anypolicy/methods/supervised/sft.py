"""SFT: supervised fine-tuning, the baseline of the supervised family.

Paper: none of its own; maximum likelihood of reference responses, as in arXiv 2203.02155, section 3.5.
Idea: make the reference response of every prompt more likely, token by token.
Changes: rollout (one reference response a prompt, nothing is sampled), reward and advantage (none), loss.
Silent: the aggregation; here every target token of the batch counts the same (`token-mean`).
Differs: TRL averages over the tokens of each micro-batch, so its result depends on the split; here the denominator is
that of the whole optimiser batch.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.data.records import Group, Prompt
from anypolicy.knobs import Knob
from anypolicy.parts.reduce import Mode
from anypolicy.policies.language.base import Scores
from anypolicy.stages.common import KeepAll, UniformSampler
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.recipe import GroupRecipe, LossTerms, Optimiser, World
from anypolicy.stages.targets import check_references, reduce_targets, reference_target, target_of
from anypolicy.tasks.language.base import Task


@dataclass(frozen=True)
class ReferenceRollout:
    """The reference response of every prompt, as a target; nothing is sampled."""

    group_size = 0
    needs, gives = Needs(), Gives(targets=True)

    def check_task(self, task: Task) -> None:
        check_references(task)

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        return [Group(p.id, p, [reference_target(world.policy, p)]) for p in prompts]


@dataclass(frozen=True)
class NoReward:
    """Nothing to score. It lets the rollout see labels: a reference response is one."""

    needs = Needs(labels=True, responses=0, most_responses=0)

    def __call__(self, world: World, groups: list[Group]) -> None:
        """Targets have no reward."""


@dataclass(frozen=True)
class NoAdvantage:
    """Nothing to compare."""

    needs = Needs(responses=0, most_responses=0)

    def __call__(self, batch: Batch) -> Float[Tensor, " trajectories"]:
        return torch.zeros_like(batch.reward)


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """reduce(−log π) over the target tokens."""

    aggregation: Mode = "token-mean"
    needs = Needs(targets=True, responses=0)

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        return target_of(batch).any(1) & (batch.weight != 0)

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms:
        return LossTerms({"nll": reduce_targets(-batch.weight[:, None] * scores.logp, batch, self.aggregation)}, {})


@method(
    Card(
        title="Supervised fine-tuning",
        paper="arXiv 2203.02155",
        year=2022,
        family="supervised",
        idea="maximise the likelihood of reference responses",
        changes=("rollout", "reward", "advantage", "loss", "optimiser"),
        composes_with="other losses on reference responses, other optimisers",
        claim="baseline of the claims of other methods",
        example="anypolicy train sft --task tabular-lock:references=true --steps 60",
        look_at="probe/success: 0.23 to 0.95 with seed 0",
        no_signal=(),
    )
)
def sft(
    aggregation: Annotated[Mode, Knob("mean over all tokens, or over responses of their means")] = "token-mean",
) -> GroupRecipe:
    """−log-probability of the reference responses' tokens, one pass over every batch."""
    return GroupRecipe(
        sampler=UniformSampler(),
        rollout=ReferenceRollout(),
        reward=NoReward(),
        advantage=NoAdvantage(),
        selection=KeepAll(),
        loss=NegativeLogLikelihood(aggregation),
        optimiser=Optimiser(lr=1e-5),
    )
