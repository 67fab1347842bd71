"""Offline learners: the gradient of one update is that of the sheet's loss, written out once more in plain tensors."""

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import cross_entropy, smooth_l1_loss

from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.methods.control.bc import ChoiceCloningLearner, Cloning
from anypolicy.methods.control.bcq import ConstrainedQ, allowed
from anypolicy.methods.control.bve import BehaviourValue
from anypolicy.methods.control.cql import ConservativeQ
from anypolicy.methods.control.crr import CriticRegularised
from anypolicy.methods.control.dqn import DoubleQ
from anypolicy.methods.control.mce import ReturnRegression
from anypolicy.methods.control.qr_dqn import QuantileQ, quantile_loss
from anypolicy.methods.control.rem import EnsembleMixture
from anypolicy.tasks.control.environments import Space

SPACE, N = Space(3, 4, True), 24
ROWS = torch.arange(N)


def batch_of(seed, columns=1):
    rng = torch.Generator().manual_seed(seed)
    seen, later = torch.randn(2, N, 3, generator=rng)
    ended = (torch.rand(N, generator=rng) < 0.3).float()
    action = torch.randint(4, (N, columns), generator=rng).float()
    return Transitions(
        seen, action, 2 * torch.randn(N, generator=rng), later, ended, torch.zeros(N), torch.full((N,), 0.9)
    )


def learner_of(make, seed):
    """Copies differ from what they were copied from, so that each has its own say."""
    learner = make(SPACE, seed)
    for name, module in learner.modules.items():
        if name.startswith("target"):
            for p in module.parameters():
                p.mul_(1.5).add_(0.1)
    return learner


def double(m, b, head=lambda outputs: outputs):
    """r + γ(1 − d) q̄(s′, argmax q(s′))."""
    with torch.no_grad():
        choice = head(m["critic"](b.next_observation)).argmax(1)
        return b.reward + 0.9 * (1 - b.terminated) * head(m["target_critic"](b.next_observation))[ROWS, choice]


def q_of(m, b, head=lambda outputs: outputs):
    return head(m["critic"](b.observation))[ROWS, b.action[:, 0].long()]


def dqn(m, b, rng):
    return smooth_l1_loss(q_of(m, b), double(m, b))


def cql(m, b, rng):
    q = m["critic"](b.observation)
    return dqn(m, b, rng) + 0.25 * (q.exp().sum(1).log() - q_of(m, b)).mean()


def qr_dqn(m, b, rng):
    theta, later, copied = (f(x).view(N, 4, 5) for f, x in (
        (m["critic"], b.observation), (m["critic"], b.next_observation), (m["target_critic"], b.next_observation)))  # fmt: skip
    total = torch.zeros(())
    for n in range(N):
        y = b.reward[n] + 0.9 * (1 - b.terminated[n]) * copied[n, later[n].mean(1).argmax()].detach()
        for i in range(5):
            for j in range(5):
                delta = y[j] - theta[n, int(b.action[n, 0]), i]
                weight = abs((i + 0.5) / 5 - float(delta < 0))
                total = total + weight * smooth_l1_loss(delta, torch.zeros(())) / 5
    return total / N


def rem(m, b, rng):
    drawn = torch.rand(6, generator=rng)
    alpha = drawn / drawn.sum()
    head = lambda outputs: sum(alpha[k] * outputs[:, 4 * k : 4 * k + 4] for k in range(6))  # noqa: E731
    return smooth_l1_loss(q_of(m, b, head), double(m, b, head))


def bcq(m, b, rng):
    with torch.no_grad():
        p = m["behaviour"](b.next_observation).softmax(1)
        kept = p / p.amax(1, keepdim=True) > 0.7
        choice = m["critic"](b.next_observation).masked_fill(~kept, -torch.inf).argmax(1)
        y = b.reward + 0.9 * (1 - b.terminated) * m["target_critic"](b.next_observation)[ROWS, choice]
    logits = m["behaviour"](b.observation)
    return smooth_l1_loss(q_of(m, b), y) + cross_entropy(logits, b.action[:, 0].long()) + 0.05 * logits.pow(2).mean()


def crr(m, b, rng):
    """The actor's loss, then the critic's, whose target follows the copied actor; draws come in this order."""
    policy, a = m["actor"](b.observation), b.action[:, 0].long()
    with torch.no_grad():
        q = m["critic"](b.observation)
        own = [q[ROWS, policy.sample(rng)[:, 0].long()] for _ in range(4)]
        weight = (q[ROWS, a] - torch.stack(own).mean(0) > 0).float()
        later = m["target_actor"](b.next_observation).sample(rng)[:, 0].long()
        y = b.reward + 0.9 * (1 - b.terminated) * m["target_critic"](b.next_observation)[ROWS, later]
    actor = -(weight * policy.log_probabilities[ROWS, a]).mean()
    return actor + smooth_l1_loss(q_of(m, b), y)


def bve(m, b, rng):
    with torch.no_grad():
        y = b.reward + 0.9 * (1 - b.terminated) * m["critic"](b.next_observation)[ROWS, b.action[:, 1].long()]
    return smooth_l1_loss(q_of(m, b), y)


def mce(m, b, rng):
    return smooth_l1_loss(q_of(m, b), b.reward)


def bc(m, b, rng):
    return cross_entropy(m["actor"](b.observation).log_probabilities, b.action[:, 0].long())


LOSSES = {
    "dqn": (DoubleQ(hidden=(8,)), dqn), "cql": (ConservativeQ(hidden=(8,), alpha=0.25), cql),
    "qr-dqn": (QuantileQ(hidden=(8,), quantiles=5), qr_dqn), "rem": (EnsembleMixture(hidden=(8,), heads=6), rem),
    "bcq": (ConstrainedQ(hidden=(8,), threshold=0.7, logits=0.05), bcq), "crr": (CriticRegularised(hidden=(8,)), crr),
    "bve": (BehaviourValue(hidden=(8,)), bve), "mce": (ReturnRegression(hidden=(8,)), mce),
    "bc": (Cloning(hidden=(8,)), bc),
}  # fmt: skip


@pytest.mark.parametrize("slug", LOSSES)
@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_is_that_of_the_equations(slug, seed):
    make, loss = LOSSES[slug]
    learner = learner_of(make, seed)
    copies, batch = deepcopy(learner.modules), batch_of(seed, 2 if slug == "bve" else 1)
    loss(copies, batch, torch.Generator().manual_seed(seed)).backward()
    learner.update([batch], torch.Generator().manual_seed(seed))
    compared = 0
    for name, module in learner.modules.items():
        for mine, copy in zip(module.parameters(), copies[name].parameters(), strict=True):
            if mine.requires_grad:
                assert torch.allclose(mine.grad, copy.grad, atol=1e-6), name
                compared += 1
            else:
                assert mine.grad is None and torch.equal(mine, copy), name
    assert compared >= 4


def test_sums_are_over_quantiles_and_means_over_targets(f64):
    theta, y = f64([[0.0, 0.5]]), f64([[1.0, -0.5, 2.0]])
    by_hand = sum(abs((i + 0.5) / 2 - float(t < q)) * float(smooth_l1_loss(f64(t), f64(q)))
                  for i, q in enumerate([0.0, 0.5]) for t in [1.0, -0.5, 2.0]) / 3  # fmt: skip
    assert float(quantile_loss(theta, y)) == pytest.approx(by_hand, abs=1e-12)


def test_an_action_at_the_threshold_is_not_allowed(f64):
    assert allowed(f64([[0.0, 0.5]]).log(), 0.5)[0].tolist() == [False, True]
    assert allowed(f64([[0.25, 0.5]]).log(), 0.5)[0].tolist() == [False, True]


def test_what_a_softmax_does_not_use_is_refused():
    for name, value in (("policy", "diffusion"), ("denoising_steps", 3), ("average", 0.5), ("standardise", False)):
        with pytest.raises(InputError, match=f"bc.{name}.*does not use it"):
            Cloning(**{name: value})(SPACE, 0)
    assert Cloning(standardise=False)(Space(3, 2, False, (-1.0,) * 2, (1.0,) * 2), 0)


@pytest.mark.parametrize("make", [Cloning(hidden=(8,)), CriticRegularised(hidden=(8,))])
def test_a_policy_of_choices_acts_by_its_probabilities(make):
    learner = make(SPACE, 0)
    assert isinstance(learner, ChoiceCloningLearner) or "critic" in learner.modules
    seen = torch.zeros(8000, 3)
    p = learner.modules["actor"](seen[:1]).log_probabilities.exp()[0]
    drawn = learner.act(seen, torch.Generator().manual_seed(0), explore=False).executed[:, 0].long()
    assert p.max() < 0.9 and torch.allclose(drawn.bincount(minlength=4) / 8000, p, atol=0.02)
