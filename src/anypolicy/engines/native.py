"""The native engine: the policy's own forward pass with a cache, on this machine.

Each distinct context is read once and its cache expanded to the group; rows leave the batch when they end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anypolicy.data.media import Contents, Media
from anypolicy.data.records import Segment, Stop, Tokens
from anypolicy.engines.base import Request, Sampling
from anypolicy.errors import InputError
from anypolicy.parts.token_logp import at_least_float32
from anypolicy.policies.language.base import Policy, prefilled

Reals = NDArray[np.float32]


FEW = 4096
"""Up to this many tokens in the vocabulary one running sum is quicker than sums in two levels."""


class NativeEngine:
    """Samples from a `Policy` with temperature, top-k, top-p and stop tokens."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def of(self, policy: Policy) -> NativeEngine:
        return NativeEngine(policy)

    @torch.no_grad()
    def generate(
        self, requests: list[Request], sampling: Sampling, generator: torch.Generator, version: int = 0
    ) -> list[list[tuple[Segment, Stop]]]:
        """Continuations of every request, in order. The log-probability is that of the temperature-scaled
        distribution over the whole vocabulary (temperature 1 if greedy), also where top-k or top-p cut it: it is what
        the update computes again."""
        starts, distinct, shown = dict[tuple[bytes, bytes], int](), list[Tokens](), list[Media]()
        contents, row_start = Contents(), list[int]()
        contexts = [np.concatenate([r.context, np.array(r.prefix, np.int64)]) for r in requests]
        for r, c in zip(requests, contexts, strict=True):
            if len(r.prefix) > limit(r, sampling):
                raise InputError(
                    "prefix", f"{len(r.prefix)} tokens", f"it must fit into max_tokens = {limit(r, sampling)}"
                )
            if len(r.context) + sampling.max_tokens > self.policy.context_length:
                room = self.policy.context_length
                raise InputError(
                    "prompt", f"{len(r.context)} tokens",
                    f"the policy holds {room} tokens and max_tokens is {sampling.max_tokens}: shorten one of them",
                )  # fmt: skip
            key = c.tobytes(), contents(r.media)
            if key not in starts:
                starts[key] = len(distinct)
                distinct.append(c)
                shown.append(r.media)
            row_start += [starts[key]] * r.n
        state, logits = prefilled(self.policy, distinct, shown)
        expand = torch.tensor(row_start, dtype=torch.long)
        state, logits = state.select(expand), logits[expand]
        left = torch.tensor([limit(r, sampling) - len(r.prefix) for r in requests for _ in range(r.n)])
        tokens, logp, length, ended, spread = self.decode(state, logits, sampling, generator, left)
        out: list[list[tuple[Segment, Stop]]] = []
        row = 0
        for r in requests:
            answers: list[tuple[Segment, Stop]] = []
            for _ in range(r.n):
                n, p = int(length[row]), len(r.prefix)
                response = np.concatenate([np.array(r.prefix, np.int64), tokens[row, :n]])
                opening = np.zeros(p, np.float32) if r.prefix_logp is None else np.array(r.prefix_logp, np.float32)
                sampled = np.arange(p + n) >= p
                mask = sampled if r.prefix_logp is None else np.ones(p + n, np.bool_)
                made = np.where(sampled, version, -1)
                segment = Segment(
                    r.context, response, np.concatenate([opening, logp[row, :n]]), mask, made, media=r.media
                )
                if sampling.entropy:
                    segment.entropy = np.concatenate([np.zeros(p, np.float32), spread[row, :n]])
                answers.append((segment, "eos" if ended[row] else "length"))
                row += 1
            out.append(answers)
        return out

    def decode(
        self, state: Any, logits: Float[Tensor, "rows vocabulary"], sampling: Sampling, generator: torch.Generator,
        left: Int[Tensor, " rows"],
    ) -> tuple[NDArray[np.int64], Reals, NDArray[np.int64], NDArray[np.bool_], Reals]:  # fmt: skip
        """Token by token until every row has ended or has none `left`. Returns (rows, tokens) ids and
        log-probabilities, the length of every row, whether a stop token ended it, and the entropies if `sampling` asks
        for them."""
        rows, most = len(logits), int(left.max())
        ids = np.zeros((rows, most), np.int64)
        logp, spread = np.zeros((rows, most), np.float32), np.zeros((rows, most), np.float32)
        length, ended = np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
        stops = torch.tensor(self.policy.stop_ids, dtype=torch.long)
        alive = torch.nonzero(left > 0).squeeze(1)
        if len(alive) < rows:
            state, logits, left = state.select(alive), logits[alive], left[alive]
        for t in range(most):
            if not len(alive):
                break
            token, chosen = (x.cpu() for x in draw(logits, sampling, generator))
            where = alive.numpy()
            ids[where, t], logp[where, t], length[where] = token.numpy(), chosen.numpy(), t + 1
            if sampling.entropy:
                spread[where, t] = entropy(logits, sampling.temperature).cpu().numpy()
            stopped = torch.isin(token, stops)
            ended[where] = stopped.numpy()
            keep = ~stopped & (left > t + 1)
            if not keep.all():
                going = filled(keep)
                state, token, alive, left = state.select(going), token[going], alive[going], left[going]
            if len(alive):
                logits = self.policy.step(state, token)
        return ids, logp, length, ended, spread


def filled(keep: Bool[Tensor, " rows"]) -> Int[Tensor, " kept"]:
    """The rows to keep, those behind the new end in the places of those that leave: all others stay where they are."""
    n = int(keep.sum())
    order = torch.arange(n)
    order[~keep[:n]] = n + torch.nonzero(keep[n:]).squeeze(1)
    return order


def limit(request: Request, sampling: Sampling) -> int:
    """Most tokens of a response to the request."""
    return sampling.max_tokens if request.max_tokens is None else min(request.max_tokens, sampling.max_tokens)


def draw(
    logits: Float[Tensor, "rows vocabulary"], sampling: Sampling, generator: torch.Generator
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """One token a row and its log-probability before top-k and top-p. The noise comes from the processor."""
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    whole = not sampling.top_k and sampling.top_p == 1
    if logits.shape[1] > FEW and sampling.temperature and whole:
        return pick(logits, generator)
    logp = torch.log_softmax(logits.to(at_least_float32(logits.dtype)), -1)
    if sampling.temperature == 0:
        token = logp.argmax(-1)
        check_finite(logp.gather(1, token[:, None]))
    else:
        below = (logp if whole else truncated(logp, sampling)).exp().cumsum(-1, dtype=torch.float64)
        check_finite(below[:, -1])
        u = torch.rand(len(below), 1, generator=generator, dtype=torch.float64).to(below.device) * below[:, -1:]
        token = torch.searchsorted(below, u, right=True).squeeze(1)
    return token, logp.gather(1, token[:, None]).squeeze(1)


def check_finite(totals: Tensor) -> None:
    """Refuse a policy whose probabilities are no numbers any more."""
    if not bool(totals.isfinite().all()):
        raise InputError(
            "policy", "no number", "its probabilities are not finite: it has diverged; lower lr, or clip more"
        )


def entropy(logits: Float[Tensor, "rows vocabulary"], temperature: float) -> Float[Tensor, " rows"]:
    """−Σ π ln π over the whole vocabulary under the temperature (1 if greedy), in nats."""
    logp = torch.log_softmax(logits.float() / (temperature or 1.0), -1)
    return -(logp.exp() * logp).sum(-1)


def pick(
    z: Float[Tensor, "rows vocabulary"], generator: torch.Generator
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """A token a row with probability softmax(z), and its log-probability: the first place at which the running sum of
    exp z reaches a uniform share of the whole, found among sums of about √vocabulary tokens, then inside one."""
    rows, vocabulary = z.shape
    wide = z.to(at_least_float32(z.dtype))
    p = torch.sub(wide, wide.amax(-1, keepdim=True), out=None if wide is z else wide).exp_()
    root = math.isqrt(vocabulary - 1) + 1
    size = next((n for n in range(root, 4 * root) if vocabulary % n == 0), 0)
    p = p.view(rows, -1, size) if size else functional.pad(p, (0, -vocabulary % root)).view(rows, -1, root)
    sums = p.sum(-1).cumsum(-1, dtype=torch.float64)
    check_finite(sums[:, -1])
    u = (1 - torch.rand(rows, 1, generator=generator, dtype=torch.float64)).to(sums.device) * sums[:, -1:]
    block = torch.searchsorted(sums, u)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0)
    part = p[torch.arange(rows), block.squeeze(1)]
    inner = part.cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(inner, torch.minimum(u - before, inner[:, -1:]))
    logp = (part.gather(1, place).log() - sums[:, -1:].log()).to(p.dtype)
    return (block * p.shape[2] + place).squeeze(1), logp.squeeze(1)


def truncated(logp: Float[Tensor, "rows vocabulary"], sampling: Sampling) -> Float[Tensor, "rows vocabulary"]:
    """−inf outside the k likeliest tokens and outside the smallest set that holds top_p of the probability."""
    if 0 < sampling.top_k < logp.shape[1]:
        values, index = logp.topk(sampling.top_k, -1)
        logp = torch.full_like(logp, -torch.inf).scatter(1, index, values)
    if sampling.top_p < 1:
        ordered, index = logp.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(1, index, before >= sampling.top_p)
        logp = logp.masked_fill(cut, -torch.inf)
    return logp
