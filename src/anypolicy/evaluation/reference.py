"""Evaluation beside the reference policy: the divergence from it, and held-out preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.data.batch import Batch, from_groups
from anypolicy.data.records import Group, Prompt
from anypolicy.engines.base import ask
from anypolicy.parts.preference import pair_metrics
from anypolicy.policies.language.base import Policy
from anypolicy.policies.language.logits import CHUNK, Logits
from anypolicy.runs.metrics import wilson
from anypolicy.runs.seeds import generator
from anypolicy.stages.common import group_of
from anypolicy.stages.pairs import preferences, responses
from anypolicy.stages.recipe import World
from anypolicy.stages.recorded import recorded_group

PROMPTS = 64
"""Prompts that a divergence is measured on."""
TOKENS = 8192
"""Padded tokens in one forward pass."""


def beside_reference(world: World, reference: Policy, heldout: Sequence[Prompt]) -> dict[str, float]:
    """`eval/kl`, on held-out prompts (on training prompts where nothing is held out), and how the held-out pairs are
    ordered, where their responses are recorded with scores."""
    prompts = list(heldout or world.task.train)[:PROMPTS]
    mean, error = sequence_kl(world, reference, prompts)
    return {"eval/kl": mean, "eval/kl_se": error} | ordered_pairs(world.policy, reference, heldout)


# --- divergence ------------------------------------------------------------------------------------------------------
@torch.no_grad()
def sequence_kl(world: World, reference: Policy, prompts: Sequence[Prompt]) -> tuple[float, float]:
    """KL(π ‖ π_ref) of whole responses in nats, and its standard error over prompts.

    One response to every prompt is sampled from π at temperature 1; over its positions the divergences of the two
    next-token distributions are summed over the whole vocabulary: unbiased, with less variance than log-ratios
    (arXiv 2405.08448, section 4).
    """
    sampling = replace(world.sampling, temperature=1.0, top_p=1.0, top_k=0)
    requests = [ask(world.policy, p) for p in prompts]
    answers = world.engine.generate(requests, sampling, generator(world.seed, "kl"))
    batch = from_groups([group_of(p, a) for p, a in zip(prompts, answers, strict=True)])
    batch = replace(batch, target=batch.valid)
    total = torch.zeros(batch.rows, dtype=torch.float64)
    for rows in batch.chunks(TOKENS):
        part = batch.select(rows)
        ours, theirs = (p.score(part, 1.0, logits=True).logits for p in (world.policy, reference))
        assert part.target is not None and ours is not None and theirs is not None
        owner = part.target.nonzero()[:, 0]
        total[rows] = torch.zeros(part.rows, dtype=torch.float64).index_add_(0, owner, token_kl(ours, theirs).double())
    spread = float(total.std()) if len(total) > 1 else 0.0
    return float(total.mean()), spread / len(total) ** 0.5


def token_kl(ours: Logits, theirs: Logits) -> Float[Tensor, " positions"]:
    """Σ_a p(a) ln(p(a)/q(a)) at every position."""
    parts: list[Tensor] = []
    for a, b in zip(ours.states.split(CHUNK), theirs.states.split(CHUNK), strict=True):
        p, q = ours.head(a).log_softmax(-1), theirs.head(b).log_softmax(-1)
        parts.append((p.exp() * (p - q)).sum(-1).cpu())
    return torch.cat(parts)


# --- preferences -----------------------------------------------------------------------------------------------------
@torch.no_grad()
def ordered_pairs(policy: Policy, reference: Policy, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Share of recorded pairs whose chosen response has the higher log-ratio (a tie ½), with its Wilson 95 % interval,
    the mean margin, and the mean log-ratios of both sides."""
    known = [p for p in prompts if len(p.info.get("responses", ())) > 1]
    if not known:
        return {}
    batch = from_groups([scored_group(policy, p) for p in known], torch.float64)
    pairs, logp, logp_ref = preferences(batch, "all").pairs, *(likelihoods(p, batch) for p in (policy, reference))
    r = responses(logp, replace(batch, logp_ref=logp_ref))
    at = torch.searchsorted(r.name, pairs)
    if not len(pairs):
        return {}
    log = {k: float(v.mean()) for k, v in pair_metrics(r.ratio[at[:, 0]], r.ratio[at[:, 1]]).items()}
    low, high = wilson(log["pairs/accuracy"] * len(pairs), len(pairs))
    out = {"eval/pair_accuracy": log["pairs/accuracy"], "eval/pair_low": low, "eval/pair_high": high}
    out |= {"eval/pairs": float(len(pairs)), "eval/margin": log["pairs/margin"]}
    return out | {"eval/chosen": log["pairs/chosen"], "eval/rejected": log["pairs/rejected"]}


def scored_group(policy: Policy, prompt: Prompt) -> Group:
    """All recorded responses with their scores as rewards."""
    group = recorded_group(policy, prompt)
    for t in group.trajectories:
        t.reward = t.info["score"]
    return group


def likelihoods(policy: Policy, batch: Batch) -> Tensor:
    """Log-probabilities at temperature 1, a part of the rows at a time."""
    out = batch.logp_old.new_zeros(batch.response.shape)
    for rows in batch.chunks(TOKENS):
        logp = policy.score(batch.select(rows), 1.0).logp
        out[rows, : logp.shape[1]] = logp.to(out.dtype)
    return out
