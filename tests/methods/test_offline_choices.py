"""Offline learners of discrete actions: numbers worked by hand, identities between them, what their updates do."""

import json

import pytest
import torch

from anypolicy.cli.app import main
from anypolicy.data.demonstrations import Episode, save_episodes
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families.control import ControlSettings, World, plan, resume, train_controller
from anypolicy.learners.base import tensors_of
from anypolicy.loops.control import OfflineLoop, OffPolicyLoop
from anypolicy.methods.control.bcq import ConstrainedQ, allowed, cloning_loss, masked
from anypolicy.methods.control.bve import BehaviourValue, with_next_action
from anypolicy.methods.control.cql import ConservativeQ, conservative
from anypolicy.methods.control.crr import CriticRegularised, advantage, regression, weights_of
from anypolicy.methods.control.dqn import DoubleQ
from anypolicy.methods.control.mce import ReturnRegression, monte_carlo, with_return
from anypolicy.methods.control.qr_dqn import QuantileQ, quantile_loss
from anypolicy.methods.control.rem import EnsembleMixture, mixed, mixture
from anypolicy.parts.choices import best, copy_every, double_target, epsilon_greedy, falling, huber, taken
from anypolicy.policies.control.actors import CategoricalActor
from anypolicy.policies.control.mlp import MLP
from anypolicy.tasks.control.environments import Space

SPACE, BOX = Space(3, 4, True), Space(3, 2, False, (-1.0, -1.0), (1.0, 1.0))
RNG = torch.Generator


def batch_of(n=16, seed=0, **more):
    rng, zeros = torch.Generator().manual_seed(seed), torch.zeros(n)
    fields = {"observation": torch.randn(n, 3, generator=rng), "action": torch.randint(4, (n, 1), generator=rng).float(),
              "reward": torch.randn(n, generator=rng), "next_observation": torch.randn(n, 3, generator=rng),
              "terminated": zeros, "truncated": zeros, "discount": zeros + 0.9}  # fmt: skip
    return Transitions(**fields | more)


# --- numbers ---------------------------------------------------------------------------------------------------------
def test_returns(f64):
    reward, ended = f64(1.0, 2.0, 3.0, 4.0, 5.0), f64(0.0, 0.0, 1.0, 0.0, 1.0)
    assert monte_carlo(reward, ended, 0.95).tolist() == pytest.approx([5.6075, 4.85, 3, 8.75, 5], abs=1e-12)
    assert monte_carlo(reward, 0 * ended, 1.0).tolist() == [15, 14, 12, 9, 5]


def test_the_double_target_and_the_huber_loss(f64):
    q, copy, one = f64([[1.0, 3, 2]]), f64([[5.0, 0.5, 7]]), f64([1.0])
    y = double_target(one, 0.95 * one, q, copy)
    assert y.tolist() == pytest.approx([1.475], abs=1e-12)
    assert float(one + 0.95 * copy.amax()) == pytest.approx(7.65)
    assert float(huber(f64([0.2]), y)) == pytest.approx(0.775, abs=1e-12)
    assert float(huber(f64([1.0]), f64([0.6]))) == pytest.approx(0.08, abs=1e-12)
    assert float(double_target(one, 0 * one, q, copy)) == 1


def test_the_quantile_loss(f64):
    theta, y = f64([[0.0, 1.0]]), f64([[0.5, 2.0]])
    assert float(quantile_loss(theta, y)) == pytest.approx(0.406250, abs=1e-12)
    tau, delta = f64([0.5, 1.0]), y[:, None, :] - theta[:, :, None]
    huber_of = torch.where(delta.abs() < 1, delta**2 / 2, delta.abs() - 0.5)
    other = (tau[None, None, :] - (delta < 0).double()).abs() * huber_of
    assert float(other.mean(2).sum(1).mean()) == pytest.approx(1.0625, abs=1e-12), "the form of the authors' code"


def test_five_quantiles_of_a_normal_distribution_stay_five():
    y = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    theta = torch.zeros(1, 5, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=0.01)
    for _ in range(1500):
        adam.zero_grad()
        quantile_loss(theta, y).backward()
        adam.step()
    found = theta.detach()[0]
    assert found.tolist() == pytest.approx([-1.0, -0.39, 0.01, 0.41, 1.01], abs=0.06)
    assert found.max() - found.min() > 1.5


def test_the_conservative_term(f64):
    q, action = f64([[1.0, 2, 3]]), f64([[0.0]])
    assert 0.1 * float(conservative(q, action)) == pytest.approx(0.240761, abs=1e-6)
    assert float(conservative(q + 5, action)) == pytest.approx(float(conservative(q, action)), abs=1e-12)
    rng = torch.Generator().manual_seed(1)
    for _ in range(200):
        q = torch.randn(6, 4, generator=rng, dtype=torch.float64)
        a = torch.randint(4, (6, 1), generator=rng).double()
        assert float(conservative(q, a)) > 0, "−ln of a probability"
        assert float(conservative(q, a)) == pytest.approx(float(cloning_loss(q, a)), abs=1e-12)


def test_the_constraint(f64):
    logits = f64([[2.0, 1, 0]])
    ratios = (logits - 2).exp()
    assert ratios[0].tolist() == pytest.approx([1, 0.367879, 0.135335], abs=1e-6)
    assert allowed(logits, 0.3).tolist() == [[True, True, False]]
    assert allowed(logits, 0.4).tolist() == [[True, False, False]]
    assert 0.01 * float(logits.square().mean()) == pytest.approx(0.016667, abs=1e-6)
    assert float(cloning_loss(logits, f64([[1.0]]))) == pytest.approx(1.407606, abs=1e-6)
    assert masked(f64([[1.0, 2, 3]]), allowed(logits, 0.3)).tolist() == [[1, 2, -9e9]]
    for wrong in (-0.1, 1.0, 1.5):
        with pytest.raises(InputError, match="threshold"):
            allowed(logits, wrong)
    with pytest.raises(InputError, match="threshold"):
        plan("bcq", ControlSettings("gym/CartPole-v1", demos="x"), {"threshold": 1.0})


def test_weights_and_advantages(f64):
    q, action, own = f64([[1.0, 2, 4]]), f64([[2.0]]), f64([[0.0, 1, 1, 2]])
    assert float(advantage(q, action, own, "mean")) == pytest.approx(4 - 9 / 4)
    assert float(advantage(q, action, own, "max")) == 0
    a = f64([0.0, -1.0, 0.5, 100.0])
    assert weights_of(a, "binary", 1.0).tolist() == [0, 0, 1, 1]
    assert weights_of(a, "exponential", 0.5).tolist() == pytest.approx([1, 0.135335, 2.718282, 20], abs=1e-6)
    logp = f64([-1.0, -2.0, -3.0, -4.0])
    assert float(regression(logp, weights_of(a, "binary", 1.0))) == pytest.approx(7 / 4)


def test_epsilon_falls_in_a_line_and_explores_that_much():
    assert [falling(n, 1.0, 0.01, 1000) for n in (0, 500, 1000, 5000)] == pytest.approx([1, 0.505, 0.01, 0.01])
    q = torch.tensor([[0.0, 1, 0, 0]]).expand(20_000, 4)
    rng = torch.Generator().manual_seed(0)
    assert float((epsilon_greedy(q, 0.4, rng) != 1).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert bool((epsilon_greedy(q, 0.0, rng) == 1).all())


# --- identities ------------------------------------------------------------------------------------------------------
def test_without_a_threshold_bcq_has_the_target_of_dqn_and_near_one_it_clones():
    for seed in range(100):
        batch = batch_of(seed=seed)
        free, bound = (ConstrainedQ(hidden=(8,), threshold=t)(SPACE, seed) for t in (0.0, 1 - 1e-6))
        q, copy = free.critic(batch.next_observation), free.target(batch.next_observation) + 1
        y = batch.reward + batch.continues * taken(copy, free.choose(batch.next_observation))
        assert torch.equal(y, double_target(batch.reward, batch.continues, q, copy))
        assert torch.equal(bound.choose(batch.observation), best(bound.behaviour(batch.observation)))


def test_identical_heads_are_double_q_learning_for_every_mixture():
    rng = torch.Generator().manual_seed(0)
    q, copy = torch.randn(16, 4, generator=rng), torch.randn(16, 4, generator=rng)
    for _ in range(200):
        alpha = mixture(7, rng)
        assert float(alpha.sum()) == pytest.approx(1, abs=1e-6) and bool((alpha >= 0).all())
        same = [mixed(x.repeat(1, 7), alpha) for x in (q, copy)]
        assert torch.allclose(same[0], q, atol=1e-5)
        batch = batch_of()
        assert torch.allclose(double_target(batch.reward, batch.continues, *same),
                              double_target(batch.reward, batch.continues, q, copy), atol=1e-5)  # fmt: skip
    heads = torch.tensor([[1.0, 2, 10, 20]])
    assert mixed(heads, torch.tensor([0.25, 0.75])).tolist() == [[7.75, 15.5]]


def test_with_weights_of_one_crr_clones():
    actor = CategoricalActor(3, 4, (8,), torch.Generator().manual_seed(0))
    batch = batch_of()
    policy = actor(batch.observation)
    one = regression(policy.logp(batch.action), torch.ones(16))
    assert torch.allclose(one, cloning_loss(policy.log_probabilities, batch.action))


# --- updates ---------------------------------------------------------------------------------------------------------
MAKERS = [DoubleQ, ConservativeQ, QuantileQ, EnsembleMixture, ConstrainedQ, CriticRegularised]


@pytest.mark.parametrize("make", MAKERS)
def test_targets_are_copied_after_every_so_many_updates_and_get_no_gradient(make):
    learner = make(hidden=(8,), copy_every=3)(SPACE, 0)
    pairs = [(m, learner.modules[k.removeprefix("target_")]) for k, m in learner.modules.items() if "target" in k]
    assert pairs

    def same():
        return all(torch.equal(a, b) for t, o in pairs for a, b in zip(t.parameters(), o.parameters()))

    seen = []
    for _ in range(7):
        seen.append(same())
        learner.update([batch_of()], torch.Generator().manual_seed(0))
    assert seen == [True, False, False, True, False, False, True]
    assert all(p.grad is None for t, _ in pairs for p in t.parameters())


@pytest.mark.parametrize("make", [*MAKERS, BehaviourValue])
def test_only_termination_ends_a_return(make):
    n, one, zero = 16, torch.ones(16), torch.zeros(16)

    def after(**more):
        learner = make(hidden=(8,))(SPACE, 0)
        for name, module in learner.modules.items():
            if name.startswith("target"):
                for p in module.parameters():
                    p.add_(0.1)
        batch = batch_of(n, **more)
        if make is BehaviourValue:
            batch = Transitions(**{**vars(batch), "action": batch.action.repeat(1, 2)})
        learner.update([batch], torch.Generator().manual_seed(3))
        return [p.clone() for p in learner.critic.parameters()]

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a, b))

    later = torch.randn(n, 3, generator=torch.Generator().manual_seed(9))
    assert same(after(), after(truncated=one))
    assert not same(after(), after(terminated=one))
    assert same(after(terminated=one), after(terminated=one, next_observation=later))
    assert not same(after(terminated=zero), after(next_observation=later))


def test_the_logged_losses_are_those_of_the_equations():
    batch = batch_of()
    for make in (DoubleQ, ConservativeQ):
        learner = make(hidden=(8,))(SPACE, 0)
        learner.target.weights[-1].mul_(1.5)
        q, later = learner.critic(batch.observation), batch.next_observation
        a, rows = batch.action[:, 0].long(), torch.arange(16)
        choice = learner.critic(later).argmax(1)
        y = batch.reward + 0.9 * learner.target(later)[rows, choice]
        delta = (q[rows, a] - y).abs()
        wanted = float(torch.where(delta < 1, delta**2 / 2, delta - 0.5).mean().detach())
        log = learner.update([batch], torch.Generator())
        assert log["loss/critic"] == pytest.approx(wanted, rel=1e-5)
        assert log["q/mean"] == pytest.approx(float(q[rows, a].mean().detach()), rel=1e-4, abs=1e-6)
        if "loss/conservative" in log:
            wanted = (q.exp().sum(1).log() - q[rows, a]).mean()
            assert log["loss/conservative"] == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_the_next_action_is_the_one_that_was_taken():
    over = torch.tensor([0.0, 0, 1])
    step = batch_of(3, action=torch.tensor([[1.0], [2.0], [3.0]]))
    ended = with_next_action(Transitions(**{**vars(step), "terminated": over}))
    cut = with_next_action(Transitions(**{**vars(step), "truncated": over}))
    assert ended.action.tolist() == [[1, 2], [2, 3], [3, 0]]
    assert cut.action.tolist() == [[1, 2], [2, 3]], "a step that a time limit cut has no next action"
    learner = BehaviourValue(hidden=(8,))(SPACE, 0)
    q = learner.critic(cut.next_observation).detach()
    y = cut.reward + 0.9 * torch.stack([q[0, 2], q[1, 3]])
    mine = learner.critic(cut.observation).detach()
    wanted = huber(torch.stack([mine[0, 1], mine[1, 2]]), y)
    assert learner.update([cut], torch.Generator())["loss/critic"] == pytest.approx(float(wanted), rel=1e-5)


def test_returns_are_cut_by_termination_and_by_time_limits():
    step = batch_of(3, reward=torch.tensor([1.0, 2, 3]))
    for name in ("terminated", "truncated"):
        made = with_return(Transitions(**{**vars(step), name: torch.tensor([0.0, 0, 1])}))
        assert made.reward.tolist() == pytest.approx([1 + 0.9 * (2 + 0.9 * 3), 2 + 0.9 * 3, 3])
        assert made.continues.tolist() == [0, 0, 0]
    learner = ReturnRegression(hidden=(8,))(SPACE, 0)
    q = taken(learner.critic(made.observation), made.action).detach()
    assert learner.update([made], torch.Generator())["loss/critic"] == pytest.approx(
        float(huber(q, made.reward)), rel=1e-5
    )


def test_networks_begin_as_the_papers_do():
    net = MLP([400, 300, 2], torch.Generator().manual_seed(0), activation="selu", init="kaiming")
    assert float(net.weights[0].std()) == pytest.approx(1 / 20, rel=0.02)
    assert float(net.weights[1].std()) == pytest.approx(1 / 300**0.5, rel=0.1)
    assert float(net.biases[0].abs().max()) <= 1 / 20 and float(net.biases[0].abs().max()) > 0.9 / 20
    x = torch.tensor([[-1.0] + [0.0] * 399])
    selu = torch.nn.functional.selu(x @ net.weights[0] + net.biases[0])
    assert torch.allclose(net(x), selu @ net.weights[1] + net.biases[1], atol=1e-5)


def test_a_copy_is_whole():
    a, b = torch.zeros(3), torch.ones(3)
    copy_every([a], [b], 5, 2)
    assert a.tolist() == [0, 0, 0]
    copy_every([a], [b], 6, 2)
    assert a.tolist() == [1, 1, 1]


# --- as a user runs them ---------------------------------------------------------------------------------------------
@pytest.fixture
def demos(tmp_path):
    """Episodes of two steps of CartPole's shape: action 1 is rewarded, and action 0 taken less often."""
    rng, made = torch.Generator().manual_seed(0), []
    for i in range(90):
        seen, action = torch.randn(3, 4, generator=rng), torch.tensor([[float(i % 5 > 1)], [float(i % 3 > 0)]])
        made.append(Episode(seen, action, action[:, 0].clone(), torch.tensor([0.0, 1.0]), torch.zeros(2)))
    save_episodes(tmp_path / "demos.safetensors", made)
    return str(tmp_path / "demos.safetensors")


@pytest.mark.parametrize("slug", ["dqn", "cql", "bve", "mce", "qr-dqn", "rem", "bcq", "crr"])
def test_all_find_the_rewarded_action(slug, demos, tmp_path):
    size = {"qr-dqn": {"quantiles": 8}, "rem": {"heads": 8}}.get(slug, {})
    run = train_controller(slug, task="gym/CartPole-v1:max_steps=20", demos=demos, steps=400, trackers=(), quiet=True,
                           eval_episodes=1, out=tmp_path / "run", knobs={"hidden": (16, 16), "lr": 5e-3} | size)  # fmt: skip
    seen = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    acted = run.learner.act(seen, torch.Generator().manual_seed(2), explore=False).executed
    assert float(acted.mean()) > 0.85


def test_dqn_acts_without_demonstrations_and_not_with_them(demos, tmp_path):
    settings = ControlSettings("gym/CartPole-v1", steps=40, trackers=())
    acting = World(plan("dqn", settings, {"hidden": (8,)})).loop
    assert isinstance(acting, OffPolicyLoop) and acting.recipe.batch == 32 and acting.warmup == 32
    acting.run(33)
    assert acting.updates == 1, "from step 33 on"
    alone = World(plan("dqn", ControlSettings("gym/CartPole-v1", demos=demos, trackers=()), {"hidden": (8,)})).loop
    assert isinstance(alone, OfflineLoop) and alone.recipe.batch == 128


@pytest.mark.parametrize("slug", ["bc", "bcq", "crr", "cql"])
def test_the_task_says_how_many_actions_there_are(slug, tmp_path):
    one = Episode(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 1), torch.ones(2),
                  torch.tensor([0.0, 1.0]), torch.zeros(2))  # fmt: skip
    save_episodes(tmp_path / "zeros.safetensors", [one])
    settings = ControlSettings("gym/CartPole-v1", demos=str(tmp_path / "zeros.safetensors"), trackers=())
    world = World(plan(slug, settings, {"hidden": (8,)}))
    world.begin()
    assert world.loop.offline is not None and world.loop.offline.all().action.max() == 0
    for name, module in world.learner.modules.items():
        if name != "counter":
            assert list(module.parameters())[-1].shape[-1] == 2


def test_the_command_line_trains_resumes_evaluates_and_compares(demos, tmp_path, capsys):
    given = [
        "--task",
        "gym/CartPole-v1:max_steps=20",
        "--demos",
        demos,
        "--trackers",
        "--eval-episodes",
        "1",
        "--quiet",
    ]
    small = ["--cql.hidden", "8", "8", "--cql.alpha", "0.5"]
    for name, steps in (("whole", "40"), ("half", "20")):
        assert main(["train", "cql", *given, *small, "--steps", steps, "--out", str(tmp_path / name)]) == 0
    assert main(["resume", str(tmp_path / "half"), "--steps", "40", "--quiet"]) == 0
    a, b = (json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[-1]) for n in ("whole", "half"))
    assert a == b
    again = resume(tmp_path / "half", steps=40, quiet=True)
    whole = resume(tmp_path / "whole", steps=40, quiet=True)
    assert all(torch.equal(v, tensors_of(again.learner)[k]) for k, v in tensors_of(whole.learner).items())
    assert main(["eval", str(tmp_path / "whole"), "--episodes", "2"]) == 0
    compared = [
        "compare",
        "dqn",
        "cql",
        *given,
        "--dqn.hidden",
        "8",
        "--cql.hidden",
        "8",
        "--steps",
        "10",
        "--seeds",
        "2",
    ]
    assert main([*compared, "--out", str(tmp_path / "compared")]) == 0
    assert "cql" in capsys.readouterr().out


def test_what_is_refused(demos, tmp_path):
    for make in [*MAKERS, BehaviourValue, ReturnRegression]:
        with pytest.raises(InputError, match="choices"):
            make()(BOX, 0)
    for slug, knobs in (("cql", {"alpha": -1.0}), ("qr-dqn", {"quantiles": 0}), ("rem", {"heads": 0}), ("crr", {"beta": 0.0}),
                        ("dqn", {"copy_every": 0}), ("bve", {"lr": 0.0}), ("mce", {"lr": -1.0})):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(knobs))):
            plan(slug, ControlSettings("gym/CartPole-v1", demos=demos), knobs)
    with pytest.raises(InputError, match="demos"):
        plan("cql", ControlSettings("gym/CartPole-v1"))
    cut = [Episode(torch.zeros(2, 4), torch.zeros(1, 1), torch.ones(1), torch.zeros(1), torch.ones(1))]
    save_episodes(tmp_path / "cut.safetensors", cut)
    with pytest.raises(InputError, match="no transition"):
        train_controller("bve", task="gym/CartPole-v1", demos=str(tmp_path / "cut.safetensors"), steps=1, quiet=True,
                         out=tmp_path / "run", trackers=())  # fmt: skip
