"""How a learner of control is fed: off-policy from a replay, on-policy by rollouts, or by demonstrations alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError, check_numbers
from anypolicy.learners.base import Learner
from anypolicy.tasks.control.environments import Space


def check(recipe: OffPolicyRecipe | OnPolicyRecipe | OfflineRecipe) -> None:
    """Refuses numbers that feed no learner."""
    known = vars(recipe)
    counts = ("batch", "updates", "capacity", "n_step", "environments", "chunk", "horizon", "episodes")
    check_numbers(recipe, positive=[n for n in counts if n in known], natural=[n for n in ("warmup",) if n in known])
    for name in ("discount", "offline_share"):
        if not 0 <= known.get(name, 0) <= 1:
            raise InputError(name, known[name], "use a number from 0 to 1")


@dataclass(frozen=True)
class OffPolicyRecipe:
    """`learner(space, seed)` makes the learner; then how it is fed: `updates` batches for every environment step, of
    which `offline_share` comes from demonstrations; the first `warmup` steps act at random (None: ten episodes, at most
    5,000 steps). `alone` is how it learns where demonstrations are given, if it then learns from them alone. An action
    of the learner is a `chunk` of the environment's; updates then belong to chunks."""

    learner: Callable[[Space, int], Learner]
    discount: float = 0.99
    batch: int = 256
    updates: int = 1
    warmup: int | None = None
    capacity: int = 1_000_000
    n_step: int = 1
    offline_share: float = 0.0
    environments: int = 1
    needs_offline: bool = False
    alone: OfflineRecipe | None = None
    chunk: int = 1

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OnPolicyRecipe:
    """`learner(space, seed)` makes the learner; every update sees `horizon` steps of each environment (None: as many
    as the longest episode has). With `episodes` it sees that many whole episodes of each instead, one after the other
    as if of one environment; `horizon` is then where a longer episode is cut."""

    learner: Callable[[Space, int], Learner]
    horizon: int | None = 2048
    discount: float = 0.99
    environments: int = 1
    needs_offline: bool = False
    episodes: int | None = None

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OfflineRecipe:
    """`learner(space, seed)` makes the learner; every step is one batch of the demonstrations. Environments are for
    evaluation only. `episode` is what becomes of the transitions of each episode before they are batched; an action of
    the learner is a `chunk` of the environment's."""

    learner: Callable[[Space, int], Learner]
    discount: float = 0.99
    batch: int = 256
    environments: int = 1
    needs_offline: bool = True
    episode: Callable[[Transitions], Transitions] | None = None
    chunk: int = 1

    def __post_init__(self) -> None:
        check(self)


Recipe = OffPolicyRecipe | OnPolicyRecipe | OfflineRecipe


def warmup_of(recipe: OffPolicyRecipe, horizon: int | None) -> int:
    """Steps at random at the beginning; `horizon` is the longest episode."""
    return min(10 * (horizon or 500), 5000) if recipe.warmup is None else recipe.warmup


def check_given(recipe: OffPolicyRecipe | OnPolicyRecipe, offline: Replay | None) -> None:
    """A loop that needs demonstrations has them before it runs."""
    if recipe.needs_offline and offline is None:
        raise InputError("demos", None, "this loop learns from demonstrations too: give it some before it runs")


Fed = TypeVar("Fed", OffPolicyRecipe, OnPolicyRecipe, OfflineRecipe)


def fed(kind: type[Fed], settings: Any, **more: Any) -> Fed:
    """The recipe of a learner's settings: those that say how it is fed have the names of the recipe's fields; `more`
    are those that the settings have not."""
    own = {f.name: vars(settings)[f.name] for f in fields(kind) if f.name in vars(settings)}
    return cast(Any, kind)(settings, **(own | more))


def chunk_of(recipe: Recipe) -> int:
    """Actions that are decided at once."""
    return 1 if isinstance(recipe, OnPolicyRecipe) else recipe.chunk


def steps_of(recipe: Recipe) -> int:
    """Steps of a return, n."""
    return recipe.n_step if isinstance(recipe, OffPolicyRecipe) else 1


def uses_offline(recipe: Recipe) -> bool:
    """Whether it learns from demonstrations, if there are any."""
    return recipe.needs_offline or (isinstance(recipe, OffPolicyRecipe) and recipe.offline_share > 0)


def whole_episodes(recipe: OnPolicyRecipe, horizon: int | None) -> OnPolicyRecipe:
    """The recipe with the length of its rollouts filled in, where it is that of the longest episode."""
    if recipe.horizon is None and horizon is None:
        raise InputError("task", "no longest episode", "rollouts are whole episodes here: set max_steps of the task")
    return replace(recipe, horizon=horizon) if recipe.horizon is None else recipe
