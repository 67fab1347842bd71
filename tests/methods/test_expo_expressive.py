"""EXPO: the on-the-fly choice, edits and their entropy, two subsets of critics, who gets which gradient."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from anypolicy.cli.app import main
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families.control import ControlSettings, World, plan, resume, train_controller
from anypolicy.learners.base import tensors_of
from anypolicy.methods.control import expo_expressive as expo
from anypolicy.parts.td import soft_target
from anypolicy.policies.control.cloned import Cloned
from anypolicy.policies.control.mlp import q_values
from anypolicy.tasks.control.environments import Space
from tests.helpers import recipe

expo_expressive = recipe("expo-expressive")

SPACE = Space(3, 2, False, (-1.0, -1.0), (1.0, 1.0))
SMALL = {"hidden": (16, 16), "ensemble": 4, "samples": 3, "edits": 2}
BASE = {"base_hidden": (16, 16), "denoising_steps": 4}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def learner(**more):
    base = Cloned(hidden=(16, 16), updates=0, denoising_steps=4)
    return expo.OnTheFly(**(SMALL | {"beta": 0.3, "base": base} | more))(SPACE, 0)


def batch(n=32, terminated=0.0, truncated=0.0):
    g = rng(1)
    return Transitions(torch.randn(n, 3, generator=g), torch.rand(n, 2, generator=g) * 2 - 1, torch.randn(n, generator=g),
                       torch.randn(n, 3, generator=g), torch.full((n,), terminated), torch.full((n,), truncated),
                       torch.full((n,), 0.99))  # fmt: skip


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(before, module):
    return all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def spied(monkeypatch, name):
    """Arguments and results of a function of the method's file."""
    calls, real = [], getattr(expo, name)

    def spy(*args, **kwargs):
        out = real(*args, **kwargs)
        calls.append((args, kwargs, out))
        return out

    monkeypatch.setattr(expo, name, spy)
    return calls


def test_selection_among_samples_and_edits(f64):
    base, raw = f64(-0.5, 0.1, 0.4), f64(0.9, -0.3, 0.8)
    edits = expo.edited(base, raw, 0.25)
    assert edits.tolist() == pytest.approx([-0.275, 0.025, 0.6], abs=1e-9)
    options = torch.cat([base, edits])
    q = -(options - 0.6).square()
    assert q.tolist() == pytest.approx([-1.21, -0.25, -0.04, -0.765625, -0.330625, 0.0], abs=1e-9)
    best = options[expo.chosen(q.view(1, 1, -1))]
    assert best.tolist() == pytest.approx([0.6])
    y = soft_target(f64([0.1]), f64([0.99]), -(best - 0.6).square()[None])
    assert y.tolist() == pytest.approx([0.1])


def test_edits_stay_in_the_box(f64):
    assert expo.edited(f64(0.9, -0.9, 0.0), f64(1.0, -1.0, 1.0), 0.3).tolist() == pytest.approx([1.0, -1.0, 0.3])


def test_one_subset_chooses_and_another_is_backed_up(f64):
    q = f64([0.2, 0.5, 0.3], [0.4, 0.1, 0.35], [0.3, 0.45, 0.2])
    assert q[[0, 2]].amin(0).tolist() == pytest.approx([0.2, 0.45, 0.2])
    index = int(expo.chosen(q[[0, 2]][:, None]))
    assert index == 1
    y = soft_target(f64([0.0]), f64([1.0]), q[[1, 2]][:, [index]])
    assert float(y) == pytest.approx(0.1)


def test_the_learner_draws_two_subsets(monkeypatch):
    it = learner()
    drawn, asked = spied(monkeypatch, "subset"), spied(monkeypatch, "q_values")
    for i in range(20):
        it.critic_step(batch(), rng(i))
    pairs = [(drawn[2 * i][2], drawn[2 * i + 1][2]) for i in range(20)]
    assert any(set(a.tolist()) != set(b.tolist()) for a, b in pairs)
    for i, (a, b) in enumerate(pairs):
        choose, back_up, online = asked[3 * i : 3 * i + 3]
        assert choose[0][0] is it.targets and choose[0][3] is a
        assert back_up[0][0] is it.targets and back_up[0][3] is b
        assert online[0][0] is it.critics and len(online[0]) == 3


def test_entropy_of_scaled_edits(f64):
    assert float(expo.edit_logp(f64([0.0]), 4, 0.05)) == pytest.approx(11.982929, abs=1e-6)
    assert expo.entropy_target(4, 0.05, False) == -2
    assert expo.entropy_target(4, 0.05, True) == pytest.approx(-13.982929, abs=1e-6)
    uniform = f64([-4 * math.log(2)])
    assert -float(expo.edit_logp(uniform, 4, 0.05)) == pytest.approx(-9.210340, abs=1e-6)
    assert -float(expo.edit_logp(uniform, 4, 0.05)) < expo.entropy_target(4, 0.05, False)
    assert -float(expo.edit_logp(uniform, 4, 0.7)) == pytest.approx(1.345889, abs=1e-6)
    threshold = math.exp(-0.5) / 2
    assert threshold == pytest.approx(0.303265, abs=1e-6)
    assert -float(expo.edit_logp(uniform, 4, threshold)) == pytest.approx(expo.entropy_target(4, threshold, False))
    for beta in (1e-3, 0.05, 0.7):
        assert -float(expo.edit_logp(uniform, 4, beta)) > expo.entropy_target(4, beta, True)


def test_an_unreachable_target_drives_the_temperature_up_and_a_reachable_one_does_not():
    out = {}
    for feasible in (True, False):
        it = learner(beta=0.05, feasible_target=feasible, lr=1e-2, alpha=0.1)
        for i in range(60):
            it.edit_step(batch(), rng(i))
        out[feasible] = float(it.log_alpha.detach().exp())
    assert out[False] > 0.1 * 1.3 and out[True] < 0.1


@pytest.mark.parametrize(("n", "gain"), [(1, 0.0), (2, 0.564190), (4, 1.029375), (8, 1.423600), (16, 1.765991)])
def test_gain_of_the_best_of_n(n, gain):
    exact = quad(lambda x: x * n * norm.pdf(x) * norm.cdf(x) ** (n - 1), -10, 10)[0]
    assert exact == pytest.approx(gain, abs=2e-6)
    q = torch.randn(1, 100_000, n, generator=rng())
    picked = q[0].gather(1, expo.chosen(q)[:, None])
    assert float(picked.mean()) == pytest.approx(gain, abs=4 * float(picked.std()) / math.sqrt(100_000))


def test_equal_candidates_give_the_first():
    assert expo.chosen(torch.zeros(2, 5, 4)).tolist() == [0] * 5


def test_tiny_edits_are_best_of_n():
    with_edits, without = learner(beta=1e-9, ensemble=2), learner(edits=0, ensemble=2)
    seen = batch().observation
    a, _ = with_edits.on_the_fly(seen, rng(), averaged=True)
    b, edited = without.on_the_fly(seen, rng(), averaged=True)
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert not edited.any()


def test_one_sample_and_no_edit_is_the_base(monkeypatch):
    it, rows = learner(samples=1, edits=0), batch()
    action, _ = it.on_the_fly(rows.next_observation, rng(4), averaged=False)
    assert torch.equal(action, it.base.sample(rows.next_observation, rng(4), averaged=False))
    q = q_values(it.targets, rows.next_observation, action)
    drawn, targets = spied(monkeypatch, "subset"), spied(monkeypatch, "soft_target")
    it.critic_step(rows, rng(4))
    want = rows.reward + 0.99 * q[drawn[1][2]].amin(0)
    torch.testing.assert_close(targets[0][2], want)


def test_the_choice_is_never_worse_than_the_best_sample():
    it, seen = learner(samples=4, edits=4, subset=4), batch().observation
    action, edited = it.on_the_fly(seen, rng(3), averaged=True)
    plain = learner(samples=4, edits=0, subset=4).on_the_fly(seen, rng(3), averaged=True)[0]
    a, b = (q_values(it.targets, seen, x).amin(0) for x in (action, plain))
    assert (a >= b).all() and (a > b).any() and edited.any()


def test_targets_of_ends(monkeypatch):
    it, calls = learner(), spied(monkeypatch, "soft_target")
    for terminated, truncated in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        it.critic_step(batch(terminated=terminated, truncated=truncated), rng(7))
    reward = batch().reward
    assert torch.equal(calls[0][2], reward)
    for args, _, y in calls[1:]:
        assert (y - reward - 0.99 * args[2].amin(0)).abs().max() < 1e-6 and (y != reward).any()


def test_who_gets_which_gradient():
    it, rows = learner(), batch()
    parts = {"base": it.base, "edit": it.edit, "critics": it.critics}
    before = {k: weights(m) for k, m in parts.items()}
    it.critic_step(rows, rng())
    assert same(before["base"], it.base) and same(before["edit"], it.edit) and not same(before["critics"], it.critics)
    before = {k: weights(m) for k, m in parts.items()}
    for p in it.critics.parameters():
        p.grad = None
    it.edit_step(rows, rng())
    assert same(before["base"], it.base) and same(before["critics"], it.critics) and not same(before["edit"], it.edit)
    assert all(p.grad is None for p in [*it.critics.parameters(), *it.base.parameters()])
    assert all(p.requires_grad for p in it.critics.parameters())


def test_one_step_of_the_edit_raises_the_critics_on_replay_actions():
    """α = 0: the edit climbs the mean of all online critics from the replay's actions."""
    it, rows = learner(alpha=1e-8, lr=3e-3), batch(256)
    it.targets.load_state_dict({k: torch.zeros_like(v) for k, v in it.targets.state_dict().items()})

    def value():
        mode = it.edit.mode(torch.cat([rows.observation, rows.action], 1))
        return float(q_values(it.critics, rows.observation, expo.edited(rows.action, mode, 0.3)).mean().detach())

    start = value()
    for i in range(40):
        it.edit_step(rows, rng(i))
    assert value() > start + 0.01


def test_order_of_updates(monkeypatch):
    it, order = learner(), []
    for name in ("critic_step", "edit_step"):
        real = getattr(it, name)
        monkeypatch.setattr(it, name, lambda b, g, real=real, name=name: order.append((name, b)) or real(b, g))
    real = expo.imitate
    monkeypatch.setattr(expo, "imitate", lambda p, o, b, g, r: order.append(("imitate", b)) or real(p, o, b, g, r))
    batches = [batch(8), batch(8), batch(8)]
    log = it.update(batches, rng())
    assert [n for n, _ in order] == ["critic_step"] * 3 + ["imitate", "edit_step"]
    assert [b for _, b in order] == [*batches, batches[-1], batches[-1]]
    assert {"loss/critic", "loss/base", "loss/edit", "alpha", "entropy", "q/mean", "edited"} == log.keys()


def test_without_edits_nothing_of_them_is_trained():
    it = learner(edits=0)
    before, alpha = weights(it.edit), float(it.log_alpha.detach())
    log = it.update([batch()], rng())
    assert same(before, it.edit) and float(it.log_alpha.detach()) == alpha and log["edited"] == 0
    assert "loss/edit" not in log


def test_a_frozen_edit_is_noise_around_samples():
    """With π_e frozen training is best-of-(N + N_e), N_e of them with noise: critics and base agree bit for bit with a
    learner whose edit is not updated at all."""
    frozen, plain = learner(), learner()
    for group in frozen.optimisers["edit_optimiser"].param_groups:
        group["lr"] = 0.0
    plain.edit_step = lambda b, g: {}
    for i in range(3):
        for it in (frozen, plain):
            it.update([batch()], rng(i))
    assert same(weights(frozen.critics), plain.critics) and same(weights(frozen.base), plain.base)


def test_acting_uses_the_average_and_targets_the_trained_base(monkeypatch):
    it, asked = learner(), spied(monkeypatch, "candidates")
    it.act(batch().observation, rng(), explore=True)
    it.act(batch().observation, rng(), explore=False)
    it.critic_step(batch(), rng())
    assert [k["averaged"] for _, k, _ in asked] == [True, True, False]
    assert torch.equal(it.act(batch().observation, rng(), explore=True).executed,
                       it.act(batch().observation, rng(), explore=False).executed)  # fmt: skip


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"beta": 0.0}, "beta"),
        ({"edits": 9}, "edits"),
        ({"samples": 0, "edits": 0}, "samples"),
        ({"subset": 11}, "subset"),
    ],
)
def test_what_is_refused(knobs, match):
    with pytest.raises(InputError, match=match):
        plan("expo-expressive", ControlSettings("gym/Pendulum-v1", demos="x.safetensors"), knobs)
    with pytest.raises(InputError, match="demos"):
        plan("expo-expressive", ControlSettings("gym/Pendulum-v1"))


def test_warm_up_depends_on_pre_training():
    assert expo_expressive().warmup == 5000
    assert expo_expressive(base_updates=10).warmup == 0
    assert expo_expressive(base="folder").warmup == 0
    assert expo_expressive(base_updates=10, warmup=7).warmup == 7
    assert expo_expressive(edits=0, beta=0.0).learner.edits == 0


def test_the_command_line_and_an_exact_resume(tmp_path):
    knobs = SMALL | BASE | {"base_updates": 10, "updates": 2, "batch": 16, "warmup": 5}
    common = {
        "task": "reacher-sparse",
        "demos": "scripted:episodes=2",
        "trackers": (),
        "eval_episodes": 1,
        "quiet": True,
    }
    whole = train_controller("expo-expressive", knobs=knobs, steps=40, out=tmp_path / "whole", **common)
    train_controller("expo-expressive", knobs=knobs, steps=20, out=tmp_path / "half", **common)
    again = resume(tmp_path / "half", steps=40, quiet=True)
    for name, value in tensors_of(whole.learner).items():
        assert torch.equal(value, tensors_of(again.learner)[name]), name
    losses = [r["loss/critic"] for r in whole.rows if "loss/critic" in r]
    assert losses and np.isfinite(losses).all()
    command = ["train", "expo-expressive", "--task", "reacher-sparse", "--demos", "scripted:episodes=2", "--steps", "10",
               "--expo-expressive.warmup", "4", "--expo-expressive.hidden", "16", "--expo-expressive.updates", "1",
               "--expo-expressive.base-policy", "ddpm", "--expo-expressive.base-hidden", "16", "--trackers", "--eval-episodes", "1",
               "--out", str(tmp_path / "cli"), "--quiet"]  # fmt: skip
    assert main(command) == 0
    assert main(["show", "expo-expressive"]) == 0


def test_it_chooses_among_chunks_of_actions():
    """Samples, edits and entropy target are those of all numbers of a chunk."""
    given = {
        "hidden": (8,),
        "base_hidden": (8,),
        "ensemble": 2,
        "samples": 2,
        "edits": 2,
        "denoising_steps": 2,
        "chunk": 3,
    }
    p = plan("expo-expressive", ControlSettings("reacher-sparse", demos="scripted:episodes=1"), given)
    world = World(p)
    world.begin()
    action = world.learner.act(world.environments.current, torch.Generator().manual_seed(0), explore=True).executed
    assert action.shape == (1, 6) and world.loop.offline.actions == 6
    s = world.environments.step(action)
    assert s.took.tolist() == [3] and world.environments.counts.tolist() == [3]
    batch = [world.loop.offline.sample(8, torch.Generator().manual_seed(1))]
    assert "loss/edit" in world.learner.update(batch, torch.Generator().manual_seed(2))
    world.environments.close()
