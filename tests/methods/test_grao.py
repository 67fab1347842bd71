"""Worked numbers (arXiv 2508.07750, eq. 3–4; β 0.5, λ 0.6) in float64, and the identities of GRAO."""

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
from anypolicy.families.language import Settings, plan
from anypolicy.loops.group import GroupLoop
from anypolicy.methods.language.grao import AlignmentLoss, ComparedAdvantage, ComparedReward, ReferenceRollout, grao
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.load import load_policy
from anypolicy.stages.common import VerifierReward
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import World
from anypolicy.tasks.language.load import load_task
from tests.helpers import lock_loop, segment

L_O, L_Y = (-0.5, -1.0, -0.8, -1.2), -2.0
LENGTHS = (3, 1, 2, 4, 5)
OUTPUTS, BOTH = ComparedAdvantage("outputs"), ComparedAdvantage()


def batch_of(*rewards, reference=True, lengths=LENGTHS):
    """One group per list of rewards: responses, then the reference, with ragged lengths."""
    groups = []
    for g, row in enumerate(rewards):
        own = [Trajectory(f"{i}", [segment([1] * n, [g])], reward=r) for i, (r, n) in enumerate(zip(row, lengths))]
        target = [Trajectory("y", [segment([2] * lengths[-1], [g])], target=True)] if reference else []
        groups.append(Group(str(g), Prompt(str(g)), own + target))
    return from_groups(groups, torch.float64)


def outcome(batch, stage=BOTH, loss=None, mean=(*L_O, L_Y)):
    """Advantages, loss terms, and the coefficient on each row's mean log-probability (−∂loss/∂L)."""
    loss, a = loss or AlignmentLoss(), stage(batch)
    batch = replace(batch, advantage=batch.to_rows(a))
    # token log-probabilities of every row with the given mean
    t = torch.arange(batch.response.shape[1], dtype=torch.float64)
    n = batch.valid.sum(1, keepdim=True)
    each = torch.tensor(mean, dtype=torch.float64).repeat(batch.rows // len(mean))[:, None]
    logp = torch.where(batch.valid, each + 0.01 * (t - (n - 1) / 2), 0).requires_grad_()
    terms = loss(Scores(logp), batch).terms
    sum(terms.values()).backward()
    return a, {k: float(v.detach()) for k, v in terms.items()}, -logp.grad.sum(1)


CASES = [
    # rewards, statistics, A_i, A_y, loss, coefficients on L(o_i), on L(y)
    ([-1.0] * 4, BOTH, [-0.499999] * 4, 1.999995, 1.899995, [-0.2] * 4, 1.299997),
    ([1.0, -1, 0, -1], BOTH, [1.603565, -1.069044, 0.267261, -1.069044], 0.267261, -0.187083,
     [0.641426, -0.427617, 0.106904, -0.427617], 0.173720),
    ([1.0, -1, 0, -1], OUTPUTS, [1.507555, -0.904533, 0.301511, -0.904533], 0.301511, -0.096484,
     [0.603022, -0.361813, 0.120604, -0.361813], 0.150755),
    ([1.0] * 4, BOTH, [0.499999] * 4, -1.999995, -1.899995, [0.2] * 4, -1.299997),
    ([0.0] * 4, BOTH, [0.0] * 4, 0.0, 0.0, [0.0] * 4, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("rewards", "stage", "a_o", "a_y", "loss", "on_o", "on_y"), CASES)
def test_worked_numbers(rewards, stage, a_o, a_y, loss, on_o, on_y):
    a, terms, coefficients = outcome(batch_of(rewards), stage)
    assert a.tolist() == pytest.approx([*a_o, a_y], abs=1e-6)
    assert sum(terms.values()) == pytest.approx(loss, abs=2e-6)
    assert coefficients.tolist() == pytest.approx([*on_o, on_y], abs=2e-6)


def test_the_three_terms_of_a_group_that_loses_altogether():
    _, terms, _ = outcome(batch_of([-1.0] * 4))
    assert terms["exploration"] == pytest.approx(-0.437499, abs=1e-6)
    assert terms["imitation"] == pytest.approx(1.999995, abs=2e-6)
    assert terms["alignment"] == pytest.approx(0.337499, abs=1e-6)


@pytest.mark.parametrize("g", [4, 8])
def test_all_losing_groups_imitate_by_the_root_of_their_size(g):
    a = BOTH(batch_of([-1.0] * g, lengths=(1,) * (g + 1)))
    assert a[:g].tolist() == pytest.approx([-1 / math.sqrt(g)] * g, abs=2e-6)
    assert float(a[g]) == pytest.approx(math.sqrt(g), abs=1e-5)
    if g == 8:
        assert a[7:].tolist() == pytest.approx([-0.353552, 2.828418], abs=1e-6)


def test_over_the_responses_alone_the_references_advantage_is_clipped():
    assert OUTPUTS(batch_of([-1.0] * 4)).tolist() == [0, 0, 0, 0, 5]
    assert OUTPUTS(batch_of([1.0] * 4)).tolist() == [0, 0, 0, 0, -5]
    assert not OUTPUTS(batch_of([0.0] * 4)).any()


def test_the_coefficient_on_the_reference_is_its_advantage_times_beta_plus_lambda_over_g():
    for rewards in ([1.0, -1, 0, -1], [-1.0, -1, -1, 0], [1.0, 1, 0, 1]):
        a, _, coefficients = outcome(batch_of(rewards), loss=AlignmentLoss(0.7, 0.3))
        assert float(coefficients[4]) == pytest.approx(float(a[4]) * (0.7 + 0.3 / 4), abs=1e-12)
        assert coefficients[:4].tolist() == pytest.approx((1.3 * a[:4] / 4).tolist(), abs=1e-12)


def test_without_beta_and_lambda_it_is_reinforce_and_with_a_unit_advantage_sft_is_added():
    batch = batch_of([1.0, -1, 0, -1])
    a, terms, coefficients = outcome(batch, loss=AlignmentLoss(0.0, 0.0))
    assert coefficients.tolist() == pytest.approx([*(a[:4] / 4).tolist(), 0])
    assert terms["imitation"] == terms["alignment"] == 0
    batch = replace(batch, advantage=batch.target.double())
    logp = torch.full_like(batch.logp_old, -2.0).requires_grad_()
    sum(AlignmentLoss(0.5, 0.0)(Scores(logp), batch).terms.values()).backward()
    assert torch.allclose(logp.grad, -0.5 / 5 * batch.target.double())


def test_prompts_count_alike_and_one_without_a_reference_has_no_part_of_it():
    rewards = [1.0, -1, 0, -1]
    _, one, on_one = outcome(batch_of(rewards))
    _, two, on_two = outcome(batch_of(rewards, rewards))
    assert sum(two.values()) == pytest.approx(sum(one.values()), abs=1e-12)
    assert torch.allclose(on_two, on_one.repeat(2) / 2)
    bare = batch_of([1.0, 0, 0, 1], reference=False)
    a, terms, coefficients = outcome(bare, mean=L_O)
    assert a.tolist() == pytest.approx([1, -1, -1, 1], abs=3e-6)
    assert coefficients.tolist() == pytest.approx((1.6 * a / 4).tolist(), abs=1e-12)
    assert "imitation" not in terms
    with_y = batch_of(rewards)
    mixed = from_groups(
        [Group(str(g), Prompt(str(g)), [Trajectory(f"{i}", [segment([1] * n, [g])], reward=r, target=i == 4)
                                        for i, (r, n) in enumerate(zip([*rewards, math.nan][:4 + g], LENGTHS))])
         for g in (0, 1)], torch.float64)  # fmt: skip
    mixed = replace(mixed, advantage=mixed.to_rows(BOTH(mixed)))
    logp = torch.full_like(mixed.logp_old, -1.0).requires_grad_()
    sum(AlignmentLoss()(Scores(logp), mixed).terms.values()).backward()
    assert torch.allclose(-logp.grad.sum(1)[:4], 1.6 * BOTH(mixed)[:4] / 4 / 2)
    assert torch.allclose(-logp.grad.sum(1)[4:], outcome(with_y)[2] / 2, atol=1e-6)


def test_empty_and_aborted_responses_are_left_out_of_their_group():
    rewards, lengths = [1.0, -1, 0, -1, 1], (3, 1, 2, 4, 0, 5)
    empty = batch_of(rewards, lengths=lengths)
    aborted = batch_of([*rewards[:4], math.nan], lengths=(3, 1, 2, 4, 1, 5))
    for batch in (empty, aborted):
        a, terms, coefficients = outcome(batch, mean=(*L_O, 0.0, L_Y))
        assert a.tolist() == pytest.approx([1.603565, -1.069044, 0.267261, -1.069044, 0, 0.267261], abs=1e-6)
        assert sum(terms.values()) == pytest.approx(-0.187083, abs=1e-6)
        assert coefficients[4:].tolist() == pytest.approx([0, 0.173720], abs=1e-6)


def test_rows_without_a_part_cost_nothing_but_the_reference_stays():
    batch = batch_of([0.0] * 4, [1.0, -1, 0, -1], [-1.0] * 4)
    active = AlignmentLoss().active(replace(batch, advantage=batch.to_rows(BOTH(batch))))
    assert active.tolist() == [False] * 5 + [True] * 10
    batch = batch_of([0.5, -0.5, 1, -1])
    a = BOTH(batch)
    assert float(a[4]) == 0
    assert AlignmentLoss().active(replace(batch, advantage=batch.to_rows(a))).all()


def test_reused_batches_can_weigh_the_gradient_by_the_ratio():
    batch = batch_of([1.0, -1, 0, -1])
    batch = replace(batch, advantage=batch.to_rows(BOTH(batch)))
    grads = []
    for reuse in (False, True):
        logp = (batch.logp_old + math.log(1.1)).requires_grad_()
        sum(AlignmentLoss(reuse_ratio=reuse)(Scores(logp), batch).terms.values()).backward()
        grads.append(logp.grad)
    own = batch.mask
    assert torch.allclose(grads[1][own], 1.1 * grads[0][own])
    assert torch.allclose(grads[1][batch.target], grads[0][batch.target])


def test_the_reward_is_the_sign_of_the_difference():
    loop = lock_loop(grao(group_size=4))
    world = loop.world
    target, wrong = loop.world.task.train[0].reference, (0, 0, 0)
    assert target != wrong
    for reference, want in ((target, [0, -1]), (wrong, [1, 0]), (None, [1, 0])):
        prompt = replace(world.task.train[0], reference=reference)
        group = Group("g", prompt, [Trajectory(str(i), [segment(list(r))]) for i, r in enumerate((target, wrong))])
        ComparedReward()(world, [group])
        assert [t.reward for t in group.trajectories] == want
        assert [t.correct for t in group.trajectories] == [True, False]
    ours = replace(
        world, reward_function=lambda prompt, texts: [float(len(t) + 10 * (i == 2)) for i, t in enumerate(texts)]
    )
    group.prompt = replace(prompt, reference=target)
    ComparedReward()(ours, [group])
    assert [t.reward for t in group.trajectories] == [-1, -1]
    assert not ComparedReward(type("Free", (), {"needs": Needs()})()).needs.labels


def test_the_reference_stands_beside_the_group():
    loop = lock_loop(grao(group_size=3))
    groups = loop.sample(0)
    assert [len(g.trajectories) for g in groups] == [4] * 8
    for g in groups:
        (y,) = g.targets
        assert tuple(y.response.tolist()) == g.prompt.reference
        assert np.isnan(y.reward)
    batch, log = loop.collect()
    assert log["target/groups"] == 1
    assert batch.target.any(1).sum() == 8


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="reference"):
        plan("grao", Settings("tabular-lock"))
    loop = lock_loop(grao())
    loop.world.task.train[:] = [replace(p, reference=()) for p in loop.world.task.train]
    with pytest.raises(InputError, match="reference"):
        loop.step()


def test_defaults():
    recipe = grao()
    assert recipe.rollout == ReferenceRollout(8)
    assert recipe.reward == ComparedReward(VerifierReward())
    assert recipe.loss == AlignmentLoss(0.5, 0.6)
    assert (recipe.optimiser.lr, recipe.optimiser.weight_decay, recipe.optimiser.grad_clip) == (1e-6, 0.01, 1.0)
    assert not recipe.loss.needs.reference


def test_a_text_task_end_to_end(tmp_path):
    """Nobody is right at first, so the references are imitated: their likelihood rises."""
    rows = [{"prompt": f"{i}+1=", "answer": i + 1, "shown": f"{i + 1}"} for i in range(8)]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(r) for r in rows))

    def judge(prompt, texts):
        return [-min(len(t), 9.0) + 10 * (t == prompt.reference) for t in texts]

    task = load_task(f"{tmp_path}/p.jsonl:reference=shown,max_tokens=8")
    policy = load_policy("transformer:layers=1,width=16,heads=2,context=40")
    world = World(policy, NativeEngine(policy), task, Sampling(8), 0, reward_function=judge)
    recipe = grao(group_size=4)
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, lr=0.01))
    loop = GroupLoop(recipe, world, prompts=4, micro_tokens=60, reference=None)
    logs = [loop.step() for _ in range(12)]
    assert logs[0]["reward/mean"] == -1
    likelihood = [log["loss/imitation"] for log in logs]
    assert likelihood[0] > 4
    assert likelihood[-1] < 0.6 * likelihood[0]
