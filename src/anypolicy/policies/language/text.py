"""Prompts and responses between text and ids, for policies with a Hugging Face tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from anypolicy.data.records import Prompt, Tokens, said_beside
from anypolicy.errors import InputError

WORDS = "wordsofthereply"
Render = Callable[[list[dict[str, Any]]], Any]
"""Messages of text through a chat template, as text."""


def prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, family: str, vocabulary: int) -> Tokens:
    """The prompt's own ids, or its messages through the chat template with the assistant's turn opened."""
    t: Any = tokenizer
    if prompt.tokens is not None:
        return kept(known("prompt", prompt, prompt.tokens, vocabulary), prompt)
    if tokenizer is None:
        raise InputError("policy", family, "it has no tokenizer, so it needs a task of token ids")
    check_turns(prompt)
    if tokenizer.chat_template is not None:
        with readable("prompt", prompt, family):
            ids = t.apply_chat_template(list(prompt.messages), add_generation_prompt=True, return_dict=False)
        if role := left_out(tokenizer, str(tokenizer.chat_template), tuple(str(m["role"]) for m in prompt.messages)):
            raise InputError("prompt", beginning(prompt), f"the chat template of {family} leaves out the words of its "
                             f"message of the {role}: put them into the user's")  # fmt: skip
        check_beside(prompt, lambda messages: tokenizer.apply_chat_template(messages, tokenize=False), family)
    elif len(prompt.messages) == 1:
        check_beside(prompt, lambda messages: messages[0]["content"], family)
        with readable("prompt", prompt, family):
            ids = t.encode(prompt.messages[0]["content"])
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
    else:
        raise InputError("policy", family, "its tokenizer has no chat template, so give one message a prompt")
    return kept(known("prompt", prompt, ids, vocabulary), prompt)


def known(what: str, prompt: Prompt, ids: Sequence[int], vocabulary: int) -> Tokens:
    """Token ids as an array, all of them in the vocabulary."""
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise InputError(what, wrong, f"in {beginning(prompt)}: the model's token ids are 0 to {vocabulary - 1}")
    return np.array(ids, np.int64)


def kept(ids: Tokens, prompt: Prompt) -> Tokens:
    """The last tokens of a prompt that is too long and may be cut."""
    return ids if prompt.keep is None else ids[-prompt.keep :]


def beginning(prompt: Prompt) -> str:
    """A prompt's name and how it begins, for errors."""
    words = " ".join(str(m.get("content")) for m in prompt.messages) or f"{len(prompt.tokens or ())} token ids"
    return f"{prompt.id}: " + words[:60].encode(errors="replace").decode() + ("…" if len(words) > 60 else "")


def check_turns(prompt: Prompt) -> None:
    """Refuse a prompt without messages, or one that ends with the assistant's: a response is a turn of its own."""
    if not prompt.messages:
        raise InputError("prompt", prompt.id, "it has no message and no token ids")
    if prompt.messages[-1]["role"] == "assistant":
        raise InputError("prompt", beginning(prompt), "its last message is the assistant's, and a response begins a "
                         "turn of its own: end the prompt with the user's message")  # fmt: skip


def check_beside(prompt: Prompt, render: Render, family: str) -> None:
    """Refuse messages that say something beside their content (calls of tools, say) which is not rendered."""
    messages = list(prompt.messages)
    for i, m in enumerate(messages):
        for name in said_beside(m):
            without = [*messages[:i], {k: v for k, v in m.items() if k != name}, *messages[i + 1 :]]
            with readable("prompt", prompt, family):
                lost = render(messages) == render(without)
            if lost:
                raise InputError("prompt", beginning(prompt), f"{family} does not read {name!r} of its message {i}: "
                                 "write it into the content, or remove it")  # fmt: skip


@contextmanager
def readable(what: str, prompt: Prompt, family: str) -> Generator[None]:
    """What the tokenizer or its template cannot read becomes one clear error."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a template is a program: what it raises has no common type
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            what, beginning(prompt), f"the tokenizer or chat template of {family} refuses it ({first})"
        ) from error


@lru_cache(maxsize=64)
def left_out(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...]) -> str | None:
    """`silenced` by a tokenizer's own template."""
    return silenced(lambda m: tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=False), roles)


def silenced(render: Render, roles: tuple[str, ...]) -> str | None:
    """The role of a message whose words do not come out of a chat template, if there is one."""
    words = [f"word{i}word" for i in range(len(roles))]
    given = [{"role": r, "content": w} for r, w in zip(roles, words, strict=True)]
    try:
        text = str(render(given))
    except Exception:  # a template is a program: what it raises has no common type
        return None
    return next((r for r, w in zip(roles, words, strict=True) if w not in text), None)


def response_ids(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, stop_ids: tuple[int, ...], vocabulary: int,
    turn_end: int | None = None,
) -> Tokens:  # fmt: skip
    """The prompt's reference as ids. Unless a stop token ends them, what ends a turn of the chat template follows, or
    the end-of-sequence token where there is none (or the prompt is token ids)."""
    given = prompt.reference
    if isinstance(given, str):
        if tokenizer is None:
            raise InputError("reference", given[:40], "the policy has no tokenizer: give the reference as token ids")
        with readable("reference", prompt, "the policy"):
            given = tuple(tokenizer.encode(given, add_special_tokens=False))
    if not given:
        raise InputError("reference", given, f"prompt {prompt.id!r} needs a reference response that is not empty")
    ids: list[Any] = list(given)
    if ids[-1] not in stop_ids:
        own = None if tokenizer is None else tokenizer.eos_token_id
        own = turn_end if turn_end in stop_ids and prompt.tokens is None else own
        ids = [*ids, stop_ids[0] if own is None else own]
    return known("reference", prompt, ids, vocabulary)


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


def end_of_turn(render: Render, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token with which a chat template ends the assistant's turn; None where it does not end it with one."""
    try:
        text = str(render([{"role": "user", "content": "?"}, {"role": "assistant", "content": WORDS}]))
    except Exception:  # a template is a program: what it raises has no common type
        return None
    _, found, rest = text.rpartition(WORDS)
    if not found:
        return None
    own: dict[str, int] = {str(t): int(i) for i, t in tokenizer.added_tokens_decoder.items()}
    eos: Any = tokenizer.eos_token_id
    if eos is not None:
        own[str(tokenizer.eos_token)] = int(eos)
    ends = [t for t in own if t and rest.strip().startswith(t)]
    return own[max(ends, key=len)] if ends else None


def chat_end(tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """`end_of_turn` of a tokenizer's own template."""
    if tokenizer is None or tokenizer.chat_template is None:
        return None
    return end_of_turn(lambda messages: tokenizer.apply_chat_template(messages, tokenize=False), tokenizer)


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase | None, turn_end: int | None = None) -> tuple[int, ...]:
    """End-of-sequence ids of the generation settings, the model and the tokenizer, and what ends a turn of the chat
    template: where that is not among the others, it is from now on, and a note says so."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config.get_text_config(), tokenizer):
        ids: Any = getattr(source, "eos_token_id", None)
        many: list[Any] = list(ids) if isinstance(ids, list | tuple) else [ids]
        found |= {int(i) for i in many if i is not None}
    new = turn_end is not None and turn_end not in found and turn_end < model.get_input_embeddings().weight.shape[0]
    if new and turn_end is not None and tokenizer is not None:
        found.add(turn_end)
        print(
            f"note: {model.config.model_type}: its chat template ends a turn with "
            f"{tokenizer.convert_ids_to_tokens(turn_end)}, which is not its end-of-sequence token: responses end with "
            "it too", file=sys.stderr,
        )  # fmt: skip
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.eos_token_id = sorted(found)
    return tuple(sorted(found))
