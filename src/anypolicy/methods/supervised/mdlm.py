"""MDLM: maximum likelihood of a masked-diffusion language model, by its evidence lower bound.

Paper: "Simple and Effective Masked Diffusion Language Models", arXiv 2406.07524, eq. 10 with the linear schedule;
LLaDA's pre-training and fine-tuning loss, arXiv 2502.09992, eq. 3 and 5.
Idea: hide a random part of the reference response, predict it from the rest, and weigh by one over the hidden share:
the mean over masks bounds the log-likelihood from below.
Changes: rollout (references filled up with the stop token to the response limit, as the policy will write them), reward
and advantage (none), loss, optimiser (AdamW 3e-4).
Silent: how masks are drawn beside t ~ U[0, 1]; here by default their number is uniform, which varies less.
Differs: MDLM draws t stratified over a batch; the count has most of what that gains. The mean is over all target tokens
of the optimiser batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.data.records import Group, Prompt, Segment
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.supervised.sft import ReferenceRollout, sft
from anypolicy.parts.elbo import MaskDraw
from anypolicy.policies.language.base import Policy
from anypolicy.stages.elbo import denoiser, elbo_samples
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.recipe import GroupRecipe, LossTerms, Optimiser, World
from anypolicy.stages.targets import reference_target, target_of
from anypolicy.tasks.language.base import Task


@dataclass(frozen=True)
class FilledRollout:
    """The reference response of every prompt, filled up with the stop token to the response limit."""

    group_size = 0
    needs, gives = Needs(), Gives(targets=True, reaches_limit=True)

    def check_task(self, task: Task) -> None:
        ReferenceRollout().check_task(task)

    def check(self, world: World) -> None:
        """Every reference must fit into the response limit."""
        for prompt in world.task.train:
            [own] = reference_target(world.policy, prompt).segments
            filled(own, world.sampling.max_tokens, world.policy.stop_ids, prompt)

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        groups = ReferenceRollout()(world, prompts, generator)
        for group in groups:
            for t in group.trajectories:
                t.segments = [
                    filled(s, world.sampling.max_tokens, world.policy.stop_ids, group.prompt) for s in t.segments
                ]
        return groups


def filled(segment: Segment, length: int, stop_ids: tuple[int, ...], prompt: Prompt) -> Segment:
    """The target with its last stop token repeated up to `length` tokens."""
    n = len(segment.response)
    if n > length:
        raise InputError(
            "reference", f"{n} tokens", f"that of prompt {prompt.id!r} must fit into max_tokens = {length}"
        )
    if n < length and segment.response[-1] not in stop_ids:
        raise InputError("reference", f"{n} tokens", f"it has no stop token at its end to fill up to {length} with")
    response = np.concatenate([segment.response, np.full(length - n, segment.response[-1], np.int64)])
    return replace(
        segment, response=response, logp=np.zeros(length, np.float32), mask=np.ones(length, np.bool_),
        version=np.full(length, -1, np.int64), end=n,
    )  # fmt: skip


@dataclass(frozen=True)
class EvidenceLoss:
    """−(1/n) Σ_j ℓ_j a target token: one independent part for each mask."""

    samples: int = 1
    draw: MaskDraw = "count"
    needs = Needs(targets=True, responses=0)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError("samples", self.samples, "use at least 1 mask for each response")

    def check(self, world: World) -> None:
        denoiser(world.policy)

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        return target_of(batch).any(1) & (batch.weight != 0)

    def before(self, policy: Policy, batch: Batch, temperature: float) -> None:
        """It compares with no other weights."""

    def passes(self, policy: Policy, batch: Batch, temperature: float) -> Iterator[LossTerms]:
        totals = batch.counted().target
        share = max(totals.tokens if totals else 0, 1) * self.samples
        for ell in elbo_samples(policy, batch, target_of(batch), temperature, self.samples, self.draw):
            yield LossTerms({"elbo": -(batch.weight * ell).sum() / share}, {})


@method(
    Card(
        title="Masked diffusion language modelling",
        paper="arXiv 2406.07524",
        year=2024,
        family="supervised",
        idea="predict a randomly hidden part of the reference from the rest, weighed to a bound of the likelihood",
        changes=("rollout", "reward", "advantage", "loss", "optimiser"),
        composes_with="supervised methods that change the optimiser; needs a masked-diffusion policy",
        claim="trains the policies of BGPO's claim from scratch",
        example="anypolicy train mdlm --task tiny-add:policy=masked-diffusion,references=true --lr 1e-3 --steps 100",
        look_at="eval/accuracy: 0.41 to 0.47 with seed 0; too short a run to tell learning from chance",
        no_signal=(),
    )
)
def mdlm(
    samples: Annotated[int, Knob("random draws", least=1)] = 1,
    draw: Annotated[MaskDraw, Knob("masks: a number of tokens is drawn first, or each token by itself")] = "count",
) -> GroupRecipe:
    """One mask a reference and pass, AdamW 3e-4."""
    return replace(sft(), rollout=FilledRollout(), loss=EvidenceLoss(samples, draw), optimiser=Optimiser(lr=3e-4))
