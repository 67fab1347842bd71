"""DSRL with and without noise aliasing: worked numbers, a frozen base, what is stored, what is refused."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from anypolicy.cli.app import main
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families import control
from anypolicy.families.control import ControlSettings, plan, resume, train_controller
from anypolicy.learners.base import tensors_of
from anypolicy.methods.control import dsrl
from anypolicy.methods.control.dsrl_sac import NoiseSpace
from anypolicy.methods.control.sac import SoftActorCritic
from anypolicy.parts.squashed import squashed
from anypolicy.parts.td import n_step
from anypolicy.policies.control.cloned import Cloned
from anypolicy.policies.control.generative import MeanPolicy, generative
from anypolicy.policies.control.mlp import MLP, q_values
from anypolicy.policies.control.steered import Steered
from anypolicy.runs.checkpoint import latest_checkpoint, load_checkpoint
from anypolicy.tasks.control.chunks import Chunks
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import Space, load_environment

SPACE = Space(3, 2, False, (-1.0, -1.0), (1.0, 1.0))
SMALL = {"hidden": (16, 16), "base_hidden": (16, 16), "denoising_steps": 4}
BASE = Cloned(hidden=(16, 16), denoising_steps=4)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def aliased(**more):
    return dsrl.NoiseAliased(**({"base": BASE, "hidden": (16, 16), "updates": 3, "distillations": 2} | more))(SPACE, 0)


def on_noise(**more):
    return NoiseSpace(hidden=(16, 16), base=BASE, **more)(SPACE, 0)


def batch(n=32, terminated=0.0, truncated=0.0):
    g = rng(1)
    return Transitions(torch.randn(n, 3, generator=g), torch.rand(n, 2, generator=g) * 2 - 1, torch.randn(n, generator=g),
                       torch.randn(n, 3, generator=g), torch.full((n,), terminated), torch.full((n,), truncated),
                       torch.full((n,), 0.99))  # fmt: skip


def fingerprint(module):
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def spied(monkeypatch, module, name):
    calls, real = [], getattr(module, name)

    def spy(*args, **kwargs):
        out = real(*args, **kwargs)
        calls.append((args, kwargs, out))
        return out

    monkeypatch.setattr(module, name, spy)
    return calls


def test_distillation_targets_and_aliasing(f64):
    a = torch.tanh(3 * f64(-1.0, 0.0, 0.5, 1.0, 2.0))
    assert a.tolist() == pytest.approx([-0.995055, 0.0, 0.905148, 0.995055, 0.999988], abs=1e-6)
    q = -(a - 0.9).square()
    assert q.tolist() == pytest.approx([-3.591233, -0.81, -0.000027, -0.009035, -0.009998], abs=1e-6)
    assert float(a[4] - a[3]) == pytest.approx(0.004933, abs=1e-6)
    assert float(q[3] - q[4]) == pytest.approx(0.000962, abs=1e-6)
    zero = torch.zeros(2, 5, dtype=torch.float64)
    assert float(dsrl.distillation_loss(zero, q.expand(2, 5))) == pytest.approx(float(q.square().mean()))


def test_critics_are_distilled_one_by_one(f64):
    noise, action = f64([1.0, 2.0], [3.0, 4.0]), f64([0.0, 0.0], [3.0, 4.0])
    assert float(dsrl.distillation_loss(noise, action)) == pytest.approx(0.5 * 2.5)
    action.requires_grad_()
    noise.requires_grad_()
    dsrl.distillation_loss(noise, action).backward()
    assert action.grad is None
    torch.testing.assert_close(noise.grad, f64([0.5, 1.0], [0.0, 0.0]))


def test_reductions(f64):
    q = f64([1.0, 5.0], [3.0, 2.0])
    assert dsrl.reduced(q, "min").tolist() == [[1, 2]]
    assert dsrl.reduced(q, "mean").tolist() == [[2, 3.5]]


def test_critics_of_noise_see_it_unscaled_and_unclipped(monkeypatch):
    it = aliased(magnitude=1.5)
    monkeypatch.setattr(dsrl, "normal", lambda *_: torch.tensor([[0.75, 2.4]]))
    asked = spied(monkeypatch, dsrl, "q_values")
    it.distil(torch.zeros(1, 3), rng())
    (net, seen, action), (other, _, scaled) = (c[0] for c in asked)
    assert net is it.critics and other is it.noise_critics
    assert scaled.tolist() == [pytest.approx([0.5, 1.6])]
    torch.testing.assert_close(action, it.steered.policy.decode(seen, torch.tensor([[0.75, 2.4]])))


def test_distillation_noise_is_the_bases_own_whatever_the_actor(monkeypatch):
    it = aliased()
    with torch.no_grad():
        it.actor.net.biases[-1].copy_(torch.tensor([9.0, 9.0, -20.0, -20.0]))
    asked = spied(monkeypatch, dsrl, "q_values")
    it.distil(torch.zeros(4000, 3), rng())
    w = asked[1][0][2] * 1.5
    assert abs(float(w.mean())) < 0.05 and float(w.std()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("b", "one", "eight"),
    [(1.0, 0.682689, 0.047183), (1.5, 0.866386, 0.317461), (2.0, 0.9545, 0.688980), (2.5, 0.987581, 0.904858)],
)
def test_how_much_noise_is_in_the_box(b, one, eight):
    inside = math.erf(b / math.sqrt(2))
    assert inside == pytest.approx(one, abs=1e-6) and inside**8 == pytest.approx(eight, abs=2e-6)
    it = on_noise(magnitude=b)
    u = it.warm(torch.zeros(20_000, 3), rng()).stored
    assert float((u.abs() < 1).float().mean()) == pytest.approx(one, abs=0.008)
    assert u.abs().max() == 1


def test_the_base_is_never_changed_nor_differentiated():
    for it in (aliased(), on_noise()):
        before = fingerprint(it.modules["base"])
        others = {k: fingerprint(m) for k, m in it.modules.items() if k != "base"}
        it.update([batch()] * 4, rng())
        assert fingerprint(it.modules["base"]) == before
        assert all(fingerprint(it.modules[k]) != v for k, v in others.items())
        assert all(p.grad is None and not p.requires_grad for p in it.modules["base"].parameters())
        u = torch.rand(4, 2, requires_grad=True)
        assert not it.steered(torch.zeros(4, 3), u).requires_grad
        parameters = {id(p) for o in it.optimisers.values() for g in o.param_groups for p in g["params"]}
        assert not parameters & {id(p) for p in it.modules["base"].parameters()}


def test_no_noise_box_is_the_base_of_zero_noise_and_the_bases_noise_is_the_base():
    base, seen = generative("flow", 3, 2, (16, 16), rng()), torch.randn(50, 3, generator=rng(1))
    u = torch.rand(50, 2, generator=rng(2)) * 2 - 1
    torch.testing.assert_close(Steered(base, 1e-9, 3)(seen, u), base.decode(seen, torch.zeros(50, 2)))
    w = torch.randn(50, 2, generator=rng(3))
    torch.testing.assert_close(Steered(base, 1.5, 3)(seen, w / 1.5), base.sample(seen, rng(3)))


@pytest.mark.parametrize("base", ["flow", "ddim"])
def test_the_same_noise_gives_the_same_bits(base):
    it, seen, u = (
        aliased(base=replace(BASE, kind=base)),
        torch.randn(6, 3, generator=rng(1)),
        torch.rand(6, 2, generator=rng(2)),
    )
    assert torch.equal(it.steered(seen, u), it.steered(seen, u))


class Shaking(nn.Module):
    """A sampler that draws on its way (η > 0)."""

    actions = 2

    def __init__(self):
        super().__init__()
        self.rng = rng()

    def decode(self, observation, noise, *, averaged=True):
        return noise + 0.01 * torch.randn(noise.shape, generator=self.rng)


def test_samplers_that_draw_and_bases_without_noise_are_refused():
    with pytest.raises(InputError, match="noise must decide"):
        plan("dsrl", ControlSettings("gym/Pendulum-v1", demos="x"), {"base_policy": "ddpm"})
    with pytest.raises(InputError, match="noise must decide"):
        plan("dsrl-sac", ControlSettings("gym/Pendulum-v1", demos="x"), {"base_policy": "mean"})
    with pytest.raises(InputError, match="DDIM"):
        Steered(generative("ddpm", 3, 2, (16,), rng()), 1.5, 3)
    with pytest.raises(InputError, match="always give the same"):
        Steered(Shaking(), 1.5, 3)
    with pytest.raises(InputError, match="nothing to steer"):
        Steered(MeanPolicy(3, 2, (16,), rng()), 1.5, 3)
    for knobs, match in (({"magnitude": 0.0}, "magnitude"), ({"subset": 3}, "subset"), ({"ensemble": 0}, "ensemble")):
        with pytest.raises(InputError, match=match):
            plan("dsrl", ControlSettings("gym/Pendulum-v1", demos="x"), knobs)
    with pytest.raises(InputError, match="demos"):
        plan("dsrl", ControlSettings("gym/Pendulum-v1"))
    with pytest.raises(InputError, match="uses no demonstrations"):
        plan("dsrl-sac", ControlSettings("gym/Pendulum-v1", demos="x"), {"base": "y"})


def test_what_is_stored():
    seen = torch.randn(6, 3, generator=rng(1))
    na, sac = aliased(), on_noise()
    for acted in (na.act(seen, rng(), explore=True), na.warm(seen, rng())):
        assert torch.equal(acted.executed, acted.stored)
    for acted in (sac.act(seen, rng(), explore=True), sac.warm(seen, rng())):
        assert torch.equal(acted.executed, sac.steered(seen, acted.stored)) and acted.stored.abs().max() <= 1
        assert not torch.equal(acted.executed, acted.stored)
    u = na.actor.sample(seen, rng())[0].detach()
    assert torch.equal(na.act(seen, rng(), explore=True).executed, na.steered.policy.decode(seen, 1.5 * u))
    assert torch.equal(na.warm(seen, rng()).executed, na.steered.policy.sample(seen, rng()))


def test_evaluation_draws_unless_told_otherwise():
    seen = torch.randn(6, 3, generator=rng(1))
    for it, still in ((aliased(), aliased(deterministic_eval=True)), (on_noise(), on_noise(deterministic_eval=True))):
        a, b = (it.act(seen, rng(i), explore=False).executed for i in (0, 1))
        assert not torch.equal(a, b)
        a, b = (still.act(seen, rng(i), explore=False).executed for i in (0, 1))
        assert torch.equal(a, b)
        a, b = (still.act(seen, rng(i), explore=True).executed for i in (0, 1))
        assert not torch.equal(a, b)


def test_targets_use_the_actors_noise_and_its_entropy(monkeypatch):
    rows = batch()
    for entropy in (True, False):
        it = aliased(backup_entropy=entropy, learn_alpha=False, alpha=0.3)
        with monkeypatch.context() as patch:
            calls, asked = spied(patch, dsrl, "soft_target"), spied(patch, dsrl, "q_values")
            drawn = []
            real = it.actor.sample
            patch.setattr(
                it.actor, "sample", lambda o, g, real=real, drawn=drawn: drawn.append(real(o, g)) or drawn[-1]
            )
            it.step(rows, rng())
        u, logp = drawn[1]
        assert asked[0][0][0] is it.targets
        assert torch.equal(asked[0][0][2], it.steered(rows.next_observation, u))
        want = rows.reward + 0.99 * (asked[0][2].amin(0) - (0.3 * logp if entropy else 0))
        torch.testing.assert_close(calls[0][2], want.detach())
    it = aliased()
    calls = spied(monkeypatch, dsrl, "soft_target")
    it.step(batch(terminated=1.0), rng())
    it.step(batch(truncated=1.0), rng())
    assert torch.equal(calls[0][2], rows.reward) and not torch.equal(calls[1][2], rows.reward)


def test_the_actor_climbs_the_critics_of_noise_only():
    it, rows = aliased(learn_alpha=False, alpha=1e-8, lr=3e-3), batch(128)
    it.critics.load_state_dict({k: torch.zeros_like(v) for k, v in it.critics.state_dict().items()})
    it.targets.load_state_dict(it.critics.state_dict())

    def value():
        return float(q_values(it.noise_critics, rows.observation, it.actor.mode(rows.observation)).mean().detach())

    start, before = value(), fingerprint(it.noise_critics)
    for i in range(40):
        it.step(rows, rng(i))
    assert value() > start + 0.01 and fingerprint(it.noise_critics) == before
    assert all(p.requires_grad for p in it.noise_critics.parameters())


def test_no_signal_no_gradient():
    it, rows = aliased(learn_alpha=False, alpha=0.0), batch()
    with torch.no_grad():
        it.noise_critics.weights[-1].zero_()
    it.step(rows, rng())
    assert all((p.grad == 0).all() for p in it.actor.parameters())


def test_order_of_updates(monkeypatch):
    it, order = aliased(updates=2, distillations=3), []
    monkeypatch.setattr(it, "step", lambda b, g: order.append(("step", b)) or {})
    monkeypatch.setattr(it, "distil", lambda o, g: order.append(("distil", o)) or 0.0)
    a, b, c, d = (batch(n) for n in (4, 5, 6, 7))
    it.update([a, b, c, d], rng())
    assert [n for n, _ in order] == (["step"] * 2 + ["distil"] * 3) * 2
    assert [len(x) for _, x in order] == [4, 5, 4, 5, 4, 6, 7, 6, 7, 6]


def test_distillation_makes_the_critics_of_noise_agree():
    it, seen = aliased(lr=3e-3), torch.randn(256, 3, generator=rng(5))
    first = it.distil(seen, rng(0))
    for i in range(150):
        it.distil(seen, rng(i))
    assert it.distil(seen, rng(999)) < 0.2 * first


def test_without_aliasing_it_is_sac_on_noise_to_the_bit():
    it = on_noise()
    plain = SoftActorCritic((16, 16), target_entropy=0.0, layer_norm=True)(SPACE, 0)
    for i in range(3):
        assert it.update([batch()], rng(i)) == plain.update([batch()], rng(i))
    for name, module in plain.modules.items():
        assert fingerprint(module) == fingerprint(it.modules[name])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_bandit_is_steered_to_the_best_noise(seed):
    """One state, base a = tanh(3w), Q^A = −(a − 0.5)²: the best noise is atanh(0.5)/3 = 0.183102."""
    g, b = rng(seed), 1.5
    assert math.atanh(0.5) / 3 == pytest.approx(0.183102, abs=1e-6)
    mean, log_std = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    net = MLP([1, 64, 64, 1], g, stack=2, activation="tanh")
    actor, critic = torch.optim.Adam([mean, log_std], 1e-2), torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(3000):
        net.requires_grad_(False)
        u, _ = squashed(mean.expand(128, 1), log_std.expand(128, 1), torch.randn(128, 1, generator=g))
        actor.zero_grad()
        (-dsrl.reduced(net(u).squeeze(-1), "min")).mean().backward()
        actor.step()
        net.requires_grad_(True)
        w = torch.randn(128, 1, generator=g)
        q = -(torch.tanh(3 * w[:, 0]) - 0.5).square().expand(2, 128)
        critic.zero_grad()
        dsrl.distillation_loss(net(w / b).squeeze(-1), q).backward()
        critic.step()
    assert float(b * mean.detach().tanh()) == pytest.approx(0.183102, abs=0.03)


@pytest.mark.parametrize(("slug", "more"), [("dsrl", {"distillations": 1, "offline_share": 0.5}), ("dsrl-sac", {})])
def test_runs_from_demonstrations_and_an_exact_resume(tmp_path, slug, more):
    knobs = SMALL | {"base_updates": 10, "updates": 2, "batch": 16, "warmup": 5} | more
    common = {
        "task": "reacher-sparse",
        "demos": "scripted:episodes=2",
        "trackers": (),
        "eval_episodes": 1,
        "quiet": True,
    }
    whole = train_controller(slug, knobs=knobs, steps=30, out=tmp_path / "whole", **common)
    train_controller(slug, knobs=knobs, steps=15, out=tmp_path / "half", **common)
    again = resume(tmp_path / "half", steps=30, quiet=True)
    for name, value in tensors_of(whole.learner).items():
        assert torch.equal(value, tensors_of(again.learner)[name]), name
    assert int(whole.learner.modules["base"].network.count) == 10
    assert any("loss/critic" in r for r in whole.rows)


def test_the_command_line_on_a_saved_base(tmp_path):
    common = ["--task", "reacher-sparse", "--trackers", "--eval-episodes", "1", "--quiet"]
    demos = ["--demos", "scripted:episodes=2"]
    base = ["train", "bc", *common, *demos, "--steps", "10", "--bc.hidden", "16", "--out", str(tmp_path / "bc")]
    assert main(base) == 0
    folder = str(tmp_path / "bc" / "policy")
    for slug in ("dsrl", "dsrl-sac"):
        run = ["train", slug, *common, "--steps", "8", f"--{slug}.base", folder, f"--{slug}.warmup", "4",
               f"--{slug}.hidden", "16", f"--{slug}.updates", "2", "--out", str(tmp_path / slug)]  # fmt: skip
        assert main(run) == 0
        assert main(["eval", str(tmp_path / slug), "--episodes", "1"]) == 0
        assert main(["show", slug]) == 0


def test_rewards_of_a_chunk(f64):
    """One step over a chunk of four rewards is a four-step return: discounted inside, γ⁴ after it; what the end of an
    episode cuts off counts for nothing."""
    reward, zero = f64(0.0, 0.0, 1.0, 1.0), f64(0.0, 0.0, 0.0, 0.0)
    total, _, power = n_step(reward, zero, zero, 4, 0.99)
    assert float(total[0]) == pytest.approx(1.950399) and float(power[0]) == pytest.approx(0.99**4)
    assert float(n_step(reward, zero, zero, 4, 1.0)[0][0]) == 2
    total, last, power = n_step(reward, f64(0.0, 0.0, 1.0, 0.0), zero, 4, 0.99)
    assert float(total[0]) == pytest.approx(0.9801) and int(last[0]) == 2 and float(power[0]) == pytest.approx(0.99**3)


CHUNKED = SMALL | {"base_updates": 10, "updates": 2, "batch": 16, "warmup": 12, "chunk": 4}
QUIET = {"task": "reacher-sparse:max_steps=10", "demos": "scripted:episodes=2", "trackers": (), "eval_episodes": 2,
         "quiet": True}  # fmt: skip


@pytest.mark.parametrize("slug", ["dsrl", "dsrl-sac"])
def test_a_chunk_of_one_is_a_single_action_to_the_bit(slug, tmp_path, monkeypatch):
    knobs = CHUNKED | {"chunk": 1}
    plain = train_controller(slug, knobs=knobs, steps=30, out=tmp_path / "plain", **QUIET)

    def wrapped(task, chunk, discount):
        return replace(task, make=lambda render_mode=None: Chunks(task.make(render_mode=render_mode), chunk, discount))

    monkeypatch.setattr(control, "in_chunks", wrapped)
    again = train_controller(slug, knobs=knobs, steps=30, out=tmp_path / "wrapped", **QUIET)
    assert plain.rows == again.rows
    for name, value in tensors_of(plain.learner).items():
        assert torch.equal(value, tensors_of(again.learner)[name]), name


@pytest.mark.parametrize("slug", ["dsrl", "dsrl-sac"])
def test_chunks_run_count_real_steps_and_resume_exactly(slug, tmp_path):
    """Episodes of ten steps are chunks of 4, 4 and 2."""
    whole = train_controller(slug, knobs=CHUNKED, steps=42, out=tmp_path / "whole", checkpoint_every=21, **QUIET)
    train_controller(slug, knobs=CHUNKED, steps=21, out=tmp_path / "half", checkpoint_every=21, **QUIET)
    again = resume(tmp_path / "half", steps=42, quiet=True)
    for name, value in tensors_of(whole.learner).items():
        assert torch.equal(value, tensors_of(again.learner)[name]), name
    saved, other = (load_checkpoint(latest_checkpoint(r.path)) for r in (whole, again))
    assert saved.state["loop"] == other.state["loop"]
    assert (saved.state["loop"]["steps"], saved.state["loop"]["beyond"]) == (44, 2)
    rows = saved.tensors["replay"]["rows"]
    assert len(rows) == 3 * 4 + 1 and rows.shape[1] == 10 + 8 + 10 + 4
    assert saved.state["loop"]["updates"] == 2 * (13 - 3)  # none until more than 12 steps are made
    assert rows[:, -1].tolist() == pytest.approx([0.99**k for k in (4, 4, 2)] * 4 + [0.99**4])
    assert torch.equal(rows[:, :-1], other.tensors["replay"]["rows"][:, :-1])
    assert whole.evaluations()[-1]["eval/length"] == 10


def test_demonstrations_are_chunks_too():
    p = plan("dsrl", ControlSettings(**{k: v for k, v in QUIET.items() if k != "quiet"}),
             CHUNKED | {"offline_share": 0.5})  # fmt: skip
    world = control.World(p)
    world.begin()
    rows = world.loop.offline.all()
    assert len(rows) == sum(len(e.reward) for e in world.demos) and rows.action.shape[1] == 8
    first = world.demos[0]
    assert rows.action[3].tolist() == first.action[3:7].flatten().tolist()
    assert float(rows.reward[3]) == pytest.approx(sum(0.99**i * float(first.reward[3 + i]) for i in range(4)))
    assert world.learner.steered.policy.actions == 8


def test_targets_of_a_cut_chunk(monkeypatch):
    it = dsrl.NoiseAliased(base=BASE, hidden=(16, 16), learn_alpha=False, alpha=0.0)(replace(SPACE, actions=4), 0)
    rows = replace(batch(), action=torch.zeros(32, 4), discount=torch.linspace(0.5, 1, 32))
    calls, asked = spied(monkeypatch, dsrl, "soft_target"), spied(monkeypatch, dsrl, "q_values")
    it.step(rows, rng())
    want = rows.reward + torch.linspace(0.5, 1, 32) * asked[0][2].amin(0)
    torch.testing.assert_close(calls[0][2], want.detach())


def test_a_chunked_base_from_the_command_line(tmp_path, capsys):
    common = ["--task", "reacher-sparse:max_steps=10", "--trackers", "--eval-episodes", "1", "--quiet"]
    base = ["train", "bc", *common, "--demos", "scripted:episodes=2", "--steps", "10", "--bc.hidden", "16", "--bc.chunk",
            "4", "--out", str(tmp_path / "bc")]  # fmt: skip
    assert main(base) == 0
    folder, out = str(tmp_path / "bc" / "policy"), tmp_path / "run"
    run = ["train", "dsrl", *common, "--steps", "20", "--dsrl.base", folder, "--dsrl.warmup", "4", "--dsrl.hidden", "16",
           "--dsrl.updates", "2", "--out"]  # fmt: skip
    assert main([*run, str(tmp_path / "other"), "--dsrl.chunk", "2"]) == 2
    assert "chunk 4" in capsys.readouterr().err and not (tmp_path / "other").exists()
    assert main([*run, str(out), "--dsrl.chunk", "4"]) == 0
    demos = tmp_path / "demos.safetensors"
    assert main(["record", str(out), "--episodes", "2", "--out", str(demos)]) == 0
    episodes = load_demonstrations(str(demos), load_environment("reacher-sparse:max_steps=10"))
    assert [len(e.reward) for e in episodes] == [10, 10] and episodes[0].action.shape[1] == 2
    assert control.evaluate_run(out, episodes=1, video=tmp_path / "film.gif")["eval/length"] == 10
    import imageio.v3 as imageio

    assert imageio.imread(tmp_path / "film.gif", index=None).shape[0] == 10
    learner, task = control.load_controller(out / "policy")
    assert task.space.actions == 8 and learner.act(torch.zeros(1, 10), rng(), explore=False).executed.shape == (1, 8)
