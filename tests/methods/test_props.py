"""PROPS: worked numbers, what the behaviour sees and from where it starts, and PPO as its limit."""

import json

import numpy as np
import pytest
import torch

from anypolicy import catalogue
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError
from anypolicy.families.control import train_controller
from anypolicy.loops.control import OnPolicyLoop
from anypolicy.methods.control import props as module
from anypolicy.methods.control.props import avoidance, fitted_error, sampling_error
from anypolicy.parts.distributions import Categorical, Gaussian
from anypolicy.policies.control.actors import CategoricalActor, GaussianActor, likeliest_head
from anypolicy.runs.metrics import documented
from anypolicy.tasks.control.environments import load_environment
from tests.helpers import recipe

ppo_control = recipe("ppo-control")
props = recipe("props")


def slope(pi, counts, clip=0.3):
    """d mean loss / d logits where the behaviour is the policy."""
    policy = torch.tensor(pi, dtype=torch.float64).log()
    logits = policy.clone().requires_grad_()
    action = torch.repeat_interleave(torch.arange(len(pi)), torch.tensor(counts))
    ratio = (logits.log_softmax(0) - policy)[action].exp()
    avoidance(ratio, clip).mean().backward()
    return logits.grad


def test_the_loss_and_its_slope(f64):
    ratio = f64(0.5, 0.69, 0.71, 1.0, 1.2, 1.31, 2.0).requires_grad_()
    loss = avoidance(ratio, 0.3)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.7, 0.7, 0.71, 1, 1.2, 1.31, 2])
    assert ratio.grad.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert avoidance(ratio.detach(), None).tolist() == ratio.tolist()


def test_at_the_policy_the_slope_is_how_much_too_often_an_action_was_drawn():
    assert slope([0.5, 0.3, 0.2], [6, 3, 1]).tolist() == pytest.approx([0.1, 0, -0.1], abs=1e-12)
    g = slope([0.5, 0.5], [3, 1])
    assert g.tolist() == pytest.approx([0.25, -0.25])
    assert (-g).softmax(0).tolist() == pytest.approx([0.377541, 0.622459], abs=1e-6)
    assert slope([0.5, 0.3, 0.2], [5, 3, 2]).abs().max() < 1e-12


def test_sampling_error():
    pi = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    for counts, want in (((6, 3, 1), 0.040078), ((5, 3, 2), 0.0), ((4, 0, 0), 0.693147)):
        action = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
        assert sampling_error(torch.zeros_like(action), action, pi) == pytest.approx(want, abs=1e-6)
    both = torch.cat([pi, pi])
    state = torch.tensor([0] * 10 + [1] * 4)
    action = torch.cat([torch.repeat_interleave(torch.arange(3), torch.tensor(c)) for c in ((6, 3, 1), (4, 0, 0))])
    want = (10 * 0.040078 + 4 * 0.693147) / 14
    assert sampling_error(state, action, both) == pytest.approx(want, abs=1e-6)


def test_gaussian_divergence_is_that_of_the_behaviour_from_the_policy(f64):
    behaviour, policy = Gaussian(f64(0.2, -0.1), f64(0.8, 1.1).log()), Gaussian(f64(0.0, 0.3), f64(1.0, 0.9).log())
    assert behaviour.divergence(policy).tolist() == pytest.approx([0.063144, 0.145008], abs=1e-6)
    assert float(behaviour.divergence(policy).mean()) == pytest.approx(0.104076, abs=1e-6)
    assert policy.divergence(behaviour).tolist() == pytest.approx([0.089356, 0.101497], abs=1e-6)


def test_many_steps_settle_where_the_clip_is():
    policy = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    z, action, seen = policy.clone().requires_grad_(), torch.tensor([0, 0, 0, 1]), []
    for step in range(200):
        avoidance((z.log_softmax(0) - policy)[action].exp(), 0.3).mean().backward()
        with torch.no_grad():
            z -= 0.5 * z.grad
            z.grad = None
        if step >= 20:
            seen.append(float(z.detach().softmax(0)[0]))
    assert min(seen) >= 0.295 and max(seen) <= 0.38
    assert np.mean(seen) == pytest.approx(0.337, abs=0.01)


def test_where_every_pair_is_avoided_already_nothing_moves(f64):
    ratio = f64(0.1, 0.5, 0.6).requires_grad_()
    avoidance(ratio, 0.3).mean().backward()
    assert ratio.grad.tolist() == [0, 0, 0]


def loop(recipe, task="two-step-tree", seed=0):
    task = load_environment(task)
    envs = Environments(task.vector(recipe.environments), seed)
    return OnPolicyLoop(recipe, recipe.learner(task.space, seed), envs, task.space, seed)


SMALL = {"horizon": 32, "buffer": 2, "collect": 8, "minibatches": 4, "epochs": 2, "behaviour_minibatches": 2,
         "behaviour_epochs": 3, "behaviour_lr": 1e-2}  # fmt: skip


@pytest.mark.parametrize("task", ["two-step-tree", "gym/Pendulum-v1"])
def test_without_behaviour_updates_it_is_ppo_bit_for_bit(task):
    shared = {"horizon": 32, "minibatches": 4, "epochs": 2, "lr": 1e-3, "anneal": False, "entropy_weight": 0.01,
              "target_kl": 0.03}  # fmt: skip
    one = loop(ppo_control(**shared), task)
    one.run(128)
    for epochs in (0, 4):  # nothing is left for the behaviour once the oldest m = n steps are left out
        two = loop(props(**shared, buffer=1, collect=32, behaviour_epochs=epochs), task)
        two.run(128)
        for name, value in one.tensors()["learner"].items():
            assert torch.equal(value, two.tensors()["learner"][name]), name


def test_a_great_weight_on_the_divergence_keeps_the_behaviour_at_the_policy():
    gaps = {}
    for weight in (0.0, 1e4):
        one = loop(props(**SMALL | {"behaviour_lr": 1e-4}, kl_weight=weight, kl_bound=None))
        one.run(24)
        a, b = (m.state_dict() for m in (one.learner.target.actor, one.learner.behaviour))
        seen = torch.eye(7)
        gaps[weight] = float(one.learner.behaviour(seen).divergence(one.learner.target.actor(seen)).sum())
        assert any(not torch.equal(a[k], b[k]) for k in a)
    assert gaps[1e4] < gaps[0.0] / 10


def test_the_behaviour_starts_at_the_newest_policy_and_leaves_out_what_will_be_evicted(monkeypatch):
    seen, behind = [], module.avoid

    def watched(behaviour, actor, optimiser, data, *rest):
        for a, b in zip(behaviour.parameters(), actor.parameters()):
            assert torch.equal(a, b)
        seen.append((len(data.value), data.action[:3].flatten().tolist()))
        return behind(behaviour, actor, optimiser, data, *rest)

    monkeypatch.setattr(module, "avoid", watched)
    one = loop(props(**SMALL))
    one.run(80)
    assert [n for n, _ in seen] == [8, 16, 24, 32, 40, 48, 56, 56, 56, 56]
    whole = one.learner.rollouts.all().action.flatten().tolist()
    assert len(whole) == 64 and seen[-1][1] == whole[8:11]


def test_the_bound_stops_before_the_step_that_would_be_taken_beyond_it():
    one = loop(props(**SMALL | {"behaviour_lr": 1.0}, kl_bound=1e-4, kl_weight=0.0))
    log = one.run(8)
    assert log["behaviour/steps"] == 1 and log["behaviour/kl"] > 1e-4
    other = loop(props(**SMALL, kl_bound=None, kl_weight=0.0))
    assert other.run(8)["behaviour/steps"] == 3  # eight of 64 − 8 rows are one mini-batch of 28


def test_the_policy_is_evaluated_not_the_behaviour():
    one = loop(props(**SMALL | {"behaviour_lr": 1.0}, kl_bound=None))
    one.run(8)
    seen, rng = torch.eye(7), torch.Generator().manual_seed(0)
    policy = one.learner.target.actor(one.learner.target.inputs(seen)).mode()
    assert torch.equal(one.learner.act(seen, rng, explore=False).executed, policy)
    drawn = torch.stack([one.learner.act(seen, rng, explore=True).executed for _ in range(2000)]).mean(0)
    want = one.learner.behaviour(one.learner.target.inputs(seen)).log_probabilities[:, 1:].exp()
    torch.testing.assert_close(drawn, want, atol=0.05, rtol=0)


def test_ros_is_a_setting():
    knobs = {"collect": 1, "behaviour_epochs": 1, "behaviour_minibatches": 1, "behaviour_clip": None, "kl_weight": 0.0,
             "kl_bound": None}  # fmt: skip
    one = loop(props(**SMALL | knobs))
    assert one.run(10)["behaviour/steps"] == 1
    [steps] = {int(v["step"]) for v in one.learner.optimisers["behaviour_optimiser"].state_dict()["state"].values()}
    assert steps == 10


def test_weights_by_the_advantage():
    runs = [loop(props(**SMALL | {"collect": 1}, weigh_advantage=w)) for w in (False, True)]
    for one in runs:
        one.run(16)
    a, b = (one.learner.behaviour.net.weights[0] for one in runs)
    assert not torch.equal(a, b) and b.isfinite().all()


def test_a_saved_loop_goes_on_to_the_same_bits_with_what_it_keeps():
    one, two = (loop(props(**SMALL, environments=2, measure_error=True), "grid", seed) for seed in (0, 5))
    one.run(16 * 7)
    two.run(16)
    two.seed = one.seed
    two.restore(json.loads(json.dumps(one.state())), one.tensors())
    log, again = one.run(16 * 6), two.run(16 * 6)
    assert log == again and "sampling_error" in log
    for name, value in one.tensors()["learner"].items():
        assert torch.equal(value, two.tensors()["learner"][name]), name
    assert [n for n in log if not documented(n, catalogue.get("props", "control").card.metrics)] == []


def test_a_fitted_last_layer_measures_what_counts_measure():
    rng = torch.Generator().manual_seed(0)
    actor = CategoricalActor(7, 2, (), rng)
    state = torch.randint(7, (400,), generator=rng)
    action = (torch.rand(400, generator=rng) < 0.7).float()[:, None]
    exact = sampling_error(state, action[:, 0].long(), actor(torch.eye(7)).log_probabilities.detach().exp())
    assert fitted_error(actor, torch.eye(7)[state], action, steps=800, lr=0.02) == pytest.approx(exact, abs=1e-4)
    assert fitted_error(actor, torch.eye(7)[state], action, steps=0) == 0


def test_only_the_last_layer_is_fitted():
    rng = torch.Generator().manual_seed(0)
    actor = GaussianActor(3, 2, (8,), rng)
    seen, action = torch.randn(100, 3, generator=rng), torch.randn(100, 2, generator=rng) + 1
    fitted = likeliest_head(actor, seen, action, steps=20, lr=0.01)
    assert torch.equal(fitted.net.weights[0], actor.net.weights[0])
    assert not torch.equal(fitted.net.weights[1], actor.net.weights[1])
    assert not torch.equal(fitted.log_std, actor.log_std)
    assert fitted(seen).logp(action).mean() > actor(seen).logp(action).mean()
    assert actor.net.weights[1].requires_grad


@pytest.mark.parametrize(
    ("knobs", "match"),
    [({"collect": 1000}, "divisor"), ({"collect": 0}, "at least 1"), ({"buffer": 0}, "at least 1"),
     ({"horizon": 1}, "at least 2"), ({"minibatches": 0}, "at least 1")],
)  # fmt: skip
def test_settings_that_make_no_sense(knobs, match):
    with pytest.raises(InputError, match=match):
        props(**knobs)


def play(env, actions):
    env.reset(seed=0)
    return [env.step(a)[:4] for a in actions]


def test_the_tree():
    env = load_environment("two-step-tree").make()
    for path, leaf, reward in (((0, 0), 3, 2.0), ((0, 1), 4, 0.5), ((1, 0), 5, 1.0), ((1, 1), 6, 1.0)):
        first, second = play(env, path)
        assert first[1:] == (0.0, False, False) and first[0].argmax() == 1 + path[0]
        assert second[1:] == (reward, True, False) and second[0].argmax() == leaf


def test_the_grid():
    task = load_environment("grid:max_steps=6")
    assert (task.space.observations, task.space.actions, task.horizon) == (25, 4, 6)
    env = task.make()
    steps = play(env, (0, 0, 2, 2))
    assert [s[0].argmax() for s in steps] == [7, 2, 1, 0]
    assert [s[1] for s in steps] == [-0.01, -0.01, -0.01, 0.5] and [s[2] for s in steps] == [False] * 3 + [True]
    assert play(env, (1, 1, 3, 3))[-1][1:] == (1.0, True, False)
    assert play(env, (3, 3, 3, 0, 0, 0))[-1][1:] == (-0.01, False, True)


@pytest.mark.parametrize("name", ["two-step-tree", "grid"])
def test_a_test_bed_goes_on_from_its_state_and_can_be_drawn(name):
    task = load_environment(name)
    one, two = Environments(task.vector(2), 0), Environments(task.vector(2), 1)
    acts = torch.randint(2, (60, 2, 1), generator=torch.Generator().manual_seed(0)).float()
    for a in acts[:31]:
        one.step(a)
    two.restore(json.loads(json.dumps(one.state())))
    for a in acts[31:]:
        s, t = one.step(a), two.step(a)
        assert torch.equal(s.next_observation, t.next_observation) and torch.equal(s.reward, t.reward)
        assert torch.equal(s.terminated, t.terminated)
    env = task.make(render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert before.dtype == np.uint8 and before.ndim == 3
    env.step(0)
    assert not np.array_equal(before, env.render())


def test_it_learns_the_tree(tmp_path):
    knobs = {"horizon": 64, "collect": 16, "buffer": 1, "minibatches": 4, "hidden": (16,), "lr": 1e-2,
             "behaviour_lr": 1e-2, "behaviour_minibatches": 1, "normalise_observation": False, "entropy_weight": 0.0, "target_kl": None}  # fmt: skip
    run = train_controller("props", task="two-step-tree", steps=1280, eval_every=0, checkpoint_every=0, out=tmp_path / "run", seed=1,
                           knobs=knobs, quiet=True, trackers=())  # fmt: skip
    assert run.evaluations()[-1]["eval/return"] == 2


def test_probabilities_of_the_behaviour_stay_above_zero():
    one = loop(props(**SMALL | {"behaviour_lr": 0.5, "behaviour_epochs": 16}, kl_bound=0.5, kl_weight=0.0))
    one.run(64)
    pi: Categorical = one.learner.behaviour(torch.eye(7))
    assert float(pi.log_probabilities.exp().min()) > 1e-4
