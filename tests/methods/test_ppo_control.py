"""PPO for control: worked numbers, CleanRL's definition written out, learning, exact resume."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from anypolicy.data.transitions import Transitions
from anypolicy.engines.environments import Environments
from anypolicy.families.control import train_controller
from anypolicy.loops.control import OnPolicyLoop
from anypolicy.methods.control.ppo import ProximalPolicy, Samples, anneal, surrogate
from anypolicy.parts.distributions import Categorical, Gaussian
from anypolicy.parts.kl import kl
from anypolicy.parts.surrogate import clipped, clipped_value_loss
from anypolicy.policies.control.actors import CategoricalActor, GaussianActor
from anypolicy.runs.metrics import documented
from anypolicy.tasks.control.environments import Space, load_environment
from tests.helpers import recipe

ppo_control = recipe("ppo-control")

BOX = Space(5, 3, False, (-1.0,) * 3, (1.0,) * 3)


def test_clipped_surrogate(f64):
    ratio = f64(0.7, 0.9, 1.1, 1.4, 0.7, 1.4).requires_grad_()
    loss = -clipped(ratio, f64(1.0, 1.0, 1.0, 1.0, -1.0, -1.0), 0.2, 0.2)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-0.7, -0.9, -1.1, -1.2, 0.8, 1.4])
    assert ratio.grad.tolist() == [-1, -1, -1, 0, 0, 1]


def test_clipped_value_and_k3(f64):
    loss = clipped_value_loss(f64(0.9, 0.3), f64(0.5, 0.5), f64(1.0, 1.0), 0.2).mean()
    assert float(loss) == pytest.approx(0.145)
    log_ratio = f64(0.1, -0.2, 0.05)
    assert float(kl(-log_ratio, 0 * log_ratio, "k3").mean()) == pytest.approx(0.008391, abs=1e-6)


def test_distributions_agree_with_torch():
    rng = torch.Generator().manual_seed(0)
    mean, log_std, other = (torch.randn(6, 3, generator=rng, dtype=torch.float64) for _ in range(3))
    mine, theirs = Gaussian(mean, log_std / 3), Normal(mean, (log_std / 3).exp())
    action = mine.sample(rng)
    torch.testing.assert_close(mine.logp(action), theirs.log_prob(action).sum(1))
    torch.testing.assert_close(mine.entropy(), theirs.entropy().sum(1))
    want = torch.distributions.kl_divergence(theirs, Normal(other, torch.full_like(other, 0.7)))
    torch.testing.assert_close(mine.divergence(Gaussian(other, torch.full_like(other, 0.7).log())), want)
    p, q = Categorical(mean.log_softmax(1)), Categorical(other.log_softmax(1))
    theirs = torch.distributions.Categorical(logits=mean)
    action = p.sample(rng)
    torch.testing.assert_close(p.logp(action), theirs.log_prob(action[:, 0]))
    torch.testing.assert_close(p.entropy(), theirs.entropy())
    want = torch.distributions.kl_divergence(theirs, torch.distributions.Categorical(logits=other))
    torch.testing.assert_close(p.divergence(q).squeeze(1), want)
    assert p.mode()[:, 0].tolist() == mean.argmax(1).tolist()
    assert torch.equal(p.select(torch.tensor([2])).logp(action[2:3]), p.logp(action)[2:3])


def test_samples_have_the_distribution_that_logp_says():
    rng = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    shares = torch.bincount(Categorical(p).sample(rng)[:, 0].long()) / 20_000
    torch.testing.assert_close(shares, p[0].exp(), atol=0.015, rtol=0)
    drawn = Gaussian(torch.full((20_000, 1), 2.0), torch.full((20_000, 1), 0.5).log()).sample(rng)
    assert float(drawn.mean()) == pytest.approx(2, abs=0.02) and float(drawn.std()) == pytest.approx(0.5, abs=0.02)


def rollout(steps=24, environments=2, space=BOX, seed=0, ends=True):
    rng = torch.Generator().manual_seed(seed)
    shape = (steps, environments)
    observation = torch.randn(steps + 1, environments, space.observations, generator=rng, dtype=torch.float64)
    if space.discrete:
        action = torch.randint(space.actions, (*shape, 1), generator=rng).double()
    else:
        action = torch.randn(*shape, space.actions, generator=rng, dtype=torch.float64)
    over = (torch.rand(shape, generator=rng) < 0.15).double() * ends
    reward = torch.randn(shape, generator=rng, dtype=torch.float64)
    return Transitions(observation[:-1], action, reward, observation[1:], over, 0 * over, torch.full(shape, 0.99))


def double(learner):
    for module in learner.modules.values():
        module.double()
    return learner


class Agent(nn.Module):
    """Two networks as CleanRL's script has them, with the weights of ours."""

    def __init__(self, learner):
        super().__init__()
        self.mean, self.value = sequential(learner.actor.net), sequential(learner.critic)
        self.log_std = nn.Parameter(learner.actor.log_std.detach().clone())

    def forward(self, observation, action):
        mean = self.mean(observation)
        p = Normal(mean, self.log_std.exp().expand_as(mean))
        return p.log_prob(action).sum(1), p.entropy().sum(1), self.value(observation).squeeze(1)


def sequential(net):
    layers = []
    for w, b in zip(net.weights, net.biases):
        linear = nn.Linear(*w.shape).double()
        linear.weight.data, linear.bias.data = w.detach().T.clone(), b.detach().clone()
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def transcribed(agent, data, generator, *, lr, epochs, minibatches, entropy_weight, clip_value, norm):
    """One update as CleanRL's script for continuous actions defines it, time-outs aside."""
    optimiser = torch.optim.Adam(agent.parameters(), lr=lr, eps=1e-5)
    steps, environments = data.reward.shape
    flat = lambda x: x.reshape(steps * environments, -1)  # noqa: E731
    with torch.no_grad():
        logp, _, value = agent(flat(data.observation), flat(data.action))
        value = value.view(steps, environments)
        last = agent.value(data.next_observation[-1]).squeeze(1)
        advantage, carried = torch.zeros_like(data.reward), 0
        for t in reversed(range(steps)):
            going = 1 - data.terminated[t]
            after = last if t == steps - 1 else value[t + 1]
            carried = data.reward[t] + 0.99 * after * going - value[t] + 0.99 * 0.95 * going * carried
            advantage[t] = carried
        returns = (advantage + value).flatten()
        advantage, value = advantage.flatten(), value.flatten()
    size = len(returns) // minibatches
    for _ in range(epochs):
        order = torch.randperm(len(returns), generator=generator)
        for start in range(0, len(returns), size):
            rows = order[start : start + size]
            new, entropy, v = agent(flat(data.observation)[rows], flat(data.action)[rows])
            ratio, a = (new - logp[rows]).exp(), advantage[rows]
            if norm:
                a = (a - a.mean()) / (a.std() + 1e-8)
            policy = torch.max(-a * ratio, -a * ratio.clamp(0.8, 1.2)).mean()
            worst = (v - returns[rows]) ** 2
            if clip_value:
                near = value[rows] + (v - value[rows]).clamp(-0.2, 0.2)
                worst = torch.max(worst, (near - returns[rows]) ** 2)
            loss = policy - entropy_weight * entropy.mean() + 0.5 * (0.5 * worst.mean())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimiser.step()


@pytest.mark.parametrize(("entropy_weight", "clip_value", "norm"), [(0.0, True, True), (0.01, False, False)])
def test_one_update_is_cleanrls(entropy_weight, clip_value, norm):
    s = ProximalPolicy(
        hidden=(16, 16), lr=3e-3, minibatches=4, epochs=5, entropy_weight=entropy_weight, clip_value=clip_value,
        normalise_advantage=norm, normalise_observation=False, normalise_reward=False,
    )  # fmt: skip
    learner, data = double(s(BOX, 1)), rollout()
    agent, before = Agent(learner), learner.actor.net.weights[0].detach().clone()
    learner.update([data], torch.Generator().manual_seed(5))
    transcribed(agent, data, torch.Generator().manual_seed(5), lr=3e-3, epochs=5, minibatches=4,
                entropy_weight=entropy_weight, clip_value=clip_value, norm=norm)  # fmt: skip
    for net, mine in ((agent.mean, learner.actor.net), (agent.value, learner.critic)):
        for linear, w, b in zip(net[::2], mine.weights, mine.biases):
            torch.testing.assert_close(linear.weight.T, w, atol=1e-6, rtol=0)
            torch.testing.assert_close(linear.bias, b, atol=1e-6, rtol=0)
    torch.testing.assert_close(agent.log_std, learner.actor.log_std, atol=1e-6, rtol=0)
    assert (before - learner.actor.net.weights[0]).abs().max() > 1e-3


def test_a_time_out_bootstraps_and_an_end_does_not():
    s = ProximalPolicy(normalise_observation=False, normalise_reward=False, epochs=1, minibatches=1)
    made = {}
    for kind in ("terminated", "truncated", "neither"):
        learner, data = double(s(BOX, 1)), rollout(ends=False)
        flag = torch.zeros_like(data.reward)
        flag[-1] = 1
        data = data if kind == "neither" else replace(data, **{kind: flag})
        learner.update([data], torch.Generator().manual_seed(0))
        made[kind] = learner.critic.weights[0].detach().clone()
    assert torch.equal(made["truncated"], made["neither"])  # both bootstrap from what was seen last
    assert not torch.equal(made["terminated"], made["neither"])


def test_the_first_ratio_is_one_and_equal_advantages_move_the_policy_nowhere():
    space = Space(4, 3, True)
    learner = double(ProximalPolicy(value_weight=0.0)(space, 0))
    data = rollout(space=space)
    flat = [x.flatten(0, 1) for x in (data.observation, data.action)]
    logp = learner.actor(flat[0]).logp(flat[1]).detach()
    batch = Samples(*flat, logp, torch.zeros_like(logp), torch.ones_like(logp))
    loss, log = surrogate(learner.actor, learner.critic, batch, learner.settings)
    loss.backward()
    assert float(log["kl/k3"]) == pytest.approx(0, abs=1e-12) and float(log["ratio/clipped"]) == 0
    assert max(float(p.grad.abs().max()) for p in learner.actor.parameters()) < 1e-9


def test_the_rate_falls_to_zero_over_the_run():
    s = ProximalPolicy(lr=0.1)
    optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    rates = []
    for seen in (0, 2048, 4096, 6144):
        anneal(optimiser, s, seen, 8192)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    anneal(optimiser, s, 6144, 0)
    assert optimiser.param_groups[0]["lr"] == 0.1
    anneal(optimiser, replace(s, anneal=False), 6144, 8192)
    assert optimiser.param_groups[0]["lr"] == 0.1


def test_a_bound_on_the_divergence_ends_the_passes():
    data = rollout(steps=64)
    runs = {}
    for bound in (None, 1e-9):
        learner = double(ProximalPolicy(lr=1e-2, target_kl=bound, minibatches=2)(BOX, 0))
        learner.update([data], torch.Generator().manual_seed(0))
        [runs[bound]] = {int(v["step"]) for v in learner.optimisers["optimiser"].state_dict()["state"].values()}
    assert runs == {None: 20, 1e-9: 2}


def test_initial_weights():
    learner = ProximalPolicy()(BOX, 0)
    first, _, last = learner.actor.net.weights
    torch.testing.assert_close(first @ first.T, 2 * torch.eye(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(last.T @ last, 1e-4 * torch.eye(3), atol=1e-7, rtol=0)
    torch.testing.assert_close(learner.critic.weights[-1].norm(), torch.tensor(1.0))
    assert learner.actor.log_std.tolist() == [0, 0, 0] and not learner.critic.biases[0].any()
    assert isinstance(learner.actor, GaussianActor)
    assert isinstance(ProximalPolicy()(Space(5, 3, True), 0).actor, CategoricalActor)


def loop(seed=0, **knobs):
    given = {"horizon": 64, "environments": 2, "minibatches": 4, "epochs": 2} | knobs
    recipe, task = ppo_control(**given), load_environment("gym/Pendulum-v1")
    envs = Environments(task.vector(recipe.environments), seed)
    return OnPolicyLoop(recipe, recipe.learner(task.space, seed), envs, task.space, seed)


def test_a_saved_loop_goes_on_to_the_same_bits():
    one, two, other = loop(), loop(seed=7), loop(seed=1)
    one.run(256)
    two.run(128)
    two.seed = one.seed
    two.restore(json.loads(json.dumps(one.state())), one.tensors())
    log, again = one.run(256), two.run(256)
    assert log == again
    for name, value in one.tensors()["learner"].items():
        assert torch.equal(value, two.tensors()["learner"][name]), name
    assert [n for n in log if not documented(n)] == []
    other.run(512)
    assert not torch.equal(other.learner.actor.net.weights[0], one.learner.actor.net.weights[0])
    assert int(one.learner.seen.steps) == 512


def test_normalisation_off_leaves_moments_aside():
    one = loop(normalise_observation=False, normalise_reward=False)
    one.run(128)
    x = torch.randn(3, 3)
    assert one.learner.inputs(x) is x
    two = loop()
    two.run(128)
    assert not torch.equal(two.learner.inputs(x), x)
    assert not torch.equal(one.learner.critic.weights[0], two.learner.critic.weights[0])


def test_it_learns_cart_pole(tmp_path):
    knobs = {"horizon": 128, "environments": 4, "minibatches": 4, "lr": 1e-3}
    run = train_controller("ppo-control", task="gym/CartPole-v1", steps=10_240, eval_every=0, checkpoint_every=0, eval_episodes=5,
                           out=tmp_path / "run", knobs=knobs, quiet=True, trackers=())  # fmt: skip
    first, last = run.evaluations()[0]["eval/return"], run.evaluations()[-1]["eval/return"]
    assert first < 60 and last > 150
