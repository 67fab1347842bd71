"""A small transformer that sees one picture, a few rows of numbers, and writes a fixed number of tokens about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from anypolicy.data.batch import Batch
from anypolicy.data.media import Media
from anypolicy.data.readers import check_sizes, json_object, load_weights, read_tensors
from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError, check_names, check_numbers, check_settings
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.logits import Logits
from anypolicy.policies.language.transformer import initialise
from anypolicy.runs.strict_json import json_text

FILE = "picture_reader.safetensors"


@dataclass(frozen=True)
class Sizes:
    """Rows of a picture and numbers in each, ids, tokens of an answer, and the network's."""

    rows: int
    numbers: int
    vocabulary: int
    length: int
    layers: int = 1
    width: int = 64
    heads: int = 4

    def __post_init__(self) -> None:
        check_settings(self)
        check_numbers(self, positive=vars(self))
        if self.width % self.heads:
            raise InputError("width", self.width, f"use a multiple of the {self.heads} heads")


class Block(nn.Module):
    """Pre-norm: causal attention, then an MLP of four times the width with GELU."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "rows places width"]) -> Float[Tensor, "rows places width"]:
        n, places, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(n, places, 3 * self.heads, -1).transpose(1, 2).chunk(3, 1)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(n, places, width))
        return x + self.down(functional.gelu(self.up(self.after(x))))


class Reader(nn.Module):
    """Picture rows, then tokens, in one causal sequence with learned positions."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.see, self.embed = nn.Linear(s.numbers, s.width), nn.Embedding(s.vocabulary, s.width)
        self.place = nn.Embedding(s.rows + s.length, s.width)
        self.blocks = nn.ModuleList([Block(s.width, s.heads) for _ in range(s.layers)])
        self.norm, self.head = nn.LayerNorm(s.width), nn.Linear(s.width, s.vocabulary)

    def forward(
        self, pixels: Float[Tensor, "n rows numbers"], tokens: Int[Tensor, "n tokens"]
    ) -> Float[Tensor, "n tokens width"]:
        """The state after every token."""
        x = torch.cat([self.see(pixels), self.embed(tokens)], 1)
        x = x + self.place.weight[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, pixels.shape[1] :])


@dataclass
class ReaderState:
    """The picture and the tokens so far of every row. Answers are short, so all of it is read again for each token."""

    pixels: Float[Tensor, "n rows numbers"]
    tokens: Int[Tensor, "n tokens"]

    def select(self, rows: Tensor) -> ReaderState:
        rows = rows.to(self.tokens.device)
        return ReaderState(self.pixels[rows], self.tokens[rows])


class PictureReader:
    """The context is a single id; a prompt's `media` has one image, an array of the given rows and numbers."""

    stop_ids: tuple[int, ...] = ()

    def __init__(self, sizes: Sizes, seed: int):
        self.sizes, self.context_length, self.hidden_size = sizes, 1 + sizes.length, sizes.width
        with torch.random.fork_rng(devices=[]):
            self.module = Reader(sizes)
        initialise(self.module, seed)
        self.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return self.module.head.weight.device

    def encode(self, prompt: Prompt) -> Tokens:
        return np.array(prompt.tokens, np.int64)

    def encode_reference(self, prompt: Prompt) -> Tokens:
        """Token ids, as many as an answer has."""
        ids, n, vocabulary = prompt.reference, self.sizes.length, self.sizes.vocabulary
        if not isinstance(ids, tuple) or len(ids) != n or not all(0 <= i < vocabulary for i in ids):
            raise InputError(
                "reference", ids, f"of prompt {prompt.id!r}: give {n} token ids from 0 to {vocabulary - 1}"
            )
        return np.array(ids, np.int64)

    def decode(self, tokens: Tokens) -> str:
        return " ".join(str(t) for t in tokens)

    def token(self, text: str) -> int:
        raise InputError("token", text, "this policy's tokens are numbers: give the id")

    def media(self, prompt: Prompt) -> Media:
        """The picture as it is."""
        images, wanted = prompt.media.get("images", ()), (self.sizes.rows, self.sizes.numbers)
        if len(images) != 1 or np.shape(images[0]) != wanted:
            raise InputError(
                "images", prompt.id, f"this prompt needs one picture of {wanted[0]} rows of {wanted[1]} numbers"
            )
        return {"pixels": torch.from_numpy(np.asarray(images[0], np.float32))}

    def score(
        self, batch: Batch, temperature: float, *, entropy: bool = False, hidden: bool = False, logits: bool = False
    ) -> Scores:
        if batch.media is None:
            raise InputError("images", "none", "this policy answers about a picture, and the batch has none")
        pixels = torch.stack([m["pixels"] for m in batch.media])[batch.context_index].to(self.device)
        before = torch.cat([batch.context[batch.context_index, -1:], batch.response[:, :-1]], 1).to(self.device)
        states = self.module(pixels, before)
        all_logp = torch.log_softmax(self.module.head(states) / temperature, -1)
        logp = all_logp.gather(2, batch.response[..., None].to(self.device)).squeeze(2).cpu()
        spread = -(all_logp.exp() * all_logp).sum(-1).cpu() if entropy else None
        wanted = Logits(all_logp[batch.target], lambda x: x) if logits else None
        return Scores(torch.where(batch.valid, logp, 0), spread, states if hidden else None, wanted)

    @torch.no_grad()
    def prefill(self, contexts: list[Tokens], media: Sequence[Media] | None = None) -> tuple[ReaderState, Tensor]:
        if media is None:
            raise InputError("images", "none", "this policy answers about a picture")
        tokens = torch.from_numpy(np.stack(contexts)).to(self.device)
        state = ReaderState(torch.stack([m["pixels"] for m in media]).to(self.device), tokens)
        return state, self.next(state)

    @torch.no_grad()
    def step(self, state: ReaderState, tokens: Tensor) -> Tensor:
        state.tokens = torch.cat([state.tokens, tokens[:, None].to(self.device)], 1)
        return self.next(state)

    def next(self, state: ReaderState) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the next token; those after a whole answer are those of no token."""
        tokens = state.tokens[:, : self.sizes.length]
        return self.module.head(self.module(state.pixels, tokens)[:, -1])

    def save(self, folder: Path) -> None:
        """Weights and config.json."""
        save_file({k: v.contiguous() for k, v in self.module.state_dict().items()}, folder / FILE)
        (folder / "config.json").write_text(json_text({"type": "picture-reader", **vars(self.sizes)}))

    @classmethod
    def load(cls, folder: Path) -> PictureReader:
        """The policy that `save` has written."""
        needs = ("rows", "numbers", "vocabulary", "length", "layers", "width", "heads")
        known = json_object(folder / "config.json", "policy", "save the policy again", needs)
        given, tensors = {k: v for k, v in known.items() if k != "type"}, read_tensors(folder / FILE, "policy")
        check_names(Sizes, given, "a picture reader")
        sizes = Sizes(**given)
        check_sizes(folder, vars(sizes), tensors)
        policy = cls(sizes, 0)
        load_weights(policy.module, tensors, "policy", folder)
        return policy
