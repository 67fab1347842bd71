"""N-PG-IGT: schedules, exactness on quadratics, step lengths, where it samples, bad numbers."""

import itertools
import json
import math

import pytest
import torch

from anypolicy import catalogue
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families.control import ControlSettings, plan, resume, train_controller
from anypolicy.families.control import World as ControlWorld
from anypolicy.learners.trajectories import flat
from anypolicy.methods.control.npg_igt import GradientTransport, lookahead
from anypolicy.parts.direction import Momentum, Plain, Step, Trail, ascend, begin
from anypolicy.tasks.control.environments import Space
from anypolicy.tasks.control.linear_quadratic import LinearQuadratic, Oracle, mean_returns, optimum, value
from tests.helpers import recipe

npg_igt = recipe("npg-igt")

CHOICES = Space(3, 2, True)
BOX = Space(2, 1, False, (-5.0,), (5.0,))


@pytest.fixture
def quadratic(f64):
    """∇J = Aθ + b."""
    a, b = torch.stack([f64(-2.0, 0.5), f64(0.5, -1.0)]), f64(1.0, -0.3)
    return f64(0.4, -0.7), lambda theta: theta @ a + b, lambda theta, v: v @ a


def test_schedules():
    step, igt = Step(1.0), GradientTransport()
    for t, gamma, eta, ahead in [(1, 0.666667, 0.722981, 0.383162), (2, 0.5, 0.574349, 0.741101),
                                 (10, 0.166667, 0.238495, 3.192963), (100, 2 / 102, None, 22.230370)]:  # fmt: skip
        assert step.gamma(t) == pytest.approx(gamma, abs=1e-6)
        got = igt.eta(t)
        assert eta is None or got == pytest.approx(eta, abs=1e-6)
        one, zero = torch.ones(1), torch.zeros(1)
        assert float(lookahead(one, zero, got)) - 1 == pytest.approx(ahead, rel=1e-6)
    assert igt.eta(0) == 1 and GradientTransport(0.5).eta(0) == 0.5 and GradientTransport(3.0).eta(1) == 1
    assert Momentum().eta(2) == pytest.approx(0.5 ** (2 / 3))
    assert Step(0.1, 2 / 3).gamma(14) == pytest.approx(0.1 * 8 ** (-2 / 3))


def test_the_first_steps_on_a_quadratic(quadratic):
    theta, gradient, product = quadratic
    run = ascend(GradientTransport(), Step(0.3), theta, gradient, product, torch.Generator())
    (t0, _), (t1, d1), (t2, _), (_, d3) = itertools.islice(run, 4)
    assert torch.equal(t0.theta, theta)
    assert t1.theta.tolist() == pytest.approx([0.327239, -0.408957], abs=1e-6)
    assert GradientTransport().gradient_at(t1).tolist() == pytest.approx([0.299360, -0.297441], abs=1e-6)
    assert d1.tolist() == pytest.approx([0.141043, 0.272577], abs=1e-6)
    assert t2.theta.tolist() == pytest.approx([0.419152, -0.231328], abs=1e-6)
    assert d3.tolist() == pytest.approx([0.024163, 0.021610], abs=1e-6)


def test_exact_on_quadratics_and_momentum_is_not(quadratic):
    theta, gradient, product = quadratic
    for estimator, exact in ((GradientTransport(), True), (Plain(), True), (Momentum(), False)):
        run = ascend(estimator, Step(0.3), theta, gradient, product, torch.Generator())
        worst = max(float((d - gradient(trail.theta)).abs().max()) for trail, d in itertools.islice(run, 300))
        assert (worst <= 1e-15) if exact else (worst > 0.05), (estimator, worst)


def test_without_averaging_it_is_plain(quadratic):
    """η ≡ 1: nothing is looked ahead, bit for bit."""
    theta, gradient, product = quadratic
    ways = [[trail.theta for trail, _ in itertools.islice(ascend(e, Step(0.3), theta, gradient, product,
            torch.Generator()), 20)] for e in (Plain(), GradientTransport(1.0, power=0.0))]  # fmt: skip
    assert torch.equal(torch.stack(ways[0]), torch.stack(ways[1]))


def test_step_lengths(f64):
    trail = Trail(f64(1.0, 1.0), f64(0.0, 0.0), f64(0.0, 0.0), 0)
    after = Step(0.2)(trail, f64(3.0, 4.0))
    assert (after.theta - trail.theta).tolist() == pytest.approx([0.12, 0.16], abs=1e-15)
    assert torch.equal(after.before, trail.theta) and after.t == 1
    assert torch.equal(Step(0.2)(trail, f64(0.0, 0.0)).theta, trail.theta)
    assert (Step(0.2, normalised=False)(trail, f64(3.0, 4.0)).theta - 1).tolist() == pytest.approx([0.6, 0.8])
    rows = begin(torch.zeros(3, 4, dtype=torch.float64))
    gone = Step(0.7)(rows, torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert gone.theta.norm(dim=-1).tolist() == pytest.approx([0.7] * 3, abs=1e-15)


def test_every_step_has_its_length(quadratic):
    theta, gradient, product = quadratic
    run, step = ascend(GradientTransport(), Step(0.3), theta, gradient, product, torch.Generator()), Step(0.3)
    for (a, _), (b, _) in itertools.pairwise(itertools.islice(run, 50)):
        assert float((b.theta - a.theta).norm()) == pytest.approx(step.gamma(a.t), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(f64, bad):
    with pytest.raises(InputError, match="finite"):
        Step(0.2)(begin(f64(1.0, 1.0)), f64(bad, 1.0))


def test_linear_quadratic(f64):
    assert float(value(f64(0.0, 0.0))) == pytest.approx(-4.601847, abs=1e-6)
    assert float(value(optimum())) == pytest.approx(-2.900166, abs=1e-6)
    at = f64(0.3, 0.4)
    assert torch.func.grad(value)(at).tolist() == pytest.approx([0.1727, 1.1428], abs=1e-4)
    assert (torch.func.hessian(value)(at) @ f64(0.7, -0.2)).tolist() == pytest.approx([-3.4390, 1.1533], abs=1e-4)
    returns = mean_returns(at, 100_000, torch.Generator().manual_seed(0))
    assert float(returns[0]) == pytest.approx(float(value(at)), abs=0.03)


def test_the_environment_is_that_system(f64):
    env = LinearQuadratic()
    x, _ = env.reset(seed=0)
    env.x = f64(1.0, -2.0).numpy()
    x, reward, terminated, truncated, _ = env.step(torch.tensor([0.5]).numpy())
    assert reward == pytest.approx(-(5 + 0.2 * 0.25)) and not terminated and not truncated
    assert x.tolist() == pytest.approx([0.9 - 0.4, -1.6 + 0.25])
    state = json.loads(json.dumps(env.get_state()))
    other = LinearQuadratic()
    other.set_state(state)
    assert other.step([0.1])[0].tolist() == env.step([0.1])[0].tolist()
    assert [env.step([0.0])[3] for _ in range(8)] == [False] * 7 + [True]


def test_it_climbs_the_linear_quadratic_system():
    start, rng = torch.zeros(16, 2, dtype=torch.float64), torch.Generator().manual_seed(0)
    oracle = Oracle(mean_returns(start[0], 2000, rng), rng)
    run = ascend(GradientTransport(), Step(0.3), start, oracle.gradient, oracle.product, rng)
    trail, _ = list(itertools.islice(run, 301))[-1]
    assert float((value(optimum()) - value(trail.theta)).median()) < 0.4  # 1.7 at the start


def rollout(lengths, seed=0, space=CHOICES, cut=()):
    """Whole episodes of the given lengths; those of `cut` are truncated."""
    rng, n = torch.Generator().manual_seed(seed), sum(lengths)
    last = torch.tensor(lengths).cumsum(0) - 1
    truncated = torch.zeros(n, 1)
    truncated[last[list(cut)]] = 1
    terminated = torch.zeros(n, 1)
    terminated[last] = 1
    terminated = terminated - truncated
    x = torch.randn(n + 1, 1, space.observations, generator=rng)
    action = torch.randint(2, (n, 1, 1), generator=rng).float()
    return Transitions(x[:-1], action, torch.randn(n, 1, generator=rng), x[1:], terminated, truncated,
                       torch.full((n, 1), 0.9))  # fmt: skip


def test_weights_of_the_steps():
    learner = npg_igt(discount=0.9, baseline="none").learner(CHOICES, 0)
    batch = rollout([2, 3], cut=[1])
    r = batch.reward.squeeze(1)
    seen = learner.weigh(batch)
    want = [r[0] + 0.9 * r[1], 0.9 * r[1], r[2] + 0.9 * r[3] + 0.81 * r[4], 0.9 * r[3] + 0.81 * r[4], 0.81 * r[4]]
    assert seen.weight.tolist() == pytest.approx([float(x) for x in want], abs=1e-6)
    assert seen.trajectory.tolist() == [0, 0, 1, 1, 1] and seen.trajectories == 2
    actor = learner.sampler(batch.observation.squeeze(1))
    got = seen.logp(flat(learner.sampler))
    assert torch.allclose(got, actor.logp(batch.action.squeeze(1)))


def test_the_baseline_knows_earlier_rollouts_only():
    learner = npg_igt().learner(CHOICES, 0)
    plain = npg_igt(baseline="none").learner(CHOICES, 0)
    batch = rollout([2, 3])
    assert torch.equal(learner.weigh(batch).weight, plain.weigh(batch).weight)
    assert not torch.equal(learner.weigh(batch).weight, plain.weigh(batch).weight)
    baseline = npg_igt(memory=0.95).learner(CHOICES, 0).baseline
    observation, time = torch.randn(400, 3, generator=torch.Generator().manual_seed(1)), torch.arange(400) % 100
    for _ in range(20):
        baseline.fit(observation, time, 3 + 2 * observation[:, 0] - time / 50)
    assert float((baseline(observation, time) - (3 + 2 * observation[:, 0] - time / 50)).abs().max()) < 0.05


def test_it_samples_ahead_and_evaluates_what_is_kept():
    learner = npg_igt(gamma0=0.5, baseline="none").learner(CHOICES, 0)
    rng, estimator = torch.Generator().manual_seed(0), GradientTransport()
    assert torch.equal(flat(learner.sampler), flat(learner.actor))
    for t in range(4):
        before = flat(learner.actor)
        log = learner.update([rollout([3, 4], t)], rng)
        after = flat(learner.actor)
        assert float((after - before).norm()) == pytest.approx(0.5 * 2 / (t + 2), rel=1e-5)
        assert torch.equal(flat(learner.sampler), lookahead(after, before, estimator.eta(t + 1)))
        assert torch.equal(learner.ascent.before, before) and int(learner.ascent.t) == t + 1
        assert log["sampler/distance"] == pytest.approx(float((flat(learner.sampler) - after).norm()))
    x = torch.randn(50, 3, generator=rng)
    assert torch.equal(learner.act(x, rng, explore=False).stored, learner.actor(x).mode())
    again = [torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)]
    assert torch.equal(learner.act(x, again[0], explore=True).stored, learner.sampler(x).sample(again[1]))


def test_one_iteration_agrees_with_the_estimator():
    """The gradient is that of autograd at θ̃_t, summed over time and averaged over trajectories."""
    learner = npg_igt(baseline="none").learner(CHOICES, 0)
    rng = torch.Generator().manual_seed(0)
    learner.update([rollout([3, 4], 0)], rng)
    last, batch = learner.ascent.direction.clone(), rollout([2, 5, 1], 1)
    sampler = learner.sampler.requires_grad_(True)
    weight = learner.weigh(batch).weight
    loss = (weight * sampler(batch.observation.squeeze(1)).logp(batch.action.squeeze(1))).sum() / 3
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(sampler.parameters()))])
    learner.update([batch], rng)
    eta = GradientTransport().eta(1)
    assert torch.allclose(learner.ascent.direction, (1 - eta) * last + eta * gradient, atol=1e-6)


def test_a_nan_leaves_the_parameters_alone():
    learner = npg_igt().learner(CHOICES, 0)
    batch = rollout([3, 4])
    batch.reward[2] = math.nan
    before = flat(learner.actor)
    with pytest.raises(InputError, match="finite"):
        learner.update([batch], torch.Generator())
    assert torch.equal(flat(learner.actor), before) and int(learner.ascent.t) == 0


def test_no_reward_moves_nothing():
    learner = npg_igt().learner(CHOICES, 0)
    batch = rollout([3, 4])
    batch.reward.zero_()
    before = flat(learner.actor)
    for _ in range(3):
        learner.update([batch], torch.Generator())
    assert torch.equal(flat(learner.actor), before)


def test_box_actions_are_clipped_only_where_they_are_executed():
    learner = npg_igt().learner(BOX, 0)
    acted = learner.act(torch.zeros(500, 2), torch.Generator().manual_seed(0), explore=True)
    assert acted.executed.abs().max() == 1 and acted.stored.abs().max() > 1
    assert torch.equal(acted.executed, acted.stored.clamp(-1, 1))


def test_networks_of_the_paper():
    assert [tuple(w.shape) for w in npg_igt().learner(CHOICES, 0).actor.net.weights] == [(3, 32), (32, 32), (32, 2)]
    assert [tuple(w.shape) for w in npg_igt().learner(BOX, 0).actor.net.weights] == [(2, 64), (64, 64), (64, 1)]
    assert len(npg_igt(hidden=(5,)).learner(BOX, 0).actor.net.weights) == 2


@pytest.mark.parametrize("knob", ["gamma0", "eta0", "batch", "horizon"])
def test_impossible_settings(knob):
    with pytest.raises(InputError, match=knob):
        plan("npg-igt", ControlSettings("gym/CartPole-v1"), {knob: 0})


@pytest.mark.parametrize("task", ["gym/CartPole-v1", "linear-quadratic"])
@pytest.mark.parametrize("slug", ["npg-igt", "harpg"])
def test_runs_resume_to_the_same_bits(tmp_path, slug, task):
    settings = {"task": task, "trackers": (), "eval_episodes": 2, "knobs": {"batch": 2}, "quiet": True, "envs": 2}
    whole = train_controller(slug, steps=600, out=tmp_path / "whole", eval_every=200, checkpoint_every=100, **settings)
    train_controller(slug, steps=300, out=tmp_path / "part", eval_every=200, checkpoint_every=100, **settings)
    part = resume(tmp_path / "part", steps=600, quiet=True)
    for name, module in whole.learner.modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, part.learner.modules[name].state_dict()[key]), (name, key)
    assert int(whole.learner.ascent.t) > 2


def test_the_rivals_are_there():
    for direction, kind in (("igt", GradientTransport), ("momentum", Momentum), ("plain", Plain)):
        assert isinstance(npg_igt(direction=direction).learner(BOX, 0).settings.estimator, kind)
    assert npg_igt(direction="plain", normalised=False).learner(BOX, 0).settings.step == Step(0.1, 2 / 3, False)


def test_it_learns_from_the_catalogue():
    """Cart-pole, 30 updates of 4 episodes: the poles stand longer."""
    p = plan("npg-igt", ControlSettings("gym/CartPole-v1", threads=1, envs=4), {"gamma0": 1.0, "hidden": (32,)})
    world = ControlWorld(p)
    first = world.evaluate(0)[0]["eval/return"]
    for _ in range(12):
        log = world.loop.run(500)
    assert world.evaluate(1)[0]["eval/return"] > first + 20
    assert {"direction/norm", "sampler/distance"} <= set(catalogue.get("npg-igt", "control").card.metrics) & set(log)
