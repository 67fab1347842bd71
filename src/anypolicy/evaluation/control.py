"""What a trained controller does where it sees an observation, asked from outside of any run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.wrappers import TransformAction

from anypolicy.engines.environments import in_units
from anypolicy.errors import InputError
from anypolicy.learners.base import Learner, acting
from anypolicy.runs.seeds import generator
from anypolicy.tasks.control.environments import EnvironmentTask, WithStep, layers
from anypolicy.tasks.control.observations import Flat


class Predictor:
    """`predict` of Stable-Baselines3: observations as the environment gives them (one, or several stacked), actions as
    it takes them."""

    def __init__(self, learner: Learner, task: EnvironmentTask, seed: int = 0):
        single = task.one_by_one()
        env = single.make()
        wrappers = layers(env)
        if any(isinstance(layer, WithStep) for layer in wrappers):
            told = "its observations hold the step of the episode, which an observation alone does not say"
            raise InputError("task", task.name, told)
        flat = next(layer for layer in wrappers if isinstance(layer, Flat))
        self.layout, self.given, self.acts = flat.layout, flat.env.observation_space, single.space
        self.space: Any = env.action_space
        self.changes = [layer.func for layer in wrappers if isinstance(layer, TransformAction)]
        self.act = {explore: acting(learner, explore=explore) for explore in (False, True)}
        self.width, self.rng = single.space.action_width, generator(seed, "predict")
        env.close()

    def __call__(self, observation: Any, *, deterministic: bool = True) -> np.ndarray:
        """The action of one observation, or of each of several; of a method that decides on several steps at once the
        actions of these steps. Raises InputError for what the environment never shows."""
        one = self.is_one(observation)
        rows = self.layout.one(observation)[None] if one else self.layout.many(observation)
        if not np.isfinite(rows).all():
            raise InputError("observation", "NaN or infinite", "give finite numbers")
        acted = self.act[not deterministic](torch.from_numpy(rows), self.rng).executed
        steps = [self.native(part) for part in acted.split(self.width, 1)]
        actions = steps[0] if len(steps) == 1 else np.stack(steps, 1)
        return actions[0] if one else actions

    def is_one(self, observation: Any) -> bool:
        """Whether this is a single observation."""
        if not isinstance(self.given, Box):
            return bool(self.given.contains(observation))
        shape = np.shape(observation)
        if shape != self.given.shape and shape[1:] != self.given.shape:
            told = f"give one of the shape {self.given.shape}, or several stacked"
            raise InputError("observation", shape, told)
        return shape == self.given.shape

    def native(self, action: torch.Tensor) -> np.ndarray:
        """In the environment's own units."""
        actions = in_units(self.space, action)
        for change in self.changes:
            actions = np.stack([np.asarray(change(a)) for a in actions])
        return actions
