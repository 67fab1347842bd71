"""Supervised targets beside sampled responses: how they are made, and the loss term that learns from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypolicy.data.batch import Batch
from anypolicy.data.records import Prompt, Segment, Tokens, Trajectory
from anypolicy.errors import InputError
from anypolicy.parts.reduce import Mode, reduce
from anypolicy.policies.language.base import Policy, Scores, media_of
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import Loss, LossTerms
from anypolicy.tasks.language.base import Task

REFERENCE = "a row needs 'response' (or the field that the task's reference=… names)"


def check_references(task: Task) -> None:
    """Refuse a task that has a prompt without a reference response."""
    for prompt in task.train:
        if prompt.reference is None:
            raise InputError("task", task.name, f"prompt {prompt.id!r} has no reference response to learn from: "
                             f"{REFERENCE}, or 'chosen' and 'rejected'")  # fmt: skip


def reference_target(policy: Policy, prompt: Prompt) -> Trajectory:
    """The prompt's reference response as a target under the prompt itself."""
    context, response = policy.encode(prompt), policy.encode_reference(prompt)
    n = len(response)
    segment = Segment(
        context, response, np.zeros(n, np.float32), np.ones(n, np.bool_), np.full(n, -1, np.int64),
        media=media_of(policy, prompt),
    )  # fmt: skip
    return Trajectory(f"{prompt.id}/reference", [segment], target=True)


def resampled_target(name: str, sampled: Segment, context: Tokens, response: Tokens) -> Trajectory:
    """What was sampled under one context (with the answer in sight, say) as a target under the plain `context`.

    `response` is what to learn: the sampled ids, cut or with something put after them. The tokens it shares with the
    beginning of the sample keep their log-probability and version; the others were not sampled (0 and −1). The update
    scores all of them under `context`.
    """
    n, shared = len(response), min(len(response), len(sampled.response))
    differs = np.flatnonzero(response[:shared] != sampled.response[:shared])
    same = np.arange(n) < (int(differs[0]) if len(differs) else shared)
    logp, version = np.zeros(n, np.float32), np.full(n, -1, np.int64)
    logp[same], version[same] = sampled.logp[: same.sum()], sampled.version[: same.sum()]
    segment = Segment(sampled.context, response, logp, np.ones(n, np.bool_), version, context, sampled.media)
    return Trajectory(name, [segment], target=True)


def target_of(batch: Batch) -> Bool[Tensor, "rows tokens"]:
    """The target tokens; none of them where there are none."""
    return torch.zeros_like(batch.mask) if batch.target is None else batch.target


def reduce_targets(values: Float[Tensor, "rows tokens"], batch: Batch, mode: Mode) -> Float[Tensor, ""]:
    """One number from per-token values over the target tokens, with the denominators of the whole optimiser batch."""
    return reduce(values, target_of(batch), mode, totals=batch.counted().target, max_tokens=batch.max_tokens)


@dataclass(frozen=True)
class WithImitation:
    """Another loss + coef · reduce(−logp over target tokens), with the targets' own denominators.

    Without targets, or with coef = 0, it is the other loss to the bit.
    """

    loss: Loss
    coef: float
    aggregation: Mode = "group-mean-token-mean"

    @property
    def needs(self) -> Needs:
        return self.loss.needs

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        rows = self.loss.active(batch)
        if batch.target is None or self.coef == 0:
            return rows
        return rows | (batch.target.any(1) & (batch.weight != 0))

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms:
        terms, metrics = self.loss(scores, batch)
        if batch.target is None or self.coef == 0:
            return LossTerms(terms, metrics)
        totals = batch.counted().target
        assert totals is not None
        loss = reduce_targets(-batch.weight[:, None] * scores.logp, batch, self.aggregation)
        metrics = metrics if batch.mask.any() else {}
        if totals.tokens:
            likely = torch.where(batch.target, scores.logp.detach(), 0).sum() / totals.tokens
            metrics = metrics | {"target/logp": likely}
        return LossTerms(terms | {"imitation": self.coef * loss}, metrics)
