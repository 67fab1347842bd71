"""Transitions, replay, n-step joining, symmetric sampling, demonstrations."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anypolicy.data.demonstrations import Episode, load_episodes, save_episodes
from anypolicy.data.replay import NStep, Replay, mixed
from anypolicy.data.transitions import Transitions, concatenate
from anypolicy.errors import InputError


def numbered(start: int, n: int, **flags) -> Transitions:
    """Transitions whose observations count up."""
    t = torch.arange(start, start + n).float()
    zeros = torch.zeros(n)
    return Transitions(t[:, None].clone(), t[:, None] / 100, t, t[:, None] + 1, flags.get("terminated", zeros),
                       flags.get("truncated", zeros), torch.full((n,), 0.9))  # fmt: skip


def test_a_transition_needs_its_end_flags_and_next_observation():
    for name in ("terminated", "truncated", "next_observation"):
        fields = {f.name: torch.zeros(1, 1) for f in dataclasses.fields(Transitions)}
        del fields[name]
        with pytest.raises(TypeError, match=name):
            Transitions(**fields)


def test_only_termination_ends_the_return():
    t = dataclasses.replace(numbered(0, 2), terminated=torch.tensor([1.0, 0.0]), truncated=torch.tensor([0.0, 1.0]))
    assert t.continues.tolist() == pytest.approx([0.0, 0.9])


def test_the_oldest_leave_and_every_field_comes_back():
    replay = Replay(5, 1, 1)
    replay.add(numbered(0, 4))
    replay.add(numbered(4, 3))
    assert replay.all().observation.squeeze(1).tolist() == [2, 3, 4, 5, 6]
    drawn = replay.sample(1000, torch.Generator().manual_seed(0))
    assert set(drawn.observation.squeeze(1).tolist()) == {2, 3, 4, 5, 6}
    torch.testing.assert_close(drawn.next_observation, drawn.observation + 1)
    torch.testing.assert_close(drawn.action, drawn.observation / 100)
    torch.testing.assert_close(drawn.reward, drawn.observation.squeeze(1))


def test_save_and_restore_give_the_same_batches():
    one, two = Replay(6, 1, 1), Replay(6, 1, 1)
    one.add(numbered(0, 8))
    two.restore({k: v.clone() for k, v in one.tensors().items()})
    for replay in (one, two):
        replay.add(numbered(20, 1))
    a, b = (r.sample(32, torch.Generator().manual_seed(1)) for r in (one, two))
    assert torch.equal(a.observation, b.observation)
    with pytest.raises(InputError, match="replay"):
        Replay(3, 1, 1).restore(one.tensors())


@pytest.mark.parametrize("field", ["observation", "action", "reward", "next_observation"])
def test_what_is_not_finite_is_refused_and_nothing_is_lost(field):
    replay, bad = Replay(10, 1, 1), numbered(0, 2)
    replay.add(numbered(5, 3))
    getattr(bad, field)[1] = float("nan")
    with pytest.raises(InputError, match=field.replace("_", " ")):
        replay.add(bad)
    assert len(replay) == 3


def test_an_empty_replay_gives_nothing():
    with pytest.raises(InputError, match="empty"):
        Replay(3, 1, 1).sample(2, torch.Generator())


def test_symmetric_sampling_is_balanced_in_every_batch():
    online, offline, rng = Replay(50, 1, 1), Replay(50, 1, 1), torch.Generator().manual_seed(0)
    offline.add(numbered(1000, 20))
    assert all((b.reward >= 1000).all() for b in mixed(online, offline, 2, 9, 0.5, rng))
    online.add(numbered(0, 20))
    batches = mixed(online, offline, 3, 9, 0.5, rng)
    assert [int((b.reward >= 1000).sum()) for b in batches] == [4, 4, 4]
    assert len({float(b.reward[-1]) for b in batches}) > 1
    assert all((b.reward < 1000).all() for b in mixed(online, None, 2, 9, 0.5, rng))
    assert all((b.reward < 1000).all() for b in mixed(online, offline, 2, 9, 0.0, rng))


def test_n_steps_are_joined_inside_episodes_only():
    windows = NStep(3, 0.9, 2)
    ends = {3: "terminated", 5: "truncated"}
    made = []
    for t in range(8):
        flag = {ends[t]: torch.tensor([1.0, 0.0])} if t in ends else {}
        both = concatenate([numbered(t, 1), numbered(100 + t, 1)])
        both = dataclasses.replace(both, **flag)
        out = windows.add(both, torch.tensor([0, 1]))
        if out is not None:
            made += [out.select(torch.tensor([i])) for i in range(len(out))]
    first = [(float(m.observation), float(m.reward), float(m.next_observation), float(m.discount)) for m in made
             if m.observation < 100]  # fmt: skip
    want = [
        (0, 0 + 0.9 + 0.81 * 2, 3, 0.729), (1, 1 + 1.8 + 0.81 * 3, 4, 0.729), (2, 2 + 2.7, 4, 0.81), (3, 3, 4, 0.9),
        (4, 4 + 4.5, 6, 0.81), (5, 5, 6, 0.9),
    ]  # fmt: skip
    np.testing.assert_allclose(first, want, rtol=1e-6)
    assert [float(m.observation) for m in made if m.observation >= 100] == [100, 101, 102, 103, 104, 105]
    again = NStep(3, 0.9, 2)
    again.restore(windows.state(), 1, 1)
    assert again.state() == windows.state()
    assert NStep(1, 0.9, 1).add(numbered(0, 1), torch.tensor([0])) is not None


@pytest.mark.parametrize("n", [1, 2, 4])
def test_any_number_of_steps_is_joined(n):
    """Six steps of which the last ends the episode: every start sums the next n rewards, or those that are left."""
    windows, made = NStep(n, 0.5, 1), []
    for t in range(6):
        end = {"terminated": torch.ones(1), "discount": torch.full((1,), 0.5)} if t == 5 else {}
        out = windows.add(dataclasses.replace(numbered(t, 1), **end), torch.tensor([0]))
        assert (out is None) == (t < n - 1)
        made += [] if out is None else [out.select(torch.tensor([i])) for i in range(len(out))]
    for start, m in enumerate(made):
        last = min(start + n, 6) - 1
        assert float(m.observation) == start and float(m.next_observation) == last + 1
        assert float(m.reward) == sum(0.5**i * (start + i) for i in range(last - start + 1))
        assert float(m.terminated) == (last == 5)
        if n > 1:
            assert float(m.discount) == 0.5 ** (last - start + 1)
    assert len(made) == 6 and windows.waiting == [[]]


def test_episodes_are_kept_in_a_file(tmp_path):
    rng = torch.Generator().manual_seed(0)
    made = [
        Episode(torch.randn(n + 1, 3, generator=rng), torch.rand(n, 2, generator=rng), torch.rand(n, generator=rng),
                torch.zeros(n), torch.zeros(n))
        for n in (4, 1, 7)
    ]  # fmt: skip
    save_episodes(tmp_path / "demos.safetensors", made)
    for a, b in zip(made, load_episodes(tmp_path / "demos.safetensors"), strict=True):
        for f in dataclasses.fields(Episode):
            assert torch.equal(getattr(a, f.name), getattr(b, f.name))
    t = made[0].transitions(0.9)
    assert t.truncated.tolist() == [0, 0, 0, 1]
    assert torch.equal(t.next_observation[:-1], t.observation[1:])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"length": torch.tensor([2, 9])}, r"observation has the shape \(5, 3\), its lengths need \(13, n\)"),
        ({"action": torch.zeros(4)}, r"action has the shape \(4,\), its lengths need \(4, n\)"),
        ({"reward": torch.zeros(3)}, r"reward has the shape \(3,\), its lengths need \(4,\)"),
        ({"truncated": None}, "it lacks truncated"),
    ],
)
def test_files_that_hold_no_episodes(change, match, tmp_path):
    zeros = {name: torch.zeros(4) for name in ("reward", "terminated", "truncated")}
    good = {"length": torch.tensor([4]), "observation": torch.zeros(5, 3), "action": torch.zeros(4, 1), **zeros}
    path = tmp_path / "demos.safetensors"
    save_file(good, path)
    assert len(load_episodes(path)) == 1
    save_file({k: v for k, v in (good | change).items() if v is not None}, path)
    with pytest.raises(InputError, match=match):
        load_episodes(path)
    for content in (b"", b"hello"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"no whole .safetensors file"):
            load_episodes(path)


def pictured(n: int, pixels: int = 5, numbers: int = 2, seed: int = 0) -> Transitions:
    """Transitions whose observations begin with bytes."""
    rng = torch.Generator().manual_seed(seed)
    seen = [
        torch.cat([torch.randint(256, (n, pixels), generator=rng).float(), torch.randn(n, numbers, generator=rng)], 1)
        for _ in range(2)
    ]
    zeros = torch.zeros(n)
    return Transitions(seen[0], torch.rand(n, 3, generator=rng), torch.randn(n, generator=rng), seen[1], zeros, zeros,
                       torch.full((n,), 0.96))  # fmt: skip


def test_pictures_take_a_byte_a_number_and_come_back_exactly():
    replay, made = Replay(7, 7, 3, pixels=5), pictured(6)
    assert replay.matrix.dtype is torch.uint8
    assert replay.matrix.shape[1] == 4 * (2 * 2 + 3 + 4) + 12
    replay.add(made)
    for f in dataclasses.fields(Transitions):
        assert torch.equal(getattr(replay.all(), f.name), getattr(made, f.name)), f.name
    plain = Replay(7, 7, 3)
    plain.add(made)
    drawn, same = (r.sample(20, torch.Generator().manual_seed(2)) for r in (replay, plain))
    for f in dataclasses.fields(Transitions):
        assert torch.equal(getattr(drawn, f.name), getattr(same, f.name))
    again = Replay(7, 7, 3, pixels=5)
    again.restore(replay.tensors())
    assert torch.equal(again.all().observation, made.observation)
    offline = Replay(4, 7, 3, pixels=5)
    offline.add(pictured(4, seed=1))
    batch = mixed(replay, offline, 2, 8, 0.5, torch.Generator().manual_seed(0))[0]
    theirs = {tuple(x) for x in offline.all().observation.tolist()}
    assert [tuple(x) in theirs for x in batch.observation.tolist()] == [True] * 4 + [False] * 4


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0])
def test_a_pixel_that_is_no_byte_is_refused(value):
    replay, bad = Replay(7, 7, 3, pixels=5), pictured(2)
    bad.next_observation[1, 4] = value
    with pytest.raises(InputError, match="whole numbers"):
        replay.add(bad)
    assert len(replay) == 0
