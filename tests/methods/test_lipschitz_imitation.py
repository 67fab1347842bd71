"""Lipschitz imitation: the numbers of its sheet, bounds on hundreds of random instances, refusals."""

import json
import math

import pytest
import torch

from anypolicy.data.demonstrations import Episode, save_episodes
from anypolicy.errors import InputError
from anypolicy.families import exact
from anypolicy.methods.exact.lipschitz import Study, lipschitz_imitation, reports
from anypolicy.parts.lipschitz import (
    choose_alpha,
    closed_loop_gain,
    covered,
    covering_probability,
    covering_radius,
    error_at_data,
    extension,
    imitation_error,
    nearest,
    projected,
    regret_bound,
    samples_needed,
    spectral_norm,
    steepness,
    tube_radius,
)
from anypolicy.parts.reports import Solution
from anypolicy.policies.control.lipschitz import Extension, LipschitzMLP, fit
from anypolicy.policies.control.mlp import maxmin
from anypolicy.tasks.exact.linear_plants import (
    costly,
    directions,
    double_integrator,
    leading_away,
    load_plant,
    plant_of,
    sampled,
    simulate,
)

PLANT = double_integrator()
GAIN = closed_loop_gain(PLANT.a, PLANT.b, PLANT.k)
ELL = spectral_norm(PLANT.k)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def uniform(seed, *shape):
    return 2 * torch.rand(*shape, generator=rng(seed), dtype=torch.float64) - 1


# --- the extension ---------------------------------------------------------------------------------------------------
def test_extension_worked_by_hand(f64):
    x, u = f64(0.0, 1.0, 2.0)[:, None], f64(0.0, 3.0, 2.0)[:, None]
    for alpha, at_data, error, left in [(1.0, [1, 2, 2], 1.0, 1.0), (2.0, [0.5, 2.5, 2], 0.5, 0.5),
                                        (3.0, [0, 3, 2], 0.0, 0.0)]:  # fmt: skip
        assert extension(x, u, alpha, x)[:, 0].tolist() == at_data
        assert error_at_data(x, u, alpha) == error
        assert extension(x, u, alpha, f64(0.5, -1.0, 3.0)[:, None])[:, 0].tolist() == [1.5, left, 2.0]


@pytest.mark.parametrize("seed", range(60))
def test_extension_keeps_its_constant_and_its_error(seed):
    """For any data and any α; with several outputs the error of `error_at_data` is a bound."""
    n, m, alpha = 1 + seed % 3, 1 + seed % 2, 10 ** float(uniform(seed, 1))
    x, u, q = uniform(seed, 25, n), 2 * uniform(seed + 1000, 25, m), 3 * uniform(seed + 2000, 40, n)
    y = extension(x, u, alpha, q)
    assert bool((torch.pdist(y) <= alpha * torch.pdist(q) + 1e-12).all())
    worst = float((extension(x, u, alpha, x) - u).norm(dim=1).max())
    bound = error_at_data(x, u, alpha)
    assert worst <= bound + 1e-12
    if m == 1:
        gaps = (u - u.T).abs() - alpha * torch.cdist(x, x)
        assert worst == pytest.approx(bound, abs=1e-12) == max(float(gaps.max()) / 2, 0)


def test_no_function_with_the_constant_has_less_error():
    """Least over 200 other α-Lipschitz functions: extensions of shifted and scaled commands."""
    x, u = uniform(0, 12, 2), 3 * uniform(1, 12, 1)
    best = error_at_data(x, u, 0.7)
    for seed in range(200):
        other = extension(x, u + 0.5 * uniform(seed + 5, 12, 1), 0.7, x)
        assert float((other - u).abs().max()) >= best - 1e-12


def test_extension_at_its_limits(f64):
    x, u = uniform(0, 9, 2), uniform(1, 9, 1)
    assert torch.allclose(extension(x, u, 1e9, x), u, atol=1e-12)
    assert torch.allclose(extension(x[:1], u[:1], 3.0, x), u[:1].expand(9, 1), atol=1e-14)
    twice = f64(0.5, 0.5)[:, None]
    assert error_at_data(twice, f64(1.0, 4.0)[:, None], 100.0) == 1.5
    assert extension(twice, f64(1.0, 4.0)[:, None], 100.0, twice).tolist() == [[2.5], [2.5]]
    assert error_at_data(x[:1], u[:1], 1.0) == 0
    long = uniform(2, 700, 2)
    parts = torch.cat([extension(long, long[:, :1], 0.5, q) for q in long.split(9)])
    assert torch.equal(extension(long, long[:, :1], 0.5, long), parts)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_impossible_constants(alpha):
    for make in (lambda: Extension(uniform(0, 3, 2), uniform(1, 3, 1), alpha),
                 lambda: LipschitzMLP(2, 1, (4,), alpha, rng(0)),
                 lambda: lipschitz_imitation(alpha=alpha)):  # fmt: skip
        with pytest.raises(InputError, match="alpha"):
            make()


# --- the network -----------------------------------------------------------------------------------------------------
def test_spectral_norms(f64):
    first, last = f64([[3.0, 0.0], [4.0, 1.0]]), f64([[1.0, 2.0]])
    norms = spectral_norm(first), spectral_norm(last)
    assert norms == (pytest.approx(5.064495, abs=1e-6), pytest.approx(2.236068, abs=1e-6))
    assert math.prod(norms) == pytest.approx(11.324555, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection(dtype):
    for seed in range(100):
        w = uniform(seed, 1 + seed % 7, 1 + seed % 5).to(dtype)
        limit = 0.02 * (seed + 1)
        p = projected(w, limit)
        assert spectral_norm(p.double()) <= limit
        assert torch.equal(projected(p, limit), p)
        size = spectral_norm(w.double())
        assert torch.allclose(p, w * min(1, limit / size), rtol=1e-5)
        assert (p is w) == (size <= limit)
    assert projected(torch.zeros(2, 2), 1.0).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_maxmin_sorts_and_keeps_lengths(f64):
    assert maxmin(f64(1.0, -2.0, 3.0, -5.0)).tolist() == [3.0, -2.0, 1.0, -5.0]
    x, y = uniform(0, 200, 8), uniform(1, 200, 8)
    assert torch.allclose(maxmin(x).norm(dim=1), x.norm(dim=1))
    assert bool(((maxmin(x) - maxmin(y)).norm(dim=1) <= (x - y).norm(dim=1) + 1e-12).all())


@pytest.mark.parametrize("seed", range(12))
def test_the_certificate_holds_in_the_units_of_the_data(seed):
    """Whatever the scales: at most α, and no two points are steeper."""
    alpha, scale = 10 ** float(uniform(seed, 1)), torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    x, u = uniform(seed, 60, 3) * scale * 3 + 7, 4 * uniform(seed + 100, 60, 2) - 1
    net = fit(x, u, alpha, "mlp", generator=rng(seed), hidden=(16, 16), updates=60)
    assert net.certificate() <= alpha
    q = uniform(seed + 200, 300, 3) * scale * 5 + 7
    near = q + 1e-3 * uniform(seed + 300, 300, 3)
    y = net(torch.cat([q, near]))
    assert bool((torch.pdist(y) <= net.certificate() * torch.pdist(torch.cat([q, near])) + 1e-10).all())


def test_the_network_uses_its_constant():
    """A steep line is imitated up to the constant and no further: the bound binds and is nearly reached."""
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]
    loose, tight = (fit(x, 3 * x, alpha, "mlp", generator=rng(0), hidden=(8, 8), updates=400) for alpha in (6.0, 1.5))
    slope = (tight(x[1:]) - tight(x[:-1])).abs() / (x[1:] - x[:-1])
    assert 1.4 < float(slope.max()) <= tight.certificate() <= 1.5
    assert float((loose(x) - 3 * x).abs().max()) < 0.3 < float((tight(x) - 3 * x).abs().max())


def test_fit_asks_for_pairs():
    assert fit(uniform(0, 5, 2), uniform(1, 5, 1), 2.0, "extension").certificate() == 2.0
    bad = uniform(0, 5, 2)
    bad[3, 1] = math.nan
    with pytest.raises(InputError, match="row 3"):
        fit(bad, uniform(1, 5, 1), 1.0)
    with pytest.raises(InputError, match="no rows"):
        fit(bad[:0], bad[:0, :1], 1.0)
    with pytest.raises(InputError, match="even"):
        fit(uniform(0, 5, 2), uniform(1, 5, 1), 1.0, hidden=(7,))


# --- data ------------------------------------------------------------------------------------------------------------
def test_steepness(f64):
    x = f64(0.0, 0.01, 1.0)[:, None]
    u = f64(0.0, 1.0, 2.0)[:, None]
    assert steepness(x, u, 1.0, 0.0) == pytest.approx(100)
    assert steepness(x, u, 1.0) == pytest.approx(2)
    assert steepness(f64(0.0, 1.0, 2.0)[:, None], f64(0.0, 0.0, 3.0)[:, None], 0.4) == 1.5, "of 0, 1.5 and 3, not below"
    assert steepness(x[:1], u[:1]) == 0 == steepness(f64(1.0, 1.0)[:, None], f64(2.0, 2.0)[:, None])
    assert steepness(f64(1.0, 1.0)[:, None], f64(2.0, 3.0)[:, None]) == math.inf
    line, _ = sampled(PLANT, 200, 0.0, rng(0))
    assert 0.95 * ELL < steepness(line, PLANT.expert(line)) <= ELL


@pytest.mark.parametrize("seed", range(20))
def test_covering_radius_from_both_sides(seed):
    n = 1 + seed % 3
    x, high = uniform(seed, 30, n), torch.full((n,), 1.0, dtype=torch.float64)
    lower, upper = covering_radius(x, -high, high, cells=4000)
    probes = uniform(seed + 50, 3000, n)
    found = float(torch.cdist(probes, x).amin(1).max())
    assert torch.allclose(nearest(x, probes)[0], torch.cdist(probes, x).amin(1))
    assert found <= upper and lower <= upper
    each = int(4000 ** (1 / n) + 1e-9)
    assert upper - lower == pytest.approx(math.sqrt(n) / each)
    assert found >= lower - 0.3


def test_covering_radius_by_hand(f64):
    """One sample in the middle of an interval, two cells: centres are ½ away, the ends 1."""
    assert covering_radius(f64([[0.0]]), f64([-1.0]), f64([1.0]), cells=2) == (0.5, 1.0)
    assert covering_radius(f64([[0.0, 0.0]]), f64([-3.0, -4.0]), f64([3.0, 4.0]), cells=1) == (0.0, 5.0)


def test_covering_probability():
    assert covering_probability(1, 0.05, 200) == pytest.approx(0.000701, abs=5e-7)
    assert covering_probability(2, 0.1, 1000) == pytest.approx(0.004317, abs=5e-7)
    assert covering_probability(2, 0.1, 500) == pytest.approx(0.657048, abs=5e-7)
    assert covering_probability(3, 0.01, 10) == 1.0
    assert samples_needed(2, 0.1, 0.05) == 757
    assert covering_probability(2, 0.1, 757) <= 0.05 < covering_probability(2, 0.1, 756)
    assert samples_needed(2, 0.1, 0.05, p=0.005) > 757 and samples_needed(1, 1.0, 0.5) == 1
    assert covered(2, 757, 0.05) == pytest.approx(0.1) and covered(2, 756, 0.05) > 0.1
    assert covered(3, 2, 0.05) == 1.0
    for bad in (0.0, 1.5):
        with pytest.raises(InputError, match="h"):
            covering_probability(2, bad, 10)
    with pytest.raises(InputError, match="failure"):
        samples_needed(2, 0.1, 0.0)


def test_covering_probability_is_a_bound():
    """400 sets of 120 uniform states: ρ > h√n no oftener than (B2) says."""
    side, high = 1 / 4, torch.full((2,), 1.0, dtype=torch.float64)
    bound = covering_probability(2, side, 120)
    over = sum(covering_radius((uniform(s, 120, 2) + 1) / 2, 0 * high, high, 900)[0] > side * math.sqrt(2)
               for s in range(400))  # fmt: skip
    assert 0 < bound < 0.01 and over / 400 <= bound


def test_choice_of_alpha():
    x, u = sampled(PLANT, 150, 0.0, rng(0))
    grid = [f * ELL for f in (0.5, 1.0, 2.0, 4.0)]
    alpha, curve = choose_alpha(x, u, 0.2, 0.05, grid)
    assert alpha == ELL and len(curve) == 4
    want = error_at_data(x, u, grid[0]) + (grid[0] + steepness(x, u)) * 0.2 + grid[0] * 0.05
    assert curve[0] == pytest.approx(want)
    assert choose_alpha(x, u, 0.2, 100.0, grid)[0] == grid[0]


# --- the loop --------------------------------------------------------------------------------------------------------
def test_the_double_integrator():
    assert PLANT.k[0].tolist() == pytest.approx([2.761715, 2.649102], abs=1e-6)
    assert spectral_norm(PLANT.k) == pytest.approx(3.826854, abs=1e-6)
    assert GAIN.radius == pytest.approx(0.873331, abs=1e-6) and GAIN.total == pytest.approx(0.755130, abs=1e-6)
    assert tube_radius(GAIN.total, 0.1, ELL, 0.05) == pytest.approx(0.220002, abs=1e-6)
    run = simulate(PLANT, PLANT.expert, torch.tensor([1.0, 0.0], dtype=torch.float64), 100)
    assert PLANT.total(run) == pytest.approx(9.592, abs=5e-4)


def scalar(a, b, k):
    return plant_of({"A": [[a]], "B": [[b]], "K": [[k]], "Q": [[1]], "R": [[1]], "box": [10], "start": [1]})


def test_a_scalar_loop_attains_its_bound():
    p = scalar(1.2, 1.0, 0.7)
    g = closed_loop_gain(p.a, p.b, p.k)
    assert g.total == pytest.approx(2, abs=1e-11) and g.radius == pytest.approx(0.5) and g.overshoot == 1
    assert g.rate == pytest.approx(0.75)
    off = 0.1 + 1.0 * 0.05
    assert tube_radius(g.total, 0.1, 1.0, 0.05) == pytest.approx(0.3)
    expert = simulate(p, p.expert, p.start, 200)
    run = simulate(p, lambda x: p.expert(x) + off, p.start, 200)
    assert float((run.x - expert.x).abs().max()) == pytest.approx(0.3, abs=1e-6)
    assert p.total(expert) == pytest.approx(1.986667, abs=1e-6)
    assert p.total(run) == pytest.approx(20.651067, abs=1e-6)
    bound = regret_bound(200, 2 * 1 + 0.3, 2 * 0.7 + 0.7 * 0.3 + off, 0.7, g.total, 0.1, 1.0, 0.05)
    assert p.total(run) - p.total(expert) <= bound


@pytest.mark.parametrize("tol", [0.7, 0.1, 1e-3, 1e-12])
def test_the_gain_is_a_bound_however_early_the_series_ends(tol):
    """Σ_{k<K} ½ᵏ/(1 − ½ᴷ) = 2 for every K; in other loops it is at least the whole sum."""
    p = scalar(1.2, 1.0, 0.7)
    assert closed_loop_gain(p.a, p.b, p.k, tol).total == pytest.approx(2, rel=1e-12)
    for seed in range(30):
        p = random_plant(17 * seed, 1 + seed % 3, 1)
        powers = [torch.linalg.matrix_power(p.a - p.b @ p.k, k) @ p.b for k in range(400)]
        assert closed_loop_gain(p.a, p.b, p.k, tol).total >= sum(map(spectral_norm, powers)) * (1 - 1e-9)


def test_without_errors_nothing_is_lost():
    assert tube_radius(GAIN.total, 0.0, ELL, 0.0) == 0 == regret_bound(100, 1.0, 1.0, ELL, GAIN.total, 0.0, ELL, 0.0)
    runs = [simulate(PLANT, PLANT.expert, PLANT.start, 50, w, costly(PLANT)) for w in
            (None, torch.zeros(3, 2, dtype=torch.float64))]  # fmt: skip
    assert torch.equal(runs[0].x, runs[1].x)


def random_plant(seed, n, m):
    """A random system with its optimal gain for a random cost."""
    d = 1 + 10 ** uniform(seed + 7, 1)
    return plant_of({"A": (uniform(seed, n, n) * 1.3).tolist(), "B": uniform(seed + 1, n, m).tolist(),
                     "Q": torch.eye(n).tolist(), "R": (float(d) * torch.eye(m)).tolist(), "box": [1.0] * n,
                     "start": (0.5 * uniform(seed + 2, n)).tolist()})  # fmt: skip


@pytest.mark.parametrize("seed", range(200))
def test_bounds_of_random_loops(seed):
    """(B1), (B3) and (B4) on random plants, policies and adversaries; the error of imitation is that of visited states
    for (B3), so nothing depends on the box."""
    n, m = 1 + seed % 3, 1 + seed % 2
    p = random_plant(31 * seed, n, m)
    g, ell = closed_loop_gain(p.a, p.b, p.k), spectral_norm(p.k)
    powers = [torch.linalg.matrix_power(p.a - p.b @ p.k, k) for k in range(60)]
    assert sum(spectral_norm(x @ p.b) for x in powers) <= g.total * (1 + 1e-9)
    assert all(spectral_norm(x) <= g.overshoot * g.rate**k * (1 + 1e-9) for k, x in enumerate(powers))
    assert g.total <= g.overshoot * spectral_norm(p.b) / (1 - g.rate) * (1 + 1e-9)
    alpha, omega = ell * 2 ** float(2 * uniform(seed + 3, 1)), 0.1 * float(uniform(seed + 4, 1).abs())
    x, u = sampled(p, 20 + 3 * (seed % 20), 0.1 * (seed % 3), rng(seed + 5))
    policy = Extension(x, u, alpha)
    at_data = float((policy(x) - p.expert(x)).norm(dim=1).max())
    probes = uniform(seed + 6, 300, n)
    delta = imitation_error(at_data, alpha, ell, covering_radius(x, -p.box, p.box, 2000)[1])
    assert float((policy(probes) - p.expert(probes)).norm(dim=1).max()) <= delta
    expert = simulate(p, p.expert, p.start, 40)
    for want in (costly(p), leading_away(expert)):
        run = simulate(p, policy, p.start, 40, omega * directions(n, 8, rng(seed)), want)
        seen = float((policy(run.x[:-1]) - p.expert(run.x[:-1])).norm(dim=1).max())
        r = tube_radius(g.total, seen, alpha, omega)
        assert float((run.x - expert.x).norm(dim=1).max()) <= r * (1 + 1e-9) + 1e-12
        c_x = spectral_norm(p.q) * (2 * float(expert.x.norm(dim=1).max()) + r)
        c_u = spectral_norm(p.r) * (2 * float(expert.u.norm(dim=1).max()) + ell * r + seen + alpha * omega)
        regret = regret_bound(40, c_x, c_u, ell, g.total, seen, alpha, omega)
        assert p.total(run) - p.total(expert) <= regret + 1e-9


def test_constants_of_the_bounds_are_attained():
    """Each is an equality somewhere, so that a smaller constant would be wrong."""
    assert imitation_error(0.5, 2.0, 3.0, 0.1) == pytest.approx(1.0)
    p = scalar(0.5, 2.0, 0.0)
    g = closed_loop_gain(p.a, p.b, p.k).total
    assert g == pytest.approx(4.0, abs=1e-11)
    w = torch.full((1, 1), 0.25, dtype=torch.float64)
    run = simulate(p, lambda x: 3 * x, torch.zeros(1, dtype=torch.float64), 1, w, lambda after, u, t: after[:, 0])
    assert float(run.u[0, 0]) == 0.75
    # (B4) with a linear cost c = x + u: x̂ − x* → g(δ + αω) and û − u* → ℓ g(δ + αω) + (δ + αω)
    for k in (0.0, -0.25):
        p = scalar(0.25, 2.0, k)
        g = closed_loop_gain(p.a, p.b, p.k).total
        ell = abs(k)
        run = simulate(p, lambda x, p=p: p.expert(x) + 0.3, torch.zeros(1, dtype=torch.float64), 400)
        end = float(run.x[-1, 0] + run.u[-1, 0])
        assert end == pytest.approx(regret_bound(1, 1.0, 1.0, ell, g, 0.1, 1.0, 0.2), rel=1e-9)


def test_adversaries_do_what_they_are_for():
    x, u = sampled(PLANT, 200, 0.0, rng(0))
    policy, w = Extension(x, u, ELL), 0.1 * directions(2, 16, rng(0))
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    expert = simulate(PLANT, PLANT.expert, start, 60)
    calm = simulate(PLANT, policy, start, 60)
    dear, far = (simulate(PLANT, policy, start, 60, w, v) for v in (costly(PLANT), leading_away(expert)))
    away = [float((run.x - expert.x).norm(dim=1).max()) for run in (calm, dear, far)]
    assert PLANT.total(dear) > 1.05 * PLANT.total(calm) and away[2] > 1.2 * away[0]
    for run, value in ((dear, costly(PLANT)), (far, leading_away(expert))):
        u = policy(run.x[20] + w)
        after = run.x[20] @ PLANT.a.T + u @ PLANT.b.T
        assert float(value(run.x[21:22], run.u[20:21], 20)) == pytest.approx(float(value(after, u, 20).max()))
    assert leading_away(expert)(expert.x[21:22], expert.u[20:21], 20).tolist() == [0.0]
    assert directions(1, 5, rng(0)).tolist() == [[1.0], [-1.0]]
    assert torch.allclose(directions(4, 9, rng(0)).norm(dim=1), torch.ones(9, dtype=torch.float64))


def test_cost_to_go():
    """P of the optimal gain is the cost of the expert's run."""
    x = torch.tensor([0.7, -0.3], dtype=torch.float64)
    assert float(x @ PLANT.to_go() @ x) == pytest.approx(PLANT.total(simulate(PLANT, PLANT.expert, x, 400)))


# --- the method ------------------------------------------------------------------------------------------------------
def by_name(solution):
    return {r.quantity: r for r in solution.reports}


def test_the_certificate_by_hand(f64):
    """Gain 2, ℓ = 0.7, δ = 0.1 + (1.5 + 0.7) · 0.2 = 0.54, α ω = 0.6, r = 2.28; the expert begins at x = 3."""
    p = plant_of({"A": [[1.2]], "B": [[1]], "K": [[0.7]], "Q": [[2]], "R": [[3]], "box": [4], "start": [3]})
    policy = Extension(f64([[0.0], [1.0]]), f64([[0.0], [-0.7]]), 1.5)
    reference = simulate(p, p.expert, p.start, 10)
    s = Study(p, policy, reference, 0.4, closed_loop_gain(p.a, p.b, p.k), (0.1, 0.2), 0.1)
    assert s.delta() == pytest.approx(0.54) and s.radius(s.delta()) == pytest.approx(2.28)
    assert s.reach() == pytest.approx((3 + 2.28) / 4)
    c_x, c_u = 2 * (2 * 3 + 2.28), 3 * (2 * 2.1 + 0.7 * 2.28 + 0.54 + 0.6)
    assert s.regret() == pytest.approx(10 * ((c_x + 0.7 * c_u) * 2.28 + c_u * (0.54 + 0.6)))
    run = simulate(p, policy, p.start, 10)
    r = by_name(Solution(reports(s, [run], uniform(0, 50, 1), 1000)))
    assert [a.holds for a in r["distance to the expert"].assumptions] == [True, False, None]
    assert r["distance to the expert"].note.endswith("1.2 (B5)")
    width = r["covering radius of 1,000 uniform states, with probability 0.95"].value
    assert width == pytest.approx(covered(1, 1000, 0.05) * 8) and 0.04 < width < 0.08
    seen = float((policy(run.x[:-1]) - p.expert(run.x[:-1])).abs().max())
    by_runs = r["distance to the expert, with δ as found on the simulated runs"].value
    assert by_runs == pytest.approx(2 * (seen + 0.6))
    assert r["largest regret that an adversary reached"].value == pytest.approx(p.total(run) - p.total(reference))


def test_constants_of_the_cost_hold():
    """|xᵀQx − yᵀQy| ≤ ‖Q‖ (2‖y‖ + r) ‖x − y‖ where ‖x − y‖ ≤ r, with equality along an eigenvector."""
    for seed in range(200):
        n = 1 + seed % 3
        root, y, step = uniform(seed, n, n), uniform(seed + 300, n), uniform(seed + 600, n)
        q, x, r = root @ root.T, y + step, float(step.norm())
        rise = abs(float(x @ q @ x - y @ q @ y))
        assert rise <= spectral_norm(q) * (2 * float(y.norm()) + r) * r + 1e-12
    assert 2 * 5.0**2 - 2 * 3.0**2 == 2 * (2 * 3 + 2) * 2


def test_default_is_certified(tmp_path):
    found = exact.solve("lipschitz-imitation", out=tmp_path / "out", samples=2500)
    r = by_name(found)
    assert not any(x.failed for x in found.reports)
    assert r["Lipschitz constant α of the policy"].value == pytest.approx(ELL)
    assert r["largest distance that an adversary reached"].value <= r["distance to the expert"].value < 1.0
    assert r["largest regret that an adversary reached"].value <= r["regret against the expert"].value
    assert r["largest error at 2,000 probes"].value <= r["error of imitation in the box, δ"].value
    assert r["steepest short secant of the policy"].value <= ELL + 1e-9
    a_posteriori = r["distance to the expert, with δ as found on the simulated runs"]
    assert r["largest distance that an adversary reached"].value <= a_posteriori.value
    bound = next(x for x in found.charts[0].lines if x.name.startswith("bound")).y[0]
    assert max(max(x.y) for x in found.charts[0].lines) == bound
    record = json.loads((tmp_path / "out" / "solution.json").read_text())
    assert record["settings"]["samples"] == 2500 and (tmp_path / "out" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(("settings", "reason"), [({"samples": 40}, "box"), ({"disturbance": 2.0}, "box")])
def test_it_refuses_to_certify_and_says_why(settings, reason):
    r = by_name(lipschitz_imitation(**{"samples": 1500, "alpha": ELL, "horizon": 20} | settings))
    for quantity in ("distance to the expert", "regret against the expert"):
        assert any(reason in a.name for a in r[quantity].failed)
    assert not r["error of imitation in the box, δ"].failed


def test_own_plant_and_own_recordings(tmp_path):
    plant = {"A": [[0.8, 0.1], [0.0, 0.7]], "B": [[0.0], [1.0]], "K": [[0.1, 0.2]], "Q": [[1, 0], [0, 1]], "R": [[1]],
             "box": [1, 1], "start": [0.2, 0.1]}  # fmt: skip
    (tmp_path / "plant.json").write_text(json.dumps(plant))
    p = load_plant(str(tmp_path / "plant.json"))
    x = uniform(0, 401, 2).float()
    zeros = torch.zeros(400)
    save_episodes(tmp_path / "demos.safetensors", [Episode(x, p.expert(x[:-1].double()).float(), zeros, zeros, zeros)])
    r = by_name(lipschitz_imitation(plant=str(tmp_path / "plant.json"), demos=str(tmp_path / "demos.safetensors"),
                                    policy="mlp", alpha=0.5, disturbance=0.01, horizon=30, updates=200))  # fmt: skip
    assert r["Lipschitz constant α of the policy"].value <= 0.5
    assert not r["distance to the expert"].failed
    assert r["largest distance that an adversary reached"].value <= r["distance to the expert"].value


@pytest.mark.parametrize(("change", "named"), [
    ({"K": [[-1.0, 0.0]]}, "spectral radius"), ({"A": [[1.0]]}, "plant.B"), ({"B": None}, "plant.B"),
    ({"Q": [[1, 2], [0, 1]]}, "plant.Q"), ({"R": [[0.0]]}, "plant.R"), ({"box": [1, 0]}, "plant.box"),
    ({"start": [0, math.nan]}, "plant.start"), ({"C": 1}, "plant.C"), ({"K": [[1.0]]}, "plant.K"),
])  # fmt: skip
def test_plants_that_cannot_be_used(tmp_path, change, named):
    plant = {"A": [[1.0, 0.1], [0.0, 1.0]], "B": [[0.0], [0.1]], "Q": [[1, 0], [0, 1]], "R": [[1]], "box": [1, 1],
             "start": [0, 0]} | change  # fmt: skip
    (tmp_path / "plant.json").write_text(json.dumps(plant))
    with pytest.raises(InputError, match=named):
        lipschitz_imitation(plant=str(tmp_path / "plant.json"))


@pytest.mark.parametrize(("text", "named"), [("[", "JSON"), ("[1]", "object"), ('{"A": [[1]]}', "lacks")])
def test_plant_files_that_cannot_be_read(tmp_path, text, named):
    (tmp_path / "plant.json").write_text(text)
    with pytest.raises(InputError, match=named):
        load_plant(str(tmp_path / "plant.json"))


@pytest.mark.parametrize("settings", [{"samples": 0}, {"horizon": 0}, {"disturbance": -1.0}, {"noise": -0.1},
                                      {"plant": "pendulum"}, {"demos": "nowhere.safetensors"}])  # fmt: skip
def test_impossible_settings(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        lipschitz_imitation(**settings)


def test_settings_that_are_not_used(tmp_path):
    demos = tmp_path / "demos.safetensors"
    x, zeros = uniform(0, 61, 2).float(), torch.zeros(60)
    save_episodes(demos, [Episode(x, PLANT.expert(x[:-1].double()).float(), zeros, zeros, zeros)])
    for given, says in (({"samples": 50}, "samples: got 50; demos does not use this setting, only uniform states"),
                        ({"noise": 0.1}, "noise: got 0.1"), ({"updates": 9}, "extension does not .* only mlp")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            lipschitz_imitation(demos=str(demos), **given)
    assert lipschitz_imitation(demos=str(demos), horizon=5).settings == {}
    assert lipschitz_imitation(samples=60, horizon=5).settings == {"samples": 60, "noise": 0.0}


def test_a_plant_without_an_optimal_gain():
    with pytest.raises(InputError, match="give K"):
        plant_of({"A": [[2.0]], "B": [[0.0]], "Q": [[1]], "R": [[1]], "box": [1], "start": [0]})
