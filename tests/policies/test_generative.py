"""Policies made from noise: deterministic maps, samplers, averages of weights; some critics of an ensemble."""

import pytest
import torch

from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.policies.control.generative import candidates, clone, generative, imitate
from anypolicy.policies.control.mlp import critics, q_values

KINDS = ("flow", "ddim", "ddpm", "mean")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def made(kind, **more):
    return generative(kind, 3, 2, (16, 16), rng(), **more)


def two_ways(n=400, far=0.8):
    """Actions ±far, whatever the state."""
    action = torch.where(torch.rand(n, 1, generator=rng(1)) < 0.5, -far, far).expand(n, 2).contiguous()
    zeros = torch.zeros(n)
    observation = torch.randn(n, 3, generator=rng(2))
    replay = Replay(n, 3, 2)
    replay.add(Transitions(observation, action, zeros, observation, zeros, zeros, zeros))
    return replay


@pytest.mark.parametrize("kind", KINDS)
def test_actions_lie_in_the_box_and_the_same_seed_gives_the_same(kind):
    policy, observation = made(kind), 3 * torch.randn(50, 3, generator=rng(1))
    a, b = (policy.sample(observation, rng(7)) for _ in range(2))
    assert a.shape == (50, 2) and a.abs().max() <= 1 and torch.equal(a, b)
    assert not a.requires_grad
    assert torch.equal(a, policy.sample(observation, rng(8))) == (kind == "mean")


@pytest.mark.parametrize("kind", ["flow", "ddim"])
def test_the_noise_decides_the_action(kind):
    policy, observation, w = made(kind), torch.randn(5, 3, generator=rng(1)), torch.randn(5, 2, generator=rng(2))
    assert policy.deterministic
    assert torch.equal(policy.decode(observation, w), policy.decode(observation, w))
    assert not torch.equal(policy.decode(observation, w), policy.decode(observation, w + 0.1))
    assert torch.equal(
        policy.sample(observation, rng(3)), policy.decode(observation, torch.randn(5, 2, generator=rng(3)))
    )


def test_ddpm_is_no_map_from_noise():
    policy = made("ddpm")
    assert not policy.deterministic
    with pytest.raises(InputError, match="DDIM"):
        policy.decode(torch.zeros(1, 3), torch.zeros(1, 2))
    with pytest.raises(InputError, match="10 steps"):
        made("ddpm", steps=5)
    with pytest.raises(InputError, match="1 to 20"):
        made("ddim", steps=21)
    with pytest.raises(InputError, match="at least 1"):
        made("flow", steps=0)
    with pytest.raises(InputError, match="one width"):
        generative("ddpm", 3, 2, (16, 32), rng())


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_trained_network_moves_by_gradient_and_the_average_follows(kind):
    policy, data = made(kind), two_ways()
    before = [p.clone() for p in policy.network.average.parameters()]
    loss = policy.loss(data.all().observation, data.all().action, rng())
    loss.backward()
    assert all(p.grad is None for p in policy.network.average.parameters())
    assert all(p.grad is not None for p in policy.network.online.parameters() if p.requires_grad)
    optimiser = torch.optim.SGD([p for p in policy.network.online.parameters() if p.requires_grad], 0.1)
    imitate(policy, optimiser, data.all(), rng(), 0.005)
    for old, new, online in zip(
        before, policy.network.average.parameters(), policy.network.online.parameters(), strict=True
    ):
        torch.testing.assert_close(new, old + 0.9 * (online - old))
    assert int(policy.network.count) == 1


def test_the_average_slows_down_to_its_rate():
    network = made("mean").network
    with torch.no_grad():
        for p, q in zip(network.online.parameters(), network.average.parameters(), strict=True):
            p.fill_(1.0)
            q.fill_(0.0)
    network.count.fill_(10_000)
    network.follow(0.25)
    assert all((p == 0.25).all() for p in network.average.parameters())


def test_candidates_are_made_together_and_each_sees_its_own_state():
    policy, observation = made("flow"), torch.randn(4, 3, generator=rng(1))
    made_together = candidates(policy, observation, 5, rng(2))
    w = torch.randn(20, 2, generator=rng(2)).view(4, 5, 2)
    for i in range(5):
        torch.testing.assert_close(made_together[:, i], policy.decode(observation, w[:, i]))


def test_averaged_or_trained_weights():
    policy, data = made("flow"), two_ways()
    observation = torch.zeros(4, 3)
    assert torch.equal(policy.sample(observation, rng()), policy.sample(observation, rng(), averaged=False))
    clone(policy, torch.optim.Adam(policy.network.online.parameters(), 1e-3), data, 20, 64, rng())
    assert not torch.equal(policy.sample(observation, rng()), policy.sample(observation, rng(), averaged=False))


def test_standardised_observations():
    network, seen = made("mean").network, torch.tensor([[0.0, 10.0, 5.0], [4.0, 30.0, 5.0]])
    plain = made("mean").network
    network.inputs.fit(seen)
    torch.testing.assert_close(network(seen), plain(torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]])))
    assert torch.equal(network.inputs.std, torch.tensor([2.0, 10.0, 0.1]))


@pytest.mark.parametrize(("kind", "updates"), [("flow", 800), ("ddim", 800), ("ddpm", 400), ("mean", 300)])
def test_two_ways_stay_two_ways_unless_they_are_averaged(kind, updates):
    policy = generative(kind, 3, 2, (64, 64), rng())
    clone(policy, torch.optim.Adam(policy.network.online.parameters(), 3e-3), two_ways(), updates, 128, rng(3))
    a = policy.sample(torch.zeros(400, 3), rng(4))[:, 0]
    if kind == "mean":
        assert a.abs().max() < 0.3
        return
    near = ((a.abs() - 0.8).abs() < 0.25).float().mean()
    assert near > 0.75
    assert 0.25 < (a > 0).float().mean() < 0.75


@pytest.mark.parametrize("layer_norm", [False, True])
def test_some_critics_of_an_ensemble(layer_norm):
    net = critics(3, 2, (8, 8), rng(), ensemble=5, layer_norm=layer_norm)
    s, a = torch.randn(6, 3, generator=rng(1)), torch.rand(6, 2, generator=rng(2))
    some = torch.tensor([3, 0])
    torch.testing.assert_close(q_values(net, s, a, some), q_values(net, s, a)[some])
