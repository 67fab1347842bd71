"""Results in Python: a run that is loaded gives what the trained one gives; actions and responses on demand."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

import anypolicy as ap
from anypolicy.errors import InputError
from tests.conformance import test_every_controller as controllers
from tests.conformance.test_every_controller import demonstrations  # noqa: F401


class Odd(gymnasium.Env):
    """Observations of several parts, actions that do not count from 0."""

    observation_space = Dict({"place": Box(-1, 1, (2,), np.float32), "kind": Discrete(3)})
    action_space = Discrete(4, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 5
        return self.shown(), {}

    def shown(self):
        return {"place": self.np_random.uniform(-1, 1, 2).astype(np.float32), "kind": int(self.np_random.integers(3))}

    def step(self, action):
        assert action in self.action_space
        self.left -= 1
        return self.shown(), float(np.sum(action) == 6), self.left == 0, False, {}


class Whole(Odd):
    """Actions of whole numbers in a box."""

    action_space = Box(np.array([-2, 3]), np.array([2, 9]), dtype=np.int64)


for name, kind in (("Odd", Odd), ("Whole", Whole)):
    gymnasium.register(f"Predicted{name}-v0", kind, max_episode_steps=5)


def trained(slug, task, out, **more):
    small = {k: v for k, v in controllers.SMALL.items() if k in ap.methods(None)[slug].knobs}
    return ap.train(slug, knobs=small, task=task, steps=64, out=out, trackers=(), quiet=True, eval_episodes=1, **more)


@pytest.mark.parametrize(
    ("slug", "name", "settings"),
    [("sac", "Pendulum-v1", ""), ("ppo-control", "CartPole-v1", ""), ("dqn", "PredictedOdd-v0", ""),
     ("ppo-control", "PredictedWhole-v0", ""), ("td3", "Pendulum-v1", ":reward_scale=0.1")],
)  # fmt: skip
def test_a_trained_controller_acts_in_the_environment_itself(slug, name, settings, tmp_path):
    run = trained(slug, f"gym/{name}{settings}", tmp_path / "run")
    env, loaded = gymnasium.make(name), ap.load(tmp_path / "run")
    observation, _ = env.reset(seed=0)
    shown, over, total, n = [], False, 0.0, 0
    while not over and n < 50:
        action, state = run.predict(observation)
        assert state is None and action in env.action_space
        assert np.array_equal(action, loaded.predict(observation)[0])
        assert np.array_equal(action, run.predict(observation, None, np.array([False]), True)[0])
        shown.append(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        over, total, n = terminated or truncated, total + reward, n + 1
    if isinstance(env.observation_space, Dict):
        many = {k: np.stack([o[k] for o in shown]) for k in shown[0]}
    else:
        many = np.stack(shown)
    actions = run.predict(many)[0]
    assert len(actions) == len(shown)
    assert np.allclose(actions, [run.predict(o)[0] for o in shown], atol=1e-5)


def test_predictions_are_what_an_evaluation_does(tmp_path):
    """The same episode, by hand."""
    run = trained("sac", "gym/Pendulum-v1", tmp_path / "run")
    from anypolicy.engines.environments import Environments
    from anypolicy.learners.base import acting

    environments = Environments(run.task.vector(1), 3)
    act, rng = acting(run.learner, explore=False), torch.Generator()
    for _ in range(20):
        seen = environments.current.clone()
        acted = act(seen, rng)
        assert np.allclose(run.predict(seen[0].numpy())[0], environments.native(acted.executed)[0])
        environments.step(acted.executed)
    drawn = {float(run.predict(np.zeros(3, np.float32), deterministic=False)[0][0]) for _ in range(5)}
    assert len(drawn) == 5


def test_what_the_environment_never_shows_is_refused(tmp_path):
    run = trained("sac", "gym/Pendulum-v1", tmp_path / "run")
    for wrong in (np.zeros(4), np.zeros((2, 4)), "far", np.array([np.nan, 0, 0])):
        with pytest.raises(InputError, match="observation"):
            run.predict(wrong)
    timed = trained("ppo-control", "gym/Pendulum-v1:time=true,max_steps=8", tmp_path / "timed")
    with pytest.raises(InputError, match="step of the episode"):
        timed.predict(np.zeros(4, np.float32))


def test_the_catalogue_is_called():
    """Before and after a method is loaded, when the name is a package's too."""
    assert {"sac", "grpo", "seppo", "bradley-terry", "exp2"} <= ap.methods().keys()
    assert "sac" not in ap.methods("language")


def test_a_language_model_answers(tmp_path):
    small = {
        "task": "tiny-add",
        "policy": "transformer:layers=1,width=16,heads=2,context=64",
        "prompts": 2,
        "group_size": 2,
    }
    run = ap.train("grpo", steps=2, out=tmp_path / "run", trackers=(), quiet=True, eval_prompts=4, **small)
    texts = run.generate(["1+1", [{"role": "user", "content": "2+2"}]], max_tokens=5)
    assert len(texts) == 2 and all(isinstance(t, str) for t in texts)
    loaded = ap.load(tmp_path / "run")
    assert loaded.generate(["1+1", "2+2"], max_tokens=5) == texts and loaded.generate("1+1", max_tokens=5) == texts[:1]
    assert loaded.rows == run.rows and loaded.generate([]) == []
    drawn = [run.generate("1+1", temperature=1.0, max_tokens=8, seed=s) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert run.generate([{"role": "user", "content": "2+2"}], max_tokens=5) == texts[1:]
    assert loaded.max_tokens == run.max_tokens < 16 and loaded.generate("1+1") == run.generate("1+1")
    for wrong in ("", [""], [3], [[]], [[{"role": "user"}]]):
        with pytest.raises(InputError, match="give a text, or messages"):
            run.generate(wrong)
    for wrong in ({"max_tokens": 0, "seed": 1}, {"temperature": -1.0}, {"max_tokens": 500}):
        with pytest.raises(InputError, match=r"max_tokens|temperature"):
            run.generate("1+1", **wrong)


def test_runs_of_every_family_are_loaded(tmp_path):
    diffusion = ap.train("diffusion-sft", knobs={"batch": 8}, task="ring8:winners=20", policy="fresh", steps=3,
                         out=tmp_path / "d", trackers=(), quiet=True, eval_samples=4)  # fmt: skip
    again = ap.load(tmp_path / "d")
    for name, x in diffusion.model.module.state_dict().items():
        assert torch.equal(again.model.module.state_dict()[name], x)
    rows = [f'{{"prompt": "{i}", "chosen": "{i + 1}", "rejected": "{i}"}}' for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    rewards = ap.train("bradley-terry", pairs=str(tmp_path / "pairs.jsonl"), out=tmp_path / "r", trackers=(), quiet=True,
                       policy="transformer:layers=1,width=16,heads=2,context=64", epochs=0.2)  # fmt: skip
    assert ap.load(tmp_path / "r").model.scores([[5, 6, 7]]) == rewards.model.scores([[5, 6, 7]])
