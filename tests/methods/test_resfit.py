"""ResFiT: worked numbers, the frozen base, zero residuals, degenerate cases."""

import dataclasses

import pytest
import torch

from anypolicy.data.replay import Replay, mixed
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families import control
from anypolicy.methods.control import resfit as resfit_file
from anypolicy.methods.control.resfit import executed, regression, residual
from anypolicy.parts.td import n_step
from anypolicy.policies.control.cloned import Cloned, Frozen, action_range, fixed_noise, scaled, unscaled
from anypolicy.tasks.control.environments import Space, load_environment
from tests.helpers import recipe

resfit = recipe("resfit")

SPACE = Space(3, 2, False, (-1.0, -1.0), (1.0, 1.0))
SMALL = {"hidden": (16,), "ensemble": 3, "base_hidden": (8,), "base_updates": 20, "denoising_steps": 2,
         "critic_warmup": 0}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def demos(n: int = 60, seed: int = 3) -> Replay:
    rng = generator(seed)
    replay = Replay(n, 3, 2)
    o = torch.randn(n, 3, generator=rng)
    zeros = torch.zeros(n)
    replay.add(Transitions(o, (2 * o[:, :2]).clamp(-1, 1), torch.rand(n, generator=rng), torch.randn(n, 3, generator=rng),
                           zeros, zeros, torch.full((n,), 0.99)))  # fmt: skip
    return replay


def made(seed: int = 0, **knobs):
    """A prepared learner, and a batch as its replay holds them."""
    learner = resfit(**{**SMALL, **knobs}).learner(SPACE, seed)
    learner.prepare(demos(), generator(1))
    t = demos().sample(32, generator(2))
    return learner, dataclasses.replace(
        t, observation=learner.observe(t.observation), next_observation=learner.observe(t.next_observation)
    )


def test_residual_and_executed_action(f64):
    r = residual(f64(0.8, -0.5, 0.1), 0.2)
    assert r.tolist() == pytest.approx([0.132807, -0.092423, 0.019934], abs=1e-6)
    got = executed(f64(0.95, -0.2, 0.4), r)
    assert got.tolist() == pytest.approx([1.0, -0.292423, 0.419934], abs=1e-6)


def test_noise_of_the_target(f64):
    r = residual(f64(0.0, 0.0, 0.0), 0.2, 0.05 * f64(9.0, -2.0, 0.5), 0.3)
    assert r.tolist() == pytest.approx([0.3, -0.1, 0.025])
    assert float(residual(f64(0.0), 0.2, f64(0.45))) == pytest.approx(0.45)  # acting clips nothing
    assert float(residual(f64(9.0), 0.9, f64(0.3))) == 1.0


def test_range_of_actions(f64):
    low, high = action_range(f64(-2.0, 0.0, 0.1), f64(2.0, 1.0, 0.12), 0.2)
    assert low.tolist() == pytest.approx([-2.4, -0.1, 0.05]) and high.tolist() == pytest.approx([2.4, 1.1, 0.17])
    x = scaled(f64(1.0, 0.9, 0.3), low, high)
    assert x.tolist() == pytest.approx([0.416667, 0.666667, 1.0], abs=1e-6)
    assert unscaled(x, low, high).tolist() == pytest.approx([1.0, 0.9, 0.17])


def test_two_forms_of_the_loss(f64):
    errors = f64([1.0, -1.0], [3.0, 0.5])
    assert float(regression(errors, f64(0.0, 0.0), "code")) == pytest.approx(2.28125)
    assert float(regression(errors + 2, f64(2.0, 2.0), "mean")) == pytest.approx(2.8125)


def test_success_one_step_later_and_none(f64):
    total, last, _ = n_step(f64(0.0, 1.0), f64(0.0, 1.0), f64(0.0, 0.0), 3, 0.99)
    assert float(total[0]) == pytest.approx(0.99) and int(last[0]) == 1
    power = n_step(f64(0, 0, 0, 0), f64(0, 0, 0, 0), f64(0, 0, 0, 0), 3, 0.99)[2]
    assert float(power[0]) == pytest.approx(0.970299)


def test_at_first_it_is_the_base_and_its_first_gradient_is_not_zero():
    learner, batch = made()
    base = batch.observation[:, 3:]
    assert base.abs().max() <= 1 and base.std() > 0.1
    acted = learner.act(batch.observation, generator(), explore=False).executed
    assert torch.equal(acted, learner.scales.native(base))
    assert not torch.equal(acted, learner.act(batch.observation, generator(), explore=True).executed)
    learner.update_actor(batch)
    *inner, last = learner.actor.weights
    assert last.grad.abs().max() > 0 and learner.actor.biases[-1].grad.abs().max() > 0
    assert all(not w.grad.any() for w in inner)


@pytest.mark.parametrize("extreme", [1.0, -1.0])
def test_a_saturated_base_takes_no_gradient(extreme):
    learner, batch = made()
    with torch.no_grad():
        learner.actor.biases[-1].fill_(extreme / 2)
    o = batch.observation.clone()
    o[:, 3], o[:, 4] = extreme, 0.0
    learner.update_actor(dataclasses.replace(batch, observation=o))
    assert learner.actor.biases[-1].grad[0] == 0 and learner.actor.biases[-1].grad[1] != 0


def test_without_scale_it_is_the_base_for_ever():
    learner, batch = made(action_scale=0.0, noise=0.0)
    for k in range(5):
        learner.update([batch] * 4, generator(k))
    acted = learner.act(batch.observation, generator(), explore=True).executed
    assert torch.equal(acted, learner.scales.native(batch.observation[:, 3:]))


def test_without_scale_the_critics_learn_the_value_of_the_base():
    learner, batch = made(action_scale=0.0, noise=0.0, critic_lr=1e-2, tau=0.2)
    same = dataclasses.replace(batch, next_observation=batch.observation, reward=torch.ones(32),
                               action=learner.scales.native(batch.observation[:, 3:]),
                               discount=torch.full((32,), 0.5))  # fmt: skip
    for k in range(150):
        log = learner.update_critics(same, generator(k))
    assert log["q/mean"] == pytest.approx(2.0, abs=0.1)  # 1 / (1 − 0.5)


def test_the_base_is_cloned_once_and_frozen():
    learner, batch = made()
    before = {k: v.clone() for k, v in learner.base.state_dict().items()}
    for k in range(3):
        learner.update([batch] * 4, generator(k))
    assert all(torch.equal(v, learner.base.state_dict()[k]) for k, v in before.items())
    assert not any(p.requires_grad for p in learner.base.parameters())
    raw = resfit(**SMALL).learner(SPACE, 0)
    assert any(not torch.equal(v, before[k]) for k, v in raw.base.state_dict().items())
    optimised = {id(p) for o in learner.optimisers.values() for g in o.param_groups for p in g["params"]}
    assert not optimised & {id(p) for p in learner.base.parameters()}


def test_a_state_has_one_base_action():
    o = torch.randn(400, 3, generator=generator())
    noise = fixed_noise(o, 2)
    assert torch.equal(noise[7:9], fixed_noise(o[7:9].clone(), 2))
    assert noise.mean().abs() < 0.1 and abs(noise.std() - 1) < 0.1 and len(noise.unique()) == 800
    learner, _ = made()
    torch.testing.assert_close(learner.observe(o)[5:6], learner.observe(o[5:6]))
    with pytest.raises(InputError, match="noise must decide"):
        Frozen(Cloned("ddpm").make(3, 2, generator()))


def test_critics_see_what_is_executed():
    learner, batch = made()
    a, b = (dataclasses.replace(batch, observation=torch.cat([batch.observation[:, :3], x], 1))
            for x in (torch.zeros(32, 2), torch.ones(32, 2)))  # fmt: skip
    other, _ = made()
    assert learner.update_critics(a, generator()) == other.update_critics(b, generator())
    third, _ = made()
    moved = dataclasses.replace(a, action=-a.action)
    assert (
        third.update_critics(moved, generator())["loss/critic"] != learner.update_critics(a, generator())["loss/critic"]
    )


def test_ended_rows_ignore_the_targets_and_time_limits_do_not():
    one, batch = made()
    two, _ = made()
    for p in two.targets.parameters():
        p.data += 3
    ended = dataclasses.replace(batch, terminated=torch.ones(32))
    assert (
        one.update_critics(ended, generator())["loss/critic"] == two.update_critics(ended, generator())["loss/critic"]
    )
    cut = dataclasses.replace(batch, truncated=torch.ones(32))
    assert one.update_critics(cut, generator())["loss/critic"] != two.update_critics(cut, generator())["loss/critic"]


def test_targets_are_clamped_to_the_range_of_returns():
    free, batch = made()
    held, _ = made(q_range=(0.0, 1.0))
    big = dataclasses.replace(batch, reward=torch.full((32,), 50.0))
    one = dataclasses.replace(batch, reward=torch.ones(32), terminated=torch.ones(32))
    other, _ = made()
    assert held.update_critics(big, generator()) == other.update_critics(one, generator())
    assert free.update_critics(big, generator())["loss/critic"] > 100


def test_the_actor_rests_until_the_critics_are_warm_then_moves_once_a_step():
    learner, batch = made(critic_warmup=8)
    logs = [learner.update([batch] * 4, generator(k)) for k in range(4)]
    assert ["loss/actor" in x for x in logs] == [False, False, True, True]
    steps = [int(o.state_dict()["state"][0]["step"]) for o in learner.optimisers.values()]
    assert steps == [2, 16]
    target, online = learner.target_actor.biases[-1], learner.actor.biases[-1]
    assert 0 < float(target.abs().max()) < 0.02 * float(online.abs().max())
    twice, _ = made(actor_updates=2)
    twice.update([batch] * 4, generator())
    assert int(twice.optimisers["actor_optimiser"].state_dict()["state"][0]["step"]) == 2


def test_warm_up_is_the_base_with_uniform_noise():
    learner, batch = made()
    moved = learner.scales.normal(learner.warm(batch.observation, generator()).executed) - batch.observation[:, 3:]
    assert 0.1 < float(moved.abs().max()) <= 0.2 + 1e-6


def test_scales_stay_inside_the_box():
    learner, _ = made()
    assert learner.scales.low.tolist() == [-1, -1] and learner.scales.high.tolist() == [1, 1]
    narrow = demos()
    narrow.matrix[:, 3:5] *= 0.01
    other = resfit(**SMALL).learner(SPACE, 0)
    other.prepare(narrow, generator())
    assert other.scales.high.tolist() == pytest.approx([0.055] * 2)  # ±.05, a tenth wider
    a = torch.tensor([[0.5, -0.5]])
    assert other.scales.normal(a).tolist() == [[1, -1]]


def test_an_empty_replay_gives_demonstrations_only():
    assert resfit().needs_offline and (resfit().n_step, resfit().updates, resfit().offline_share) == (3, 4, 0.5)
    data = demos()
    for b in mixed(Replay(5, 3, 2), data, 4, 16, 0.5, generator()):
        assert len(b) == 16 and torch.isin(b.reward, data.all().reward).all()


@pytest.mark.parametrize(
    ("knobs", "match"),
    [({"subset": 11}, "subset"), ({"actor_updates": 5}, "actor_updates"), ({"base": "nowhere"}, "no controller")],
)
def test_impossible_settings(knobs, match):
    with pytest.raises(InputError, match=match):
        resfit(**knobs).learner(SPACE, 0)
    with pytest.raises(InputError, match="box of actions"):
        resfit().learner(Space(3, 2, True), 0)
    with pytest.raises(InputError, match="demos"):
        control.plan("resfit", control.ControlSettings("reacher-sparse"))


GIVEN = {"task": "reacher-sparse", "demos": "scripted:episodes=3", "eval_episodes": 1, "quiet": True, "trackers": (),
         "eval_every": 0}  # fmt: skip


def test_a_run_stops_and_goes_on_to_the_same_bits(tmp_path):
    knobs = {**SMALL, "updates": 2, "warmup": 10, "batch": 16}
    whole = control.train_controller("resfit", steps=80, out=tmp_path / "a", knobs=knobs, checkpoint_every=40, **GIVEN)
    control.train_controller("resfit", steps=40, out=tmp_path / "b", knobs=knobs, checkpoint_every=40, **GIVEN)
    again = control.resume(tmp_path / "b", steps=80, quiet=True)
    for name in whole.learner.modules:
        for (k, a), b in zip(whole.learner.modules[name].state_dict().items(),
                             again.learner.modules[name].state_dict().values(), strict=True):  # fmt: skip
            assert torch.equal(a, b), (name, k)
    assert "residual/size" in whole.rows[-2]
    learner, task = control.load_controller(tmp_path / "a" / "policy")
    seen = learner.observe(torch.zeros(1, task.space.observations))
    assert torch.equal(seen, whole.learner.observe(torch.zeros(1, 10)))


def test_the_base_may_be_a_finished_run(tmp_path):
    control.train_controller("bc", steps=20, out=tmp_path / "bc", checkpoint_every=0,
                             knobs={"hidden": (8,), "denoising_steps": 2}, **GIVEN)  # fmt: skip
    folder = str(tmp_path / "bc" / "policy")
    run = control.train_controller("resfit", steps=12, out=tmp_path / "r", checkpoint_every=0,
                                   knobs={**SMALL, "warmup": 10, "base": folder, "batch": 8}, **GIVEN)  # fmt: skip
    given, _ = control.load_controller(folder)
    mine = run.learner.base.policy.state_dict()
    assert all(torch.equal(v, mine[k]) for k, v in given.modules["policy"].state_dict().items())
    with pytest.raises(InputError, match="another space"):
        resfit(base=folder).learner(load_environment("gym/Pendulum-v1").space, 0)


def test_ablations_are_settings(monkeypatch):
    learner, batch = made(layer_norm=False)
    for with_norm, it in ((False, learner), (True, made()[0])):
        for net in (it.actor, it.target_actor, it.critics, it.targets):
            assert bool(len(net.scales)) == with_norm
    learner.update([batch] * 4, generator())
    quiet, loud = made(target_noise=False)[0], made()[0]
    logs = [x.update_critics(batch, generator(k))["loss/critic"] for x in (quiet, loud) for k in (0, 1)]
    assert quiet.settings.noise > 0 and len(set(logs[2:])) == 2
    seen = []
    monkeypatch.setattr(resfit_file, "residual", lambda pre, scale, noise=0.0, clip=None: seen.append(noise) or pre)
    quiet.update_critics(batch, generator())
    loud.update_critics(batch, generator())
    assert not seen[0].any() and seen[1].any()
