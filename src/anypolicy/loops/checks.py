"""Recipes that cannot work are refused before any work, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.loops.evaluate import verifies
from anypolicy.loops.recipe import GroupRecipe
from anypolicy.policies.base import Policy, Sees, media_of
from anypolicy.tasks.base import Task


def stages(recipe: GroupRecipe) -> list[Any]:
    """The stages of a recipe, in their order."""
    return [getattr(recipe, f.name) for f in fields(recipe)]


def check(recipe: GroupRecipe, prompts: int, task: Task | None = None) -> None:
    """Refuse a recipe whose stages do not go together, a number of prompts that it cannot split, and a `task` without
    what it learns from."""
    check_sizes(recipe)
    check_partners(recipe)
    if prompts < 1:
        raise InputError("prompts", prompts, "use at least 1")
    least = getattr(recipe.loss, "min_prompts", 1)
    if prompts // recipe.optimiser.minibatches < least > 1:
        raise InputError("prompts", prompts, f"the loss compares prompts: use at least {least} for every mini-batch")
    if recipe.optimiser.minibatches > prompts:
        raise InputError("minibatches", recipe.optimiser.minibatches, f"a step has only {prompts} groups to split")
    if task is not None:
        check_task(recipe, task)


def check_partners(recipe: GroupRecipe) -> None:
    """Stages that only go together."""
    advantage = recipe.advantage
    if getattr(advantage, "needs_value", False) and recipe.critic is None:
        raise InputError("critic", None, f"{type(advantage).__name__} needs a value head: add a method's .critic stage")
    if recipe.critic is not None and not getattr(advantage, "needs_value", False):
        raise InputError(
            "advantage", type(advantage).__name__, "the recipe has a critic, so use an advantage with value targets"
        )
    if getattr(recipe.rollout, "needs_labels", False) and not recipe.reward.needs_labels:
        raise InputError(
            "rollout", type(recipe.rollout).__name__,
            f"it verifies answers, which {type(recipe.reward).__name__} must not see: use another of the two",
        )  # fmt: skip
    if getattr(recipe.reward, "needs_recorded", False) and not getattr(recipe.rollout, "unknown_behaviour", False):
        raise InputError(
            "reward", type(recipe.reward).__name__, "it reads the scores of recorded responses: use a rollout of those"
        )
    if getattr(recipe.selection, "needs_verdicts", False) and getattr(recipe.reward, "needs_recorded", False):
        raise InputError(
            "selection",
            type(recipe.selection).__name__,
            "it reads verdicts, which recorded scores have not: use another",
        )
    if getattr(recipe.loss, "needs_kinds", False) and not getattr(recipe.rollout, "gives_kinds", False):
        raise InputError(
            "rollout", type(recipe.rollout).__name__,
            f"{type(recipe.loss).__name__} asks what kind of answer each of a group is, which it does not say",
        )  # fmt: skip
    if recipe.reference.moves and not any(getattr(s, "needs_reference", False) for s in stages(recipe)):
        raise InputError("reference", type(recipe.reference).__name__, "no stage of the recipe looks at a reference")
    if getattr(recipe.rollout, "unknown_behaviour", False) and not getattr(recipe.loss, "any_behaviour", False):
        raise InputError(
            "loss", type(recipe.loss).__name__, "nobody knows how likely these responses were where they were "
            "written: use a loss that needs no importance ratio",
        )  # fmt: skip


def check_sizes(recipe: GroupRecipe) -> None:
    """Stages that learn from sampled responses need enough of them; stages for targets need targets."""
    rollout, size = recipe.rollout, recipe.rollout.group_size
    for stage in (recipe.sampler, recipe.reward, recipe.advantage, recipe.selection, recipe.loss):
        name, targets = type(stage).__name__, getattr(stage, "needs_targets", False)
        least = getattr(stage, "min_group", 0 if targets else 1)
        if size < least and size == 0:
            raise InputError("rollout", type(rollout).__name__, f"it samples no responses, which {name} is about")
        if size < least:
            raise InputError("group_size", size, f"{name} compares responses: use at least {least}")
        if size > getattr(stage, "max_group", size):
            raise InputError("rollout", type(rollout).__name__, f"{name} is for rollouts that sample no responses")
        if targets and not getattr(rollout, "gives_targets", False):
            raise InputError("rollout", type(rollout).__name__, f"it gives no targets, from which {name} learns")


def check_task(recipe: GroupRecipe, task: Task) -> None:
    """Refuse a task without what the recipe learns from: whatever a stage checks itself, and answers to verify."""
    for stage in stages(recipe):
        if hasattr(stage, "check_task"):
            stage.check_task(task)
    if getattr(recipe.reward, "needs_verifier", recipe.reward.needs_labels) and not verifies(task):
        raise InputError("task", task.name, "it has no answers to verify, only responses: see the methods that learn "
                         "from those in `anypolicy methods`")  # fmt: skip


def check_images(policy: Policy, prompts: Iterable[Prompt]) -> None:
    """Refuse prompts with images where the policy reads text alone; one that sees reads the first of them."""
    shown = next((p for p in prompts if p.media), None)
    if shown is not None:
        media_of(policy, shown)
        if isinstance(policy, Sees):
            policy.encode(shown)
