"""Any data set of reasoning-gym, with its own verifier."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from anypolicy.data.readers import first_line
from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.sandbox.scorers import Scorer, door
from anypolicy.tasks.language import answers
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.verifiers import scored
from anypolicy.tasks.split import split

Extract = Literal["text", "first-line", "last-number", "tag"]

NONSENSE = "I would rather not say."
# their problems follow the order of Python sets of text: measured with reasoning-gym 0.1.25
HASHED = {"intermediate_integration", "isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note",
          "word_ladder"}  # fmt: skip


class ReasoningGymTask:
    """Generated problems; the reward is the data set's own score in [0, 1], and correct means a full score.

    `graded` false makes the reward 1 or 0. `shots` solved problems of the training split stand before every question
    as earlier turns. A response that the data set's verifier cannot read scores 0.
    """

    def __init__(
        self, name: str, seed: int, *, size: int = 2000, heldout: float = 0.2, instruction: str = "", shots: int = 0,
        extract: Extract = "text", graded: bool = True, max_tokens: int = 32, **config: Any,
    ):  # fmt: skip
        self.extract: Extract
        self.name, self.max_tokens, self.extract, self.graded = f"reasoning-gym/{name}", max_tokens, extract, graded
        if extract not in ("text", "first-line", "last-number", "tag"):
            raise InputError("extract", extract, "use text, first-line, last-number or tag")
        with own_random(f"{name}/{seed}"):
            self.dataset = create(name, config | {"size": size, "seed": seed})
            try:
                train, held = split(self.dataset, lambda entry: str(entry["question"]), heldout)
            except InputError:
                raise
            except Exception as error:  # what a data set makes of settings it does not check
                raise InputError(
                    "task", f"{self.name}: {config}", f"no problem can be made so ({first_line(error)}): set others"
                ) from error
        if not train or (heldout and not held):
            raise InputError("size", size, f"it gives {len(train) + len(held)} different problems: raise it")
        if not 0 <= shots < len(train):
            raise InputError("shots", shots, f"use 0 to {len(train) - 1}: there are {len(train)} training problems")
        given = config | {"size": size, "seed": seed}
        isolated = name in answers.EVALUATED
        self.scorer = Scorer.of(self.name, answers.__name__, given=(name, given), isolated=isolated)
        check(self.scorer, name, train[: max(shots, 1)], shown=shots > 0)
        self.entries: dict[str, Any] = {}
        before: list[dict[str, Any]] = []
        for entry in train[:shots]:
            before.append({"role": "user", "content": ask(entry, instruction)})
            before.append({"role": "assistant", "content": str(entry["answer"])})
        self.train = [self.prompt(entry, instruction, before) for entry in train[shots:]]
        self.heldout = [self.prompt(entry, instruction, before) for entry in held]

    def prompt(self, entry: Any, instruction: str, before: list[dict[str, Any]]) -> Prompt:
        name = hashlib.sha256(str(entry["question"]).encode()).hexdigest()[:16]
        self.entries[name] = entry
        messages = (*before, {"role": "user", "content": ask(entry, instruction)})
        return Prompt(name, messages, answer=entry["answer"])

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        return self.score_many([(prompt, response, text)])[0]

    def score_many(self, responses: Sequence[tuple[Prompt, Tokens, str]]) -> list[Score]:
        """The data set's scores, computed in a process of their own (see `sandbox.scorers`)."""
        requests = [(extracted(text, self.extract), self.entries[prompt.id]) for prompt, _, text in responses]
        return [scored(outcome, graded=self.graded) for outcome in door.score(self.scorer, requests)]


@contextmanager
def own_random(name: str) -> Generator[None, None, None]:
    """Seed Python's global generator, which some data sets draw from, and put it back afterwards."""
    before = random.getstate()
    random.seed(name)
    try:
        yield
    finally:
        random.setstate(before)


def check(scores: Scorer, name: str, entries: list[Any], *, shown: bool) -> None:
    """The data set can score its own answers, where it has any, and does not find everything right; `shown` answers
    must be there."""
    if shown and any(entry["answer"] is None for entry in entries):
        raise InputError("shots", len(entries), f"{name} has no answers to show: use shots=0")
    *_, nonsense = door.score(scores, [(NONSENSE, entry) for entry in entries])
    if nonsense.value >= 1:
        raise InputError("task", scores.name, "its own verifier is broken: it finds any answer right; use another")
    given = [(entry["answer"], entry) for entry in entries if entry["answer"] is not None]
    for (answer, _), outcome in zip(given, door.score(scores, given), strict=True):
        if outcome.verdict != "scored":
            raise InputError(
                "task", scores.name, f"it cannot score its own answer {answer!r} ({outcome.verdict}): use another"
            )


def ask(entry: Any, instruction: str) -> str:
    """The question with the instruction after it."""
    return f"{entry['question']}\n{instruction}" if instruction else str(entry["question"])


def extracted(text: str, how: Extract) -> str | None:
    """The part of a response that is its answer; None where there is none."""
    if how == "last-number":
        found = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
        return found[-1] if found else None
    if how == "tag":
        tags = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        return tags[-1].strip() if tags else None
    lines = text.strip().splitlines()
    return (lines[0] if how == "first-line" and lines else text).strip()


def create(name: str, config: dict[str, Any]) -> Any:
    """The data set, with names and settings checked."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise InputError("task", f"reasoning-gym/{name}", "install it: pip install 'anypolicy[tasks]'") from error
    if name not in DATASETS:
        raise InputError("task", name, "reasoning-gym has no such data set", choices=DATASETS)
    hash_seed = os.environ.get("PYTHONHASHSEED", "random")
    if name in HASHED and not hash_seed.isdecimal():
        raise InputError(
            "PYTHONHASHSEED", hash_seed,
            f"the problems of {name} depend on it, so no run could be resumed or repeated: set PYTHONHASHSEED=0",
        )  # fmt: skip
    known = [f.name for f in dataclasses.fields(DATASETS[name][1]) if f.name not in ("seed", "size")]
    for key in config:
        if key not in (*known, "seed", "size"):
            own = "size, heldout, instruction, shots, extract, graded, max_tokens"
            raise InputError(f"{name}.{key}", config[key], f"use {own} or its own {', '.join(known)}", choices=known)
    try:
        return reasoning_gym.create_dataset(name, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError("task", f"reasoning-gym/{name}", f"its settings do not fit: {error}") from error
