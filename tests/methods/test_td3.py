"""TD3 against a formula of its own: plain NumPy-like tensors, Adam written out."""

import dataclasses
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from anypolicy import catalogue
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.learners.base import Needs, check_learner
from anypolicy.methods.control.td3 import TwinDelayed, smoothed
from anypolicy.policies.control.mlp import q_values
from anypolicy.tasks.control.environments import Space

SPACE = Space(3, 2, False, (-1.0, -1.0), (1.0, 1.0))
SMALL = TwinDelayed(hidden=(8, 8), lr=0.01)


def batch(seed=0, n=6):
    rng = torch.Generator().manual_seed(seed)
    o, a, nxt = (torch.randn(n, k, generator=rng, dtype=torch.float64) for k in (3, 2, 3))
    return Transitions(o, a.tanh(), torch.randn(n, generator=rng, dtype=torch.float64), nxt,
                       (torch.rand(n, generator=rng) < 0.3).double(), torch.zeros(n).double(),
                       torch.full((n,), 0.99, dtype=torch.float64))  # fmt: skip


def double(learner):
    for module in learner.modules.values():
        module.double()
    return learner


def layers(net, member=None):
    pick = (lambda x: x) if member is None else (lambda x: x[member])
    return [(pick(w).detach().clone(), pick(b).detach().clone()) for w, b in zip(net.weights, net.biases, strict=True)]


def through(net, x):
    """A ReLU network, layer by layer."""
    for i, (w, b) in enumerate(net):
        x = x @ w + b
        x = x.relu() if i < len(net) - 1 else x
    return x


def test_smoothing():
    action, noise = torch.tensor([[0.9, -0.2]]), torch.tensor([[0.4, -0.8]])
    assert smoothed(action, noise, 0.5).tolist() == [[1.0, pytest.approx(-0.7)]]


@pytest.mark.parametrize("seed", range(3))
def test_the_target_is_the_smaller_critic_at_a_smoothed_action(seed):
    """With so much noise that its clip is felt."""
    learner, b = double(dataclasses.replace(SMALL, target_noise=0.8)(SPACE, seed)), batch(seed)
    rng = torch.Generator().manual_seed(7)
    actor, twins = layers(learner.target_actor), [layers(learner.targets, i) for i in (0, 1)]
    noise = 0.8 * torch.randn(b.action.shape, generator=torch.Generator().manual_seed(7))
    action = (through(actor, b.next_observation).tanh() + noise.clamp(-0.5, 0.5)).clamp(-1, 1)
    after = torch.cat([b.next_observation, action], 1)
    y = b.reward + 0.99 * (1 - b.terminated) * torch.minimum(*(through(q, after)[:, 0] for q in twins))
    now = torch.cat([b.observation, b.action], 1)
    want = sum((through(layers(learner.critics, i), now)[:, 0] - y).square().mean() for i in (0, 1))
    assert learner.update_critics(b, rng)["loss/critic"] == pytest.approx(float(want), rel=1e-9)


def test_the_actor_climbs_the_first_critic_alone():
    learner, b = double(SMALL(SPACE, 0)), batch()
    critic = layers(learner.critics, 0)
    before = [w.detach().clone().requires_grad_(True) for w in learner.actor.parameters()]
    n = len(learner.actor.weights)
    action = through(list(zip(before[:n], before[n:], strict=True)), b.observation).tanh()
    value = through(critic, torch.cat([b.observation, action], 1))[:, 0].mean()
    slopes = torch.autograd.grad(value, before)
    assert learner.update_actor(b)["loss/actor"] == pytest.approx(-float(value.detach()), rel=1e-9)
    for old, slope, new in zip(before, slopes, learner.actor.parameters(), strict=True):
        step = 0.01 * slope / (slope.abs() + 1e-8)  # Adam's first step, uphill
        torch.testing.assert_close(new.detach(), old.detach() + step, rtol=0, atol=1e-9)


def test_actor_and_targets_move_at_every_second_update_of_the_critics():
    learner, rng = SMALL(SPACE, 0), torch.Generator().manual_seed(0)
    rows = Transitions(*(getattr(batch(), f).float() for f in Transitions.__dataclass_fields__))
    moved = []
    for _ in range(5):
        before = {k: [p.detach().clone() for p in m.parameters()] for k, m in learner.modules.items()}
        learner.update([rows], rng)
        moved.append({k for k, m in learner.modules.items()
                      if any(not torch.equal(a, b) for a, b in zip(before[k], m.parameters(), strict=True))})  # fmt: skip
    critics, all_of_them = {"critics"}, {"critics", "actor", "targets", "target_actor"}
    assert moved == [critics, all_of_them, critics, all_of_them, critics]


def test_targets_follow_by_tau():
    learner, b = double(dataclasses.replace(SMALL, tau=0.25, delay=1)(SPACE, 0)), batch()
    old = [p.clone() for p in learner.targets.parameters()]
    learner.update([b], torch.Generator().manual_seed(0))
    for before, target, online in zip(old, learner.targets.parameters(), learner.critics.parameters(), strict=True):
        torch.testing.assert_close(target, 0.75 * before + 0.25 * online.detach(), rtol=0, atol=1e-12)


def test_noise_explores_and_is_left_out_where_it_is_evaluated():
    learner, seen = SMALL(SPACE, 0), torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(2)
    plain = learner.act(seen, rng, explore=False).executed
    assert torch.equal(plain, learner.actor(seen).tanh())
    drawn = learner.act(seen, rng, explore=True).executed - plain
    assert float(drawn.std()) == pytest.approx(0.1, rel=0.1) and float(drawn.mean()) == pytest.approx(0, abs=0.02)


def test_the_defaults_are_the_papers():
    """Section 6.1."""
    defaults = {k: p.default for k, p in catalogue.get("td3", "control").knobs.items()}
    assert defaults == {
        "hidden": (400, 300), "lr": 1e-3, "batch": 100, "tau": 0.005, "discount": 0.99, "delay": 2, "updates": 1,
        "target_noise": 0.2, "noise_clip": 0.5, "noise": 0.1, "warmup": 1000, "capacity": 1_000_000,
    }  # fmt: skip


def test_what_cannot_be_used():
    with pytest.raises(InputError, match=r"td3\.delay: got 0; use a number of at least 1"):
        catalogue.build(catalogue.get("td3", None), {"delay": 0})
    with pytest.raises(InputError, match="box of actions"):
        SMALL(Space(3, 2, True), 0)


def test_what_is_declared_wrongly_is_refused():
    learner = check_learner(SMALL(SPACE, 0))
    learner.needs = Needs(warm=True)
    with pytest.raises(InputError, match="declares `warm` and has none"):
        check_learner(learner)
    learner = SMALL(SPACE, 0)
    learner.observe = lambda x: x
    with pytest.raises(InputError, match="has `observe`: declare it"):
        check_learner(learner)


def plant(monkeypatch, old, new):
    """From here on the tests of this file are of the method's file with `new` in place of `old`."""
    text = Path(sys.modules[TwinDelayed.__module__].__file__).read_text()
    assert text.count(old) == 1
    module = ModuleType("planted")
    monkeypatch.setitem(sys.modules, "planted", module)
    monkeypatch.setattr(catalogue, "REGISTERED", {})
    exec(text.replace(old, new), vars(module))
    monkeypatch.setitem(globals(), "SMALL", module.TwinDelayed(hidden=(8, 8), lr=0.01))
    monkeypatch.setitem(globals(), "smoothed", module.smoothed)


def of_the_target():
    test_the_target_is_the_smaller_critic_at_a_smoothed_action(0)


@pytest.mark.parametrize(
    ("old", "new", "notices"),
    [
        ("loss = -q_values(", "loss = q_values(", test_the_actor_climbs_the_first_critic_alone),
        ("[0].mean()", "[1].mean()", test_the_actor_climbs_the_first_critic_alone),
        ("(action + noise.clamp(-clip, clip))", "(action - noise.clamp(-clip, clip))", test_smoothing),
        ("(action + noise.clamp(-clip, clip))", "(action + noise)", of_the_target),
        ("(q - y)", "(q + y)", of_the_target),
        ("action = (action + noise).clamp", "action = (action + 2 * noise).clamp",
         test_noise_explores_and_is_left_out_where_it_is_evaluated),
        ("self.counter.steps += 1", "self.counter.steps += 2",
         test_actor_and_targets_move_at_every_second_update_of_the_critics),
        ("self.actor.parameters(), self.settings.tau", "self.actor.parameters(), 0.0",
         test_actor_and_targets_move_at_every_second_update_of_the_critics),
        ("self.critics.parameters(), self.settings.tau", "self.critics.parameters(), -self.settings.tau",
         test_targets_follow_by_tau),
    ],
    ids=["descends", "other critic", "noise", "no clip", "error", "exploration", "counter", "still", "away"],
)  # fmt: skip
def test_a_planted_fault_is_noticed(old, new, notices, monkeypatch):
    plant(monkeypatch, old, old)
    notices()
    plant(monkeypatch, old, new)
    with pytest.raises(AssertionError):
        notices()


def test_a_planted_need_is_an_error_where_it_is_read(monkeypatch):
    with pytest.raises(TypeError, match="observes"):
        plant(monkeypatch, "needs = Needs()", "needs = Needs(observes=True)")


def test_critics_are_two():
    learner = SMALL(SPACE, 0)
    assert q_values(learner.critics, batch().observation.float(), batch().action.float()).shape == (2, 6)
