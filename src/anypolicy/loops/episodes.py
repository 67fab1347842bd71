"""Episodes of a learner as they are recorded."""

from __future__ import annotations

import torch
from torch import Tensor

from anypolicy.data.demonstrations import Episode
from anypolicy.engines.environments import Environments, Stepped
from anypolicy.learners.base import Learner, acting
from anypolicy.loops.control import parts_of
from anypolicy.tasks.control.environments import EnvironmentTask


def recorded(
    learner: Learner, task: EnvironmentTask, environments: Environments, rng: torch.Generator, explore: bool
) -> Episode:  # fmt: skip
    """One episode, action by action, from where the environment has just begun anew."""
    act = acting(learner, explore=explore)
    seen, acted, steps, over = [environments.current[0]], list[Tensor](), list[Stepped](), False
    while not over:
        for action in parts_of(act(environments.current, rng), task):
            steps.append(environments.step(action))
            acted.append(action[0] if task.space.discrete else action[0].clamp(-1, 1))
            seen.append(steps[-1].next_observation[0])
            over = bool(steps[-1].terminated[0] or steps[-1].truncated[0])
            if over:
                break
    flags = (torch.cat([getattr(s, name) for s in steps]) for name in ("reward", "terminated", "truncated"))
    return Episode(torch.stack(seen), torch.stack(acted), *flags)
