"""Held-out evaluation: greedy answers, verified and rewarded; and how likely reference responses are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Tokens
from anypolicy.engines.base import Sampling, ask
from anypolicy.engines.of_policy import engine_for
from anypolicy.errors import InputError, check_numbers
from anypolicy.policies.language.base import Policy
from anypolicy.runs.metrics import wilson
from anypolicy.runs.seeds import generator
from anypolicy.stages.common import scored
from anypolicy.stages.recipe import Reward, World
from anypolicy.stages.targets import reference_target
from anypolicy.tasks.language.base import Probes, Score
from anypolicy.tasks.language.verify import verifies

Read = Callable[[World, Tokens], Tokens | None]
"""What the verifier gets of a response; None: it counts as wrong."""
CHUNK = 64
TOKENS = 4096
"""Padded tokens in one forward pass over reference responses."""


def evaluate(
    world: World, prompts: Sequence[Prompt], temperature: float = 0.0, reward: Reward | None = None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Accuracy (with its Wilson 95 % interval) where the task verifies answers, mean reward and length over `prompts`,
    one response each, greedy unless a temperature is given; and the responses. They are read as `reward` reads them in
    training, and rewarded by the user's own rewards if there are any, each of several apart, with the standard error of
    their sum. Log-probability and perplexity of the reference responses, where prompts have one. A task without a
    verifier and without such rewards gets only these. A task that can probe the policy adds its numbers."""
    read: Read | None = getattr(reward, "read", None)
    judged = verifies(world.task) or world.reward_function is not None
    samples = answered(world, prompts, temperature, read) if judged else []
    out: dict[str, float] = {}
    if n := len(samples):
        if verifies(world.task):
            right = sum(s["correct"] for s in samples)
            low, high = wilson(right, n)
            out = {"eval/accuracy": right / n, "eval/low": low, "eval/high": high}
        out |= {"eval/n": float(n)} | rewards(samples) | {"eval/length": sum(s["length"] for s in samples) / n}
        if unscored := sum("unscored" in s for s in samples):
            out["eval/unscored"] = float(unscored)
    out |= likelihood(world.policy, [p for p in prompts if p.reference is not None])
    if isinstance(world.task, Probes):
        out |= {f"probe/{name}": value for name, value in world.task.probe(world.policy).items()}
    return out, samples


def rewards(samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean reward; of the user's own also its standard error, and each of several."""
    given = np.array([s["reward"] for s in samples if s["reward"] is not None], dtype=np.float64)
    out = {"eval/reward": float(given.mean())} if len(given) else {}
    own = [s["rewards"] for s in samples if "rewards" in s]
    if own and len(given) > 1:
        out["eval/reward_se"] = float(given.std(ddof=1) / len(given) ** 0.5)
    names = dict.fromkeys(name for named in own for name in named)
    parts = {name: [named[name] for named in own if name in named] for name in names} if len(names) > 1 else {}
    return out | {f"eval/reward/{name}": sum(x) / len(x) for name, x in parts.items()}


def answered(
    world: World, prompts: Sequence[Prompt], temperature: float, read: Read | None = None
) -> list[dict[str, Any]]:
    """One response to every prompt, verified and rewarded."""
    sampling = replace(world.sampling, temperature=temperature, top_p=1.0, top_k=0)
    samples: list[dict[str, Any]] = []
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        requests = [ask(world.policy, p) for p in chunk]
        rng = generator(world.seed, "evaluation", start)
        answers = [answer for [answer] in world.engine.generate(requests, sampling, rng)]
        texts = [world.policy.decode(segment.answer) for segment, _ in answers]
        parts = [s.answer if read is None else read(world, s.answer) for s, _ in answers]
        found = iter(scored(world, [(p, [r]) for p, r in zip(chunk, parts, strict=True) if r is not None]))
        scores = [unread(world) if r is None else next(found)[0] for r in parts]
        for prompt, (segment, stop), text, score in zip(chunk, answers, texts, scores, strict=True):
            shown = prompt.messages[-1]["content"] if prompt.messages else list(prompt.tokens or ())
            samples.append(
                {"id": prompt.id, "prompt": shown, "response": text, "answer": prompt.answer,
                 "reward": None if math.isnan(score.reward) else score.reward, "correct": score.correct, "stop": stop,
                 "length": len(segment.answer), **({"rewards": score.rewards} if score.rewards is not None else {}),
                 **score.note}
            )  # fmt: skip
    return samples


def unread(world: World) -> Score:
    """The score of a response that is not read."""
    return Score(0.0, False if verifies(world.task) else None, rewards=None if world.reward_function is None else {})


@torch.no_grad()
def likelihood(policy: Policy, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Mean log-probability (nats) of a reference token at temperature 1, and the perplexity exp(−mean)."""
    total, tokens = 0.0, 0
    for start in range(0, len(prompts), CHUNK):
        groups = [Group(p.id, p, [reference_target(policy, p)]) for p in prompts[start : start + CHUNK]]
        batch = from_groups(groups)
        for rows in batch.chunks(TOKENS):
            part = batch.select(rows)
            assert part.target is not None
            total += float(policy.score(part, 1.0).logp[part.target].double().sum())
            tokens += int(part.target.sum())
    if not tokens:
        return {}
    mean = torch.tensor(total / tokens, dtype=torch.float64)
    return {"eval/logp": float(mean), "eval/perplexity": float((-mean).exp())}


def responses(
    policy: Policy, prompts: str | Sequence[Any], max_tokens: int, temperature: float, seed: int
) -> list[str]:
    """A response to every prompt: a text, or messages."""
    if getattr(policy, "tokenizer", None) is None:
        raise InputError("policy", type(policy).__name__, "it has no tokenizer, so that it reads and writes no text")
    one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], dict))
    asked = [[{"role": "user", "content": x}] if isinstance(x, str) else x for x in ([prompts] if one else prompts)]
    for messages in asked:
        if not isinstance(messages, list | tuple) or not messages or not all(map(said, messages)):
            raise InputError("prompts", messages, "give a text, or messages with role and content")
    requests = [ask(policy, Prompt(str(i), tuple(messages))) for i, messages in enumerate(asked)]
    sampling = Sampling(max_tokens, temperature)
    check_numbers(sampling, positive=("max_tokens",), natural=("temperature",))
    made = engine_for(policy).generate(requests, sampling, generator(seed, "responses")) if requests else []
    return [policy.decode(segment.answer) for [(segment, _)] in made]


def said(message: Any) -> bool:
    """Whether this is a message that says something."""
    known = isinstance(message, dict) and isinstance(message.get("role"), str)
    return known and isinstance(message.get("content"), str) and bool(message["content"])
