"""Evaluation of diffusion models: held-out denoising error, and what the task's judge says of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from anypolicy.policies.diffusion.denoisers import DiffusionModel, Label, drawn, encoded, error_of, pieces, samples_of
from anypolicy.runs.seeds import generator
from anypolicy.tasks.diffusion.base import PictureTask

UNJUDGED = 16
"""Samples made for a look where nothing judges them."""


@torch.no_grad()
def heldout_error(task: PictureTask, model: DiffusionModel, n: int, seed: int) -> float:
    """Mean m over up to n held-out winners."""
    rows = list(range(min(n, len(task.heldout))))
    samples, labels = task.heldout.take(rows)
    noise, t = drawn(model, len(rows), generator(seed, "evaluation", "noise"))
    x, errors = encoded(model, samples), list[Tensor]()
    for p in pieces(len(rows), model.micro):
        errors.append(error_of(model, x[p], noise[p], t[p], model.condition(labels[p])))
    return float(torch.cat(errors).mean())


def judged(task: PictureTask, model: DiffusionModel, n: int, seed: int) -> tuple[dict[str, float], Tensor, list[Label]]:
    """Numbers for the ledger, samples and what they were to be of: the task's labels in turn, from the same noise in
    every evaluation."""
    count = n if task.judge is not None else min(n, UNJUDGED)
    labels = [task.labels[i % len(task.labels)] for i in range(count)]
    samples = samples_of(model, labels, generator(seed, "evaluation", "samples"))
    out = {"eval/error": heldout_error(task, model, n, seed), "eval/n": float(count)}
    return out | (task.judge(samples, labels) if task.judge is not None else {}), samples, labels
