"""Updates written out against the plain ones: one learner, several learners, several seeds of a run."""

import pytest
import torch

from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families import control
from anypolicy.learners.soft_actor_critics import SideBySide
from anypolicy.methods.control.sac import SoftActorCritic
from anypolicy.tasks.control.environments import Space

BOX = Space(3, 2, False, (-1.0, -1.0), (1.0, 1.0))
SETTINGS = [{}, {"alpha_form": "alpha", "alpha": 0.3}, {"ensemble": 5, "hidden": (8, 8, 8)}, {"learn_alpha": False},
            {"ensemble": 1, "hidden": (8,)}]  # fmt: skip


def learner(seed=0, **settings):
    return SoftActorCritic(**({"hidden": (16, 16)} | settings))(BOX, seed)


def batch(seed, n=24):
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    ended = (torch.rand(n, generator=rng) < 0.3).float()
    return Transitions(normal(n, 3), normal(n, 2).tanh(), normal(n), normal(n, 3), ended, torch.zeros(n),
                       torch.full((n,), 0.99))  # fmt: skip


def same(a, b):
    for name, module in a.modules.items():
        for x, y in zip(module.parameters(), b.modules[name].parameters(), strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_written_out_update_is_the_plain_one(settings):
    quick, plain = learner(**settings), learner(**settings)
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    for i in range(8):
        log, want = quick.update([batch(i)], first), plain.step(batch(i), second)
        assert log == pytest.approx(want, rel=1e-4, abs=1e-5)
    same(quick, plain)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_learners_side_by_side_are_each_as_alone(settings):
    several, alone = ([learner(seed, **settings) for seed in range(3)] for _ in range(2))
    together = SideBySide(several)
    rngs, others = ([torch.Generator().manual_seed(seed) for seed in range(3)] for _ in range(2))
    for i in range(8):
        batches = [batch(10 * seed + i) for seed in range(3)]
        together.update(batches, rngs)
        for x, b, rng in zip(alone, batches, others, strict=True):
            x.step(b, rng)
    for a, b in zip(several, alone, strict=True):
        same(a, b)


def test_several_seeds_of_a_run_are_each_its_own_run():
    knobs = {"hidden": (16, 16), "batch": 16, "warmup": 20}
    together = control.several("sac", task="gym/Pendulum-v1", seeds=[3, 4], knobs=knobs)
    together.run(40)
    for seed, loop in zip((3, 4), together.loops, strict=True):
        settings = control.ControlSettings("gym/Pendulum-v1", seed=seed, trackers=())
        alone = control.World(control.plan("sac", settings, knobs)).loop
        alone.run(40)
        same(loop.learner, alone.learner)
        torch.testing.assert_close(loop.replay.all().observation, alone.replay.all().observation, atol=1e-4, rtol=0)
        assert (loop.steps, loop.updates) == (alone.steps, alone.updates) == (40, 20)


def test_what_cannot_stand_side_by_side_is_refused():
    with pytest.raises(InputError, match="several learners"):
        SideBySide([learner(layer_norm=True), learner(layer_norm=True)])
    with pytest.raises(InputError, match="in one process"):
        control.several("ppo-control", task="gym/CartPole-v1", seeds=[0, 1])
