"""The learner and the loop that a recipe of control asks for."""

from __future__ import annotations

from anypolicy.data.replay import Replay
from anypolicy.engines.environments import Environments
from anypolicy.learners.base import Learner, check_learner, give_offline
from anypolicy.learners.recipe import OfflineRecipe, OffPolicyRecipe, OnPolicyRecipe, Recipe, whole_episodes
from anypolicy.loops.control import OfflineLoop, OffPolicyLoop, OnPolicyLoop
from anypolicy.loops.reset_free import Agents, ResetFreeLoop
from anypolicy.runs.seeds import number
from anypolicy.tasks.control.environments import Space

Loop = OffPolicyLoop | OnPolicyLoop | OfflineLoop | ResetFreeLoop


def learner_of(recipe: Recipe, space: Space, seed: int) -> Learner:
    """The learner of a recipe: where tasks take turns, one for each that learns off-policy."""
    if space.tasks == 1 or not isinstance(recipe, OffPolicyRecipe):
        return check_learner(recipe.learner(space, seed))
    return Agents([recipe.learner(space, number(seed, "task", t) % 2**31) for t in range(space.tasks)])


def loop_of(
    recipe: Recipe, learner: Learner, environments: Environments, space: Space, seed: int, *,
    horizon: int | None = None,
) -> Loop:  # fmt: skip
    """The loop of a recipe and its learner at step 0. `horizon` is the longest episode."""
    if isinstance(recipe, OfflineRecipe):
        return OfflineLoop(recipe, learner, seed)
    if isinstance(recipe, OnPolicyRecipe):
        return OnPolicyLoop(whole_episodes(recipe, horizon), learner, environments, space, seed)
    if isinstance(learner, Agents):
        return ResetFreeLoop(recipe, learner, environments, space, seed, horizon=horizon)
    return OffPolicyLoop(recipe, learner, environments, space, seed, horizon=horizon)


def give(loop: Loop, learner: Learner, offline: Replay | None) -> None:
    """Demonstrations, as the learner observes them, for the loop and for a learner that asks for them."""
    loop.offline = offline
    give_offline(learner, offline)
