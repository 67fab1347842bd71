"""Slots: a small transformer that says what it sees in a noisy picture, and often says what is usual instead.

A picture has 6 rows of 8 numbers, one for each attribute: an embedding of its value 0 to 5 and noise. An answer names
the values in order, each in one of two wordings: token k, the policy's own, or 6 + k, an expert's. The starting policy
has learnt from descriptions in which a value is often replaced by the usual one (0) and the expert's wording is rare.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor, nn

from anypolicy.data.records import Prompt, Tokens
from anypolicy.engines.base import Sampling, ask
from anypolicy.engines.of_policy import engine_for
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy
from anypolicy.policies.language.picture_reader import PictureReader, Sizes
from anypolicy.runs.seeds import generator, numpy_generator
from anypolicy.tasks.language.base import Revision, Score
from anypolicy.tasks.pretrained import trained_once

ROWS, VALUES, NUMBERS = 6, 6, 8
DESCRIBE = 2 * VALUES
"""The id that asks for an answer."""
RECIPE = 1


class Slots:
    """`items` pictures with the right answer in the expert's wording as reference, and `heldout` others.

    `noise` is its standard deviation; `usual` the share of values that the starting policy has seen replaced;
    `wording` says that it has seen the expert's wording with probability exp(−wording).
    """

    def __init__(
        self, seed: int, *, items: int = 600, heldout: int = 256, noise: float = 0.6, usual: float = 0.4,
        wording: float = 7.0,
    ):  # fmt: skip
        for field, value in (("items", items), ("heldout", heldout)):
            if value < 1:
                raise InputError(f"slots.{field}", value, "use a whole number above 0")
        for field, value in (("noise", noise), ("wording", wording)):
            if value < 0:
                raise InputError(f"slots.{field}", value, "use 0 or more")
        if not 0 <= usual <= 1:
            raise InputError("slots.usual", usual, "use a probability")
        self.name, self.max_tokens, self.noise, self.usual, self.wording = "slots", ROWS, noise, usual, wording
        self.suggested = {"lr": 1e-3, "prompts": 64}
        table = numpy_generator(seed, "slots", "table")
        self.table = torch.from_numpy(table.standard_normal((ROWS, VALUES, NUMBERS))).float()
        rng = numpy_generator(seed, "slots", "pictures")
        self.train = [self.prompt(rng, f"train-{i}") for i in range(items)]
        self.heldout = [self.prompt(rng, f"heldout-{i}") for i in range(heldout)]

    def pictures(self, rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        """Values (n, rows) and pictures (n, rows, numbers)."""
        values = torch.from_numpy(rng.integers(0, VALUES, (n, ROWS)))
        noise = torch.from_numpy(rng.standard_normal((n, ROWS, NUMBERS))).float()
        return values, self.table[torch.arange(ROWS), values] + self.noise * noise

    def prompt(self, rng: np.random.Generator, name: str) -> Prompt:
        """A picture, its values as answer, and these in the expert's wording as reference."""
        values, picture = self.pictures(rng, 1)
        answer = tuple(values[0].tolist())
        return Prompt(name, tokens=(DESCRIBE,), media={"images": [picture[0].numpy()]}, answer=answer,
                      reference=tuple(VALUES + v for v in answer))  # fmt: skip

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        """The share of right values; correct if all are."""
        said = zip(response.tolist(), prompt.answer, strict=False)
        right = sum(t < DESCRIBE and t % VALUES == v for t, v in said) / ROWS
        return Score(right, right == 1)

    def revise(self, prompt: Prompt, response: str) -> list[Revision]:
        """Every value is a sentence; a wrong one is misread (score 1) and rewritten in the expert's wording."""
        words, report = response.split(), list[Revision]()
        for i, (word, value) in enumerate(zip(words, prompt.answer, strict=True)):
            space = " " if i < len(words) - 1 else ""
            if word in (str(value), str(VALUES + value)):
                report.append(Revision(word + space, 4, "correct", word + space))
            else:
                report.append(Revision(word + space, 1, "image_recognition_error", f"{VALUES + value}{space}"))
        return report

    def probe(self, policy: Policy) -> dict[str, float]:
        """`wrong`: the share of wrong values in one sampled answer to each held-out picture."""
        requests = [ask(policy, p) for p in self.heldout]
        answers = engine_for(policy).generate(requests, Sampling(ROWS), generator(0, "slots", "probe"))
        scores = [self.score(p, s.response, "").reward for p, [(s, _)] in zip(self.heldout, answers, strict=True)]
        return {"wrong": 1 - sum(scores) / len(scores)}

    def make_policy(self, seed: int) -> Policy:
        """The base of this seed, from the cache or trained now."""
        policy = PictureReader(Sizes(ROWS, NUMBERS, DESCRIBE + 1, ROWS), seed)
        facts = [RECIPE, seed, self.noise, self.usual, self.wording, self.table.tolist()]
        trained_once(policy, "slots", facts, lambda p: self.train_base(p, seed))
        return policy

    def train_base(self, policy: PictureReader, seed: int, steps: int = 300, batch: int = 256) -> None:
        """300 supervised steps (Adam 3e-3) on fresh pictures with the usual value and the wordings as `usual` and
        `wording` say."""
        rng = numpy_generator(seed, "slots", "base")
        optimiser = torch.optim.Adam(policy.module.parameters(), lr=3e-3)
        print(f"slots: training the base policy of seed {seed} (seconds, kept in the cache)", file=sys.stderr)
        for _ in range(steps):
            values, pictures = self.pictures(rng, batch)
            said = values * torch.from_numpy(rng.random(values.shape) >= self.usual)
            said = said + VALUES * torch.from_numpy(rng.random(values.shape) < math.exp(-self.wording))
            before = torch.cat([torch.full((batch, 1), DESCRIBE), said[:, :-1]], 1)
            logits = policy.module.head(policy.module(pictures, before))
            optimiser.zero_grad()
            nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten()).backward()
            optimiser.step()
