"""Held-out evaluation: greedy answers, verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anypolicy.data.records import Prompt, Tokens
from anypolicy.engines.base import Request
from anypolicy.loops.recipe import World
from anypolicy.runs.metrics import wilson
from anypolicy.runs.seeds import generator
from anypolicy.tasks.base import Probes, Score, ScoresMany, Task

CHUNK = 64


def verify(task: Task, responses: Sequence[tuple[Prompt, Tokens, str]]) -> list[Score]:
    """The task's scores of (prompt, ids, text), all at once where it can."""
    if isinstance(task, ScoresMany):
        return task.score_many(responses)
    return [task.score(*response) for response in responses]


def evaluate(
    world: World, prompts: Sequence[Prompt], temperature: float = 0.0
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Accuracy (with its Wilson 95 % interval), mean reward and length over `prompts`, one response each, greedy
    unless a temperature is given; and the responses. A task that can probe the policy adds its own numbers."""
    sampling = replace(world.sampling, temperature=temperature, top_p=1.0, top_k=0)
    samples: list[dict[str, Any]] = []
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        requests = [Request(world.policy.encode(p)) for p in chunk]
        rng = generator(world.seed, "evaluation", start)
        answers = [answer for [answer] in world.engine.generate(requests, sampling, rng)]
        texts = [world.policy.decode(segment.response) for segment, _ in answers]
        given = [(p, s.response, text) for p, (s, _), text in zip(chunk, answers, texts, strict=True)]
        scores = verify(world.task, given)
        for prompt, (segment, stop), text, score in zip(chunk, answers, texts, scores, strict=True):
            shown = prompt.messages[-1]["content"] if prompt.messages else list(prompt.tokens or ())
            samples.append(
                {"id": prompt.id, "prompt": shown, "response": text, "answer": prompt.answer, "reward": score.reward,
                 "correct": score.correct, "stop": stop, "length": len(segment.response)}
            )  # fmt: skip
    out: dict[str, float] = {}
    if n := len(samples):
        right = sum(s["correct"] for s in samples)
        low, high = wilson(right, n)
        mean = {k: sum(float(s[k]) for s in samples) / n for k in ("reward", "length")}
        out = {"eval/accuracy": right / n, "eval/low": low, "eval/high": high, "eval/n": float(n)}
        out |= {"eval/reward": mean["reward"], "eval/length": mean["length"]}
    if isinstance(world.task, Probes):
        out |= {f"probe/{name}": value for name, value in world.task.probe(world.policy).items()}
    return out, samples
