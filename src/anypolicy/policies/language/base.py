"""What the loops and engines ask of a language policy. A protocol: it carries no code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anypolicy.data.batch import Batch
from anypolicy.data.media import Media
from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.policies.language.logits import Logits


class Scores(NamedTuple):
    """The policy's view of a batch, with gradients: per-token log-probability (nats, under the temperature) and entropy
    over the whole vocabulary, both on the processor; the hidden state from which each response token was predicted, and
    the logits (under the temperature) at the positions where `batch.target` is True, in the order of
    `batch.response[batch.target]`, both where the policy is."""

    logp: Float[Tensor, "rows tokens"]
    entropy: Float[Tensor, "rows tokens"] | None = None
    hidden: Float[Tensor, "rows tokens width"] | None = None
    logits: Logits | None = None


class DecodeState(Protocol):
    """The cache of a batch of sequences that are being generated."""

    def select(self, rows: Int[Tensor, " kept"]) -> DecodeState:
        """The state of the given rows, repeated or left out as `rows` says: expands a prompt to its group and lets
        finished rows leave. The state itself must not be used afterwards: it may have been changed in place."""
        ...


class Policy(Protocol):
    """A language policy. `module` holds every parameter; those with requires_grad are trained and checkpointed.
    Batches, contexts and tokens come on the processor, wherever the module is."""

    stop_ids: tuple[int, ...]
    context_length: int
    hidden_size: int

    @property
    def module(self) -> nn.Module: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device:
        """Where weights, caches and hidden states are."""
        ...

    def encode(self, prompt: Prompt) -> Tokens:
        """The context ids of a prompt."""
        ...

    def encode_reference(self, prompt: Prompt) -> Tokens:
        """The prompt's reference as the response ids the policy would have to sample, the stop token that ends them
        included; an `InputError` if it has none or an empty one."""
        ...

    def decode(self, tokens: Tokens) -> str:
        """Text of response ids, special tokens left out."""
        ...

    def token(self, text: str) -> int:
        """The id of the one token that is this text; an error where it is none or several."""
        ...

    def score(
        self, batch: Batch, temperature: float, *, entropy: bool = False, hidden: bool = False, logits: bool = False
    ) -> Scores:
        """Log-probabilities of the batch's response tokens; each distinct context is computed once."""
        ...

    def prefill(self, contexts: list[Tokens]) -> tuple[Any, Float[Tensor, "contexts vocabulary"]]:
        """Read the contexts: a `DecodeState` of the policy's own, and the logits (temperature 1) of each next token, on
        the policy's device."""
        ...

    def step(self, state: Any, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Append one token to every row of the state; the logits of the next, on the policy's device."""
        ...

    def save(self, folder: Path) -> None:
        """Write the policy into an existing empty folder so that it can be loaded again by that path."""
        ...


@runtime_checkable
class Sees(Protocol):
    """A policy that sees the images of a prompt. Its `encode` gives ids in which every image has the placeholder tokens
    that the family's processor gives it, and its `score` reads `Batch.media`."""

    def media(self, prompt: Prompt) -> Media:
        """The processor's outputs for the images of the prompt; {} for a prompt without images."""
        ...

    def prefill(
        self, contexts: list[Tokens], media: Sequence[Media] | None = None
    ) -> tuple[Any, Float[Tensor, "contexts vocabulary"]]:
        """As a policy's, with what every context shows."""
        ...


def media_of(policy: Policy, prompt: Prompt) -> Media:
    """What the policy makes of the prompt's images; an `InputError` where there are some that it cannot see."""
    if isinstance(policy, Sees):
        return policy.media(prompt)
    if prompt.media:
        raise InputError(
            "policy", type(policy).__name__,
            f"it reads text alone, and prompt {prompt.id!r} has images: use a vision-language policy (vlm:…)",
        )  # fmt: skip
    return {}


def prefilled(policy: Policy, contexts: list[Tokens], media: Sequence[Media]) -> tuple[Any, Tensor]:
    """The policy's `prefill`, with what the contexts show where they show anything."""
    if not any(media):
        return policy.prefill(contexts)
    if isinstance(policy, Sees):
        seeing: Any = policy
        return seeing.prefill(contexts, media)
    raise InputError("media", ", ".join(next(m for m in media if m)), f"a {type(policy).__name__} reads text alone")


@runtime_checkable
class PredictsMasked(Protocol):
    """A policy that predicts masked tokens of a response from the rest of it: what losses on a masked-diffusion model's
    evidence lower bound ask for."""

    def score_masked(
        self, batch: Batch, masked: Bool[Tensor, "rows tokens"], temperature: float,
        context_masked: Bool[Tensor, "rows context_tokens"] | None = None,
    ) -> Float[Tensor, "rows tokens"]:  # fmt: skip
        """log p(y_i | y with MASK in place of the `masked` tokens, x) of the masked response tokens, in nats; 0
        elsewhere. `context_masked` hides tokens of each row's context too."""
        ...


@runtime_checkable
class Denoises(PredictsMasked, Protocol):
    """A masked-diffusion policy: it generates by filling in masks instead of token by token."""

    mask_id: int

    def predict(
        self, tokens: Int[Tensor, "rows tokens"], valid: Bool[Tensor, "rows tokens"], where: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "n vocabulary"]:
        """Logits (temperature 1) at the positions `where`, row by row; rows are padded on the right. The mask token has
        probability 0."""
        ...
