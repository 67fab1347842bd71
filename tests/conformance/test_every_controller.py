"""One suite for every controller of the catalogue. A new method file is tested by being there."""

import ast
import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from anypolicy import catalogue
from anypolicy.data.demonstrations import Episode, save_episodes
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families import control
from anypolicy.learners.base import observing, tensors_of
from anypolicy.learners.recipe import OffPolicyRecipe, OnPolicyRecipe, fed, uses_offline
from anypolicy.runs import drive
from anypolicy.runs.checkpoint import latest_checkpoint, load_checkpoint
from anypolicy.runs.metrics import documented
from anypolicy.runs.stop import Stopped
from anypolicy.tasks.control.environments import load_environment
from tests.helpers import StopAt

METHODS = sorted(slug for slug, m in catalogue.methods(None).items() if m.family == "control")
SMALL = {"hidden": (16, 16), "warmup": 20, "batch": 8, "updates": 2, "horizon": 32, "capacity": 1000, "epochs": 2,
         "collect": 16, "anneal": False, "ensemble": 2, "minibatches": 2, "base_hidden": (16, 16), "base_updates": 10,
         "denoising_steps": 2, "samples": 2, "edits": 2, "critic_warmup": 10, "distillations": 2,
         "behaviour_epochs": 2, "behaviour_minibatches": 2, "copy_every": 7, "quantiles": 4, "heads": 4}  # fmt: skip
"""Settings that make a method small, where it has them; a rate that falls over the run would make of a run that is made
longer another one."""


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory):
    """Files of episodes of random actions, by environment: Pendulum, and CartPole."""
    rng, folder, made = np.random.default_rng(0), tmp_path_factory.mktemp("demos"), {}
    for name, draw in (
        ("Pendulum-v1", lambda: rng.uniform(-1, 1, 1)),
        ("CartPole-v1", lambda: rng.integers(2, size=1)),
    ):
        task, episodes = load_environment(f"gym/{name}"), []
        for seed in range(4):
            env = task.make()
            seen, acted, flags, over = [env.reset(seed=seed)[0]], [], [], False
            while not over and len(flags) < 60:
                action = draw().astype(np.float32)
                observation, reward, over, *_ = env.step(int(action[0]) if task.space.discrete else 2 * action)
                seen.append(observation)
                acted.append(action)
                flags.append((reward, float(over), 0.0))
            numbers = torch.tensor(flags, dtype=torch.float32).unbind(1)
            seen = torch.tensor(np.array(seen), dtype=torch.float32)
            episodes.append(Episode(seen, torch.tensor(np.array(acted)), *numbers))
        made[name] = str(folder / f"{name}.safetensors")
        save_episodes(made[name], episodes)
    return made


def settings_of(slug, demonstrations):
    """Knobs and settings of a small run."""
    m = catalogue.get(slug, "control")
    knobs = {k: v for k, v in SMALL.items() if k in m.knobs} | dict(SMALL_KNOBS.get(slug, {}))
    recipe = m.recipe(**knobs)
    needs = uses_offline(recipe)
    task = TASKS.get(slug) or (CHOICES if is_for_choices(recipe) else BOX)
    recorded = demonstrations["CartPole-v1" if "CartPole" in task else "Pendulum-v1"]
    return knobs, {"task": task, "trackers": (), "eval_episodes": 1, **({"demos": recorded} if needs else {})}


BOX, CHOICES = "gym/Pendulum-v1:max_steps=25", "gym/CartPole-v1:max_steps=25"
TASKS: dict[str, str] = {"hnpg": "gym/Pendulum-v1:time=true,max_steps=8"}
"""A method's own test-bed, where it can learn in neither of these."""


def is_for_choices(recipe):
    """A learner says so by refusing a box of actions."""
    try:
        recipe.learner(load_environment(BOX).space, 0)
    except InputError as error:
        return "discrete" in str(error)
    return False


SMALL_KNOBS: dict[str, dict] = {"hnpg": {"offline": False, "environments": 2, "critic_steps": 2}}
"""Further settings that make a method small."""


def trained(slug, out, steps, demonstrations, **more):
    knobs, settings = settings_of(slug, demonstrations)
    return control.train_controller(slug, knobs=knobs, steps=steps, out=out, quiet=True, **(settings | more))


def content(run):
    """Everything a run leaves that must not depend on when it was stopped."""
    saved = load_checkpoint(latest_checkpoint(run.path))
    return run.rows, {k: {n: t.numpy().tobytes() for n, t in v.items()} for k, v in saved.tensors.items()}


@pytest.mark.parametrize("slug", METHODS)
def test_card_and_header_are_complete(slug):
    m = catalogue.get(slug, "control")
    for name in ("title", "paper", "idea", "composes_with", "claim"):
        assert getattr(m.card, name)
    assert m.card.family == "control"
    for word in ("Paper:", "Idea:", "Changes:", "Silent:", "Differs:"):
        assert word in m.header
    assert (m.build.__doc__ or "").strip()


@pytest.mark.parametrize("slug", METHODS)
def test_it_stands_in_the_table_of_controllers(slug):
    rows = (Path(__file__).parents[2] / "docs" / "control.md").read_text().splitlines()
    assert any(f"`{slug}`" in row.split("|")[1] for row in rows if row.startswith("| "))


def unread(m):
    """Settings that no recipe takes and no code reads, of the method's file or of those that it inherits from."""
    files = {inspect.getsourcefile(kind) for kind in m.build.__mro__ if kind is not object}
    nodes = [node for path in files for node in ast.walk(ast.parse(Path(path).read_text()))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return [name for name in m.knobs if name not in read | vars(m.recipe()).keys()]


@pytest.mark.parametrize("slug", METHODS)
def test_every_setting_is_read(slug):
    assert unread(catalogue.get(slug, "control")) == []


def test_a_misspelt_setting_is_seen():
    """Planted: the recipe has its own size of batches, whatever this one is."""

    @dataclasses.dataclass(frozen=True)
    class Misspelt:
        bacth: int = 8

        def recipe(self):
            return fed(OffPolicyRecipe, self)

    assert unread(dataclasses.replace(catalogue.get("sac", "control"), build=Misspelt)) == ["bacth"]


@pytest.mark.parametrize("slug", METHODS)
def test_a_run_logs_documented_finite_numbers_and_learns_something(slug, tmp_path, demonstrations):
    run = trained(slug, tmp_path / "run", 96, demonstrations)
    more = catalogue.get(slug, "control").card.metrics
    for row in run.rows:
        numbers = {k: v for k, v in row.items() if k != "event"}
        assert [name for name in numbers if not documented(name, more)] == []
        assert np.isfinite(list(numbers.values())).all()
    knobs, settings = settings_of(slug, demonstrations)
    fresh = control.World(control.plan(slug, control.ControlSettings(**settings), knobs)).learner
    before, after = tensors_of(fresh), tensors_of(run.learner)
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert "eval/return" in run.evaluations()[-1]


CUTS = ((30, 1), (31, 2))
"""Looks at the wish to stop, or rollouts, after which a run is stopped. With one update a step 5 and 6 updates are
behind it then: no period divides both, so that a counter is missed if it is lost."""


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("slug", METHODS)
def test_a_run_that_is_stopped_and_made_longer_is_the_whole_run(slug, cut, tmp_path, demonstrations, monkeypatch):
    """It is stopped in the middle of a row of the ledger."""
    m, (steps, rollouts) = catalogue.get(slug, "control"), cut
    if "updates" in m.knobs:
        monkeypatch.setitem(SMALL, "updates", 1)
    whole = trained(slug, tmp_path / "whole", 128, demonstrations, eval_every=64, checkpoint_every=64)
    with monkeypatch.context() as patch:
        patch.setattr(drive, "first_signal", StopAt(rollouts if isinstance(m.recipe(), OnPolicyRecipe) else steps))
        with pytest.raises(Stopped):
            trained(slug, tmp_path / "part", 64, demonstrations, eval_every=64, checkpoint_every=64)
    control.resume(tmp_path / "part", quiet=True)
    part = control.resume(tmp_path / "part", steps=128, quiet=True)
    a, b = content(whole), content(part)
    assert a[0] == b[0]
    assert a[1] == b[1]


@pytest.mark.parametrize("slug", METHODS)
def test_same_seed_same_bits_other_seed_other_bits(slug, tmp_path, demonstrations):
    runs = [content(trained(slug, tmp_path / f"{i}", 64, demonstrations, seed=s)) for i, s in enumerate((3, 3, 4))]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("slug", METHODS)
def test_the_saved_controller_acts_as_the_trained_one(slug, tmp_path, demonstrations):
    run = trained(slug, tmp_path / "run", 64, demonstrations)
    loaded, task = control.load_controller(run.path / "policy")
    assert json.loads((run.path / "policy" / "config.json").read_text())["method"] == slug
    seen = torch.randn(5, task.space.observations, generator=torch.Generator().manual_seed(0))
    acts = []
    for learner in (run.learner, loaded):
        observe = observing(learner)
        rng = torch.Generator().manual_seed(1)
        acts.append(learner.act(observe(seen), rng, explore=False).executed)
    assert torch.equal(*acts)


@pytest.mark.parametrize("slug", METHODS)
def test_an_evaluation_needs_nothing_but_the_weights_and_changes_nothing(slug, tmp_path, demonstrations):
    """No replay, demonstrations, exploration, schedule or moments that go on: a learner that has its policy/ folder alone
    gets the returns of the trained one, twice."""
    run = trained(slug, tmp_path / "run", 64, demonstrations)
    knobs, settings = settings_of(slug, demonstrations)
    plan = control.plan(slug, control.ControlSettings(**settings), knobs)
    loaded, _ = control.load_controller(run.path / "policy")
    before = tensors_of(run.learner)
    returns = [control.evaluated(plan, learner, 7, 2) for learner in (run.learner, run.learner, loaded)]
    assert returns[0] == returns[1] == returns[2] and len(returns[0][1]) == 2
    after = tensors_of(run.learner)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


DRAWS = {
    "bc": "a flow begins at drawn noise",
    "crr": "samples its softmax when evaluated too, as its authors do",
    "dsrl": "draws from the actor when evaluated too, as its authors do",
    "dsrl-sac": "as dsrl",
    "expo-expressive": "the best of drawn samples and edits is its policy",
}
"""Methods whose policy draws, explored or not."""


def acts_of(learner, seen, **how):
    """What it does where it sees this, with the random numbers of two generators."""
    rngs = [torch.Generator().manual_seed(n) for n in (1, 2)]
    return [learner.act(observing(learner)(seen), rng, **how).executed for rng in rngs]


def watched(learner, monkeypatch):
    """What its `act` is asked from now on: whether to explore."""
    asked, act = [], learner.act

    def ask(observation, generator, *, explore):
        asked.append(explore)
        return act(observation, generator, explore=explore)

    monkeypatch.setattr(learner, "act", ask)
    return asked


@pytest.mark.parametrize("slug", METHODS)
def test_an_evaluation_does_not_explore(slug, tmp_path, demonstrations, monkeypatch):
    """The action follows from the observation alone, unless the policy draws by itself."""
    run = trained(slug, tmp_path / "run", 64, demonstrations)
    knobs, settings = settings_of(slug, demonstrations)
    plan = control.plan(slug, control.ControlSettings(**settings), knobs)
    seen = torch.randn(5, plan.task.space.observations, generator=torch.Generator().manual_seed(0))
    assert torch.equal(*acts_of(run.learner, seen, explore=False)) == (slug not in DRAWS)
    asked = watched(run.learner, monkeypatch)
    control.evaluated(plan, run.learner, 7, 1)
    assert asked and not any(asked)


def test_noise_in_an_evaluation_is_seen(tmp_path, demonstrations, monkeypatch):
    """Planted: TD3 adds its noise whether it is told to explore or not."""
    from anypolicy.methods.control import td3

    act = td3.TwinDelayedLearner.act
    monkeypatch.setattr(td3.TwinDelayedLearner, "act", lambda self, x, rng, *, explore: act(self, x, rng, explore=True))
    with pytest.raises(AssertionError):
        test_an_evaluation_does_not_explore("td3", tmp_path, demonstrations, monkeypatch)


@pytest.mark.parametrize("slug", METHODS)
def test_truncation_bootstraps_and_termination_does_not(slug, demonstrations):
    knobs, settings = settings_of(slug, demonstrations)
    p = control.plan(slug, control.ControlSettings(**settings), knobs)
    if not isinstance(p.recipe, OffPolicyRecipe):
        return
    world = control.World(p)
    world.begin()
    start = {k: v.clone() for k, v in tensors_of(world.learner).items()}
    width = world.loop.replay.observations
    rng = torch.Generator().manual_seed(0)
    n, zeros = 8, torch.zeros(8)
    seen, later = (torch.randn(n, width, generator=rng) for _ in range(2))
    action = torch.rand(n, p.task.space.action_width, generator=rng) * 2 - 1
    base = Transitions(seen, action, torch.randn(n, generator=rng), later, zeros, zeros, zeros + 0.9)

    def after(t):
        """Weights of the critics after one update from the same start with the same noise."""
        from anypolicy.learners.base import load_tensors

        load_tensors(world.learner, start)
        world.learner.update([t] * p.recipe.updates, torch.Generator().manual_seed(5))
        return {k: v for k, v in tensors_of(world.learner).items() if "critic" in k and "optimiser" not in k}

    def same(a, b):
        return all(torch.equal(a[k], b[k]) for k in a)

    plain = after(base)
    assert plain, "a critic's module has 'critic' in its name"
    assert same(plain, after(dataclasses.replace(base, truncated=zeros + 1)))
    over = after(dataclasses.replace(base, terminated=zeros + 1))
    assert not same(plain, over)
    assert same(over, after(dataclasses.replace(base, terminated=zeros + 1, next_observation=later + 1)))


def test_a_lost_counter_of_any_small_period_is_seen(tmp_path, demonstrations, monkeypatch):
    """Planted: TD3 forgets how many updates it has made."""
    from anypolicy.methods.control import td3

    made = td3.TwinDelayedLearner.__init__

    def forgetful(self, *given):
        made(self, *given)
        del self.modules["counter"]

    monkeypatch.setitem(SMALL, "updates", 1)
    for delay in (2, 3, 5, 6):
        monkeypatch.setitem(SMALL, "delay", delay)
        seen = 0
        for number, (steps, _) in enumerate(CUTS):
            with monkeypatch.context() as patch:
                patch.setattr(td3.TwinDelayedLearner, "__init__", forgetful)
                out = tmp_path / f"{delay}-{number}"
                whole = trained("td3", out / "whole", 64, demonstrations)
                with monkeypatch.context() as stop:
                    stop.setattr(drive, "first_signal", StopAt(steps))
                    with pytest.raises(Stopped):
                        trained("td3", out / "part", 64, demonstrations)
                seen += content(whole)[1] != content(control.resume(out / "part", quiet=True))[1]
        assert seen, f"a lost counter of period {delay} would not be noticed"
