"""SAC: worked numbers, the update of Stable-Baselines3 and CleanRL's losses, known optima."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families import control
from anypolicy.methods.control.sac import SoftActorCritic
from anypolicy.parts.squashed import squashed
from anypolicy.policies.control.mlp import q_values
from anypolicy.tasks.control.environments import Space

BOX = Space(3, 2, False, (-1.0, -1.0), (1.0, 1.0))


def batch(n=16, seed=0, dtype=torch.float64, space=BOX):
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=rng, dtype=dtype)  # noqa: E731
    ended = (torch.rand(n, generator=rng) < 0.3).to(dtype)
    return Transitions(normal(n, space.observations), normal(n, space.actions).tanh(), normal(n),
                       normal(n, space.observations), ended, torch.zeros(n, dtype=dtype),
                       torch.full((n,), 0.99, dtype=dtype))  # fmt: skip


def learner_of(space=BOX, seed=0, **settings):
    made = SoftActorCritic(**({"hidden": (32, 32)} | settings))(space, seed)
    for module in made.modules.values():
        module.double()
    return made


def with_noise(learner, noises):
    """Its actor samples with these noises, one after the other."""
    left = list(noises)
    learner.actor.sample = lambda seen, rng: squashed(*learner.actor(seen), left.pop(0))


def test_one_update_is_that_of_stable_baselines3(monkeypatch):
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger

    env = gymnasium.make("Reacher-v5")
    space = Space(10, 2, False, (-1.0, -1.0), (1.0, 1.0))
    theirs = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [32, 32]}, seed=0, learning_rate=3e-4, batch_size=16)
    theirs.set_logger(Logger(None, []))
    theirs.policy.double()
    ours, data = learner_of(space), batch(space=space)
    copy_weights(ours, theirs)
    rng = torch.Generator().manual_seed(9)
    now, later = (0.5 * torch.randn(16, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    noises = [now, later]
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: noises.pop(0))
    column = lambda x: x[:, None]  # noqa: E731
    sample = SimpleNamespace(
        observations=data.observation, actions=data.action, next_observations=data.next_observation,
        dones=column(data.terminated), rewards=column(data.reward), discounts=None,
    )  # fmt: skip
    monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", lambda seen, *_, **__: seen)
    monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, **__: sample)
    theirs.train(1, 16)
    with_noise(ours, [later, now])
    ours.step(data, rng)
    for mine, other in pairs_of(ours, theirs):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
    assert float(ours.log_alpha) == pytest.approx(float(theirs.log_ent_coef), abs=1e-6)


def linear(sequence):
    return [layer for layer in sequence if isinstance(layer, torch.nn.Linear)]


def pairs_of(ours, theirs):
    """(our tensor, the same of theirs in our layout)."""
    actor = theirs.actor
    layers = [(x.weight, x.bias) for x in linear(actor.latent_pi)]
    layers.append((torch.cat([actor.mu.weight, actor.log_std.weight]), torch.cat([actor.mu.bias, actor.log_std.bias])))
    for i, (w, b) in enumerate(layers):
        yield ours.actor.net.weights[i], w.T
        yield ours.actor.net.biases[i], b
    for mine, other in ((ours.critics, theirs.critic), (ours.targets, theirs.critic_target)):
        for i, both in enumerate(zip(*(linear(net) for net in other.q_networks), strict=True)):
            yield mine.weights[i], torch.stack([x.weight.T for x in both])
            yield mine.biases[i], torch.stack([x.bias[None] for x in both])


@torch.no_grad()
def copy_weights(ours, theirs):
    for mine, other in pairs_of(ours, theirs):
        mine.copy_(other)


def test_critics_and_temperature_are_updated_as_cleanrl_defines_it():
    """Σ_i MSE against r + γ(1 − d)(min Q̄ − α ln π), the temperature on α: gradients up to the factor ½."""
    ours, data, rng = learner_of(alpha_form="alpha", alpha=0.3), batch(), torch.Generator().manual_seed(1)
    noise = [torch.randn(16, 2, generator=rng, dtype=torch.float64) for _ in range(2)]
    action, logp = squashed(*ours.actor(data.next_observation), noise[0])
    alpha = 0.3
    with torch.no_grad():
        q1, q2 = q_values(ours.targets, data.next_observation, action)
        y = data.reward + (1 - data.terminated) * 0.99 * (torch.min(q1, q2) - alpha * logp)
    a, b = q_values(ours.critics, data.observation, data.action)
    loss = torch.nn.functional.mse_loss(a, y) + torch.nn.functional.mse_loss(b, y)
    want = torch.autograd.grad(loss, list(ours.critics.parameters()))
    before = [p.detach().clone() for p in ours.critics.parameters()]
    entropy = -float(squashed(*ours.actor(data.observation), noise[1])[1].mean().detach())
    ours.optimisers = {
        name: torch.optim.SGD(o.param_groups[0]["params"], lr=1.0) for name, o in ours.optimisers.items()
    }
    with_noise(ours, noise)
    ours.optimisers["actor_optimiser"] = torch.optim.SGD(ours.actor.parameters(), lr=0.0)
    ours.step(data, rng)
    for p, q, g in zip(before, ours.critics.parameters(), want, strict=True):
        torch.testing.assert_close(p - q, g / 2, atol=1e-7, rtol=1e-6)
    assert float(ours.log_alpha) == pytest.approx(math.log(alpha) - alpha * (entropy - -2.0), abs=1e-6)


def test_the_actor_finds_the_best_squashed_gaussian_of_a_known_value():
    """Q(a) = −5 (a − 0.3)², α = 0.5: mean, spread and entropy by quadrature."""
    space = Space(1, 1, False, (-1.0,), (1.0,))
    ours = learner_of(space, hidden=(8,), learn_alpha=False, alpha=0.5)
    adam, rng = torch.optim.Adam(ours.actor.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    seen = torch.ones(256, 1, dtype=torch.float64)
    for step in range(2500):
        for group in adam.param_groups:
            group["lr"] = 3e-3 if step < 1500 else 3e-4
        action, logp = ours.actor.sample(seen, rng)
        loss = (0.5 * logp + 5 * (action[:, 0] - 0.3) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    mean, log_std = (float(x[0, 0].detach()) for x in ours.actor(seen[:1]))
    assert mean == pytest.approx(0.320709, abs=0.012)
    assert math.exp(log_std) == pytest.approx(0.251540, abs=0.012)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    noise, w = torch.from_numpy(nodes)[:, None], torch.from_numpy(weights / weights.sum())
    action, logp = squashed(torch.full_like(noise, mean), torch.full_like(noise, log_std), noise)
    average = float((w * action[:, 0]).sum())
    assert average == pytest.approx(0.294096, abs=0.01)
    assert float((w * (action[:, 0] - average) ** 2).sum() ** 0.5) == pytest.approx(0.218844, abs=0.01)
    assert -float((w * logp).sum()) == pytest.approx(-0.118305, abs=0.04)
    value = float((w * (-5 * (action[:, 0] - 0.3) ** 2 - 0.5 * logp)).sum())
    grid = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    soft = 0.5 * float(torch.trapezoid(torch.exp(-5 * (grid - 0.3) ** 2 / 0.5), grid).log())
    assert soft == pytest.approx(-0.289900, abs=1e-6)
    assert soft - 0.012 < value < soft


def test_soft_values_of_discrete_actions(f64):
    q = f64(1.0, 2.0, 0.0)
    policy = (q / 0.5).softmax(0)
    assert policy.tolist() == pytest.approx([0.117310, 0.866813, 0.015876], abs=1e-6)
    value = 0.5 * torch.logsumexp(q / 0.5, 0)
    assert float(value) == pytest.approx(2.071466, abs=1e-6)
    assert float((policy * (q - 0.5 * policy.log())).sum()) == pytest.approx(float(value), abs=1e-12)
    assert torch.equal((7 * q / 3.5).softmax(0), policy)


def test_an_entropy_that_cannot_be_had_makes_the_temperature_rise_forever():
    ours, rng = learner_of(target_entropy=1.5), torch.Generator().manual_seed(0)  # the most is 2 ln 2 = 1.386
    seen = []
    for i in range(60):
        ours.step(batch(seed=i), rng)
        seen.append(float(ours.log_alpha))
    assert all(b > a for a, b in pairwise(seen))


def test_a_terminated_batch_has_the_reward_as_its_target():
    for alpha in (0.01, 10.0):
        ours, data = learner_of(alpha=alpha), batch()
        data = Transitions(data.observation, data.action, data.reward, data.next_observation,
                           torch.ones(16, dtype=torch.float64), data.truncated, data.discount)  # fmt: skip
        log = ours.step(data, torch.Generator().manual_seed(0))
        fresh = learner_of(alpha=alpha)
        q = q_values(fresh.critics, data.observation, data.action)
        want = 0.5 * (q - data.reward).square().mean(-1).sum()
        assert log["loss/critic"] == pytest.approx(float(want), rel=1e-9)


def test_the_actor_gives_the_critics_no_gradient_and_targets_move_by_tau():
    ours, data = learner_of(), batch()
    before = [p.clone() for p in ours.targets.parameters()]
    ours.step(data, torch.Generator().manual_seed(0))
    for old, new, online in zip(before, ours.targets.parameters(), ours.critics.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.005 * (online.detach() - old))
    assert all(p.requires_grad for p in ours.critics.parameters())
    assert not any(p.requires_grad for p in ours.targets.parameters())


def test_discrete_actions_are_refused():
    with pytest.raises(InputError, match="box of actions"):
        control.World(control.plan("sac", control.ControlSettings("gym/CartPole-v1", trackers=())))


def test_it_learns_pendulum(tmp_path):
    knobs = {"hidden": (64, 64), "lr": 1e-3, "alpha_lr": 3e-3, "discount": 0.98, "tau": 0.01, "batch": 128,
             "warmup": 500}  # fmt: skip
    run = control.train_controller("sac", task="gym/Pendulum-v1", steps=3500, knobs=knobs, out=tmp_path / "run",
                                   eval_every=3500, checkpoint_every=0, trackers=(), quiet=True)  # fmt: skip
    first, last = (r["eval/return"] for r in run.evaluations())
    assert last > -400 > first
