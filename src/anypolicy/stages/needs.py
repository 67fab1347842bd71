"""What a stage must be given and what a rollout gives, declared: a misspelt need is an error before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Needs:
    """What a stage needs; the loop provides it, and refuses a recipe that cannot have it."""

    reference: bool = False
    """the frozen reference policy: `batch.logp_ref`; of rollouts and rewards an engine, `world.reference`"""
    responses: int = 1
    """the fewest sampled responses to a prompt that it works with; 0 if it works without any"""
    most_responses: int | None = None
    """the most; 0 if it is for rollouts that sample none"""
    prompts: int = 1
    """of losses: the fewest prompts in an optimiser batch"""
    labels: bool = False
    """of rewards and rollouts: the answers; other rewards get prompts without them"""
    verifier: bool = False
    """of rewards, rollouts, samplers: a task that verifies answers (a reward does without where users give theirs)"""
    recorded: bool = False
    """of rewards: recorded responses, whose scores it reads"""
    verdicts: bool = False
    """of advantages and selections: `batch.correct`"""
    value: bool = False
    """of advantages: a critic, `batch.value`"""
    entropy: bool = False
    """`batch.entropy`; of losses `scores.entropy`, through which gradients flow"""
    kept: bool = False
    """of advantages: only what the selection kept, so that its statistics are those of kept rows (whole ones)"""
    advantage: bool = True
    """of selections: False if it reads none; what it drops then costs not even that"""
    progress: bool = False
    """of selections: the number of steps of the run, since it follows a schedule"""
    targets: bool = False
    """of losses: target tokens, from which alone it learns"""
    logits: bool = False
    """of losses: the whole distribution at target tokens, `scores.logits`"""
    pairs: bool = False
    """of losses: `batch.pairs`"""
    kinds: bool = False
    """of losses: `batch.kind`, which answer of a group is which"""
    behaviour: bool = True
    """of losses: False if it needs no log-probability of the behaviour policy"""
    sampling_temperature: bool = True
    """of losses: False if it scores at temperature 1, whatever responses were sampled at"""
    whole_groups: bool = False
    """of losses: micro-batches that split no group, whose rows it couples"""
    whole_responses: bool = False
    """of losses: log-probabilities of tokens that a selection dropped, too"""


@dataclass(frozen=True)
class Gives:
    """What a rollout gives beside responses."""

    targets: bool = False
    """responses to learn from as they are"""
    kinds: bool = False
    """`info["kind"]` of every trajectory"""
    behaviour: bool = True
    """False if nobody knows how likely the responses were where they were written"""
    reaches_limit: bool | None = None
    """whether responses may be as long as the response limit; None: if it samples any"""


def union(needs: Iterable[Needs]) -> Needs:
    """What several stages need together."""
    total = Needs(advantage=False, behaviour=False, sampling_temperature=False, responses=0, prompts=0)
    for own in needs:
        both = {f.name: (getattr(total, f.name), getattr(own, f.name)) for f in fields(Needs)}
        most = [n for n in both.pop("most_responses") if n is not None]
        joined = {name: max(a, b) for name, (a, b) in both.items()}
        total = replace(total, **joined, most_responses=min(most, default=None))
    return total
