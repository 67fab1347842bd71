"""Supervised targets beside sampled responses: in no statistic, in no reward, in the loss with their own denominators."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from anypolicy import catalogue
from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory, from_json, to_json
from anypolicy.errors import InputError
from anypolicy.loops.describe import describe, describe_targets
from anypolicy.parts.reduce import count, reduce
from anypolicy.policies.language.base import Scores
from anypolicy.runs.metrics import documented
from anypolicy.stages.common import Clip, DropSolved, GroupAdvantage, GroupRollout, PolicyLoss, VerifierReward
from anypolicy.stages.needs import Needs
from anypolicy.stages.targets import WithImitation, reference_target, resampled_target
from tests.helpers import batch_of, gradient, lock_loop, segment

REWARDS = [[1.0, 0, 0, 0], [0.0, 0, 0, 0], [1.0, 1, 1, 1]]


def groups_with_targets(rewards=REWARDS, targets=((2, 3), (3,), ())):
    """One-token responses; `targets` gives the lengths of each group's targets."""
    groups = []
    for g, row in enumerate(rewards):
        own = [Trajectory(f"{g}/{i}", [segment([1], [g])], reward=r, correct=r == 1) for i, r in enumerate(row)]
        own += [Trajectory(f"{g}/t{n}", [segment([2] * n, [g])], target=True) for n in targets[g]]
        groups.append(Group(str(g), Prompt(str(g), tokens=(g,)), own))
    return groups


def test_targets_are_in_no_statistic_and_no_selection_counts_them():
    groups = groups_with_targets()
    groups[0].trajectories[-1].reward, groups[2].trajectories[0].target = 5.0, False
    ours, plain = from_groups(groups, torch.float64), batch_of(REWARDS)
    for stage in (GroupAdvantage(), compose("rloo").recipe.advantage, compose("ngrpo").recipe.advantage):
        assert torch.equal(stage(ours)[ours.sampled], stage(plain))
        assert not stage(ours)[~ours.sampled].any()
    for stage in (DropSolved(), DropSolved(all_wrong=True)):
        assert torch.equal(stage(ours, 3).groups, stage(plain, 3).groups)
    assert ours.sampled.tolist() == [True] * 4 + [False] * 2 + [True] * 4 + [False] + [True] * 4
    assert not ours.mask[~ours.sampled[ours.trajectory]].any()
    assert ours.target.sum(1).tolist() == [0, 0, 0, 0, 2, 3, 0, 0, 0, 0, 3, 0, 0, 0, 0]
    assert torch.equal(ours.trained, ours.mask | ours.target)
    assert plain.target is None
    assert plain.trained is plain.mask


def test_targets_have_their_own_denominators():
    totals = from_groups(groups_with_targets()).counted()
    assert (totals.tokens, totals.sequences, totals.rows, totals.groups) == (12, 12, 12, 3)
    t = totals.target
    assert (t.tokens, t.sequences, t.groups) == (8, 3, 3)
    assert t.group_sequences.tolist() == [2] * 6 + [1] * 5 + [0] * 4
    plain = batch_of(REWARDS).counted()
    assert (plain.tokens, plain.sequences, plain.rows, plain.target) == (12, 12, 12, None)


WANT = {"token-mean": 12 / 8, "seq-mean-token-mean": (1 + 4 / 3 + 6 / 3) / 3, "seq-mean-token-sum": 12 / 3,
        "group-mean-token-mean": ((1 + 4 / 3) / 2 + 2) / 3, "group-mean-token-sum": (6 / 2 + 6) / 3}  # fmt: skip


@pytest.mark.parametrize("mode", WANT)
def test_the_imitation_term_by_hand_and_in_parts(mode):
    batch = from_groups(groups_with_targets(), torch.float64)
    batch = replace(batch, advantage=batch.to_rows(GroupAdvantage()(batch)))
    nll = torch.zeros(15, 3, dtype=torch.float64)
    nll[4, :2], nll[5], nll[10] = 1.0, torch.tensor([2.0, 1, 1]), torch.tensor([1.0, 2, 3])
    loss = WithImitation(PolicyLoss(), 0.5, mode)
    terms, metrics = loss(Scores(torch.where(batch.target, -nll, batch.logp_old)), batch)
    assert float(terms["imitation"]) == pytest.approx(0.5 * WANT[mode], abs=1e-12)
    assert float(metrics["target/logp"]) == pytest.approx(-12 / 8, abs=1e-12)
    whole = replace(batch, totals=batch.counted())
    for cut in (3, 5, 10):
        parts = []
        for rows in (torch.arange(cut), torch.arange(cut, 15)):
            part = whole.select(rows)
            logp = torch.where(batch.target, -nll, batch.logp_old)[rows][:, : part.response.shape[1]]
            parts.append(loss(Scores(logp), part).terms)
        for name, value in terms.items():
            assert float(sum(p[name] for p in parts)) == pytest.approx(float(value), abs=1e-12)


def test_the_policy_term_does_not_see_them():
    ours, plain = from_groups(groups_with_targets(), torch.float64), batch_of(REWARDS)
    ours = replace(ours, advantage=ours.to_rows(GroupAdvantage()(ours)))
    plain = replace(plain, advantage=plain.to_rows(GroupAdvantage()(plain)))
    for aggregation in ("token-mean", "seq-mean-token-mean", "const"):
        loss = PolicyLoss(Clip(), aggregation=aggregation)
        ours, plain = replace(ours, max_tokens=4), replace(plain, max_tokens=4)
        value, grad = gradient(loss, ours, torch.zeros_like(ours.logp_old))
        same, want = gradient(loss, plain, torch.zeros_like(plain.logp_old))
        assert value == same
        assert torch.equal(grad[ours.sampled[ours.trajectory], :1], want)
        assert not grad[~ours.sampled[ours.trajectory]].any()


def test_without_targets_or_coefficient_it_is_the_other_loss_to_the_bit():
    plain = batch_of(REWARDS)
    plain = replace(plain, advantage=plain.to_rows(GroupAdvantage()(plain)))
    scores = Scores(plain.logp_old.clone())
    assert list(WithImitation(PolicyLoss(), 0.5)(scores, plain).terms) == ["policy"]
    assert torch.equal(WithImitation(PolicyLoss(), 0.5).active(plain), PolicyLoss().active(plain))
    ours = from_groups(groups_with_targets(), torch.float64)
    ours = replace(ours, advantage=ours.to_rows(GroupAdvantage()(ours)))
    assert list(WithImitation(PolicyLoss(), 0.0)(Scores(ours.logp_old.clone()), ours).terms) == ["policy"]
    assert WithImitation(PolicyLoss(), 0.0).active(ours).tolist() == [True] * 4 + [False] * 11
    assert WithImitation(PolicyLoss(), 0.1).active(ours).tolist() == [True] * 6 + [False] * 4 + [True] + [False] * 4


def test_group_means_need_groups_and_count_empty_ones():
    x, m = torch.tensor([[1.0, 3], [5, 9], [7, 7]]), torch.tensor([[True, True], [True, False], [False, False]])
    with pytest.raises(InputError, match="aggregation"):
        reduce(x, m, "group-mean-token-mean", totals=count(m))
    totals = count(m, torch.arange(3), torch.tensor([4, 4, 9]))
    assert float(reduce(x, m, "group-mean-token-mean", totals=totals)) == (2 + 5) / 2 / 2
    assert float(reduce(x, m, "group-mean-token-sum", totals=totals)) == (4 + 5) / 2 / 2


def test_json_keeps_targets():
    group = groups_with_targets()[0]
    again = from_json(json.loads(json.dumps(to_json(group))), group.prompt)
    assert [t.target for t in again.trajectories] == [False] * 4 + [True] * 2
    assert json.dumps(to_json(again)) == json.dumps(to_json(group))
    old = to_json(group)
    for t in old["trajectories"]:
        del t["target"]
    assert not from_json(old, group.prompt).targets


def test_the_log_describes_sampled_responses_and_targets_apart():
    groups = groups_with_targets()
    plain = describe([g.sampled() for g in groups], {})
    log = describe(groups, {})
    assert {k: v for k, v in log.items() if not k.startswith("target/")} == plain
    assert describe_targets(groups)["target/groups"] == pytest.approx(2 / 3)
    assert log["target/tokens"] == 8
    assert log["target/logp_sampled"] == -1
    assert all(documented(name) for name in log)
    assert groups[2].sampled() is groups[2]


def test_a_sample_under_another_context_becomes_a_target_under_the_plain_one():
    sampled = segment([5, 6, 7, 1], [9, 9], logp=-0.5)
    cut = resampled_target("x", sampled, np.array([9]), np.array([5, 6, 3, 1, 2]))
    (s,) = cut.segments
    assert cut.target
    assert s.logp.tolist() == [-0.5, -0.5, 0, 0, 0]
    assert s.version.tolist() == [0, 0, -1, -1, -1]
    assert s.mask.all()
    batch = from_groups([Group("g", Prompt("g"), [cut])])
    assert batch.context.tolist() == [[9]]
    assert describe_targets([Group("g", Prompt("g"), [cut])])["target/sampled"] == 2
    whole = resampled_target("x", sampled, np.array([9]), sampled.response)
    assert whole.segments[0].logp.tolist() == [-0.5] * 4


@dataclass(frozen=True)
class ReferenceRollout:
    """Responses and the prompt's reference."""

    group_size: int = 4

    def __call__(self, world, prompts, generator):
        groups = GroupRollout(self.group_size)(world, prompts, generator)
        for group in groups:
            group.trajectories.append(reference_target(world.policy, group.prompt))
        return groups


@dataclass(frozen=True)
class Watching:
    """The verifier, and how many trajectories it was shown."""

    seen: list
    needs = Needs(labels=True)

    def __call__(self, world, groups):
        self.seen.extend(len(g.trajectories) for g in groups)
        assert not any(t.target for g in groups for t in g.trajectories)
        VerifierReward()(world, groups)


@pytest.mark.parametrize("name", ["grpo", "dapo", "ppo", "sapo", "ngrpo+vade"])
def test_every_kind_of_method_imitates_and_the_loop_hides_targets_from_rewards(name):
    base = compose(name).recipe
    more = {k: v for slug in name.split("+") for k, v in catalogue.get(slug).card.metrics.items()}
    seen = []
    recipe = replace(base, rollout=ReferenceRollout(), loss=WithImitation(base.loss, 1.0))
    if base.reward == VerifierReward():
        recipe = replace(recipe, reward=Watching(seen))
    loop = lock_loop(recipe, references=True)
    start = loop.world.task.probe(loop.world.policy)["success"]
    for _ in range(20):
        log = loop.step()
        assert all(np.isfinite(list(log.values()))), log
        assert [n for n in log if not documented(n, more)] == []
    assert set(seen) <= {4}
    assert log["target/groups"] == 1
    assert loop.world.task.probe(loop.world.policy)["success"] > start + 0.15
    one = lock_loop(recipe, references=True)
    two = lock_loop(recipe, references=True)
    one.step()
    two.restore(json.loads(json.dumps(one.state())), {k: v.clone() for k, v in one.tensors().items()})
    assert one.step() == two.step()


def test_only_targets_in_an_update_leave_the_means_of_the_others_alone():
    recipe = compose("grpo").recipe
    recipe = replace(
        recipe, rollout=ReferenceRollout(), loss=WithImitation(PolicyLoss(), 1.0),
        optimiser=replace(recipe.optimiser, minibatches=4),
    )  # fmt: skip
    loop = lock_loop(recipe, references=True, low=-3.0, high=-3.0)
    log = loop.step()
    assert log["groups/all_wrong"] == 1
    assert "ratio/mean" not in log
    assert log["tokens/trained"] == 8 * 3
    assert log["loss/imitation"] == pytest.approx(-log["target/logp"])


def test_micro_batches_leave_the_update_unchanged():
    base = compose("grpo").recipe
    recipe = replace(base, rollout=ReferenceRollout(), loss=WithImitation(base.loss, 0.3))
    ends = []
    for micro_tokens in (1 << 20, 20, 1):
        loop = lock_loop(recipe, references=True, micro_tokens=micro_tokens)
        for _ in range(3):
            loop.step()
        ends.append(loop.world.policy.module.logits.detach())
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ends[2], ends[0], atol=1e-5, rtol=1e-5)


def test_recorded_entropies_need_none_of_the_targets():
    groups = groups_with_targets()
    assert from_groups(groups).entropy is None
    for g in groups:
        for t in g.sampled().trajectories:
            t.segments[0].entropy = np.array([0.5], np.float32)
    batch = from_groups(groups)
    assert batch.entropy[:, 0].tolist() == [0.5] * 4 + [0, 0] + [0.5] * 4 + [0] + [0.5] * 4
    groups[0].trajectories[1].segments[0].entropy = None
    assert from_groups(groups).entropy is None
