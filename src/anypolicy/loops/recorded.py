"""Responses that were written and scored before the run: a rollout that replays them and the reward that reads them.

A prompt's `info` holds two lists of one length: `responses` (texts, or lists of token ids) and `scores` (numbers); the
fields of a .jsonl row beside prompt and answer stand there. Who wrote the responses need not be known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from anypolicy.data.records import Group, Prompt, Segment, Trajectory
from anypolicy.errors import InputError
from anypolicy.loops.recipe import World
from anypolicy.tasks.base import Task


def recorded(prompt: Prompt) -> list[tuple[str | tuple[int, ...], float]]:
    """The prompt's responses with their scores, checked."""
    responses: Any = prompt.info.get("responses")
    scores: Any = prompt.info.get("scores")
    if not isinstance(responses, list | tuple) or not isinstance(scores, list | tuple) or len(responses) != len(scores):
        raise InputError("responses", prompt.id, "a prompt needs two lists of one length, responses and scores")
    out: list[tuple[str | tuple[int, ...], float]] = []
    for response, score in zip(responses, scores, strict=True):
        ids = isinstance(response, list | tuple) and all(type(i) is int and i >= 0 for i in response)
        if not response or not (ids or isinstance(response, str)):
            raise InputError("responses", response, f"in prompt {prompt.id!r}: write text or a list of token ids")
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise InputError("scores", score, f"in prompt {prompt.id!r}: write finite numbers")
        out.append((response if isinstance(response, str) else tuple(response), float(score)))
    return out


@dataclass(frozen=True)
class RecordedRollout:
    """Up to `group_size` recorded responses of every prompt, drawn anew without repetition at each visit."""

    unknown_behaviour = True
    group_size: int = 8

    def check_task(self, task: Task) -> None:
        """Every training prompt must have at least two scored responses."""
        for prompt in task.train:
            if len(recorded(prompt)) < 2:
                raise InputError("responses", prompt.id, "a prompt needs at least two scored responses")

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        groups: list[Group] = []
        for prompt in prompts:
            known, context = recorded(prompt), world.policy.encode(prompt)
            chosen = torch.randperm(len(known), generator=generator)[: self.group_size].sort().values.tolist()
            trajectories: list[Trajectory] = []
            for i in chosen:
                ids = world.policy.encode_reference(replace(prompt, reference=known[i][0]))
                n = len(ids)
                unknown, old = np.full(n, np.nan, np.float32), np.full(n, -1, np.int64)
                segment = Segment(context, ids, unknown, np.ones(n, np.bool_), old)
                trajectories.append(Trajectory(f"{prompt.id}/{i}", [segment], info={"score": known[i][1]}))
            groups.append(Group(prompt.id, prompt, trajectories))
        return groups


@dataclass(frozen=True)
class RecordedReward:
    """The recorded score of each response. Scores are labels."""

    needs_labels, needs_verifier = True, False

    def __call__(self, world: World, groups: list[Group]) -> None:
        for t in (t for group in groups for t in group.trajectories):
            t.reward = t.info["score"]
            t.rewards = {"recorded": t.reward}
