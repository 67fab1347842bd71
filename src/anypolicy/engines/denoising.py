"""The engine of masked-diffusion policies: blocks of masks are filled in from left to right, the surest tokens first.

Semi-autoregressive denoising with low-confidence remasking (LLaDA, arXiv 2502.09992, section 2.4 and appendix B.4): in
every pass a token is drawn for each mask of the block, the most probable ones stay, the others are masked again.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Segment, Stop, Trajectory
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.native import draw, limit
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Denoises, Policy

TOKENS = 1 << 14
"""Tokens in one forward pass."""


class DenoisingEngine:
    """Samples from a masked-diffusion policy. Every response is as long as allowed: what follows its first stop token
    fills it up, belongs to it in the update, and is no part of the answer (`Segment.end`)."""

    def __init__(self, policy: Policy):
        if not isinstance(policy, Denoises):
            raise InputError("policy", type(policy).__name__, "this engine is for masked-diffusion policies")
        self.policy: Policy = policy
        self.denoiser: Denoises = policy

    def of(self, policy: Policy) -> DenoisingEngine:
        return DenoisingEngine(policy)

    @torch.no_grad()
    def generate(
        self, requests: list[Request], sampling: Sampling, generator: torch.Generator, version: int = 0
    ) -> list[list[tuple[Segment, Stop]]]:
        """Responses to every request, in order. Log-probabilities (and entropies) are those of the policy's `score`:
        the passes choose which tokens they keep, so nobody knows the probability of a response as a whole."""
        flat = [r for r in requests for _ in range(r.n)]
        for r in requests:
            if r.media:
                raise InputError("media", ", ".join(r.media), "a masked-diffusion policy reads text alone")
            if len(r.prefix) > limit(r, sampling):
                raise InputError(
                    "prefix", f"{len(r.prefix)} tokens", f"it must fit into max_tokens = {limit(r, sampling)}"
                )
            if len(r.context) + limit(r, sampling) > self.policy.context_length:
                raise InputError(
                    "prompt", f"{len(r.context)} tokens", f"the policy holds {self.policy.context_length} tokens and "
                    f"max_tokens is {sampling.max_tokens}: shorten one of them",
                )  # fmt: skip
        free = np.array([limit(r, sampling) - len(r.prefix) for r in flat], np.int64)
        filled: list[np.ndarray] = [np.zeros(0, np.int64)] * len(flat)
        for n in np.unique(free[free > 0]).tolist():
            rows = np.flatnonzero(free == n)
            wide = max(len(flat[i].context) + len(flat[i].prefix) for i in rows) + n
            for chunk in np.array_split(rows, -(-len(rows) * wide // TOKENS)):
                opened = [np.concatenate([flat[i].context, np.array(flat[i].prefix, np.int64)]) for i in chunk]
                for i, ids in zip(chunk, self.fill(opened, n, sampling, generator), strict=True):
                    filled[i] = ids
        segments = [self.segment(r, ids, version) for r, ids in zip(flat, filled, strict=True)]
        self.estimate(segments, sampling)
        stops: list[Stop] = ["length" if s.end is None else "eos" for s in segments]
        answers = iter(zip(segments, stops, strict=True))
        return [[next(answers) for _ in range(r.n)] for r in requests]

    def fill(
        self, opened: list[np.ndarray], free: int, sampling: Sampling, generator: torch.Generator
    ) -> list[np.ndarray]:
        """`free` tokens behind each of the given beginnings."""
        start = torch.tensor([len(x) for x in opened])
        wide = int(start.max()) + free
        valid = torch.arange(wide) < (start + free)[:, None]
        tokens = torch.full((len(opened), wide), self.denoiser.mask_id).masked_fill(~valid, 0)
        for i, x in enumerate(opened):
            tokens[i, : len(x)] = torch.from_numpy(x)
        begin = 0
        for quotas in schedule(free, sampling.block, sampling.steps):
            left = start[:, None] + torch.arange(begin, begin + sum(quotas))
            for n in quotas:
                left = self.one_pass(tokens, valid, left, n, sampling, generator)
            begin += sum(quotas)
        return [x[s : s + free].numpy() for x, s in zip(tokens, start.tolist(), strict=True)]

    def one_pass(
        self, tokens: Int[Tensor, "rows wide"], valid: Bool[Tensor, "rows wide"], left: Int[Tensor, "rows masks"],
        n: int, sampling: Sampling, generator: torch.Generator,
    ) -> Int[Tensor, "rows fewer"]:  # fmt: skip
        """Draw a token for the masks at `left`, keep in each row the n of the highest probability (at temperature 1),
        and return where masks are left."""
        rows, masks = left.shape
        where = torch.zeros_like(valid).scatter_(1, left, True)
        logits = self.denoiser.predict(tokens, valid, where)
        drawn, _ = draw(logits, sampling, generator)
        sure = torch.log_softmax(logits, -1).gather(1, drawn[:, None]).view(rows, masks).cpu()
        drawn = drawn.cpu()
        best = sure.topk(n, 1).indices
        tokens.scatter_(1, left.gather(1, best), drawn.view(rows, masks).gather(1, best))
        kept = torch.ones(rows, masks, dtype=torch.bool).scatter_(1, best, False)
        return left[kept].view(rows, masks - n)

    def segment(self, r: Request, ids: np.ndarray, version: int) -> Segment:
        """A response with its provenance, log-probabilities of forced tokens alone."""
        n, p = len(ids), len(r.prefix)
        response = np.concatenate([np.array(r.prefix, np.int64), ids])
        opening = np.zeros(p, np.float32) if r.prefix_logp is None else np.array(r.prefix_logp, np.float32)
        sampled = np.arange(p + n) >= p
        stops = np.flatnonzero(np.isin(ids, self.policy.stop_ids))
        return Segment(
            r.context, response, np.concatenate([opening, np.zeros(n, np.float32)]),
            sampled if r.prefix_logp is None else np.ones(p + n, np.bool_), np.where(sampled, version, -1),
            end=p + int(stops[0]) + 1 if len(stops) else None,
        )  # fmt: skip

    def estimate(self, segments: list[Segment], sampling: Sampling) -> None:
        """The policy's own estimate of every sampled token's log-probability, and the entropy if asked for."""
        batch = from_groups([Group("", Prompt(""), [Trajectory("", [s], reward=0.0)]) for s in segments])
        for rows in batch.chunks(TOKENS, own_contexts=True):
            part = batch.select(rows)
            scores = self.policy.score(part, sampling.temperature or 1.0, entropy=sampling.entropy)
            for i, row in enumerate(rows.tolist()):
                s, n = segments[row], len(segments[row].response)
                s.logp = np.where(s.version >= 0, scores.logp[i, :n].float().numpy(), s.logp)
                if scores.entropy is not None:
                    s.entropy = scores.entropy[i, :n].float().numpy()


def schedule(tokens: int, block: int, steps: int) -> list[list[int]]:
    """For every block, how many tokens each of its passes keeps: `steps` passes (0: one a token) shared by the blocks
    in proportion to their tokens, the tokens of a block shared evenly by its passes, the first ones taking what is
    over."""
    edges = [*range(0, tokens, block), tokens]
    steps = min(steps or tokens, tokens)
    if steps < len(edges) - 1:
        raise InputError(
            "denoising_steps", steps, f"{tokens} tokens in blocks of {block} need at least {len(edges) - 1}"
        )
    passes = [steps * b // tokens - steps * a // tokens for a, b in pairwise(edges)]
    return [shared(b - a, n) for (a, b), n in zip(pairwise(edges), passes, strict=True)]


def shared(tokens: int, passes: int) -> list[int]:
    """`tokens` in `passes` nearly equal shares."""
    each, more = divmod(tokens, passes)
    return [each + (i < more) for i in range(passes)]
