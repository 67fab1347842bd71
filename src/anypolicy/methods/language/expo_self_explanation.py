"""ExPO: hard prompts are learnt from the policy's own explanations of their known answers (the variant ExP-GRPO).

Paper: arXiv 2507.02834 (NeurIPS 2025), the ExP-GRPO objective; read through public notes of its third version, its
code was not to be had. ExP-DPO, its variant on preference pairs, is not here.
Idea: when no sampled answer is right there is nothing to reinforce; so let the policy explain the answer, then raise
the likelihood of that explanation under the plain prompt: it is likely for the policy and it leads to the answer.
Changes: rollout (one explanation a prompt, sampled with the answer in sight), loss (+ β · log-likelihood of explanation
and answer under the plain prompt).
Silent: whether the likelihood is a mean or a sum over tokens (`likelihood`; here the mean, as in the GRPO term), how
the paper's β anneals (`schedule`), wording of the prompts, what to do with unusable explanations. Here an explanation
that is empty or longer than the response limit is dropped, and the prompt counts as 0 in the mean over prompts; so do
prompts without an answer and, with `when="all_wrong"`, those with a right response, which get no explanation.
Differs: no KL term by default. New explanations in every step; the notes leave open whether once would do.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.data.records import Group, Prompt, Tokens
from anypolicy.engines.base import ask
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.parts.reduce import Mode
from anypolicy.policies.language.base import Policy, Scores
from anypolicy.stages.common import GroupRollout
from anypolicy.stages.lengths import check_lengths
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.recipe import GroupRecipe, Loss, LossTerms, World
from anypolicy.stages.targets import WithImitation, resampled_target
from anypolicy.tasks.language.base import ShowsAnswers

When = Literal["always", "all_wrong"]
Likelihood = Literal["mean", "sum"]
Schedule = Literal["constant", "linear", "cosine"]
EXPLAIN = """{question}

The final answer is {answer}. Write the solution that leads to it, step by step, as if you were finding it yourself.
Do not mention that the answer was given."""


def coefficient(beta: float, schedule: Schedule, progress: float | None) -> float:
    """β of this step: constant, or falling to 0 over the run, linearly or as half a cosine."""
    if schedule == "constant":
        return beta
    if progress is None:
        raise InputError("schedule", schedule, "the run has no end: use constant, or give its number of steps")
    return beta * (1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2)


def before(marker: str, policy: Policy, response: Tokens) -> Tokens:
    """The whole tokens of a response before the marker's text, or before the stop token."""
    if len(response) and response[-1] in policy.stop_ids:
        response = response[:-1]
    at = policy.decode(response).find(marker)
    if at < 0:
        return response
    return response[: bisect_right(range(len(response) + 1), at, key=lambda n: len(policy.decode(response[:n]))) - 1]


def correct(world: World, prompt: Prompt, response: Tokens) -> bool:
    """The task's verdict."""
    return bool(world.task.score(prompt, response, world.policy.decode(response)).correct)


@dataclass(frozen=True)
class SelfExplanation:
    """Ordinary groups and, for every prompt with an answer, targets: explanations sampled with the answer in sight, cut
    before their own answer, ended by the known one, to be trained under the plain prompt."""

    needs, gives = Needs(labels=True, verifier=True), Gives()
    group_size: int = 8
    when: When = "always"
    explanations: int = 1
    only_correct: bool = False
    marker: str = "The answer is"
    conclusion: str = "\nThe answer is {answer}."

    def check(self, world: World) -> None:
        known = [p for p in world.task.train if p.answer is not None]
        if not known:
            raise InputError("task", world.task.name, "none of its prompts has an answer to explain (`answer`)")
        if not known[0].messages and not isinstance(world.task, ShowsAnswers):
            raise InputError("task", world.task.name, "its prompts are token ids: it must have `answer_shown`")
        check_lengths(world, [self.shown(world, p) for p in known])
        if isinstance(world.task, ShowsAnswers):
            return
        response = self.ended(world, known[0], world.policy.encode_reference(Prompt("", reference="It follows.")))
        if not correct(world, known[0], response):
            raise InputError("conclusion", self.conclusion, f"the verifier of {world.task.name} does not find "
                             "the answer in it")  # fmt: skip

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        groups = GroupRollout(self.group_size)(world, prompts, generator)
        known = [g for g in groups if g.prompt.answer is not None]
        if self.when == "all_wrong":
            known = [g for g in known if not any(correct(world, g.prompt, t.response) for t in g.trajectories)]
        requests = [ask(world.policy, self.shown(world, g.prompt), self.explanations) for g in known]
        answers = world.engine.generate(requests, world.sampling, generator, world.version) if known else []
        for group, explained in zip(known, answers, strict=True):
            prompt = group.prompt
            for segment, stop in explained:
                response = self.ended(world, prompt, segment.response)
                unfinished = stop == "length" and bool(world.policy.stop_ids)
                if unfinished or not 0 < len(response) <= world.sampling.max_tokens:
                    continue
                if self.only_correct and not correct(world, prompt, segment.answer):
                    continue
                context = world.policy.encode(prompt)
                target = resampled_target("explanation", segment, context, response)
                target.info["generated"] = len(segment.response)
                group.trajectories.append(target)
        return groups

    def shown(self, world: World, prompt: Prompt) -> Prompt:
        """The prompt with its answer and the request to explain it."""
        if isinstance(world.task, ShowsAnswers):
            return world.task.answer_shown(prompt)
        text = EXPLAIN.format(question=prompt.messages[-1]["content"], answer=prompt.answer)
        return replace(prompt, messages=(*prompt.messages[:-1], {**prompt.messages[-1], "content": text}))

    def ended(self, world: World, prompt: Prompt, response: Tokens) -> Tokens:
        """The explanation and the known answer in the task's format; empty if nothing was explained."""
        if isinstance(world.task, ShowsAnswers):
            return world.task.ended_by_answer(prompt, response)
        chain, end = before(self.marker, world.policy, response), self.conclusion.format(answer=prompt.answer)
        if not world.policy.decode(chain).strip():
            return chain[:0]
        return np.concatenate([chain, world.policy.encode_reference(replace(prompt, reference=end))])


@dataclass(frozen=True)
class ExplanationLoss:
    """Another loss − β · mean over all prompts of the (mean or summed) log-likelihood of their explanations."""

    loss: Loss
    beta: float = 0.04
    likelihood: Likelihood = "mean"
    schedule: Schedule = "constant"

    @property
    def needs(self) -> Needs:
        return self.loss.needs

    def at(self, progress: float | None) -> WithImitation:
        """The loss with this step's β."""
        mode: Mode = "group-mean-token-mean" if self.likelihood == "mean" else "group-mean-token-sum"
        return WithImitation(self.loss, coefficient(self.beta, self.schedule, progress), mode)

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        return self.at(batch.progress).active(batch)

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms:
        return self.at(batch.progress)(scores, batch)


@method(
    Card(
        title="Self-Explanation-Guided Reinforcement Learning (ExP-GRPO)",
        paper="arXiv 2507.02834",
        year=2025,
        family="language",
        idea="imitate the policy's own explanation of the known answer, under the prompt that hides it",
        changes=("rollout", "loss"),
        composes_with="samplers, advantages, selections",
        claim="on prompts the policy never solves it beats GRPO by 20 points and imitating an expert of another style",
        example="anypolicy train expo-self-explanation --task tabular-lock:hints=true --steps 60",
        look_at="probe/success: 0.23 to 0.95 with seed 0",
        no_signal=(),
    )
)
def expo_self_explanation(
    group_size: knobs.GroupSize = 8,
    beta: knobs.Beta = 0.04,
    when: Annotated[When, Knob("which groups get an explanation")] = "always",
    likelihood: Annotated[Likelihood, Knob("log-likelihood of an explanation: mean or sum over tokens")] = "mean",
    schedule: Annotated[Schedule, Knob("weight of explanations over the run")] = "constant",
    explanations: Annotated[int, Knob("explanations of a prompt", least=1)] = 1,
    only_correct: Annotated[bool, Knob("only those that lead to the right answer are learnt from")] = False,
    marker: Annotated[str, Knob("text where an explanation ends")] = "The answer is",
    conclusion: Annotated[str, Knob("text that is put after an explanation")] = "\nThe answer is {answer}.",
    clip: knobs.ClipRange = 0.2,
    kl_coef: knobs.KLCoef = 0.0,
) -> GroupRecipe:
    """GRPO without KL and, at β > 0, one explanation a prompt whose likelihood is raised."""
    base = grpo(group_size, clip, kl_coef)
    if beta == 0:
        return base
    return replace(
        base,
        rollout=SelfExplanation(group_size, when, explanations, only_correct, marker, conclusion),
        loss=ExplanationLoss(base.loss, beta, likelihood, schedule),
    )
