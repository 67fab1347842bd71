"""AdaptThink: a reasoning model learns when to think.

Paper: arXiv 2505.13417, section 4 (constrained objective, its Lagrangian, importance sampling of the two modes).
Idea: a response that begins with the end-of-thinking token does not think. Half of every group is made to begin so, and
not thinking earns a small bonus on top of how much better than the frozen reference the response is.
Changes: rollout (forced first tokens of known probability, shorter limit without thinking), reward (verified after
exactly one end-of-thinking token, minus the reference's accuracy on the prompt, plus the bonus), advantage (that value
as it is), loss (clipped length-normalised sequence ratio, no KL), optimiser (AdamW 2e-6, weight decay 0.01).
Silent: when the reference answers. Here K responses the first time a prompt is drawn, kept in every checkpoint.
Differs: the paper writes the ratio as the product over tokens; the authors' code has the geometric mean, as here by
default: for a policy that hardly ever skips thinking the product multiplies the gradient of the choice by that tiny
probability. Their limits of 4096 and 16384 tokens stand here as a fraction of the generation limit. Their temperature,
0.6, is a setting of the run.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.data.records import Group, Prompt, Tokens
from anypolicy.engines.base import Request, ask
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.policies.language.base import Policy
from anypolicy.runs.seeds import generator as named_generator
from anypolicy.stages.common import Clip, PolicyLoss, group_of, verified
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.recipe import GroupRecipe, Optimiser, World
from anypolicy.tasks.language.base import Score, reads_thinking

Ratio = Literal["seq_mean", "product", "token"]
LOSSES = {
    "seq_mean": PolicyLoss(ratio="sequence"), "product": PolicyLoss(ratio="product"),
    "token": PolicyLoss(ratio="token", aggregation="token-mean"),
}  # fmt: skip


@dataclass(frozen=True)
class Marks:
    """The tokens that end thinking, begin a thinking response, and open thinking (None: the policy has none), as text
    or as ids."""

    end: int | str = "</think>"
    start: int | str = "Alright"
    opening: int | str | None = "<think>"

    def ids(self, policy: Policy) -> list[int]:
        """The ids of end, start and, if there is one, opening."""
        marks = [m for m in (self.end, self.start, self.opening) if m is not None]
        return [policy.token(m) if isinstance(m, str) else m for m in marks]


def advantage(right: float, reference: float, thinks: bool, bonus: float) -> float:
    """A(x, y) = R(x, y) − R̄_ref(x) + δ · 1(no thinking)."""
    return right - reference + (0.0 if thinks else bonus)


def shares(n: int, share: float) -> tuple[int, int]:
    """How many of n responses do not think and how many do: round(n ρ), ties to even, and the rest."""
    direct = round(n * share)
    return direct, n - direct


def choice_logp(probability: float) -> float:
    """log of a mode's probability; a mode that is never chosen has −1e9 and not −∞."""
    return math.log(probability) if probability > 0 else -1e9


@dataclass(frozen=True)
class ForcedModes:
    """π_IS: the first token is the end-of-thinking token with probability `share` and the start token otherwise; the
    policy samples the rest. Without thinking a response may have `direct_limit` of the generation limit."""

    needs, gives = Needs(), Gives()
    group_size: int = 16
    share: float = 0.5
    direct_limit: float = 0.25
    marks: Marks = Marks()

    def check(self, world: World) -> None:
        self.marks.ids(world.policy)

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        (end, start, *_), (direct, thinking) = self.marks.ids(world.policy), shares(self.group_size, self.share)
        limit = max(math.ceil(self.direct_limit * world.sampling.max_tokens), 1)
        requests: list[Request] = []
        for prompt in prompts:
            plain, no, yes = ask(world.policy, prompt), choice_logp(self.share), choice_logp(1 - self.share)
            requests.append(plain._replace(n=direct, prefix=(end,), prefix_logp=(no,), max_tokens=limit))
            requests.append(plain._replace(n=thinking, prefix=(start,), prefix_logp=(yes,)))
        sampled = world.engine.generate(requests, world.sampling, generator, world.version)
        return [group_of(p, [*no, *yes]) for p, no, yes in zip(prompts, sampled[::2], sampled[1::2], strict=True)]


@dataclass(frozen=True)
class ReferenceReward:
    """R − R̄_ref + δ · 1(no thinking), each part logged apart. R̄_ref is the frozen reference's mean R over `samples`
    free responses to the prompt."""

    bonus: float = 0.05
    samples: int = 16
    marks: Marks = Marks()
    needs = Needs(labels=True, verifier=True, reference=True)

    def check(self, world: World) -> None:
        self.marks.ids(world.policy)

    def __call__(self, world: World, groups: list[Group]) -> None:
        reference = self.reference_means(world, {g.prompt.id: g.prompt for g in groups})
        end = self.marks.ids(world.policy)[0]
        for group in groups:
            mean = reference[group.prompt.id]
            scores = self.scores(world, group.prompt, [t.response for t in group.trajectories])
            for t, score in zip(group.trajectories, scores, strict=True):
                thinks, t.info = int(t.response[0]) != end, t.info | score.note
                t.correct, t.reward = score.correct, advantage(score.reward, mean, thinks, self.bonus)
                t.rewards = {"task": score.reward, "reference": -mean, "bonus": 0.0 if thinks else self.bonus}

    def reference_means(self, world: World, prompts: dict[str, Prompt]) -> dict[str, float]:
        """R̄_ref of every prompt, measured the first time it is asked for."""
        known: dict[str, float] = world.remembered("reference_mean", dict[str, float], {})
        new = [p for name, p in prompts.items() if name not in known]
        if new:
            assert world.reference is not None
            requests = [ask(world.policy, p, self.samples) for p in new]
            rng = named_generator(world.seed, "reference", new[0].id)
            for p, answers in zip(new, world.reference.generate(requests, world.sampling, rng), strict=True):
                scores = self.scores(world, p, [segment.answer for segment, _ in answers])
                known[p.id] = sum(s.reward for s in scores) / len(scores)
        return known

    def read(self, world: World, response: Tokens) -> Tokens | None:
        """What follows the end of thinking (the whole response for a task that reads thinking too); None unless the end
        comes once and no thinking is opened."""
        end, _, *opening = self.marks.ids(world.policy)
        ends = np.flatnonzero(response == end)
        fit = len(ends) == 1 and not np.isin(response, opening).any()
        return None if not fit else response if reads_thinking(world.task) else response[ends[0] + 1 :]

    def scores(self, world: World, prompt: Prompt, responses: list[Tokens]) -> list[Score]:
        """The verifier on what it is to read of the responses; 0 where that is nothing."""
        parts = [self.read(world, r) for r in responses]
        scores = verified(world, prompt, [np.zeros(0, np.int64) if part is None else part for part in parts])
        return [Score(0.0, False) if part is None else score for score, part in zip(scores, parts, strict=True)]


@dataclass(frozen=True)
class RewardAsIs:
    """A = the reward: no group mean, no standard deviation, no whitening."""

    needs = Needs()

    def __call__(self, batch: Batch) -> Float[Tensor, " trajectories"]:
        return batch.reward.nan_to_num()


@method(
    Card(
        title="AdaptThink: Reasoning Models Can Learn When to Think",
        paper="arXiv 2505.13417",
        year=2025,
        family="language",
        idea="force half of each group to skip thinking, and reward skipping where it costs no accuracy",
        changes=("rollout", "reward", "advantage", "loss", "optimiser"),
        composes_with="samplers and clips; a group-normalised advantage takes the reference's accuracy out again",
        claim="it stops thinking where that costs nothing and goes on where it does; without forced modes or with a "
        "product or token ratio nothing changes",
        conflicts={
            ("advantage", f"{other}.selection"): "it drops groups whose responses are all right or all wrong, from "
            "which this advantage learns too: keep adaptthink.selection"
            for other in ("dapo", "ngrpo")
        }
        | {("reward", "ngrpo.advantage"): "a right response without thinking may earn more than its maximum of 1"},
        no_signal=(),
    )
)
def adaptthink(
    group_size: knobs.GroupSize = 16,
    bonus: Annotated[float, Knob("δ: extra reward of an answer without thinking", least=0)] = 0.05,
    share: Annotated[float, Knob("share of rows that are forced to answer without thinking", least=0, most=1)] = 0.5,
    reference_samples: Annotated[
        int, Knob("responses of the reference to each prompt, for its accuracy", least=1)
    ] = 16,
    ratio: Annotated[Ratio, Knob("importance ratio: mean over the sequence, or token by token")] = "seq_mean",
    clip_low: knobs.ClipLow = 0.2,
    clip_high: knobs.ClipHigh = 0.2,
    direct_limit: Annotated[
        float, Knob("share of max_tokens that an answer without thinking may have", above=0, most=1)
    ] = 0.25,
    end_of_thinking: Annotated[int | str, Knob("token, or its id, that ends the thoughts")] = "</think>",
    start_of_response: Annotated[int | str, Knob("word, or its id, with which thoughts begin")] = "Alright",
    opening_of_thinking: Annotated[
        int | str | None, Knob("token, or its id, that opens the thoughts; none: the template does")
    ] = "<think>",
) -> GroupRecipe:
    """Forced modes, reference baseline, bonus 0.05, sequence ratio clipped at 0.2."""
    for name, value in (("share", share), ("direct_limit", direct_limit)):
        if not 0 <= value <= 1:
            raise InputError(f"adaptthink.{name}", value, "use a share in [0, 1]")
    if ratio not in LOSSES:
        raise InputError("adaptthink.ratio", ratio, f"use one of {', '.join(LOSSES)}", choices=LOSSES)
    if reference_samples < 1:
        raise InputError("adaptthink.reference_samples", reference_samples, "use at least 1")
    marks = Marks(end_of_thinking, start_of_response, opening_of_thinking)
    return replace(
        grpo(),
        rollout=ForcedModes(group_size, share, direct_limit, marks),
        reward=ReferenceReward(bonus, reference_samples, marks),
        advantage=RewardAsIs(),
        loss=replace(LOSSES[ratio], gate=Clip(clip_low, clip_high)),
        optimiser=Optimiser(lr=2e-6, weight_decay=0.01),
    )
