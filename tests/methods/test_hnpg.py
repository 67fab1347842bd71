"""HNPG: worked numbers, the update without offline data against a plain TRPO, resume, degenerate cases."""

import json
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.optim import Adam

from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families.control import ControlSettings, World, plan, resume, train_controller
from anypolicy.learners.recipe import OnPolicyRecipe
from anypolicy.loops.choose import loop_of
from anypolicy.methods.control.hnpg import hac, hybrid_loss, hybrid_table
from anypolicy.parts.td import generalised_advantage
from anypolicy.parts.trust_region import backtrack, fisher_product, trust_region_step
from anypolicy.tasks.control.combination_lock import Lock, behaviour_data, main
from anypolicy.tasks.control.environments import Space
from tests.helpers import recipe

hnpg = recipe("hnpg")

LOCK = "combination-lock:horizon=3"


@pytest.mark.parametrize(("weight", "want"), [(0.0, 3.0), (1.0, 2.5), (4.0, 2.2)])
def test_hybrid_regression_of_a_constant(f64, weight, want):
    targets, returns, cell = f64(2.0, 2.0, 5.0), f64(1.0, 3.0), torch.zeros(5, dtype=torch.long)
    got = hybrid_table(cell[:3], targets, cell[:2], returns, 1, weight)
    assert got.tolist() == pytest.approx([want])
    f = got.clone().requires_grad_()
    hybrid_loss(f - targets, f - returns, weight).backward()
    assert float(f.grad) == pytest.approx(0, abs=1e-12)
    assert float(hybrid_loss(f64(2.0, 2.0), f64([3.0]), 0.5)) == pytest.approx(4 + 4.5)
    assert float(hybrid_loss(f64([]), f64([3.0]), 0.5)) == 4.5 and float(hybrid_loss(f64([2.0]), f64([]), 0.5)) == 4


def test_cells_are_fitted_apart(f64):
    off, on = torch.tensor([0, 0, 1]), torch.tensor([1, 2])
    got = hybrid_table(off, f64(1.0, 3.0, 6.0), on, f64(2.0, 7.0), 4, 2.0)
    assert got.tolist() == pytest.approx([2.0, (6 / 3 + 2 * 2 / 2) / (1 / 3 + 1), 7.0, 0.0])
    assert hybrid_table(off, f64(1.0, 3.0, 6.0), on[:0], f64([]), 3, 2.0).tolist() == pytest.approx([2.0, 6.0, 0.0])


@pytest.mark.parametrize(
    ("eta", "want"),
    [(0.5, (0.448060, 0.443235, 0.108705)), (2.0, (0.182230, 0.807905, 0.009865)), (0.0, (0.5, 0.3, 0.2))],
)
def test_exact_update_of_a_table(f64, eta, want):
    policy, f = f64(0.5, 0.3, 0.2), f64(1.0, 2.0, 0.0)
    assert hac(policy, f, eta).tolist() == pytest.approx(list(want), abs=1e-6)
    torch.testing.assert_close(hac(policy, f + 7.5, eta), hac(policy, f, eta))


def test_tables_on_a_chain_learn_from_offline_data_what_rollouts_never_show():
    """A lock of three steps and four choices, all right choices 0: its states are 0 (good) and 1 (fallen); data of the
    right path, returns of the present policy. Alternating hybrid fits and exact updates open it; returns alone, of
    rollouts that never open it, do not."""
    horizon, choices = 3, 4
    off_a, rng = torch.tensor([0, 0, 1, 2, 3]), torch.Generator().manual_seed(0)
    for both in (True, False):
        policy = torch.full((horizon, 2, choices), 1 / choices, dtype=torch.float64)
        for _ in range(200):
            f, value = torch.zeros_like(policy), torch.zeros(2, dtype=torch.float64)
            for h in reversed(range(horizon)):
                last = float(h == horizon - 1)
                target = torch.where(off_a == 0, last + (1 - last) * value[0], 0.05 * last + (1 - last) * value[1])
                # on-policy: everything has fallen, at whatever choice, and gets 0.05
                on = choices + torch.randint(choices, (40,), generator=rng)
                fallen = torch.full((40,), 0.05, dtype=torch.float64)
                off = off_a if both else off_a[:0]
                f[h] = hybrid_table(off, target[: len(off)], on, fallen, 2 * choices, 1.0).view(2, choices)
                value = (policy[h] * f[h]).sum(-1)
            policy = hac(policy, f, 0.5)
        opened = float(policy[:, 0, 0].prod())
        assert opened > 0.99 if both else opened == pytest.approx(choices**-horizon)


def test_returns_and_advantages_without_discount(f64):
    r, v, ends = f64([[0.0], [0.0], [1.0]]), f64([[0.2], [0.5], [0.6]]), f64([[0.0], [0.0], [1.0]])
    none = torch.zeros_like(r)
    assert generalised_advantage(r, none, none, ends, none, 1.0, 1.0).flatten().tolist() == [1, 1, 1]
    after = torch.cat([v[1:], none[:1]])
    got = generalised_advantage(r, v, after, ends, none, 1.0, 0.97)
    assert got.flatten().tolist() == pytest.approx([0.773360, 0.488, 0.4], abs=1e-6)


# --- the learner ---------------------------------------------------------------------------------------------------------
def replay(horizon: int, episodes: int = 50) -> Replay:
    data = [e.transitions(1.0) for e in behaviour_data(Lock(horizon, 0, 0.1), episodes, 0)]
    out = Replay(horizon * episodes, data[0].observation.shape[1], 10)
    for t in data:
        out.add(t)
    return out


def rollout(learner, space: Space, steps: int, copies: int, seed: int, ends=None) -> Transitions:
    """Observations at random; the step counts up and begins anew after an end, by default after the last step."""
    rng, rows, at = torch.Generator().manual_seed(seed), [], torch.zeros(copies)
    for t in range(steps):
        now = torch.cat([torch.randn(copies, space.observations - 1, generator=rng), at[:, None]], 1)
        acted = learner.act(now, rng, explore=True)
        terminated, truncated = (at == space.steps - 1).float(), torch.zeros(copies)
        for kind, where in (ends or {}).get(t, {}).items():
            (terminated if kind == "terminated" else truncated)[where] = 1
        then = torch.cat([torch.randn(copies, space.observations - 1, generator=rng), at[:, None] + 1], 1)
        reward = torch.rand(copies, generator=rng)
        rows.append(Transitions(now, acted.stored, reward, then, terminated, truncated, torch.ones(copies)))
        at = torch.where(terminated + truncated > 0, 0, at + 1)
    return Transitions(*(torch.stack([getattr(t, n) for t in rows]) for n in Transitions.__dataclass_fields__))


SPACE = Space(9, 10, False, (-10.0,) * 10, (10.0,) * 10, steps=3)


def numbers(learner) -> list[torch.Tensor]:
    return [p.detach().clone() for m in learner.modules.values() for p in m.parameters()]


def test_start():
    learner = hnpg().learner(SPACE, 0)
    assert all(p.dtype == torch.float64 for p in numbers(learner))
    actor, critic = learner.actors.at[0], learner.critics.at[2]
    assert actor.log_std.tolist() == [0.0] * 10 and [w.shape[1] for w in actor.mean.weights] == [16, 16, 10]
    assert [w.shape[1] for w in critic.weights] == [64, 64, 1]
    for net in (actor.mean, critic):
        assert not net.biases[-1].any() and float(net.weights[-1].abs().max()) < 0.1 / net.weights[-1].shape[0] ** 0.5
        assert net.biases[0].any()
    assert len(learner.actors.at) == len(learner.critics.at) == 3


def test_actions_are_those_of_the_steps_own_policy_in_the_environments_units():
    learner = hnpg().learner(SPACE, 0)
    x, step = torch.randn(6, 8), torch.tensor([2.0, 0, 1, 1, 0, 2])
    acted = learner.act(torch.cat([x, step[:, None]], 1), torch.Generator(), explore=False)
    for i, h in enumerate(step.long().tolist()):
        torch.testing.assert_close(10 * acted.stored[i], learner.actors.at[h](x[i : i + 1].double()).loc[0])
    drawn = learner.act(torch.zeros(4000, 9), torch.Generator().manual_seed(0), explore=True).stored * 10
    torch.testing.assert_close(drawn.std(), torch.tensor(1.0).double(), atol=0.02, rtol=0)


def plain_trpo(actors, critics, t: Transitions, generator: torch.Generator, horizon: int) -> None:
    """The authors' loop without its offline terms, on whole episodes: returns, critics, advantages, one step each."""
    x, y = t.observation[..., :-1].double(), t.reward.double().flip(0).cumsum(0).flip(0)
    action = -10 + (t.action + 1) / 2 * 20
    copies = t.reward.shape[1]
    for h in reversed(range(horizon)):
        inputs = torch.cat([x[h], action[h]], 1)
        adam = Adam(critics[h].parameters(), 3e-4, fused=True)
        for _ in range(30):
            adam.zero_grad()
            (critics[h](inputs).squeeze(-1) - y[h]).square().mean().backward()
            adam.step()
    v = torch.zeros(horizon + 1, copies, dtype=torch.float64)
    for h in range(horizon):
        with torch.no_grad():
            many = x[h].repeat(10, 1)
            pi = actors[h](many)
            a = pi.loc + pi.scale * torch.randn(pi.loc.shape, generator=generator, dtype=torch.float64)
            v[h] = critics[h](torch.cat([many, a], 1)).view(10, copies).mean(0)
    advantage, carried = torch.zeros_like(v), torch.zeros(copies, dtype=torch.float64)
    for h in reversed(range(horizon)):
        advantage[h] = carried = t.reward[h].double() + v[h + 1] - v[h] + 0.97 * carried
    for h in range(horizon):
        parameters = list(actors[h].parameters())
        old = Normal(*(z.detach().clone() for z in (actors[h](x[h]).loc, actors[h](x[h]).scale)))

        def loss(theta=None, h=h, parameters=parameters, old=old):
            if theta is not None:
                torch.nn.utils.vector_to_parameters(theta, parameters)
            ratio = (actors[h](x[h]).log_prob(action[h]).sum(1) - old.log_prob(action[h]).sum(1)).exp()
            return -(advantage[h] * ratio).mean()

        start = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
        g = -torch.cat([z.flatten() for z in torch.autograd.grad(loss(), parameters)])
        kl = kl_divergence(old, actors[h](x[h])).sum(1).mean()
        step, expected = trust_region_step(g, fisher_product(kl, parameters, 0.1), 0.01)
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(backtrack(loss, start, step, expected)[0], parameters)


def test_without_offline_data_it_is_trpo_bit_for_bit():
    one, two = (hnpg(offline=False).learner(SPACE, 0) for _ in range(2))
    before = numbers(one)
    for i in range(3):
        t = rollout(one, SPACE, 3, 20, i)
        one.update([t], torch.Generator().manual_seed(i))
        plain_trpo(two.actors.at, two.critics.at, t, torch.Generator().manual_seed(i), 3)
        assert all(torch.equal(a, b) for a, b in zip(numbers(one), numbers(two), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(numbers(one), before, strict=True))


def test_offline_draws_leave_the_others_alone():
    """With and without offline data the generator of the update is at the same place afterwards."""
    after = []
    for offline in (True, False):
        learner, rng = hnpg(offline=offline).learner(SPACE, 0), torch.Generator().manual_seed(5)
        if offline:
            learner.offline = replay(3)
        learner.update([rollout(learner, SPACE, 3, 10, 0)], rng)
        after.append(rng.get_state())
    assert torch.equal(*after)


def test_each_offline_term_does_something():
    t, made = rollout(hnpg().learner(SPACE, 0), SPACE, 3, 10, 0), {}
    for name, weight, offline in (("both", 1.0, True), ("offline critic", 0.0, True), ("none", 1.0, False)):
        learner = hnpg(weight=weight, offline=offline).learner(SPACE, 0)
        if offline:
            learner.offline = replay(3)
        log = learner.update([t], torch.Generator().manual_seed(0))
        assert log["accepted"] > 0 and 0 < log["kl/step"] < 0.05
        made[name] = numbers(learner)
    pairs = [("both", "none"), ("both", "offline critic"), ("none", "offline critic")]
    assert not any(torch.equal(a, b) for p, q in pairs for a, b in zip(made[p], made[q], strict=True))


def test_the_policy_is_judged_by_its_own_actions_at_offline_states():
    """Without critic steps neither actions nor rewards of the data set matter, but its states do."""
    made = []
    for change in ({}, {"action": torch.zeros(150, 10), "reward": torch.ones(150)}, {"observation": None}):
        learner, data = hnpg(critic_steps=0).learner(SPACE, 0), replay(3).all()
        if "observation" in change:
            change = {"observation": torch.cat([torch.zeros(150, 8), data.observation[:, -1:]], 1)}
        learner.offline = Replay(150, 9, 10)
        learner.offline.add(replace(data, **change))
        learner.update([rollout(learner, SPACE, 3, 10, 0)], torch.Generator().manual_seed(0))
        made.append(torch.cat([p.flatten() for p in numbers(learner)]))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_the_offline_target_bootstraps_through_the_critic_of_this_sweep_and_a_sampled_action():
    """Critics of constant value c_h: targets are r + c_{h+1}, r at the last step, whatever the data set did."""
    learner = hnpg(critic_steps=1).learner(SPACE, 0)
    learner.offline = replay(3)
    for h in range(3):
        for p in learner.critics.at[h].parameters():
            torch.nn.init.zeros_(p)
        learner.critics.at[h].biases[-1].data.fill_(float(h))
    empty, off = torch.zeros(0, 10).double(), learner.pools[1].drawn(30, torch.Generator().manual_seed(0))
    ends = replace(off, terminated=torch.ones(30))
    for given, continues in ((off, 1.0), (ends, 0.0)):
        learner.critics.at[1].biases[-1].data.fill_(1.0)
        got = learner.fit(1, empty[:, :8], empty, empty[:, 0], given, torch.Generator())
        assert got == pytest.approx(float((1 - (given.reward + continues * 2)).square().mean()))
    last = learner.pools[2].drawn(30, torch.Generator().manual_seed(0))
    got = learner.fit(2, empty[:, :8], empty, empty[:, 0], last, torch.Generator())
    assert got == pytest.approx(float((2 - last.reward).square().mean()))


def test_a_truncation_bootstraps_and_a_termination_does_not():
    """Critics of constant value: rollouts that end inside an episode."""
    ends = {1: {"terminated": 0, "truncated": 1}}
    learner = hnpg(offline=False, critic_steps=1).learner(SPACE, 0)
    for h in range(3):
        for p in learner.critics.at[h].parameters():
            torch.nn.init.zeros_(p)
        learner.critics.at[h].biases[-1].data.fill_(10.0 * h)
    t = rollout(learner, SPACE, 4, 3, 0, ends)
    assert t.observation[..., -1].T.tolist() == [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 2, 0]]
    seen = {}
    monkey = learner.fit
    learner.fit = lambda h, x, a, y, off, g: seen.setdefault(h, y) is None or monkey(h, x, a, y, off, g)
    learner.update([t], torch.Generator().manual_seed(0))
    assert list(seen) == [2, 1, 0]
    r = t.reward.double()
    # rows in the order of time, then copy
    first = [r[0, 0] + r[1, 0], r[0, 1] + r[1, 1] + 20, r[0, 2] + r[1, 2] + r[2, 2]]
    first += [r[2, 0] + r[3, 0] + 20, r[2, 1] + r[3, 1] + 20, r[3, 2] + 10]
    torch.testing.assert_close(seen[0], torch.stack(first))
    torch.testing.assert_close(seen[2], r[2, 2:])


def test_steps_that_nobody_reaches_learn_from_offline_data_alone():
    """Every episode ends after its first step."""
    early = {t: {"terminated": slice(None)} for t in range(3)}
    for offline in (True, False):
        learner = hnpg(offline=offline).learner(SPACE, 0)
        if offline:
            learner.offline = replay(3)
        t, before = rollout(learner, SPACE, 3, 10, 0, early), numbers(learner)
        assert not t.observation[..., -1].any()
        learner.update([t], torch.Generator().manual_seed(0))
        after = numbers(learner)
        assert all(p.isfinite().all() for p in after)
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        per_actor = len(list(learner.actors.at[0].parameters()))
        assert all(moved[:per_actor]) and all(m == offline for m in moved[per_actor : 3 * per_actor])


def test_a_step_that_the_data_do_not_show_is_learnt_on_policy():
    learner = hnpg().learner(SPACE, 0)
    first = replay(3).all()
    first = first.select(first.observation[:, -1] == 0)
    learner.offline = Replay(100, 9, 10)
    learner.offline.add(first)
    assert list(map(len, learner.pools)) == [50, 0, 0]
    before = numbers(learner)
    learner.update([rollout(learner, SPACE, 3, 10, 0)], torch.Generator().manual_seed(0))
    assert all(p.isfinite().all() and not torch.equal(p, q) for p, q in zip(numbers(learner), before, strict=True))


# --- as a run ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def demos(tmp_path):
    main([str(tmp_path / "lock.safetensors"), "--horizon", "3", "--episodes", "300"])
    return str(tmp_path / "lock.safetensors")


def test_a_resumed_run_has_the_same_bits(tmp_path, demos):
    common = {"demos": demos, "envs": 10, "eval_every": 0, "checkpoint_every": 60, "quiet": True, "trackers": ()}
    whole = train_controller("hnpg", task=LOCK, steps=120, out=tmp_path / "whole", **common)
    train_controller("hnpg", task=LOCK, steps=60, out=tmp_path / "parts", **common)
    parts = resume(tmp_path / "parts", steps=120, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(numbers(whole.learner), numbers(parts.learner), strict=True))
    clean = [[{k: v for k, v in row.items() if "second" not in k and "time" not in k} for row in run.rows]
             for run in (whole, parts)]  # fmt: skip
    losses = [[row["loss/critic"] for row in rows if "loss/critic" in row] for rows in clean]
    assert losses[0] == losses[1] != []


def test_it_needs_what_it_needs(demos):
    with pytest.raises(InputError, match="demos"):
        plan("hnpg", ControlSettings(LOCK))
    with pytest.raises(InputError, match="demos"):
        plan("hnpg", ControlSettings(LOCK, demos=demos), {"offline": False})
    with pytest.raises(InputError, match="weight"):
        hnpg(offline=False, weight=0.0)
    with pytest.raises(InputError, match="time=true"):
        World(plan("hnpg", ControlSettings("gym/Pendulum-v1"), {"offline": False}))
    with pytest.raises(InputError, match="discrete"):
        World(plan("hnpg", ControlSettings("gym/CartPole-v1:time=true"), {"offline": False}))
    with pytest.raises(InputError, match="demos"):
        plan("hnpg", ControlSettings(LOCK))
    with pytest.raises(InputError, match="max_steps"):
        loop_of(hnpg(offline=False), None, None, SPACE, 0, horizon=None)


def test_a_rollout_is_one_episode_of_each_copy(demos):
    p = plan("hnpg", ControlSettings(LOCK, demos=demos))
    assert isinstance(p.recipe, OnPolicyRecipe) and p.recipe.horizon == 3 and p.unit == 600
    assert plan("hnpg", ControlSettings(LOCK, demos=demos), {"rollout": 7}).unit == 1400
    assert json.loads(json.dumps(p.written()))["knobs"] == {}
