"""Tabular lock: the smallest thing a policy-gradient method must learn. Exact, and seconds a run.

A response is `length` independent tokens; it is correct iff all of them equal the prompt's target. The policy is a
table of logits, so its success probability is known exactly: Π_l softmax(z[n, l])[target].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy
from anypolicy.policies.language.table import TablePolicy
from anypolicy.tasks.language.base import Revision, Score

Start = Literal["graded", "confident", "mixture"]


class TabularLock:
    """`prompts` locks over `vocabulary` tokens; initial logits N(0, sigma²) and then, by `start`,

    - graded: + delta on the target tokens, delta rising linearly over the prompts from `low` to `high`
    - confident: a quarter of the prompts + 2 on the targets (easy); the others + `bias` on one fixed wrong token per
      position (hard): a policy that is sure of wrong answers
    - mixture: a quarter + 7 (solved), a quarter + 2, half − 0.5 (hard)

    With `references` every prompt has a reference response whose tokens are right with probability
    `reference_accuracy` each, else a random wrong one.

    With `recorded` every prompt has so many recorded responses; the first is right, the others have random wrong tokens
    at some positions, and their scores are the share of right tokens.

    With `hints` every prompt carries its answer, and the table has a second row for it in which the answer is in sight:
    + `hint` on the target tokens.

    A table does not generalise, so nothing is held out; `probe` gives the exact success over all prompts.
    """

    heldout: tuple[Prompt, ...] = ()

    def __init__(
        self, seed: int, *, start: Start = "graded", prompts: int = 32, length: int = 3, vocabulary: int = 8,
        sigma: float = 1.0, low: float = 1.0, high: float = 4.0, bias: float = 4.0,
        references: bool = False, reference_accuracy: float = 1.0, hints: bool = False, hint: float = 3.0,
        recorded: int = 0,
    ):  # fmt: skip
        for name, value in (("prompts", prompts), ("length", length), ("vocabulary", vocabulary)):
            if value < 1 + (name == "vocabulary"):
                raise InputError(f"tabular-lock.{name}", value, "use a larger whole number")
        for name, value in (("sigma", sigma), ("recorded", recorded)):
            if value < 0:
                raise InputError(f"tabular-lock.{name}", value, "use 0 or more")
        if start not in ("graded", "confident", "mixture"):
            raise InputError("tabular-lock.start", start, "use graded, confident or mixture")
        if not 0 <= reference_accuracy <= 1:
            raise InputError("tabular-lock.reference_accuracy", reference_accuracy, "use a probability")
        self.name, self.max_tokens = "tabular-lock", length
        self.suggested = {"optimiser": "adamw", "lr": 0.1, "prompts": 16}
        rng = torch.Generator().manual_seed(seed)
        shape = (prompts, length)
        self.target = torch.randint(vocabulary, shape, generator=rng)
        self.start = sigma * torch.randn(*shape, vocabulary, generator=rng)
        wrong = (self.target + torch.randint(1, vocabulary, shape, generator=rng)) % vocabulary
        quarter = torch.arange(prompts) * 4 // prompts
        self.hard = torch.zeros(prompts, dtype=torch.bool)
        if start == "graded":
            delta = torch.linspace(low, high, prompts)
        elif start == "confident":
            self.hard = quarter > 0
            delta = torch.where(self.hard, 0.0, 2.0)
            self.add(wrong, bias * self.hard)
        else:
            self.hard = quarter > 1
            delta = torch.tensor([7.0, 2.0, -0.5, -0.5])[quarter]
        self.add(self.target, delta)
        shown: list[tuple[int, ...] | None] = [None] * prompts
        if references:
            other = (self.target + torch.randint(1, vocabulary, shape, generator=rng)) % vocabulary
            right = torch.rand(shape, generator=rng) < reference_accuracy
            shown = [tuple(ids) for ids in torch.where(right, self.target, other).tolist()]
        answers: list[tuple[int, ...] | None] = [None] * prompts
        if hints:
            answers = [tuple(ids) for ids in self.target.tolist()]
            helped = self.start.scatter_add(2, self.target[..., None], torch.full((*shape, 1), hint))
            self.start = torch.cat([self.start, helped])
        info = self.recorded(recorded, rng)
        self.train = [
            Prompt(f"lock-{n}", tokens=(n,), answer=answers[n], reference=shown[n], info=info[n])
            for n in range(prompts)
        ]
        self._answers = self.target.numpy()

    def recorded(self, count: int, rng: torch.Generator) -> list[dict[str, Any]]:
        """`responses` and `scores` of every prompt."""
        shape = (count, *self.target.shape)
        if not count:
            return [{}] * len(self.target)
        vocabulary = self.start.shape[2]
        other = (self.target + torch.randint(1, vocabulary, shape, generator=rng)) % vocabulary
        wrong = torch.rand(shape, generator=rng) < 0.5
        wrong[..., -1] |= ~wrong.any(2)
        wrong[0] = False
        made = torch.where(wrong, other, self.target).transpose(0, 1)
        scores = 1 - wrong.float().mean(2).T
        return [
            {"responses": [tuple(r) for r in rows.tolist()], "scores": own.tolist()}
            for rows, own in zip(made, scores, strict=True)
        ]

    def add(self, tokens: Tensor, amount: Tensor) -> None:
        """Raise the initial logits of one token per position."""
        more = amount.to(self.start.dtype)[:, None, None].expand(*tokens.shape, 1)
        self.start.scatter_add_(2, tokens[..., None], more)

    def make_policy(self, seed: int) -> Policy:
        """The table at its start (the task's own seed has drawn it)."""
        return TablePolicy(self.start)

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        assert prompt.tokens is not None
        target = self._answers[prompt.tokens[0]]
        correct = len(response) == len(target) and bool((response == target).all())
        return Score(float(correct), correct)

    def answer_shown(self, prompt: Prompt) -> Prompt:
        """The prompt whose row of the table has the answer in sight."""
        assert prompt.tokens is not None
        return replace(prompt, tokens=(prompt.tokens[0] + len(self.train),))

    def feedback_shown(self, prompt: Prompt, wrong: Tokens) -> Prompt:
        """The same row: the answer is the most helpful feedback. The prompt itself where the lock has no hints."""
        return self.answer_shown(prompt) if len(self.start) > len(self.train) else prompt

    def ended_by_answer(self, prompt: Prompt, response: Tokens) -> Tokens:
        """The response with the last of the known answer's tokens."""
        return np.array([*response[:-1], prompt.answer[-1]], np.int64)

    def revise(self, prompt: Prompt, response: str) -> list[Revision]:
        """Every token is a sentence; a wrong one is misread and becomes the target."""
        assert prompt.tokens is not None
        said, target = response.split(), map(str, self._answers[prompt.tokens[0]].tolist())
        spaced = [word + " " * (i < len(said) - 1) for i, word in enumerate(said)]
        right = [word + " " * (i < len(said) - 1) for i, word in enumerate(target)]
        return [
            Revision(a, 4, "correct", a) if a == b else Revision(a, 1, "image_recognition_error", b)
            for a, b in zip(spaced, right, strict=True)
        ]

    def reask(self, prompt: Prompt, stage: str, wrong: Tokens | None, examples: Sequence[tuple[str, str]]) -> Prompt:
        """A lock has one wording."""
        return prompt

    def success(self, policy: Policy) -> Float[Tensor, " prompts"]:
        """The exact success probability of every prompt."""
        assert isinstance(policy, TablePolicy)
        p = policy.module.logits.detach()[: len(self.target)].softmax(-1).gather(2, self.target[..., None])
        return p.squeeze(2).prod(1)

    def probe(self, policy: Policy) -> dict[str, float]:
        """Mean exact success over all, easy and hard prompts."""
        p = self.success(policy).double()
        out = {"success": float(p.mean())}
        if self.hard.any():
            out |= {"success_easy": float(p[~self.hard].mean()), "success_hard": float(p[self.hard].mean())}
        return out
