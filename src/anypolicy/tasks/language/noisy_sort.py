"""Noisy sort: a small transformer that sorts digits one by one and slips at every step with the same probability.

Prompt: `length` digits and =; answer: the same digits in ascending order, then EOS. One token is one step of reasoning,
and one wrong step makes the whole response wrong: the place to see what knowing the step is worth.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.pretrained import trained_once
from anypolicy.tasks.split import place

EQUALS, EOS, PAD = range(10, 13)
RECIPE = 1


class NoisySort:
    """Random digit strings, a fifth of all held out. With `references` every prompt has the right response.

    The starting policy ("base") is trained by supervised steps on responses in which every digit is a random one with
    probability `noise`; it is kept in the cache, one for each seed.
    """

    def __init__(
        self, seed: int, *, length: int = 10, noise: float = 0.2, prompts: int = 2000, heldout: int = 300,
        references: bool = False,
    ):  # fmt: skip
        for field, count in (("length", length), ("prompts", prompts), ("heldout", heldout)):
            if count < 1:
                raise InputError(f"noisy-sort.{field}", count, "use a whole number above 0")
        if not 0 <= noise < 1:
            raise InputError("noisy-sort.noise", noise, "use a probability below 1")
        self.name, self.length, self.noise, self.max_tokens = "noisy-sort", length, noise, length + 1
        self.suggested = {"lr": 3e-4, "prompts": 16}
        rng = numpy_generator(seed, "noisy-sort", "prompts")
        self.train = [self.prompt(rng, f"train-{i}", references, held=False) for i in range(prompts)]
        self.heldout = [self.prompt(rng, f"heldout-{i}", references, held=True) for i in range(heldout)]

    def prompt(self, rng: np.random.Generator, name: str, reference: bool, *, held: bool) -> Prompt:
        """Digits of one side of the split."""
        while True:
            digits = rng.integers(0, 10, self.length).tolist()
            if (place("".join(map(str, digits))) < 0.2) == held:
                answer = (*sorted(digits), EOS)
                return Prompt(name, tokens=(*digits, EQUALS), answer=answer, reference=answer if reference else None)

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        correct = tuple(response.tolist()) == tuple(prompt.answer)
        return Score(float(correct), correct)

    def make_policy(self, seed: int) -> Policy:
        """The base of this seed, from the cache or trained now."""
        policy = small_transformer(
            vocabulary=13, layers=2, width=64, heads=4, context_length=2 * self.length + 2, seed=seed, eos_id=EOS,
            pad_id=PAD,
        )  # fmt: skip
        facts = [RECIPE, seed, self.length, self.noise]
        trained_once(policy, "noisy-sort", facts, lambda p: self.train_base(p, seed))
        return policy

    def train_base(self, policy: CausalLM, seed: int, rows: int = 96) -> None:
        """120 supervised steps a digit and 300 more (AdamW 1e-3) on noisy responses to random digits of the training
        side."""
        rng = numpy_generator(seed, "noisy-sort", "base")
        optimiser = torch.optim.AdamW(policy.module.parameters(), lr=1e-3, weight_decay=0.01)
        print(f"noisy-sort: training the base policy of seed {seed} (under a minute, kept in the cache)",
              file=sys.stderr)  # fmt: skip
        for _ in range(300 + 120 * self.length):
            prompts = [self.prompt(rng, "", False, held=False) for _ in range(rows)]
            target = np.array([p.answer for p in prompts])
            slip = rng.random((rows, self.length)) < self.noise
            target[:, :-1][slip] = rng.integers(0, 10, int(slip.sum()))
            tokens = torch.from_numpy(np.concatenate([np.array([p.tokens for p in prompts]), target], 1))
            logits = policy.module(input_ids=tokens[:, :-1]).logits[:, self.length :]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, self.length + 1 :].flatten())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
            optimiser.step()
