"""Responses that were written and scored before the run: a rollout that replays them and the reward that reads them.

A prompt's `info` holds two lists of one length: `responses` (texts, or lists of token ids) and `scores` (numbers); the
fields of a .jsonl row beside prompt and answer stand there. Who wrote the responses need not be known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from anypolicy.data.media import Media
from anypolicy.data.records import LARGEST, Group, Prompt, Segment, Tokens, Trajectory
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy, media_of
from anypolicy.runs.seeds import generator
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.recipe import World
from anypolicy.tasks.language.base import Task


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
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= LARGEST:
            raise InputError("scores", score, f"in prompt {prompt.id!r}: write finite numbers of at most {LARGEST:g}")
        out.append((response if isinstance(response, str) else tuple(response), float(score)))
    return out


def written_before(context: Tokens, ids: Tokens, media: Media) -> Segment:
    """A response that was written before the run; nobody knows how likely it was."""
    n = len(ids)
    unknown, old = np.full(n, np.nan, np.float32), np.full(n, -1, np.int64)
    return Segment(context, ids, unknown, np.ones(n, np.bool_), old, media=media)


def recorded_group(policy: Policy, prompt: Prompt, which: Sequence[int] | None = None) -> Group:
    """The recorded responses of a prompt (those that `which` names), each with its score in `info`. An end token
    follows them, unless the prompt's `info` says `exact`: a run's own responses, to the token."""
    known, context, media = recorded(prompt), policy.encode(prompt), media_of(policy, prompt)
    trajectories: list[Trajectory] = []
    for i in range(len(known)) if which is None else which:
        given, score = known[i]
        exact = prompt.info.get("exact", False)
        ids = np.array(given, np.int64) if exact else policy.encode_reference(replace(prompt, reference=given))
        segment = written_before(context, ids, media)
        trajectories.append(Trajectory(f"{prompt.id}/{i}", [segment], info={"score": score}))
    return Group(prompt.id, prompt, trajectories)


@dataclass(frozen=True)
class RecordedRollout:
    """Up to `group_size` recorded responses of every prompt, drawn anew without repetition at each visit."""

    needs, gives = Needs(), Gives(behaviour=False, reaches_limit=False)
    group_size: int = 8
    least: int = 2

    def check_task(self, task: Task) -> None:
        """Every training prompt must have at least `least` scored responses."""
        one = "" if self.least > 1 else "'completion' and 'label', or "
        fields = f"a row needs {one}'chosen' and 'rejected', or two lists of one length, 'responses' and 'scores'"
        for prompt in task.train:
            if not {"responses", "scores"} & prompt.info.keys():
                raise InputError("responses", prompt.id, f"this prompt has no scored responses: {fields}")
            if len(recorded(prompt)) < self.least:
                raise InputError(
                    "responses", prompt.id, f"a prompt needs at least {self.least} scored responses: {fields}"
                )

    def __call__(self, world: World, prompts: list[Prompt], rng: torch.Generator) -> list[Group]:
        groups: list[Group] = []
        for prompt in prompts:
            order = torch.randperm(len(recorded(prompt)), generator=rng)[: self.group_size]
            groups.append(recorded_group(world.policy, prompt, order.sort().values.tolist()))
        return groups


def stream_rows(step: int, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The scored groups of a step as lines of a stream, to the token. What is of several segments is left out."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        own = [t for t in group.sampled().trajectories if len(t.segments) == 1 and not math.isnan(t.reward)]
        if own:
            said = [t.segments[0].response.tolist() for t in own]
            context = own[0].segments[0].context.tolist()
            rows.append({"step": step, "context": context, "responses": said, "scores": [t.reward for t in own]})
    return rows


class StreamOrder:
    """Batches of a recorded stream in the order of the record, or shuffled inside windows of `window` batches: whole
    batches change places, so what stood in one step still does. After the last whole batch it begins again."""

    def __init__(self, prompts: int, seed: int, window: int):
        self.prompts, self.seed, self.window, self.drawn = prompts, seed, window, 0

    def draw(self, n: int, step: int, round: int) -> list[int]:
        if n > self.prompts:
            raise InputError(
                "prompts", n, f"the stream has only {self.prompts} groups: use the number of its own steps"
            )
        batches = self.prompts // n
        turn, place = divmod(self.drawn // n, batches)
        first = place // self.window * self.window
        size = min(self.window, batches - first)
        order = torch.randperm(size, generator=generator(self.seed, "stream", turn, first))
        batch = first + int(order[place - first])
        self.drawn += n
        return list(range(batch * n, (batch + 1) * n))

    def observe(self, groups: Sequence[Group]) -> None:
        """The order is that of the record."""

    def state(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def restore(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]

    def metrics(self) -> dict[str, float]:
        return {"epoch": self.drawn / self.prompts}


@dataclass(frozen=True)
class StreamSampler:
    """A recorded stream, step by step as it was recorded (window 1), or in windows of so many steps shuffled."""

    needs = Needs()
    window: int = 1

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError("window", self.window, "use a whole number of steps, at least 1")

    def begin(self, prompts: int, seed: int) -> StreamOrder:
        return StreamOrder(prompts, seed, self.window)


@dataclass(frozen=True)
class RecordedReward:
    """The recorded score of each response. Scores are labels."""

    needs = Needs(labels=True, recorded=True)

    def __call__(self, world: World, groups: list[Group]) -> None:
        for t in (t for group in groups for t in group.trajectories):
            t.reward = t.info["score"]
            t.rewards = {"recorded": t.reward}
