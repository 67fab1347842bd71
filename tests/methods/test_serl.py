"""SERL: worked numbers, invariants of the update, learning, the command line's path."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import softplus

from anypolicy import catalogue
from anypolicy.data.replay import Replay, mixed
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families.control import resume, train_controller
from anypolicy.learners.base import tensors_of
from anypolicy.methods.control.serl import Agent, actor_loss, critic_loss, temperature_loss
from anypolicy.parts.squashed import squashed
from anypolicy.parts.td import soft_target
from anypolicy.tasks.control.environments import Space

BOX = Space(4, 2, False, (-1.0, -1.0), (1.0, 1.0))
SEEING = Space(8 * 8 * 3 + 2, 2, False, (-1.0, -1.0), (1.0, 1.0), images=((8, 8, 3),))
SMALL = Agent(hidden=(16, 16), channels=(4, 8), ensemble=3, critic_actor_ratio=2)


def test_worked_target_and_losses(f64):
    q_next = torch.stack([f64(1.0, 2.0), f64(0.8, 2.5), f64(1.2, 1.5), f64(0.9, 3.0)])
    r, mask, logp = f64(0.0, 1.0), f64(1.0, 0.0), f64(-1.5, -0.5)
    y = soft_target(r, 0.96 * mask, q_next[[1, 3]])
    assert y.tolist() == pytest.approx([0.768, 1.0])
    assert soft_target(r, 0.96 * mask, q_next[[1, 3]], logp, 0.05).tolist() == pytest.approx([0.840, 1.0])
    assert (y - 0.05 * logp).tolist() == pytest.approx([0.843, 1.025])
    q = torch.stack([f64(0.9, 1.1), f64(1.0, 0.7), f64(0.8, 1.0), f64(0.7, 0.9)])
    assert float(critic_loss(q, y)) == pytest.approx(0.023362, abs=1e-6)
    assert (q_next.mean(0) - 0.05 * logp).tolist() == pytest.approx([1.05, 2.275])
    assert float(actor_loss(q_next, logp, torch.tensor(0.05))) == pytest.approx(-1.6625)


def test_worked_temperature():
    raw = torch.tensor(-4.600166, dtype=torch.float64, requires_grad=True)
    assert float(softplus(raw.detach())) == pytest.approx(0.01, abs=1e-8)
    loss = temperature_loss(raw, torch.tensor(1.0, dtype=torch.float64), -2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.03, abs=1e-7)
    assert float(raw.grad) == pytest.approx(0.029850, abs=1e-6)
    assert float(SMALL(BOX, 0).raw.detach()) == pytest.approx(-4.600166, abs=1e-5)
    assert SMALL(BOX, 0).entropy == -1.0


def test_worked_actor(f64):
    u, mean, std = 0.8, torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    action, logp = squashed(mean, std.log(), (u - mean) / std)
    assert float(action) == pytest.approx(0.664037, abs=1e-6)
    assert float(logp) == pytest.approx(-0.144284, abs=1e-6)
    naive = -0.5 - math.log(0.5) - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(u) ** 2)
    assert float(logp) == pytest.approx(naive, abs=1e-12)
    low, high = SMALL(BOX, 0).actor.bounds
    assert (math.exp(low), math.exp(high)) == pytest.approx((1e-5, 5.0))


def drawn(n: int, space: Space, seed: int = 0, **fields) -> Transitions:
    rng = torch.Generator().manual_seed(seed)

    def seen() -> torch.Tensor:
        pixels = torch.randint(256, (n, space.pixels), generator=rng).float()
        return torch.cat([pixels, torch.randn(n, space.observations - space.pixels, generator=rng)], 1)

    zeros = torch.zeros(n)
    made = Transitions(seen(), torch.rand(n, 2, generator=rng) * 2 - 1, torch.rand(n, generator=rng), seen(), zeros,
                       zeros.clone(), torch.full((n,), 0.96))  # fmt: skip
    return replace(made, **fields)


def copies(learner) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in tensors_of(learner).items()}


def test_only_the_last_step_of_a_cycle_moves_the_actor():
    learner, rng = SMALL(BOX, 0), torch.Generator().manual_seed(0)
    before = copies(learner)
    first = learner.update([drawn(8, BOX)], rng)
    middle = copies(learner)
    assert not any(torch.equal(middle[k], before[k]) for k in before if k.startswith("online.critics.weights"))
    assert all(torch.equal(middle[k], before[k]) for k in before if k.startswith(("actor.", "temperature.")))
    assert "loss/actor" not in first
    log = learner.update([drawn(8, BOX, 1), drawn(8, BOX, 2)], rng)
    after = copies(learner)
    assert all(
        not torch.equal(after[k], middle[k]) for k in middle if k.startswith(("actor.net.weights", "temperature."))
    )
    assert {"loss/critic", "loss/actor", "alpha", "entropy", "q/mean", "reward/mean"} <= set(log)


def test_targets_move_by_a_two_hundredth():
    learner = SMALL(SEEING, 0)
    before = {k: v.clone() for k, v in learner.targets.state_dict().items()}
    assert all(torch.equal(v, learner.online.state_dict()[k]) for k, v in before.items())
    learner.update([drawn(8, SEEING)], torch.Generator().manual_seed(0))
    for k, v in learner.targets.state_dict().items():
        torch.testing.assert_close(v, before[k] + 0.005 * (learner.online.state_dict()[k] - before[k]))
    assert any("encoders" in k for k in before)


def test_the_actor_gives_the_encoder_no_gradient():
    learner, rng = SMALL(SEEING, 0), torch.Generator().manual_seed(0)
    batch = drawn(8, SEEING)
    log: dict[str, float] = {}
    learner.critic_step(batch, rng, log)
    learner.optimisers["critic_optimiser"].zero_grad()
    encoder = {k: v.clone() for k, v in learner.online.state_dict().items()}
    learner.actor_step(batch, torch.tensor(0.0), rng, log)
    assert all(p.grad is None for p in learner.online.parameters())
    assert all(torch.equal(v, encoder[k]) for k, v in learner.online.state_dict().items())
    assert all(p.requires_grad for p in learner.online.parameters())
    loss = critic_loss(learner.online(learner.online.see(batch.observation), batch.action), batch.reward)
    loss.backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in learner.online.perception.parameters())


@pytest.mark.parametrize(("flag", "matters"), [("terminated", False), ("truncated", True)])
def test_an_end_ignores_what_follows_and_a_time_limit_does_not(flag, matters):
    batch = drawn(8, BOX, **{flag: torch.ones(8)})
    outcomes = []
    for shift in (0.0, 5.0):
        learner = SMALL(BOX, 0)
        learner.targets.critics.biases[-1].data += shift
        outcomes.append(learner.update([batch], torch.Generator().manual_seed(0))["loss/critic"])
    assert (outcomes[0] != outcomes[1]) is matters


def test_entropy_in_the_target_is_a_switch():
    got = {}
    for on in (False, True):
        learner = replace(SMALL, backup_entropy=on, alpha=1.0)(BOX, 0)
        got[on] = learner.update([drawn(8, BOX)], torch.Generator().manual_seed(0))["loss/critic"]
    assert got[False] != got[True]


def test_half_of_every_batch_are_demonstrations_which_stay():
    recipe = catalogue.get("serl", "control").recipe()
    assert (recipe.offline_share, recipe.batch, recipe.updates, recipe.warmup) == (0.5, 256, 4, 300)
    online, demos, rng = Replay(20, 4, 2), Replay(10, 4, 2), torch.Generator().manual_seed(0)
    demos.add(drawn(10, BOX, reward=torch.full((10,), 7.0)))
    kept = demos.matrix.clone()
    for i in range(5):
        online.add(drawn(12, BOX, i))
        for b in mixed(online, demos, recipe.updates, recipe.batch, recipe.offline_share, rng):
            assert int((b.reward == 7).sum()) == 128 == int((b.reward[:128] == 7).sum())
    assert torch.equal(demos.matrix, kept)
    assert all((b.reward != 7).all() for b in mixed(online, None, 4, 256, 0.5, rng))
    with pytest.raises(InputError, match="reward"):
        online.add(drawn(1, BOX, reward=torch.tensor([math.nan])))


def wins() -> Replay:
    """Ten episodes of five steps; the first number of an observation says how near the end is."""
    demos, rng = Replay(50, 4, 2), torch.Generator().manual_seed(3)
    for _ in range(10):
        x = torch.randn(6, 4, generator=rng) * 0.1
        x[:, 0] += torch.arange(6.0) ** 2 / 10
        end = torch.tensor([0.0, 0, 0, 0, 1])
        demos.add(
            Transitions(x[:-1], torch.zeros(5, 2), torch.zeros(5), x[1:], end, torch.zeros(5), torch.full((5,), 0.96))
        )
    return demos


@pytest.mark.parametrize("space", [BOX, SEEING])
def test_standardised_it_learns_and_acts_as_on_standardised_numbers(space):
    def changed(x: torch.Tensor, f) -> torch.Tensor:
        return torch.cat([x[:, : space.pixels], f(x[:, space.pixels :])], 1)

    plain, ours = (replace(SMALL, standardise=s)(space, 1) for s in (False, True))
    batches = [drawn(16, space, i) for i in range(4)]
    far = [replace(b, observation=changed(b.observation, lambda x: 2 * x + 7),
                   next_observation=changed(b.next_observation, lambda x: 2 * x + 7)) for b in batches]  # fmt: skip
    demos = Replay(100, space.observations, 2, space.pixels)
    demos.add(far[0])
    for learner in (plain, ours):
        learner.prepare(demos, torch.Generator())
    numbers = far[0].observation[:, space.pixels :]
    mean, std = numbers.mean(0), numbers.std(0, correction=0)
    near = [replace(b, observation=changed(b.observation, lambda x: (x - mean) / std),
                    next_observation=changed(b.next_observation, lambda x: (x - mean) / std)) for b in far]  # fmt: skip
    one, two = (x.update(b, torch.Generator().manual_seed(2)) for x, b in ((ours, far), (plain, near)))
    assert one == two and "loss/actor" in one
    for explore in (True, False):
        a, b = (x.act(y[0].observation, torch.Generator().manual_seed(3), explore=explore).executed
                for x, y in ((ours, far), (plain, near)))  # fmt: skip
        assert torch.equal(a, b)


@pytest.mark.parametrize("reward", ["classifier", "log-classifier", "vice"])
def test_rewards_are_those_of_the_classifier_now(reward):
    learner = replace(SMALL, reward=reward)(BOX, 0)
    demos = wins()
    learner.prepare(demos, torch.Generator().manual_seed(0))
    batch = demos.all()
    told = learner.reward(batch)
    logit = learner.reward.classifier(batch.next_observation)
    if reward == "log-classifier":
        torch.testing.assert_close(told.reward, logit.sigmoid().log())
        assert not told.terminated.any() and (told.reward <= 0).all()
    else:
        assert torch.equal(told.reward, (logit.sigmoid() >= 0.5).float())
        assert (told.terminated >= told.reward).all()
    with torch.no_grad():
        learner.reward.classifier.offset += 100
    assert not torch.equal(learner.reward(batch).reward, told.reward)


def test_vice_refines_the_classifier_on_what_was_visited():
    learner = replace(SMALL, reward="vice")(BOX, 0)
    learner.prepare(wins(), torch.Generator().manual_seed(0))
    assert (learner.reward.goals[:, 0] > 1.5).all()
    before = copies(learner)
    batch = drawn(8, BOX)
    log = learner.update([batch, batch], torch.Generator().manual_seed(0))
    assert math.isfinite(log["loss/classifier"])
    assert not torch.equal(copies(learner)["reward.classifier.first"], before["reward.classifier.first"])
    fixed = replace(SMALL, reward="classifier")(BOX, 0)
    fixed.prepare(wins(), torch.Generator().manual_seed(0))
    before = copies(fixed)
    fixed.update([batch, batch], torch.Generator().manual_seed(0))
    assert torch.equal(copies(fixed)["reward.classifier.first"], before["reward.classifier.first"])


def test_without_an_end_in_success_there_is_no_classifier():
    demos = wins()
    demos.matrix[:, -3] = 0
    with pytest.raises(InputError, match="terminates"):
        replace(SMALL, reward="classifier")(BOX, 0).prepare(demos, torch.Generator())
    with pytest.raises(InputError, match="demonstrations"):
        train_controller("serl", task="tip", knobs={"reward": "classifier"})
    with pytest.raises(InputError, match="box of actions"):
        SMALL(Space(4, 2, True), 0)


@pytest.mark.parametrize("space", [BOX, SEEING], ids=["numbers", "pictures"])
def test_the_actor_finds_the_best_action(space):
    """One-step episodes whose reward is 1 − |a − s|²/2; s is two numbers of the observation, or red and green of a
    picture of one colour."""
    learner = replace(SMALL, lr=1e-3 if space.images else 3e-3, channels=(16, 16))(space, 0)
    rng = torch.Generator().manual_seed(0)

    def outcome(seed: int) -> Transitions:
        batch = drawn(64, space, seed, terminated=torch.ones(64))
        if space.images:
            batch.observation[:, :-2] = (
                torch.randint(256, (64, 1, 3), generator=rng).expand(64, 64, 3).flatten(1).float()
            )
        return replace(batch, reward=1 - (batch.action - best(batch.observation)).square().mean(1))

    def best(observation: torch.Tensor) -> torch.Tensor:
        return observation[:, :2] / 255 - 0.5 if space.images else observation[:, -2:].clamp(-0.5, 0.5)

    asked = outcome(10_000).observation

    def miss() -> float:
        return float((learner.act(asked, rng, explore=False).executed - best(asked)).abs().mean())

    before = miss()
    for i in range(200):
        learner.update([outcome(2 * i), outcome(2 * i + 1)], rng)
    assert miss() < 0.5 * before and miss() < 0.15


KNOBS = {
    "hidden": (32, 32),
    "ensemble": 3,
    "channels": (4, 4, 4, 4),
    "batch": 16,
    "warmup": 20,
    "critic_actor_ratio": 2,
}


@pytest.mark.parametrize(
    ("task", "reward"), [("tip", "environment"), ("tip", "vice"), ("tip:images=true", "environment"),
                         ("tip:images=true", "classifier"), ("wall", "environment")],
)  # fmt: skip
def test_a_run_stopped_and_resumed_has_the_same_bits(task, reward, tmp_path):
    shown = "scripted:episodes=3" + (",images=true" if "images" in task else "")
    demos = None if task == "wall" else shown
    common = {"task": task, "knobs": KNOBS | {"reward": reward, "capacity": 500}, "demos": demos, "quiet": True,
              "eval_every": 0, "eval_episodes": 1, "checkpoint_every": 30, "trackers": ()}  # fmt: skip
    whole = train_controller("serl", steps=60, out=tmp_path / "whole", **common)
    train_controller("serl", steps=30, out=tmp_path / "parts", **common)
    again = resume(tmp_path / "parts", steps=60, quiet=True)
    a, b = tensors_of(whole.learner), tensors_of(again.learner)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
