"""Actor and learner: messages, confirmation, versions, other settings, a real second process."""

import json
import socket
import struct
import threading
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch

from anypolicy.cli.app import main
from anypolicy.data.transitions import Transitions
from anypolicy.engines import link, wire
from anypolicy.engines.link import ActorEnd, LearnerEnd, config_hash
from anypolicy.engines.wire import NONCE, introduce, make_secret, proof, receive, send
from anypolicy.errors import InputError
from anypolicy.families.actor_and_learner import Pace, act, learn, train_apart
from anypolicy.families.control import ControlSettings, World, plan
from anypolicy.learners.base import weights_of
from anypolicy.runs.directory import RunDirectory

CONFIG = {"method": "x", "knobs": {"lr": 0.1}}


def rows(start: int, n: int) -> Transitions:
    t = torch.arange(start, start + n).float()
    zeros = torch.zeros(n)
    return Transitions(t[:, None], t[:, None], t, t[:, None] + 1, zeros, zeros, zeros + 0.9)


@pytest.fixture
def learner():
    end = LearnerEnd(CONFIG, (1, 1))
    yield end
    end.close()


def gathered(learner: LearnerEnd, n: int) -> list[float]:
    got: list[float] = []
    while len(got) < n:
        learner.wait(30)
        more = [x for t in learner.received() for x in t.reward.tolist()]
        assert more
        got += more
    return got


def test_a_message_comes_back_as_it_was():
    a, b = socket.socketpair()
    body = {"w": torch.randn(3, 4), "i": torch.arange(5), "bytes": torch.arange(7, dtype=torch.uint8)}
    threading.Thread(target=send, args=(a, {"version": 3}, body)).start()
    header, got = receive(b)
    assert header == {"version": 3} and all(torch.equal(got[k], v) for k, v in body.items())
    send(a, {"nothing": None})
    assert receive(b) == ({"nothing": None}, {})
    a.sendall(b"\xff" * 16)
    with pytest.raises(ConnectionError, match="size"):
        receive(b)
    a.close()
    with pytest.raises(ConnectionError, match="closed"):
        receive(b)


def test_everything_arrives_once_and_in_order(learner):
    actor = ActorEnd(learner.address, CONFIG, learner.secret)
    for i in range(0, 60, 7):
        actor.insert(rows(i, 7))
        actor.update()
    assert gathered(learner, 63) == list(range(63))
    again = ActorEnd(learner.address, CONFIG, learner.secret)
    assert again.next == 63
    actor.close()


def test_what_is_sent_twice_is_stored_once(learner):
    for first, n in ((0, 3), (1, 4), (0, 3), (9, 1)):
        fields = {k: getattr(rows(first, n), k) for k in Transitions.__dataclass_fields__}
        learner.store("a", {"first": first, "rows": n, "version": 0}, fields)
    assert [x for t in learner.received() for x in t.reward.tolist()] == [0, 1, 2, 3, 4, 9]


def test_the_actor_goes_on_without_a_learner_and_sends_later(tmp_path):
    first = LearnerEnd(CONFIG, (1, 1), secret=tmp_path / "secret")
    port = first.address[1]
    actor = ActorEnd(first.address, CONFIG, first.secret, capacity=50)
    first.close()
    for i in range(60):
        actor.insert(rows(i, 1))
        actor.update()
    assert (actor.unsent(), actor.dropped) == (50, 10)
    learner, got = LearnerEnd(CONFIG, (1, 1), port, tmp_path / "secret"), []
    while len(got) < 50:
        actor.update()
        learner.wait(0.2)
        got += [x for t in learner.received() for x in t.reward.tolist()]
    assert got == list(range(10, 60))
    learner.close()
    actor.close()


def test_other_settings_are_an_error(learner):
    with pytest.raises(InputError, match="other settings"):
        ActorEnd(learner.address, CONFIG | {"method": "y"}, learner.secret)
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 1, "b": 3})


def test_the_newest_weights_come_and_versions_only_grow(learner):
    actor = ActorEnd(learner.address, CONFIG, learner.secret)
    assert actor.weights() is None
    seen = []
    for version in (0, 30, 60):
        learner.publish(version, {"w": torch.full((2,), float(version))})
        while actor.version < version:
            assert actor.wait_for_weights(30)
            got = actor.weights()
            assert torch.equal(got["w"], torch.full((2,), float(actor.version)))
            seen.append(actor.version)
    assert seen == sorted(set(seen)) and seen[-1] == 60
    with pytest.raises(InputError, match="version"):
        learner.publish(60, {})
    late = ActorEnd(learner.address, CONFIG, learner.secret, name="late")
    assert late.wait_for_weights(30) and late.weights() is not None and late.version == 60
    for end in (actor, late):
        end.close()


def test_publishing_does_not_wait_for_an_actor_that_does_not_listen(learner):
    deaf = socket.create_connection(learner.address)
    introduce(deaf, learner.secret, {"config": config_hash(CONFIG), "actor": "deaf", "wants": "weights"})
    for version in range(20):
        learner.publish(version, {"w": torch.zeros(1_000_000)})
    assert learner.version == 19
    deaf.close()


# --- who comes in, and what -------------------------------------------------------------------------------------------
def closed(connection):
    """Whether the learner closes it, whatever it has sent before."""
    connection.settimeout(30)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("sizes", [(1 << 30, 1 << 30), (16, 1), (4097, 0)])
def test_little_is_accepted_before_the_greeting(learner, sizes):
    stranger = socket.create_connection(learner.address)
    stranger.sendall(struct.pack("<QQ", *sizes) + b" " * 64)
    assert closed(stranger)


@pytest.mark.parametrize("said", [b"[1]", b"{", b"\xff", b'{"nonce": "\\ud800", "proof": "\\ud800"}', b'{"proof": 3}'])
def test_nonsense_is_no_greeting(learner, said):
    stranger = socket.create_connection(learner.address)
    stranger.sendall(struct.pack("<QQ", len(said), 0) + said)
    assert closed(stranger)
    ActorEnd(learner.address, CONFIG, learner.secret).close()


def test_idle_connections_are_few_and_end(monkeypatch):
    monkeypatch.setattr(link, "CONNECTIONS", 4)
    monkeypatch.setattr(wire, "GREETING", 0.3)
    served, welcome = [], link.welcome
    monkeypatch.setattr(link, "welcome", lambda *given: served.append(1) or welcome(*given))
    learner = LearnerEnd(CONFIG, (1, 1))
    try:
        idle = [socket.create_connection(learner.address) for _ in range(40)]
        assert learner.room._initial_value == 4
        assert all(closed(c) for c in idle)
        assert 4 <= len(served) < 40
        ActorEnd(learner.address, CONFIG, learner.secret).close()
    finally:
        learner.close()


def test_the_secret_is_its_owners_alone_and_gone_at_the_end(tmp_path):
    learner = LearnerEnd(CONFIG, (1, 1))
    assert learner.secret.stat().st_mode & 0o777 == 0o600
    folder = learner.secret.parent
    learner.close()
    assert not folder.exists()
    mine = tmp_path / "secret"
    make_secret(mine)
    before = mine.read_text()
    kept = LearnerEnd(CONFIG, (1, 1), secret=mine)
    kept.close()
    assert mine.read_text() == before and len(before) == 64
    mine.chmod(0o640)
    with pytest.raises(InputError, match=r"secret.*you alone"):
        LearnerEnd(CONFIG, (1, 1), secret=mine)
    mine.chmod(0o600)
    mine.write_text("short")
    with pytest.raises(InputError, match="too short"):
        LearnerEnd(CONFIG, (1, 1), secret=mine)


def test_without_the_secret_nobody_comes_in(learner, tmp_path):
    make_secret(tmp_path / "other")
    with pytest.raises(InputError, match="the learner at this address has another"):
        ActorEnd(learner.address, CONFIG, tmp_path / "other")
    assert not learner.last
    with pytest.raises(InputError, match="it cannot be read"):
        ActorEnd(learner.address, CONFIG, tmp_path / "none")


def test_an_actor_knows_a_false_learner(tmp_path):
    make_secret(tmp_path / "secret")
    false, actor = socket.socketpair()

    def play():
        nonce = b"n" * NONCE
        false.sendall(nonce)
        hello, _ = receive(false)
        send(false, {"last": 5, "proof": proof(b"guessed" * 9, "learner", nonce.hex(), hello["nonce"])})

    threading.Thread(target=play, daemon=True).start()
    with pytest.raises(InputError, match="has another"):
        introduce(actor, tmp_path / "secret", {"actor": "a"})


def tensors(n=2, **changes):
    return {k: getattr(rows(0, n), k) for k in Transitions.__dataclass_fields__} | changes


HEADER = {"first": 0, "rows": 2, "version": 0}
NAN = torch.tensor([0.0, float("nan")])


@pytest.mark.parametrize(
    ("header", "change", "match"),
    [
        ({}, {"observation": torch.zeros(2, 3)}, "observation"), ({}, {"action": torch.zeros(2)}, "action"),
        ({}, {"reward": NAN}, "reward.*NaN"), ({}, {"next_observation": NAN[:, None]}, "next_observation.*NaN"),
        ({}, {"reward": torch.zeros(2, dtype=torch.float64)}, "float32"), ({}, {"extra": torch.zeros(2)}, "have"),
        ({}, {"terminated": torch.full((2,), 0.5)}, "0 or 1"), ({"rows": 1000}, {}, "at most 500"),
        ({"rows": 3}, {}, "takes"), ({"first": -1}, {}, "first"), ({"version": "x"}, {}, "version"),
        ({"rows": True}, {}, "rows"),
    ],
)  # fmt: skip
def test_only_transitions_of_this_space_are_kept(learner, header, change, match):
    with pytest.raises(InputError, match=match):
        learner.store("a", HEADER | header, tensors(**change))
    assert not learner.received() and learner.last == {}


def test_an_actor_whose_rows_are_refused_ends(learner):
    actor = ActorEnd(learner.address, CONFIG, learner.secret)
    bad = replace(rows(0, 3), reward=torch.tensor([0.0, float("nan"), 1.0]))
    actor.insert(bad)
    actor.update()
    with pytest.raises(InputError, match=r"transitions.*refused: reward.*finite"):
        actor.wait_for_weights(30)
    with pytest.raises(InputError, match="refused"):
        actor.insert(rows(3, 1))
    assert not learner.received() and actor.unsent() == 3
    actor.close()


def test_rows_are_confirmed_when_they_are_kept(learner, monkeypatch):
    monkeypatch.setattr(link, "WAITING", 4)
    assert learner.store("a", HEADER | {"rows": 3}, tensors(3)) == 2
    assert learner.store("a", HEADER | {"first": 3}, tensors(2)) == 2
    assert learner.received()[0].reward.tolist() == [0, 1, 2]
    assert learner.store("a", HEADER | {"first": 3}, tensors(2)) == 4


def test_what_does_not_fit_is_sent_again(learner, monkeypatch):
    monkeypatch.setattr(link, "WAITING", 5)
    monkeypatch.setattr(link, "ROWS", 3)
    actor, got = ActorEnd(learner.address, CONFIG, learner.secret), []
    actor.insert(rows(0, 12))
    while len(got) < 12:
        actor.update()
        learner.wait(0.05)
        got += [x for t in learner.received() for x in t.reward.tolist()]
    assert got == list(range(12))
    actor.close()


def learner_end(p, world):
    return LearnerEnd(p.written(), (world.loop.replay.observations, world.loop.replay.actions))


KNOBS = {"hidden": (16, 16), "ensemble": 2, "batch": 8, "warmup": 40, "critic_actor_ratio": 1}


def test_two_processes_learn():
    """The real thing: what the learner offers is never older than its interval, and the actor acts with what it got."""
    run = train_apart("serl", task="wall", iterations=300, knobs=KNOBS, pace=Pace(10, 10), eval_episodes=1, seed=1)
    assert run.steps >= 40 and run.iterations == 300
    assert run.log["stale/most"] < 10
    assert run.versions == sorted(run.versions)
    assert all(v % 10 == 0 or v == -1 for v in run.versions)
    assert "eval/return" in run.evaluation and run.log["loss/critic"] >= 0


def test_an_actor_in_its_own_process_comes_to_act_with_the_newest_weights():
    p = plan("serl", ControlSettings("wall", trackers=()), KNOBS | {"warmup": 0})
    world = World(p)
    end = learner_end(p, world)
    process = get_context("spawn").Process(
        target=act, args=(json.dumps(p.written()), end.address, str(end.secret), Pace(5)), daemon=True
    )
    process.start()
    versions: list[int] = []
    try:
        for version in (0, 30):
            end.publish(version, weights_of(world.learner))
            while end.acting.get("actor", -1) < version:
                end.wait(60)
                assert end.received(), "the actor has stopped sending"
                versions += end.acting.values()
    finally:
        end.close()
        process.terminate()
        process.join()
        world.environments.close()
    assert versions == sorted(versions) and set(versions) <= {-1, 0, 30} and versions[-1] == 30


def test_a_run_apart_keeps_its_policy_and_cannot_be_resumed(tmp_path, capsys):
    out, knobs = (
        tmp_path / "run",
        ["--serl.hidden", "16", "16", "--serl.ensemble", "2", "--serl.batch", "8", "--serl.warmup", "40"],
    )
    line = ["train-apart", "serl", "--task", "wall", "--iterations", "20", "--eval-episodes", "1", "--out", str(out)]
    assert main([*line, *knobs]) == 0
    steps = [r["step"] for r in RunDirectory.open(out, lock=False).read()]
    assert steps == list(range(2, 21, 2))
    assert main(["eval", str(out), "--episodes", "1"]) == 0
    assert main(["resume", str(out)]) == 2 and "cannot be resumed" in capsys.readouterr().err
    for method, told in (("grpo", "it is of the language family"), ("ppo-control", "off-policy")):
        assert main(["train-apart", method, "--task", "gym/Pendulum-v1"]) == 2 and told in capsys.readouterr().err


def test_what_cannot_stand_apart_is_refused():
    with pytest.raises(InputError, match="off-policy"):
        train_apart("serl", task="back-and-forth", iterations=1)
    with pytest.raises(InputError, match="iterations"):
        train_apart("serl", task="wall", iterations=0)
    with pytest.raises(InputError, match="hertz"):
        Pace(hertz=0.0)


@pytest.mark.parametrize(("sent", "match"), [(0, "before it sent anything"), (50, "before iteration 1")])
def test_an_actor_that_has_ended_ends_the_run_with_what_was_learnt(sent, match):
    p = plan("serl", ControlSettings("wall", trackers=()), KNOBS)
    world, looked = World(p), []
    end = learner_end(p, world)
    width, actions, z = world.loop.replay.observations, world.loop.replay.actions, torch.zeros(sent)
    if sent:
        seen = torch.zeros(sent, width)
        end.waiting.append(Transitions(seen, torch.zeros(sent, actions), z, seen, z, z, z + 0.9))
    try:
        with pytest.raises(InputError, match=match):
            learn(p, world, end, 100, Pace(), 0.1, lambda i: looked.append(i) or {}, lambda: False)
    finally:
        end.close()
        world.environments.close()
    assert looked == ([1] if sent else [])


def test_an_actor_that_ends_before_it_sends_is_noticed_within_seconds(monkeypatch):
    p = plan("serl", ControlSettings("wall", trackers=()), KNOBS)
    world, waited = World(p), []
    end = learner_end(p, world)
    monkeypatch.setattr(end, "wait", waited.append)
    try:
        with pytest.raises(InputError, match="before it sent anything"):
            learn(p, world, end, 100, Pace(), 1000.0, lambda i: {}, lambda: len(waited) < 3)
    finally:
        end.close()
        world.environments.close()
    assert waited == [1.0] * 3


def test_what_ends_an_actor_is_one_line():
    p = plan("serl", ControlSettings("wall", trackers=()), KNOBS)
    end = LearnerEnd(p.written() | {"seed": 5}, (1, 1))
    try:
        with pytest.raises(SystemExit, match=r"actor: config.*other settings"):
            act(json.dumps(p.written()), end.address, str(end.secret), Pace())
    finally:
        end.close()


def test_an_actor_waits_until_the_learner_has_room_for_it(monkeypatch, learner):
    held = [socket.create_connection(learner.address) for _ in range(link.CONNECTIONS)]
    tries, real = [], ActorEnd.connect

    def connect(self, *args, **more):
        tries.append(args)
        if len(tries) == 2:
            for connection in held:
                connection.close()
        return real(self, *args, **more)

    monkeypatch.setattr(ActorEnd, "connect", connect)
    actor = ActorEnd(learner.address, CONFIG, learner.secret)
    assert actor.next == 0 and len(tries) > 1
    actor.close()


def test_an_actor_without_a_learner_ends_with_one_error(monkeypatch, learner):
    monkeypatch.setattr(link, "BEGINNING", 0.0)
    learner.close()
    with pytest.raises(InputError, match="no learner answers here"):
        ActorEnd(learner.address, CONFIG, learner.secret)
