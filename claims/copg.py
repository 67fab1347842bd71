"""CoPG's claim: from data of unknown origin it reaches the regularised optimum; IPO and policy gradients do not.

The paper's bandit (section 5): three arms, rewards 2.5, 2, 1, beta 0.5, uniform reference. 10,000 pairs are drawn once, first
responses from (.1, .2, .7), second from (.05, .05, .9). Three logits from 0, Adam 1e-3, batches of 512 pairs reshuffled in every
epoch (the last has 272), 300 epochs; the paper shows 100, where CoPG still descends. IPO's preferences are drawn once with
σ(R(y) − R(y')). Metric: exact regret J(π*) − J(π); J(π*) = 2.125200, regret of the start 0.291867.
"""

from dataclasses import replace

import numpy as np
import torch

from anypolicy.data.batch import Batch, from_groups
from anypolicy.data.records import Group, Prompt, Segment, Trajectory
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.methods.language.copg import ContrastiveLoss
from anypolicy.policies.language.table import TablePolicy
from anypolicy.runs.seeds import generator, numpy_generator

CLAIM = (
    "on the paper's bandit regrets after 100 epochs are in the order CoPG, off-policy policy gradients with a value baseline, "
    "IPO, the start, no baseline; CoPG's is below 0.0001 after 200, and after 300 still at the optimum, where no rival is "
    "below it and the value baseline is above 0.01 again (arXiv 2406.19185)"
)
SEEDS = 10
CURVE = "regret"
ARMS = ("copg", "pg-value", "ipo", "pg-zero")
EPOCHS, PAIRS, SIZE, BETA = 300, 10_000, 512, 0.5
REWARD = torch.tensor([2.5, 2.0, 1.0], dtype=torch.float64)
MU = ((0.1, 0.2, 0.7), (0.05, 0.05, 0.9))
START = 0.291867


def regret(z: torch.Tensor) -> float:
    """J(π*) − J(π) with J(π) = E[R] − β KL(π ‖ uniform)."""
    logp = z.detach().flatten().log_softmax(0)
    uniform = -np.log(3)
    best = BETA * torch.logsumexp(REWARD / BETA + uniform, 0)
    return float(best - (logp.exp() * (REWARD - BETA * (logp - uniform))).sum())


def weights(arm: str, pairs: torch.Tensor, preferred: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    """What multiplies ∇ ln π(y) and ∇ ln π(y') of each pair in the rivals, detached: (pairs, 2)."""
    ratio = logp + np.log(3)
    if arm == "ipo":
        # ascends −(1/2 − β (l_w − l_l))² / (2β)
        sign = torch.where(preferred, 1.0, -1.0)
        first = sign * (0.5 - BETA * sign * (ratio[pairs[:, 0]] - ratio[pairs[:, 1]]))
        return torch.stack([first, -first], 1)
    baseline = (logp.exp() * REWARD).sum() if arm == "pg-value" else 0.0
    return (REWARD - BETA * ratio)[pairs] - baseline


def batch_of(pairs: torch.Tensor) -> Batch:
    """The data as one batch: a group of two responses for every pair; nobody knows who wrote them."""
    prompt, groups = Prompt("bandit", tokens=(0,)), []
    for i, pair in enumerate(pairs.tolist()):
        both = []
        for j, y in enumerate(pair):
            segment = Segment(
                np.zeros(1, np.int64), np.array([y]), np.full(1, np.nan, np.float32), np.ones(1, bool), np.array([-1])
            )
            both.append(Trajectory(f"{i}/{j}", [segment], reward=float(REWARD[y])))
        groups.append(Group(str(i), prompt, both))
    data = from_groups(groups, torch.float64)
    return replace(data, logp_ref=torch.full_like(data.logp_old, -np.log(3)))


def run(arm: str, seed: int) -> dict:
    rng = numpy_generator(seed, "pairs")
    pairs = torch.from_numpy(np.stack([rng.choice(3, PAIRS, p=mu) for mu in MU], 1))
    gap = REWARD[pairs[:, 0]] - REWARD[pairs[:, 1]]
    preferred = torch.from_numpy(rng.random(PAIRS)) < gap.sigmoid()
    policy = TablePolicy(torch.zeros(1, 1, 3, dtype=torch.float64))
    z, loss = policy.module.logits, ContrastiveLoss(BETA)
    data = batch_of(pairs) if arm == "copg" else None
    adam = torch.optim.Adam([z], lr=1e-3)
    curve = [(0, regret(z))]
    for epoch in range(EPOCHS):
        order = torch.randperm(PAIRS, generator=generator(seed, "shuffle", epoch))
        for rows in order.split(SIZE):
            adam.zero_grad()
            if data is not None:
                part = data.select(torch.cat([2 * rows, 2 * rows + 1]))
                loss(policy.score(part, 1.0), part).terms["pairs"].backward()
            else:
                logp = z.flatten().log_softmax(0)
                c = weights(arm, pairs[rows], preferred[rows], logp.detach())
                (-(c * logp[pairs[rows]]).sum(1).mean()).backward()
            adam.step()
        if (epoch + 1) % 10 == 0:
            curve.append((epoch + 1, regret(z)))
    at = dict(curve)
    probability = z.detach().flatten().softmax(0).tolist()
    return {f"epoch_{n}": at[n] for n in (100, 150, 200, 300)} | {"policy": probability, "curve": curve}


def gap(a: str, b: str, epoch: int):
    return lambda r: r[a][f"epoch_{epoch}"] - r[b][f"epoch_{epoch}"]


CHECKS = [
    Check("epoch 100: CoPG below the value baseline", "difference < 0", gap("copg", "pg-value", 100), below=0.0),
    Check("epoch 100: the value baseline below IPO", "difference < 0", gap("pg-value", "ipo", 100), below=0.0),
    Check("epoch 100: IPO below the start", f"regret < {START}", lambda r: r["ipo"]["epoch_100"], below=START,
          refuted=START),
    Check("epoch 100: no baseline above the start", f"regret > {START}", lambda r: r["pg-zero"]["epoch_100"], above=START,
          refuted=START),
    Check("epoch 200: CoPG at the optimum", "regret < 0.0001", lambda r: r["copg"]["epoch_200"], below=1e-4, kind="each"),
    Check("epoch 300: the value baseline has left it again", "regret > 0.01", lambda r: r["pg-value"]["epoch_300"], above=0.01),
    Check("epoch 300: CoPG's plateau", "regret < 0.001", lambda r: r["copg"]["epoch_300"], below=1e-3, kind="each", refuted=1e-3),
    Check("epoch 300: no rival is below CoPG", "lowest rival − CoPG > 0",
          lambda r: min(r[a]["epoch_300"] for a in ARMS[1:]) - r["copg"]["epoch_300"], above=0.0),
]  # fmt: skip
AMENDMENTS = (
    Amendment("five seeds instead of ten", "2026-11-25", "after a look",
              "not written down; the evidence came with it"),
    Amendment("every check has a kind; below 0.0001 after 200 epochs, and the plateau, on every seed", "2026-12-01", "after a look",
              "verdicts follow from the kind of an outcome; 'in every seed' was the rule"),
    Amendment("the plateau is refuted at its bound", "2026-12-01", "after a look",
              "the claim's rule for a refutation had not been written on its checks"),
    Amendment("the comparisons with the start are refuted at their bounds", "2026-12-01", "after a look",
              "they ask for a direction, as those with other arms do"),
    Amendment("the sentence tells the epochs apart", "2026-12-01", "after a look",
              "every core check is a statement of the sentence, and every statement a core check"),
    Amendment(
        "ten seeds instead of five",
        "2026-12-01",
        "after a look",
        "the number that stood there before its first evidence",
    ),
)  # fmt: skip
