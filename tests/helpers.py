"""Small worlds for tests."""

from __future__ import annotations

import copy
import signal
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from anypolicy import catalogue
from anypolicy.data.batch import Batch, from_groups
from anypolicy.data.records import Group, Prompt, Segment, Trajectory
from anypolicy.engines.base import Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.loops.group import GroupLoop
from anypolicy.methods.language.adaptthink import Marks
from anypolicy.parts.tree_search import Search
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.load import placed
from anypolicy.stages.recipe import GroupRecipe, World
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.tabular_lock import TabularLock


def segment(response: list[int], context: list[int] | None = None, logp: float = -1.0) -> Segment:
    n = len(response)
    ids = np.array(response, np.int64)
    return Segment(
        np.array(context or [0], np.int64),
        ids,
        np.full(n, logp, np.float32),
        np.ones(n, np.bool_),
        np.zeros(n, np.int64),
    )


def batch_of(rewards: list[list[float]], lengths: list[list[int]] | None = None, correct=None) -> Batch:
    """One group per inner list, one token per response unless lengths say otherwise, in float64."""
    groups = []
    for g, row in enumerate(rewards):
        trajectories = []
        for i, r in enumerate(row):
            n = lengths[g][i] if lengths else 1
            right = bool(r == 1) if correct is None else correct[g][i]
            trajectories.append(Trajectory(f"{g}/{i}", [segment([1] * n, [g])], reward=r, correct=right))
        groups.append(Group(str(g), Prompt(str(g), tokens=(g,)), trajectories))
    return from_groups(groups, torch.float64)


def gradient(loss, batch: Batch, log_ratio: torch.Tensor, entropy: bool = False):
    """Loss value and gradient with respect to logp, for given log-ratios."""
    logp = (batch.logp_old + log_ratio).requires_grad_()
    batch = replace(batch, totals=replace(batch, totals=None).counted())
    spread = torch.zeros_like(logp) if entropy else None
    value = sum(loss(Scores(logp, spread), batch).terms.values())
    value.backward()
    return float(value.detach()), logp.grad


class LastTokenLock(TabularLock):
    """A lock of which only the last token counts: what stands before it is free for marks of a method's own."""

    def score(self, prompt: Prompt, response: np.ndarray, text: str) -> Score:
        correct = len(response) > 0 and int(response[-1]) == int(self.target[prompt.tokens[0], -1])
        return Score(float(correct), correct)

    def success(self, policy) -> torch.Tensor:
        return (
            policy.module.logits.detach()[: len(self.target)]
            .softmax(-1)[:, -1]
            .gather(1, self.target[:, -1:])
            .squeeze(1)
        )


ON_A_LOCK = {"marks": Marks(0, 1, None), "direct_limit": 1.0, "step_tokens": 1, "self_evaluation": False, "known_steps": False,
             "search": Search(iterations=2)}  # fmt: skip
"""What a method takes from a tokenizer, from words or for long responses, as ids and lengths of a lock."""


def on_a_lock(stage: Any) -> Any:
    known = {k: v for k, v in ON_A_LOCK.items() if hasattr(stage, k)}
    return replace(stage, **known) if known else stage


def lock_loop(recipe: GroupRecipe, *, seed: int = 0, prompts: int = 8, micro_tokens: int = 1 << 20, device: str = "cpu",
              **settings):  # fmt: skip
    """A loop on a small tabular lock; AdamW 0.1 unless the recipe is changed by the caller."""
    kind = LastTokenLock if hasattr(recipe.reward, "marks") else TabularLock
    task = kind(seed, **({"prompts": 16, "length": 3, "references": True, "hints": True, "recorded": 4} | settings))
    policy = placed(task.make_policy(seed), torch.device(device))
    world = World(policy, NativeEngine(policy), task, Sampling(task.max_tokens), seed)
    recipe = replace(
        recipe,
        rollout=on_a_lock(recipe.rollout),
        reward=on_a_lock(recipe.reward),
        optimiser=replace(recipe.optimiser, lr=0.1),
    )
    return GroupLoop(
        recipe, world, prompts=prompts, micro_tokens=micro_tokens, reference=copy.deepcopy(policy), total_steps=40
    )  # fmt: skip


class StopAt:
    """In place of `drive.first_signal`: what asks a run to stop when it has looked for the `count`-th time."""

    def __init__(self, count: int):
        self.left = count

    @contextmanager
    def __call__(self):
        yield self

    @property
    def number(self) -> int:
        self.left -= 1
        return signal.SIGINT if self.left < 0 else 0


def recipe(slug):
    """What makes the recipe of a method, from settings as a user gives them."""
    return lambda **knobs: catalogue.build(catalogue.get(slug, None), knobs)
