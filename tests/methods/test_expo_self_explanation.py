"""Worked numbers of ExPO (arXiv 2507.02834, ExP-GRPO) in float64, its identities, and what its explanations are."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.base import Sampling
from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.methods.language.expo_self_explanation import (
    ExplanationLoss,
    SelfExplanation,
    before,
    coefficient,
    expo_self_explanation,
)
from anypolicy.methods.language.grpo import grpo
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.load import load_policy
from anypolicy.stages.common import GroupAdvantage, GroupRollout, PolicyLoss
from anypolicy.stages.recipe import World
from anypolicy.tasks.language.load import load_task
from tests.helpers import lock_loop, segment

D = torch.float64


def posterior(prior, p):
    """π(c | a) ∝ π(c) p(c), and the probability of the answer under prior and posterior."""
    q = prior * p / (prior * p).sum()
    return q, float((prior * p).sum()), float((q * p).sum())


@pytest.mark.parametrize(
    ("prior", "p", "want", "before_it", "after"),
    [
        ([0.8, 0.2], [0.1, 0.9], [0.307692, 0.692308], 0.26, 0.653846),
        ([0.5, 0.3, 0.2], [0.0, 0.05, 0.4], [0.0, 0.157895, 0.842105], 0.095, 0.344737),
    ],
)
def test_explanations_given_the_answer_lead_to_it_more_often(prior, p, want, before_it, after):
    prior, p = torch.tensor(prior, dtype=D), torch.tensor(p, dtype=D)
    q, low, high = posterior(prior, p)
    assert q.tolist() == pytest.approx(want, abs=1e-6)
    assert (low, high) == pytest.approx((before_it, after), abs=1e-6)
    assert high == pytest.approx(float((prior * p * p).sum() / (prior * p).sum()), abs=1e-12)


def test_a_likely_good_chain_is_worth_more_than_a_perfect_unlikely_one():
    """First-order gain of the success J = Σ π(c) p(c) by a supervised step on each chain."""
    p = torch.tensor([0.05, 0.6, 1.0], dtype=D)
    gains = []
    for chain in range(3):
        z = torch.tensor([2.0, 0, -3], dtype=D, requires_grad=True)
        (step,) = torch.autograd.grad(torch.log_softmax(z, 0)[chain], z)
        (slope,) = torch.autograd.grad((torch.softmax(z, 0) * p).sum(), z)
        gains.append(float(slope @ step))
        pi = torch.softmax(z.detach(), 0)
        j = (pi * p).sum()
        closed = pi[chain] * (p[chain] - j) - (pi.square() * (p - j)).sum()
        assert gains[-1] == pytest.approx(float(closed), abs=1e-12)
    assert gains == pytest.approx([-0.014470, 0.104293, 0.052692], abs=1e-6)


EXPLAINED = [-1.2, -0.4, -0.9, -0.1, -0.05]


def batch_with_explanation(rewards, lengths=(3, 5, 2, 4), explained=True):
    own = [Trajectory(str(i), [segment([1] * n)], reward=r, correct=r == 1)
           for i, (r, n) in enumerate(zip(rewards, lengths, strict=True))]  # fmt: skip
    target = [Trajectory("y", [segment([2] * 5)], target=True)] if explained else []
    batch = from_groups([Group("g", Prompt("g"), own + target)], D)
    return replace(batch, advantage=batch.to_rows(GroupAdvantage()(batch)))


def learnt(batch, loss):
    logp = batch.logp_old.clone()
    if batch.target is not None:
        logp[batch.target] = torch.tensor(EXPLAINED, dtype=D)
    logp.requires_grad_()
    terms = loss(Scores(logp), batch).terms
    sum(terms.values()).backward()
    return {k: float(v.detach()) for k, v in terms.items()}, logp.grad


@pytest.mark.parametrize(("likelihood", "value", "slope"), [("mean", 0.0212, -0.008), ("sum", 0.106, -0.04)])
def test_an_all_wrong_group_learns_from_the_explanation_alone(likelihood, value, slope):
    batch = batch_with_explanation([0.0] * 4)
    loss = ExplanationLoss(PolicyLoss(), 0.04, likelihood)
    terms, grad = learnt(batch, loss)
    assert not batch.advantage.any()
    assert terms["policy"] == 0
    assert terms["imitation"] == pytest.approx(value, abs=1e-9)
    assert not grad[:4].any()
    assert grad[4].tolist() == pytest.approx([slope] * 5, abs=1e-12)
    assert loss.active(batch).tolist() == [False] * 4 + [True]


def test_the_policy_term_and_the_advantages_do_not_see_the_explanation():
    rewards = [1.0, 0, 0, 0]
    ours, plain = batch_with_explanation(rewards), batch_with_explanation(rewards, explained=False)
    a = GroupAdvantage()(ours)
    assert a.tolist() == pytest.approx([1.499997, -0.499999, -0.499999, -0.499999, 0], abs=1e-6)
    assert torch.equal(a[:4], GroupAdvantage()(plain))
    terms, grad = learnt(ours, expo_self_explanation().loss)
    alone, want = learnt(plain, grpo(kl_coef=0.0).loss)
    assert terms["policy"] == alone["policy"] == pytest.approx(0, abs=1e-12)
    assert torch.equal(grad[:4], want)
    first = [float(grad[i, 0]) for i in range(4)]
    assert first == pytest.approx([-0.125, 0.025, 0.0625, 0.03125], abs=1e-6)


def test_a_prompt_without_explanation_counts_as_zero_in_the_mean_over_prompts():
    def group(g, explained):
        own = [Trajectory(str(i), [segment([1], [g])], reward=0.0) for i in range(2)]
        return Group(str(g), Prompt(str(g)), own + [Trajectory("y", [segment([2] * 5, [g])], target=True)] * explained)

    batch = from_groups([group(0, 1), group(1, 0), group(2, 0), group(3, 0)], D)
    batch = replace(batch, advantage=torch.zeros_like(batch.logp_old))
    terms, _ = learnt(batch, expo_self_explanation().loss)
    assert terms["imitation"] == pytest.approx(0.0212 / 4, abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "progress", "want"),
    [("constant", 0.5, 0.04), ("constant", None, 0.04), ("linear", 0.0, 0.04), ("linear", 0.5, 0.02),
     ("linear", 1.0, 0.0), ("cosine", 0.0, 0.04), ("cosine", 0.5, 0.02), ("cosine", 1 / 3, 0.03), ("cosine", 1.0, 0.0)],
)  # fmt: skip
def test_schedules(schedule, progress, want):
    assert coefficient(0.04, schedule, progress) == pytest.approx(want, abs=1e-12)
    batch = replace(batch_with_explanation([0.0] * 4), progress=progress)
    terms, _ = learnt(batch, ExplanationLoss(PolicyLoss(), schedule=schedule))
    assert terms.get("imitation", 0.0) == pytest.approx(0.53 * want, abs=1e-9)


def test_a_schedule_needs_the_end_of_the_run_and_the_loop_knows_it():
    with pytest.raises(InputError, match="schedule"):
        coefficient(0.04, "linear", None)
    loop = lock_loop(expo_self_explanation(schedule="linear"))
    assert loop.total_steps == 40
    seen = []
    for _ in range(3):
        seen.append(loop.collect()[0].progress)
        loop.steps += 1
    assert seen == [0.0, 1 / 39, 2 / 39]


def test_without_beta_it_is_grpo_to_the_bit():
    assert expo_self_explanation(beta=0.0) == grpo(kl_coef=0.0)
    runs = []
    for recipe in (expo_self_explanation(beta=0.0), grpo(kl_coef=0.0)):
        loop = lock_loop(recipe)
        logs = [loop.step() for _ in range(3)]
        runs.append((json.dumps(logs), loop.world.policy.module.logits.detach().numpy().tobytes()))
    assert runs[0] == runs[1]


def test_explanations_leave_the_groups_as_they_are():
    ours, plain = lock_loop(expo_self_explanation()), lock_loop(grpo(kl_coef=0.0))
    for a, b in zip(ours.sample(0), plain.sample(0), strict=True):
        (y,) = a.targets
        assert [t.response.tolist() for t in a.sampled().trajectories] == [t.response.tolist() for t in b.trajectories]
        (s,) = y.segments
        assert s.training_context.tolist() == list(a.prompt.tokens)
        assert s.context.tolist() == [a.prompt.tokens[0] + 16]
        assert s.response[-1] == a.prompt.answer[-1]
        assert s.version[:-1].tolist() == [0, 0]


def test_both_likelihoods_are_logged_and_the_plain_one_rises():
    loop = lock_loop(expo_self_explanation(beta=1.0), low=-2.0, high=-2.0)
    logs = [loop.step() for _ in range(20)]
    assert logs[0]["target/logp_sampled"] > logs[0]["target/logp"] + 1
    assert logs[0]["loss/imitation"] == pytest.approx(-logs[0]["target/logp"], abs=1e-5)
    assert logs[-1]["target/logp"] > logs[0]["target/logp"] + 0.5
    assert logs[0]["groups/all_wrong"] > 0.8
    assert logs[0]["tokens/generated"] == 8 * (8 + 1) * 3


def test_only_where_all_are_wrong():
    loop = lock_loop(expo_self_explanation(when="all_wrong"))
    groups = loop.sample(0)
    right = [any(t.correct for t in g.trajectories) for g in groups]
    assert {True, False} == set(right)
    assert [bool(g.targets) for g in groups] == [not r for r in right]


def test_only_explanations_with_the_right_answer_if_wanted():
    sure = lock_loop(expo_self_explanation(only_correct=True), hint=50.0)
    assert all(g.targets for g in sure.sample(0))
    never = lock_loop(expo_self_explanation(only_correct=True), hint=-50.0)
    assert not any(g.targets for g in never.sample(0))
    several = lock_loop(expo_self_explanation(explanations=3))
    assert [len(g.targets) for g in several.sample(0)] == [3] * 8


def test_degenerate_prompts_and_explanations():
    with pytest.raises(InputError, match="answer"):
        lock_loop(expo_self_explanation(), hints=False)
    loop = lock_loop(expo_self_explanation())
    loop.world.task.train[:8] = [replace(p, answer=None) for p in loop.world.task.train[:8]]
    groups = loop.sample(0) + loop.sample(1)
    assert {bool(g.targets) == (g.prompt.answer is not None) for g in groups} == {True}
    assert {bool(g.targets) for g in groups} == {True, False}
    task = load_task("reverse-and-pick:prompts=4,heldout=1")
    prompt = task.train[0]
    ids = {"": [10, 1, 16], "long": [1] * 30, "good": [1, 2, 10, 1, 16]}
    for name, sampled in ids.items():
        world = fake_world(task, sampled, "length" if name == "long" else "eos")
        (group,) = SelfExplanation(1)(world, [prompt], torch.Generator())
        assert len(group.targets) == (name == "good")
    assert group.targets[0].response.tolist() == [1, 2, 10, *prompt.answer, 16]


def fake_world(task, sampled, stop):
    """An engine that always says the same."""

    def generate(requests, sampling, generator, version):
        return [[(segment(sampled, r.context.tolist()), stop)] * r.n for r in requests]

    policy = SimpleNamespace(encode=lambda p: np.array(p.tokens), decode=lambda ids: "", stop_ids=(16,))
    return World(policy, SimpleNamespace(generate=generate), task, Sampling(24), 0)


def text_world(tmp_path, verifier="numeric", explained="", stop="eos", settings=""):
    rows = [{"prompt": f"What is {i} + 1?", "answer": i + 1} for i in range(4)]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    task = load_task(f"{tmp_path}/p.jsonl:verifier={verifier},heldout=0.1,max_tokens=100{settings}")
    policy = load_policy("transformer:layers=1,width=8,heads=1,context=400")
    ids = [*policy.tokenizer.encode(explained, add_special_tokens=False), policy.tokenizer.eos_token_id]
    asked = []

    def generate(requests, sampling, generator, version):
        asked.extend(policy.decode(r.context) for r in requests)
        return [[(segment(ids, r.context.tolist()), stop)] * r.n for r in requests]

    return World(policy, SimpleNamespace(generate=generate), task, Sampling(100), 0), asked


def test_explanations_in_text(tmp_path):
    said = "One more than it.\nThe answer is 99. No, The answer is 7."
    world, asked = text_world(tmp_path, explained=said)
    stage = SelfExplanation(2)
    stage.check(world)
    prompt = world.task.train[0]
    (group,) = stage(world, [prompt], torch.Generator())
    assert len(asked) == 2
    assert asked[0] == prompt.messages[0]["content"]
    assert asked[1].startswith(asked[0])
    assert f"The final answer is {prompt.answer}." in asked[1]
    (y,) = group.targets
    assert world.policy.decode(y.response) == f"One more than it.\n\nThe answer is {prompt.answer}."
    assert y.response[-1] in world.policy.stop_ids
    assert world.task.score(prompt, y.response, world.policy.decode(y.response)).correct
    assert y.segments[0].training_context.tolist() == world.policy.encode(prompt).tolist()
    for nothing in ("", "  \n", "The answer is 4."):
        world, _ = text_world(tmp_path, explained=nothing)
        assert not stage(world, [prompt], torch.Generator())[0].targets
    world, _ = text_world(tmp_path, explained="x" * 90)
    assert not stage(world, [prompt], torch.Generator())[0].targets


def test_text_before_a_marker_in_whole_tokens():
    policy = load_policy("transformer:layers=1,width=8,heads=1")
    ids = np.array(policy.tokenizer.encode("ab #cd #e", add_special_tokens=False))
    assert policy.decode(before("#", policy, ids)) == "ab "
    assert policy.decode(before("?", policy, ids)) == "ab #cd #e"
    stop = np.array([*ids, policy.tokenizer.eos_token_id])
    assert before("?", policy, stop).tolist() == ids.tolist()
    pairs = SimpleNamespace(stop_ids=(), decode=lambda t: "".join(["ab", "c#", "d"][i] for i in t))
    assert before("#", pairs, np.array([0, 1, 2])).tolist() == [0]


def test_what_the_verifier_would_not_accept_is_refused_before_any_work(tmp_path):
    world, _ = text_world(tmp_path, verifier="exact")
    with pytest.raises(InputError, match="conclusion"):
        SelfExplanation().check(world)
    world, _ = text_world(tmp_path)
    with pytest.raises(InputError, match="shorten these"):
        SelfExplanation().check(replace(world, sampling=Sampling(350)))
    add = lock_loop(grpo()).world
    tokens = SimpleNamespace(name="ids", train=[Prompt("q", tokens=(0,), answer=3)])
    with pytest.raises(InputError, match="answer_shown"):
        SelfExplanation().check(replace(add, task=tokens))


def test_defaults_and_the_card():
    recipe = compose("expo-self-explanation").recipe
    assert recipe.rollout.group_size == 8
    assert recipe.loss == ExplanationLoss(PolicyLoss(kl="k3"), 0.04, "mean", "constant")
    assert isinstance(grpo().rollout, GroupRollout)
    assert not recipe.loss.needs.reference
    assert not recipe.loss.needs.entropy
    assert expo_self_explanation(kl_coef=0.1).loss.needs.reference
    assert math.isclose(recipe.optimiser.lr, 1e-6)


def test_a_text_task_end_to_end(tmp_path):
    world, _ = text_world(tmp_path)
    task = f"{world.task.name}:verifier=numeric,heldout=0.1,max_tokens=12"
    run = training.train(
        "expo-self-explanation", task=task, policy="transformer:layers=1,width=8,heads=1,context=400", steps=2, prompts=2,
        group_size=2, out=tmp_path / "run", trackers=(), quiet=True, knobs={"expo-self-explanation": {"beta": 0.5}},
    )  # fmt: skip
    steps = [r for r in run.rows if "event" not in r]
    assert len(steps) == 2
    assert all(np.isfinite(v) for r in steps for v in r.values())
