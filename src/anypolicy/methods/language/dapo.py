"""DAPO: decoupled clip and dynamic sampling.

Paper: arXiv 2503.14476, sections 3.1 (clip-higher), 3.2 (dynamic sampling, eq. 11), 3.3 (token-level loss),
3.4 (soft overlong punishment, eq. 13).
Idea: leave room for unlikely tokens to grow, and train only on groups that are neither all right nor all wrong.
Changes: reward (length penalty near the limit), selection (drop all-equal groups, refill), loss (clip 0.2/0.28,
token mean, no KL).
Silent: what happens when a step never fills; here at most `max_rounds` draws, then the step goes on with what it has.
Differs: the paper's cache of 4096 of 20480 tokens stands here as a fraction of the generation limit. Surplus groups
are dropped (verl's default). The paper makes 16 updates of a batch (`--minibatches 16`), here it is one.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.records import Group
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.stages.common import Clip, DropSolved, PolicyLoss, SumReward, VerifierReward
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import GroupRecipe, World


def soft_overlong(length: int, limit: float, cache: float) -> float:
    """0 up to limit − cache, then ((limit − cache) − length) / cache down to −1 at the limit and beyond (eq. 13)."""
    if length <= limit - cache:
        return 0.0
    return ((limit - cache) - length) / cache if length <= limit else -1.0


@dataclass(frozen=True)
class SoftOverlong:
    """The soft penalty on the last `fraction` of the generation limit."""

    needs = Needs()
    fraction: float = 0.2

    def __call__(self, world: World, groups: list[Group]) -> None:
        limit = world.sampling.max_tokens
        for t in (t for group in groups for t in group.trajectories):
            t.reward = soft_overlong(t.length, limit, self.fraction * limit)
            t.rewards = {"overlong": t.reward}


@method(
    Card(
        title="Decoupled Clip and Dynamic Sampling Policy Optimization",
        paper="arXiv 2503.14476",
        year=2025,
        family="language",
        idea="clip higher above than below; keep drawing prompts until every group has a signal",
        changes=("reward", "selection", "loss"),
        composes_with="samplers and advantages; its filter contradicts methods that learn from all-wrong groups",
        claim="baseline of the claims of other methods",
        example="anypolicy train dapo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.94 with seed 0",
    )
)
def dapo(
    group_size: knobs.GroupSize = 16,
    clip_low: knobs.ClipLow = 0.2,
    clip_high: knobs.ClipHigh = 0.28,
    overlong_fraction: Annotated[
        float, Knob("last share of max_tokens in which a response is punished more and more", least=0, most=1)
    ] = 0.2,
    max_rounds: Annotated[int, Knob("rounds of sampling in a step at most", least=1)] = 10,
) -> GroupRecipe:
    """Drop groups with 0 or G correct and refill; clip 0.2/0.28; one mean over all tokens of the batch."""
    base = grpo(group_size)
    return replace(
        base,
        reward=SumReward((VerifierReward(), SoftOverlong(overlong_fraction))),
        selection=DropSolved(all_wrong=True, max_rounds=max_rounds),
        loss=PolicyLoss(Clip(clip_low, clip_high), aggregation="token-mean"),
        optimiser=replace(base.optimiser, warmup=20),
    )
