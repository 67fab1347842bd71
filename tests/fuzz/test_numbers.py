"""Files of numbers: .npy, .npz, .safetensors, .csv, .json, as people hand them to us."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anypolicy.data.arrays import load_arrays
from anypolicy.data.demonstrations import Episode, save_episodes
from anypolicy.families.exact import solve
from anypolicy.studies.inspection import inspect
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import load_environment
from anypolicy.tasks.exact.linear_plants import load_plant
from anypolicy.tasks.exact.off_policy import from_file as log_of
from anypolicy.tasks.exact.one_sided import load as stream_of
from anypolicy.tasks.exact.reward_free import from_file as kernels_of
from tests.fuzz.harness import (
    allowed,
    broken,
    broken_safetensors,
    cases,
    edited,
    found,
    npy,
    npy_of,
    npys,
    npz,
    npzs,
    safetensors_of,
)

rng = np.random.default_rng(0)
KERNELS = rng.dirichlet(np.ones(3), (2, 3, 2))
TRANSITIONS = {
    "observation": rng.normal(size=(6, 3)), "next_observation": rng.normal(size=(6, 3)), "action": rng.uniform(-1, 1, (6, 1)),
    "reward": rng.normal(size=6), "terminated": np.array([0, 0, 1, 0, 0, 0]), "truncated": np.zeros(6),
}  # fmt: skip
LOG = {
    "phi": rng.normal(size=(9, 2)),
    "phi_next": rng.normal(size=(9, 2)),
    "rewards": rng.normal(size=9),
    "cond": np.arange(9) % 3,
}
MIXTURE = {
    "kernels": KERNELS,
    "weights": np.array([0.5, 0.5]),
    "rewards": rng.uniform(size=(1, 2, 3, 2)),
    "start": np.array(0),
}


@pytest.fixture(scope="module")
def pendulum():
    return load_environment("gym/Pendulum-v1")


@pytest.fixture(scope="module")
def cartpole():
    return load_environment("gym/CartPole-v1")


def episodes(observations: int, discrete: bool) -> list[Episode]:
    g = torch.Generator().manual_seed(0)
    action = torch.randint(2, (4, 1), generator=g).float() if discrete else torch.rand(4, 1, generator=g)
    ends = torch.tensor([0.0, 0, 0, 1])
    return [
        Episode(torch.randn(5, observations, generator=g), action, torch.ones(4), ends, torch.zeros(4))
        for _ in range(2)
    ]


@functools.cache
def recorded() -> bytes:
    with tempfile.TemporaryDirectory() as work:
        save_episodes(Path(work) / "good.safetensors", episodes(4, True))
        return (Path(work) / "good.safetensors").read_bytes()


logs = st.deferred(lambda: broken_safetensors(recorded()))


@given(npzs({"a": np.ones((2, 2)), "b": np.arange(3)}))
@found(npz({"a": b"x"}), npz({"a.npy": npy(b"{'descr': '<f4', (", b"")}), npz({"a.npy": npy(b"{'descr': '<f4", b"")}))
@cases(150)
def test_arrays_by_name(place, data):
    (place / "a.npz").write_bytes(data)
    allowed(load_arrays, str(place / "a.npz"), ("a",), ("b",))


@given(npys)
@found(
    *(
        npy({"descr": "<f4", "fortran_order": False, "shape": shape}, b"1234")
        for shape in ((10**23,), (2**40,), (True,), (-1,), (1.5,))
    )
)
@cases(100)
def test_what_an_array_claims(place, data):
    (place / "a.npz").write_bytes(npz({"a.npy": data}))
    allowed(load_arrays, str(place / "a.npz"), ("a",), ("b",))


@given(st.binary(max_size=40) | broken(npz({"a.npy": npy_of([1.0])})))
@found(b"", npz({}), npz({"a.npy": b""}), npz({"a.npy": npy_of([1.0])})[:-30])
@cases(100)
def test_archives(place, data):
    (place / "a.npz").write_bytes(data)
    allowed(load_arrays, str(place / "a.npz"), ("a",), ("b",))


@given(npzs(TRANSITIONS))
@cases(100)
def test_demonstrations_as_arrays(place, pendulum, data):
    (place / "d.npz").write_bytes(data)
    allowed(load_demonstrations, str(place / "d.npz"), pendulum)


@given(logs)
@found(b"", safetensors_of({"__metadata__": {"a": 1}}, b""), safetensors_of(b'{"__metadata__":{"a":"\xff"}}', b""))
@found(
    safetensors_of({"length": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
    safetensors_of({"a": {"dtype": "F32", "shape": [10**23], "data_offsets": [0, 4]}}, bytes(4)),
    safetensors_of(
        {
            name: {"dtype": "U64", "shape": [1], "data_offsets": [8 * i, 8 * i + 8]}
            for i, name in enumerate(("length", "observation", "action", "reward", "terminated", "truncated"))
        },
        bytes(48),
    ),
)
@cases(250)
def test_recorded_episodes(place, cartpole, data):
    (place / "e.safetensors").write_bytes(data)
    allowed(load_demonstrations, str(place / "e.safetensors"), cartpole)


@given(st.lists(st.integers(-3, 9) | st.sampled_from((2**40, 2**62)), max_size=4))
@found(lengths=[6, -2])
@found(lengths=[])
@cases(60)
def test_lengths_of_episodes(place, cartpole, lengths):
    from safetensors.torch import save_file

    parts = {
        n: torch.cat([getattr(e, n) for e in episodes(4, True)])
        for n in ("observation", "action", "reward", "terminated", "truncated")
    }
    save_file(parts | {"length": torch.tensor(lengths, dtype=torch.int64)}, place / "l.safetensors")
    allowed(load_demonstrations, str(place / "l.safetensors"), cartpole)


@given(
    st.sampled_from(
        ("", "scripted", "scripted:", "minari:", "x/y-v0", ".", "..", "/", "\0", "a" * 5000, "scripted:episodes=1e9")
    )
    | st.text(max_size=20)
)
@found(spec="a" * 5000)
@cases(60)
def test_names_of_demonstrations(pendulum, spec):
    allowed(load_demonstrations, spec, pendulum)


@given(npzs(LOG))
@cases(100)
def test_logs_of_a_policy(place, data):
    (place / "log.npz").write_bytes(data)
    allowed(log_of, str(place / "log.npz"), 0.9)


@given(npzs(LOG))
@cases(20)
def test_realizability_of_a_log(place, data):
    (place / "log.npz").write_bytes(data)
    allowed(solve, "realizability", data=str(place / "log.npz"))


@given(npzs(MIXTURE))
@found(npz({"kernels.npy": npy_of(np.ones((1, 2, 2, 2), int)), "weights.npy": npy_of([1])}))
@found(
    *(
        npz({"kernels.npy": npy_of(np.ones(shape)), "weights.npy": npy_of([1])})
        for shape in ((0, 4, 1, 3), (1, 2, 2, 3), (1, 0, 1, 0))
    )
)
@cases(100)
def test_candidate_kernels(place, data):
    (place / "k.npz").write_bytes(data)
    allowed(kernels_of, str(place / "k.npz"), need_weights=True)


CSV = "age,kind,label\n" + "".join(f"{i},{'ab'[i % 2]},{i % 3 % 2}\n" for i in range(40))


@given(broken(CSV.encode()) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")))
@cases(40)
def test_tables_of_cases(place, data):
    (place / "t.csv").write_bytes(data)
    allowed(stream_of, str(place / "t.csv"), 5, 2)


PLANT = {"A": [[1.0, 0.1], [0.0, 1.0]], "B": [[0.0], [0.1]], "Q": [[1.0, 0.0], [0.0, 0.1]], "R": [[0.1]], "box": [1.5, 1.5],
         "start": [0.5, 0.0]}  # fmt: skip


@given(edited(PLANT).map(lambda v: json.dumps(v).encode()) | broken(json.dumps(PLANT).encode()))
@found(json.dumps(PLANT | {"box": [10**400, 1]}).encode())
@cases(150)
def test_plants(place, data):
    (place / "p.json").write_bytes(data)
    allowed(load_plant, str(place / "p.json"))


FACTS = {"task": "gym/CartPole-v1", "g_min": 1.0, "g_max": 4.0}


@given(edited(FACTS).map(lambda v: json.dumps(v).encode()) | broken(json.dumps(FACTS).encode()))
@found(
    b"",
    b"\xff",
    b"null",
    b"{",
    b'{"task": 1.5, "g_min": 1.0, "g_max": 4.0}',
    b'{"task": "gym/CartPole-v1", "g_min": "a", "g_max": 4.0}',
    b'{"task": "gym/CartPole-v1", "g_min": 0, "g_max": ' + b"9" * 400 + b"}",
)
@cases(40)
def test_folders_of_data_sets(place, data):
    folder = place / "sets"
    folder.mkdir(exist_ok=True)
    for name in ("random", "mixed", "replay", "noisy", "expert"):
        (folder / f"{name}.safetensors").write_bytes(recorded())
    (folder / "datasets.json").write_bytes(data)
    allowed(inspect, [str(folder)], bins=5, figure=place / "plane.png", quiet=True)


@given(logs, st.none() | st.integers(-1, 4), st.floats())
@cases(20)
def test_data_sets_to_inspect(place, data, bins, gamma):
    (place / "one.safetensors").write_bytes(data)
    (place / "good.safetensors").write_bytes(recorded())
    allowed(inspect, [str(place / "one.safetensors")], task="gym/CartPole-v1", reference=str(place / "good.safetensors"), g_max=4.0, g_min=1.0,
            figure=place / "plane.png", quiet=True, bins=bins, gamma=gamma)  # fmt: skip
