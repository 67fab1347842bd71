"""RSO's claim: pairs drawn from the optimal policy fit it better than pairs of plain samples, those better than others'.

150 prompts, 300 answers each with 8 features N(0, 1). Gold reward: a linear and a quadratic form of them, each standardised,
added, then divided by its deviation. Policies are softmax(w · f), so none can be optimal. π_sft has w = 0.3 N(0, 1); the
policy of the 3,000 human pairs −0.8 of the unit gold direction + 0.3 N(0, 1); labels are right with σ(2 Δgold). The reward
model is a logistic regression on features and their products (1,500 steps of 0.05, L2 1e-3). Sources: those pairs (direct);
8 samples of π_sft a prompt, first-round pairs ranked by the reward model (sft); 8 of 64 by rejection at β = 0.5, likewise
(rso). 400 full-batch steps of (2/γ)(1 − t/400), γ = 0.05, L2 1e-4 to the start.
Gold: exact mean under the final policy. Distance: KL(π_r ‖ π) with π_r ∝ π_sft exp(r/β), r the learned reward.
The order of rso and sft may hang on a small γ: arms with γ = 0.2 are reported.
"""

from typing import Any, cast

import torch
from torch import Tensor

from anypolicy.evidence.checks import Amendment, Check, Results
from anypolicy.methods.preference.rso import LossName, loss_of
from anypolicy.parts.pairing import make_pairs
from anypolicy.parts.rejection import rejection_sample, tilted
from anypolicy.runs.seeds import generator
from anypolicy.stages.pairs import Pair, Responses

CLAIM = (
    "policies learnt from rejection-sampled pairs have a higher gold reward than from pairs of plain samples, those than "
    "from pairs of another policy, for all three losses at γ = 0.05, and are nearer to the optimal policy than those of plain "
    "samples (arXiv 2309.06657)"
)
SEEDS = 10
LOSSES, SOURCES = ("sigmoid-norm", "hinge-norm", "hinge"), ("direct", "sft", "rso")
ARMS = (*(f"{loss} {source}" for loss in LOSSES for source in SOURCES), "gamma-0.2 sft", "gamma-0.2 rso")
CURVE = "mean gold reward"
CURVE_ARMS = tuple(f"sigmoid-norm {source}" for source in SOURCES)
PROMPTS, ANSWERS, WIDTH, BETA = 150, 300, 8, 0.5


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std(correction=0)


def normal(seed: int, name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "world", name), dtype=torch.float64)


def products(f: Tensor) -> Tensor:
    """Features and their products."""
    i, j = torch.triu_indices(WIDTH, WIDTH)
    return torch.cat([f, f[..., i] * f[..., j]], -1)


def drawn(p: Tensor, n: int, seed: int, name: str) -> Tensor:
    return torch.multinomial(p, n, True, generator=generator(seed, name))


def reward_model(phi: Tensor, x: Tensor, pairs: Tensor) -> Tensor:
    """Weights of the logistic regression on pairs (better, worse)."""
    d = phi[x, pairs[:, 0]] - phi[x, pairs[:, 1]]
    w = torch.zeros(d.shape[1], dtype=d.dtype)
    for _ in range(1_500):
        w = w + 0.05 * ((torch.sigmoid(-(d @ w)) @ d) / len(d) - 1e-3 * w)
    return w


def ranked(seed: int, source: str, p: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts and pairs (chosen, rejected) out of samples of π_sft."""
    where, pairs = list[int](), list[tuple[int, int]]()
    samples = drawn(p, 64 if source == "rso" else 8, seed, source).tolist()
    for x, own in enumerate(samples):
        own, rng = list(dict.fromkeys(own)), generator(seed, "accept", x)
        if source == "rso":
            rewards = reward[x, own].tolist()
            own = [own[i] for i in rejection_sample(rewards, BETA, 8, lambda r=rng: float(torch.rand((), generator=r)))]
        own = [own[i] for i in torch.randperm(len(own), generator=rng).tolist()]
        found = make_pairs(len(own), "first_round", lambda i, j, o=own, x=x: float(reward[x, o[i]] - reward[x, o[j]]))
        where += [x] * len(found)
        pairs += [(own[i], own[j]) for i, j in found]
    return torch.tensor(where), torch.tensor(pairs)


def run(arm: str, seed: int) -> dict[str, Any]:
    name, source = arm.split()
    gamma = 0.2 if name == "gamma-0.2" else 0.05
    objective = loss_of("sigmoid-norm" if name == "gamma-0.2" else cast(LossName, name), gamma)
    f, direction = normal(seed, "features", PROMPTS, ANSWERS, WIDTH), normal(seed, "gold", WIDTH)
    direction = direction / direction.norm()
    square = torch.einsum("xyi,ij,xyj->xy", f, normal(seed, "square", WIDTH, WIDTH) / 8, f)
    gold = standardised(f @ direction) + standardised(square)
    gold = gold / gold.std(correction=0)
    start = 0.3 * normal(seed, "sft", WIDTH)
    p = (f @ start).softmax(-1)
    other = (f @ (-0.8 * direction + 0.3 * normal(seed, "other", WIDTH))).softmax(-1)
    x = torch.arange(3_000) % PROMPTS
    two = drawn(other[x], 2, seed, "human")
    gap = gold[x, two[:, 0]] - gold[x, two[:, 1]]
    first = torch.rand(3_000, generator=generator(seed, "labels"), dtype=torch.float64) < torch.sigmoid(2 * gap)
    human = torch.where(first[:, None], two, two.flip(1))
    phi = products(f)
    reward = phi @ reward_model(phi, x, human)
    where, pairs = (x, human) if source == "direct" else ranked(seed, source, p, reward)
    return measured(objective, f, start, where, pairs, gamma, gold, tilted(p, reward, BETA))


def measured(
    objective: Any, f: Tensor, start: Tensor, where: Tensor, pairs: Tensor, gamma: float, gold: Tensor, best: Tensor
) -> dict[str, Any]:
    """Fit the pairs, and what the policy is then."""
    sft, w, curve = (f @ start).log_softmax(-1), start.clone().requires_grad_(), list[tuple[int, float]]()
    one = torch.ones(len(pairs), dtype=torch.float64)

    def side(logp: Tensor, k: int) -> Responses:
        at = (where, pairs[:, k])
        return Responses(logp[at], sft[at], one, one, one, 0 * one, where)

    for t in range(400):
        logp = (f @ w).log_softmax(-1)
        if t % 40 == 0:
            curve.append((t, float((logp.detach().exp() * gold).sum(-1).mean())))
        loss = objective(Pair(side(logp, 0), side(logp, 1))).mean() + 0.5e-4 * (w - start).square().sum()
        [slope] = torch.autograd.grad(loss, w)
        w = (w - 2 / gamma * (1 - t / 400) * slope).detach().requires_grad_()
    logp, p = (f @ w.detach()).log_softmax(-1), sft.exp()
    curve.append((400, float((logp.exp() * gold).sum(-1).mean())))
    order = gold.argsort(-1)
    below = p.gather(-1, order).cumsum(-1) - p.gather(-1, order) / 2
    return {
        "gold": curve[-1][1], "win": float((logp.exp().gather(-1, order) * below).sum(-1).mean()),
        "kl": float((logp.exp() * (logp - sft)).sum(-1).mean()),
        "distance": float((torch.special.xlogy(best, best) - best * logp).sum(-1).mean()), "curve": curve,
    }  # fmt: skip


def more(a: str, b: str, what: str = "gold") -> Any:
    def value(r: Results) -> float:
        return r[a][what] - r[b][what]

    return value


CHECKS = [
    *(Check(f"{loss}: gold of rso above sft", "> 0", more(f"{loss} rso", f"{loss} sft"), above=0.0) for loss in LOSSES),
    *(Check(f"{loss}: gold of sft above direct", "> 0", more(f"{loss} sft", f"{loss} direct"), above=0.0)
      for loss in LOSSES),
    *(Check(f"{loss}: rso nearer to the optimal policy than sft", "difference of KL(π_r ‖ π) < 0",
            more(f"{loss} rso", f"{loss} sft", "distance"), below=0.0) for loss in LOSSES),
    Check("sigmoid-norm: win rate of rso over π_sft", "> 0.9", lambda r: r["sigmoid-norm rso"]["win"], above=0.9,
          kind="share", core=False),
    Check("at γ = 0.2 rso is not above sft by 0.3", "< 0.3", more("gamma-0.2 rso", "gamma-0.2 sft"), below=0.3,
          core=False),
    Check("at γ = 0.2 rso stays nearer to π_sft than sft does", "difference of KL(π ‖ π_sft) < 0",
          more("gamma-0.2 rso", "gamma-0.2 sft", "kl"), below=0.0, core=False),
]  # fmt: skip
AMENDMENTS = (
    Amendment("every check has a kind", "2026-12-01", "after a look",
              "verdicts follow from the kind of an outcome"),
    Amendment("the sentence says than what they are nearer to the optimal policy", "2026-12-01", "after a look",
              "every core check is a statement of the sentence, and every statement a core check"),
    Amendment("names of reported checks", "2026-12-01", "after a look", "they say what is measured and not how it comes out"),
)  # fmt: skip
