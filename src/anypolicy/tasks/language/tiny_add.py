"""Tiny addition: a two-layer transformer that has half learnt to add, and the whole pipeline around it.

Prompt: a + b =, three zero-padded digits each (8 tokens); answer: four digits, least significant first, then EOS. The
policy is a causal transformer or, on request, a masked-diffusion one.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from anypolicy.data.records import Prompt, Tokens
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.of_policy import engine_for
from anypolicy.errors import InputError
from anypolicy.parts.elbo import elbo_sample, random_mask
from anypolicy.policies.language.base import Policy
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.policies.language.masked_diffusion import MaskedDiffusionLM, small_denoiser
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.runs.seeds import generator, numpy_generator
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.pretrained import trained_once
from anypolicy.tasks.split import place

PLUS, EQUALS, EOS, DOT, PAD = range(10, 15)
MASK = 15
LENGTH = 8
SHARES = (0.5, 0.3, 0.2)
RECIPE = 1


def prompt_ids(a: int, b: int) -> tuple[int, ...]:
    """a + b = as tokens."""
    return (*map(int, f"{a:03d}"), PLUS, *map(int, f"{b:03d}"), EQUALS)


def answer_ids(a: int, b: int) -> tuple[int, ...]:
    """The four digits of a + b, least significant first, and EOS."""
    return (*map(int, reversed(f"{a + b:04d}")), EOS)


def imperfect(answer: tuple[int, ...], accuracy: float, rng: np.random.Generator) -> tuple[int, ...]:
    """The answer with probability `accuracy`, else with one of its digits changed."""
    if rng.random() < accuracy:
        return answer
    digits = list(answer)
    where = int(rng.integers(len(digits) - 1))
    digits[where] = (digits[where] + int(rng.integers(1, 10))) % 10
    return tuple(digits)


class TinyAdd:
    """Classes k = 1, 2, 3 draw a and b uniformly below 10^k. A fifth of all pairs is held out by their own digits.

    With `references` every prompt has a reference response; a share `reference_accuracy` of them is right, the others
    have one wrong digit.

    The starting policy ("base") is trained by supervised steps until its accuracy at temperature 1, mean over the
    classes, reaches `base_accuracy`; it is kept in the cache, one for each seed. `policy` is its kind.
    """

    def __init__(
        self, seed: int, *, prompts: int = 600, heldout: int = 300, base_accuracy: float = 0.4,
        references: bool = False, reference_accuracy: float = 1.0,
        policy: Literal["causal", "masked-diffusion"] = "causal",
    ):  # fmt: skip
        if not 0 <= base_accuracy < 1:
            raise InputError("tiny-add.base_accuracy", base_accuracy, "use a share in [0, 1)")
        if not 0 <= reference_accuracy <= 1:
            raise InputError("tiny-add.reference_accuracy", reference_accuracy, "use a share in [0, 1]")
        for field, count in (("prompts", prompts), ("heldout", heldout)):
            if count < 1:
                raise InputError(f"tiny-add.{field}", count, "use a whole number above 0")
        self.name, self.max_tokens, self.base_accuracy, self.policy = "tiny-add", LENGTH, base_accuracy, policy
        self.suggested = {"lr": 3e-4, "prompts": 32}
        rng = numpy_generator(seed, "tiny-add", "prompts")
        self.train = self.draw(rng, prompts, held=False)
        self.heldout = self.draw(rng, heldout, held=True)
        if references:
            rng = numpy_generator(seed, "tiny-add", "references")
            self.train = [replace(p, reference=imperfect(p.answer, reference_accuracy, rng)) for p in self.train]

    def draw(self, rng: np.random.Generator, n: int, *, held: bool) -> list[Prompt]:
        """Up to n different pairs, a third of each class (class 1 has only a hundred)."""
        out: dict[str, Prompt] = {}
        for k in (1, 2, 3):
            taken = 0
            for a, b in rng.integers(0, 10**k, (20 * n, 2)).tolist():
                name = f"{a}+{b}"
                if taken < -(-n // 3) and name not in out and held_out(a, b) == held:
                    out[name] = Prompt(name, tokens=prompt_ids(a, b), answer=answer_ids(a, b), info={"class": k})
                    taken += 1
        return list(out.values())[:n]

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        correct = tuple(response.tolist()) == tuple(prompt.answer)
        return Score(float(correct), correct)

    def probe(self, policy: Policy) -> dict[str, float]:
        """Accuracy at temperature 1 of each class and their mean, on 256 fixed problems a class."""
        each = class_accuracy(policy, numpy_generator(0, "tiny-add", "probe"), generator(0, "tiny-add", "probe"), 256)
        return {"class_mean": sum(each) / 3} | {f"class_{k}": v for k, v in enumerate(each, 1)}

    def make_policy(self, seed: int) -> Policy:
        """The base of this seed, from the cache or trained now."""
        facts: list[Any] = [RECIPE, seed, self.base_accuracy]
        if self.policy == "causal":
            policy = small_transformer(
                vocabulary=15, layers=2, width=48, heads=4, context_length=24, seed=seed, eos_id=EOS, pad_id=PAD
            )
        else:
            facts.append(self.policy)
            policy = small_denoiser(
                vocabulary=16, layers=2, width=48, heads=4, context_length=24, seed=seed, eos_id=EOS, mask_id=MASK
            )
        trained_once(policy, "tiny-add", facts, lambda p: train_base(p, seed, self.base_accuracy))
        return policy


def held_out(a: int, b: int) -> bool:
    """Whether a pair belongs to the held-out fifth."""
    return place(f"{a}+{b}") < 0.2


def class_accuracy(policy: Policy, rng: np.random.Generator, sampler: torch.Generator, n: int) -> list[float]:
    """Accuracy at temperature 1 on n random problems of each class, held-out pairs included."""
    out: list[float] = []
    engine = engine_for(policy)
    for k in (1, 2, 3):
        pairs = rng.integers(0, 10**k, (n, 2)).tolist()
        requests = [Request(np.array(prompt_ids(a, b), np.int64)) for a, b in pairs]
        answers = engine.generate(requests, Sampling(LENGTH), sampler)
        right = [tuple(s.answer.tolist()) == answer_ids(*p) for p, [(s, _)] in zip(pairs, answers, strict=True)]
        out.append(sum(right) / n)
    return out


def train_base(policy: CausalLM | MaskedDiffusionLM, seed: int, target: float) -> None:
    """Supervised steps (AdamW, weight decay 0.01, batch 128, classes 0.5/0.3/0.2) until the class-mean accuracy reaches
    the target: on the answer's tokens at 1e-3, looked at every 20 steps, or on the evidence lower bound of a
    masked-diffusion policy at 3e-3, looked at every 100. Held-out pairs are never seen."""
    rng = numpy_generator(seed, "tiny-add", "base")
    causal = isinstance(policy, CausalLM)
    limit, long = (4000, "about half a minute") if causal else (10_000, "some minutes")
    optimiser = torch.optim.AdamW(policy.module.parameters(), lr=1e-3 if causal else 3e-3, weight_decay=0.01)
    print(f"tiny-add: training the base policy of seed {seed} ({long}, kept in the cache)", file=sys.stderr)
    for step in range(limit):
        if step % (20 if causal else 100) == 0:
            sampler = generator(seed, "tiny-add", "base", step)
            if sum(class_accuracy(policy, rng, sampler, 512)) / 3 >= target:
                return
        tokens = torch.tensor([prompt_ids(*p) + answer_ids(*p) for p in pairs(rng, 128)])
        if isinstance(policy, CausalLM):
            loss = answer_loss(policy, tokens)
        else:
            loss = masked_loss(policy, tokens, generator(seed, "tiny-add", "masks", step))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
        optimiser.step()
    raise InputError(
        "tiny-add.base_accuracy", target, f"seed {seed} did not reach it in {limit} steps: use a lower one"
    )


def pairs(rng: np.random.Generator, n: int) -> list[tuple[int, int]]:
    """n training pairs of mixed classes."""
    out: list[tuple[int, int]] = []
    while len(out) < n:
        top = 10 ** int(rng.choice([1, 2, 3], p=SHARES))
        a, b = (int(x) for x in rng.integers(0, top, 2))
        if not held_out(a, b):
            out.append((a, b))
    return out


def answer_loss(policy: CausalLM, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the five answer tokens."""
    logits = policy.module(input_ids=tokens[:, :-1]).logits[:, -5:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, -5:].flatten())


def masked_loss(policy: MaskedDiffusionLM, tokens: Tensor, rng: torch.Generator) -> Tensor:
    """−ELBO a token of the answers, filled up with EOS, on one random mask each."""
    tokens = nn.functional.pad(tokens, (0, LENGTH - 5), value=EOS)
    answer = torch.zeros_like(tokens, dtype=torch.bool)
    answer[:, -LENGTH:] = True
    uniform, level = torch.rand(tokens.shape, generator=rng), torch.rand(len(tokens), generator=rng)
    masked, weight = random_mask(uniform, level, answer, "count")
    z = policy.predict(tokens.masked_fill(masked, MASK), torch.ones_like(masked), masked)
    logp = -nn.functional.cross_entropy(z, tokens[masked], reduction="none")
    ell = elbo_sample(torch.zeros(tokens.shape).masked_scatter(masked, logp), masked, weight)
    return -ell.mean() / LENGTH
