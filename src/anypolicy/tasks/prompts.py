"""Prompts with answers from a .jsonl file or a Hugging Face data set."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.tasks.base import Score
from anypolicy.tasks.lines import json_lines
from anypolicy.tasks.split import split
from anypolicy.tasks.verifiers import verifier


class PromptTask:
    """Prompts, their answers and a named verifier; reward 1 for a correct response, else 0.

    Name and side of the split follow from the prompt without the instruction; further fields go into `info`.
    """

    def __init__(
        self, name: str, rows: Iterable[tuple[str, dict[str, Any]]], *, prompt: str, answer: str, verifier_name: str,
        heldout: float, max_tokens: int, instruction: str,
    ):  # fmt: skip
        self.name, self.max_tokens = name, max_tokens
        self.verify = verifier(verifier_name)
        prompts: dict[str, Prompt] = {}
        for where, row in rows:
            one = self.read(where, row, prompt, answer, instruction, verifier_name)
            known = prompts.setdefault(one.id, one)
            if known.answer != one.answer:
                raise InputError(
                    name, f"{where}: {answer} {one.answer!r}", f"the same prompt has answer {known.answer!r}"
                )
        if len(prompts) < 2:
            raise InputError(name, f"{len(prompts)} different prompts", "give at least 2, one of them to hold out")
        self.train, self.heldout = split(prompts.values(), lambda p: p.id, heldout)

    def read(self, where: str, row: dict[str, Any], prompt: str, answer: str, instruction: str, kind: str) -> Prompt:
        """One checked row."""
        for field in (prompt, answer):
            if row.get(field) in (None, "", []):
                raise InputError(self.name, where, f"it has no {field!r} (fields: {', '.join(row)})", choices=row)
        messages = self.messages(where, prompt, row[prompt])
        label = row[answer]
        if not isinstance(label, str | int | float) or isinstance(label, bool) or label != label:
            raise InputError(self.name, where, f"{answer!r} is {label!r}: write it as text or as a number")
        label = str(label)
        if kind == "regex":
            try:
                re.compile(label)
            except re.error as error:
                raise InputError(self.name, where, f"{label!r} is no regular expression: {error}") from error
        name = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]
        if instruction:
            messages[-1]["content"] += "\n" + instruction
        info = {k: v for k, v in row.items() if k not in (prompt, answer)}
        return Prompt(name, tuple(messages), answer=label, info=info)

    def messages(self, where: str, field: str, given: Any) -> list[dict[str, Any]]:
        """Text as one message of the user; messages as copies."""
        given = [{"role": "user", "content": given}] if isinstance(given, str) else given
        fit = isinstance(given, list) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in given
        )
        if not fit:
            raise InputError(
                self.name, where, f"{field!r} must be text or a list of messages whose role and content are text"
            )
        return [dict(m) for m in given]

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        correct = self.verify(text, prompt.answer)
        return Score(float(correct), correct)


def from_jsonl(
    path: str, *, prompt: str = "prompt", answer: str = "answer", verifier: str = "exact", heldout: float = 0.2,
    max_tokens: int = 64, instruction: str = "",
) -> PromptTask:  # fmt: skip
    """One JSON object a line, with a prompt (text or messages) and an answer."""
    return PromptTask(
        path, json_lines(path, "a prompt and an answer"), prompt=prompt, answer=answer, verifier_name=verifier,
        heldout=heldout, max_tokens=max_tokens, instruction=instruction,
    )  # fmt: skip


def from_hub(
    name: str, *, split: str = "train", config: str = "", prompt: str = "prompt", answer: str = "answer",
    verifier: str = "exact", heldout: float = 0.2, max_tokens: int = 256, instruction: str = "",
) -> PromptTask:  # fmt: skip
    """A data set of the Hugging Face hub, or a folder of data files."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError("task", f"hf/{name}", "install datasets: pip install 'anypolicy[tasks]'") from error
    try:
        table = load_dataset(name, config or None, split=split)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            "task", f"hf/{name}", f"it cannot be loaded ({first}): check name and split; without a network use a "
            "folder of data files or a .jsonl file",
        ) from error  # fmt: skip
    rows = ((f"row {i}", dict(row)) for i, row in enumerate(table))
    return PromptTask(
        f"hf/{name}", rows, prompt=prompt, answer=answer, verifier_name=verifier, heldout=heldout,
        max_tokens=max_tokens, instruction=instruction,
    )  # fmt: skip
