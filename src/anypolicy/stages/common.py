"""Stages that several methods share. Each is a frozen dataclass of numbers around pure functions of `parts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypolicy.data.batch import Batch
from anypolicy.data.records import Group, Prompt, Segment, Stop, Tokens, Trajectory
from anypolicy.engines.base import ask
from anypolicy.parts import surrogate
from anypolicy.parts.advantages import Std, group_normalise
from anypolicy.parts.kl import Estimator, kl
from anypolicy.parts.reduce import Mode, reduce
from anypolicy.policies.language.base import Scores
from anypolicy.runs.seeds import generator
from anypolicy.stages.needs import Gives, Needs, union
from anypolicy.stages.recipe import ChecksWorld, Choice, LossTerms, Reward, World
from anypolicy.stages.rewards import own_rewards
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.verify import verifies, verify


# --- sampler ---------------------------------------------------------------------------------------------------------
class EpochOrder:
    """Every prompt once per epoch, in an order drawn anew for each epoch from (seed, epoch)."""

    def __init__(self, prompts: int, seed: int):
        self.prompts, self.seed, self.drawn = prompts, seed, 0

    def draw(self, n: int, step: int, round: int) -> list[int]:
        out: list[int] = []
        while len(out) < n:
            epoch, start = divmod(self.drawn, self.prompts)
            order = torch.randperm(self.prompts, generator=generator(self.seed, "sampler", epoch))
            taken = order[start : start + n - len(out)].tolist()
            out += taken
            self.drawn += len(taken)
        return out

    def observe(self, groups: Sequence[Group]) -> None:
        """Uniform epochs learn nothing from results."""

    def state(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def restore(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]

    def metrics(self) -> dict[str, float]:
        return {"epoch": self.drawn / self.prompts}


@dataclass(frozen=True)
class UniformSampler:
    """Shuffled epochs over the training prompts."""

    needs = Needs(responses=0)

    def begin(self, prompts: int, seed: int) -> EpochOrder:
        return EpochOrder(prompts, seed)


# --- rollout ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GroupRollout:
    """`group_size` independent responses to every prompt."""

    needs, gives = Needs(), Gives()
    group_size: int = 8

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        requests = [ask(world.policy, prompt, self.group_size) for prompt in prompts]
        sampled = world.engine.generate(requests, world.sampling, generator, world.version)
        return [group_of(p, answers) for p, answers in zip(prompts, sampled, strict=True)]


def group_of(prompt: Prompt, answers: Sequence[tuple[Segment, Stop]], stage: str = "direct") -> Group:
    """What the engine gave for one prompt, as an unscored group; the loop names it and its trajectories."""
    trajectories = [Trajectory(f"{prompt.id}/{i}", [s], stop=stop) for i, (s, stop) in enumerate(answers)]
    return Group(prompt.id, prompt, trajectories, stage)


# --- reward ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class VerifierReward:
    """The task's verifier: its score is the reward, its verdict is `correct`. A user's own rewards, if given, replace
    the score and leave the verdict; they need no verifier."""

    needs = Needs(labels=True, verifier=True)

    def __call__(self, world: World, groups: list[Group]) -> None:
        given = [(g.prompt, [t.response for t in g.trajectories]) for g in groups]
        for group, scores in zip(groups, scored(world, given), strict=True):
            for t, score in zip(group.trajectories, scores, strict=True):
                t.correct, t.reward, t.rewards = score.correct, score.reward, score.rewards or {"task": score.reward}
                t.info |= score.note


def verified(world: World, prompt: Prompt, responses: Sequence[Tokens]) -> list[Score]:
    """The task's verdicts on responses to one prompt, with the user's own rewards if there are any."""
    return scored(world, [(prompt, list(responses))])[0]


def scored(world: World, groups: Sequence[tuple[Prompt, list[Tokens]]]) -> list[list[Score]]:
    """The task's verdicts on the responses to every prompt (none where it verifies nothing), with the user's own
    rewards in place of its score if there are any."""
    texts = [[world.policy.decode(r) for r in responses] for _, responses in groups]
    flat = [(p, r, x) for (p, responses), xs in zip(groups, texts) for r, x in zip(responses, xs)]
    verdicts = iter(verify(world.task, flat) if verifies(world.task) else [Score(0.0, None)] * len(flat))
    out = [[next(verdicts) for _ in xs] for xs in texts]
    if world.reward_function is None:
        return out
    own = own_rewards(world.reward_function)
    found = own([(prompt, xs) for (prompt, _), xs in zip(groups, texts, strict=True)])
    return [
        [score._replace(reward=own.total(named), rewards=named) for score, named in zip(scores, row, strict=True)]
        for scores, row in zip(out, found, strict=True)
    ]


@dataclass(frozen=True)
class SumReward:
    """Several rewards added; each is logged apart under its own name."""

    parts: tuple[Reward, ...]

    @property
    def needs(self) -> Needs:
        return union(p.needs for p in self.parts)

    def check(self, world: World) -> None:
        for part in self.parts:
            if isinstance(part, ChecksWorld):
                part.check(world)

    def __call__(self, world: World, groups: list[Group]) -> None:
        trajectories = [t for g in groups for t in g.trajectories]
        total = [0.0] * len(trajectories)
        named: list[dict[str, float]] = [{} for _ in trajectories]
        for part in self.parts:
            part(world, groups)
            for i, t in enumerate(trajectories):
                total[i] += t.reward
                named[i] |= t.rewards
        for t, reward, parts in zip(trajectories, total, named, strict=True):
            t.reward, t.rewards = reward, parts


# --- advantage -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GroupAdvantage:
    """A_i = (r_i − mean) / (std + eps) over the trajectories of i's group."""

    needs = Needs(responses=2)
    std: Std = "sample"
    eps: float = 1e-6

    def __call__(self, batch: Batch) -> Float[Tensor, " trajectories"]:
        return group_normalise(batch.reward, batch.group_id, std=self.std, eps=self.eps)


# --- selection -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class KeepAll:
    """Every group is trained on."""

    needs = Needs(responses=0, advantage=True)
    max_rounds = 1

    def __call__(self, batch: Batch, target: int) -> Choice:
        return Choice(torch.ones(int(batch.group_id.max()) + 1, dtype=torch.bool))


@dataclass(frozen=True)
class DropSolved:
    """Dynamic sampling by the verifier's verdicts: drop groups that are all correct, with `all_wrong` also those that
    are all wrong, and draw new prompts until `target` groups are kept or `max_rounds` draws were made. Groups beyond
    the target begin the next step if `carry`, else they are dropped. Responses without a trained token do not count."""

    all_wrong: bool = False
    carry: bool = False
    max_rounds: int = 10

    @property
    def needs(self) -> Needs:
        return Needs(verdicts=True, responses=2 if self.all_wrong else 1)

    def __call__(self, batch: Batch, target: int) -> Choice:
        groups = int(batch.group_id.max()) + 1
        trained = torch.unique(batch.trajectory[batch.mask.any(1)])
        owner = batch.group_id[trained]
        size = torch.bincount(owner, minlength=groups)
        right = torch.bincount(owner, weights=batch.correct[trained].double(), minlength=groups)
        keep = right < size
        if self.all_wrong:
            keep &= right > 0
        over = keep & (keep.cumsum(0) > target)
        return Choice(keep & ~over, surplus=over if self.carry else None, short=int(keep.sum()) < target)


# --- loss ------------------------------------------------------------------------------------------------------------
class Gate(Protocol):
    """The objective of every token."""

    def __call__(self, ratio: Tensor, advantage: Tensor, logp: Tensor) -> Tensor:
        """From the importance ratio, the advantage and the log-probability under the policy, all (rows, tokens)."""
        ...

    def metrics(self, ratio: Tensor, advantage: Tensor) -> dict[str, Tensor]:
        """Per-token values to log as means (names that end in min: as the least)."""
        ...


@dataclass(frozen=True)
class Clip:
    """The clipped surrogate min(r A, clip(r, 1 − low, 1 + high) A)."""

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __call__(self, ratio: Tensor, advantage: Tensor, logp: Tensor) -> Tensor:
        return surrogate.clipped(ratio, advantage, self.low, self.high, self.dual)

    def metrics(self, ratio: Tensor, advantage: Tensor) -> dict[str, Tensor]:
        return {"ratio/clipped": surrogate.clip_active(ratio, advantage, self.low, self.high).to(ratio.dtype)}


@dataclass(frozen=True)
class NoClip:
    """The plain surrogate r A; with one update per batch this is REINFORCE with a baseline."""

    def __call__(self, ratio: Tensor, advantage: Tensor, logp: Tensor) -> Tensor:
        return ratio * advantage

    def metrics(self, ratio: Tensor, advantage: Tensor) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class PolicyLoss:
    """−reduce(gate(ratio, A)) + kl_coef · reduce(KL) − entropy_coef · reduce(entropy), all in one aggregation.

    `gate` gives a token's objective from ratio, advantage and log-probability; `ratio` is per token or, as in GSPO,
    the length-normalised one of the sequence, or the product over the sequence.
    """

    gate: Gate = Clip()
    ratio: Literal["token", "sequence", "product"] = "token"
    aggregation: Mode = "seq-mean-token-mean"
    kl: Estimator | None = None
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    @property
    def needs(self) -> Needs:
        return Needs(entropy=self.entropy_coef != 0, reference=self.kl is not None and self.kl_coef != 0,
                     whole_responses=self.ratio != "token")  # fmt: skip

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        mask = batch.mask
        if not (self.needs.entropy or self.needs.reference):
            mask = mask & (batch.advantage != 0) & (batch.weight != 0)[:, None]
        return mask.any(1)

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms:
        def mean(x: Tensor) -> Tensor:
            return reduce(x, batch.mask, self.aggregation, totals=batch.counted(), max_tokens=batch.max_tokens)

        advantage, weight = batch.advantage, batch.weight[:, None]
        assert advantage is not None
        if self.ratio == "token":
            ratio = surrogate.token_ratio(scores.logp, batch.logp_old)
        elif self.ratio == "sequence":
            ratio = surrogate.sequence_ratio(scores.logp, batch.logp_old, batch.chosen)
        else:
            ratio = surrogate.product_ratio(scores.logp, batch.logp_old, batch.chosen)
        terms = {"policy": -mean(weight * self.gate(ratio, advantage, scores.logp))}
        if self.needs.reference and batch.logp_ref is not None and self.kl is not None:
            divergence = kl(scores.logp, batch.logp_ref, self.kl)
            terms["kl"] = self.kl_coef * mean(weight * divergence)
        if self.needs.entropy and scores.entropy is not None:
            terms["entropy"] = -self.entropy_coef * mean(weight * scores.entropy)
        return LossTerms(terms, distances(scores, batch, ratio, self.gate.metrics(ratio.detach(), advantage)))


@torch.no_grad()
def distances(scores: Scores, batch: Batch, ratio: Tensor | None, more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a loss logs: the importance ratio (None: no behaviour policy is known), the divergences from behaviour and
    reference policy, and `more` per-token values, each as mean over the tokens with a forward pass (or as minimum)."""
    log = dict(more)
    if ratio is not None:
        log |= {"ratio/mean": ratio, "kl/behaviour": batch.logp_old - scores.logp}
    if batch.logp_ref is not None:
        log["kl/ref"] = kl(scores.logp, batch.logp_ref, "k3")
    watched = max(batch.counted().watched, 1)
    out = {n: torch.where(batch.mask, x, 0).sum() / watched for n, x in log.items() if not n.endswith("min")}
    out |= {n: torch.where(batch.mask, x, torch.inf).amin() for n, x in log.items() if n.endswith("min")}
    return out if ratio is None else out | {"ratio/max": torch.where(batch.mask, ratio, 0).amax()}
