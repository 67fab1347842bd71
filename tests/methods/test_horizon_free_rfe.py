"""HF-UCRL-RFE++: worked numbers, what must hold on any instance, the whole exploration, bad input."""

import json
import math

import numpy as np
import pytest

from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.families import exact
from anypolicy.methods.exact.horizon_free_rfe import (
    HFConfig,
    beta_theory,
    certificate,
    explore,
    home,
    oracle,
    plan,
    pseudo_value,
    pseudo_values,
    scales,
)
from anypolicy.parts import mdp
from anypolicy.parts.mixture import LinearMixtureModel, norm
from anypolicy.tasks.exact.mixtures import TableEnvironment, corridor, hard, random_mixture
from anypolicy.tasks.exact.reward_free import goal_rewards, random_rewards

PHI = np.array([(0.6, 0.2), (0.4, 0.1), (0.2, 0.05)])
THETA = np.array([(0.9, 0.5), (0.8, 0.6), (1.0, 0.4)])
EYE = np.eye(2)


def close(*values, tol=1e-6):
    return pytest.approx(values if len(values) > 1 else values[0], abs=tol)


def world(m, seed=0):
    return TableEnvironment(m.kernel, m.start, np.random.default_rng(seed))


# --- worked numbers ---------------------------------------------------------------------------------------------------
def test_high_order_moments():
    assert (PHI * THETA).sum(1).tolist() == close(0.64, 0.38, 0.22)
    gamma, Sigma = 2**-0.25, np.array([[[3, 0.5], [0.5, 2]], 2.5 * EYE, 2 * EYE])
    frozen = np.array([EYE / 2] * 3)
    assert home(PHI, THETA, Sigma, frozen, 0.1, 0.25, gamma).tolist() == close(0.250217, 0.184391, 1)
    # without width the variances alone are left, the negative one repaired by the floor
    bare = home(PHI, THETA, 1e12 * Sigma, frozen, 0.0, 1e-3, gamma)
    assert bare.tolist() == close(1e-6, 0.0756, 1)
    assert close(-0.0296) == 0.38 - 0.64**2
    wide = home(PHI, THETA, np.array([300 * EYE] * 3), np.array([EYE / 200] * 3), 0.1, 0.05, gamma)
    assert wide.tolist() == close(0.025820, 0.082889, 1)
    assert gamma**2 * math.sqrt(0.4 / 300) == close(0.025820)


def test_no_features_leave_the_floor():
    for alpha in (0.25, 0.5):
        got = home(0 * PHI, THETA, np.array([EYE] * 3), np.array([EYE] * 3), 0.1, alpha, 0.8)
        assert got.tolist() == close(alpha**2, alpha**2, 1)


def test_variances_fall_with_knowledge_and_never_below_the_floor():
    rng = np.random.default_rng(0)
    for _ in range(200):
        d, M = int(rng.integers(1, 5)), int(rng.integers(2, 6))
        phi, theta = rng.normal(size=(M, d)), rng.normal(size=(M, d))
        half = rng.normal(size=(2, M, d, d))
        Sigma, Sigma0 = half @ half.swapaxes(-1, -2) + np.eye(d)
        more = (lambda x: x @ x.swapaxes(-1, -2))(rng.normal(size=(M, d, d)))
        beta, alpha, gamma = rng.uniform(0.05, 1, 3)
        before = home(phi, theta, Sigma, np.linalg.inv(Sigma0), beta, alpha, gamma)
        after = home(phi, theta, Sigma + more, np.linalg.inv(Sigma0 + more), beta, alpha, gamma)
        assert (after <= before + 1e-12).all()
        assert (after >= alpha**2).all()
        assert after[-1] >= 1


def test_weighted_ridge():
    """Exploration's update, of rows (φ, y) with given variances."""
    x, y, s2 = np.array([(0.5, 0.1), (0.2, 0.4), (0.3, 0.3)]), np.array([0.6, 0.3, 0.5]), np.array([0.1, 0.5, 0.2])
    Sigma = EYE + (x / s2[:, None]).T @ x
    assert Sigma.ravel().tolist() == close(4.03, 1.11, 1.11, 1.87)
    assert np.linalg.solve(Sigma, x.T @ (y / s2)).tolist() == close(0.868020, 0.335025)


@pytest.fixture
def two_states():
    kernels = np.zeros((2, 2, 2, 2))
    kernels[:, 1, :, 1] = 1
    kernels[0, 0], kernels[1, 0] = [(1, 0), (0.2, 0.8)], [(0.5, 0.5), (0.9, 0.1)]
    reward = np.zeros((3, 2, 2))
    reward[:, 1] = 1 / 3
    return LinearMixtureModel.of_kernels(kernels), reward


def test_planning(two_states):
    model, reward = two_states
    theta = math.sqrt(2) * np.array([0.3, 0.7])
    assert model.kernel(theta)[0].ravel().tolist() == close(0.65, 0.35, 0.69, 0.31)
    policy, V = plan(model, theta, reward)
    assert policy[:, 0].tolist() == [0, 0, 0]
    assert V[1].tolist() == close(0.309167, 1.0) and V[2].tolist() == close(0.116667, 0.666667)
    assert (V[4] == 0).all()


def test_pseudo_value(two_states):
    model, reward = two_states
    theta = math.sqrt(2) * np.array([0.5, 0.5])
    _, V, hat = pseudo_value(model, theta, reward, EYE, EYE, 0.1)
    assert hat[1].tolist() == close(0.072949, 0.106667) and hat[2].tolist() == close(0.019003, 0.033333)
    _, _, known = pseudo_value(model, theta, reward, EYE / 100, EYE / 100, 0.1)
    assert known[1].tolist() == close(0.006828, 0.010067)
    for scale in (1e4, 1e8):
        assert pseudo_value(model, theta, reward, EYE / scale, EYE / scale, 0.1)[2].max() < 2 / math.sqrt(scale)
    assert pseudo_value(model, theta, reward, EYE, EYE, 1e3)[2].max() == 1
    assert V[1, 1] == close(1.0)


def by_hand(model, theta, reward, tilde_inv, hat_inv, beta):
    """Algorithm 4, lines 5 to 8 (arXiv 2303.10165), state by state: V̂, V and the greedy policy."""
    H, S, A = reward.shape
    V, hat, policy = np.zeros((H + 2, S)), np.zeros((H + 2, S)), np.zeros((H, S), int)
    for h in range(H, 0, -1):
        for s in range(S):
            best = None
            for a in range(A):
                phi = np.array([model.phi[i, s, a] @ V[h + 1] for i in range(model.d)])
                ahead = np.array([model.phi[i, s, a] @ hat[h + 1] for i in range(model.d)])
                u = min(1, beta * math.sqrt(phi @ tilde_inv @ phi))
                optimistic = min(max(u + 2 * beta * math.sqrt(ahead @ hat_inv @ ahead) + ahead @ theta, 0), 1)
                value = min(max(reward[h - 1, s, a] + phi @ theta, 0), 1)
                if best is None or optimistic > best[0] + 1e-12 or (optimistic > best[0] - 1e-12 and value > best[1]):
                    best = optimistic, value, a
            hat[h, s], V[h, s], policy[h - 1, s] = best
    return policy, V, hat


@pytest.mark.parametrize("seed", range(8))
def test_optimism_by_hand(seed):
    """The width of V̂'s family stands twice in V̂, that of Ṽ's once; the greedy policy is V̂'s, not V's."""
    rng = np.random.default_rng(seed)
    m, H = random_mixture(3, 4, 3, seed), 4
    rewards = random_rewards(m.model, H, 3, rng)
    half = rng.normal(size=(2, 3, 3))
    tilde, hat = np.linalg.inv(half @ half.swapaxes(1, 2) + np.array([2.0, 9.0])[:, None, None] * np.eye(3))
    for reward in rewards:
        got = pseudo_value(m.model, m.theta, reward, tilde, hat, 0.15)
        for x, y in zip(got, by_hand(m.model, m.theta, reward, tilde, hat, 0.15), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)


def test_the_oracle_takes_the_pair_that_is_most_optimistic():
    m = random_mixture(3, 4, 3, 1)
    found = explore(world(m), m.model, 8, 4, rewards=random_rewards(m.model, 4, 5, np.random.default_rng(0)))
    hat_inv, tilde_inv = np.linalg.inv(found.Sigma[:, 0])  # V̂'s family is the first, and only its first moment counts
    values = [pseudo_value(m.model, theta, reward, tilde_inv, hat_inv, 0.2)[2][1, found.start]
              for reward in found.rewards for theta in found.candidates]  # fmt: skip
    assert len(set(values)) > 3
    policy, V, hat = oracle(found, 0.2)
    assert certificate(found, 0.2) == hat[1, found.start] == max(values)
    best = int(np.argmax(values))
    want = pseudo_value(m.model, found.candidates[best % 3], found.rewards[best // 3], tilde_inv, hat_inv, 0.2)
    assert all(np.allclose(x, y, atol=1e-12) for x, y in zip((policy, V, hat), want, strict=True))


def test_proof_radius():
    assert beta_theory(100, 3, 8, 0.05, math.sqrt(3)) == close(1311.733, tol=1e-3)
    alpha, gamma, lam = scales(3, 8, math.sqrt(3), None, None, None)
    assert math.log(1 + 100 * 8 / (alpha**2 * 3 * lam)) == close(7.665910)
    assert math.log(32 * (math.log(gamma**2 / alpha) + 1) * 100**2 * 64 / 0.05) == close(20.229746)
    assert beta_theory(1, 10_000, 2, 0.05, 100) > 0  # d > H: the guarded logarithm
    assert math.log2(7 * 100 * 8) == close(12.451, tol=1e-3)
    m = corridor(2, 1)
    assert explore(world(m), m.model, 2, 3, cfg=HFConfig(M="theory")).Sigma.shape[1] == 6  # log2(42) = 5.39


def test_simplex_projection():
    assert mdp.simplex(np.array([0.7, 0.6, -0.2])).tolist() == close(0.55, 0.45, 0.0)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 5))
    w = mdp.simplex(x)
    assert (w >= 0).all() and np.allclose(w.sum(1), 1)
    others = rng.dirichlet(np.ones(5), 300)  # the nearest point: ⟨x − w, v − w⟩ ≤ 0 for all v of the simplex
    assert (((x - w) * (others - w)).sum(1) <= 1e-12).all()
    assert np.allclose(mdp.simplex(others), others)


def test_zero_episodes_give_uniform_weights_and_a_number():
    m = corridor()
    found = explore(world(m), m.model, 0, 8)
    assert found.weights.tolist() == close(1 / 3, 1 / 3, 1 / 3)
    assert 0 < certificate(found) <= 1


# --- identities and invariants ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(40))
def test_values_of_random_mixtures(seed):
    """With the true θ and no bonus, V of the greedy policy is what planning says it is; V̂ lies in [0, 1], grows with β
    and is at least the bonus of the first step; a mixture's kernel is the mixture."""
    rng = np.random.default_rng(seed)
    m = random_mixture(*(int(n) for n in rng.integers(2, 5, 3)), seed)
    H, model = int(rng.integers(1, 6)), m.model
    mdp.check_kernel(m.kernel)
    rewards = np.concatenate([random_rewards(model, H, 4, rng), goal_rewards(model, H)])
    eye = np.eye(model.d)
    policy, V, hat = pseudo_values(model, m.theta[None], rewards, eye, eye, 0.3)
    assert np.allclose(mdp.policy_values(m.kernel, rewards, policy[:, 0]), V[:, 0])
    best_policy, best = plan(model, m.theta, rewards)
    assert (best[:, 1] >= V[:, 0, 1] - 1e-12).all()
    assert np.allclose(mdp.policy_values(m.kernel, rewards, best_policy), best)
    assert hat.min() >= 0 and hat.max() <= 1 and best.max() <= 1 + 1e-12
    wider = pseudo_values(model, m.theta[None], rewards, eye, eye, 0.4)[2]
    assert (wider >= hat - 1e-12).all()
    assert (np.linalg.norm(model.phi_v(rng.random((50, model.states))), axis=-1) <= 1 + 1e-12).all()
    one = pseudo_value(model, m.theta, rewards[1], eye, eye, 0.3)
    assert all(np.array_equal(a, b[1, 0]) for a, b in zip(one, (policy, V, hat), strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_planning_error_is_bounded_by_twice_the_horizon_of_the_models_error(seed):
    """|V^π − V^π of another θ| ≤ Σ_h largest total variation, for values in [0, 1]."""
    rng = np.random.default_rng(seed)
    m = random_mixture(3, 4, 2, seed)
    other = m.model.project(m.theta + 0.2 * rng.normal(size=3))
    rewards = random_rewards(m.model, 5, 5, rng)
    policy, believed = plan(m.model, other, rewards)
    got = mdp.policy_values(m.kernel, rewards, policy)
    variation = 0.5 * abs(m.model.kernel(other) - m.kernel).sum(-1).max()
    assert (abs(believed - got)[:, 1] <= 5 * variation + 1e-12).all()


def test_the_true_weights_stay_inside_the_proof_radius():
    """‖θ_m − θ*‖ ≤ β on 60 instances, for both families at m = 0, whose targets are values of fixed functions."""
    for seed in range(60):
        m = random_mixture(3, 3, 2, seed) if seed % 2 else hard(3, seed)
        found = explore(world(m, seed), m.model, 6, 4, seed=seed)
        off = np.linalg.solve(found.Sigma[:, 0], found.b[:, 0, :, None])[..., 0] - m.theta
        distance = np.sqrt(np.einsum("fi,fij,fj->f", off, found.Sigma[:, 0], off))
        assert (distance <= beta_theory(6, 3, 4, 0.05, m.model.theta_bound)).all()


def test_exploring_learns_the_weights_and_acting_at_random_does_not():
    w = np.array([0.5, 0.3, 0.2])
    m, found = corridor(3, 6, w), {}
    for mode in ("hf", "unweighted", "random"):
        found[mode] = explore(world(m), m.model, 120, 8, cfg=HFConfig(mode=mode), seed=1)
    certified = {mode: certificate(r, 0.3) for mode, r in found.items()}
    assert certified["unweighted"] > 1.4 * certified["hf"]
    assert certified["random"] > 4 * certified["hf"]  # nothing became certain by acting at random
    for mode in ("hf", "unweighted"):
        assert 0.5 * abs(found[mode].weights - w).sum() < 0.15


def test_the_update_weighs_by_the_estimated_variance():
    """Σ after one episode of one step is λI + φφᵀ/σ² of each moment of both families."""
    m = random_mixture(2, 3, 2, 0)
    found = explore(world(m), m.model, 1, 2, cfg=HFConfig(M=3))
    base = explore(world(m), m.model, 0, 2, cfg=HFConfig(M=3))
    policy, V, hat = oracle(base, 0.3)
    env = world(m)
    env.reset(seed=0)
    state = env.reset()[0]
    Sigma, b, theta = base.Sigma.copy(), base.b.copy(), np.zeros((3, 2))
    alpha, gamma, _ = scales(2, 2, math.sqrt(2), None, None, None)
    for h in (1, 2):
        after = env.step(int(policy[h - 1, state]))[0]
        for family, values in enumerate((hat, V)):
            phi = np.stack([m.model.phi_v(values[h + 1] ** 2**i)[state, policy[h - 1, state]] for i in range(3)])
            s2 = home(phi, theta, Sigma[family], np.linalg.inv(base.Sigma[family]), 0.3, alpha, gamma)
            for i in range(3):
                Sigma[family, i] += np.outer(phi[i], phi[i]) / s2[i]
                b[family, i] += phi[i] * values[h + 1, after] ** 2**i / s2[i]
        state = after
    assert np.allclose(found.Sigma, Sigma, atol=1e-14) and np.allclose(found.b, b, atol=1e-14)
    assert abs(b).max() > 0


def test_the_certificate_falls_and_same_seed_same_bits():
    m = corridor()
    runs = [explore(world(m), m.model, k, 8, seed=3) for k in (20, 80, 80)]
    assert certificate(runs[0]) > certificate(runs[1]) == certificate(runs[2])
    assert np.array_equal(runs[1].thetas, runs[2].thetas)
    assert np.array_equal(runs[0].thetas, runs[1].thetas[:20])
    assert runs[1].pseudo[0] == certificate(explore(world(m), m.model, 0, 8), 0.3)


def test_the_lower_bounds_instance():
    for seed in range(10):
        m = hard(4, seed)
        assert m.kernel.shape == (3, 8, 3)
        mdp.check_kernel(m.kernel)
        assert np.allclose(m.kernel[0, :, 2].mean(), 1 / 6) and m.kernel[0, :, 2].max() == close(1 / 6 + 1 / 12)
        assert np.allclose(m.model.theta_of(m.kernel), m.theta)
    found = explore(world(m), m.model, 300, 4, seed=0)
    assert 0.5 * abs(m.model.kernel(found.theta) - m.kernel).sum(-1).max() < 0.2


def test_norms():
    rng = np.random.default_rng(2)
    half = rng.normal(size=(3, 3))
    inverse, x = np.linalg.inv(half @ half.T + np.eye(3)), rng.normal(size=(4, 3))
    assert np.allclose(norm(x, inverse), [math.sqrt(v @ inverse @ v) for v in x])


# --- a real environment, files, bad input -----------------------------------------------------------------------------
def slippery_lake():
    """Frozen lake as a mixture: the ice carries one to the left, ahead or to the right of where one heads."""
    import gymnasium

    P = gymnasium.make("FrozenLake-v1", is_slippery=False).unwrapped.P
    ahead = np.zeros((16, 4, 16))
    for s in range(16):
        for a in range(4):
            [(_, t, _, _)] = P[s][a]
            ahead[s, a, t] = 1
    return np.stack([ahead[:, (np.arange(4) + turn) % 4] for turn in (-1, 0, 1)])


def test_gymnasiums_frozen_lake(tmp_path, capsys):
    path = tmp_path / "lake.npz"
    np.savez(path, kernels=slippery_lake())
    command = ["solve", "horizon-free-rfe", "--horizon-free-rfe.data", str(path), "--horizon-free-rfe.env", "FrozenLake-v1",
               "--horizon-free-rfe.episodes", "150", "--horizon-free-rfe.horizon", "10", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 0
    assert "planning error" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "solution.json").read_text())
    weights = [row["weight"] for row in found["tables"]["Learnt mixture"]]
    assert weights == pytest.approx([1 / 3] * 3, abs=0.15)
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_solving_tells_the_loss_and_what_it_rests_on():
    found = exact.solve("horizon-free-rfe", episodes=60, random_rewards=3)
    by_name = {r.quantity: r for r in found.reports}
    loss = by_name["planning loss"]
    assert loss.kind == "exact" and 0 <= loss.value <= found.reports[0].value
    assert found.reports[0].kind == "estimate" and [a.holds for a in found.reports[0].assumptions] == [True, False]
    assert found.reports[1].value == 1  # with the proof's radius nothing is certain yet
    twins = LinearMixtureModel.of_kernels(np.stack([corridor().kernel] * 2))
    assert not twins.identified and corridor().model.identified


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"episodes": -1}, "episodes", "at least 1"),
        ({"horizon": 0}, "horizon", "at least 1"),
        ({"beta": 0.0}, "beta", "above 0"),
        ({"moments": 0}, "moments", "at least 1"),
        ({"random_rewards": -1}, "random_rewards", "at least 0"),
        ({"data": "start.npz"}, "data[start]", "0 to 15"),
        ({"features": 1}, "features", "2 or more"),
        ({"states": 1}, "states", "2 or more"),
        ({"actions": 5}, "actions", "corridor does not use this setting, only random"),
        ({"instance": "hard", "states": 4}, "states", "hard does not use this setting, only corridor, random"),
        ({"data": "lake.npz", "env": "FrozenLake-v1", "features": 3}, "features", "a file does not use"),
        ({"data": "lake.npz", "instance": "corridor"}, "instance", "not both"),
        ({"instance": "hard", "features": 12}, "features", "2 to 10"),
        ({"env": "FrozenLake-v1"}, "env", "data FILE.npz"),
        ({"data": "none.npz"}, "data", "kernels, weights"),
        ({"data": "rows.npz"}, "kernels[kernel 1, state 0, action 1]", "sum to 1"),
        ({"data": "shape.npz"}, "data[kernels]", "[d, states, actions, states]"),
        ({"data": "weights.npz"}, "data[weights]", "sum 1"),
        ({"data": "reward.npz"}, "rewards[17]", "at most 1"),
        ({"data": "word.npz"}, "data[kernel]", "did you mean 'kernels'"),
        ({"data": "lake.npz", "env": "CliffWalking-v1"}, "env", "16 states"),
        ({"data": "lake.npz", "env": "Frozen"}, "env", "Gymnasium"),
        ({"data": "start.npz", "env": "FrozenLake-v1"}, "data[weights]", "kernels, rewards"),
    ],
)
def test_bad_input_is_one_clear_error(given, field, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lake, w = slippery_lake(), np.full(3, 1 / 3)
    broken = lake.copy()
    broken[1, 0, 1, 0] += 0.5
    np.savez("rows.npz", kernels=broken, weights=w)
    np.savez("shape.npz", kernels=lake[0], weights=w)
    np.savez("weights.npz", kernels=lake, weights=w * 2)
    np.savez("reward.npz", kernels=lake, weights=w, rewards=np.stack([np.zeros((8, 16, 4)), np.ones((8, 16, 4))]))
    np.savez("word.npz", kernels=lake, weights=w, kernel=lake)
    np.savez("start.npz", kernels=lake, weights=w, start=16)
    np.savez("lake.npz", kernels=lake)
    with pytest.raises(InputError) as error:
        exact.solve("horizon-free-rfe", **({"random_rewards": 0, "episodes": 5} | given))
    assert field in error.value.field and says in str(error.value), error.value


@pytest.mark.parametrize(("given", "used"), [
    ({}, {"instance": "corridor", "features": 3, "states": 6}),
    ({"instance": "random", "actions": 2}, {"instance": "random", "features": 3, "states": 6, "actions": 2}),
    ({"instance": "hard", "features": 4}, {"instance": "hard", "features": 4}),
])  # fmt: skip
def test_what_an_instance_is_made_of_is_recorded(given, used, tmp_path):
    found = exact.solve("horizon-free-rfe", out=tmp_path / "out", episodes=2, random_rewards=1, **given)
    assert found.settings == used
    record = json.loads((tmp_path / "out" / "solution.json").read_text())["settings"]
    assert (
        record | used == record and record["episodes"] == 2 and ("actions" in used) == (record["actions"] is not None)
    )


def test_features_that_are_no_mixture_are_named():
    phi = np.zeros((2, 2, 1, 2))
    phi[0, :, :, 0] = phi[1, :, :, 1] = 1.0
    with pytest.raises(InputError, match="state 0, action 0"):
        LinearMixtureModel(phi * 1.5, simplex=False)
    with pytest.raises(InputError, match="kernel 0, state 0"):
        LinearMixtureModel(phi)
    model = LinearMixtureModel.of_kernels(np.stack([corridor().kernel] * 2))
    strange = corridor().kernel.copy()
    strange[2, 1] = np.eye(9)[0]
    with pytest.raises(InputError, match="state 2, action 1"):
        model.theta_of(strange)
    with pytest.raises(InputError, match="numbers above 0"):
        explore(world(corridor()), corridor().model, 1, 2, cfg=HFConfig(alpha=0.0))
