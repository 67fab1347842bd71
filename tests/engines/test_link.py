"""Actor and learner: messages, confirmation, versions, other settings, a real second process."""

import json
import socket
import threading
from multiprocessing import get_context

import pytest
import torch

from anypolicy.apart import Pace, act, learn, train_apart
from anypolicy.cli import main
from anypolicy.control import ControlSettings, World, plan
from anypolicy.data.transitions import Transitions
from anypolicy.engines.link import ActorEnd, LearnerEnd, config_hash, receive, send
from anypolicy.errors import InputError
from anypolicy.loops.control import weights_of
from anypolicy.runs.directory import RunDirectory

CONFIG = {"method": "x", "knobs": {"lr": 0.1}}


def rows(start: int, n: int) -> Transitions:
    t = torch.arange(start, start + n).float()
    zeros = torch.zeros(n)
    return Transitions(t[:, None], t[:, None], t, t[:, None] + 1, zeros, zeros, zeros + 0.9)


@pytest.fixture
def learner():
    end = LearnerEnd(CONFIG)
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
    actor = ActorEnd(learner.address, CONFIG)
    for i in range(0, 60, 7):
        actor.insert(rows(i, 7))
        actor.update()
    assert gathered(learner, 63) == list(range(63))
    again = ActorEnd(learner.address, CONFIG)
    assert again.next == 63
    actor.close()


def test_what_is_sent_twice_is_stored_once(learner):
    for first, n in ((0, 3), (1, 4), (0, 3), (9, 1)):
        fields = {k: getattr(rows(first, n), k) for k in Transitions.__dataclass_fields__}
        learner.store("a", {"first": first, "rows": n, "version": 0}, fields)
    assert [x for t in learner.received() for x in t.reward.tolist()] == [0, 1, 2, 3, 4, 9]


def test_the_actor_goes_on_without_a_learner_and_sends_later():
    first = LearnerEnd(CONFIG)
    port = first.address[1]
    actor = ActorEnd(first.address, CONFIG, capacity=50)
    first.close()
    for i in range(60):
        actor.insert(rows(i, 1))
        actor.update()
    assert (actor.unsent(), actor.dropped) == (50, 10)
    learner, got = LearnerEnd(CONFIG, port), []
    while len(got) < 50:
        actor.update()
        learner.wait(0.2)
        got += [x for t in learner.received() for x in t.reward.tolist()]
    assert got == list(range(10, 60))
    learner.close()
    actor.close()


def test_other_settings_are_an_error(learner):
    with pytest.raises(InputError, match="other settings"):
        ActorEnd(learner.address, CONFIG | {"method": "y"})
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 1, "b": 3})


def test_the_newest_weights_come_and_versions_only_grow(learner):
    actor = ActorEnd(learner.address, CONFIG)
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
    late = ActorEnd(learner.address, CONFIG, name="late")
    assert late.wait_for_weights(30) and late.weights() is not None and late.version == 60
    for end in (actor, late):
        end.close()


def test_publishing_does_not_wait_for_an_actor_that_does_not_listen(learner):
    deaf = socket.create_connection(learner.address)
    send(deaf, {"config": config_hash(CONFIG), "actor": "deaf", "wants": "weights"})
    for version in range(20):
        learner.publish(version, {"w": torch.zeros(1_000_000)})
    assert learner.version == 19
    deaf.close()


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
    world, end = World(p), LearnerEnd(p.written())
    process = get_context("spawn").Process(
        target=act, args=(json.dumps(p.written()), end.address, Pace(5)), daemon=True
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
    assert main(["train-apart", "grpo", "--task", "tiny-add"]) == 2 and "off-policy" in capsys.readouterr().err


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
    world, end, looked = World(p), LearnerEnd(p.written()), []
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


def test_what_ends_an_actor_is_one_line():
    p = plan("serl", ControlSettings("wall", trackers=()), KNOBS)
    end = LearnerEnd(p.written() | {"seed": 5})
    try:
        with pytest.raises(SystemExit, match=r"actor: config.*other settings"):
            act(json.dumps(p.written()), end.address, Pace())
    finally:
        end.close()
