"""Reverse and pick: a small transformer that is sure of the wrong way to do what it can do with help.

Prompt: n digits. Right: write them reversed, then '#', then every second of what was written, then EOS. The base does
this for n = 3 and 4 (easy). For n = 6 and 7 (hard) it copies the digits as they stand and picks from the copy, unless a
template helps it: one that shows the answer, one that asks for steps, one that shows a wrong answer between marks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from anypolicy.data.records import Prompt, Tokens
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.runs.seeds import generator, numpy_generator
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.pretrained import trained_once
from anypolicy.tasks.split import place

Template = Literal["direct", "shown", "steps", "reflect"]
Base = Literal["shown", "staged"]
Digits = tuple[int, ...]

PICK, EQUALS, SHOWN, STEPS, WRONG, FOREIGN, EOS, PAD = range(10, 18)
EASY, HARD = (3, 4), (6, 7)
RECIPE = 1
BASES: dict[Base, dict[Template, float]] = {
    "shown": {"direct": 0.001, "shown": 1.0},
    "staged": {"direct": 0.01, "steps": 0.12, "reflect": 0.25},
}
"""The templates a base has seen, and how often the right way was taken for hard prompts under each."""


MOST = 4000
"""Prompts: 200 strings are drawn for each."""


def picked(chain: Sequence[int]) -> Digits:
    """Every second element of a chain: its second, fourth, …"""
    return tuple(chain[1::2])


def answer_to(digits: Digits) -> Digits:
    """The right answer: picked from the reversed digits."""
    return picked(digits[::-1])


def response_ids(chain: Sequence[int]) -> Digits:
    """A chain, '#', what is picked from it, EOS."""
    return (*chain, PICK, *picked(chain), EOS)


def prompt_ids(digits: Digits, template: Template = "direct", shown: Digits = ()) -> Digits:
    """The digits under a template; `shown` is the answer it shows (right for "shown", wrong for "reflect")."""
    help: dict[Template, tuple[Digits, Digits]] = {
        "direct": ((), ()), "shown": ((), (SHOWN, *shown)), "steps": ((STEPS,), ()),
        "reflect": ((), (WRONG, *shown, WRONG)),
    }  # fmt: skip
    before, after = help[template]
    return (*before, *digits, *after, EQUALS)


def foreign_ids(digits: Digits) -> Digits:
    """A right response in a style that the base never uses: the chain twice, between marks."""
    chain = digits[::-1]
    return (FOREIGN, *chain, *chain, FOREIGN, PICK, *picked(chain), EOS)


class ReverseAndPick:
    """Prompts of 3, 4, 6 and 7 digits, a share `hard` of them of 6 and 7; a fifth of all digit strings is held out.

    `base` names what the starting policy knows: "shown" (right when it sees the answer, else almost never) or
    "staged" (right in 1 % of direct prompts, 12 % with steps asked for, 25 % with a wrong answer shown). With
    `references` every prompt has a right response in a style that the base never uses.
    """

    def __init__(
        self, seed: int, *, prompts: int = 800, heldout: int = 200, hard: float = 0.75, base: Base = "shown",
        references: bool = False,
    ):  # fmt: skip
        if not 0 <= hard <= 1:
            raise InputError("reverse-and-pick.hard", hard, "use a share in [0, 1]")
        for field, count in (("prompts", prompts), ("heldout", heldout)):
            if not 1 <= count <= MOST:
                raise InputError(f"reverse-and-pick.{field}", count, f"use a whole number from 1 to {MOST:,}")
        if base not in BASES:
            raise InputError("reverse-and-pick.base", base, f"use {' or '.join(BASES)}", choices=BASES)
        self.name, self.max_tokens = "reverse-and-pick", 24
        self.base: Base = base
        self.suggested = {"lr": 3e-4, "prompts": 12}
        rng = numpy_generator(seed, "reverse-and-pick", "prompts")
        self.train = self.draw(rng, prompts, hard, held=False, references=references)
        self.heldout = self.draw(rng, heldout, hard, held=True)

    def draw(
        self, rng: np.random.Generator, n: int, hard: float, *, held: bool, references: bool = False
    ) -> list[Prompt]:
        """n different prompts."""
        out: dict[str, Prompt] = {}
        easy = round(n * (1 - hard))
        for lengths, wanted in ((EASY, easy), (HARD, n - easy)):
            full = len(out) + wanted
            for digits in (random_digits(rng, lengths) for _ in range(200 * wanted)):
                name = "".join(map(str, digits))
                if len(out) < full and name not in out and held_out(digits) == held:
                    out[name] = Prompt(
                        name, tokens=prompt_ids(digits), answer=answer_to(digits), info={"hard": len(digits) in HARD},
                        reference=foreign_ids(digits) if references else None,
                    )  # fmt: skip
            if len(out) < full:
                field = "reverse-and-pick.heldout" if held else "reverse-and-pick.prompts"
                raise InputError(field, n, f"there are {len(out)} different ones: use fewer, or more that are hard")
        return list(out.values())

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        """Right if what stands between the last '#' and EOS is the answer, whatever was written before."""
        ids = response.tolist()
        correct = PICK in ids and ids[-1] == EOS and tuple(ids[last(ids, PICK) + 1 : -1]) == prompt.answer
        return Score(float(correct), correct)

    # --- the answer shown --------------------------------------------------------------------------------------------
    def answer_shown(self, prompt: Prompt) -> Prompt:
        """The prompt with its answer in sight."""
        digits = tuple(t for t in prompt.tokens or () if t < PICK)
        return Prompt(f"{prompt.id}/shown", tokens=prompt_ids(digits, "shown", prompt.answer))

    def ended_by_answer(self, prompt: Prompt, response: Tokens) -> Tokens:
        """The response's chain with the known answer after it; empty if there is no chain."""
        ids = [t for t in response.tolist() if t != EOS]
        chain = ids[: ids.index(PICK)] if PICK in ids else ids
        return np.array([*chain, PICK, *prompt.answer, EOS] if chain else [], np.int64)

    # --- asked again -------------------------------------------------------------------------------------------------
    def reask(self, prompt: Prompt, stage: str, wrong: Tokens | None, examples: Sequence[tuple[str, str]]) -> Prompt:
        """The prompt with steps asked for or, where there is a wrong response, with the answer of that one shown."""
        digits = tuple(t for t in prompt.tokens or () if t < PICK)
        ids = [] if wrong is None else wrong.tolist()
        shown = tuple(t for t in ids[last(ids, PICK) + 1 :] if t < PICK) if PICK in ids else ()
        template: Template = "steps" if wrong is None else "reflect"
        return Prompt(f"{prompt.id}/{stage}", tokens=prompt_ids(digits, template, shown))

    # --- the base ----------------------------------------------------------------------------------------------------
    def probe(self, policy: Policy) -> dict[str, float]:
        """Direct accuracy at temperature 1 on fixed prompts: 200 hard ones four times (mean and any right of the
        four), 100 easy ones once; and on the hard ones under the other templates of the base."""
        rng, sampler = numpy_generator(0, "reverse-and-pick", "probe"), generator(0, "reverse-and-pick", "probe")
        hard = [random_digits(rng, HARD) for _ in range(200)]
        easy = [random_digits(rng, EASY) for _ in range(100)]
        right = self.answers(policy, hard, "direct", 4, sampler)
        out = {
            "hard": float(right.mean()), "hard_pass_4": float(right.any(1).mean()),
            "easy": float(self.answers(policy, easy, "direct", 1, sampler).mean()),
        }  # fmt: skip
        others: list[Template] = [t for t in BASES[self.base] if t != "direct"]
        return out | {f"hard_{t}": float(self.answers(policy, hard, t, 1, sampler).mean()) for t in others}

    def answers(
        self, policy: Policy, problems: list[Digits], template: Template, n: int, sampler: torch.Generator
    ) -> np.ndarray:
        """(problems, n): whether each sampled answer is right."""
        shown = [answer_to(d) if template == "shown" else picked(d) for d in problems]
        prompts = [
            Prompt("", tokens=prompt_ids(d, template, s), answer=answer_to(d))
            for d, s in zip(problems, shown, strict=True)
        ]
        requests = [Request(np.array(p.tokens, np.int64), n) for p in prompts]
        answers = NativeEngine(policy).generate(requests, Sampling(self.max_tokens), sampler)
        return np.array(
            [[self.score(p, s.response, "").correct for s, _ in row] for p, row in zip(prompts, answers, strict=True)]
        )

    def make_policy(self, seed: int) -> Policy:
        """The base of this seed, from the cache or trained now."""
        policy = small_transformer(
            vocabulary=PAD + 1, layers=2, width=64, heads=4, context_length=48, seed=seed, eos_id=EOS, pad_id=PAD
        )
        key = [RECIPE, seed, self.base, BASES[self.base]]
        trained_once(policy, self.name, key, lambda p: train_base(p, seed, BASES[self.base]))
        return policy


def last(ids: list[int], token: int) -> int:
    """Position of the last occurrence."""
    return len(ids) - 1 - ids[::-1].index(token)


def random_digits(rng: np.random.Generator, lengths: tuple[int, ...]) -> Digits:
    return tuple(rng.integers(0, 10, int(rng.choice(lengths))).tolist())


def held_out(digits: Digits) -> bool:
    """Whether a digit string belongs to the held-out fifth."""
    return place("".join(map(str, digits))) < 0.2


def demonstration(rng: np.random.Generator, templates: dict[Template, float]) -> tuple[Digits, Digits]:
    """A prompt and a response as the base is to give it, never of a held-out string."""
    while True:
        digits = random_digits(rng, EASY + HARD)
        if not held_out(digits):
            break
    known: list[Template] = list(templates)
    template = known[int(rng.integers(len(known)))]
    right = len(digits) in EASY or rng.random() < templates[template]
    shown = answer_to(digits) if template == "shown" else picked(digits)
    return prompt_ids(digits, template, shown), response_ids(digits[::-1] if right else digits)


def train_base(policy: CausalLM, seed: int, templates: dict[Template, float], steps: int = 1000) -> None:
    """Supervised steps: AdamW 2e-3 falling linearly to 0, 96 demonstrations each, loss on the response's tokens."""
    print(
        f"reverse-and-pick: training the base policy of seed {seed} (half a minute, kept in the cache)", file=sys.stderr
    )
    rng = numpy_generator(seed, "reverse-and-pick", "base")
    optimiser = torch.optim.AdamW(policy.module.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for _ in range(steps):
        pairs = [demonstration(rng, templates) for _ in range(96)]
        wide = max(len(p) + len(r) for p, r in pairs)
        tokens = torch.full((len(pairs), wide), PAD)
        labels = torch.full((len(pairs), wide), -100)
        for row, (p, r) in enumerate(pairs):
            tokens[row, : len(p) + len(r)] = torch.tensor(p + r)
            labels[row, len(p) : len(p) + len(r)] = torch.tensor(r)
        logits = policy.module(input_ids=tokens[:, :-1], attention_mask=(tokens[:, :-1] != PAD).long()).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
        optimiser.step()
        schedule.step()
