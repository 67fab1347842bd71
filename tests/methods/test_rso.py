"""RSO: the rejection sampler against its worked numbers and its law, the losses, and the method on real batches."""

import math
from dataclasses import replace

import pytest
import torch

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.methods.preference.dpo import Sigmoid, dpo
from anypolicy.methods.preference.rso import Hinge, RejectionPairs, candidates, loss_of, rso
from anypolicy.parts.pairing import make_pairs
from anypolicy.parts.rejection import acceptance, pointwise, rejection_sample, tilted, without_order
from anypolicy.runs.seeds import generator
from anypolicy.stages.pairs import MakePairs, Pair, Responses
from anypolicy.tasks.language.load import load_task
from tests.helpers import lock_loop, segment

R, BETA = [1.0, 0.5, 0.0, -1.0], 0.5
OPTIMAL = [0.657233, 0.241783, 0.088947, 0.012038]


def uniforms(seed):
    rng = generator(seed, "uniforms")
    return lambda: float(torch.rand((), generator=rng, dtype=torch.float64))


def given(*numbers):
    """These numbers, in order; asking for one more is an error."""
    left = iter(numbers)
    return lambda: next(left)


# --- the sampler -----------------------------------------------------------------------------------------------------
def test_acceptance_and_the_optimal_policy():
    assert acceptance(R, BETA) == pytest.approx([1, 0.367879, 0.135335, 0.018316], abs=5e-7)
    assert sum(acceptance(R, BETA)) / 4 == pytest.approx(0.380383, abs=5e-7)
    prior = torch.full((4,), 0.25, dtype=torch.float64)
    assert tilted(prior, torch.tensor(R, dtype=torch.float64), BETA).tolist() == pytest.approx(OPTIMAL, abs=5e-7)


def test_independent_draws_with_a_fixed_maximum_are_the_optimal_policys():
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randint(4, (600_000,), generator=rng)
    accept = torch.rand(600_000, generator=rng, dtype=torch.float64) < torch.tensor(acceptance(R, BETA))[drawn]
    kept = drawn[accept][:200_000]
    assert len(kept) == 200_000
    assert (torch.bincount(kept) / 200_000).tolist() == pytest.approx(OPTIMAL, abs=0.004)


def test_draws_from_many_candidates_are_the_optimal_policys():
    prior, counts = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.zeros(4)
    want = tilted(prior, torch.tensor(R), BETA)
    for seed in range(150):
        drawn = torch.multinomial(prior, 400, True, generator=generator(seed, "candidates")).tolist()
        for i in rejection_sample([R[k] for k in drawn], BETA, 20, uniforms(seed)):
            counts[drawn[i]] += 1
    assert (counts / 3000).tolist() == pytest.approx(want.tolist(), abs=0.03)


def test_the_worked_rounds():
    assert rejection_sample(R, BETA, 3, given(0.9, 0.5, 0.1, 0.5, 0.99)) == [0, 2, 1]
    assert acceptance([0.5, -1.0], BETA) == pytest.approx([1, 0.049787], abs=5e-7)
    assert rejection_sample(R, BETA, 4, given(0.9, 0.5, 0.1, 0.5, 0.99, 0.0498, 0.999)) == [0, 2, 1, 3]
    assert rejection_sample(R, BETA, 4, given(0.9, 0.5, 0.1, 0.5, 0.99, 0.0497)) == [0, 2, 1, 3]


def test_the_limits_of_beta():
    assert rejection_sample(R, 1e9, 3, uniforms(0)) == [0, 1, 2]
    assert rejection_sample(R[::-1], math.inf, 3, uniforms(0)) == [0, 1, 2]
    assert rejection_sample([0.0, 2.0, 1.0, 2.0], 0.0, 3, given()) == [1, 3, 2]
    assert rejection_sample([0.0, 2.0, 1.0, 2.0], 1e-12, 2, uniforms(0)) == [1, 3]


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_every_draw_is_distinct_and_shifts_and_scales_change_nothing(beta):
    for seed in range(150):
        rng = generator(seed, "rewards")
        n, count = (int(torch.randint(1, 12, (), generator=rng)) for _ in range(2))
        rewards = torch.randn(n, generator=rng, dtype=torch.float64).tolist()
        out = rejection_sample(rewards, beta, count, uniforms(seed))
        assert len(out) == len(set(out)) == min(n, count)
        assert rejection_sample([r + 7 for r in rewards], beta, count, uniforms(seed)) == out
        assert rejection_sample([4 * r for r in rewards], 4 * beta, count, uniforms(seed)) == out
        if count >= n:
            assert sorted(out) == list(range(n))


def test_the_maximum_is_of_those_that_are_left():
    asked = []
    draw = uniforms(0)
    out = rejection_sample([0.0, -1e6, -2e6, -3e6], BETA, 4, lambda: asked.append(draw()) or asked[-1])
    assert out == [0, 1, 2, 3]
    assert len(asked) == 4 + 3 + 2 + 1


def test_degenerate_candidates():
    assert rejection_sample([0.3] * 5, BETA, 5, uniforms(0)) == [0, 1, 2, 3, 4]
    assert rejection_sample([], BETA, 2, given()) == []
    assert rejection_sample(R, BETA, 0, given()) == []
    for beta in (0.0, BETA):
        with pytest.raises(InputError, match="candidate 1"):
            rejection_sample([1.0, math.nan, 0.0], beta, 2, given())
    with pytest.raises(InputError, match="beta"):
        rejection_sample(R, -1.0, 2, given())
    with pytest.raises(InputError, match="count"):
        rejection_sample(R, BETA, -1, given())


# --- rewards from comparisons ----------------------------------------------------------------------------------------
def test_pointwise_rewards():
    assert pointwise(0.8) == pytest.approx(1.386294, abs=5e-7)
    assert pointwise(0.5) == 0
    assert [pointwise(1.0), -pointwise(0.0)] == pytest.approx([math.log(1e6 - 1)] * 2)
    for r1, r2, bias in torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist():
        p = 1 / (1 + math.exp(r2 - r1))
        assert pointwise(p) == pytest.approx(r1 - r2)
        extra = 0.01 * bias
        assert without_order(p + extra, 1 - p + extra) == pytest.approx(p)
    with pytest.raises(InputError, match="probability"):
        pointwise(1.2)


# --- losses ----------------------------------------------------------------------------------------------------------
def pair(chosen, rejected, ref_chosen, ref_rejected):
    """One pair; the log-probabilities of the policy have gradients."""

    def one(logp, ref):
        logp, ref, unit = (torch.tensor([float(x)], dtype=torch.float64) for x in (logp, ref, 1))
        return Responses(logp.requires_grad_(), ref, unit, unit, unit, 0 * unit, torch.tensor([0]))

    return Pair(one(chosen, ref_chosen), one(rejected, ref_rejected))


def loss_and_slopes(objective, p):
    loss = objective(p)
    slopes = torch.autograd.grad(loss.sum(), [p.chosen.logp, p.rejected.logp])
    return float(loss), *(float(x) for x in slopes)


@pytest.mark.parametrize(
    ("name", "value", "slope"),
    [("sigmoid-norm", 0.609470, -0.022818), ("hinge-norm", 0.825, -0.05), ("hinge", 0.85, -0.05)],
)
def test_the_worked_losses(name, value, slope):
    loss, chosen, rejected = loss_and_slopes(loss_of(name, 0.05), pair(-12, -15, -14, -13.5))
    assert loss == pytest.approx(value, abs=5e-7)
    assert chosen == pytest.approx(slope, abs=5e-7)
    assert rejected == pytest.approx(-slope, abs=5e-7)


def test_the_hinge_ends_at_its_margin():
    for margin, slope in ((19.999, -0.05), (20.0, 0.0), (31.0, 0.0)):
        loss, chosen, _ = loss_and_slopes(Hinge(0.05), pair(margin, 0, 0, 0))
        assert (chosen, loss) == (pytest.approx(slope), pytest.approx(max(0, 1 - 0.05 * margin)))


def test_the_losses_of_the_family():
    rows = 5 * torch.randn(200, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for w, l, a, b in rows.tolist():  # noqa: E741
        assert loss_and_slopes(loss_of("sigmoid-norm", 0.1), pair(w, l, a, b)) == loss_and_slopes(
            Sigmoid(0.1), pair(w, l, a, b)
        )
        plain = loss_and_slopes(loss_of("hinge", 0.3), pair(w, l, a, b))
        assert plain == pytest.approx(loss_and_slopes(loss_of("hinge-norm", 0.3), pair(w, l, 2.5, 2.5)))
    assert rso(gamma=0.1, source="direct", pairing="best_worst") == dpo(beta=0.1)


# --- pairs -----------------------------------------------------------------------------------------------------------
def batch_of(*groups):
    """Groups of (token, reward); None as reward is a rollout that was aborted."""
    made = [
        Group(str(g), Prompt(str(g), tokens=(g,)), [
            Trajectory(f"{g}/{i}", [segment([token], [g])], reward=math.nan if r is None else r)
            for i, (token, r) in enumerate(rows)
        ]) for g, rows in enumerate(groups)
    ]  # fmt: skip
    return from_groups(made, torch.float64)


def test_pairs_of_eight():
    def better(i, j):
        return float(j - i)

    assert [len(make_pairs(8, p, better)) for p in ("first_round", "tournament")] == [4, 7]
    assert make_pairs(7, "first_round", better) == [(0, 1), (2, 3), (4, 5)]


@pytest.mark.parametrize(("pairing", "number"), [("first_round", 4), ("tournament", 7)])
def test_pairs_are_among_accepted_responses(pairing, number):
    batch = batch_of([(i, i / 10) for i in range(40)], [(i, -i / 10) for i in range(20)])
    for seed in range(20):
        choice = RejectionPairs(0.5, 8, pairing)(replace(batch, seed=seed), 2)
        assert len(choice.pairs) == 2 * number
        kept = choice.mask.any(1)
        assert kept[:40].sum() == kept[40:].sum() == 8
        assert kept[choice.pairs.flatten()].all()
        assert (batch.reward[choice.pairs[:, 0]] > batch.reward[choice.pairs[:, 1]]).all()
        assert (batch.group_id[choice.pairs[:, 0]] == batch.group_id[choice.pairs[:, 1]]).all()
        rates = [sum(acceptance(batch.reward[g].tolist(), 0.5)) / n for g, n in ((slice(40), 40), (slice(40, 60), 20))]
        assert choice.metrics["rso/rate"] == pytest.approx(sum(rates) / 2)


def test_the_best_at_beta_zero_and_the_first_at_beta_infinity():
    batch = batch_of([(i, i / 10) for i in range(40)])
    best = RejectionPairs(0.0, 8)(batch, 1).mask.any(1)
    first = RejectionPairs(math.inf, 8)(batch, 1).mask.any(1)
    assert best.nonzero().flatten().tolist() == list(range(32, 40))
    assert first.nonzero().flatten().tolist() == list(range(8))


def test_copies_and_aborted_rollouts_are_no_candidates_and_ties_no_pairs():
    batch = batch_of([(1, 1.0), (1, 1.0), (2, 0.0), (3, None)], [(1, 0.5), (2, 0.5), (3, 0.5)])
    assert candidates(batch) == {0: [0, 2], 1: [4, 5, 6]}
    choice = RejectionPairs(0.5, 3)(batch, 2)
    assert choice.pairs.tolist() == [[0, 2]]
    assert choice.groups.tolist() == [True, False]
    assert choice.mask.any(1).tolist() == [True, False, True, False, True, True, True]
    want = {"rso/short": 0.5, "rso/accepted": 2.5, "pairs/equal": 1.0, "pairs/made": 1.0, "pairs/tied": 1.0}
    assert {k: choice.metrics[k] for k in want} == want


# --- the method ------------------------------------------------------------------------------------------------------
def test_candidates_are_the_reference_policys_however_far_the_policy_is():
    near, far = lock_loop(rso()), lock_loop(rso())
    with torch.no_grad():
        far.world.policy.module.logits[..., 0] += 50.0
    said = [[t.response.tolist() for g in loop.sample(0) for t in g.trajectories] for loop in (near, far)]
    assert said[0] == said[1]
    assert len(said[0]) == 8 * 64 and len({tuple(r) for r in said[0]}) > 64
    assert rso().rollout.group_size == 64 and rso(source="sft").rollout.group_size == 8
    assert rso(source="sft").selection == MakePairs("first_round")


def test_what_is_rejected_costs_no_forward_pass():
    loop = lock_loop(rso())
    batch, log = loop.collect()
    assert set(batch.trajectory.tolist()) == set(batch.pairs.flatten().tolist())
    assert log["rso/accepted"] <= 8 and 0 < log["rso/rate"] <= 1
    assert log["pairs/made"] == len(batch.pairs) <= 4 * 8


@pytest.mark.parametrize("loss", ["sigmoid-norm", "hinge-norm", "hinge"])
def test_all_losses_learn(loss):
    loop = lock_loop(rso(loss=loss, pairing="tournament"), prompts=16)
    start = loop.world.task.probe(loop.world.policy)["success"]
    logs = [loop.step() for _ in range(12)]
    assert loop.world.task.probe(loop.world.policy)["success"] > start + 0.1
    first = {"sigmoid-norm": math.log(2), "hinge-norm": 1.0}.get(loss)
    assert first is None or logs[0]["loss/preference"] == pytest.approx(first, abs=1e-6)


JUDGE = """
from anypolicy.parts.rejection import pointwise, without_order


def judge(prompt, responses):
    def better(first, second):
        return min(0.5 + 0.04 * (first.count("1") - second.count("1")) + 0.01, 1.0)

    base = responses[0]
    return [pointwise(without_order(better(r, base), better(base, r))) for r in responses]
"""


TASK = "tabular-lock:prompts=8,length=3,vocabulary=4"


def run(out, steps, **more):
    settings = {"task": TASK, "steps": steps, "out": out, "quiet": True,
                "trackers": (), "prompts": 6, "checkpoint_every": 2, "eval_every": 0}  # fmt: skip
    return training.train("rso", **(settings | more))


def test_a_judge_that_compares_is_a_reward_and_a_resumed_run_is_the_whole_run(tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    reward = f"{tmp_path}/judge.py:judge"
    whole, part = run(tmp_path / "whole", 4, reward=reward), run(tmp_path / "part", 2, reward=reward)
    again = training.resume(tmp_path / "part", steps=4, quiet=True)
    assert torch.equal(whole.policy.module.logits, again.policy.module.logits)
    assert not torch.equal(part.policy.module.logits, again.policy.module.logits)
    assert [r for r in whole.rows if "event" not in r] == [r for r in again.rows if "event" not in r]
    untrained = load_task(TASK).make_policy(0)
    before, after = (p.module.logits.softmax(-1)[..., 1].mean() for p in (untrained, whole.policy))
    assert after > before + 0.02


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"beta": -0.1}, "beta"), ({"accepted": 1}, "accepted"), ({"gamma": 0.0}, "beta|gamma"),
     ({"loss": "hinge", "gamma": -1.0}, "gamma")],
)  # fmt: skip
def test_bad_settings(settings, match):
    with pytest.raises(InputError, match=match):
        rso(**settings)
