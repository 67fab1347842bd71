"""Worked numbers of the paper and its code (arXiv 2505.13417) in float64, and the identities of AdaptThink."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.base import Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.evaluation.language import evaluate
from anypolicy.loops.group import GroupLoop
from anypolicy.methods.language.adaptthink import Marks, adaptthink, advantage, choice_logp, shares
from anypolicy.parts.surrogate import product_ratio, sequence_ratio
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.table import TablePolicy
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.stages.common import Clip, PolicyLoss
from anypolicy.stages.recipe import World
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.digit_chain import END, EOS, EQUALS, START, DigitChain
from tests.helpers import LastTokenLock, batch_of, lock_loop, segment

NEW = [-9.2, -0.1, -0.2, -0.3, -0.05]
IDS = {"end_of_thinking": 0, "start_of_response": 1, "opening_of_thinking": None}


def made(**knobs):
    return compose("adaptthink", {"adaptthink": IDS | {"direct_limit": 1.0} | knobs}).recipe


def one_response(new, old, a):
    """A batch of one response with these log-probabilities and this advantage, and the new ones with gradients."""
    s = segment([1] * len(new))
    batch = from_groups([Group("g", Prompt("p"), [Trajectory("t", [s], reward=0.0)])], torch.float64)
    logp = torch.tensor([new], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([old], dtype=torch.float64)
    return replace(batch, logp_old=old, advantage=torch.full_like(old, a)), logp


def loss_of(recipe, new, old, a):
    batch, logp = one_response(new, old, a)
    value = recipe.loss(Scores(logp), batch).terms["policy"]
    value.backward()
    return float(value.detach()), logp.grad[0]


# --- advantage -------------------------------------------------------------------------------------------------------
def test_advantages_of_both_modes():
    got = [advantage(r, 11 / 16, thinks, 0.05) for thinks in (False, True) for r in (1, 0)]
    assert got == pytest.approx([0.362500, -0.637500, 0.312500, -0.687500], abs=1e-12)


def test_it_is_not_relative_to_the_group():
    assert [advantage(r, r, thinks, 0.05) for r in (1, 0) for thinks in (False, True)] == [0.05, 0, 0.05, 0]
    a = adaptthink().advantage(batch_of([[0.05, 0.05, 0.0, 0.0], [0.3, math.nan, 0.3, 0.3]]))
    assert a.tolist() == pytest.approx([0.05, 0.05, 0, 0, 0.3, 0, 0.3, 0.3])


@pytest.mark.parametrize(
    ("p", "direct", "thinking", "slope"),
    [(0.2, 0.9, 0.93, 0.003200), (0.2, 0.6, 0.9, -0.040000), (0.2, 0.9, 0.95, 0.0), (0.2, 0.0, 0.0, 0.008000)],
)
def test_tabular_gradient(p, direct, thinking, slope):
    z = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64, requires_grad=True)
    q = z.sigmoid()
    gain = q * advantage(direct, 0.4, False, 0.05) + (1 - q) * advantage(thinking, 0.4, True, 0.05)
    gain.backward()
    assert float(z.grad) == pytest.approx(slope, abs=1e-12)


# --- ratio and loss --------------------------------------------------------------------------------------------------
def test_sequence_ratio_and_losses_of_one_response():
    old = [math.log(0.5), *NEW[1:]]
    batch, logp = one_response(NEW, old, 1.0)
    assert float(sequence_ratio(logp, batch.logp_old, batch.mask)[0, 0].detach()) == pytest.approx(0.182433, abs=1e-6)
    value, grad = loss_of(made(), NEW, old, 0.3625)
    assert value == pytest.approx(-0.066132, abs=1e-6)
    assert grad[0] != 0
    value, grad = loss_of(made(), NEW, old, -0.6375)
    assert value == pytest.approx(0.510000, abs=1e-12)
    assert not grad.any()


def test_the_gradient_of_the_first_token_by_form_of_the_ratio():
    new = [-9.2, *[-0.1] * 399]
    old = [math.log(0.5), *new[1:]]
    batch, logp = one_response(new, old, 1.0)
    w = float(sequence_ratio(logp, batch.logp_old, batch.mask)[0, 0].detach())
    assert w == pytest.approx(0.978957, abs=1e-6)
    _, mean = loss_of(made(), new, old, 0.3625)
    _, token = loss_of(made(ratio="token"), new, old, 0.3625)
    assert float(mean[0]) == pytest.approx(-8.871802e-4, rel=1e-6)
    assert float(token[0]) == pytest.approx(-1.831339e-7, rel=1e-6)
    assert round(float(mean[0] / token[0])) == 4844


def test_the_product_ratio_is_the_unbiased_one():
    old = [math.log(0.5), *NEW[1:]]
    batch, logp = one_response(NEW, old, 1.0)
    w = math.exp(-9.2 - math.log(0.5))
    got = product_ratio(logp, batch.logp_old, batch.mask)
    assert got[0].tolist() == pytest.approx([w] * 5)
    value, grad = loss_of(made(ratio="product"), NEW, old, 0.3625)
    assert value == pytest.approx(-0.3625 * w, rel=1e-12)
    assert grad.tolist() == pytest.approx([-0.3625 * w] * 5, rel=1e-12)


@pytest.mark.parametrize(("tokens", "w"), [(1, 1.999800), (3, 1.259879), (30, 1.023370), (1200, 1.000578)])
def test_short_thinking_responses_are_clipped(tokens, w):
    new, old = [math.log(0.9999)] + [-1.0] * (tokens - 1), [math.log(0.5)] + [-1.0] * (tokens - 1)
    batch, logp = one_response(new, old, 1.0)
    assert float(sequence_ratio(logp, batch.logp_old, batch.mask)[0, 0].detach()) == pytest.approx(w, abs=1e-6)
    _, grad = loss_of(made(), new, old, 1.0)
    assert bool(grad.any()) == (w <= 1.2)


@pytest.mark.parametrize(("p", "least"), [(1e-2, 18), (1e-4, 39), (1e-6, 59)])
def test_smallest_length_at_which_a_negative_response_still_counts(p, least):
    def moves(tokens):
        new, old = [math.log(p)] + [-1.0] * (tokens - 1), [math.log(0.5)] + [-1.0] * (tokens - 1)
        return bool(loss_of(made(), new, old, -1.0)[1].any())

    assert moves(least)
    assert not moves(least - 1)


def test_without_forcing_and_bonus_it_is_reinforce_on_the_mean_log_likelihood():
    batch = batch_of([[1.0, 0.0, 1.0]], [[2, 5, 3]])
    baseline = 0.4
    batch = replace(batch, advantage=batch.to_rows(batch.reward - baseline))
    logp = batch.logp_old.clone().requires_grad_()
    made().loss(Scores(logp), batch).terms["policy"].backward()
    want = torch.zeros_like(logp)
    for i, (r, n) in enumerate(zip([1.0, 0.0, 1.0], [2, 5, 3], strict=True)):
        want[i, :n] = -(r - baseline) / n / 3
    torch.testing.assert_close(logp.grad, want)


def test_its_loss_is_the_sequence_ratio_of_the_shared_core():
    assert adaptthink().loss == PolicyLoss(Clip(0.2, 0.2), ratio="sequence")
    assert adaptthink(ratio="token").loss.aggregation == "token-mean"
    with pytest.raises(InputError, match="did you mean 'product'"):
        adaptthink(ratio="produkt")


# --- rollout ---------------------------------------------------------------------------------------------------------
def test_shares_of_the_modes():
    assert shares(16, 0.5) == (8, 8)
    assert [shares(n, 0.5)[0] for n in (5, 7, 3)] == [2, 4, 2]
    assert all(sum(shares(n, s)) == n for n in range(1, 20) for s in (0.0, 0.3, 0.5, 1.0))
    assert shares(6, 0.0) == (0, 6)
    assert shares(6, 1.0) == (6, 0)


def test_a_mode_that_never_comes_has_a_large_finite_log_probability():
    assert choice_logp(0.0) == -1e9
    assert choice_logp(0.5) == math.log(0.5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_groups_of_both_modes(share):
    loop = lock_loop(made(share=share, group_size=6))
    for group in loop.sample(0):
        first = [int(t.response[0]) for t in group.trajectories]
        assert first == [0] * round(6 * share) + [1] * (6 - round(6 * share))
        for t in group.trajectories:
            [s] = t.segments
            assert s.mask.all()
            assert s.version.tolist() == [-1, 0, 0]
            assert float(s.logp[0]) == pytest.approx(math.log(share if t.response[0] == 0 else 1 - share))
    assert all(np.isfinite(list(loop.step().values())))


def test_responses_without_thinking_have_their_own_limit():
    policy = small_transformer(
        vocabulary=12, layers=1, width=16, heads=2, context_length=40, seed=0, eos_id=11, pad_id=10
    )
    world = World(policy, NativeEngine(policy), LastTokenLock(0), Sampling(16), 0)
    [group] = made(direct_limit=0.25).rollout(world, [Prompt("p", tokens=(3, 4))], torch.Generator().manual_seed(0))
    lengths = [len(t.response) for t in group.trajectories]
    assert max(lengths[:8]) == 4
    assert max(lengths[8:]) > 4
    world = replace(world, sampling=Sampling(1))
    [group] = made(direct_limit=0.25).rollout(world, [Prompt("p", tokens=(3, 4))], torch.Generator().manual_seed(0))
    assert [t.response.tolist() for t in group.trajectories] == [[0]] * 8 + [[1]] * 8


def test_forced_tokens_keep_their_probability_when_log_probabilities_are_computed_again():
    loop = lock_loop(made())
    batch, _ = loop.collect()
    scores = loop.scores(batch, loop.world.policy)
    again = loop.rescored(batch, Scores(scores.logp + 0.125))
    assert torch.equal(again.logp_old[:, 0], batch.logp_old[:, 0])
    assert torch.equal(again.logp_old[:, 1:], scores.logp[:, 1:] + 0.125)


# --- reward ----------------------------------------------------------------------------------------------------------
def test_what_follows_the_end_of_thinking():
    loop = lock_loop(made())
    reward = loop.recipe.reward
    read = [reward.read(loop.world, np.array(r)) for r in ([0, 5, 6], [1, 4, 0, 6], [1, 0])]
    assert [r.tolist() for r in read] == [[5, 6], [6], []]
    assert reward.read(loop.world, np.array([1, 4])) is None


def test_exactly_one_end_and_no_new_opening():
    loop = lock_loop(made())
    reward = replace(loop.recipe.reward, marks=Marks(0, 1, 2))
    loop.world.task.score = lambda prompt, response, text: Score(1.0, True)
    responses = [[0, 5, 6], [1, 0, 6], [1, 5, 6], [0, 0, 6], [1, 2, 0]]
    got = reward.scores(loop.world, Prompt("p", tokens=(0,)), [np.array(r) for r in responses])
    assert [s.reward for s in got] == [1, 1, 0, 0, 0]
    assert [s.correct for s in got] == [True, True, False, False, False]


def test_reward_is_the_advantage_in_named_parts():
    loop = lock_loop(made(bonus=0.25))
    groups = loop.sample(0)
    means = loop.world.memory["reference_mean"]
    assert set(means) == {g.prompt.id for g in groups}
    assert len(set(means.values())) > 1
    for g in groups:
        for t in g.trajectories:
            assert t.rewards["reference"] == -means[g.prompt.id]
            assert t.rewards["bonus"] == (0.25 if t.response[0] == 0 else 0.0)
            assert t.rewards["task"] == float(t.correct)
            assert t.reward == pytest.approx(sum(t.rewards.values()))


def test_the_reference_answers_once_a_prompt_freely_and_stays_the_first_policy():
    loop = lock_loop(made(reference_samples=5), prompts=16)
    asked = []
    generate = loop.world.reference.generate

    def counted(requests, *rest):
        asked.extend(requests)
        return generate(requests, *rest)

    loop.world.reference.generate = counted
    start = loop.world.policy.module.logits.detach().clone()
    for _ in range(3):
        loop.step()
    assert len(asked) == 16
    assert all(r.n == 5 and r.prefix == () for r in asked)
    assert torch.equal(loop.world.reference.policy.module.logits, start)
    assert not torch.equal(loop.world.policy.module.logits, start)


def test_measured_accuracies_are_in_the_state_and_again_the_same_with_the_same_seed():
    one, two = lock_loop(made(), seed=3), lock_loop(made(), seed=3)
    one.step()
    two.step()
    assert one.world.memory == two.world.memory
    state = one.state()
    assert state["memory"]["reference_mean"] == one.world.memory["reference_mean"]
    one.step()
    assert len(one.world.memory["reference_mean"]) > len(state["memory"]["reference_mean"])
    other = lock_loop(made(), seed=3)
    other.restore(state, {k: v.clone() for k, v in two.updater.tensors().items()})
    assert other.world.memory == state["memory"]


def test_a_users_reward_counts_in_response_and_reference():
    loop = lock_loop(made())
    world = replace(loop.world, reward_function=lambda prompt, texts: [0.5] * len(texts))
    loop = GroupLoop(loop.recipe, world, prompts=4, micro_tokens=999, reference=loop.reference.policy)
    for g in loop.sample(0):
        assert 0 <= loop.world.memory["reference_mean"][g.prompt.id] <= 0.5
        assert {t.rewards["task"] for t in g.trajectories} <= {0.0, 0.5}


# --- evaluation ------------------------------------------------------------------------------------------------------
class Says:
    """An engine that gives these responses."""

    def __init__(self, responses):
        self.responses = responses

    def generate(self, requests, sampling, generator, version=0):
        return [[(segment(r), "eos")] for r in self.responses]


CHAIN = [(START, 7, 2, END, 2, EOS), (END, 2, EOS), (END, 6, END, 2, EOS), (2, EOS), (START, EQUALS, END, 2, EOS),
         (END, 3, EOS), (END, 2)]  # fmt: skip


def test_held_out_answers_are_read_as_training_reads_them():
    task, policy = DigitChain(0, prompts=1, heldout=1), TablePolicy(torch.zeros(1, 1, 15))
    prompt = Prompt("p", tokens=(7, 5, EQUALS), answer=2)
    marks = {"end_of_thinking": END, "start_of_response": START, "opening_of_thinking": EQUALS}
    reward = adaptthink(**marks).reward
    world = World(policy, Says(CHAIN), task, Sampling(6), 0)
    trained = [s.correct for s in reward.scores(world, prompt, [np.array(r) for r in CHAIN])]
    task.probe = lambda policy: {}
    log, samples = evaluate(world, [prompt] * len(CHAIN), reward=reward)
    assert [s["correct"] for s in samples] == trained == [True, True] + [False] * 5
    assert log["eval/accuracy"] == 2 / 7
    assert [task.score(prompt, np.array(r), "").correct for r in CHAIN] == trained


def test_a_task_that_does_not_know_thinking_is_given_what_follows_it():
    loop = lock_loop(made())
    reward, asked = replace(loop.recipe.reward, marks=Marks(0, 1, 2)), []
    loop.world.task.score = lambda prompt, response, text: Score(1.0, bool(asked.append(response.tolist()) or True))
    world = replace(loop.world, engine=Says([[1, 4, 0, 6], [0, 5, 6], [1, 5, 6], [0, 0, 6], [1, 2, 0]]))
    _, samples = evaluate(world, [Prompt("p", tokens=(0,))] * 5, reward=reward)
    assert asked == [[6], [5, 6]]
    assert [s["correct"] for s in samples] == [True, True, False, False, False]
    assert [s["length"] for s in samples] == [4, 3, 3, 3, 3]


# --- names of tokens -------------------------------------------------------------------------------------------------
def test_tokens_by_text_or_id():
    with pytest.raises(InputError, match="give the id"):
        Marks().ids(TablePolicy(torch.zeros(1, 1, 4)))
    assert Marks(7, 3, None).ids(TablePolicy(torch.zeros(1, 1, 4))) == [7, 3]
    world = lock_loop(compose("grpo").recipe).world
    with pytest.raises(InputError, match="give the id"):
        GroupLoop(adaptthink(), world, prompts=2, micro_tokens=99, reference=world.policy)


@pytest.mark.parametrize(("knob", "value"), [("share", 1.5), ("direct_limit", -0.1), ("reference_samples", 0)])
def test_settings_that_cannot_be(knob, value):
    with pytest.raises(InputError, match=knob):
        adaptthink(**{knob: value})
