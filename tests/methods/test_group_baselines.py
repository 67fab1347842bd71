"""GRPO, Dr. GRPO, GSPO, RLOO, REINFORCE++ and PPO: the whole of advantage and loss against the papers' formulas, written out
response by response; value and gradient in float64."""

import math
from dataclasses import replace

import pytest
import torch

from anypolicy.methods.language.dr_grpo import dr_grpo
from anypolicy.methods.language.grpo import grpo
from anypolicy.methods.language.gspo import gspo
from anypolicy.methods.language.ppo import ppo
from anypolicy.methods.language.reinforce_pp import reinforce_pp
from anypolicy.methods.language.rloo import rloo
from anypolicy.policies.language.base import Scores
from anypolicy.stages.recipe import Credit
from tests.helpers import batch_of

REWARDS, LENGTHS, LIMIT = [[1.0, 0.0, 0.25], [0.0, 0.5, 0.5]], [[2, 4, 3], [1, 3, 4]], 5
NAMES = [(g, i) for g, row in enumerate(REWARDS) for i in range(len(row))]


@pytest.fixture
def given():
    """Groups of responses of different lengths, with log-probabilities of policy, behaviour, reference, and values."""
    rng = torch.Generator().manual_seed(3)
    batch = replace(batch_of(REWARDS, LENGTHS), max_tokens=LIMIT)
    noise = [0.3 * torch.randn(batch.response.shape, generator=rng, dtype=torch.float64) for _ in range(4)]
    old = torch.where(batch.valid, -1 + noise[0], 0)
    batch = replace(batch, logp_old=old, logp_ref=torch.where(batch.valid, old + noise[1], 0), value=noise[2])
    return batch, torch.where(batch.valid, old + noise[3], 0).requires_grad_()


def tokens(x):
    """Row by row, the tokens that there are."""
    return [list(x[n][: LENGTHS[g][i]].unbind()) for n, (g, i) in enumerate(NAMES)]


def compared(recipe, batch, x, want):
    """Loss and gradient of a recipe's own stages, and of the formula."""
    credit = recipe.advantage(batch)
    credit = credit if isinstance(credit, Credit) else Credit(batch.to_rows(credit))
    if not recipe.loss.needs.reference:
        batch = replace(batch, logp_ref=None)
    terms, _ = recipe.loss(Scores(x), replace(batch, advantage=credit.advantage))
    got = sum(terms.values())
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, retain_graph=True)[0] for y in (got, want)))


def surrogate(r, a, low, high):
    """min(r A, clip(r, 1 − low, 1 + high) A)."""
    return min(r * a, max(min(r, 1 + high), 1 - low) * a, key=float)


def standardised(row, eps=1e-6):
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in row) / (len(row) - 1))
    return [(r - mean) / (deviation + eps) for r in row]


def test_grpo(given):
    """arXiv 2402.03300, eq. 3 and 4: the mean over responses of the mean over tokens of clip(r, 0.2) A − β k3."""
    batch, x = given
    advantage = [a for row in REWARDS for a in standardised(row)]
    total = 0
    for a, new, old, ref in zip(advantage, *map(tokens, (x, batch.logp_old, batch.logp_ref)), strict=True):
        each = [
            surrogate((n - o).exp(), a, 0.2, 0.2) - 0.04 * ((f - n).exp() - (f - n) - 1)
            for n, o, f in zip(new, old, ref)
        ]
        total = total + sum(each) / len(each)
    compared(grpo(kl_coef=0.04), batch, x, -total / 6)


def test_dr_grpo(given):
    """arXiv 2503.20783, section 3.2: no deviation in the advantage, a constant in place of the length."""
    batch, x = given
    total = 0
    for (g, i), new, old in zip(NAMES, tokens(x), tokens(batch.logp_old), strict=True):
        a = REWARDS[g][i] - sum(REWARDS[g]) / 3
        total = total + sum(surrogate((n - o).exp(), a, 0.2, 0.2) for n, o in zip(new, old))
    compared(dr_grpo(), batch, x, -total / (6 * LIMIT))


def test_gspo(given):
    """arXiv 2507.18071, eq. 5 to 7: s = (π/π_old)^(1/|y|), clipped as a whole."""
    batch, x = given
    advantage = [a for row in REWARDS for a in standardised(row)]
    for low, high in ((3e-4, 4e-4), (0.05, 0.2)):
        total = 0
        for a, new, old in zip(advantage, tokens(x), tokens(batch.logp_old), strict=True):
            s = (sum(n - o for n, o in zip(new, old)) / len(new)).exp()
            total = total + surrogate(s, a, low, high)
        compared(gspo(clip_low=low, clip_high=high), batch, x, -total / 6)


def test_rloo(given):
    """arXiv 2402.14740, eq. 5, with R = r − β Σ_t ln(π/π_ref): each response against the mean of the others."""
    batch, x = given
    shaped = [REWARDS[g][i] - 0.03 * float(sum(o - f for o, f in zip(old, ref)))
              for (g, i), old, ref in zip(NAMES, tokens(batch.logp_old), tokens(batch.logp_ref), strict=True)]  # fmt: skip
    total = 0
    for n, ((g, i), new, old) in enumerate(zip(NAMES, tokens(x), tokens(batch.logp_old), strict=True)):
        others = [shaped[3 * g + j] for j in range(3) if j != i]
        total = total + sum((p - o).exp() for p, o in zip(new, old)) * (shaped[n] - sum(others) / 2)
    compared(rloo(), batch, x, -total / 6)


def returns(batch, coef, discount):
    """Rewards of every token: −β ln(π_old/π_ref), the response's own on the last."""
    out = []
    for (g, i), old, ref in zip(NAMES, tokens(batch.logp_old), tokens(batch.logp_ref), strict=True):
        row = [-coef * float(o - f) for o, f in zip(old, ref)]
        row[-1] += REWARDS[g][i]
        out.append([sum(discount ** (k - t) * row[k] for k in range(t, len(row))) for t in range(len(row))])
    return out


def whitened(rows):
    flat = [v for row in rows for v in row]
    mean = sum(flat) / len(flat)
    scale = math.sqrt(sum((v - mean) ** 2 for v in flat) / (len(flat) - 1) + 1e-8)
    return [[(v - mean) / scale for v in row] for row in rows]


def clipped_mean(batch, x, advantage):
    """−clip(r, 0.2) A, mean over all tokens."""
    each = [surrogate((n - o).exp(), a, 0.2, 0.2) for rows in zip(tokens(x), tokens(batch.logp_old), advantage, strict=True)
            for n, o, a in zip(*rows)]  # fmt: skip
    return -sum(each) / len(each)


def test_reinforce_pp(given):
    """arXiv 2501.03262, eq. 5 to 8: returns-to-go with the divergence in the reward, normalised over the batch."""
    batch, x = given
    compared(
        reinforce_pp(kl_coef=0.1, discount=0.9), batch, x, clipped_mean(batch, x, whitened(returns(batch, 0.1, 0.9)))
    )
    compared(reinforce_pp(), batch, x, clipped_mean(batch, x, whitened(returns(batch, 1e-3, 1.0))))


def test_ppo(given):
    """arXiv 1707.06347, eq. 7, 11 and 12, a response as an episode; and the clipped loss of the values."""
    batch, x = given
    for lam, discount in ((0.95, 1.0), (0.5, 0.9)):
        advantage, target = [], []
        for (g, i), v, old, ref in zip(NAMES, *map(tokens, (batch.value, batch.logp_old, batch.logp_ref)), strict=True):
            r = [-1e-3 * float(o - f) for o, f in zip(old, ref)]
            r[-1] += REWARDS[g][i]
            after = [*(float(value) for value in v[1:]), 0.0]
            delta = [r[t] + discount * after[t] - float(v[t]) for t in range(len(v))]
            advantage.append([sum((discount * lam) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(v))])
            target.append([a + float(value) for a, value in zip(advantage[-1], v, strict=True)])
        recipe = ppo(lam=lam, discount=discount)
        compared(recipe, batch, x, clipped_mean(batch, x, whitened(advantage)))
        credit, value = recipe.advantage(batch), (batch.value + 0.8 * x.detach()).requires_grad_()
        [got] = recipe.critic.loss(value, replace(batch, value_target=credit.value_target)).terms.values()
        each = []
        for rows in zip(tokens(value), tokens(batch.value), target, strict=True):
            for v, old, r in zip(*rows):
                near = old + max(-0.5, min(0.5, float(v - old))) if abs(v - old) > 0.5 else v
                each.append(max((v - r) ** 2, (near - r) ** 2, key=float) / 2)
        torch.testing.assert_close(got, sum(each) / len(each))
        torch.testing.assert_close(
            *(torch.autograd.grad(y, value, retain_graph=True)[0] for y in (got, sum(each) / len(each)))
        )


def test_defaults():
    """GSPO clips at 3e-4 and 4e-4, with four mini-batches (arXiv 2507.18071, section 5.1); RLOO makes one update of a batch."""
    assert (gspo().optimiser.minibatches, gspo().loss.gate.low, gspo().loss.gate.high) == (4, 3e-4, 4e-4)
    assert (rloo().rollout.group_size, rloo().optimiser.epochs, rloo().optimiser.minibatches) == (4, 1, 1)
    assert ppo().rollout.group_size == reinforce_pp().rollout.group_size == 1
