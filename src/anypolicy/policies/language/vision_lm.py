"""A Hugging Face vision-language model as a policy: images and text in, text out.

Every distinct context is read once, its images with it, in sampling and in the update: the responses of its group go on
from its cache of keys and values. Contexts of one shape are read together, without padding, so that positions and
image masks are the model's own. What a response says is always text, even where it happens to be a placeholder.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from anypolicy.data.batch import Batch
from anypolicy.data.media import Media
from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.causal_lm import HasHead, gather_cache, read_scores, save_merged
from anypolicy.policies.language.logits import Logits
from anypolicy.policies.language.text import (
    beginning,
    check_beside,
    check_turns,
    end_of_turn,
    kept,
    known,
    response_ids,
    silenced,
    single_token,
    stop_tokens,
    text_of,
)

OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Outputs of a processor that belong to the ids; all others belong to the images."""
MARKER = "<image>"
"""Stands in a message where an image is shown; images without one are shown before the first message of the user."""


@dataclass
class Read:
    """What has been read of every row: keys and values (padded on the left), which of them are padding, the position of
    the next token, and the state that predicts it."""

    cache: DynamicCache
    valid: Tensor
    position: Tensor
    last: Float[Tensor, "rows width"]

    def select(self, rows: Tensor) -> Read:
        rows = rows.to(self.valid.device)
        return Read(gather_cache(self.cache, rows), self.valid[rows], self.position[rows], self.last[rows])


class VisionLM(HasHead):
    """`model` and its processor. The model stays in eval mode: no dropout."""

    def __init__(self, model: PreTrainedModel, processor: Any, stop_ids: tuple[int, ...] | None = None):
        self.module = model.eval()
        self.processor, self.tokenizer = processor, processor.tokenizer
        config: Any = model.config
        self.config: Any = config.get_text_config()
        self.family = str(config.model_type)
        self.hidden_size = int(self.config.hidden_size)
        self.context_length = int(getattr(self.config, "max_position_embeddings", None) or 1 << 20)
        self.turn_end = end_of_turn(self.rendered, self.tokenizer) if self.template else None
        self.stop_ids = stop_tokens(model, self.tokenizer, self.turn_end) if stop_ids is None else stop_ids
        self.image_id = image_token(config, processor)
        accepted = inspect.signature(type(self.model.base_model).forward).parameters
        self.types = [name for name in ("token_type_ids", "mm_token_type_ids") if name in accepted]
        self.heard: set[tuple[str, ...]] = set()
        self.last: tuple[Prompt, Tokens, Media] | None = None
        self.check_family()

    @torch.no_grad()
    def check_family(self) -> None:
        """Refuse a family that gives other logits token by token, from its cache, than for the whole at once."""
        image = np.arange(64 * 64 * 3, dtype=np.uint64).reshape(64, 64, 3) % 251
        prompt = Prompt("check", ({"role": "user", "content": "a"},), media={"images": (image.astype(np.uint8),)})
        ids, media = self.encode(prompt), self.media(prompt)
        new = torch.from_numpy(ids[ids != self.image_id][-1:])
        try:
            state, first = self.prefill([ids], [media])
            ours = torch.cat([first, self.step(state, new)])
            whole = torch.cat([torch.from_numpy(ids), new])[None].to(self.device)
            own = self.module(**self.inputs(whole, media)).logits[0, -2:]
        except (AttributeError, TypeError, ValueError, IndexError, KeyError, RuntimeError) as error:
            raise InputError(
                "policy", self.family, f"this adapter cannot read it ({str(error).splitlines()[0]}): it is for models "
                "that put what their vision tower sees among the tokens of a text model with keys and values",
            ) from error  # fmt: skip
        loose = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.1
        if not torch.allclose(ours, own.to(ours.dtype), atol=loose * float(own.abs().max()), rtol=0):
            raise InputError("policy", self.family, "its logits are not those of its cache and head: use another model")

    @property
    def vocabulary(self) -> int:
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    # --- text and images ---------------------------------------------------------------------------------------------
    def encode(self, prompt: Prompt) -> Tokens:
        """The prompt's own ids, or its messages as the family's processor gives them, images as their placeholders."""
        return self.processed(prompt)[0]

    def media(self, prompt: Prompt) -> Media:
        return self.processed(prompt)[1]

    def processed(self, prompt: Prompt) -> tuple[Tokens, Media]:
        """Ids and media of a prompt, those of the last one kept."""
        if self.last is None or self.last[0] is not prompt:
            self.last = (prompt, *self.process(prompt))
        return self.last[1:]

    def process(self, prompt: Prompt) -> tuple[Tokens, Media]:
        """What the processor makes of the prompt."""
        images = pictures(prompt)
        if prompt.tokens is not None:
            ids = known("prompt", prompt, prompt.tokens, self.vocabulary)
            if not images:
                return kept(ids, prompt), {}
            alone = replace(prompt, tokens=None, messages=({"role": "user", "content": MARKER * len(images)},))
            return ids, self.process(alone)[1]
        check_turns(prompt)
        check_beside(prompt, lambda messages: [m["content"] for m in messages], self.family)
        roles = tuple(str(m["role"]) for m in prompt.messages)
        if self.template and roles not in self.heard and (role := silenced(self.rendered, roles)):
            raise InputError("prompt", beginning(prompt), f"the chat template of {self.family} leaves out the words of "
                             f"its message of the {role}: put them into the user's")  # fmt: skip
        self.heard.add(roles)
        messages = placed(prompt, len(images))
        try:
            out = self.templated(messages, images) if self.template else self.plain(prompt, messages, images)
        except InputError:
            raise
        except Exception as error:  # what processors raise has no common type
            raise InputError(
                "prompt", beginning(prompt), f"the processor of {self.family} refuses it ({str(error).splitlines()[0]})"
            ) from error
        media = {k: x for k, x in out.items() if k not in OF_TEXT and isinstance(x, Tensor)}
        ids = out["input_ids"][0].numpy().astype(np.int64)
        return (ids, media) if images else (kept(ids, prompt), {})

    @property
    def template(self) -> str | None:
        """The chat template of the processor or the tokenizer."""
        return getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template

    def rendered(self, messages: list[dict[str, Any]]) -> Any:
        """Messages of text through the chat template, as text."""
        parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        return self.processor.apply_chat_template(parts, tokenize=False)

    def templated(self, messages: list[dict[str, Any]], images: list[Any]) -> Any:
        """Through the chat template, with the assistant's turn opened."""
        left = iter(images)
        for part in (part for m in messages for part in m["content"] if part["type"] == "image"):
            part["image"] = next(left)
        return self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def plain(self, prompt: Prompt, messages: list[dict[str, Any]], images: list[Any]) -> Any:
        """Without a chat template: the one message as it stands."""
        if len(messages) != 1:
            raise InputError("policy", self.family, "it has no chat template, so give one message a prompt")
        token = getattr(self.processor, "image_token", MARKER)
        text = "".join(token if part["type"] == "image" else part["text"] for part in messages[0]["content"])
        if not text:
            raise InputError("prompt", prompt.id, "it is empty: give it a text or an image")
        return self.processor(text=text, images=images or None, return_tensors="pt")

    def encode_reference(self, prompt: Prompt) -> Tokens:
        """The ids themselves, or the text's ids; the end-of-sequence token follows unless a stop token ends them."""
        return response_ids(prompt, self.tokenizer, self.stop_ids, self.vocabulary, self.turn_end)

    def decode(self, tokens: Tokens) -> str:
        return text_of(tokens, self.tokenizer)

    def token(self, text: str) -> int:
        return single_token(text, self.tokenizer)

    # --- reading -----------------------------------------------------------------------------------------------------
    def inputs(self, tokens: Tensor, media: Media) -> dict[str, Any]:
        """What the model's own forward pass takes for rows without padding, `media` those of all rows."""
        kinds = (tokens == self.image_id).long() if media else torch.zeros_like(tokens)
        shown = {k: x.to(self.device, self.dtype if x.is_floating_point() else x.dtype) for k, x in media.items()}
        own = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return own | dict.fromkeys(self.types, kinds) | shown

    def read(self, contexts: Sequence[Tokens], media: Sequence[Media]) -> Read:
        """The cache after every context, and the state that predicts what follows; differentiable."""
        buckets: dict[Any, list[int]] = {}
        for i, (ids, shown) in enumerate(zip(contexts, media, strict=True)):
            self.check_shown(ids, shown)
            buckets.setdefault((len(ids), *((k, x.shape[1:], x.dtype) for k, x in shown.items())), []).append(i)
        wide, parts = max(len(c) for c in contexts), list[Read]()
        if wide > self.context_length:
            raise InputError("prompt", f"{wide} tokens", f"the policy holds {self.context_length}")
        for rows in buckets.values():
            parts.append(self.read_alike([contexts[i] for i in rows], [media[i] for i in rows], wide))
        order = torch.tensor([i for rows in buckets.values() for i in rows]).argsort()
        return parts[0] if len(parts) == 1 else joined(parts).select(order)

    def read_alike(self, contexts: list[Tokens], media: list[Media], wide: int) -> Read:
        """`read` for contexts of one length that show alike shapes, padded to `wide`."""
        tokens = torch.from_numpy(np.stack(contexts)).to(self.device)
        shown = {k: torch.cat([m[k] for m in media]) for k in media[0]}
        base: Any = self.model.base_model
        cache = DynamicCache()
        if hasattr(base, "rope_deltas"):
            base.rope_deltas = None  # of the pass before
        try:
            out = base(**self.inputs(tokens, shown), cache=cache, use_cache=True)
        except ValueError as error:
            raise InputError(
                "media", ", ".join(shown), f"they do not fit the placeholders of the prompt ({error})"
            ) from error
        rows, length = tokens.shape
        delta: Any = getattr(base, "rope_deltas", None)
        position = tokens.new_full((rows,), length) + (0 if delta is None else delta.reshape(-1))
        valid = torch.arange(wide, device=tokens.device).expand(rows, wide) >= wide - length
        return Read(padded(cache, wide - length), valid, position, out.last_hidden_state[:, -1])

    def check_shown(self, ids: Tokens, shown: Media) -> None:
        """Placeholders and images belong together."""
        places = int((ids == self.image_id).sum())
        if places and not shown:
            raise InputError("media", None, f"the prompt has {places} image tokens, and its images are missing: keep "
                             "the media of a prompt with its ids")  # fmt: skip
        if shown and not places:
            raise InputError(
                "media", ", ".join(shown), "the prompt has no image tokens: encode the one that shows them"
            )

    def go_on(self, state: Read, tokens: Tensor, valid: Tensor) -> Float[Tensor, "rows tokens width"]:
        """States of text after what has been read; the cache of `state` grows by it."""
        tokens, valid = tokens.to(self.device), valid.to(self.device)
        seen = torch.cat([state.valid, valid], 1)
        limit = self.context_length - 1
        position = (state.position[:, None] + torch.arange(tokens.shape[1], device=tokens.device)).clamp(max=limit)
        out = self.model.base_model(
            input_ids=tokens, attention_mask=seen.long(), position_ids=position, cache=state.cache, use_cache=True,
            **dict.fromkeys(self.types, torch.zeros_like(tokens)),
        )  # fmt: skip
        state.valid = seen
        return out.last_hidden_state

    # --- scoring -----------------------------------------------------------------------------------------------------
    def score(
        self, batch: Batch, temperature: float, *, entropy: bool = False, hidden: bool = False, logits: bool = False
    ) -> Scores:
        """Scores of the response tokens; every context and its images once."""
        longest = int((batch.context_valid.sum(1)[batch.context_index] + batch.valid.sum(1)).max())
        if longest > self.context_length:
            raise InputError("prompt", f"{longest} tokens with its response", f"the policy holds {self.context_length}")
        contexts = [c[v].numpy() for c, v in zip(batch.context, batch.context_valid, strict=True)]
        state = self.read(contexts, batch.media or [{}] * len(contexts)).select(batch.context_index)
        rest = self.go_on(state, batch.response[:, :-1], batch.valid[:, :-1]) if batch.response.shape[1] > 1 else None
        states = state.last[:, None] if rest is None else torch.cat([state.last[:, None], rest], 1)
        scores = read_scores(states, batch, temperature, self.output, self.cap, entropy=entropy, hidden=hidden)
        if not logits:
            return scores
        assert batch.target is not None
        return scores._replace(logits=Logits(states[batch.target], lambda x: self.head(x) / temperature))

    # --- generation --------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def prefill(self, contexts: list[Tokens], media: Sequence[Media] | None = None) -> tuple[Read, Tensor]:
        state = self.read(contexts, media or [{}] * len(contexts))
        return state, self.head(state.last)

    @torch.no_grad()
    def step(self, state: Read, tokens: Tensor) -> Tensor:
        states = self.go_on(state, tokens[:, None], torch.ones(len(tokens), 1, dtype=torch.bool))[:, -1]
        state.position, state.last = state.position + 1, states
        return self.head(states)

    def save(self, folder: Path) -> None:
        """Hugging Face format with its processor; an adapter is merged into a copy of the weights it adapts."""
        save_merged(self.module, self.model, folder)
        self.processor.save_pretrained(folder)


def image_token(config: Any, processor: Any) -> int:
    """The id of an image's placeholder."""
    names = ("image_token_id", "image_token_index")
    found = next((i for s in (config, processor) for n in names if (i := getattr(s, n, None)) is not None), None)
    if found is None:
        raise InputError("policy", str(config.model_type), "its config names no image token, so it takes no images")
    return int(found)


def pictures(prompt: Prompt) -> list[Image.Image]:
    """The images of a prompt, checked."""
    if other := [k for k in prompt.media if k != "images"]:
        raise InputError("media", other[0], f"prompt {prompt.id!r} may show images alone")
    images = [np.asarray(x) for x in prompt.media.get("images", ())]
    for x in images:
        if x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != 3 or not x.size:
            raise InputError(
                "images", f"{x.dtype} {x.shape}", f"prompt {prompt.id!r} needs uint8 arrays (height, width, 3)"
            )
    return [Image.fromarray(x) for x in images]


def placed(prompt: Prompt, images: int) -> list[dict[str, Any]]:
    """The messages as parts of text and images: at their markers, or before the first message of the user."""
    marks = sum(m["content"].count(MARKER) for m in prompt.messages)
    if marks not in (0, images):
        raise InputError("prompt", prompt.id, f"it has {marks} times {MARKER} and {images} images: write one for each")
    out, waiting = list[dict[str, Any]](), 0 if marks else images
    for m in prompt.messages:
        pieces, parts = m["content"].split(MARKER), list[dict[str, Any]]()
        if m["role"] == "user" and waiting:
            parts, waiting = [{"type": "image"}] * waiting, 0
        for i, text in enumerate(pieces):
            parts += ([{"type": "image"}] if i else []) + ([{"type": "text", "text": text}] if text else [])
        out.append({"role": m["role"], "content": [dict(p) for p in parts]})
    if waiting:
        raise InputError("prompt", prompt.id, "it has images and no message of the user that could show them")
    return out


def padded(cache: DynamicCache, more: int) -> DynamicCache:
    """The cache with `more` places on the left."""
    if not more:
        return cache
    new, layers = DynamicCache(), list[Any](cache.layers)
    for i, layer in enumerate(layers):
        new.update(functional.pad(layer.keys, (0, 0, more, 0)), functional.pad(layer.values, (0, 0, more, 0)), i)
    return new


def joined(parts: list[Read]) -> Read:
    """The rows of all parts, which are of one width."""
    cache, layers = DynamicCache(), [list[Any](p.cache.layers) for p in parts]
    for i in range(len(layers[0])):
        cache.update(torch.cat([x[i].keys for x in layers]), torch.cat([x[i].values for x in layers]), i)
    valid, position, last = (torch.cat([getattr(p, n) for p in parts]) for n in ("valid", "position", "last"))
    return Read(cache, valid, position, last)
