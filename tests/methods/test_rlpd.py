"""RLPD: worked numbers, identities with soft actor-critic, symmetric sampling, degenerate cases."""

import dataclasses

import pytest
import torch

from anypolicy.data.replay import Replay, mixed
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families import control
from anypolicy.methods.control.rlpd import PriorDataActorCritic, actor_loss, dual_loss, raw_of, temperature_of
from anypolicy.methods.control.sac import SoftActorCritic
from anypolicy.parts.squashed import squashed
from anypolicy.parts.td import critic_loss, soft_target
from anypolicy.policies.control.mlp import q_values
from anypolicy.tasks.control.environments import Space
from tests.helpers import recipe

rlpd = recipe("rlpd")
SPACE = Space(3, 2, False, (-1.0, -1.0), (1.0, 1.0))
Q_BAR = [[1.0, 2.0], [0.8, 2.5], [1.2, 1.5], [0.9, 3.0]]


def batch_of(n: int, seed: int = 0, terminated: float = 0.0) -> Transitions:
    rng = torch.Generator().manual_seed(seed)
    o, a, nxt = (torch.randn(n, k, generator=rng) for k in (3, 2, 3))
    return Transitions(o, a.tanh(), torch.rand(n, generator=rng), nxt, torch.full((n,), terminated), torch.ones(n),
                       torch.full((n,), 0.99))  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_target_with_and_without_entropy(f64):
    q, reward, going = f64(*Q_BAR)[[1, 3]], f64(0.0, 1.0), 0.96 * f64(1.0, 0.0)
    assert soft_target(reward, going, q).tolist() == pytest.approx([0.768, 1.0], abs=1e-12)
    got = soft_target(reward, going, q, f64(-1.5, -0.5), 0.05)
    assert got.tolist() == pytest.approx([0.840, 1.0], abs=1e-12)


def test_critic_and_actor_losses(f64):
    q = f64([0.9, 1.1], [1.0, 0.7], [0.8, 1.0], [0.7, 0.9])
    assert float(critic_loss(q, f64(0.768, 1.0)) * 2 / 4) == pytest.approx(0.023362, abs=1e-6)
    logp = f64(-1.5, -0.5)
    assert (f64(*Q_BAR).mean(0) - 0.05 * logp).tolist() == pytest.approx([1.05, 2.275])
    assert float(actor_loss(f64(*Q_BAR), logp, 0.05)) == pytest.approx(-1.6625)


def test_softplus_temperature():
    raw = torch.tensor(-4.600166, dtype=torch.float64, requires_grad=True)
    assert float(temperature_of(raw, "softplus").detach()) == pytest.approx(0.01, abs=1e-8)
    loss = dual_loss(raw, torch.full((5,), -1.0, dtype=torch.float64), -2.0, "softplus")
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.03, abs=1e-7)
    assert float(raw.grad) == pytest.approx(0.029850, abs=1e-6)
    for form in ("exp", "softplus"):
        assert float(temperature_of(raw_of(0.2, form), form)) == pytest.approx(0.2)


def test_squashed_density_of_a_given_u(f64):
    mean, log_std, u = f64([0.3]), f64([0.5]).log(), f64([0.8])
    action, logp = squashed(mean, log_std, (u - mean) / log_std.exp())
    assert float(action) == pytest.approx(0.664037, abs=1e-6) and float(logp) == pytest.approx(-0.144284, abs=1e-6)
    naive = torch.distributions.Normal(0.3, 0.5).log_prob(u) - (1 - u.tanh() ** 2).log()
    assert float(naive) == pytest.approx(float(logp), abs=1e-6)


def test_minimum_over_a_subset_and_mean_over_all(f64):
    q = f64([5.0, 2.0], [6.0, 1.0], [4.0, 3.0], [7.0, 0.5])
    zero, one = f64(0.0, 0.0), f64(1.0, 1.0)
    assert soft_target(zero, one, q[[0, 2]]).tolist() == [4, 2]
    assert float(actor_loss(q, zero, 0.0)) == pytest.approx(-(5.5 + 1.625) / 2)


@pytest.mark.parametrize("members", [[3, 1], [0, 0, 2]])
def test_a_part_of_the_ensemble_is_the_same_as_its_rows(members):
    learner = PriorDataActorCritic((8, 8), ensemble=4)(SPACE, 0)
    b = batch_of(6)
    whole = q_values(learner.targets, b.observation, b.action)
    torch.testing.assert_close(
        q_values(learner.targets, b.observation, b.action, torch.tensor(members)), whole[members]
    )


def pair(**more):
    """A soft actor-critic, and this method reduced to it, with the same weights."""
    ours = PriorDataActorCritic((16,), ensemble=2, subset=2, layer_norm=False, **more)(SPACE, 1)
    base = SoftActorCritic((16,), target_entropy=-1.0, actor_q="mean", alpha_form="alpha")(SPACE, 2)
    for name, module in base.modules.items():
        ours.modules[name].load_state_dict(module.state_dict())
    return ours, base


def test_reduced_it_is_soft_actor_critic_bit_for_bit():
    ours, base = pair()
    for step in range(5):
        one, two = (x.update([batch_of(48, step)], generator(step)) for x in (ours, base))
        assert one["loss/critic"] == two["loss/critic"] and one["alpha"] == two["alpha"]
    for name in base.modules:
        for a, b in zip(ours.modules[name].parameters(), base.modules[name].parameters(), strict=True):
            assert torch.equal(a, b), name


def test_without_backed_up_entropy_it_is_not():
    ours, base = pair(backup_entropy=False)
    one, two = (x.update([batch_of(48)], generator()) for x in (ours, base))
    assert one["loss/critic"] != two["loss/critic"]


def test_critics_learn_from_every_batch_and_the_actor_from_the_last():
    batches = [batch_of(8, k) for k in range(3)]
    learners = [PriorDataActorCritic((8,), ensemble=3)(SPACE, 0) for _ in range(3)]
    start = [p.clone() for p in learners[0].actor.parameters()]
    rng = generator(5)
    for b in batches:
        learners[0].update_critics(b, rng)
    assert all(torch.equal(a, b) for a, b in zip(start, learners[0].actor.parameters(), strict=True))
    learners[0].update_actor(batches[2], rng)
    learners[1].update(batches, generator(5))
    learners[2].update(batches[::-1], generator(5))
    weights = [[p for m in x.modules.values() for p in m.parameters()] for x in learners]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))
    assert int(learners[1].optimisers["critic_optimiser"].state_dict()["state"][0]["step"]) == 3
    assert int(learners[1].optimisers["actor_optimiser"].state_dict()["state"][0]["step"]) == 1


def test_targets_move_by_tau_and_the_actor_leaves_the_critics_alone():
    learner = PriorDataActorCritic((8,), ensemble=3)(SPACE, 0)
    before = [p.clone() for p in learner.targets.parameters()]
    learner.update_critics(batch_of(8), generator())
    for old, new, online in zip(before, learner.targets.parameters(), learner.critics.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.005 * (online - old))
    kept = [p.clone() for p in learner.critics.parameters()]
    gradients = [p.grad.clone() for p in learner.critics.parameters()]
    learner.update_actor(batch_of(8), generator())
    assert all(torch.equal(a, b) for a, b in zip(kept, learner.critics.parameters(), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, learner.critics.parameters(), strict=True))


def test_ended_rows_ignore_the_targets_and_time_limits_do_not():
    learner, other = (PriorDataActorCritic((8,), ensemble=3)(SPACE, 0) for _ in range(2))
    for p in other.targets.parameters():
        p.data += 7
    losses = [x.update_critics(batch_of(8, terminated=1.0), generator())["loss/critic"] for x in (learner, other)]
    assert losses[0] == losses[1]
    losses = [x.update_critics(batch_of(8), generator())["loss/critic"] for x in (learner, other)]
    assert losses[0] != losses[1]  # all these rows are truncated


def test_critics_are_normalised_and_the_actor_is_not():
    learner = PriorDataActorCritic((8, 8), ensemble=3)(SPACE, 0)
    assert len(learner.critics.scales) == 2 and not len(learner.actor.net.scales)
    assert len(PriorDataActorCritic((8, 8), actor_layer_norm=True)(SPACE, 0).actor.net.scales) == 2
    assert learner.entropy == -1.0
    for w in learner.critics.weights:
        assert float(w.abs().max()) <= (6 / sum(w.shape[-2:])) ** 0.5
    assert all(not b.any() for b in learner.critics.biases)


def test_the_published_suites_variant_learns_too():
    learner = PriorDataActorCritic((8,), ensemble=4, alpha=0.01, backup_entropy=False, replacement=True,
                                   temperature="softplus", temperature_at="next_observation", activation="tanh",
                                   actor_layer_norm=True)(SPACE, 0)  # fmt: skip
    log = learner.update([batch_of(16, k) for k in range(4)], generator())
    assert log["alpha"] == pytest.approx(0.01) and all(torch.tensor(list(log.values())).isfinite())
    same = PriorDataActorCritic((8,), ensemble=4, alpha=0.01, backup_entropy=False, replacement=True,
                                temperature="softplus", activation="tanh", actor_layer_norm=True)(SPACE, 0)  # fmt: skip
    assert same.update([batch_of(16, k) for k in range(4)], generator())["entropy"] != log["entropy"]


def replay_of(value: float, n: int, capacity: int = 50) -> Replay:
    replay = Replay(capacity, 3, 2)
    replay.add(dataclasses.replace(batch_of(n), reward=torch.full((n,), value)))
    return replay


def test_batches_are_exactly_half_demonstrations():
    recipe = rlpd()
    assert (recipe.updates, recipe.offline_share, recipe.batch) == (20, 0.5, 256)
    online, demos = replay_of(0.0, 20), replay_of(1.0, 9, 9)
    for b in mixed(online, demos, recipe.updates, recipe.batch, recipe.offline_share, generator()):
        assert len(b) == 256 and int(b.reward.sum()) == 128
    online.add(batch_of(200))
    assert demos.all().reward.tolist() == [1.0] * 9
    assert not any(b.reward.any() for b in mixed(replay_of(0.0, 5), Replay(1, 3, 2), 2, 8, 0.5, generator()))
    with pytest.raises(InputError, match="reward"):
        online.add(dataclasses.replace(batch_of(2), reward=torch.tensor([0.0, float("nan")])))


def test_standardised_it_learns_and_acts_as_on_standardised_observations():
    far = dataclasses.replace(batch_of(48), observation=batch_of(48).observation * torch.tensor([0.5, 20.0, 0.01]) + 7)
    demos = Replay(48, 3, 2)
    demos.add(far)
    ours, plain = (PriorDataActorCritic((16,), ensemble=3, standardise=s)(SPACE, 1) for s in (True, False))
    for learner in (ours, plain):
        learner.prepare(demos, generator())
    mean, std = far.observation.mean(0), far.observation.std(0, correction=0)
    assert (std > 0.1).tolist() == [True, True, False]

    def standard(x: torch.Tensor) -> torch.Tensor:
        return (x - mean) / std.clamp(min=0.1)

    moved = dataclasses.replace(
        far, observation=standard(far.observation), next_observation=standard(far.next_observation)
    )
    for step in range(3):
        assert ours.update([far], generator(step)) == plain.update([moved], generator(step))
    for explore in (True, False):
        acted = ours.act(far.observation, generator(), explore=explore)
        assert torch.equal(acted.executed, plain.act(moved.observation, generator(), explore=explore).executed)


def test_standardising_needs_demonstrations():
    settings = control.ControlSettings("reacher-sparse", trackers=())
    assert not control.plan("rlpd", settings).recipe.needs_offline
    with pytest.raises(InputError, match="demonstrations"):
        control.plan("rlpd", settings, {"standardise": True})


@pytest.mark.parametrize("size", [0, 11])
def test_impossible_subsets(size):
    with pytest.raises(InputError, match="subset"):
        rlpd(subset=size).learner(SPACE, 0)
    with pytest.raises(InputError, match="box of actions"):
        rlpd().learner(Space(3, 2, True), 0)


def test_a_run_stops_and_goes_on_to_the_same_bits(tmp_path):
    knobs = {"hidden": (16,), "ensemble": 3, "updates": 2, "warmup": 30, "batch": 16, "alpha": 0.1, "standardise": True}
    given = {"task": "reacher-sparse", "demos": "scripted:episodes=3", "knobs": knobs, "eval_episodes": 1, "quiet": True,
             "trackers": (), "eval_every": 0, "checkpoint_every": 40}  # fmt: skip
    whole = control.train_controller("rlpd", steps=80, out=tmp_path / "a", **given)
    control.train_controller("rlpd", steps=40, out=tmp_path / "b", **given)
    again = control.resume(tmp_path / "b", steps=80, quiet=True)
    for name in whole.learner.modules:
        saved, wanted = (x.learner.modules[name].state_dict() for x in (again, whole))
        assert saved.keys() == wanted.keys() and all(torch.equal(saved[k], wanted[k]) for k in wanted), name
    assert whole.learner.inputs.mean.any()
    assert "loss/critic" in whole.rows[-2] and whole.rows[-1]["eval/success"] in (0.0, 1.0)
