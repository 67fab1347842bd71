"""Worked numbers and rules of Cog-Rethinker (arXiv 2510.15979, as its header says what is known of it), in float64."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.base import Sampling
from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.loops.group import GroupLoop
from anypolicy.methods.language.cog_rethinker import WRITTEN, FallbackRollout, cog_rethinker, retrieve, worded
from anypolicy.methods.language.dapo import dapo
from anypolicy.parts.retrieval import bm25
from anypolicy.policies.language.base import Scores
from anypolicy.stages.checks import check
from anypolicy.stages.common import GroupAdvantage, VerifierReward
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import World
from anypolicy.stages.targets import resampled_target
from anypolicy.tasks.language.base import Score
from tests.helpers import lock_loop, segment

DOCUMENTS = ["sum of two primes", "area of a circle", "sum of digits of a prime"]


class Scripted:
    """Policy, engine and task in one: the script says for each stage which of a group's responses are right."""

    name, context_length = "scripted", 1000

    def __init__(self, script, texts=False, lengths=(1, 1, 1, 1)):
        self.script, self.lengths, self.asked = script, lengths, []
        self.policy = self.engine = self.task = self
        message = ({"role": "user", "content": "What is 1 + 1?"},)
        self.train = [Prompt(f"p{i}", message if texts else (), None if texts else (i,)) for i in range(len(script))]

    def encode(self, prompt):
        ids = prompt.tokens if prompt.tokens is not None else [ord(c) for c in prompt.messages[-1]["content"]]
        return np.array(ids, np.int64)

    def decode(self, tokens):
        return " ".join(str(t) for t in tokens)

    def reask(self, prompt, stage, wrong, examples):
        self.examples = list(examples)
        mark = {"decompose": 10_000, "reflect": 20_000}[stage]
        return Prompt("again", tokens=(mark, *prompt.tokens, *(() if wrong is None else wrong.tolist())))

    def generate(self, requests, sampling, generator, version=0):
        out = []
        for r in requests:
            stage = {10_000: 1, 20_000: 2}.get(int(r.context[0]), 0)
            self.asked.append((int(r.context[-1] if stage == 0 else r.context[1]), stage, r.context.tolist()))
            right = self.script[self.asked[-1][0]][stage]
            out.append(
                [(segment([8 if ok else 9] * n, r.context.tolist()), "eos") for ok, n in zip(right, self.lengths)]
            )
        return out

    def score(self, prompt, response, text):
        return Score(float(response[0] == 8), bool(response[0] == 8))

    def world(self):
        return World(self, self, self, Sampling(8), 0)


def rolled(script, rollout=None, lengths=(1, 1, 1, 1)):
    """The groups of one rollout over all scripted prompts, scored, and the script's record of what was asked."""
    here = Scripted(script, lengths=lengths)
    world = here.world()
    groups = (rollout or FallbackRollout(4))(world, here.train, torch.Generator().manual_seed(0))
    VerifierReward()(world, [g.sampled() for g in groups])
    return groups, here, world


def routed(script, recipe=None):
    """(groups in the RL set, targets) as "prompt/stage" names and counts, for one group of DAPO's target size 99."""
    groups, here, _ = rolled(script, None if recipe is None else replace(recipe.rollout, group_size=4))
    batch = from_groups(groups, torch.float64)
    choice = (recipe or cog_rethinker()).selection(batch, 99)
    kept = [f"{g.prompt.id}/{g.stage}" for g, k in zip(groups, choice.groups, strict=True) if k]
    return kept, {f"{g.prompt.id}/{g.stage}": len(g.targets) for g in groups if g.targets}, here


NO, ALL, ONE = [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]
SAMPLED_LOGP = [-0.3, -0.4, -0.2, -0.3]


# --- routing ---------------------------------------------------------------------------------------------------------
def test_utilisation():
    p, rescued, left, generations = (0.01, 0.05, 0.10), [], 1.0, 0.0
    some = [1 - (1 - q) ** 8 for q in p]
    for s in some:
        generations += 8 * left
        left *= 1 - s
        rescued.append(1 - left)
    assert some == pytest.approx([0.077255, 0.336580, 0.569533], abs=1e-6)
    assert rescued == pytest.approx([0.077255, 0.387832, 0.736482], abs=1e-6)
    assert generations == pytest.approx(20.279299, abs=1e-6)
    rng = np.random.default_rng(0)
    script = [[(rng.random(8) < q).tolist() for q in p] for _ in range(3000)]
    groups, here, _ = rolled(script, FallbackRollout(8), lengths=[1] * 8)
    assert 8 * len(here.asked) / 3000 == pytest.approx(generations, abs=0.2)
    solved = {g.prompt.id for g in groups if any(t.correct for t in g.sampled().trajectories)}
    assert len(solved) / 3000 == pytest.approx(rescued[-1], abs=0.03)


def test_accuracy_decides_where_a_group_goes():
    assert routed([[ALL, NO, NO]])[:2] == ([], {})
    assert routed([[ONE, NO, NO]])[:2] == (["p0/direct"], {})
    assert routed([[NO, ALL, NO]])[:2] == ([], {"p0/decompose": 4})
    assert routed([[NO, ONE, NO]])[:2] == (["p0/decompose"], {"p0/decompose": 1})
    assert routed([[NO, NO, ONE]])[:2] == (["p0/reflect"], {"p0/reflect": 1})
    assert routed([[NO, NO, NO]])[:2] == ([], {})


def test_only_unsolved_prompts_are_asked_again():
    *_, here = routed([[ALL, NO, NO], [ONE, NO, NO], [NO, ONE, NO], [NO, NO, NO]])
    assert [(p, s) for p, s, _ in here.asked] == [(0, 0), (1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (3, 2)]


def test_stages_that_are_off():
    *_, here = routed([[NO, ONE, ONE]], cog_rethinker(decompose=False))
    assert [s for _, s, _ in here.asked] == [0, 2]
    *_, here = routed([[NO, ONE, ONE]], cog_rethinker(reflect=False))
    assert [s for _, s, _ in here.asked] == [0, 1]


def test_the_wrong_solution_is_one_of_the_stage_before_and_the_same_for_the_whole_group():
    groups, here, _ = rolled([[NO, NO, ONE]], lengths=(1, 2, 3, 4))
    context = here.asked[-1][2]
    assert context[:2] == [20_000, 0]
    assert context[2:] in ([9], [9] * 2, [9] * 3, [9] * 4)
    assert {tuple(t.segments[0].context) for t in groups[-1].sampled().trajectories} == {tuple(context)}
    shown = set()
    for seed in range(20):
        here = Scripted([[NO, NO, NO]], lengths=(1, 2, 3, 4))
        FallbackRollout(4)(here.world(), here.train, torch.Generator().manual_seed(seed))
        shown.add(len(here.asked[-1][2]) - 2)
    assert shown == {1, 2, 3, 4}


def test_targets_are_under_the_direct_prompt_and_rl_is_under_its_own():
    groups, _, _ = rolled([[NO, ONE, NO]])
    [target] = groups[-1].targets
    assert target.segments[0].training_context.tolist() == [0]
    batch = from_groups(groups, torch.float64)
    rows = batch.target.any(1)
    context = [batch.context[i][batch.context_valid[i]].tolist() for i in batch.context_index]
    assert [c for c, t in zip(context, rows, strict=True) if t] == [[0]]
    assert [c for c, t in zip(context, rows, strict=True) if not t] == [[0]] * 4 + [[10_000, 0]] * 4
    assert not (batch.mask & batch.target).any()


def test_at_most_four_targets_a_prompt_shortest_first():
    groups, _, world = rolled([[[0] * 6, [1] * 6, NO]], FallbackRollout(6), lengths=(5, 3, 4, 3, 1, 2))
    assert [t.length for t in groups[-1].targets] == [1, 2, 3, 3]
    assert world.memory["examples/decompose"] == [["0", "8"]]


def test_without_rl_on_stages_their_groups_only_teach():
    recipe = cog_rethinker(rl_on_stages="none")
    kept, targets, _ = routed([[NO, ONE, NO], [ONE, NO, NO]], recipe)
    assert kept == ["p1/direct"]
    assert targets == {"p0/decompose": 1}
    batch = from_groups(rolled([[NO, ONE, NO]], replace(recipe.rollout, group_size=4))[0])
    assert recipe.selection(batch, 1).short


# --- advantage and losses --------------------------------------------------------------------------------------------
def test_stage_groups_are_normalised_apart():
    groups, _, _ = rolled([[NO, ONE, NO]])
    a = GroupAdvantage()(from_groups(groups, torch.float64))
    assert a[:4].tolist() == [0, 0, 0, 0]
    assert a[4:8].tolist() == pytest.approx([1.499997, -0.499999, -0.499999, -0.499999], abs=1e-6)
    assert float(a[8]) == 0


def losses(recipe):
    """The terms for the two responses of the sheet and one target of four tokens, and the gradient of each row."""
    ratios = [[1.0, 1.25, 1.35], [0.9, 0.7]]
    group = Group(
        "g", Prompt("p"), [Trajectory(str(i), [segment([1] * len(r), [5])], reward=0.0) for i, r in enumerate(ratios)]
    )
    sampled = segment([1, 2, 3, 4], [6])
    sampled.logp[:] = SAMPLED_LOGP
    group.trajectories.append(resampled_target("t", sampled, np.array([5]), sampled.response))
    batch = from_groups([group], torch.float64)
    advantage = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    batch = replace(batch, advantage=batch.to_rows(advantage))
    logp = batch.logp_old.clone()
    for i, r in enumerate(ratios):
        logp[i, : len(r)] += torch.tensor(r, dtype=torch.float64).log()
    logp[2] = torch.tensor([-1.9, -0.8, -0.2, -0.3])
    logp.requires_grad_()
    terms = recipe.loss(Scores(logp), batch).terms
    torch.stack(list(terms.values())).sum().backward()
    return {k: float(v.detach()) for k, v in terms.items()}, logp.grad


def test_token_mean_losses_and_their_sum():
    terms, grad = losses(cog_rethinker())
    assert terms["policy"] == pytest.approx(-0.366000, abs=1e-6)
    assert terms["imitation"] == pytest.approx(0.1 * 0.800000, abs=1e-6)
    assert sum(terms.values()) == pytest.approx(-0.286000, abs=1e-6)
    assert grad[0, 2] == 0
    assert grad[1, 1] == 0
    assert (grad[0, :2] != 0).all()
    assert grad[2].tolist() == pytest.approx([-0.1 / 4] * 4)


def test_targets_are_scored_by_what_they_are_trained_under():
    """−logp under the direct prompt is 0.8 a token; the probabilities it was sampled with would give 0.3."""
    assert -np.mean(SAMPLED_LOGP) == pytest.approx(0.3)
    terms, _ = losses(cog_rethinker(imitation_coef=1.0))
    assert terms["imitation"] == pytest.approx(0.8, abs=1e-6)


def test_without_stages_and_lambda_it_is_dapo_to_the_bit():
    ours = cog_rethinker(decompose=False, reflect=False, imitation_coef=0.0)
    base = dapo(max_rounds=3)
    base = replace(base, reward=VerifierReward())
    one, two = lock_loop(ours), lock_loop(base)
    for _ in range(3):
        assert one.step() == two.step()
    assert torch.equal(one.world.policy.module.logits, two.world.policy.module.logits)


def test_lambda_zero_gives_the_loss_of_dapo_also_with_targets_in_the_batch():
    ours, base = losses(cog_rethinker(imitation_coef=0.0)), losses(dapo())
    assert ours[0] == base[0]
    assert torch.equal(ours[1], base[1])


def test_targets_alone_are_a_step_and_nothing_at_all_is_none():
    loop = lock_loop(cog_rethinker(group_size=4))
    before = loop.world.policy.module.logits.detach().clone()
    loop.world.task.score = lambda prompt, response, text: Score(0.0, False)
    log = loop.step()
    assert log["updates"] == 0
    assert torch.equal(before, loop.world.policy.module.logits)
    calls = []

    def right_when_asked_again(prompt, response, text):
        calls.append(prompt.id)
        return Score(1.0, True) if calls.count(prompt.id) > 4 else Score(0.0, False)

    loop = lock_loop(cog_rethinker(group_size=4), prompts=4)
    loop.world.task.score = right_when_asked_again
    loop.recipe = replace(loop.recipe, reward=KnownVerdicts())
    log = loop.step()
    assert log["updates"] == 1
    assert log["loss/policy"] == 0
    assert log["loss/imitation"] > 0
    assert log["accuracy/direct"] == 0
    assert log["accuracy/decompose"] == 1
    assert all(np.isfinite(list(log.values())))
    assert not torch.equal(before, loop.world.policy.module.logits)


class KnownVerdicts:
    """The verdicts that the rollout has found."""

    needs = Needs(labels=True)

    def __call__(self, world, groups):
        for t in (t for g in groups for t in g.trajectories):
            t.reward, t.rewards = float(t.correct), {"task": float(t.correct)}


# --- retrieval and buffers -------------------------------------------------------------------------------------------
def test_bm25():
    assert bm25("sum of primes", DOCUMENTS) == pytest.approx([1.693214, 0.142705, 0.591173], abs=1e-6)
    assert bm25("SUM of\nprimes", DOCUMENTS) == bm25("sum of primes", DOCUMENTS)
    once, twice = bm25("sum", DOCUMENTS), bm25("sum sum", DOCUMENTS)
    assert twice == pytest.approx([2 * x for x in once])
    assert bm25("sum", []) == []


def test_retrieval_leaves_out_the_question_itself_and_prefers_the_newer():
    buffer = [[d, str(i)] for i, d in enumerate(DOCUMENTS)]
    assert [a for _, a in retrieve(buffer, "sum of primes", 2)] == ["0", "2"]
    assert [a for _, a in retrieve(buffer, DOCUMENTS[0], 2)] == ["2", "1"]
    assert [a for _, a in retrieve([["x", "old"], ["x", "new"]], "y", 1)] == ["new"]
    assert retrieve([["x", "a"]], "x", 2) == []
    assert retrieve([], "x", 2) == []


def test_one_entry_a_rescued_prompt_its_shortest_first_in_first_out():
    script = [[NO, ALL, NO], [NO, ONE, NO], [NO, NO, ALL]]
    _, _, world = rolled(script, FallbackRollout(4, capacity=1), lengths=(3, 2, 1, 4))
    assert world.memory == {"examples/decompose": [["1", "8 8 8"]], "examples/reflect": [["2", "8"]]}


def test_examples_are_those_of_earlier_rollouts_and_never_the_prompt_itself():
    here = Scripted([[NO, ONE, NO], [NO, ONE, NO]])
    world, rollout = here.world(), FallbackRollout(4)
    rollout(world, here.train, torch.Generator())
    assert here.examples == []
    rollout(world, here.train[:1], torch.Generator())
    assert here.examples == [("1", "8")]


def test_texts_are_worded_with_examples_that_fit_and_without_the_answer():
    here = Scripted([[NO, NO, NO]], texts=True)
    here.reask = None
    here.train = [replace(here.train[0], answer="the-gold-answer")]
    contexts = []

    def generate(requests, sampling, generator, version=0):
        contexts.extend("".join(map(chr, r.context)) for r in requests)
        return [[(segment([9], r.context.tolist()), "eos")] * 4 for r in requests]

    here.generate = generate
    world = replace(
        here.world(), task=type("Task", (), {"score": staticmethod(here.score), "name": "t", "train": here.train})()
    )
    FallbackRollout(4)(world, here.train, torch.Generator().manual_seed(0))
    direct, parts, wrong = contexts
    assert direct == "What is 1 + 1?"
    assert parts == worded("decompose", "What is 1 + 1?", None, [WRITTEN["decompose"]])
    assert wrong == worded("reflect", "What is 1 + 1?", "9", [WRITTEN["reflect"]])
    assert "Wrong solution: 9" in wrong
    assert "the-gold-answer" not in "".join(contexts)
    assert world.memory["examples/decompose"] == [list(WRITTEN["decompose"])]
    contexts.clear()
    here.context_length = len(worded("decompose", "What is 1 + 1?", None, [])) + 8
    FallbackRollout(4)(world, here.train, torch.Generator().manual_seed(0))
    assert contexts == [direct, worded("decompose", "What is 1 + 1?", None, [])]


def test_an_empty_buffer_gives_a_prompt_without_examples():
    text = worded("decompose", "What is 2 + 2?", None, [])
    assert text.endswith("\n\nProblem: What is 2 + 2?")
    assert text.count("Problem:") == 1


def test_buffers_are_in_the_checkpoint_and_a_resumed_run_ends_with_the_same_bits(tmp_path):
    settings = {"task": "tabular-lock:prompts=12,low=0.0,high=2.0", "steps": 6, "checkpoint_every": 2, "trackers": ()}
    whole = training.train("cog-rethinker", out=tmp_path / "whole", quiet=True, **settings)
    training.train("cog-rethinker", out=tmp_path / "cut", quiet=True, **(settings | {"steps": 4}))
    state = json.loads((tmp_path / "cut/checkpoints/000004/state.json").read_text())["loop"]["memory"]
    assert any(state.values())
    again = training.resume(tmp_path / "cut", steps=6, quiet=True)
    assert [r for r in again.rows if r.get("event") != "eval"] == [r for r in whole.rows if r.get("event") != "eval"]
    assert torch.equal(again.policy.module.logits, whole.policy.module.logits)
    final = [
        json.loads((tmp_path / run / "checkpoints/000006/state.json").read_text())["loop"] for run in ("whole", "cut")
    ]
    assert final[0] == final[1]


# --- what it cannot work with ----------------------------------------------------------------------------------------
def test_token_prompts_need_a_task_that_words_them():
    loop = lock_loop(compose("grpo").recipe)
    bare = type("Task", (), {"name": "bare", "train": loop.world.task.train})()
    with pytest.raises(InputError, match="reask"):
        GroupLoop(cog_rethinker(), replace(loop.world, task=bare), prompts=2, micro_tokens=99, reference=None)


def test_rewards_that_must_not_see_the_answers_are_refused():
    class LabelFree:
        needs = Needs()

    with pytest.raises(InputError, match="LabelFree must not see"):
        check(replace(cog_rethinker(), reward=LabelFree()), 8)


@pytest.mark.parametrize(("knob", "value"), [("imitation_coef", -1.0), ("examples", -1), ("kept", -1), ("capacity", 0)])
def test_settings_that_cannot_be(knob, value):
    with pytest.raises(InputError, match=knob):
        cog_rethinker(**{knob: value})


def test_samplers_learn_from_direct_groups_only():
    loop = lock_loop(compose("cog-rethinker+vade.sampler").recipe)
    seen = []
    loop.order.observe = seen.extend
    groups = loop.sample(0)
    assert {g.stage for g in seen} == {"direct"}
    assert {g.stage for g in groups} > {"direct"}
