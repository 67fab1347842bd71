"""One vector for what an environment shows, and the same one for what was recorded of it."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple, flatten, flatten_space
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.engines.environments import EnvironmentFailed, Environments
from anypolicy.errors import InputError
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import flat, load_environment
from anypolicy.tasks.control.observations import Layout

PIXELS = (20, 16)
SPACES = {
    "by name": Dict(b=Box(-9, 9, (2,), np.float32), a=Box(-9, 9, (3,), np.float64)),
    "choices": Discrete(5, start=-2),
    "tuple": Tuple((Discrete(4), Discrete(3, start=1), MultiBinary(3), MultiDiscrete([2, 3], start=[1, -1]))),
    "goal": Dict(
        observation=Box(-9, 9, (4,)), desired_goal=Box(-9, 9, (2,)), achieved_goal=Box(-9, 9, (2,)), turn=Discrete(2)
    ),
    "nested": Dict(z=Dict(y=Discrete(3), x=Box(-1, 1, (2, 2))), pair=Tuple((Box(0, 1, (1,)), Discrete(2)))),
    "whole numbers": Box(-300, 300, (4,), np.int64),
    "pictures": Dict(
        pose=Box(-1, 1, (3,)), last=Box(0, 255, (*PIXELS, 3), np.uint8), first=Box(0, 1, (3, *PIXELS), np.float32),
        other=Discrete(3),
    ),
    "channels first": Box(0, 255, (4, *PIXELS), np.uint8),
}  # fmt: skip


class Showing(gymnasium.Env):
    """Shows samples of a space; the third ends an episode."""

    def __init__(self, space, acts=None):
        self.observation_space, self.action_space, self.t = space, acts or Discrete(3, start=2), 0

    def show(self):
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.show(), {}

    def step(self, action):
        self.t += 1
        assert self.action_space.contains(action)
        return self.show(), float(self.t), False, self.t == 3, {}


@pytest.fixture
def showing():
    """gym/Showing-v0 of a space."""

    def register(space, acts=None):
        gymnasium.register("Showing-v0", entry_point=Showing, kwargs={"space": space, "acts": acts})
        return load_environment("gym/Showing-v0:max_steps=3")

    yield register
    gymnasium.registry.pop("Showing-v0", None)


def stacked(space, observations):
    """Every part stacked, as a data set keeps them."""
    return concatenate(space, observations, create_empty_array(space, len(observations)))


@pytest.mark.parametrize("name", SPACES)
def test_recorded_and_live_observations_are_the_same_numbers(name, showing, tmp_path, monkeypatch):
    """Minari sorts parts by name, and keeps each part apart."""
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    space = SPACES[name]
    task = showing(space)
    envs, raw = Environments(task.vector(1), 7), Showing(space)
    seen, live = [raw.reset(seed=7)[0]], [envs.current[0]]
    for action in (4, 2, 3):
        seen.append(raw.step(action)[0])
        live.append(envs.step(torch.tensor([[action - 2.0]])).next_observation[0])
    buffer = EpisodeBuffer(id=0, observations=stacked(space, seen), actions=np.array([4, 2, 3]), rewards=[1.0, 2.0, 3.0],
                           terminations=[False] * 3, truncations=[False, False, True])  # fmt: skip
    minari.create_dataset_from_buffers("shown/all-v0", [buffer], action_space=raw.action_space, observation_space=space,
                                       jpeg_encoding=False)  # fmt: skip
    [recorded] = load_demonstrations("shown/all-v0", task)
    assert torch.equal(recorded.observation, torch.stack(live)) and recorded.action.flatten().tolist() == [2, 0, 1]
    assert torch.equal(torch.from_numpy(Layout(space).many(stacked(space, seen))), recorded.observation)
    assert batch_space(space, 4).contains(stacked(space, seen))


def test_parts_that_are_one_hot_begin_where_the_space_begins():
    layout = Layout(SPACES["tuple"])
    got = layout.one((3, 1, np.array([1, 0, 1]), np.array([2, 1])))
    assert got.tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1]
    for wrong in (0, 4, 1.5):
        with pytest.raises(InputError, match=r"from \[1\] to \[3\]"):
            layout.one((3, wrong, np.array([1, 0, 1]), np.array([2, 1])))
    with pytest.raises(InputError, match="has the shape"):
        Layout(Box(0, 1, (2, 3))).one(np.zeros((3, 2)))


def test_pictures_of_every_kind_become_bytes_with_the_channels_last(showing):
    task = showing(SPACES["pictures"])
    assert task.space.images == ((*PIXELS, 3), (*PIXELS, 3)) and task.space.observations == 2 * 960 + 6
    seen = SPACES["pictures"].sample()
    first, last, rest = np.split(Layout(SPACES["pictures"]).one(seen), [960, 1920])
    np.testing.assert_array_equal(first.reshape(*PIXELS, 3), np.rint(seen["first"] * 255).transpose(1, 2, 0))
    np.testing.assert_array_equal(last.reshape(*PIXELS, 3), seen["last"])
    np.testing.assert_array_equal(rest[3:], seen["pose"])
    x = Environments(task.vector(1), 0).current
    z = torch.zeros(1)
    replay = Replay(2, task.space.observations, 1, task.space.pixels)
    replay.add(Transitions(x, z[None], z, x, z, z, z))
    assert torch.equal(replay.all().observation, x)


@pytest.mark.parametrize(
    ("space", "images"),
    [
        (Box(0, 255, (84, 84, 4), np.uint8), ((84, 84, 4),)), (Box(0, 255, (4, 84, 84), np.uint8), ((84, 84, 4),)),
        (Box(0, 255, (1, 32, 48), np.float32), ((32, 48, 1),)), (Box(0, 1, (32, 48, 3), np.float64), ((32, 48, 3),)),
        (Box(0, 255, (7, 7, 3), np.uint8), ((7, 7, 3),)), (Box(-1, 1, (32, 32, 3), np.float32), ()),
        (Box(0, 1, (8, 8, 3), np.float32), ()), (Box(0, 255, (32, 32, 20), np.uint8), ()),
        (Box(0, 7, (3, 32, 32), np.float32), ()), (Box(0, 255, (3, 32, 32), np.int64), ()),
    ],
)  # fmt: skip
def test_what_is_a_picture(space, images):
    assert Layout(space).images == images


def test_bytes_of_pictures_are_rounded_and_stay_bytes():
    got = Layout(Box(0, 255, (16, 16, 1), np.float32)).one(np.full((16, 16, 1), 3.6))
    assert (got == 4).all()
    assert (Layout(Box(0, 1, (16, 16, 1), np.float32)).one(np.full((16, 16, 1), 1.01)) == 255).all()


def dataset(tmp_path, monkeypatch, space, acts, observations, actions):
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    n = len(actions)
    buffer = EpisodeBuffer(id=0, observations=observations, actions=actions, rewards=[0.0] * n, terminations=[False] * n,
                           truncations=[False] * n)  # fmt: skip
    minari.create_dataset_from_buffers("shown/other-v0", [buffer], action_space=acts, observation_space=space)
    return "shown/other-v0"


@pytest.mark.parametrize(
    ("space", "acts", "match"),
    [
        (Dict(b=Box(-9, 9, (3,)), a=Box(-9, 9, (2,))), Discrete(3), "its observations are"),
        (Dict(c=Box(-9, 9, (2,)), a=Box(-9, 9, (3,))), Discrete(3), "its observations are"),
        (Box(-9, 9, (1, 5)), Discrete(3), "its observations are"),
        (SPACES["by name"], Discrete(4), "its actions are Discrete"), (SPACES["by name"], Box(-1, 1, (1,)), "3 choices"),
        (SPACES["by name"], MultiDiscrete([3]), "its actions are"),
    ],
)  # fmt: skip
def test_data_of_other_spaces_are_refused(space, acts, match, showing, tmp_path, monkeypatch):
    space.seed(0), acts.seed(0)
    seen = stacked(space, [space.sample() for _ in range(3)])
    name = dataset(tmp_path, monkeypatch, space, acts, seen, stacked(acts, [acts.sample() for _ in range(2)]))
    with pytest.raises(InputError, match=match):
        load_demonstrations(name, showing(SPACES["by name"]))


def test_vectors_are_taken_as_they_stand_and_another_box_of_actions_is_refused(showing, tmp_path, monkeypatch):
    space, acts = Box(-9, 9, (5,), np.float32), Box(-1, 1, (1,), np.float32)
    name = dataset(tmp_path, monkeypatch, space, acts, np.arange(15, dtype=np.float32).reshape(3, 5), np.ones((2, 1)))
    with pytest.raises(InputError, match=r"1 numbers from \(-2.0,\) to \(2.0,\)"):
        load_demonstrations(name, showing(SPACES["by name"], Box(-2, 2, (1,), np.float32)))
    gymnasium.registry.pop("Showing-v0")
    [e] = load_demonstrations(name, showing(SPACES["by name"], acts))
    assert e.observation.flatten().tolist() == list(range(15))


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_vectors_in_another_order_are_refused(kind, showing, tmp_path, monkeypatch):
    """Gymnasium's own flattening keeps the order of the space, and channels first."""
    space = (
        SPACES["channels first"]
        if kind is np.uint8
        else Dict(a=Box(-1, 1, (3,)), eye=Box(0, 255, (16, 20, 3), np.uint8))
    )
    theirs, acts = flatten_space(space), Box(-1, 1, (1,), np.float32)
    space.seed(0)
    seen = np.stack([flatten(space, space.sample()) for _ in range(3)])
    name = dataset(tmp_path, monkeypatch, theirs, acts, seen, np.ones((2, 1), np.float32))
    assert theirs.dtype == kind and Layout(space).box.shape == theirs.shape
    with pytest.raises(InputError, match="its observations are Box"):
        load_demonstrations(name, showing(space, acts))


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("observations", np.zeros((2, 5)), "observations are float32 of the shape"),
        ("observations", np.zeros((4, 5)), "observations are float32 of the shape"),
        ("actions", np.zeros((1, 2)), "actions are float64 of the shape"), ("actions", None, "'actions' doesn't exist"),
        ("rewards", np.zeros(3), "of the shape"), ("rewards", np.zeros((2, 1)), "rewards are float64 of the shape"),
        ("rewards", np.full(2, 1j), "rewards are complex128"), ("rewards", [b"a", b"b"], "rewards are object"),
        ("terminations", np.zeros(1, bool), "terminations are bool of the shape"),
        ("truncations", np.full(2, 0.5), "a flag is 0 or 1"), (None, None, "cannot be read"),
    ],
)  # fmt: skip
def test_damaged_episodes_of_minari_are_one_error(field, value, match, showing, tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    space, acts = Box(-9, 9, (5,), np.float32), Box(-1, 1, (1,), np.float32)
    name = dataset(tmp_path, monkeypatch, space, acts, np.zeros((3, 5), np.float32), np.zeros((2, 1)))
    task, file = showing(space, acts), tmp_path / name / "data" / "main_data.hdf5"
    assert len(load_demonstrations(name, task)) == 1
    if field is None:
        file.write_bytes(file.read_bytes()[:-500])
    else:
        with h5py.File(file, "r+") as data:
            del data["episode_0"][field]
            if value is not None:
                data["episode_0"][field] = value
    with pytest.raises(InputError, match=match):
        load_demonstrations(name, task)


def test_an_episode_of_no_step_is_refused(showing, tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    space, acts = Box(-9, 9, (5,), np.float32), Box(-1, 1, (1,), np.float32)
    name = dataset(tmp_path, monkeypatch, space, acts, np.zeros((3, 5), np.float32), np.zeros((2, 1)))
    with h5py.File(tmp_path / name / "data" / "main_data.hdf5", "r+") as data:
        for field in ("observations", "actions", "rewards", "terminations", "truncations"):
            kept = data["episode_0"][field][: field == "observations"]
            del data["episode_0"][field]
            data["episode_0"][field] = kept
    with pytest.raises(InputError, match="episode 0 has no step"):
        load_demonstrations(name, showing(space, acts))


def test_a_bound_of_the_actions_that_is_known_is_the_tasks(showing, tmp_path, monkeypatch):
    space, half = Box(-9, 9, (5,), np.float32), Box(np.float32([-np.inf, -1]), np.float32([np.inf, 1]))
    name = dataset(tmp_path, monkeypatch, space, half, np.zeros((3, 5), np.float32), np.ones((2, 2), np.float32))
    with pytest.raises(InputError, match="its actions are Box"):
        load_demonstrations(name, showing(space, Box(-2, 2, (2,), np.float32)))
    gymnasium.registry.pop("Showing-v0")
    [e] = load_demonstrations(name, showing(space, Box(-1, 1, (2,), np.float32)))
    assert e.action.flatten().tolist() == [1] * 4


def npz(path, **changed):
    given = {"observation": np.zeros((4, 5)), "next_observation": np.zeros((4, 5)), "action": np.zeros(4),
             "reward": np.zeros(4), "terminated": np.zeros(4), "truncated": np.array([0, 1, 0, 1])}  # fmt: skip
    np.savez(path, **(given | changed))
    return str(path)


def test_plain_arrays_may_be_as_the_environment_shows_them(showing, tmp_path):
    space, path = SPACES["channels first"], tmp_path / "data.npz"
    space.seed(3)
    x = stacked(space, [space.sample() for _ in range(4)])
    episodes = load_demonstrations(npz(path, observation=x, next_observation=x), showing(space))
    want = torch.from_numpy(x.transpose(0, 2, 3, 1).reshape(4, -1).astype(np.float32))
    assert torch.equal(torch.cat([e.observation[:-1] for e in episodes]), want)
    for wrong in (x.reshape(4, 16, 20, 4), x.reshape(4, 4, 16, 20), x.reshape(2, 8, 20, 16)):
        with pytest.raises(InputError, match="its shape must be"):
            load_demonstrations(npz(path, observation=wrong), load_environment("gym/Showing-v0"))
    gymnasium.registry.pop("Showing-v0")
    states = np.array([-2, 0, 1, 2])
    episodes = load_demonstrations(npz(path, observation=states, next_observation=states), showing(SPACES["choices"]))
    assert [e.observation[0].argmax().item() for e in episodes] == [0, 2, 3, 4]


@pytest.mark.parametrize("value", [0.5, 2, 255, -1])
@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_flags_of_data_are_0_or_1(name, value, showing, tmp_path):
    task = showing(SPACES["by name"])
    flags = np.array([0, 1, 0, value])
    with pytest.raises(InputError, match=rf"data\[{name}\]: got 'row 3: {value}'; a flag is 0 or 1"):
        load_demonstrations(npz(tmp_path / "data.npz", **{name: flags}), task)
    one = np.array([0, 255, 0, 1], np.uint8)
    with pytest.raises(InputError, match="row 1: 255"):
        load_demonstrations(npz(tmp_path / "data.npz", **{name: one}), task)
    z = torch.zeros(1)
    row = {"observation": z[None], "action": z[None], "reward": z, "next_observation": z[None], "terminated": z,
           "truncated": z, "discount": z}  # fmt: skip
    with pytest.raises(InputError, match="a flag is 0 or 1"):
        Replay(1, 1, 1).add(Transitions(**(row | {name: torch.tensor([float(value)])})))


@pytest.mark.parametrize("space", [Box(-1, 1, (0,)), Dict(), Tuple(()), Dict(a=Box(-1, 1, (2, 0)))], ids=str)
def test_observations_without_a_number_are_refused(space):
    with pytest.raises(InputError, match="observations must hold a number at least"):
        Layout(space)


WIDE = (-np.inf, np.inf)
HOLDING = {
    "vector": Box(*WIDE, (2,), np.float64), "matrix": Box(*WIDE, (2, 2), np.float64),
    "parts": Dict(a=Box(*WIDE, (2,), np.float64), b=Discrete(3)), "picture": Box(0, 1, (16, 16, 3), np.float32),
    "bytes": Box(0, 255, (16, 16, 3), np.uint8), "whole": Box(-9, 9, (2,), np.int64), "bits": MultiBinary(3),
    "choice": Discrete(3), "choices": MultiDiscrete([2, 3]),
}  # fmt: skip


def filled(space, value):
    if isinstance(space, Dict):
        return {k: filled(s, value) for k, s in space.spaces.items()}
    return value if isinstance(space, Discrete) else np.full(space.shape, value)


class Holding(gymnasium.Env):
    """Shows an observation full of one value."""

    action_space = Discrete(2)

    def __init__(self, kind, value):
        self.observation_space, self.value = HOLDING[kind], value

    def reset(self, *, seed=None, options=None):
        return filled(self.observation_space, 0), {}

    def step(self, action):
        return filled(self.observation_space, self.value), 0.0, False, False, {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e300, -1e300, 10**400, np.inf, np.nan, 1j, "1"], ids=str)
@pytest.mark.parametrize("kind", HOLDING)
def test_what_float32_cannot_hold_is_refused_without_a_warning(kind, value):
    vector = SyncVectorEnv([lambda: flat(Holding(kind, value))], autoreset_mode=AutoresetMode.SAME_STEP)
    environments = Environments(vector, 0)
    with pytest.raises(EnvironmentFailed, match="observation") as error:
        environments.step(torch.zeros(1, 1))
    assert "Warning" not in str(error.value)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_data_that_float32_cannot_hold_are_refused_without_a_warning(showing, tmp_path, monkeypatch):
    space, acts = Box(*WIDE, (5,), np.float64), Box(-1, 1, (1,), np.float32)
    name = dataset(tmp_path, monkeypatch, space, acts, np.full((3, 5), 1e300), np.ones((2, 1)))
    with pytest.raises(InputError, match="not finite"):
        load_demonstrations(name, showing(space, acts))
