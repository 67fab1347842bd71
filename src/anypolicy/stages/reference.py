"""The reference policy: what a divergence or a log-ratio is taken to, whether it stands still or moves."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.data.batch import Batch
from anypolicy.data.media import content
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy
from anypolicy.runs.seeds import generator


class ReferenceMode(Protocol):
    """How the reference moves. A stage of a recipe."""

    @property
    def moves(self) -> bool:
        """Whether it ever differs from the policy the run began with."""
        ...

    def advance(self, reference: Reference, step: int) -> None:
        """Called before the experience of every step."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The policy as the run began."""

    moves = False

    def advance(self, reference: Reference, step: int) -> None:
        """It stands still."""


@dataclass(frozen=True)
class PerRound:
    """The policy as it was at the beginning of the round; a round is `every` steps."""

    every: int = 1
    moves = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError("reference.every", self.every, "use a whole number of steps, at least 1")

    def advance(self, reference: Reference, step: int) -> None:
        if step % self.every == 0:
            reference.set(reference.live())


@dataclass(frozen=True)
class MovingAverage:
    """θ_ref ← (1 − rate) θ_ref + rate θ after every step."""

    rate: float = 0.01
    moves = True

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise InputError("reference.rate", self.rate, "use a number in (0, 1]")

    def advance(self, reference: Reference, step: int) -> None:
        if step:
            reference.set([a.lerp(b, self.rate) for a, b in zip(reference.weights, reference.live(), strict=True)])


@dataclass(frozen=True)
class CheckpointPool:
    """At every step one of the policies of this run, drawn uniformly: that of its beginning and those that joined
    every `every` steps since; of more than `size` the oldest leave."""

    every: int = 1
    size: int = 8
    moves = True

    def __post_init__(self) -> None:
        if self.every < 1 or self.size < 1:
            raise InputError("reference", f"every {self.every}, size {self.size}", "use whole numbers, at least 1")

    def advance(self, reference: Reference, step: int) -> None:
        if step % self.every == 0:
            reference.pool = [*reference.pool, reference.live()][-self.size :]
        if not reference.pool:
            raise InputError("checkpoint", "reference", "its pool is empty: put the checkpoint back")
        rng = generator(reference.seed, "reference", step)
        reference.set(reference.pool[int(torch.randint(len(reference.pool), (1,), generator=rng))])


class Reference:
    """A policy of its own beside the one that learns. `policy` is the reference as it is now, `start` as the run began.

    Log-probabilities of recorded responses are kept where the reference cannot move: each costs one forward pass a run.
    """

    def __init__(self, mode: ReferenceMode, frozen: Policy, learner: Policy, seed: int):
        self.mode, self.policy, self.seed = mode, frozen, seed
        self.start = copy.deepcopy(frozen) if mode.moves else frozen
        self.known: dict[str, Tensor] = {}
        self.pool: list[list[Tensor]] = []
        if not mode.moves:
            return
        trained = {n: p for n, p in learner.module.named_parameters() if p.requires_grad}
        own = dict(frozen.module.named_parameters())
        if any(n not in own or own[n].shape != p.shape for n, p in trained.items()):
            raise InputError(
                "reference", "another model", "it moves towards the policy, so it must have its parameters"
            )
        self.learner, self.parameters = list(trained.values()), [own[n] for n in trained]
        self.weights = [wide(p) for p in self.parameters]

    def live(self) -> list[Tensor]:
        """A copy of the learner's trained weights, in at least float32."""
        return [wide(p) for p in self.learner]

    @torch.no_grad()
    def set(self, weights: list[Tensor]) -> None:
        """Become the policy of these weights."""
        self.weights = weights
        for p, w in zip(self.parameters, weights, strict=True):
            p.copy_(w)

    def advance(self, step: int) -> None:
        """Move, if it is time to."""
        self.mode.advance(self, step)

    def logp(self, batch: Batch, score: Callable[[Batch], Tensor]) -> Float[Tensor, "rows tokens"]:
        """Log-probabilities of the batch's responses; `score` computes those that are not known yet. Responses without
        a reward do not come again: they were aborted, or stand under a context that was made for this step."""
        if self.mode.moves or batch.read is not None:
            return score(batch)
        once = (batch.reward.isnan() & batch.sampled)[batch.trajectory]
        recorded = (((batch.version < 0) | ~batch.valid).all(1) & ~once).tolist()
        if not any(recorded):
            return score(batch)
        length, names = batch.valid.sum(1).tolist(), row_names(batch)
        missing = [i for i in range(batch.rows) if not (recorded[i] and names[i] in self.known)]
        fresh = score(batch.select(torch.tensor(missing))) if missing else None
        out = batch.logp_old.new_zeros(batch.response.shape)
        if fresh is not None:
            out[missing, : fresh.shape[1]] = fresh
            self.known |= {names[i]: out[i, : length[i]].clone() for i in missing if recorded[i]}
        for i in set(range(batch.rows)) - set(missing):
            out[i, : length[i]] = self.known[names[i]]
        return out

    def tensors(self) -> dict[str, Tensor]:
        """Weights, pool and kept log-probabilities by name, for a checkpoint."""
        if not self.mode.moves:
            return {"reference.known": torch.cat(list(self.known.values()))} if self.known else {}
        out = {f"reference.{i}": w for i, w in enumerate(self.weights)}
        return out | {f"reference.pool.{n}.{i}": w for n, one in enumerate(self.pool) for i, w in enumerate(one)}

    def state(self) -> dict[str, Any]:
        """How many policies are in the pool, and whose log-probabilities are kept."""
        return {"pool": len(self.pool), "known": [[k, len(v)] for k, v in self.known.items()]}

    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` and `state` gave."""
        if names := state["known"]:
            parts = tensors["reference.known"].split([n for _, n in names])
            self.known = {k: v.clone() for (k, _), v in zip(names, parts, strict=True)}
        if self.mode.moves:
            many = range(len(self.weights))
            own = [w.device for w in self.weights]
            self.pool = [[tensors[f"reference.pool.{n}.{i}"].to(own[i], copy=True) for i in many]
                         for n in range(state["pool"])]  # fmt: skip
            found = [tensors[f"reference.{i}"].to(own[i], copy=True) for i in many]
            if any(x.shape != w.shape for one in (*self.pool, found) for x, w in zip(one, self.weights, strict=True)):
                raise ValueError("its reference is another model")
            self.set(found)


def wide(p: Tensor) -> Tensor:
    """A copy in at least float32."""
    return (p.detach().float() if p.dtype in (torch.bfloat16, torch.float16) else p.detach()).clone()


def row_names(batch: Batch) -> list[str]:
    """A name of every row's context, what that shows, and response."""
    out: list[str] = []
    shown = [b""] * len(batch.context) if batch.media is None else [content(m) for m in batch.media]
    for i, c in enumerate(batch.context_index.tolist()):
        context = shown[c] + batch.context[c][batch.context_valid[c]].numpy().tobytes()
        response = batch.response[i][batch.valid[i]].numpy().tobytes()
        out.append(hashlib.sha256(len(context).to_bytes(8, "little") + context + response).hexdigest()[:32])
    return out
