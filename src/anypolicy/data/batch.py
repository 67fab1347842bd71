"""Groups as padded tensors: what advantages, selections and losses are computed on.

Three levels, joined by index and never by row order: *contexts* (each distinct context stands once, so that a group
pays for its prompt once), *rows* (one per segment) and *trajectories* (one per sample; reward, correct, group).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypolicy.data.media import Contents, Media
from anypolicy.data.records import Group, Segment, Tokens
from anypolicy.parts.moments import Moments
from anypolicy.parts.reduce import Totals, count


@dataclass(frozen=True)
class Batch:
    """Rows = segments, tokens = response positions, right-padded. `mask` is True on tokens that are trained, `chosen`
    on all that the policy chose: a selection narrows only the mask. Log-probabilities are read where `read` is True
    (None: on every valid token).

    `context` is left-padded with `context_valid` False on padding; `context_index` gives each row its context. `media`
    is what each context shows beside its text (None: no context shows anything).
    `logp_old` is the behaviour log-probability (nats, under the sampling temperature); `weight` multiplies a row's
    terms. `before` is what a loss with passes of its own computed with the weights before the first of several updates.
    `target` is True on tokens of supervised targets (None: there are none); they have `mask` False, their
    trajectories reward NaN. `row_seed` is what a loss that draws random numbers draws them from, new for every pass.
    `visits` says how often a search took each response, where one did. `token_weight` is how much each token counts
    (1 where its segment does not say) and `kind` which of its group's answers a trajectory is (−1 where it does not
    say); None where nothing says so.
    `advantage` is set by the loop after the advantage stage; `max_tokens` is the generation limit. `totals` are the
    denominators of the whole optimiser batch and survive `select`, so a part of a batch reduces to its share.
    `progress` runs from 0 at the first step of a run to 1 at its last. `pairs` are trajectories (chosen, rejected),
    also of other parts of the batch; `baseline` is a number that a loss has asked for.
    """

    context: Int[Tensor, "contexts context_tokens"]
    context_valid: Bool[Tensor, "contexts context_tokens"]
    context_index: Int[Tensor, " rows"]
    response: Int[Tensor, "rows tokens"]
    valid: Bool[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens"]
    logp_old: Float[Tensor, "rows tokens"]
    version: Int[Tensor, "rows tokens"]
    weight: Float[Tensor, " rows"]
    trajectory: Int[Tensor, " rows"]
    chosen: Bool[Tensor, "rows tokens"]
    # one entry per trajectory
    reward: Float[Tensor, " trajectories"]
    correct: Bool[Tensor, " trajectories"]
    group_id: Int[Tensor, " trajectories"]
    visits: Float[Tensor, " trajectories"] | None = None
    kind: Int[Tensor, " trajectories"] | None = None
    # one entry per context
    media: tuple[Media, ...] | None = None
    token_weight: Float[Tensor, "rows tokens"] | None = None
    # filled in when a stage asks for them
    logp_ref: Float[Tensor, "rows tokens"] | None = None
    entropy: Float[Tensor, "rows tokens"] | None = None
    read: Bool[Tensor, "rows tokens"] | None = None
    value: Float[Tensor, "rows tokens"] | None = None
    value_target: Float[Tensor, "rows tokens"] | None = None
    advantage: Float[Tensor, "rows tokens"] | None = None
    totals: Totals | None = None
    max_tokens: int | None = None
    progress: float | None = None
    target: Bool[Tensor, "rows tokens"] | None = None
    row_seed: Int[Tensor, " rows"] | None = None
    pairs: Int[Tensor, "pairs 2"] | None = None
    baseline: float | None = None
    before: Float[Tensor, "rows numbers"] | None = None
    # the loop's own: the running moments of all rewards so far, and the seed of what stages draw at random in this step
    running: Moments | None = None
    seed: int = 0

    @property
    def rows(self) -> int:
        return len(self.response)

    @property
    def length(self) -> Int[Tensor, " trajectories"]:
        """Tokens with mask True of each trajectory."""
        return torch.zeros(len(self.reward), dtype=torch.long).index_add_(0, self.trajectory, self.mask.sum(1))

    @property
    def trained(self) -> Bool[Tensor, "rows tokens"]:
        """Tokens that some term of a loss may use: those of responses and those of targets."""
        return self.mask if self.target is None else self.mask | self.target

    @property
    def sampled(self) -> Bool[Tensor, " trajectories"]:
        """Trajectories that are responses of their group, not supervised targets."""
        out = torch.ones(len(self.reward), dtype=torch.bool)
        if self.target is not None:
            out[self.trajectory[self.target.any(1)]] = False
        return out

    def counted(self) -> Totals:
        """The denominators: those of the whole optimiser batch if this is a part of one."""
        if self.totals is not None:
            return self.totals
        group = self.group_id[self.trajectory]
        totals = count(self.mask, self.trajectory, group)
        if self.pairs is not None:
            here = torch.isin(self.pairs, self.trajectory).all(1)
            totals = totals._replace(preferences=float(here.sum()))
        if self.target is None:
            return totals
        rows = float(self.sampled[torch.unique(self.trajectory)].sum())
        return totals._replace(rows=rows, target=count(self.target, self.trajectory, group))

    def to_rows(self, x: Tensor) -> Tensor:
        """Spread one value per trajectory over the tokens of its rows: (trajectories) → (rows, tokens)."""
        return x[self.trajectory][:, None].expand(self.response.shape)

    def trimmed(self) -> Batch:
        """Without the response tokens after each row's last trained one; those before it stay as context, but only the
        trained ones are read. For losses that read no others."""
        needed = self.trained.flip(1).cumsum(1).flip(1) > 0
        return replace(self, valid=self.valid & needed, read=self.trained).select(torch.arange(self.rows))

    def select(self, rows: Tensor) -> Batch:
        """The given rows (indices or mask) with only the contexts they use; trajectory fields and totals stay."""
        new: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ROW_FIELDS and value is not None:
                new[f.name] = value[rows]
        used, new["context_index"] = torch.unique(new["context_index"], return_inverse=True)
        context, valid = self.context[used], self.context_valid[used]
        if self.media is not None:
            new["media"] = tuple(self.media[i] for i in used.tolist())
        pad = int((~valid).sum(1).min()) if len(used) else 0
        wide = int(new["valid"].sum(1).max()) if len(new["valid"]) else 0
        for name in TOKEN_FIELDS & new.keys():
            new[name] = new[name][:, : max(wide, 1)]
        if self.totals is not None:
            new["totals"] = self.totals.select(rows)
        return replace(self, context=context[:, pad:], context_valid=valid[:, pad:], **new)

    def draw(self, trajectories: Int[Tensor, " drawn"]) -> Batch:
        """The given trajectories in the given order. One that is drawn twice stands there as two of its group."""
        by_trajectory = torch.argsort(self.trajectory, stable=True)
        count = torch.bincount(self.trajectory, minlength=len(self.reward))
        owner = torch.arange(len(trajectories)).repeat_interleave(count[trajectories])
        begin = (count.cumsum(0) - count)[trajectories]
        place = torch.arange(len(owner)) - torch.searchsorted(owner, owner)
        part = self.select(by_trajectory[begin[owner] + place])
        own = {name: getattr(self, name) for name in TRAJECTORY_FIELDS}
        new: dict[str, Any] = {name: x if x is None else x[trajectories] for name, x in own.items()}
        return replace(part, trajectory=owner, **new)

    def chunks(self, max_tokens: int, *, whole_groups: bool = False, own_contexts: bool = False) -> list[Tensor]:
        """Row indices of micro-batches of at most `max_tokens` padded tokens, rows of one context together and the
        context counted once; a single row may exceed it. With `whole_groups` no group is split, and a single group may
        exceed it. With `own_contexts` every row counts its context: for policies that read it again for each."""
        context, response = self.context.shape[1], self.response.shape[1]
        if own_contexts:
            context, response = 0, context + response
        if len(self.context) * context + self.rows * response <= max_tokens:
            return [torch.arange(self.rows)]
        index = self.context_index.tolist()
        order = sorted(range(self.rows), key=lambda i: index[i])
        units: dict[int, list[int]] = {}
        group = self.group_id[self.trajectory].tolist()
        for row in order:
            units.setdefault(group[row] if whole_groups else row, []).append(row)
        parts: list[list[int]] = [[]]
        seen: set[int] = set()
        for rows in units.values():
            wanted = {index[row] for row in rows}
            size = len(seen | wanted) * context + (len(parts[-1]) + len(rows)) * response
            if parts[-1] and size > max_tokens:
                parts.append([])
                seen = set()
            parts[-1] += rows
            seen |= wanted
        return [torch.tensor(p) for p in parts]


TOKEN_FIELDS = {"response", "valid", "mask", "chosen", "read", "logp_old", "version", "logp_ref", "entropy", "value",
                "value_target", "advantage", "target", "token_weight"}  # fmt: skip
TRAJECTORY_FIELDS = ("reward", "correct", "group_id", "visits", "kind")
ROW_FIELDS = TOKEN_FIELDS | {"context_index", "weight", "trajectory", "row_seed", "before"}


def from_groups(groups: list[Group], dtype: torch.dtype = torch.float32, max_tokens: int | None = None) -> Batch:
    """Pad the segments of all trajectories into one batch; group_id is the position in `groups`.

    A trajectory without a reward (NaN: its rollout was aborted) keeps its row but none of its tokens is trained. A
    target's tokens go into `target` instead of `mask`. What was sampled under another context than it is trained under
    has no known log-probability there (NaN). Contexts are the same where ids and media are.
    """
    contexts: dict[tuple[bytes, bytes], int] = {}
    context_ids: list[Tokens] = []
    media, shown = list[Media](), Contents()
    segments, index, owner, reward, correct, group_id, is_target = [], [], [], [], [], [], []
    for g, group in enumerate(groups):
        for trajectory in group.trajectories:
            for s in trajectory.segments:
                ids = s.context if s.training_context is None else s.training_context
                key = ids.tobytes(), shown(s.media)
                if key not in contexts:
                    contexts[key] = len(context_ids)
                    context_ids.append(ids)
                    media.append(s.media)
                segments.append(s)
                index.append(contexts[key])
                owner.append(len(reward))
            reward.append(float("nan") if trajectory.target else trajectory.reward)
            correct.append(bool(trajectory.correct) and not trajectory.target)
            is_target.append(trajectory.target)
            group_id.append(g)
    rows, tokens = len(segments), max([len(s.response) for s in segments] + [1])
    wide = max([len(c) for c in context_ids] + [0])
    context = np.zeros((len(context_ids), wide), np.int64)
    context_valid = np.zeros((len(context_ids), wide), np.bool_)
    for i, ids in enumerate(context_ids):
        context[i, wide - len(ids) :] = ids
        context_valid[i, wide - len(ids) :] = True
    response, version = np.zeros((rows, tokens), np.int64), np.zeros((rows, tokens), np.int64)
    valid, mask = np.zeros((rows, tokens), np.bool_), np.zeros((rows, tokens), np.bool_)
    target, logp = np.zeros((rows, tokens), np.bool_), np.zeros((rows, tokens), np.float64)
    own = [s for s, t in zip(segments, owner, strict=True) if not is_target[t]]
    visits = [t.info.get("visits") for g in groups for t in g.trajectories]
    searched = torch.tensor([v or 0 for v in visits], dtype=dtype) if any(v is not None for v in visits) else None
    recorded = bool(own) and all(s.entropy is not None for s in own)
    entropy = np.zeros((rows, tokens), np.float64)
    for i, s in enumerate(segments):
        n = len(s.response)
        response[i, :n], version[i, :n], valid[i, :n], logp[i, :n] = s.response, s.version, True, s.logp
        if s.training_context is not None and not is_target[owner[i]]:
            logp[i, :n] = np.nan
        mask[i, :n] = s.mask & (not np.isnan(reward[owner[i]]))
        if recorded and s.entropy is not None:
            entropy[i, :n] = s.entropy
        target[i, :n] = s.mask & is_target[owner[i]]
    return Batch(
        context=torch.from_numpy(context), context_valid=torch.from_numpy(context_valid),
        context_index=torch.tensor(index, dtype=torch.long), response=torch.from_numpy(response),
        valid=torch.from_numpy(valid), mask=torch.from_numpy(mask), logp_old=torch.from_numpy(logp).to(dtype),
        version=torch.from_numpy(version),
        weight=torch.ones(rows, dtype=dtype), trajectory=torch.tensor(owner, dtype=torch.long),
        chosen=torch.from_numpy(mask), entropy=torch.from_numpy(entropy).to(dtype) if recorded else None,
        reward=torch.tensor(reward, dtype=dtype), correct=torch.tensor(correct, dtype=torch.bool),
        group_id=torch.tensor(group_id, dtype=torch.long), visits=searched, kind=kinds(groups), max_tokens=max_tokens,
        media=tuple(media) if any(media) else None, token_weight=weights(segments, tokens, dtype),
        target=torch.from_numpy(target) if any(is_target) else None,
    )  # fmt: skip


def weights(segments: list[Segment], tokens: int, dtype: torch.dtype) -> Float[Tensor, "rows tokens"] | None:
    """The weight of every token; None where no segment has any."""
    if all(s.token_weight is None for s in segments):
        return None
    out = torch.ones(len(segments), tokens, dtype=dtype)
    for i, s in enumerate(segments):
        if s.token_weight is not None:
            out[i, : len(s.response)] = torch.from_numpy(s.token_weight).to(dtype)
    return out


def kinds(groups: list[Group]) -> Int[Tensor, " trajectories"] | None:
    """Which of its group's answers every trajectory is; None where none says so."""
    said = [t.info.get("kind") for g in groups for t in g.trajectories]
    return torch.tensor([-1 if k is None else k for k in said]) if any(k is not None for k in said) else None
