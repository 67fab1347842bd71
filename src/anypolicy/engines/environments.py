"""Environments stepped together. What auto-reset does to observations is undone here and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float
from torch import Tensor

from anypolicy.data.arrays import single
from anypolicy.engines.guard import LARGEST, TOLD, EnvironmentFailed, check_bounds, guarded
from anypolicy.engines.snapshots import put_back, snapshot
from anypolicy.errors import RAISED, InputError

TOOK, PAID = "anypolicy: steps of the chunk", "anypolicy: rewards of the chunk, not discounted"
"""What `tasks.control.chunks` says in `info`, in words that no environment uses."""


@dataclass(frozen=True)
class Stepped:
    """One step of every environment. `next_observation` is what followed the action, also at an end; rows that are not
    `real` only started a new episode (next-step auto-reset) and are no transitions. `took` is 1, or the steps of a
    chunk of actions, whose reward is discounted inside it."""

    observation: Float[Tensor, "environments n"]
    reward: Float[Tensor, " environments"]
    next_observation: Float[Tensor, "environments n"]
    terminated: Float[Tensor, " environments"]
    truncated: Float[Tensor, " environments"]
    real: Bool[Tensor, " environments"]
    took: Float[Tensor, " environments"]


@dataclass
class Episodes:
    """Returns, lengths and successes of episodes that ended since they were last taken."""

    returns: list[float] = field(default_factory=list[float])
    lengths: list[int] = field(default_factory=list[int])
    successes: list[float] = field(default_factory=list[float])

    def means(self) -> dict[str, float]:
        """Means over them, by ledger name; nothing if there are none."""
        out = {"episode/count": float(len(self.returns))}
        for name, values in (("return", self.returns), ("length", self.lengths), ("success", self.successes)):
            if values:
                out[f"episode/{name}"] = float(np.mean(values))
        return out


def in_units(acts: Any, action: Float[Tensor, "environments actions"]) -> np.ndarray:
    """Actions in [−1, 1] scaled to a box and never outside it (rounded, where it holds whole numbers), or an
    environment's own numbers of the choices."""
    if isinstance(acts, MultiDiscrete):
        return action.long().numpy() + acts.start
    if isinstance(acts, Discrete):
        return action[:, 0].long().numpy() + acts.start
    unit, whole = action.clamp(-1, 1).numpy(), np.issubdtype(acts.dtype, np.integer)
    low, high = (x.astype(np.float64) if whole else x for x in (acts.low, acts.high))
    scaled = low + (unit + 1) / 2 * (high - low)
    nearest = np.rint(scaled) if whole else scaled
    return np.minimum(np.maximum(nearest, low), high).astype(acts.dtype)


class Environments:
    """A Gymnasium vector environment behind one contract, whichever of the two auto-reset modes it has."""

    def __init__(self, vector: VectorEnv[Any, Any, Any], seed: int):
        mode = vector.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise InputError(
                "autoreset_mode", mode, "use a vector environment that resets in the same or the next step"
            )
        self.vector, self.same_step, self.seed = vector, mode is AutoresetMode.SAME_STEP, seed
        copies = getattr(vector, "envs", None)
        if isinstance(copies, list):
            copies[:] = [guarded(env) for env in copies]
        acts = vector.single_action_space
        several = isinstance(acts, MultiDiscrete) and acts.nvec.ndim == 1
        if not (several or isinstance(acts, Box | Discrete)):
            raise InputError("actions", str(acts), "use an environment with one box or discrete actions")
        if isinstance(acts, Box):
            check_bounds("actions", acts)
        self.acts: Any = acts
        self.started = np.zeros(vector.num_envs, np.bool_)
        self.totals, self.counts = np.zeros(vector.num_envs), np.zeros(vector.num_envs, np.int64)
        self.won, self.told = np.zeros(vector.num_envs), False
        self.ended, self.failed = Episodes(), False
        self.current = self.seen(self.asked(lambda: vector.reset(seed=seed))[0])

    def __len__(self) -> int:
        return self.vector.num_envs

    def asked(self, what: Callable[[], Any]) -> Any:
        """What the environments answer."""
        try:
            return what()
        except InputError as error:
            raise self.fault(error.field, error.value, error.allowed) from error
        except RAISED as error:
            raise self.fault("environment", f"{type(error).__name__}: {error}", "it must not raise") from error

    def fault(self, field: str, value: object, allowed: str) -> EnvironmentFailed:
        """The error to raise; from then on these environments count as failed."""
        self.failed = True
        return EnvironmentFailed(field, value, allowed)

    def finite(self, observation: Tensor | np.ndarray) -> None:
        """Refuses observations that are no numbers."""
        if not bool(np.isfinite(np.asarray(observation)).all()):
            raise self.fault("observation", "NaN or infinite", "the environment must give finite numbers")

    def seen(self, observation: Any) -> Float[Tensor, "environments n"]:
        """Observations as float32, copied; anything else than the promised shape is an error."""
        space = self.vector.single_observation_space
        try:
            x = single("observation", observation)
        except InputError as error:
            raise self.fault(error.field, error.value, error.allowed) from error
        if x.shape != (len(self), *(space.shape or ())):
            raise self.fault("observation", x.shape, f"the environment promised {space.shape} for each of {len(self)}")
        self.finite(x)
        return torch.from_numpy(x)

    def native(self, action: Float[Tensor, "environments actions"]) -> Any:
        """Actions as the environments take them."""
        return in_units(self.acts, action)

    def step(self, action: Float[Tensor, "environments actions"]) -> Stepped:
        """Act in every environment; those that have ended begin anew."""
        if not action.isfinite().all():
            raise InputError("action", "NaN or infinite", "the policy has diverged: use a lower learning rate")
        before, starting = self.current, self.started.copy()
        shown, reward, terminated, truncated, info = self.asked(lambda: self.vector.step(self.native(action)))
        reward = np.asarray(reward, np.float64)
        if reward.shape != (len(self),) or not (abs(reward) <= LARGEST).all():
            raise self.fault("reward", reward, "the environment must give one finite number a step")
        over = self.flags("terminated", terminated) | self.flags("truncated", truncated)
        self.current = self.seen(shown)
        after = self.current
        if self.same_step and over.any():
            after = after.clone()
            for e in np.flatnonzero(over):
                after[e] = torch.from_numpy(single("observation", info["final_obs"][e]))
            self.finite(after)
        real = ~starting
        took = said(info, TOOK, np.ones(len(self)), self.same_step)
        self.count(said(info, PAID, reward, self.same_step), took, over & real, real, info)
        self.started = over & real if not self.same_step else np.zeros_like(over)
        ended, cut = (torch.from_numpy(np.asarray(x, np.float32)) for x in (terminated, truncated))
        paid, lasted = (torch.from_numpy(x.astype(np.float32)) for x in (reward, took))
        return Stepped(before, paid, after, ended, cut, torch.from_numpy(real), lasted)

    def flags(self, name: str, given: Any) -> Bool[np.ndarray, " environments"]:
        """Which environments have ended."""
        x = np.asarray(given)
        if x.shape == (len(self),) and x.dtype == np.bool_:
            return x
        if x.shape != (len(self),) or not np.isin(x, (0, 1)).all():
            raise self.fault(name, given, "the environment must say true or false (or 1 or 0)")
        return x.astype(np.bool_)

    def count(
        self, reward: np.ndarray, took: np.ndarray, over: np.ndarray, real: np.ndarray, info: dict[str, Any]
    ) -> None:  # fmt: skip
        """Keep the books of episodes."""
        self.totals += np.where(real, reward, 0)
        self.counts += np.where(real, took, 0).astype(np.int64)
        wins = successes(info, len(self), self.same_step)
        if wins is not None:
            self.won = np.where(real, np.maximum(self.won, wins), self.won)
        self.told = wins is not None
        self.book(over)

    def book(self, over: np.ndarray) -> None:
        """Enter the episodes of these environments, which have just acted, as ended."""
        for e in np.flatnonzero(over):
            self.ended.returns.append(float(self.totals[e]))
            self.ended.lengths.append(int(self.counts[e]))
            if self.told:
                self.ended.successes.append(float(self.won[e]))
            self.totals[e] = self.counts[e] = self.won[e] = 0

    def begin_anew(self, which: Bool[Tensor, " environments"], *, ended: bool) -> None:
        """Reset these in the middle of their episodes; `ended` says whether what they did counts as an episode."""
        if not which.any():
            return
        mask = which.numpy()
        self.current = self.seen(self.asked(lambda: self.vector.reset(options={"reset_mask": mask}))[0])
        self.started = self.started & ~mask
        if ended:
            self.book(mask)
        self.totals[mask], self.counts[mask], self.won[mask] = 0, 0, 0

    def take(self) -> Episodes:
        """The episodes that ended since the last call."""
        ended, self.ended = self.ended, Episodes()
        return ended

    def state(self) -> dict[str, Any] | None:
        """Everything that decides what comes next, as plain values; None where an environment does not let us, or has
        failed."""
        if self.failed:
            return None
        copies = getattr(self.vector, "envs", None)
        saved = [self.asked(partial(snapshot, e)) for e in copies] if copies is not None else [None]
        if any(s is None for s in saved):
            return None
        books = {"totals": self.totals.tolist(), "counts": self.counts.tolist(), "won": self.won.tolist(),
                 "started": self.started.tolist()}  # fmt: skip
        ended = [self.ended.returns, self.ended.lengths, self.ended.successes]
        return {"environments": saved, "current": self.current.tolist(), "ended": ended, **books}

    def restore(self, state: dict[str, Any] | None) -> bool:
        """The inverse of `state`. False, with episodes that begin anew, where there is none or an environment does not
        take it back."""
        if state is None:
            return False
        try:
            for env, saved in zip(self.vector.envs, state["environments"], strict=True):  # type: ignore[attr-defined]
                put_back(env, saved)
        except RAISED:
            self.current = self.seen(self.asked(lambda: self.vector.reset(seed=self.seed))[0])
            return False
        self.current = torch.tensor(state["current"], dtype=torch.float32)
        self.totals, self.counts = np.array(state["totals"]), np.array(state["counts"])
        self.won, self.started = np.array(state["won"]), np.array(state["started"])
        self.ended = Episodes(*state["ended"])
        return True

    def close(self) -> None:
        """Close them. What goes wrong there costs no results: it is said and left."""
        try:
            self.vector.close()
        except RAISED as error:
            print(f"warning: the environment failed when it was closed ({type(error).__name__}: {error})",
                  file=sys.stderr)  # fmt: skip


def successes(info: dict[str, Any], n: int, same_step: bool) -> np.ndarray | None:
    """Which environments say in this step that the goal is reached, if they say so at all."""
    out: np.ndarray | None = None
    for place in places(info, same_step):
        for name in TOLD:
            if name in place:
                told = np.asarray(place[name], np.float64).reshape(-1)
                out = told if out is None else np.where(place.get(f"_{name}", np.ones(n, np.bool_)), told, out)
    return out


def places(info: dict[str, Any], same_step: bool) -> list[dict[str, Any]]:
    """Where a vector environment keeps what its environments say: those that ended and began anew apart."""
    return [info, info.get("final_info", {})] if same_step else [info]


def said(info: dict[str, Any], name: str, otherwise: np.ndarray, same_step: bool) -> np.ndarray:
    """A number that environments say of this step under `name`; `otherwise` for those that do not."""
    for place in places(info, same_step):
        if name in place:
            told = np.asarray(place[name], np.float64).reshape(-1)
            otherwise = np.where(place.get(f"_{name}", np.ones(len(otherwise), np.bool_)), told, otherwise)
    return otherwise
