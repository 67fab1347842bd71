"""Recipes that cannot work are refused before any work, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable

from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy, Sees, media_of
from anypolicy.stages.needs import Gives, Needs, union
from anypolicy.stages.recipe import ChecksTask, GroupRecipe, Stage
from anypolicy.tasks.language.base import Task
from anypolicy.tasks.language.verify import verifies


def stages(recipe: GroupRecipe) -> list[Stage]:
    """The stages of a recipe that need something, in their order."""
    return [recipe.sampler, recipe.rollout, recipe.reward, recipe.advantage, recipe.selection, recipe.loss]


def check(recipe: GroupRecipe, prompts: int, task: Task | None = None, *, rewarded: bool = False) -> None:
    """Refuse a recipe whose stages do not go together, a number of prompts that it cannot split, and a `task` without
    what it learns from; `rewarded` says that the user's own functions or model reward its responses."""
    for stage in stages(recipe):
        if not isinstance(getattr(stage, "needs", None), Needs):
            raise InputError("method", type(stage).__name__, "it does not say what it needs: add `needs = Needs()`")
    if not isinstance(getattr(recipe.rollout, "gives", None), Gives):
        name = type(recipe.rollout).__name__
        raise InputError("method", name, "it does not say what it gives: add `gives = Gives()`")
    check_sizes(recipe)
    check_partners(recipe)
    if prompts < 1:
        raise InputError("prompts", prompts, "use at least 1")
    least = recipe.loss.needs.prompts
    if prompts // recipe.optimiser.minibatches < least > 1:
        raise InputError("prompts", prompts, f"the loss compares prompts: use at least {least} for every mini-batch")
    if recipe.optimiser.minibatches > prompts:
        raise InputError("minibatches", recipe.optimiser.minibatches, f"a step has only {prompts} groups to split")
    if task is not None:
        check_task(recipe, task, rewarded=rewarded)


def check_partners(recipe: GroupRecipe) -> None:
    """Stages that only go together."""
    advantage = recipe.advantage
    if advantage.needs.value and recipe.critic is None:
        raise InputError("critic", None, f"{type(advantage).__name__} needs a value head: add a method's .critic stage")
    if recipe.critic is not None and not advantage.needs.value:
        raise InputError(
            "advantage", type(advantage).__name__, "the recipe has a critic, so use an advantage with value targets"
        )
    if recipe.rollout.needs.labels and not recipe.reward.needs.labels:
        raise InputError(
            "rollout", type(recipe.rollout).__name__,
            f"it verifies answers, which {type(recipe.reward).__name__} must not see: use another of the two",
        )  # fmt: skip
    if recipe.reward.needs.recorded and recipe.rollout.gives.behaviour:
        raise InputError(
            "reward", type(recipe.reward).__name__, "it reads the scores of recorded responses: use a rollout of those"
        )
    for name, stage in (("advantage", advantage), ("selection", recipe.selection)):
        if stage.needs.verdicts and recipe.reward.needs.recorded:
            raise InputError(
                name, type(stage).__name__, "it reads verdicts, which recorded scores have not: use another"
            )
    if recipe.loss.needs.kinds and not recipe.rollout.gives.kinds:
        raise InputError(
            "rollout", type(recipe.rollout).__name__,
            f"{type(recipe.loss).__name__} asks what kind of answer each of a group is, which it does not say",
        )  # fmt: skip
    if recipe.reference.moves and not union(s.needs for s in stages(recipe)).reference:
        raise InputError("reference", type(recipe.reference).__name__, "no stage of the recipe looks at a reference")
    if recipe.loss.needs.behaviour and not recipe.rollout.gives.behaviour:
        raise InputError(
            "loss", type(recipe.loss).__name__, "nobody knows how likely these responses were where they were "
            "written: use a loss that needs no importance ratio",
        )  # fmt: skip


def check_sizes(recipe: GroupRecipe) -> None:
    """Stages that learn from sampled responses need enough of them; stages for targets need targets."""
    rollout, size = recipe.rollout, recipe.rollout.group_size
    for stage in (s for s in stages(recipe) if s is not rollout):
        name, needs = type(stage).__name__, stage.needs
        if size < needs.responses and size == 0:
            raise InputError("rollout", type(rollout).__name__, f"it samples no responses, which {name} is about")
        if size < needs.responses:
            raise InputError("group_size", size, f"{name} compares responses: use at least {needs.responses}")
        if needs.most_responses is not None and size > needs.most_responses:
            raise InputError("rollout", type(rollout).__name__, f"{name} is for rollouts that sample no responses")
        if needs.targets and not rollout.gives.targets:
            raise InputError("rollout", type(rollout).__name__, f"it gives no targets, from which {name} learns")


def check_task(recipe: GroupRecipe, task: Task, *, rewarded: bool = False) -> None:
    """Refuse a task without what the recipe learns from: whatever a stage checks itself, and answers to verify (unless
    responses are `rewarded` by the user's own functions or model)."""
    for stage in stages(recipe):
        if isinstance(stage, ChecksTask):
            stage.check_task(task)
    if verifies(task):
        return
    needing = [s for s in stages(recipe) if s.needs.verdicts or (s.needs.verifier and s is not recipe.reward)]
    if needing:
        who = type(needing[0]).__name__
        told = f"it has no answers to verify, and {who} reads verdicts: give every row an 'answer'"
        raise InputError("task", task.name, told)
    if recipe.reward.needs.verifier and not rewarded:
        raise InputError("task", task.name, "it has no answers to verify: give every row an 'answer', or a reward of "
                         "your own (--reward FILE.py:FUNCTION, --reward-model), or see the methods that learn from "
                         "responses in `anypolicy methods`")  # fmt: skip


def check_images(policy: Policy, prompts: Iterable[Prompt]) -> None:
    """Refuse prompts with images where the policy reads text alone; one that sees reads the first of them."""
    shown = next((p for p in prompts if p.media), None)
    if shown is not None:
        media_of(policy, shown)
        if isinstance(policy, Sees):
            policy.encode(shown)
