"""Worked numbers of D3S (arXiv 2509.22115) in float64, its identities, and what it does not compute."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.loops.group import GroupLoop
from anypolicy.methods.language.d3s import DualLevelSelection, between, d3s, spread_subset, top_tokens
from anypolicy.parts.advantages import group_normalise
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.table import TablePolicy
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.stages.common import GroupAdvantage, PolicyLoss
from anypolicy.stages.recipe import World
from anypolicy.tasks.language.tabular_lock import TabularLock
from tests.helpers import batch_of, lock_loop

GROUPS = [[1.0, 0, 0, 0], [1.0, 1, 0, 0], [1.0, 1, 1, 0], [0.0, 0, 0, 0]]


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def advantages():
    return group_normalise(tensor(GROUPS).flatten(), torch.arange(4).repeat_interleave(4))


def ready(rewards, lengths=None, progress=0.0, entropy=None):
    """A batch as the selection sees it."""
    batch = batch_of(rewards, lengths)
    if entropy is None:
        entropy = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = replace(batch, progress=progress, entropy=entropy)
    return replace(batch, advantage=batch.to_rows(GroupAdvantage()(batch)))


@pytest.mark.parametrize(("n", "variance"), [(4, 1.499994), (6, 1.249995), (8, 0.999996), (12, 0.749997)])
def test_the_subset_of_largest_variance(n, variance):
    a = advantages()
    assert a[[0, 1, 4, 6, 8, 11, 12]].tolist() == pytest.approx(
        [1.499997, -0.499999, 0.866024, -0.866024, 0.499999, -1.499997, 0.0], abs=2e-6
    )
    assert float(a.var(correction=0)) == pytest.approx(0.562498, abs=1e-6)
    kept = spread_subset(a, n)
    assert len(set(kept.tolist())) == n
    assert float(a[kept].var(correction=0)) == pytest.approx(variance, abs=1e-6)
    assert not set(kept.tolist()) & {12, 13, 14, 15}


def test_four_rows_are_the_two_smallest_and_the_two_largest():
    a = advantages()
    assert sorted(a[spread_subset(a, 4)].tolist()) == pytest.approx(
        [-1.499997, -0.866024, 0.866024, 1.499997], abs=2e-6
    )


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_no_other_subset_has_more_variance(n):
    rng = torch.Generator().manual_seed(n)
    for _ in range(50):
        a = torch.randn(10, generator=rng, dtype=torch.float64)
        best = max(float(a[list(s)].var(correction=0)) for s in itertools.combinations(range(10), n))
        assert float(a[spread_subset(a, n)].var(correction=0)) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(
    ("share", "want"),
    [(0.2, {(0, 1), (1, 1)}), (0.5, {(0, 1), (1, 1), (0, 2), (1, 2)}),
     (0.8, {(0, 1), (1, 1), (0, 2), (1, 2), (1, 0), (0, 0)})],
)  # fmt: skip
def test_tokens_by_advantage_times_entropy_over_the_pool_of_both_rows(share, want):
    entropy = tensor([[0.1, 2, 0.7, 0], [0.3, 2.5, 1.2, 0.05]])
    key = tensor([[1.5], [-0.5]]).abs() * entropy
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    assert key[mask].tolist() == pytest.approx([0.15, 3, 1.05, 0.15, 1.25, 0.6, 0.025])
    got = {tuple(x) for x in top_tokens(key, mask, share).nonzero().tolist()}
    assert len(got) == len(want)
    assert got - {(0, 0), (1, 0)} == want - {(0, 0), (1, 0)}


def test_the_first_of_equal_tokens_wins_and_the_share_is_rounded_up_but_not_by_noise():
    mask = torch.ones(2, 10, dtype=torch.bool)
    kept = top_tokens(torch.ones(2, 10), mask, 0.35000000000000003)
    assert kept.flatten().nonzero().flatten().tolist() == list(range(7))
    assert int(top_tokens(torch.ones(2, 10), mask, 0.36).sum()) == 8


@pytest.mark.parametrize(("p", "rows", "tokens"), [(0, 32, 0.2), (0.25, 48, 0.35), (0.5, 64, 0.5), (1, 96, 0.8)])
def test_schedule(p, rows, tokens):
    assert between(32, 96, p) == rows
    assert between(0.2, 0.8, p) == pytest.approx(tokens)
    rewards = np.random.default_rng(0).random((16, 8)).tolist()
    choice = d3s().selection(ready(rewards, progress=p), 16)
    assert choice.metrics["selection/rows"] == rows / 128
    assert int(choice.mask.sum()) == math.ceil(between(0.2, 0.8, p) * rows - 1e-9)


def test_progress_of_a_run_goes_from_zero_to_one():
    seen = []

    class Spy(DualLevelSelection):
        def __call__(self, batch, target):
            seen.append(batch.progress)
            return super().__call__(batch, target)

    loop = lock_loop(replace(d3s(), selection=Spy()))
    loop.total_steps = 5
    for _ in range(5):
        loop.step()
    assert seen == [0, 0.25, 0.5, 0.75, 1]
    loop.total_steps = 1
    loop.steps = 0
    assert loop.progress == 0


def test_keeping_everything_is_the_base_with_a_token_mean():
    whole = {"rows_init": 1.0, "rows_final": 1.0, "tokens_init": 1.0, "tokens_final": 1.0}
    one = lock_loop(compose("d3s", {"d3s": whole}).recipe)
    base = compose("grpo").recipe
    two = lock_loop(replace(base, loss=replace(base.loss, aggregation="token-mean")))
    for _ in range(3):
        assert one.step().items() >= two.step().items()
    assert torch.equal(one.world.policy.module.logits, two.world.policy.module.logits)


def test_recorded_entropy_is_that_of_the_sampling_distribution():
    policy = TablePolicy(tensor([0.7, 0.1, 0.1, 0.1]).log().expand(1, 3, 4).contiguous())
    requests = [Request(np.zeros(1, np.int64), 2)]
    rng = torch.Generator().manual_seed(0)
    [[(segment, _), _]] = NativeEngine(policy).generate(requests, Sampling(3, entropy=True), rng)
    assert segment.entropy.tolist() == pytest.approx([0.940448] * 3, abs=1e-6)
    [[(segment, _), _]] = NativeEngine(policy).generate(requests, Sampling(3), rng)
    assert segment.entropy is None


def test_recorded_and_recomputed_entropy_agree():
    loop = lock_loop(d3s())
    groups = loop.sample(0)
    recorded = loop.credited(from_groups(groups, torch.float64)).entropy
    for s in (s for g in groups for t in g.trajectories for s in t.segments):
        s.entropy = None
    torch.testing.assert_close(loop.credited(from_groups(groups)).entropy.double(), recorded, atol=1e-5, rtol=1e-5)


def test_rows_without_advantage_are_kept_only_when_the_number_forces_it():
    rewards = [[1.0, 0, 0, 0], [1.0] * 4]
    few = DualLevelSelection((0.5, 0.5), (1.0, 1.0))(ready(rewards), 2)
    assert few.mask.flatten().tolist() == [True] * 4 + [False] * 4
    assert few.groups.tolist() == [True, False]
    all_of_them = DualLevelSelection((1.0, 1.0), (1.0, 1.0))(ready(rewards), 2)
    assert all_of_them.mask.all()


def test_without_any_advantage_there_is_no_step():
    loop = lock_loop(d3s())
    loop.world.task.score = lambda prompt, response, text: type("S", (), {"reward": 1.0, "correct": True})()
    log = loop.step()
    assert (log["updates"], log["updates/skipped"], log["groups/kept"]) == (0, 1, 0)


def test_at_least_two_rows_and_undefined_entropies_count_as_zero():
    entropy = torch.full((8, 1), math.nan, dtype=torch.float64)
    entropy[1] = 1.0
    batch = ready([[1.0, 0, 0, 0, 0, 0, 0, 0]], entropy=entropy)
    choice = DualLevelSelection((0.01, 0.01), (0.5, 0.5))(batch, 1)
    assert choice.metrics["selection/rows"] == 2 / 8
    assert choice.metrics["selection/undefined"] == 7
    lost = ready([[1.0, math.nan, 0.0, 0.5]])
    assert not DualLevelSelection((1.0, 1.0), (1.0, 1.0))(lost, 1).mask[1].any()


def test_within_groups_each_group_keeps_its_share():
    choice = DualLevelSelection((0.5, 0.5), (1.0, 1.0), "group")(ready(GROUPS), 4)
    assert choice.mask.reshape(4, 4).sum(1).tolist() == [2, 2, 2, 0]


def test_token_level_advantages_take_part_with_their_own_size():
    batch = ready([[1.0, 0.0]], [[2, 2]], entropy=torch.ones(2, 2, dtype=torch.float64))
    batch = replace(batch, advantage=tensor([[0.1, 2.0], [-1.0, -0.2]]))
    choice = DualLevelSelection((1.0, 1.0), (0.5, 0.5))(batch, 1)
    assert choice.mask.tolist() == [[False, True], [True, False]]


# --- what is dropped is not computed ----------------------------------------------------------------------------------
class Meter:
    """A policy that counts what `score` is asked for with gradients."""

    def __init__(self, policy):
        self.policy, self.rows, self.positions, self.logits = policy, 0, 0, 0

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def score(self, batch, *args, **kwargs):
        if torch.is_grad_enabled():
            self.rows += batch.rows
            self.positions += int(batch.valid.sum())
            self.logits += int((batch.valid if batch.read is None else batch.read).sum())
        return self.policy.score(batch, *args, **kwargs)


def metered(spec, **knobs):
    task = TabularLock(0, prompts=16, length=6)
    meter = Meter(task.make_policy(0))
    world = World(meter, NativeEngine(meter), task, Sampling(6), 0)
    recipe = compose(spec, knobs).recipe
    return GroupLoop(
        recipe, world, prompts=8, micro_tokens=1 << 20, reference=task.make_policy(0), total_steps=10
    ), meter


def test_dropped_rows_and_tokens_after_the_last_kept_one_have_no_forward_pass():
    loop, meter = metered("d3s")
    batch, log = loop.collect()
    last = batch.mask.flip(1).cumsum(1).flip(1) > 0
    assert torch.equal(batch.valid, last)
    assert batch.rows <= 16
    assert batch.mask.any(1).all()
    log |= loop.update(batch)
    assert meter.rows == batch.rows
    assert meter.positions == log["tokens/forward"] == int(last.sum())
    assert meter.logits == log["tokens/trained"] == int(batch.mask.sum()) == math.ceil(0.2 * 16 * 6 - 1e-9)
    assert log["tokens/forward"] < 16 * 6


def test_the_counters_of_a_method_without_selection():
    loop, meter = metered("grpo", grpo={"kl_coef": 0.0})
    log = loop.step()
    assert log["tokens/trained"] == log["tokens/forward"] == meter.positions == 6 * meter.rows
    assert log["rows/skipped"] == 64 - meter.rows


def test_a_loss_that_reads_whole_responses_gets_them():
    loop, meter = metered("d3s+gspo.loss")
    batch, _ = loop.collect()
    assert batch.read is None
    assert batch.valid.all()
    assert torch.equal(batch.chosen, batch.valid)
    assert int(batch.mask.sum()) == math.ceil(0.2 * 16 * 6 - 1e-9)
    assert PolicyLoss(ratio="sequence").needs.whole_responses
    loop.update(batch)
    assert meter.positions == meter.rows * 6


def test_the_sequence_ratio_is_that_of_the_whole_response():
    batch = batch_of([[1.0, 0.0]], [[3, 3]])
    logp = batch.logp_old + tensor([[0.3, 0.0, 0.0], [0.0, 0.0, 0.6]])
    part = replace(batch, mask=torch.tensor([[True, False, False], [False, True, False]]))
    part = replace(part, advantage=part.to_rows(tensor([1.0, -1.0])))
    metrics = PolicyLoss(ratio="sequence")(Scores(logp), part).metrics
    assert float(metrics["ratio/mean"]) == pytest.approx((math.exp(0.1) + math.exp(0.2)) / 2)


def test_a_transformer_gives_the_same_gradient_with_and_without_the_tail():
    policy = small_transformer(
        vocabulary=11, layers=2, width=16, heads=2, context_length=16, seed=0, eos_id=0, pad_id=0
    )
    batch = batch_of([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], [[5, 3, 4], [2, 5, 5]])
    batch = replace(batch, response=(batch.response * torch.arange(1, 6)) % 11)
    batch = replace(batch, advantage=batch.to_rows(GroupAdvantage()(batch)))
    kept = batch.mask & (torch.arange(5) < torch.tensor([3, 1, 2, 1, 4, 2])[:, None]) & (torch.arange(5) != 1)
    whole = replace(batch, mask=kept)
    trimmed = whole.trimmed().select(torch.arange(batch.rows))
    assert trimmed.response.shape[1] == 4
    gradients = []
    for part in (whole, trimmed):
        policy.module.zero_grad()
        sum(PolicyLoss()(policy.score(part, 1.0), part).terms.values()).backward()
        gradients.append([p.grad.clone() for p in policy.module.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_schedule_needs_the_length_of_the_run():
    loop = lock_loop(d3s())
    with pytest.raises(InputError, match="total_steps"):
        GroupLoop(loop.recipe, loop.world, prompts=8, micro_tokens=1, reference=None)


@pytest.mark.parametrize("name", ["rows_init", "rows_final", "tokens_init", "tokens_final"])
@pytest.mark.parametrize("value", [0.0, 1.1])
def test_settings(name, value):
    with pytest.raises(InputError, match=name):
        d3s(**{name: value})


def test_with_the_loss_of_pairs_it_is_refused():
    with pytest.raises(InputError, match="whole responses"):
        compose("d3s+copg.loss")
