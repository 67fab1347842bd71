"""Every name a run may log, with its meaning; the documentation page is made from this table."""

from __future__ import annotations

import math
from collections.abc import Mapping

NAMES: dict[str, str] = {
    "step": "rollout batches finished when the row was written",
    "event": '"eval" marks a row of a held-out evaluation, "restarted" where episodes began anew on resuming, "lost" '
    "where rows that a checkpoint counted on were gone",
    "epoch": "passes over the training prompts so far",
    "coverage": "share of training prompts drawn at least once",
    "reward/mean": "mean reward of the responses sampled in this step, dropped groups included",
    "reward/std": "sample standard deviation of these rewards",
    "reward/<part>": "mean of one named part of the reward, where there are several",
    "accuracy": "share of sampled responses that the verifier finds correct (at the sampling temperature)",
    "accuracy/<stage>": "the same for the groups of one stage of the rollout, where it has several",
    "prompts/<stage>": "groups sampled in one stage of the rollout, where it has several",
    "verifier/<why>": "responses that were not scored and count as wrong, where there are any: refused (would have "
    "been evaluated and is not what the data set asks for), timeout, ended (its process died, of memory for one)",
    "groups/mixed": "share of groups that are neither all correct nor all wrong",
    "groups/all_correct": "share of groups in which every response is correct",
    "groups/all_wrong": "share of groups in which none is",
    "groups/kept": "groups that the selection trains on",
    "groups/carried": "kept groups beyond the target, with which the next step begins",
    "rows/kept": "rows of the responses that a selection by response keeps, one drawn twice counted twice",
    "length/mean": "mean tokens of a response",
    "length/truncated": "share of responses that ended at the limit",
    "tokens/generated": "tokens sampled in this step",
    "tokens/trained": "response tokens that stand in the loss in this step, counted once per pass over the batch",
    "tokens/forward": "response tokens with a forward and backward pass: the trained ones and those before them",
    "entropy/behaviour": "mean −log-probability of sampled tokens, in nats: an estimate of the entropy",
    "target/groups": "share of groups with a supervised target beside their sampled responses",
    "target/tokens": "tokens of these targets",
    "target/sampled": "those of them that the policy itself sampled in this step, under whatever context",
    "target/logp_sampled": "mean log-probability of the latter in the context they were sampled under, in nats",
    "target/logp": "mean log-probability of target tokens in the context they are trained under, in nats",
    "rows/skipped": "rows that contributed to no term of the loss and cost no forward pass",
    "updates": "optimiser steps taken",
    "updates/skipped": "mini-batches without any contributing row: no optimiser step",
    "loss/<term>": "a named term of the loss, mean over the step's updates",
    "ratio/mean": "mean importance ratio of trained tokens",
    "ratio/max": "largest importance ratio",
    "ratio/clipped": "share of trained tokens whose gradient the clip has set to 0",
    "kl/behaviour": "mean logp_old − logp of trained tokens, in nats",
    "kl/k3": "of a controller: mean ρ − 1 − ln ρ of the passes over a rollout, an estimate of the same",
    "elbo/gap_max": "of losses on evidence lower bounds: largest ℓ_θ − ℓ_old of a response, in nats",
    "kl/ref": "mean k3 estimate of the divergence to the reference policy, in nats",
    "value/mean": "mean of the value head over trained tokens",
    "value/explained": "of a controller: 1 − var(return − V)/var(return) before the update",
    "pairs/accuracy": "share of the step's pairs whose chosen response has the higher log-ratio to the reference (a "
    "tie ½); of a reward model: scores higher; of a diffusion model: whose loss is below log 2",
    "pairs/margin": "mean log-ratio (of a reward model: score) of chosen minus rejected responses, before the update; "
    "of a diffusion model: mean of what the logistic loss is taken of",
    "pairs/chosen": "mean log-ratio ln π/π_ref of chosen responses, in nats",
    "pairs/rejected": "mean log-ratio of rejected responses: that both fall is usual, and not seen in the margin",
    "pairs/made": "pairs that the step trains on",
    "pairs/tied": "groups whose responses all have the same reward, so that they make no pair",
    "pairs/equal": "responses that equal another of their group",
    "kl/proxy": "mean log-ratio of both sides of the pairs, in nats; an estimate of the divergence to the reference "
    "only where the policy itself wrote them (see eval/kl)",
    "grad_norm": "norm of the policy's gradient before clipping, mean over updates",
    "grad_norm/critic": "the same for the value head",
    "lr": "learning rate, mean over updates",
    "eval/accuracy": "share of held-out prompts answered correctly, greedy; of a reward model: share of held-out pairs "
    "whose chosen response scores higher",
    "eval/low": "lower end of its 95 % Wilson interval",
    "eval/high": "upper end of its 95 % Wilson interval",
    "eval/n": "held-out prompts (or pairs) evaluated",
    "eval/margin": "mean log-ratio (of a reward model: score) of chosen minus rejected responses of held-out pairs",
    "eval/pair_accuracy": "share of held-out pairs whose chosen response has the higher log-ratio to the reference",
    "eval/pair_low": "lower end of its 95 % Wilson interval",
    "eval/pair_high": "upper end of its 95 % Wilson interval",
    "eval/pairs": "held-out pairs evaluated",
    "eval/chosen": "mean log-ratio of their chosen responses, in nats",
    "eval/rejected": "mean log-ratio of their rejected responses, in nats",
    "eval/kl": "divergence of whole responses from the reference as the run began, in nats, at temperature 1, on up to "
    "64 prompts: one sampled response each, next-token divergences over the whole vocabulary summed",
    "eval/kl_se": "its standard error over prompts",
    "eval/unscored": "held-out answers that were not scored and count as wrong, where there are any",
    "eval/reward": "mean reward of the held-out answers",
    "eval/reward_se": "its standard error, where the rewards are the user's own",
    "eval/reward/<part>": "mean of one of several rewards of the user's own over the held-out answers",
    "eval/length": "mean tokens of the held-out answers",
    "eval/logp": "mean log-probability of a token of the held-out reference responses, in nats, at temperature 1",
    "eval/perplexity": "exp(−eval/logp)",
    "eval/return": "of a controller: mean undiscounted return of the evaluation's episodes",
    "eval/return_se": "its standard error",
    "eval/success": "share of these episodes in which the environment said that the goal was reached",
    "eval/error": "of a diffusion model: mean squared error of its prediction of the noise on held-out preferred "
    "samples, mean over their numbers, the same noise and times in every evaluation",
    "eval/distance": "of a diffusion model: distance of its samples to held-out preferred ones; Fréchet distance of a "
    "classifier's hidden features, or energy distance of points",
    "eval/recognised": "share of its samples in which a classifier sees the class that was asked for",
    "eval/preferred": "share of its samples that are of the preferred kind",
    "eval/balance": "of ring8: smallest share of a good cluster, times their number, over the share of all of them",
    "error/winner": "of a diffusion model: mean squared error on the noise of preferred samples in the batch",
    "error/loser": "the same for the other samples of the pairs, at the same noise and times",
    "episode/return": "of a controller: mean return of the episodes that ended, exploration included",
    "episode/length": "mean steps of these episodes",
    "episode/success": "share of them that reached the goal, where the environment says so",
    "episode/count": "how many they are",
    "success/<task>": "share of the episodes of one task that reached its goal, where several take turns",
    "resets/forced": "of a world that is not reset between episodes: resets per 1,000 steps all the same",
    "replay/size": "transitions in the replay",
    "q/mean": "mean of the critics' values on the replay's actions",
    "alpha": "temperature of the entropy term",
    "entropy": "mean −log-density of the actor's actions in [−1, 1], in nats",
    "probe/<name>": "a number the task measures on the policy itself, e.g. its exact success probability",
}


def documented(name: str, more: Mapping[str, str] | None = None) -> bool:
    """Whether a logged name stands in the table, in `more` (a method's own names), or under a <…> pattern."""
    head, slash, _ = name.partition("/")
    return name in NAMES or name in (more or {}) or (bool(slash) and any(k.startswith(head + "/<") for k in NAMES))


def wilson(correct: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson interval of a proportion (95 % by default); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p, zz = correct / n, z * z
    middle = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)
