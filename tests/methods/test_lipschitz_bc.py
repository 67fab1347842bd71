"""Lipschitz cloning: the constant holds after every update; the certificate of a trained controller."""

import math

import pytest
import torch

from anypolicy.data.demonstrations import Episode, save_episodes
from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError
from anypolicy.families import control, exact
from anypolicy.methods.exact.lipschitz_certificate import (
    Runs,
    attacked,
    expert_constant,
    lipschitz_certificate,
    reports,
    trained,
)
from anypolicy.policies.control.lipschitz import LipschitzMLP
from anypolicy.tasks.control.environments import Space
from tests.helpers import recipe

lipschitz_bc = recipe("lipschitz-bc")

BOX = Space(3, 2, False, (-1.0,) * 2, (1.0,) * 2)


def transitions(n, seed, slope=3.0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=rng) * torch.tensor([1.0, 1.0, 6.0])
    zeros = torch.zeros(n)
    return Transitions(x, torch.tanh(slope * x[:, :2]), zeros, x, zeros, zeros, zeros)


def prepared(alpha, seed=0):
    learner, replay = lipschitz_bc(alpha=alpha, hidden=(16, 16)).learner(BOX, seed), Replay(500, 3, 2)
    replay.add(transitions(500, seed))
    learner.prepare(replay, torch.Generator())
    return learner


@pytest.mark.parametrize("alpha", [0.2, 2.0, 20.0])
def test_the_constant_holds_after_every_update(alpha):
    learner, rng = prepared(alpha), torch.Generator().manual_seed(1)
    x = 4 * torch.randn(100, 3, generator=rng)
    for step in range(30):
        log = learner.update([transitions(64, step)], rng)
        assert learner.policy.certificate() <= alpha
        assert log["lipschitz/certificate"] == learner.policy.certificate()
        action = learner.act(x, rng, explore=True).executed.double()
        assert bool((torch.pdist(action) <= alpha * torch.pdist(x.double()) + 1e-5).all())
    assert torch.equal(learner.act(x, rng, explore=False).stored, learner.policy(x).clamp(-1, 1))


def test_it_learns_and_logs_the_error_in_actions():
    learner, rng = prepared(20.0), torch.Generator().manual_seed(1)
    batch = transitions(256, 7)
    with torch.no_grad():
        want = (learner.policy(batch.observation) - batch.action).square().sum(1).mean()
    first = learner.update([batch], rng)["loss/clone"]
    assert first == pytest.approx(float(want), rel=1e-5)
    losses = [learner.update([transitions(256, s)], rng)["loss/clone"] for s in range(150)]
    assert losses[-1] < 0.5 * first


def test_impossible_settings():
    for settings, named in (({"alpha": 0.0}, "alpha"), ({"alpha": math.nan}, "alpha"), ({"hidden": (7, 8)}, "hidden")):
        with pytest.raises(InputError, match=named):
            lipschitz_bc(**settings)
    with pytest.raises(InputError, match="box"):
        lipschitz_bc().learner(Space(3, 2, True), 0)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """Demonstrations of a linear expert in Pendulum, and runs that learnt from them."""
    folder, rng = tmp_path_factory.mktemp("pendulum"), torch.Generator().manual_seed(0)
    x, k = torch.randn(61, 3, generator=rng), torch.tensor([[0.1], [0.4], [-0.2]])
    zeros = torch.zeros(60)
    demos = str(folder / "demos.safetensors")
    save_episodes(demos, [Episode(x, (x[:-1] @ k).clamp(-1, 1), zeros, zeros, zeros)] * 2)
    for slug, knobs in (("lipschitz-bc", {"alpha": 1.5, "hidden": (8, 8)}), ("bc", {"hidden": (8, 8)})):
        control.train_controller(slug, task="gym/Pendulum-v1:max_steps=12", knobs=knobs, steps=40, demos=demos,
                                 out=folder / slug, trackers=(), eval_episodes=1, quiet=True)  # fmt: skip
    return folder, demos


def by_name(solution):
    return {r.quantity: r for r in solution.reports}


def test_certificate_of_a_trained_controller(pendulum, tmp_path):
    folder, demos = pendulum
    found = exact.solve("lipschitz-certificate", out=tmp_path / "out", policy=str(folder / "lipschitz-bc" / "policy"),
                        demos=demos, disturbance=0.1, episodes=2, overshoot=2.0, rate=0.5, input_gain=0.3)  # fmt: skip
    r = by_name(found)
    alpha = r["Lipschitz constant α of the policy"].value
    assert 0 < alpha <= 1.5
    bound = r["change of an action by an error of ω"].value
    assert bound == pytest.approx(0.1 * alpha) and 0 < r["largest change that an adversary reached"].value <= bound
    assert not any(x.failed for x in found.reports)
    delta = r["error of imitation at visited states, δ"].value
    assert delta > 0
    assert r["distance to the expert's states on these runs"].value == pytest.approx(1.2 * (delta + bound))
    assert r["of which from errors of measurement"].value == pytest.approx(1.2 * bound)
    lines = {line.name: line.y for line in found.charts[0].lines}
    assert all(a <= b + 1e-12 for a, b in zip(lines["an adversary"], lines["bound αω"], strict=True))
    assert lines["an adversary"][0] < 1e-12 and lines["an adversary"][-1] > lines["an adversary"][1]
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_expert_that_is_steeper_than_said_voids_the_bound(pendulum):
    folder, demos = pendulum
    r = by_name(lipschitz_certificate(str(folder / "lipschitz-bc" / "policy"), demos, 0.1, expert=0.01, episodes=2))
    (failed,) = r["error of imitation at visited states, δ"].failed
    assert "expert's constant" in failed.name and "secant" in failed.why
    assert not r["change of an action by an error of ω"].failed
    assert not any("distance to the expert's" in name for name in r)


def test_errors_of_imitation_are_bounded_at_visited_states():
    """A linear expert of constant ℓ in [−1, 1]: (B1) through the nearest demonstration, for 100 networks."""
    for seed in range(100):
        rng = torch.Generator().manual_seed(seed)
        k = 0.2 * torch.randn(3, 2, generator=rng, dtype=torch.float64)
        ell = float(torch.linalg.matrix_norm(k, 2))
        x, visited = (2 * torch.rand(n, 3, generator=rng, dtype=torch.float64) - 1 for n in (30, 40))
        network = LipschitzMLP(3, 2, (4, 4), 2.0, rng).double().requires_grad_(False)
        runs = Runs([1.0, 2.0, 3.0], visited, 0.25), Runs([0.0, 1.0], visited[:1] + 1, 0.5)
        r = {q.quantity: q for q in reports(network, x, x @ k, *runs, 0.1, ell, None)}
        delta = r["error of imitation at visited states, δ"].value
        assert float((network(visited).clamp(-1, 1) - visited @ k).norm(dim=1).max()) <= delta
        states = torch.cat([visited, visited[:1] + 1])
        apart = torch.cdist(states, x)
        misses = (network(x).clamp(-1, 1) - x @ k).norm(dim=1)
        through = misses[apart.argmin(1)] + (network.certificate() + ell) * apart.amin(1)
        assert delta == pytest.approx(float(through.max()))
        assert r["largest change that an adversary reached"].value == 0.5
    mean = runs[0].mean("mean return")
    assert mean.value == 2 and mean.interval == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_the_adversary_takes_the_error_that_moves_the_action_most(pendulum):
    network, task = trained(str(pendulum[0] / "lipschitz-bc" / "policy"))
    w = 0.3 * torch.eye(3, dtype=torch.float64)
    told, acts = list[torch.Tensor](), Environments.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environments, "step", lambda self, action: (told.append(action), acts(self, action))[1])
        runs = attacked(network, task, w, 2, 0)
    assert len(told) == len(runs.visited) == 24
    clean = network(runs.visited).clamp(-1, 1)
    moved = torch.stack([(network(runs.visited + e).clamp(-1, 1) - clean).norm(dim=1) for e in w])
    assert torch.allclose((torch.cat(told).double() - clean).norm(dim=1), moved.amax(0), atol=1e-6)
    assert runs.moved == pytest.approx(float(moved.max()))


def test_two_actions_for_one_observation():
    x, u = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    with pytest.raises(InputError, match="two actions"):
        expert_constant(x, u, None)
    assert expert_constant(x, u, 3.0)[1].holds is False
    assert expert_constant(x, x, None) == (0.0, expert_constant(x, x, 0.0)[1])


def test_what_cannot_be_certified(pendulum, tmp_path):
    folder, demos = pendulum
    good = {"policy": str(folder / "lipschitz-bc" / "policy"), "demos": demos}
    for bad, named in (({"policy": str(folder / "bc" / "policy")}, "no certified Lipschitz constant"),
                       ({"policy": str(tmp_path)}, "policy/ folder"), ({"policy": None}, "policy"),
                       ({"demos": None}, "demos"), ({"rate": 0.5}, "overshoot"), ({"disturbance": 0.0}, "disturbance"),
                       ({"episodes": 1}, "episodes"),
                       ({"overshoot": 1.0, "rate": 1.0, "input_gain": 1.0}, "rate.*contract")):  # fmt: skip
        with pytest.raises(InputError, match=named):
            lipschitz_certificate(**(good | bad))
