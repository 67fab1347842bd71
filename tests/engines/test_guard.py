"""What an environment may do to what it once gave, what it may not say, and what its actions become."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from anypolicy.data.demonstrations import episodes_of
from anypolicy.data.replay import Replay
from anypolicy.data.transitions import concatenate
from anypolicy.engines.environments import EnvironmentFailed, Environments
from anypolicy.errors import InputError
from anypolicy.loops.control import transitions
from anypolicy.tasks.control.chunks import in_chunks
from anypolicy.tasks.control.environments import load_environment
from anypolicy.tasks.control.scripted import record

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]


class InPlace(gymnasium.Env):
    """Shows 10 × episode + step in one array that it changes in place, as its info; spoils the action it is given."""

    action_space = Box(-2, 2, (1,), np.float32)

    def __init__(self, parts=False, info=None, length=3):
        box = Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(a=box, b=box) if parts else box
        self.seen = {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)} if parts else np.zeros(1, np.float32)
        self.said, self.more = {"is_success": np.zeros(1)}, info or {}
        self.episode, self.t, self.length = 0, 0, length

    def show(self):
        for x in self.seen.values() if isinstance(self.seen, dict) else [self.seen]:
            x[:] = 10 * self.episode + self.t
        self.said["is_success"][:] = self.t == self.length
        return self.seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.show(), self.said

    def step(self, action):
        self.t += 1
        action[:] = 99
        return self.show(), 1.0, False, self.t == self.length, self.said | self.more


@pytest.fixture
def registered():
    """Makes environments of a class and settings available as gym/Guarded-v0."""

    def register(kind, **settings):
        gymnasium.register("Guarded-v0", entry_point=kind, kwargs=settings)
        return "gym/Guarded-v0"

    yield register
    gymnasium.registry.pop("Guarded-v0", None)


def walked(envs, steps):
    made = []
    while len(made) < steps:
        action = torch.full((len(envs), 1), 0.5)
        s = envs.step(action)
        assert (action == 0.5).all()
        if s.real.all():
            made.append(transitions(s, action, lambda x: x, 1.0))
    return made


@pytest.mark.parametrize("mode", MODES)
def test_an_array_changed_in_place_changes_nothing_that_was_kept(mode):
    envs = Environments(SyncVectorEnv([InPlace] * 2, autoreset_mode=mode), 0)
    made = concatenate([t.select(torch.tensor([0])) for t in walked(envs, 6)])
    assert made.observation.flatten().tolist() == [10, 11, 12, 20, 21, 22]
    assert made.next_observation.flatten().tolist() == [11, 12, 13, 21, 22, 23]
    assert made.truncated.tolist() == [0, 0, 1, 0, 0, 1] and envs.take().successes == [1.0] * 4


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("time", [False, True])
def test_nor_in_a_replay_or_a_record(parts, time, registered):
    task = load_environment(registered(InPlace, parts=parts) + (":time=true" if time else ""))
    envs, replay = Environments(task.vector(1), 0), Replay(10, task.space.observations, 1)
    for t in walked(envs, 6):
        replay.add(t)
    [first, second] = episodes_of(replay.all())
    assert first.observation[:, 0].tolist() == [10, 11, 12, 13]
    assert second.observation[:, 0].tolist() == [20, 21, 22, 23]
    for env in (task.make(), InPlace()):
        shown = record(env, lambda seen: np.array([0.5]), 0)
        assert shown.observation[:, 0].tolist() == [10, 11, 12, 13] and shown.action.tolist() == [[0.5]] * 3


def test_a_vector_environment_that_gives_its_own_buffer_is_copied():
    vector = SyncVectorEnv([InPlace], copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
    [a, b, *_] = walked(Environments(vector, 0), 3)
    assert (a.observation.item(), a.next_observation.item(), b.next_observation.item()) == (10, 11, 12)


PRIVATE = {"took": 7, "paid": 70.0, "final_obs": np.array([5.0]), "final_info": {"is_success": 0.0}, "success": None}


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_what_else_an_environment_says_means_nothing(chunk, mode, registered):
    task = in_chunks(load_environment(registered(InPlace, info=PRIVATE, length=4)), chunk, 0.5)
    made = [task.vector(1)] if mode is AutoresetMode.SAME_STEP else []
    if chunk == 1:
        made.append(SyncVectorEnv([lambda: InPlace(info=PRIVATE, length=4)], autoreset_mode=mode))
    for vector in made:
        envs, rows = Environments(vector, 0), []
        while len(rows) < 8 // chunk:
            s = envs.step(torch.zeros(1, chunk))
            if s.real[0]:
                rows.append(transitions(s, torch.zeros(1, chunk), lambda x: x, 0.5))
        rows = concatenate(rows)
        assert (rows.discount == 0.5**chunk).all() and (rows.reward == (1.0 if chunk == 1 else 1.5)).all()
        assert rows.next_observation.flatten().tolist()[4 // chunk - 1] == 14
        ended = envs.take()
        assert ended.returns == [4.0, 4.0] and ended.lengths == [4, 4] and ended.successes == [1.0, 1.0]


class Ending(gymnasium.Env):
    """Says once what it is told to say."""

    observation_space, action_space = Box(-1, 1, (1,), np.float32), Box(-1, 1, (1,), np.float32)

    def __init__(self, reward=0.0, terminated=False, truncated=False):
        self.answer = (reward, terminated, truncated)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), *self.answer, {}


@pytest.mark.parametrize("value", [0.5, 2, 255, float("nan"), None, "yes", -1, np.array([True, True])])
@pytest.mark.parametrize("name", ["terminated", "truncated"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_flag_is_true_or_false(name, value, chunk, registered):
    task = in_chunks(load_environment(registered(Ending, **{name: value}) + ":max_steps=5"), chunk, 0.9)
    envs = Environments(task.vector(1), 0)
    with pytest.raises(EnvironmentFailed, match=rf"{name}: .*true or false"):
        envs.step(torch.zeros(1, chunk))
    assert envs.failed


@pytest.mark.parametrize("value", [True, 1, 1.0, np.float32(1), np.True_, np.array([1]), np.uint8(1)])
def test_a_flag_may_be_written_in_other_ways(value):
    envs = Environments(SyncVectorEnv([lambda: Ending(terminated=value)], autoreset_mode=MODES[0]), 0)
    assert envs.step(torch.zeros(1, 1)).terminated.tolist() == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, None, "1", np.ones(2), 1j])
@pytest.mark.parametrize("settings", ["", ":reward_scale=2"])
def test_a_reward_is_one_finite_number(value, settings, registered):
    envs = Environments(load_environment(registered(Ending, reward=value) + settings).vector(1), 0)
    with pytest.raises(EnvironmentFailed, match=r"reward: .*one finite number"):
        envs.step(torch.zeros(1, 1))


# --- actions ---------------------------------------------------------------------------------------------------------
class Acting(gymnasium.Env):
    """Keeps the actions it is given."""

    observation_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, acts):
        self.action_space, self.given = acts, []

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.given.append(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}


def done(acts, unit, registered=None):
    """What the environment is given for these actions, made by itself or by name."""
    if registered is None:
        vector = SyncVectorEnv([lambda: Acting(acts)], autoreset_mode=MODES[0])
    else:
        vector = load_environment(registered(Acting, acts=acts)).vector(1)
    envs = Environments(vector, 0)
    for u in unit:
        envs.step(torch.tensor([[u]]).float())
    return [x.item() for x in vector.envs[0].unwrapped.given], vector.envs[0].unwrapped.given[0]


@pytest.mark.parametrize("by_name", [False, True])
def test_boxes_of_whole_numbers_get_the_nearest(by_name, registered):
    unit = [-1, -0.91, -0.41, 0.01, 0.41, 0.91, 1]
    for dtype, low in ((np.int8, -128), (np.uint8, 0), (np.int64, -3)):
        got, one = done(Box(low, low + 255, (1,), dtype), unit, registered if by_name else None)
        want = [low + round((u + 1) / 2 * 255) for u in unit]
        assert one.dtype == dtype and got == want
        gymnasium.registry.pop("Guarded-v0", None)


def test_no_action_lies_outside_its_box():
    for low, high in ((-0.1, 0.7), (-1 / 3, 1e-3), (0.1, 0.3), (2.0, 2.0), (-1.5e38, 1.5e38)):
        box = Box(low, high, (1,), np.float32)
        got, _ = done(box, [-1, -0.3, 0.999, 1])
        assert all(box.low[0] <= x <= box.high[0] for x in got)


def test_rounding_that_would_go_beyond_the_box_does_not():
    """Seven thousand axes: the formula alone leaves some of them."""
    rng = np.random.default_rng(0)
    low = rng.uniform(-3, 3, 7000).astype(np.float32)
    high = (low + rng.uniform(0, 3, 7000)).astype(np.float32)
    assert (low + (np.float32(1) + 1) / 2 * (high - low) > high).any()
    box = Box(low, high, dtype=np.float32)
    envs = Environments(SyncVectorEnv([lambda: Acting(box)], autoreset_mode=MODES[0]), 0)
    given = envs.native(torch.ones(1, 7000))
    assert (given <= high).all() and (given >= low).all()


@pytest.mark.parametrize(
    "acts",
    [Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (1,), np.float32), Box(-1e200, 1e200, (1,), np.float64),
     Box(-np.inf, np.inf, (1,)), Box(0, np.inf, (1,)), Box(-np.inf, np.inf, (1,), np.int64),
     Box(np.iinfo(np.int64).min + 1, np.iinfo(np.int64).max - 1, (1,), np.int64)],
)  # fmt: skip
def test_boxes_that_cannot_be_scaled_are_refused(acts, registered):
    name = registered(Acting, acts=acts)
    with pytest.raises(InputError, match="bounded"):
        load_environment(name)
    with pytest.raises(InputError, match="bounded"):
        Environments(SyncVectorEnv([lambda: Acting(acts)], autoreset_mode=MODES[0]), 0)


def test_choices_begin_at_the_environments_own_number_and_a_table_of_several_is_refused(registered):
    assert done(Discrete(3, start=4), [0, 1, 2])[0] == [4, 5, 6]
    assert load_environment(registered(Acting, acts=Discrete(3, start=4))).space.actions == 3
    with pytest.raises(InputError, match="one box or discrete"):
        Environments(SyncVectorEnv([lambda: Acting(MultiDiscrete([[2], [3]]))], autoreset_mode=MODES[0]), 0)


def test_an_axis_without_width_is_no_choice(registered):
    box = Box(np.array([-1, 2], np.float32), np.array([3, 2], np.float32))
    space = load_environment(registered(Acting, acts=box)).space
    assert space.unit(torch.tensor([[1.0, 2.0], [3.0, 2.0]])).tolist() == [[0, 0], [1, 0]]


# --- state -----------------------------------------------------------------------------------------------------------
class Stateful(gymnasium.Env):
    """Counts, and tells all kinds of values with it."""

    observation_space, action_space = Box(-np.inf, np.inf, (2,), np.float32), Box(-1, 1, (1,), np.float32)
    extra: object = None

    def __init__(self):
        self.x, self.t, self.other = np.zeros(2), np.int64(0), {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = np.zeros(2), np.int64(0)
        return self.x, {}

    def step(self, action):
        self.x, self.t = self.x + self.np_random.normal(size=2), self.t + 1
        return self.x, float(self.x[0]), False, bool(self.t == 7), {}

    def get_state(self):
        return {"x": self.x, "t": self.t, 3: (np.float32(0.1), [np.inf, np.nan], b"\x00", None, "a", np.array(["ab"]),
                np.eye(2, dtype=np.bool_)), "extra": self.extra}  # fmt: skip

    def set_state(self, value):
        self.x, self.t, self.other = value["x"], value["t"], value
        assert isinstance(self.x, np.ndarray) and isinstance(self.t, np.int64)


def test_a_state_of_numpys_values_goes_through_json():
    one, two = (Environments(SyncVectorEnv([Stateful], autoreset_mode=MODES[0]), seed) for seed in (0, 1))
    for _ in range(10):
        one.step(torch.zeros(1, 1))
    assert two.restore(json.loads(json.dumps(one.state(), allow_nan=False)))
    small, numbers, code, none, text, words, bits = two.vector.envs[0].unwrapped.other[3]
    assert type(small) is np.float32 and small == np.float32(0.1) and numbers[0] == np.inf and np.isnan(numbers[1])
    assert (code, none, text, words.tolist()) == (b"\x00", None, "a", ["ab"]) and bits.tolist() == [[1, 0], [0, 1]]
    for _ in range(10):
        a, b = one.step(torch.zeros(1, 1)), two.step(torch.zeros(1, 1))
        assert torch.equal(a.next_observation, b.next_observation) and torch.equal(a.truncated, b.truncated)
    assert one.take() == two.take()


def test_a_state_of_other_things_is_none_and_one_that_is_not_taken_back_begins_anew(monkeypatch):
    monkeypatch.setattr(Stateful, "extra", object())
    envs = Environments(SyncVectorEnv([Stateful], autoreset_mode=MODES[0]), 0)
    assert envs.state() is None and envs.restore(None) is False
    monkeypatch.undo()
    saved = envs.state()
    saved["environments"][0]["own"] = ["value", 3]
    envs.step(torch.zeros(1, 1))
    assert envs.restore(saved) is False and envs.current.tolist() == [[0, 0]]
