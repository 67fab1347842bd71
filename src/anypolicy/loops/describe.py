"""What a step says about the groups it has sampled: the names that `runs/metrics.py` documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from anypolicy.data.records import Group, Segment


def describe(groups: list[Group], more: dict[str, float]) -> dict[str, float]:
    """Rewards, verdicts and lengths of the sampled groups."""
    more = more | describe_targets(groups)
    beside = sum(int(t.info.get("generated", 0)) for g in groups for t in g.trajectories)
    groups = [g.sampled() for g in groups]
    trajectories = [t for g in groups for t in g.trajectories]
    if not trajectories:
        return more
    reward = torch.tensor([t.reward for t in trajectories], dtype=torch.float64)
    named: dict[str, list[float]] = {}
    for t in trajectories:
        for name, value in t.rewards.items():
            named.setdefault(name, []).append(value)
    return more | {
        "reward/mean": float(reward.nanmean()),
        "reward/std": float(reward[~reward.isnan()].std()) if len(reward) > 1 else 0.0,
        **({f"reward/{k}": sum(v) / len(v) for k, v in named.items()} if len(named) > 1 else {}),
        **(verdicts(groups) if any(t.correct is not None for t in trajectories) else {}),
        "length/truncated": sum(t.stop == "length" for t in trajectories) / len(trajectories),
        **describe_tokens([s for t in trajectories for s in t.segments], len(trajectories), beside),
    }


def verdicts(groups: list[Group]) -> dict[str, float]:
    """The verifier's verdicts, by response and by group; by stage where a rollout has several."""
    right = [sum(bool(t.correct) for t in g.trajectories) / max(len(g.trajectories), 1) for g in groups]
    by_stage: dict[str, list[float]] = {}
    for g, r in zip(groups, right, strict=True):
        by_stage.setdefault(g.stage, []).append(r)
    unscored = [t.info["unscored"] for g in groups for t in g.trajectories if "unscored" in t.info]
    staged = by_stage if by_stage.keys() != {"direct"} else {}
    return {
        "accuracy": sum(right) / len(right),
        **{f"accuracy/{s}": sum(r) / len(r) for s, r in staged.items()},
        **{f"prompts/{s}": float(len(r)) for s, r in staged.items()},
        "groups/mixed": sum(0 < r < 1 for r in right) / len(right),
        "groups/all_correct": sum(r == 1 for r in right) / len(right),
        "groups/all_wrong": sum(r == 0 for r in right) / len(right),
        **{f"verifier/{why}": float(n) for why, n in Counter(unscored).items()},
    }


def describe_tokens(segments: list[Segment], trajectories: int, beside: int) -> dict[str, float]:
    """Tokens that the policy chose, those that it sampled itself (some of them `beside`, kept in no response), and how
    surprised it was by them."""
    mask, version = np.concatenate([s.mask for s in segments]), np.concatenate([s.version for s in segments])
    sampled = mask & (version >= 0)
    owner = np.repeat(np.arange(len(segments)), [len(s.mask) for s in segments])
    total = np.bincount(owner, np.where(sampled, np.concatenate([s.logp for s in segments]), 0), len(segments))
    number = np.bincount(owner, sampled, len(segments))
    mean = total[number > 0] / number[number > 0]
    out = {"length/mean": float(mask.sum()) / trajectories, "tokens/generated": float((version >= 0).sum() + beside)}
    return out | ({"entropy/behaviour": -float(mean.mean())} if len(mean) else {})


def describe_targets(groups: list[Group]) -> dict[str, float]:
    """How much there is to imitate and, where it was sampled, how likely it was in the context it was sampled under."""
    targets = [t for g in groups for t in g.targets]
    if not targets:
        return {}
    out = {
        "target/groups": sum(bool(g.targets) for g in groups) / len(groups),
        "target/tokens": float(sum(t.length for t in targets)),
    }
    logp = [float(x) for t in targets for s in t.segments for x in s.logp[s.mask & (s.version >= 0)]]
    return out | ({"target/logp_sampled": sum(logp) / len(logp), "target/sampled": float(len(logp))} if logp else {})


OUTLINES = 8
"""Searches of a step that are kept to look at."""


def outlined(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """How the responses of a step were found, where a rollout says so."""
    found = [(g, t) for g in groups for t in g.trajectories if "outline" in t.info]
    return [{"id": g.prompt.id, "correct": t.correct, "outline": t.info["outline"]} for g, t in found[:OUTLINES]]
