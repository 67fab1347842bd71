"""DRIFT: worked numbers, bounds, what is sampled under which context, chat logs, and rounds on real runs."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.base import Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.methods.preference.dpo import Sigmoid
from anypolicy.methods.preference.drift import FixedNegativePairs, drift, gradient_bound, pair_weight, request
from anypolicy.methods.preference.spin import spin
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.load import load_policy
from anypolicy.runs.seeds import generator
from anypolicy.stages.pairs import PairLoss
from anypolicy.stages.recipe import World
from anypolicy.stages.reference import Fixed, PerRound
from anypolicy.tasks.language.load import load_task
from tests.helpers import lock_loop, segment

POLICY = "transformer:layers=1,width=16,heads=2,context=768"


# --- numbers ---------------------------------------------------------------------------------------------------------
def worked(nll_coef):
    """A chosen response of 8 tokens with ℓ = −20, a rejected one of one token with −31; the reference −20 and −30."""
    rows = [Trajectory("0/0", [segment([1] * 8)], reward=1.0), Trajectory("0/1", [segment([2])], reward=0.0)]
    batch = from_groups([Group("0", Prompt("0", tokens=(0,)), rows)], torch.float64)
    batch = replace(batch, pairs=torch.tensor([[0, 1]]))
    logp, ref = torch.zeros(2, 8, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.float64)
    logp[0], ref[0], logp[1, 0], ref[1, 0] = -2.5, -2.5, -31, -30
    logp.requires_grad_()
    terms = PairLoss(Sigmoid(0.1), nll_coef)(Scores(logp), replace(batch, logp_ref=ref)).terms
    sum(terms.values()).backward()
    return float(sum(terms.values()).detach()), logp.grad


def test_the_worked_pair():
    loss, gradient = worked(0.0)
    assert loss == pytest.approx(0.644397, abs=5e-7)
    assert float(pair_weight(torch.tensor([1.0], dtype=torch.float64), 0.1)) == pytest.approx(0.047502, abs=5e-7)
    assert gradient[0].tolist() == pytest.approx([-0.047502] * 8, abs=5e-7)
    assert float(gradient[1, 0]) == pytest.approx(0.047502, abs=5e-7)
    assert worked(0.001)[0] == pytest.approx(0.646897, abs=5e-7)


def test_the_bound_on_the_gradient():
    s, d = (torch.tensor(x, dtype=torch.float64) for x in ([-1.0, 0, 2, 5], [3.0, 2, 1, 4]))
    assert torch.sigmoid(-s).tolist() == pytest.approx([0.731059, 0.5, 0.119203, 0.006693], abs=5e-7)
    assert float(gradient_bound(s / 0.1, d, 0.1, 0.3)) == pytest.approx(0.0375)
    assert float((pair_weight(s / 0.1, 0.1) * d).mean()) == pytest.approx(0.083479, abs=5e-7)


def test_the_bound_holds_and_is_sharp():
    for seed in range(300):
        rng = generator(seed, "bound")
        h, d = (
            10 * torch.randn(6, generator=rng, dtype=torch.float64),
            torch.rand(6, generator=rng, dtype=torch.float64),
        )
        beta, tau = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        assert gradient_bound(h, d, beta, tau) <= (pair_weight(h, beta) * d).mean() + 1e-15
    h, d = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    assert float(gradient_bound(h, d, 0.1, 0.5)) == float((pair_weight(h, 0.1) * d).mean()) == 0.05


def test_without_feedback_the_expected_step_only_unlearns():
    z = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    logp = z.log_softmax(0)
    expected = torch.zeros(3, dtype=torch.float64)
    for y, p in enumerate((0.5, 0.3, 0.2)):
        h = (logp[y] - logp[y].detach()) - (logp[2] - logp[2].detach())
        loss = -torch.nn.functional.logsigmoid(0.1 * h)
        expected += p * torch.autograd.grad(loss, z, retain_graph=True)[0]
    assert expected.tolist() == pytest.approx([-0.025, -0.015, 0.040], abs=1e-12)


# --- rounds on a lock ------------------------------------------------------------------------------------------------
def test_every_round_begins_at_its_own_reference():
    loop = lock_loop(drift(minibatches=1), prompts=16)
    for _ in range(3):
        log = loop.step()
        assert log["loss/preference"] == pytest.approx(math.log(2), abs=1e-6)
        assert log["loss/nll"] > 0
    assert drift().reference == PerRound(1) and drift(reference="init").reference == Fixed()
    assert drift(samples=3).rollout.group_size == 4


def test_the_rejected_stay_and_the_chosen_come_anew():
    def round_of(seed=0):
        loop, seen = lock_loop(drift(), prompts=16, seed=seed), []
        for _ in range(3):
            loop.step()
            seen.append({g.prompt.id: [t.response.tolist() for t in g.trajectories] for g in loop.seen})
        return loop, seen

    loop, seen = round_of()
    for p in loop.world.task.train:
        negative = list(p.info["responses"][int(np.argmin(p.info["scores"]))])
        assert [r[p.id][0] for r in seen] == [negative] * 3
    assert seen[0] != seen[1] != seen[2]
    assert round_of()[1] == seen


def test_the_policy_trains_under_the_plain_prompt():
    loop = lock_loop(drift(), prompts=16)
    batch, log = loop.collect()
    fresh = [t.segments[0] for g in loop.seen for t in g.trajectories[1:]]
    assert all(s.context[0] == s.training_context[0] + 16 for s in fresh)
    assert set(batch.context.flatten().tolist()) <= set(range(16))
    assert batch.logp_old.isnan().all() and np.isfinite(log["entropy/behaviour"]) and log["tokens/generated"] == 48
    assert log["pairs/made"] + log["pairs/equal"] == 16
    plain = lock_loop(drift(guided=False), prompts=16)
    batch, _ = plain.collect()
    assert (batch.logp_old.isfinite() == (batch.version >= 0)).all() and (batch.version >= 0).any()
    assert all(t.segments[0].context[0] < 16 for g in plain.seen for t in g.trajectories)


def test_a_fresh_response_that_is_the_rejected_one_makes_no_pair():
    made = [
        Group(str(g), Prompt(str(g), tokens=(g,)), [
            Trajectory(f"{g}/{i}", [segment(ids, [g])], reward=float(i > 0)) for i, ids in enumerate(rows)
        ]) for g, rows in enumerate(([[1, 2], [1, 2]], [[1, 2], [3]], [[1], [1, 2], [3, 4]]))
    ]  # fmt: skip
    choice = FixedNegativePairs()(from_groups(made), 3)
    assert choice.pairs.tolist() == [[3, 2], [5, 4], [6, 4]]
    assert choice.metrics["drift/one_token"] == pytest.approx(1 / 3)
    assert choice.metrics["pairs/equal"] == 1


def test_with_fixed_good_responses_and_fresh_rejected_ones_it_is_spin():
    ours, theirs = drift(nll_coef=0.0, guided=False), spin(previous=False)
    a, b = (lock_loop(r, prompts=8) for r in (replace(ours, rollout=theirs.rollout), theirs))
    for _ in range(3):
        a.step()
        b.step()
    assert torch.equal(a.world.policy.module.logits, b.world.policy.module.logits)


# --- chat logs -------------------------------------------------------------------------------------------------------
def said(role, content, **mark):
    return {"role": role, "content": content, **mark}


def chat(n, feedback="Shorter, please.", mended="ok"):
    return {"conversation": [
        said("user", f"Question {n}?"), said("assistant", f"A long answer to {n}."),
        said("user", feedback, satisfied=False), said("assistant", mended), said("user", "Thanks!", satisfied=True),
    ]}  # fmt: skip


def log_file(path, rows):
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


def test_a_log_gives_dissatisfying_answers_and_seed_pairs(tmp_path):
    last = {"conversation": [
        said("system", "Be kind."), said("user", "Hello"), said("assistant", "Hi"), said("user", "Sing."),
        said("assistant", "No."), said("user", "Rude.", satisfied=False), said("assistant", "La."),
        said("user", "Off key.", satisfied=False),
    ]}  # fmt: skip
    path = log_file(
        tmp_path / "c.jsonl", [chat(1), last, {"conversation": [said("user", "Hm"), said("assistant", "?")]}]
    )
    task = load_task(path + ":heldout=0")
    assert [(p.info["responses"], p.info["scores"], p.info["feedback"]) for p in task.train] == [
        (["A long answer to 1."], [0.0], "Shorter, please."), (["No."], [0.0], "Rude."), (["La."], [0.0], "Off key."),
    ]  # fmt: skip
    assert [len(p.messages) for p in task.train] == [1, 4, 6]
    assert all(set(m) == {"role", "content"} for p in task.train for m in p.messages)
    [pair] = load_task(path + ":use=pairs,heldout=0").train
    assert (pair.info["responses"], pair.info["scores"]) == (["ok", "A long answer to 1."], [1.0, 0.0])
    assert pair.reference == "ok" and pair.messages == task.train[0].messages


def test_a_conversation_is_on_one_side(tmp_path):
    rows = [{"conversation": chat(n)["conversation"] + chat(n, "No.")["conversation"][1:3]} for n in range(40)]
    task = load_task(log_file(tmp_path / "c.jsonl", rows) + ":heldout=0.3")
    opened = [{p.messages[0]["content"] for p in side} for side in (task.train, task.heldout)]
    assert not opened[0] & opened[1] and len(opened[1]) > 3
    assert len(task.train) + len(task.heldout) == 80


MARKED = [said("user", "a"), said("assistant", "b"), said("user", "c", satisfied=False)]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"conversation": "hello"}, "line 2.*list of messages"),
        ({"conversation": [{"role": "user"}]}, "line 2.*role and content"),
        ({"conversation": [*MARKED[:2], said("user", "c", satisfied="no")]}, "line 2, message 2.*'no'"),
        ({"conversation": [MARKED[0], said("assistant", "b", satisfied=False)]}, "line 2, message 1.*belongs"),
        ({"conversation": [said("user", "c", satisfied=False)]}, "line 2, message 0.*belongs"),
        ({"conversation": [MARKED[0], said("assistant", " "), MARKED[2]]}, "line 2, message 1.*answer is empty"),
        ({"conversation": [*MARKED[:2], said("user", "", satisfied=False)]}, "line 2, message 2.*user is empty"),
    ],
)
def test_bad_logs_name_line_and_message(tmp_path, row, match):
    with pytest.raises(InputError, match=match):
        load_task(log_file(tmp_path / "c.jsonl", [chat(1), row]))


def test_logs_that_teach_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="no conversation has"):
        load_task(log_file(tmp_path / "a.jsonl", [{"conversation": MARKED[:2]}]))
    with pytest.raises(InputError, match=r"message 1.*satisfied is the one"):
        load_task(log_file(tmp_path / "b.jsonl", [chat(1, mended="A long answer to 1.")]) + ":use=pairs")
    pairs = log_file(tmp_path / "p.jsonl", [{"prompt": str(n), "chosen": "a", "rejected": "b"} for n in range(3)])
    with pytest.raises(InputError, match="no message of its user"):
        training.plan("drift", training.Settings(pairs))
    training.plan("drift", training.Settings(pairs), {"drift": {"guided": False}})
    with pytest.raises(InputError, match="responses"):
        training.plan("drift", training.Settings("tabular-lock"))


# --- what the policy sees --------------------------------------------------------------------------------------------
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def world_of(tmp_path, rows, context=768, max_tokens=8):
    policy = load_policy(f"transformer:layers=1,width=16,heads=2,context={context}")
    policy.tokenizer.chat_template = TEMPLATE
    task = load_task(log_file(tmp_path / "c.jsonl", rows) + ":heldout=0")
    return World(policy, NativeEngine(policy), task, Sampling(max_tokens), 0)


def test_sampling_sees_the_feedback_and_training_does_not(tmp_path):
    world = world_of(tmp_path, [chat(n, feedback=f"FEEDBACK {n}") for n in range(3)])
    rollout = drift().rollout
    rollout.check(world)
    for n, group in enumerate(rollout(world, list(world.task.train), generator(0, "x"))):
        negative, fresh = (t.segments[0] for t in group.trajectories)
        seen, plain = world.policy.decode(fresh.context), world.policy.decode(fresh.training_context)
        assert plain == world.policy.decode(negative.context) == f"[user]Question {n}?[assistant]"
        for text in (f"Question {n}?", f"A long answer to {n}.", f"FEEDBACK {n}", "Write only the answer."):
            assert text in seen
        assert world.policy.decode(negative.response) == f"A long answer to {n}."
        assert negative.training_context is None and (fresh.version == 0).all()


def test_a_long_history_loses_its_beginning_and_nothing_else(tmp_path):
    old = [said("user", "x" * 300), said("assistant", "y" * 600)]
    world = world_of(tmp_path, [{"conversation": old + chat(1)["conversation"][:3]}])
    [prompt] = world.task.train
    ids = drift().rollout.shown(world, prompt)
    text = world.policy.decode(ids)
    assert len(ids) == 768 - 8
    assert "xx" not in text and "yy" in text
    assert text.endswith(world.policy.decode(world.policy.encode(request(prompt, "A long answer to 1.")))[-400:])
    small = replace(world, sampling=Sampling(500))
    with pytest.raises(InputError, match=prompt.id):
        drift().rollout.check(small)


def test_seed_pairs_then_rounds_and_a_resumed_run_is_the_whole_run(tmp_path):
    path = log_file(tmp_path / "c.jsonl", [chat(n) for n in range(6)])
    common = {"quiet": True, "trackers": (), "eval_every": 0, "max_tokens": 8, "prompts": 4}
    seed = training.train("dpo", task=path + ":use=pairs", policy=POLICY, steps=2, out=tmp_path / "seed", **common)

    def rounds(name, steps):
        return training.train("drift", task=path, policy=str(tmp_path / "seed" / "policy"), steps=steps, lr=1e-3,
                              out=tmp_path / name, checkpoint_every=1, **common)  # fmt: skip

    whole, _ = rounds("whole", 2), rounds("part", 1)
    again = training.resume(tmp_path / "part", steps=2, quiet=True)
    weights = [dict(r.policy.module.named_parameters()) for r in (seed, whole, again)]
    assert all(torch.equal(weights[1][n], weights[2][n]) for n in weights[0])
    assert not all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert [r for r in whole.rows if "event" not in r] == [r for r in again.rows if "event" not in r]
    assert load_policy(str(tmp_path / "seed" / "policy")).module.state_dict().keys()


@pytest.mark.parametrize(("settings", "match"), [({"samples": 0}, "samples"), ({"nll_coef": -1.0}, "nll_coef"),
                                                 ({"smoothing": 0.5}, "smoothing"), ({"beta": 0.0}, "beta")])  # fmt: skip
def test_bad_settings(settings, match):
    with pytest.raises(InputError, match=match):
        drift(**settings)
