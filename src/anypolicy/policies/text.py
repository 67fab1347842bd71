"""Prompts and responses between text and ids, for policies with a Hugging Face tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError


def prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, family: str) -> Tokens:
    """The prompt's own ids, or its messages through the chat template with the assistant's turn opened."""
    if prompt.tokens is not None:
        return np.array(prompt.tokens, np.int64)
    if tokenizer is None:
        raise InputError("policy", family, "it has no tokenizer, so it needs a task of token ids")
    if tokenizer.chat_template is not None:
        ids: Any = tokenizer.apply_chat_template(list(prompt.messages), add_generation_prompt=True, return_dict=False)
    elif len(prompt.messages) == 1:
        ids = tokenizer.encode(prompt.messages[0]["content"])
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
    else:
        raise InputError("policy", family, "its tokenizer has no chat template, so give one message a prompt")
    return np.array(ids, np.int64)


def response_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, stop_ids: tuple[int, ...]) -> Tokens:
    """The prompt's reference as ids; the end-of-sequence token follows unless a stop token ends them."""
    given = prompt.reference
    if isinstance(given, str):
        if tokenizer is None:
            raise InputError("reference", given[:40], "the policy has no tokenizer: give the reference as token ids")
        given = tuple(tokenizer.encode(given, add_special_tokens=False))
    if not given:
        raise InputError("reference", given, f"prompt {prompt.id!r} needs a reference response that is not empty")
    ids = list(given)
    if ids[-1] not in stop_ids:
        own = None if tokenizer is None else tokenizer.eos_token_id
        ids = [*ids, stop_ids[0] if own is None else own]
    return np.array(ids, np.int64)


def text_of(tokens: Tokens, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Text of response ids, special tokens left out; the numbers, where there is no tokenizer."""
    if tokenizer is None:
        return " ".join(str(t) for t in tokens)
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def single_token(text: str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """The id of the one token that is this text."""
    ids = [] if tokenizer is None else tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        told = "it has no tokenizer" if tokenizer is None else f"its tokenizer reads {len(ids)} tokens"
        raise InputError("token", text, f"it must be one token of the policy, but {told}: give another or an id")
    return int(ids[0])


def quiet_transformers() -> None:
    """Its bars and advice would stand in the middle of ours."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """End-of-sequence ids of the generation settings, the model and the tokenizer."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config.get_text_config(), tokenizer):
        ids: Any = getattr(source, "eos_token_id", None)
        many: list[Any] = list(ids) if isinstance(ids, list | tuple) else [ids]
        found |= {int(i) for i in many if i is not None}
    return tuple(sorted(found))
