"""PF-PPO (arXiv 2409.06957): what is kept, what A is normalised over, and when it is PPO bit for bit."""

import math
from dataclasses import replace

import pytest
import torch

from anypolicy.compose import compose
from anypolicy.errors import InputError
from anypolicy.families.language import fit
from anypolicy.methods.language.pf_ppo import FilterByReward, pf_ppo
from anypolicy.methods.language.ppo import ppo
from anypolicy.parts.advantages import whiten
from anypolicy.policies.language.load import load_policy
from anypolicy.stages.checks import check
from anypolicy.tasks.language.load import load_task
from tests.helpers import batch_of, lock_loop

FIVE = [0.1, 0.9, -0.3, 0.2, 0.5]


def weights(loop):
    return loop.world.policy.module.logits.detach().clone()


def graded(loop):
    """A task whose score is graded, so that rewards of a group differ."""
    loop.world.task.score = lambda prompt, response, text: type(score := old(prompt, response, text))(
        float(response.sum()) / 21, score.correct
    )
    old = type(loop.world.task).score.__get__(loop.world.task)
    return loop


def pair(*recipes, steps=4, seed=0):
    """Weights and logs after the same steps of each recipe."""
    out = []
    for recipe in recipes:
        loop = graded(lock_loop(recipe, seed=seed))
        out.append(([loop.step() for _ in range(steps)], weights(loop)))
    return out


@pytest.mark.parametrize("std", ["sample", "population"])
@pytest.mark.parametrize("normalise_reward", [True, False])
def test_without_a_filter_it_is_ppo_bit_for_bit(std, normalise_reward):
    ours = pf_ppo(rule="none", std=std, normalise_reward=normalise_reward)
    theirs = ppo(5, kl_coef=0.01, value_clip=0.2, std=std, normalise_reward=normalise_reward)
    (a, x), (b, y) = pair(ours, theirs)
    assert a == b
    assert torch.equal(x, y)


def test_best_and_worst_of_two_is_no_filter():
    (a, x), (_, y), (_, z) = pair(pf_ppo(2), pf_ppo(2, rule="none"), pf_ppo(2, rule="best-random"))
    assert torch.equal(x, y)
    assert torch.equal(x, z)
    assert a[0]["rows/kept"] == 16


def test_a_filter_changes_something():
    (_, x), (_, y), (_, z) = pair(pf_ppo(), pf_ppo(rule="none"), pf_ppo(rule="best-random"))
    assert not torch.allclose(x, y)
    assert not torch.allclose(x, z)


def test_the_advantage_is_normalised_over_the_kept_rows():
    loop = graded(lock_loop(pf_ppo()))
    batch, log = loop.collect()
    assert batch.rows == log["rows/kept"] == 16
    kept = batch.advantage[batch.mask]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-6)
    assert float(kept.var(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.bincount(batch.group_id).tolist() == [2] * 8


def test_population_variance():
    x, mask = (
        torch.tensor([[1.0, 2.0, 9.0], [4.0, 0.0, 0.0]], dtype=torch.float64),
        torch.tensor([[1, 1, 1], [1, 0, 0]]).bool(),
    )
    mean, var = 4.0, ((1 - 4) ** 2 + (2 - 4) ** 2 + 5**2 + 0) / 4
    got = whiten(x, mask, "population")
    assert got[mask].tolist() == pytest.approx([(v - mean) / math.sqrt(var) for v in (1, 2, 9, 4)])
    assert not got[~mask].any()
    assert not whiten(torch.ones(2, 3), mask, "population").any()


def test_dropped_rows_cost_no_forward_pass():
    loop = graded(lock_loop(pf_ppo()))
    seen, score = [], loop.world.policy.score
    loop.world.policy.score = lambda batch, *a, **k: seen.append(batch.rows) or score(batch, *a, **k)
    loop.step()
    assert set(seen) == {16}


def test_rewards_are_normalised_by_all_that_were_seen():
    loop = graded(lock_loop(pf_ppo(kl_coef=0.0)))
    loop.step()
    batch, _ = loop.collect()
    n, mean, _ = loop.running
    assert n == 80
    assert batch.running == loop.running
    raw = batch.value_target[:, -1]
    assert torch.allclose(raw, ((batch.reward - mean) / loop.running.std)[batch.trajectory].to(raw.dtype), atol=1e-5)


def test_selection_by_hand():
    batch = batch_of([FIVE, FIVE[::-1]])
    assert FilterByReward()(batch, 2).trajectories.tolist() == [1, 2, 7, 8]
    assert FilterByReward("best-of-n")(batch, 2).trajectories.tolist() == [1, 8]
    assert FilterByReward("none")(batch, 2).trajectories is None
    first = FilterByReward("best-random")(batch, 2).trajectories
    assert torch.equal(first, FilterByReward("best-random")(batch, 2).trajectories)
    other = [FilterByReward("best-random")(replace(batch, seed=s), 2).trajectories.tolist() for s in range(20)]
    assert len({tuple(x) for x in other}) > 5
    assert FilterByReward("top", high=0.95)(batch, 2).groups.tolist() == [False, False]


def test_rows_drawn_twice_stay_of_their_prompt():
    batch = batch_of([FIVE, [0.0, 0.3, -0.8, 0.1, 0.2]], lengths=[[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    kept = torch.tensor([1, 1, 2, 7])
    drawn = batch.draw(kept)
    assert drawn.reward.tolist() == [0.9, 0.9, -0.3, -0.8]
    assert drawn.group_id.tolist() == [0, 0, 0, 1]
    assert drawn.trajectory.tolist() == [0, 1, 2, 3]
    assert drawn.length.tolist() == [2, 2, 3, 3]
    assert torch.equal(drawn.response[0], drawn.response[1])
    choice = FilterByReward(with_replacement=True, n_keep=6)(batch, 2)
    assert set(choice.trajectories.tolist()) <= {1, 2, 6, 7}
    assert len(choice.trajectories) == 12


@pytest.mark.parametrize(
    "knobs",
    [{"with_replacement": True}, {"with_replacement": True, "n_keep": 3}, {"rule": "best-of-n"}, {"rule": "power"},
     {"rule": "top", "high": 0.5}, {"rule": "top-random", "high": 0.5}, {"rule": "top-bottom", "high": 0.6, "low": 0.3},
     {"rule": "none", "with_replacement": True}],
)  # fmt: skip
def test_every_rule_trains(knobs):
    [(log, after)] = pair(pf_ppo(**knobs), steps=3)
    assert all(x["updates"] == 1 for x in log)
    assert torch.isfinite(after).all()


def test_a_threshold_that_nothing_passes_is_no_update():
    [(log, _)] = pair(pf_ppo(rule="top", high=2.0), steps=2)
    assert [x["updates"] for x in log] == [0, 0]


def test_before_a_group_method_statistics_come_first():
    batch = batch_of([FIVE, [0.0, 0.3, -0.8, 0.1, 0.2]])
    recipe = compose("grpo+pf-ppo.selection").recipe
    check(recipe, 2)
    whole = recipe.advantage(batch)
    loop = graded(lock_loop(replace(recipe, rollout=replace(recipe.rollout, group_size=5))))
    got, _ = loop.collect()
    assert got.rows == 16
    best = got.advantage[:, 0].view(8, 2).max(1).values
    assert (best < 1.79).all() and (best > 0.7071 + 1e-3).any()
    assert float(whole[1]) == pytest.approx((0.9 - 0.28) / torch.tensor(FIVE).double().std().item(), abs=1e-5)


def test_settings_are_checked():
    with pytest.raises(InputError, match="n_keep"):
        pf_ppo(n_keep=0)
    with pytest.raises(InputError, match="did you mean 'best-worst'"):
        compose("pf-ppo", {"pf-ppo": {"rule": "best-wurst"}})
    with pytest.raises(InputError, match="low"):
        pf_ppo(rule="top-bottom", low=0.5)
    loop = lock_loop(pf_ppo(rule="power"))
    loop.world.task.score = lambda prompt, response, text: type(score := old(prompt, response, text))(
        7.0, score.correct
    )
    old = type(loop.world.task).score.__get__(loop.world.task)
    with pytest.raises(InputError, match="scale the reward"):
        loop.step()


def test_rewards_from_unit_tests_in_the_sandbox():
    """One step on HumanEval/53 (add): responses that begin with an odd byte stand for the right body, others for a wrong one."""
    task = load_task("humaneval:instruction='',max_tokens=4,seconds=20")
    task.train = [p for p in [*task.train, *task.heldout] if p.id == "HumanEval/53"]
    policy = load_policy("transformer:layers=1,width=16,heads=2,context=512")
    policy.decode = lambda tokens: f"    return x {'+' if tokens[0] % 2 else '-'} y\n"
    before = [x.detach().clone() for x in policy.module.parameters()]
    [(log, _)] = list(fit(pf_ppo(12), task, policy, steps=1, prompts=1))
    assert 0 < log["accuracy"] < 1
    assert log["reward/mean"] == pytest.approx(log["accuracy"])
    assert log["rows/kept"] == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.module.parameters(), strict=True))
