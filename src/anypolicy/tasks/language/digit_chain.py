"""Digit chain: a small transformer that can add digits with or without writing the running sums, and always does.

Prompt: d_1 … d_n = (n from 2 to 7); answer: their sum modulo 10. A response with thinking is START, the running sums
modulo 10, END, the answer, EOS; one without is END, the answer, EOS. The first token is the choice of the mode.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray
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

EQUALS, START, END, EOS, PAD = range(10, 15)
LENGTHS = range(2, 8)
RECIPE = 1


def prompt_ids(digits: tuple[int, ...]) -> tuple[int, ...]:
    """d_1 … d_n = as tokens."""
    return (*digits, EQUALS)


def response_ids(digits: tuple[int, ...], thinking: bool) -> tuple[int, ...]:
    """The right response of one mode."""
    sums = [sum(digits[: i + 1]) % 10 for i in range(len(digits))]
    return (START, *sums, END, sums[-1], EOS) if thinking else (END, sums[-1], EOS)


class DigitChain:
    """Training prompts: the share `short` has two digits, the others n uniform from `shortest` to `longest`; there are
    so few pairs of digits that those come up several times. A fifth of all digit strings is held out.

    The starting policy ("base") is trained by supervised steps on both modes and all n, except that the first token of
    a response without thinking is never a target: it knows how to answer at once but does not choose to. It is kept in
    the cache, one for each seed.
    """

    reads_thinking = True

    def __init__(
        self, seed: int, *, prompts: int = 1000, heldout: int = 240, short: float = 0.5, shortest: int = 4,
        longest: int = 7,
    ):  # fmt: skip
        if not 0 <= short <= 1:
            raise InputError("digit-chain.short", short, "use a share in [0, 1]")
        if not LENGTHS[0] <= shortest <= longest <= LENGTHS[-1]:
            raise InputError("digit-chain.shortest", shortest, "use 2 <= shortest <= longest <= 7")
        for field, count in (("prompts", prompts), ("heldout", heldout)):
            if count < 1:
                raise InputError(f"digit-chain.{field}", count, "use a whole number above 0")
        self.name, self.max_tokens = "digit-chain", 16
        self.suggested = {"lr": 1e-4, "prompts": 16}
        rng = numpy_generator(seed, "digit-chain", "prompts")
        both = prompts + heldout
        lengths = np.where(rng.random(both) < short, 2, rng.integers(shortest, longest + 1, both))
        self.train = [prompt(rng, int(n), f"train-{i}", held=False) for i, n in enumerate(lengths[:prompts])]
        self.heldout = [prompt(rng, int(n), f"heldout-{i}", held=True) for i, n in enumerate(lengths[prompts:])]

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        """Correct iff there is exactly one END, the answer and EOS follow it, and no = stands anywhere."""
        ids = response.tolist()
        correct = ids.count(END) == 1 and EQUALS not in ids and ids[ids.index(END) + 1 :] == [prompt.answer, EOS]
        return Score(float(correct), correct)

    def probe(self, policy: Policy) -> dict[str, float]:
        """For each n, at temperature 1 on 200 fixed problems: share of responses without thinking, accuracy and mean
        length on the training side; accuracy on held-out problems ("unseen")."""
        out: dict[str, float] = {}
        rng, sampler = numpy_generator(0, "digit-chain", "probe"), generator(0, "digit-chain", "probe")
        for n in LENGTHS:
            problems = [prompt(rng, n, str(i), held=i >= 200) for i in range(400)]
            requests = [Request(policy.encode(p)) for p in problems]
            answers = [s.response for [(s, _)] in NativeEngine(policy).generate(requests, Sampling(16), sampler)]
            right = [bool(self.score(p, r, "").correct) for p, r in zip(problems, answers, strict=True)]
            out[f"direct_{n}"] = float(np.mean([r[0] == END for r in answers[:200]]))
            out[f"length_{n}"] = float(np.mean([len(r) for r in answers[:200]]))
            out[f"accuracy_{n}"], out[f"unseen_{n}"] = float(np.mean(right[:200])), float(np.mean(right[200:]))
        return out

    def make_policy(self, seed: int) -> Policy:
        """The base of this seed, from the cache or trained now."""
        policy = small_transformer(
            vocabulary=15, layers=2, width=64, heads=4, context_length=24, seed=seed, eos_id=EOS, pad_id=PAD
        )
        trained_once(policy, "digit-chain", [RECIPE, seed], lambda p: train_base(p, seed))
        return policy


def prompt(rng: np.random.Generator, n: int, name: str, *, held: bool) -> Prompt:
    """A problem of n digits on one side of the split."""
    while True:
        digits = tuple(rng.integers(0, 10, n).tolist())
        if (place("".join(map(str, digits))) < 0.2) == held:
            return Prompt(name, tokens=prompt_ids(digits), answer=sum(digits) % 10, info={"digits": n})


def train_base(policy: CausalLM, seed: int, steps: int = 1500, rows: int = 128) -> None:
    """Supervised steps (AdamW 1e-3) on random problems of the training side, n uniform, half of them in each mode."""
    rng = numpy_generator(seed, "digit-chain", "base")
    optimiser = torch.optim.AdamW(policy.module.parameters(), lr=1e-3, weight_decay=0.01)
    print(f"digit-chain: training the base policy of seed {seed} (about a minute, kept in the cache)", file=sys.stderr)
    for _ in range(steps):
        tokens, wanted = examples(rng, rows)
        inputs = torch.from_numpy(tokens[:, :-1])
        logits = policy.module(input_ids=inputs, attention_mask=(inputs != PAD).long()).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(wanted[:, 1:]).flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
        optimiser.step()


def examples(rng: np.random.Generator, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Right-padded problems with their responses, and the same with −100 where a token is no target."""
    tokens = np.full((rows, 2 * LENGTHS[-1] + 5), PAD, np.int64)
    wanted = np.full_like(tokens, -100)
    for row in range(rows):
        n, thinking = int(rng.integers(LENGTHS[0], LENGTHS[-1] + 1)), row % 2 == 0
        asked = prompt(rng, n, "", held=False).tokens
        assert asked is not None
        answer = response_ids(asked[:-1], thinking)
        tokens[row, : len(asked) + len(answer)] = (*asked, *answer)
        first = len(asked) + (0 if thinking else 1)
        wanted[row, first : len(asked) + len(answer)] = tokens[row, first : len(asked) + len(answer)]
    return tokens, wanted
