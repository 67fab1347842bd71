"""Held-out evaluation: greedy answers, verified; and how likely the reference responses are, where there are some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Tokens
from anypolicy.engines.base import ask
from anypolicy.policies.language.base import Policy
from anypolicy.runs.metrics import wilson
from anypolicy.runs.seeds import generator
from anypolicy.stages.recipe import Reward, World
from anypolicy.stages.targets import reference_target
from anypolicy.tasks.language.base import Probes, Score
from anypolicy.tasks.language.verify import verifies, verify

Read = Callable[[World, Tokens], Tokens | None]
"""What the verifier gets of a response; None: it counts as wrong."""
CHUNK = 64
TOKENS = 4096
"""Padded tokens in one forward pass over reference responses."""


def evaluate(
    world: World, prompts: Sequence[Prompt], temperature: float = 0.0, reward: Reward | None = None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Accuracy (with its Wilson 95 % interval), mean reward and length over `prompts`, one response each, greedy
    unless a temperature is given; and the responses. They are read as `reward` reads them in training. Log-probability
    and perplexity of the reference responses, where prompts have one. A task without a verifier gets only these. A task
    that can probe the policy adds its numbers."""
    read: Read | None = getattr(reward, "read", None)
    samples = answered(world, prompts, temperature, read) if verifies(world.task) else []
    out: dict[str, float] = {}
    if n := len(samples):
        right = sum(s["correct"] for s in samples)
        low, high = wilson(right, n)
        mean = {k: sum(float(s[k]) for s in samples) / n for k in ("reward", "length")}
        out = {"eval/accuracy": right / n, "eval/low": low, "eval/high": high, "eval/n": float(n)}
        out |= {"eval/reward": mean["reward"], "eval/length": mean["length"]}
        if unscored := sum("unscored" in s for s in samples):
            out["eval/unscored"] = float(unscored)
    out |= likelihood(world.policy, [p for p in prompts if p.reference is not None])
    if isinstance(world.task, Probes):
        out |= {f"probe/{name}": value for name, value in world.task.probe(world.policy).items()}
    return out, samples


def answered(
    world: World, prompts: Sequence[Prompt], temperature: float, read: Read | None = None
) -> list[dict[str, Any]]:
    """One verified response to every prompt."""
    sampling = replace(world.sampling, temperature=temperature, top_p=1.0, top_k=0)
    samples: list[dict[str, Any]] = []
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        requests = [ask(world.policy, p) for p in chunk]
        rng = generator(world.seed, "evaluation", start)
        answers = [answer for [answer] in world.engine.generate(requests, sampling, rng)]
        texts = [world.policy.decode(segment.answer) for segment, _ in answers]
        parts = [s.answer if read is None else read(world, s.answer) for s, _ in answers]
        given = [(p, r, world.policy.decode(r)) for p, r in zip(chunk, parts, strict=True) if r is not None]
        found = iter(verify(world.task, given))
        scores = [Score(0.0, False) if r is None else next(found) for r in parts]
        for prompt, (segment, stop), text, score in zip(chunk, answers, texts, scores, strict=True):
            shown = prompt.messages[-1]["content"] if prompt.messages else list(prompt.tokens or ())
            samples.append(
                {"id": prompt.id, "prompt": shown, "response": text, "answer": prompt.answer, "reward": score.reward,
                 "correct": score.correct, "stop": stop, "length": len(segment.answer), **score.note}
            )  # fmt: skip
    return samples


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
