"""Worked numbers of the paper (arXiv 2406.19185, eq. 7–9, 18–19, 34–38) in float64, and the identities of CoPG."""

import json
import math
from dataclasses import replace

import pytest
import torch
import yaml

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.methods.language.copg import (
    ContrastiveLoss,
    Replay,
    copg,
    pair_squares,
    pair_weights,
    regularised_reward,
)
from anypolicy.parts.advantages import leave_one_out
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.table import TablePolicy
from anypolicy.stages.checks import check
from anypolicy.stages.recorded import RecordedRollout, recorded
from tests.helpers import batch_of, lock_loop, segment

BETA, R = 0.5, torch.tensor([2.5, 2.0, 1.0], dtype=torch.float64)
UNIFORM = -math.log(3)


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def bandit(*groups, ref=UNIFORM, rewards=R):
    """Responses of one token to a single prompt; one group per tuple of arms."""
    made = [
        Group(str(g), Prompt("x", tokens=(0,)), [
            Trajectory(f"{g}/{i}", [segment([y])], reward=float(rewards[y])) for i, y in enumerate(arms)
        ]) for g, arms in enumerate(groups)
    ]  # fmt: skip
    batch = from_groups(made, torch.float64)
    return replace(batch, logp_ref=torch.full_like(batch.logp_old, ref))


def logits_gradient(z, batch, beta=BETA):
    """What the policy ascends: minus the gradient of the loss with respect to the logits; and the metrics."""
    policy = TablePolicy(tensor(z)[None, None])
    terms, metrics = ContrastiveLoss(beta)(policy.score(batch, 1.0), batch)
    (-sum(terms.values())).backward()
    return policy.module.logits.grad.flatten(), metrics


def objective(z, pair, beta, detach=False):
    """The pair objective L as printed (eq. 7–9), with beta/2 and the gradient through it."""
    z = tensor(z).requires_grad_()
    logp = z.log_softmax(0)
    ratio = logp - UNIFORM
    y, other = pair
    weight = (R - beta / 2 * ratio)[y] - (R - beta / 2 * ratio)[other]
    value = (weight.detach() if detach else weight) * (ratio[y] - ratio[other])
    value.backward()
    return float(value.detach()), z.grad


def test_the_worked_pair_in_both_forms():
    value, want = objective((0.3, -0.2, 0.1), (0, 2), BETA)
    assert value == pytest.approx(0.29, abs=1e-12)
    got, _ = logits_gradient((0.3, -0.2, 0.1), bandit((0, 2)))
    assert got.tolist() == pytest.approx([1.4, 0, -1.4], abs=1e-12)
    assert got.tolist() == pytest.approx(want.tolist(), abs=1e-12)


def test_half_of_beta_and_detached_is_another_temperature():
    _, wrong = objective((0.3, -0.2, 0.1), (0, 2), BETA, detach=True)
    assert wrong.tolist() == pytest.approx([1.45, 0, -1.45], abs=1e-12)
    got, _ = logits_gradient((0.3, -0.2, 0.1), bandit((0, 2)))
    assert not torch.allclose(got, wrong)


def test_where_the_difference_of_rewards_is_that_of_the_log_ratios_nothing_moves():
    value, _ = objective((1.0, 0.0, -1.0), (1, 0), BETA)
    assert value == pytest.approx(0.25, abs=1e-12)
    got, metrics = logits_gradient((1.0, 0.0, -1.0), bandit((1, 0)))
    assert got.tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert float(metrics["pairs/square"]) == pytest.approx(0, abs=1e-12)


def test_from_the_reference_the_gradient_is_the_difference_of_rewards():
    assert objective((0.0, 0.0, 0.0), (0, 1), BETA)[0] == 0
    got, _ = logits_gradient((0.0, 0.0, 0.0), bandit((0, 1)))
    assert got.tolist() == pytest.approx([0.5, -0.5, 0], abs=1e-12)


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2), (2, 1)])
def test_at_the_optimum_every_pair_is_at_rest(pair):
    best = (R / BETA).log_softmax(0)
    assert best.exp().tolist() == pytest.approx([0.705385, 0.259496, 0.035119], abs=1e-6)
    value = regularised_reward(R, best, torch.full((3,), UNIFORM, dtype=torch.float64), BETA)
    assert value.tolist() == pytest.approx([2.125200] * 3, abs=1e-6)
    got, _ = logits_gradient(best.tolist(), bandit(pair, pair, (0, 2)))
    assert got.tolist() == pytest.approx([0, 0, 0], abs=1e-12)


def test_the_square_of_the_metric():
    _, metrics = logits_gradient((0.3, -0.2, 0.1), bandit((0, 2), (1, 2)))
    squares = [(1.5 - BETA * 0.2) ** 2, (1.0 + BETA * 0.3) ** 2]
    assert float(metrics["pairs/square"]) == pytest.approx(sum(squares) / 2 / (2 * BETA), abs=1e-12)
    x = tensor([1.0, 4.0, 2.0, 7.0, 7.0])
    group = torch.tensor([0, 0, 0, 1, 1])
    assert float(pair_squares(x, group, 0.5)) == pytest.approx(9 + 1 + 4)


def test_order_copies_and_equal_rewards():
    z = (0.3, -0.2, 0.1)
    there, back = logits_gradient(z, bandit((0, 2)))[0], logits_gradient(z, bandit((2, 0)))[0]
    assert torch.equal(there, back)
    assert not logits_gradient(z, bandit((1, 1)))[0].any()
    assert not logits_gradient((0.0, 0.0, 0.0), bandit((0, 1), rewards=torch.ones(3)))[0].any()


def test_of_groups_it_is_twice_rloo_on_the_regularised_reward():
    z, arms = (0.4, -0.3, 0.2), (0, 2, 1, 1, 0)
    got, _ = logits_gradient(z, bandit(arms, (1, 2, 2, 0, 1)))
    want = torch.zeros(3, dtype=torch.float64)
    logp = tensor(z).log_softmax(0)
    value = regularised_reward(R, logp, torch.full((3,), UNIFORM, dtype=torch.float64), BETA)
    for group in (arms, (1, 2, 2, 0, 1)):
        advantage = leave_one_out(value[list(group)], torch.zeros(5, dtype=torch.long))
        for y, a in zip(group, advantage, strict=True):
            want += 2 * a / 10 * (torch.eye(3, dtype=torch.float64)[y] - logp.exp())
    assert got.tolist() == pytest.approx(want.tolist(), abs=1e-12)


def test_with_rewards_of_a_quarter_and_minus_a_quarter_it_is_ipo():
    z = tensor([0.3, -0.2, 0.1]).requires_grad_()
    ratio = z.log_softmax(0) - UNIFORM
    (-((0.5 - BETA * (ratio[0] - ratio[1])) ** 2) / (2 * BETA)).backward()
    got, _ = logits_gradient((0.3, -0.2, 0.1), bandit((0, 1), rewards=tensor([0.25, -0.25, 0.0])))
    assert got.tolist() == pytest.approx(z.grad.tolist(), abs=1e-12)


def test_a_constant_changes_nothing_and_a_scale_scales():
    z = (0.3, -0.2, 0.1)
    plain = logits_gradient(z, bandit((0, 2, 1)))[0]
    shifted = logits_gradient(z, bandit((0, 2, 1), rewards=R + 7))[0]
    assert shifted.tolist() == pytest.approx(plain.tolist(), abs=1e-12)
    scaled = logits_gradient(z, bandit((0, 2, 1), rewards=3 * R), beta=3 * BETA)[0]
    assert scaled.tolist() == pytest.approx((3 * plain).tolist(), abs=1e-12)


def test_numbers_that_are_not_finite_drop_their_pairs_and_are_counted():
    batch = bandit((0, 2, 1))
    broken = replace(batch, logp_ref=torch.tensor([[UNIFORM], [UNIFORM], [-math.inf]], dtype=torch.float64))
    got, metrics = logits_gradient((0.3, -0.2, 0.1), broken)
    alone, _ = logits_gradient((0.3, -0.2, 0.1), bandit((0, 2)))
    assert got.tolist() == pytest.approx((alone / 3).tolist(), abs=1e-12)
    assert float(metrics["pairs/dropped"]) == 2
    lost = bandit((0, 2, 1), rewards=tensor([2.5, math.nan, 1.0]))
    got, metrics = logits_gradient((0.3, -0.2, 0.1), lost)
    assert got.tolist() == pytest.approx(alone.tolist(), abs=1e-12)
    assert float(metrics["pairs/dropped"]) == 0


def test_log_probabilities_are_summed_over_the_response_not_averaged():
    batch = batch_of([[1.0, 0.0]], [[3, 1]])
    batch = replace(batch, logp_ref=batch.logp_old - 0.1)
    logp = batch.logp_old.clone().requires_grad_()
    term = ContrastiveLoss(1.0)(Scores(logp), batch).terms["pairs"]
    term.backward()
    # R_β = 1 − 0.3 and 0 − 0.1
    assert -logp.grad[0] == pytest.approx(0.8)
    assert -logp.grad[1, 0] == pytest.approx(-0.8)


def test_a_group_is_never_split_and_rows_without_a_rival_cost_nothing():
    batch = batch_of([[1.0, 0.0, 0.0], [1.0, 0.5], [1.0]], [[2, 3, 1], [2, 2], [2]])
    batch = replace(batch, logp_ref=batch.logp_old)
    for size in (1, 7, 12, 100):
        parts = batch.chunks(size, whole_groups=True)
        assert sorted(torch.cat(parts).tolist()) == list(range(batch.rows))
        for g in range(3):
            rows = set((batch.group_id[batch.trajectory] == g).nonzero().flatten().tolist())
            assert sum(bool(rows & set(p.tolist())) for p in parts) == 1
    assert len(batch.chunks(1, whole_groups=True)) == 3
    assert ContrastiveLoss().active(batch).tolist() == [True] * 5 + [False]


def test_pairs_are_counted_over_the_whole_optimiser_batch():
    batch = batch_of([[1.0, 0.0, 0.0], [1.0, math.nan]])
    assert batch.counted().pairs == 3
    assert replace(batch, totals=batch.counted()).select(torch.tensor([0, 1])).counted().pairs == 3


# --- data of others ---------------------------------------------------------------------------------------------------
def scored_file(tmp_path, **change):
    rows = [
        {"prompt": f"say {n}", "responses": [f"{n}", "no", "maybe"], "scores": [1.0, 0.0, 0.25]} | change
        for n in range(4)
    ]
    path = tmp_path / "scored.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def test_scored_responses_from_a_file(tmp_path):
    knobs = {"copg": {"responses": "recorded"}}
    p = training.plan("copg", training.Settings(f"{scored_file(tmp_path)}:verifier=none", policy="unused"), knobs)
    assert recorded(p.task.train[0])[1] == ("no", 0.0)
    assert p.task.heldout == []
    assert training.plan_from(yaml.safe_load(yaml.safe_dump(p.written()))).recipe == p.recipe


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scores": [1.0]}, "one length"),
        ({"scores": [1.0, "good", 0.0]}, "finite"),
        ({"responses": ["a", "", "c"]}, "token ids"),
        ({"responses": ["a"], "scores": [1.0]}, "at least 2"),
    ],
)
def test_what_a_file_must_hold_is_checked_before_any_work(tmp_path, change, match):
    settings = training.Settings(f"{scored_file(tmp_path, **change)}:verifier=none", policy="unused")
    with pytest.raises(InputError, match=match):
        training.plan("copg", settings, {"copg": {"responses": "recorded"}})


def recorded_loop(**knobs):
    """The lock with recorded responses: the target and two wrong ones, scored."""
    loop = lock_loop(compose("copg", {"copg": {"responses": "recorded", "beta": 0.1} | knobs}).recipe)
    task = loop.world.task
    for n, prompt in enumerate(task.train):
        right = task.target[n].tolist()
        others = [[(t + k) % 8 for t in right] for k in (1, 2)]
        prompt.info.update(responses=[right, *others], scores=[1.0, 0.0, 0.0])
    return loop


def test_it_learns_from_responses_that_nobody_sampled():
    loop = recorded_loop()
    start = loop.world.task.probe(loop.world.policy)["success"]
    for _ in range(20):
        log = loop.step()
    assert loop.world.task.probe(loop.world.policy)["success"] > start + 0.3
    assert log["tokens/generated"] == 0
    assert log["tokens/trained"] == 2 * 8 * 3 * 3
    assert not {"ratio/mean", "kl/behaviour", "entropy/behaviour", "accuracy"} & log.keys()
    assert all(math.isfinite(x) for x in log.values())


def test_recorded_responses_are_drawn_without_repetition():
    loop = recorded_loop(group_size=2)
    groups = loop.sample(0)
    assert all(len({t.response.tobytes() for t in g.trajectories}) == 2 for g in groups)
    assert all(s.version.tolist() == [-1] * 3 for g in groups for t in g.trajectories for s in t.segments)


def test_a_loss_with_an_importance_ratio_refuses_them():
    recipe = replace(compose("grpo").recipe, rollout=RecordedRollout())
    with pytest.raises(InputError, match="nobody knows"):
        check(recipe, 8)


def test_replayed_groups_stand_beside_new_ones_and_survive_a_checkpoint():
    one, two = (lock_loop(copg(group_size=4, replay=12)) for _ in range(2))
    sizes = []
    for _ in range(3):
        batch, _ = one.collect()
        sizes.append(int(batch.group_id.max()) + 1)
        one.update(batch)
        one.steps += 1
    assert sizes == [8, 16, 20]
    two.restore(yaml.safe_load(yaml.safe_dump(one.state())), {k: v.clone() for k, v in one.updater.tensors().items()})
    assert one.step() == two.step()
    assert Replay(3)(batch_of([[0.0]] * 5), 2).replay.tolist() == [False, False, True, True, True]


def test_settings():
    with pytest.raises(InputError, match="beta"):
        copg(beta=0.0)
    assert copg().loss.beta == 0.06
    assert pair_weights(tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 1])).tolist() == [-2, 2, 0]


def test_one_prompt_with_responses_on_two_lines_is_an_error(tmp_path):
    rows = [{"prompt": "a", "responses": [x, "c"], "scores": [1, 0]} for x in ("b", "d")]
    path = tmp_path / "scored.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    with pytest.raises(InputError, match="on one line"):
        training.plan("copg", training.Settings(f"{path}:verifier=none"), {"copg": {"responses": "recorded"}})
