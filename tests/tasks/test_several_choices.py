"""Several choices at once: MultiDiscrete and MultiBinary actions, and observations of every kind."""

import itertools
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

import anypolicy as ap
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError
from anypolicy.learners.base import uniform
from anypolicy.parts.distributions import Categorical, Factored
from anypolicy.policies.control.actors import FactoredActor
from anypolicy.runs.objects import handed
from anypolicy.studies.record import record
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import load_environment


def loaded(task):
    """The task of an object."""
    with handed({"task": task}) as named:
        return load_environment(named["task"])


SEEN = {
    "dict": Dict({"goal": MultiBinary((2, 2)), "at": Tuple((Discrete(3, start=-1), Box(-1, 1, (2,), np.float32)))}),
    "tuple": Tuple((MultiDiscrete([2, 3], start=[1, 5]), Box(0, 9, (2, 2), np.int64))),
    "choices": MultiDiscrete([[2, 4]]),
    "bits": MultiBinary(5),
}
ACTS = {
    "several": MultiDiscrete([3, 2]), "from": MultiDiscrete([2, 4], start=[-1, 7]), "square": MultiDiscrete([[2, 3], [2, 2]]),
    "bits": MultiBinary(3), "grid": MultiBinary((2, 2)),
}  # fmt: skip


class Whatever(gymnasium.Env):
    """Pays for every part of an action that is its largest."""

    def __init__(self, seen, acts):
        self.observation_space, self.action_space = seen, acts
        self.highest = acts.nvec + acts.start - 1 if isinstance(acts, MultiDiscrete) else np.ones(acts.shape)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        return self.observation_space.sample(), float(np.mean(action == self.highest)), False, self.t == 8, {}


def task_of(seen="bits", acts="several"):
    def whatever():
        return gymnasium.wrappers.TimeLimit(Whatever(SEEN[seen], ACTS[acts]), 8)

    return whatever


def test_log_probability_entropy_and_divergence_are_those_of_the_table_of_all_combinations():
    p, q = (
        Factored(tuple(Categorical(torch.tensor([x]).double().log()) for x in rows))
        for rows in (([0.2, 0.8], [0.5, 0.3, 0.2]), ([0.6, 0.4], [0.1, 0.1, 0.8]))
    )
    combinations = torch.tensor(list(itertools.product(range(2), range(3)))).double()
    logp, other = (torch.cat([x.logp(c[None]) for c in combinations]) for x in (p, q))
    assert logp.exp().tolist() == pytest.approx([0.1, 0.06, 0.04, 0.4, 0.24, 0.16])
    assert p.entropy().item() == pytest.approx(-(logp.exp() * logp).sum().item())
    assert p.divergence(q).sum().item() == pytest.approx((logp.exp() * (logp - other)).sum().item())
    assert p.mode().tolist() == [[1, 0]]
    many = Factored(tuple(Categorical(x.log_probabilities.expand(20_000, -1)) for x in p.parts))
    drawn = many.sample(torch.Generator().manual_seed(0))
    shares = torch.stack([(drawn == c).all(1).double().mean() for c in combinations])
    assert (shares - logp.exp()).abs().max() < 4 * math.sqrt(0.25 / 20_000)
    assert many.select(torch.tensor([3, 5])).logp(combinations[:2]).tolist() == logp[:2].tolist()


def test_the_actor_splits_its_outputs():
    actor = FactoredActor(4, (3, 2), (8,), torch.Generator().manual_seed(0))
    pi, out = actor(x := torch.randn(5, 4)), actor.net(torch.zeros(1, 4)).shape
    assert out == (1, 5) and [p.log_probabilities.shape for p in pi.parts] == [(5, 3), (5, 2)]
    assert torch.equal(pi.parts[1].log_probabilities, actor.net(x)[:, 3:].log_softmax(-1))


@pytest.mark.parametrize(("acts", "factors"), [
    ("several", (3, 2)), ("from", (2, 4)), ("square", (2, 3, 2, 2)), ("bits", (2, 2, 2)), ("grid", (2, 2, 2, 2)),
])  # fmt: skip
def test_actions_become_the_environments_own(acts, factors):
    task = loaded(task_of(acts=acts))
    space = task.space
    assert (space.factors, space.actions, space.action_width) == (factors, sum(factors), len(factors))
    envs = Environments(task.vector(2), 0)
    best = torch.tensor([[m - 1.0 for m in factors], [0.0] * len(factors)])
    assert envs.step(best).reward.tolist() == [1.0, 0.0]
    drawn = uniform(space, 4000, torch.Generator().manual_seed(0)).executed
    for j, m in enumerate(factors):
        shares = torch.bincount(drawn[:, j].long(), minlength=m) / 4000
        assert len(shares) == m and (shares - 1 / m).abs().max() < 0.05


@pytest.mark.parametrize(
    ("seen", "acts"), [("dict", "several"), ("tuple", "bits"), ("choices", "square"), ("bits", "from")]
)
def test_predict_takes_and_gives_the_environments_forms(seen, acts, tmp_path):
    make = task_of(seen, acts)
    run = ap.train("ppo-control", task=make, steps=64, eval_episodes=1, trackers=(), quiet=True, out=tmp_path / "run",
                   knobs={"horizon": 32, "minibatches": 2, "epochs": 1, "hidden": (8,)})  # fmt: skip
    space, env = SEEN[seen], make()
    space.seed(3)
    for deterministic in (True, False):
        action, _ = run.predict(space.sample(), deterministic=deterministic)
        assert env.action_space.contains(action)
    vector = gymnasium.vector.SyncVectorEnv([make, make])
    many, _ = run.predict(vector.reset(seed=0)[0])
    assert many.shape == (2, *ACTS[acts].shape) and all(env.action_space.contains(a) for a in many)
    again = ap.load(tmp_path / "run", task=make)
    assert np.array_equal(again.predict(x := space.sample())[0], run.predict(x)[0])


@pytest.mark.parametrize(("slug", "acts", "knobs"), [
    ("ppo-control", "grid", {"horizon": 64, "minibatches": 4, "epochs": 4, "hidden": (16,), "lr": 1e-2}),
    ("props", "several", {"horizon": 128, "collect": 64, "hidden": (16,), "lr": 1e-2}),
    ("npg-igt", "several", {}),
    ("harpg", "grid", {}),
])  # fmt: skip
def test_it_learns_every_factor(slug, acts, knobs, tmp_path):
    known = ap.methods(None)[slug].knobs
    run = ap.train(slug, task=task_of("bits", acts), steps=4096, trackers=(), quiet=True, out=tmp_path / "run",
                   knobs={k: v for k, v in knobs.items() if k in known})  # fmt: skip
    returns = [row["eval/return"] for row in run.evaluations()]
    assert returns[-1] > max(6.5, returns[0] + 1), returns


@pytest.mark.parametrize("slug", ["dqn", "sac", "td3", "rlpd", "serl"])
def test_methods_that_cannot_name_those_which_can(slug, tmp_path):
    with pytest.raises(
        InputError, match=r"2 discrete actions at once, of 3, 2 choices.*use ppo-control, props, npg-igt or harpg"
    ):
        ap.train(slug, task=task_of(), steps=64, out=tmp_path / "run", quiet=True)


def test_demonstrations_of_several_choices_are_written_and_not_learnt_from(tmp_path):
    task = task_of()
    run = ap.train("ppo-control", task=task, steps=32, eval_episodes=1, trackers=(), quiet=True,
                   out=tmp_path / "run", knobs={"horizon": 32, "minibatches": 2})  # fmt: skip
    with handed({"task": task}):
        assert record(run.path, episodes=2, out=str(tmp_path / "d.safetensors")) == 16
    with pytest.raises(InputError, match="which nothing here learns from demonstrations"):
        load_demonstrations(str(tmp_path / "d.safetensors"), run.task)


def test_other_actions_are_refused():
    def odd():
        return Whatever(SEEN["bits"], MultiBinary(2))

    class Mixed(Whatever):
        def __init__(self):
            super().__init__(SEEN["bits"], MultiBinary(2))
            self.action_space = Tuple((Discrete(2), Box(-1, 1, (1,), np.float32)))

    assert loaded(odd).space.factors == (2, 2)
    with pytest.raises(InputError, match=r"Discrete, MultiDiscrete, MultiBinary"):
        loaded(Mixed)
