"""HARPG: Hessian-vector products of whole trajectories, the correction of the average, the two rollouts of an iteration."""

import itertools
import json

import pytest
import torch

from anypolicy.families.control import ControlSettings, plan
from anypolicy.families.control import World as ControlWorld
from anypolicy.learners.trajectories import flat
from anypolicy.methods.control.harpg import HessianAided, between
from anypolicy.parts.direction import Plain, Step, Trail, ascend, begin
from anypolicy.parts.score import hessian_product, positions, score_gradient
from anypolicy.tasks.control.linear_quadratic import HORIZON, Oracle, logp, mean_returns, sample
from tests.helpers import recipe
from tests.methods.test_npg_igt import BOX, CHOICES, quadratic, rollout

harpg = recipe("harpg")
npg_igt = recipe("npg-igt")

__all__ = ["quadratic"]


def test_schedules():
    for t, eta in [(0, 1), (1, 0.666667), (2, 0.5), (10, 0.166667)]:
        assert HessianAided().eta(t) == pytest.approx(eta, abs=1e-6)
    assert harpg(gamma0=0.3).learner(BOX, 0).settings.step == Step(0.3, 1.0, True)
    assert harpg(gamma0=0.3, normalised=False).learner(BOX, 0).settings.step.gamma(6) == pytest.approx(0.15)
    assert HessianAided(4.0).eta(2) == 1


def test_the_exact_product_gives_the_exact_gradient(quadratic):
    theta, gradient, product = quadratic
    run = ascend(HessianAided(), Step(0.3), theta, gradient, product, torch.Generator().manual_seed(0))
    seen = list(itertools.islice(run, 300))
    assert max(float((d - gradient(trail.theta)).abs().max()) for trail, d in seen) <= 1e-15
    assert seen[1][0].theta.tolist() == pytest.approx([0.327239, -0.408957], abs=1e-6)
    assert seen[1][1].tolist() == pytest.approx([0.141043, 0.272577], abs=1e-6)
    assert seen[3][1].tolist() == pytest.approx([0.024163, 0.021610], abs=1e-6)


def test_without_averaging_it_is_plain_and_takes_no_product(quadratic):
    theta, gradient, _ = quadratic

    def never(at, v):
        raise AssertionError("a product where it has no weight")

    ways = [[trail.theta for trail, _ in itertools.islice(ascend(e, Step(0.3), theta, gradient, never,
            torch.Generator()), 20)] for e in (Plain(), HessianAided(1.0, power=0.0))]  # fmt: skip
    assert torch.equal(torch.stack(ways[0]), torch.stack(ways[1]))


def test_the_point_between(f64):
    now, before = f64(1.0, 2.0), f64(0.0, 4.0)
    assert between(now, before, f64([0.25])).tolist() == [0.25, 3.5]
    estimator, trail = HessianAided(), Trail(now, before, f64(1.0, 1.0), 2)
    assert torch.equal(estimator.gradient_at(trail), now)
    assert estimator.product_at(trail, f64([0.25])).tolist() == [0.25, 3.5]
    assert estimator.product_at(begin(now), f64([0.25])) is None
    assert estimator.direction(trail, f64(0.0, 2.0), f64(3.0, -1.0)).tolist() == [2, 1]  # η = ½


def test_one_trajectory_by_hand(f64):
    """ln π = −(a − θs)²/2 with θ = ½, s = (1, 2), a = (1, ½), r = (1, −2), γ = 0.9."""
    s, a, reward = f64(1.0, 2.0), f64(1.0, 0.5), f64(1.0, -2.0)
    score, theta = lambda x: -(a - x * s).square() / 2, f64([0.5])
    weight = (0.9 ** torch.arange(2) * reward).flip(0).cumsum(0).flip(0)
    assert weight.tolist() == pytest.approx([-0.8, -1.8])
    whose = torch.zeros(2, dtype=torch.int64)
    assert score_gradient(score, theta, weight, 1).tolist() == pytest.approx([1.4])
    each = torch.func.jacrev(score)(theta).flatten()
    assert each.tolist() == pytest.approx([0.5, -1.0])
    assert hessian_product(score, theta, f64([1.0]), weight, whose, 1).tolist() == pytest.approx([7.3])
    assert hessian_product(score, theta, f64([0.1]), weight, whose, 1).tolist() == pytest.approx([0.73])
    only = hessian_product(score, theta, f64([0.1]), weight, whose, 1, curvature_only=True)
    assert only.tolist() == pytest.approx([0.8])
    assert float(2 * only - 0.73) == pytest.approx(0.87)  # what the flipped sign would give


def test_products_are_averaged_after_they_are_made(f64):
    """Of three trajectories of different lengths: the mean of their own products, not a product of means."""
    rng, lengths = torch.Generator().manual_seed(0), [2, 4, 1]
    s = torch.randn(7, 3, generator=rng, dtype=torch.float64)
    a, weight = (torch.randn(7, generator=rng, dtype=torch.float64) for _ in range(2))
    theta, v = (torch.randn(3, generator=rng, dtype=torch.float64) for _ in range(2))
    ended = torch.zeros(7, dtype=torch.bool)
    ended[torch.tensor(lengths).cumsum(0) - 1] = True
    whose, time = positions(ended)
    assert whose.tolist() == [0, 0, 1, 1, 1, 1, 2] and time.tolist() == [0, 1, 0, 1, 2, 3, 0]

    def part(rows):
        return lambda x: -((a[rows] - (s[rows] @ x).tanh()).square()) / 2

    everything = part(slice(None))
    together = hessian_product(everything, theta, v, weight, whose, 3)
    one_by_one, mixed, gradients = [], [], []
    for i in range(3):
        rows = whose == i
        score, w = part(rows), weight[rows]
        phi = torch.func.grad(lambda x, score=score, w=w: (w * score(x)).sum())
        log_p = torch.func.grad(lambda x, score=score: score(x).sum())
        one_by_one.append(phi(theta) * (log_p(theta) @ v) + torch.func.jacrev(phi)(theta) @ v)
        mixed.append(log_p(theta) @ v)
        gradients.append(phi(theta))
    assert torch.allclose(together, torch.stack(one_by_one).mean(0), atol=1e-13)
    assert torch.allclose(score_gradient(everything, theta, weight, 3), torch.stack(gradients).mean(0), atol=1e-14)
    curvature = hessian_product(everything, theta, v, weight, whose, 3, curvature_only=True)
    of_means = torch.stack(gradients).mean(0) * torch.stack(mixed).mean() + curvature
    assert not torch.allclose(together, of_means, atol=1e-3)


@pytest.fixture(scope="module")
def monte_carlo():
    """Means over 50 batches of 8,000 trajectories at θ = (0.3, 0.4), v = (0.7, −0.2), with and without a baseline."""
    theta, v = (torch.tensor(x, dtype=torch.float64) for x in ([0.3, 0.4], [0.7, -0.2]))
    rng, n = torch.Generator().manual_seed(0), 8000
    baselines = {"none": torch.zeros(HORIZON), "mean": mean_returns(0 * theta, 2000, rng)}
    whose, out = torch.arange(n).repeat_interleave(HORIZON), {}
    for _ in range(50):
        seen = sample(theta.expand(n, 2), rng)
        score = lambda x, seen=seen: logp(x.expand(n, 2), seen).flatten()  # noqa: E731
        for name, baseline in baselines.items():
            weight = (seen.returns() - baseline).flatten()
            out.setdefault(f"{name}/gradient", []).append(score_gradient(score, theta, weight, n))
            out.setdefault(f"{name}/product", []).append(hessian_product(score, theta, v, weight, whose, n))
        only = hessian_product(score, theta, v, weight, whose, n, curvature_only=True)
        out.setdefault("curvature", []).append(only)
    return {k: torch.stack(x) for k, x in out.items()}


def interval(batches):
    """Mean and its standard error."""
    return batches.mean(0), batches.std(0) / len(batches) ** 0.5


@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_unbiased(f64, monte_carlo, baseline):
    gradient, error = interval(monte_carlo[f"{baseline}/gradient"])
    assert ((gradient - f64(0.1727, 1.1428)).abs() < 4 * error).all() and (error < 0.05).all()
    product, error = interval(monte_carlo[f"{baseline}/product"])
    assert ((product - f64(-3.4390, 1.1533)).abs() < 4 * error).all() and (error < 0.6).all()


def test_curvature_alone_is_biased_and_less_noisy(f64, monte_carlo):
    only, error = interval(monte_carlo["curvature"])
    assert ((only - f64(-3.4390, 1.1533)).abs() > 10 * error).all()
    assert (error < interval(monte_carlo["mean/product"])[1]).all()


def test_a_baseline_changes_the_variance_only(monte_carlo):
    for name in ("gradient", "product"):
        with_, without = monte_carlo[f"mean/{name}"], monte_carlo[f"none/{name}"]
        assert (with_.std(0) < 0.9 * without.std(0)).all()
        difference, error = interval(with_ - without)
        assert (difference.abs() < 4 * error).all()


def test_blocks_are_independent_runs(f64):
    """The oracle's runs do not see each other."""
    theta = f64([0.3, 0.4], [0.0, 0.0], [0.5, 1.1])
    v = f64([0.7, -0.2], [0.1, 0.1], [0.0, 0.3])
    together = Oracle(torch.zeros(HORIZON), torch.Generator().manual_seed(1))
    seen = sample(theta, torch.Generator().manual_seed(1))
    product, gradient = together.product(theta, v), None
    gradient = Oracle(torch.zeros(HORIZON), torch.Generator().manual_seed(1)).gradient(theta)
    for i in range(3):
        mine = type(seen)(*(x[i : i + 1] for x in seen))
        score = lambda x, mine=mine: logp(x[None], mine).flatten()  # noqa: E731
        weight, whose = mine.returns().flatten(), torch.zeros(HORIZON, dtype=torch.int64)
        assert torch.allclose(product[i], hessian_product(score, theta[i], v[i], weight, whose, 1), atol=1e-9)
        assert torch.allclose(gradient[i], score_gradient(score, theta[i], weight, 1), atol=1e-9)


def test_two_rollouts_an_iteration():
    learner, rng = harpg(gamma0=0.5, baseline="none").learner(CHOICES, 0), torch.Generator().manual_seed(0)
    start = flat(learner.actor)
    learner.update([rollout([3, 4], 0)], rng)  # t = 0: nothing has moved, one rollout is enough
    first = flat(learner.actor)
    assert int(learner.ascent.t) == 1 and float((first - start).norm()) == pytest.approx(0.5, rel=1e-5)
    assert torch.equal(flat(learner.sampler), first)

    q = torch.rand(1, generator=torch.Generator().manual_seed(7))
    learner.update([rollout([2, 5], 1)], torch.Generator().manual_seed(7))
    assert learner.ascent.waiting and torch.equal(flat(learner.actor), first)
    assert torch.equal(flat(learner.sampler), between(first, start, q))

    gradient, last, batch = learner.ascent.gradient.clone(), learner.ascent.direction.clone(), rollout([6, 1], 2)
    sampler = learner.sampler.requires_grad_(True)
    weight, score = learner.weigh(batch).weight, sampler(batch.observation.squeeze(1)).logp(batch.action.squeeze(1))
    parameters, product = list(sampler.parameters()), 0
    for rows in (slice(0, 6), slice(6, 7)):  # ∇(∇Φ · v) + (∇ln p · v) ∇Φ by double backward, a trajectory at a time
        phi = torch.autograd.grad((weight[rows] * score[rows]).sum(), parameters, create_graph=True)
        log_p = torch.autograd.grad(score[rows].sum(), parameters, retain_graph=True)
        phi, log_p = (torch.cat([x.flatten() for x in part]) for part in (phi, log_p))
        curvature = torch.autograd.grad(phi @ (first - start), parameters, retain_graph=True)
        product = product + torch.cat([x.flatten() for x in curvature]) + (log_p @ (first - start)) * phi.detach()
    learner.sampler.requires_grad_(False)
    learner.update([batch], rng)
    eta = HessianAided().eta(1)
    want = (1 - eta) * (last + product / 2) + eta * gradient
    assert torch.allclose(learner.ascent.direction, want, atol=1e-4)
    assert int(learner.ascent.t) == 2 and not learner.ascent.waiting
    assert float((flat(learner.actor) - first).norm()) == pytest.approx(0.5 * 2 / 3, rel=1e-5)
    assert torch.equal(flat(learner.sampler), flat(learner.actor))


def test_all_weight_on_the_newest_gradient_is_the_plain_method():
    """η₀ so large that η_t = 1: the parameters of NSGD, bit for bit, and one rollout an iteration."""
    learners = [npg_igt(direction="plain").learner(CHOICES, 0), harpg(eta0=1e6).learner(CHOICES, 0)]
    for seed in range(4):
        for learner in learners:
            learner.update([rollout([3, 4], seed)], torch.Generator().manual_seed(seed))
    assert torch.equal(flat(learners[0].actor), flat(learners[1].actor)) and int(learners[1].ascent.t) == 4


def test_curvature_only_is_another_estimator():
    learners = [harpg(hvp=hvp).learner(CHOICES, 0) for hvp in ("unbiased", "curvature_only")]
    for seed in range(3):
        for learner in learners:
            learner.update([rollout([3, 4], seed)], torch.Generator().manual_seed(seed))
    assert not torch.allclose(learners[0].ascent.direction, learners[1].ascent.direction, atol=1e-3)


def test_a_run_stopped_between_the_two_rollouts_goes_on():
    p = plan("harpg", ControlSettings("gym/CartPole-v1", threads=1), {"horizon": 20})
    whole, other = ControlWorld(p).loop, ControlWorld(p).loop
    while not whole.learner.ascent.waiting:
        whole.run(1)
    assert other.restore(json.loads(json.dumps(whole.state())), whole.tensors())
    for loop in (whole, other):
        loop.run(100)
    assert all(torch.equal(x, other.tensors()["learner"][k]) for k, x in whole.tensors()["learner"].items())


def test_gaussian_actors_have_products_too():
    learner, rng = harpg(baseline="none").learner(BOX, 0), torch.Generator().manual_seed(0)
    for seed in range(5):
        batch = rollout([3, 4], seed, BOX)
        log = learner.update([batch], rng)
    assert log["product/norm"] > 0 and flat(learner.actor).isfinite().all()
    assert float((learner.actor.log_std - 0).abs().max()) > 0
