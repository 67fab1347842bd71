"""Cog-Rethinker: prompts that nobody solves are asked again, first in parts, then with a wrong solution to correct.

Paper: arXiv 2510.15979 (decomposition, reflection, SFT term beside DAPO); its equations were not readable, no code is
public. What follows is the abstract and what its public referee reports state.
Idea: what the policy solves only with help trains it under the ordinary prompt by supervised loss, beside the RL loss.
Changes: rollout (up to two fallback stages with BM25-retrieved examples), selection (groups with a signal of every
stage, and the targets of all), loss (DAPO's + λ · token mean of −logp of the targets).
Silent: λ, number of examples, the buffers' rules, whether fallback groups enter the RL loss. Here 0.1; 2; one entry a
rescued prompt (its shortest correct response), first in, first out, 256 at most; yes, under the prompt they were
sampled from. Examples that do not fit into the policy's context are left out; a prompt that does not fit without is
given up.
Differs: the reward is the verifier's alone, without DAPO's length penalty. A task of token ids words its own prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.records import Group, Prompt, Tokens
from anypolicy.engines.base import Request
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.dapo import dapo
from anypolicy.parts.retrieval import bm25
from anypolicy.policies.language.base import media_of
from anypolicy.stages.common import DropSolved, VerifierReward, group_of
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.recipe import GroupRecipe, World
from anypolicy.stages.targets import WithImitation, resampled_target
from anypolicy.tasks.language.base import Reasks

Example = tuple[str, str]
Buffer = list[list[str]]
Asked = list[tuple[Prompt, Tokens]]
ASK = {
    "decompose": "Split the problem into smaller problems, solve them one after another, then give the final answer.",
    "reflect": "The solution below is wrong. Find the mistake, then solve the problem and give the final answer.",
}
WRITTEN: dict[str, Example] = {
    "decompose": (
        "A box holds 4 rows of 6 eggs and 5 eggs break. How many are whole?",
        "1. How many eggs are there? 4 · 6 = 24.\n2. How many are whole? 24 − 5 = 19.\nThe answer is 19.",
    ),
    "reflect": (
        "A train leaves at 9:50 and arrives at 11:20. How many minutes does it travel?",
        "An hour has 60 minutes, not 100: 10 minutes to 10:00 and 80 to 11:20 are 90.\nThe answer is 90.",
    ),
}
"""The hand-written examples that the buffers of text prompts begin with."""


def retrieve(buffer: Sequence[Sequence[str]], question: str, k: int) -> list[Example]:
    """The k entries of other questions that are nearest by BM25, best first; the newer one where they are equal."""
    others = [(q, a) for q, a in buffer if q != question]
    scores = bm25(question, [q for q, _ in others])
    return [others[i] for i in sorted(range(len(others)), key=lambda i: (-scores[i], -i))[:k]]


def worded(stage: str, question: str, wrong: str | None, examples: Sequence[Example]) -> str:
    """The text of a fallback prompt."""
    shown = [f"Problem: {q}\nSolution: {a}" for q, a in examples]
    solution = [] if wrong is None else [f"Wrong solution: {wrong}"]
    return "\n\n".join([ASK[stage], *shown, f"Problem: {question}", *solution])


def question_of(prompt: Prompt) -> str:
    """What examples are retrieved by: the last message, or the ids."""
    return str(prompt.messages[-1]["content"]) if prompt.messages else " ".join(map(str, prompt.tokens or ()))


@dataclass(frozen=True)
class FallbackRollout:
    """Direct responses; for prompts without a right one, responses to a decomposition prompt; for those still without,
    responses to a prompt with one wrong response. Right responses of the last two become targets under the direct
    prompt (the `kept` shortest a prompt) and examples for later prompts."""

    needs, gives = Needs(labels=True, verifier=True), Gives()
    group_size: int = 16
    stages: tuple[str, ...] = ("decompose", "reflect")
    examples: int = 2
    capacity: int = 256
    kept: int = 4
    rl_on_stages: Literal["own_prompt", "none"] = "own_prompt"

    def check(self, world: World) -> None:
        if self.stages and not isinstance(world.task, Reasks) and not world.task.train[0].messages:
            raise InputError("task", world.task.name, "its prompts are token ids: it must have `reask` to be asked "
                             "again")  # fmt: skip

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        asked = self.ask(world, [(p, world.policy.encode(p)) for p in prompts], "direct", generator)
        groups = list(asked)
        for stage in self.stages:
            buffer: Buffer = world.remembered(f"examples/{stage}", Buffer, [])
            if not buffer and prompts[0].messages:
                buffer.append(list(WRITTEN[stage]))
            contexts = [
                (group.prompt, context)
                for group in asked
                if not any(t.correct for t in group.trajectories)
                and (context := self.again(world, group, stage, buffer, generator)) is not None
            ]
            asked = self.ask(world, contexts, stage, generator) if contexts else []
            for group in asked:
                self.learn(world, group, buffer)
            groups += asked
        return groups

    def ask(self, world: World, contexts: Asked, stage: str, generator: torch.Generator) -> list[Group]:
        """One verified group for every context."""
        requests = [Request(ids, self.group_size, media=media_of(world.policy, p)) for p, ids in contexts]
        sampled = world.engine.generate(requests, world.sampling, generator, world.version)
        groups = [group_of(p, answers, stage) for (p, _), answers in zip(contexts, sampled, strict=True)]
        for group in groups:
            for t in group.trajectories:
                t.correct = world.task.score(group.prompt, t.response, world.policy.decode(t.response)).correct
        return groups

    def again(self, world: World, failed: Group, stage: str, buffer: Buffer, rng: torch.Generator) -> Tokens | None:
        """The prompt of a fallback stage with as many examples as fit; to correct, one response of the stage before."""
        prompt, wrong = failed.prompt, None
        if stage == "reflect":
            wrong = failed.trajectories[int(torch.randint(len(failed.trajectories), (1,), generator=rng))].response
        found = retrieve(buffer, question_of(prompt), self.examples)
        for n in range(len(found), -1, -1):
            if isinstance(world.task, Reasks):
                asked = world.task.reask(prompt, stage, wrong, found[:n])
            else:
                text = None if wrong is None else world.policy.decode(wrong)
                message = {**prompt.messages[-1], "content": worded(stage, question_of(prompt), text, found[:n])}
                asked = replace(prompt, messages=(*prompt.messages[:-1], message))
            context = world.policy.encode(asked)
            if len(context) + world.sampling.max_tokens <= world.policy.context_length:
                return context
        return None

    def learn(self, world: World, group: Group, buffer: Buffer) -> None:
        """Right responses of a fallback group as targets and, the shortest, as an example."""
        right = sorted((t for t in group.trajectories if t.correct), key=lambda t: t.length)
        if right:
            buffer.append([question_of(group.prompt), world.policy.decode(right[0].response)])
            del buffer[: -self.capacity]
        if self.rl_on_stages == "none":
            for t in group.trajectories:
                t.segments[0].mask = np.zeros_like(t.segments[0].mask)
        direct = world.policy.encode(group.prompt)
        kept = right[: self.kept]
        group.trajectories += [resampled_target(t.id, t.segments[0], direct, t.response) for t in kept]


@method(
    Card(
        title="Cog-Rethinker: Hierarchical Metacognitive Reinforcement Learning for LLM Reasoning",
        paper="arXiv 2510.15979",
        year=2025,
        family="language",
        idea="ask unsolved prompts again, in parts and then with a wrong solution; imitate what succeeds",
        changes=("rollout", "selection", "loss"),
        composes_with="samplers, advantages and losses of the family; rewards that may see the answers",
        claim="at equal samples it solves more hard prompts than DAPO, and than itself without the supervised term",
        example="anypolicy train cog-rethinker --task tabular-lock:hints=true --steps 60",
        look_at="probe/success: 0.23 to 0.95 with seed 0",
    )
)
def cog_rethinker(
    group_size: knobs.GroupSize = 16,
    imitation_coef: Annotated[float, Knob("weight of the imitation of stage responses", least=0)] = 0.1,
    decompose: Annotated[bool, Knob("unsolved prompts are tried again with a decomposition")] = True,
    reflect: Annotated[bool, Knob("wrong answers are shown to the policy to be corrected")] = True,
    examples: Annotated[int, Knob("solved problems shown beside a prompt", least=0)] = 2,
    capacity: Annotated[int, Knob("solved problems that are remembered", least=1)] = 256,
    kept: Annotated[int, Knob("solved responses of a stage that are imitated", least=1)] = 4,
    rl_on_stages: Annotated[
        Literal["own_prompt", "none"], Knob("whether stage responses are reinforced, and under which prompt")
    ] = "own_prompt",
    clip_low: knobs.ClipLow = 0.2,
    clip_high: knobs.ClipHigh = 0.28,
    max_rounds: Annotated[int, Knob("rounds of sampling in a step at most", least=1)] = 3,
) -> GroupRecipe:
    """DAPO with two fallback stages and λ = 0.1."""
    if imitation_coef < 0:
        raise InputError("cog-rethinker.imitation_coef", imitation_coef, "use 0 or more")
    for name, value in (("examples", examples), ("kept", kept), ("capacity", capacity - 1)):
        if value < 0:
            raise InputError(f"cog-rethinker.{name}", value, "use a larger whole number")
    base = dapo(group_size, clip_low, clip_high)
    stages = tuple(s for s, used in (("decompose", decompose), ("reflect", reflect)) if used)
    return replace(
        base,
        rollout=FallbackRollout(group_size, stages, examples, capacity, kept, rl_on_stages),
        reward=VerifierReward(),
        selection=DropSolved(all_wrong=True, max_rounds=max_rounds),
        loss=WithImitation(base.loss, imitation_coef, "token-mean"),
    )
