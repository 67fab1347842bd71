"""What produces responses. A protocol and its two records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from anypolicy.data.media import Media
from anypolicy.data.records import Prompt, Segment, Stop, Tokens
from anypolicy.policies.language.base import Policy, media_of


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; top_p = 1 and top_k = 0 keep the whole vocabulary.
    `entropy` asks to record the entropy of each token's distribution, before top-p/top-k. A masked-diffusion policy
    fills in blocks of `block` tokens, all of them in `steps` passes (0: one for each token)."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    entropy: bool = False
    block: int = 32
    steps: int = 0


class Request(NamedTuple):
    """`n` continuations of `context` + `prefix`. The prefix opens the response: with mask False and logp 0, or, where
    `prefix_logp` gives the probability with which each of its tokens was chosen (in nats), with mask True and that.
    `max_tokens` limits the response, prefix included, below the sampling's own limit. `media` is what the context shows
    beside its text; the segments of the answers have it too."""

    context: Tokens
    n: int = 1
    prefix: tuple[int, ...] = ()
    prefix_logp: tuple[float, ...] | None = None
    max_tokens: int | None = None
    media: Media = {}


def ask(policy: Policy, prompt: Prompt, n: int = 1) -> Request:
    """`n` responses of the policy to a prompt and what it shows."""
    return Request(policy.encode(prompt), n, media=media_of(policy, prompt))


class Engine(Protocol):
    policy: Policy
    """Whose responses these are."""

    def of(self, policy: Policy) -> Engine:
        """The same kind of engine for another policy."""
        ...

    def generate(
        self, requests: list[Request], sampling: Sampling, generator: torch.Generator, version: int = 0
    ) -> list[list[tuple[Segment, Stop]]]:
        """The continuations of every request, in order, as segments with the log-probability (nats, of the
        temperature-scaled distribution before top-p/top-k) of every sampled token, stop token included. The version
        of prefix tokens is −1: no policy sampled them."""
        ...
