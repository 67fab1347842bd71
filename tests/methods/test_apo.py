"""Worked numbers of DADS and STCR (the code of arXiv 2506.21655) in float64, and the identities of APO."""

import math
from dataclasses import fields, replace

import pytest
import torch

from anypolicy.compose import compose
from anypolicy.data.batch import Batch
from anypolicy.errors import InputError
from anypolicy.methods.language.apo import (
    AsymmetricLoss,
    LengthAwareAdvantage,
    apo,
    divergence_weight,
    group_accuracy,
    length_weight,
)
from anypolicy.methods.language.ngrpo import CalibratedAdvantage
from anypolicy.parts.kl import kl
from anypolicy.parts.reduce import reduce
from anypolicy.policies.language.base import Scores
from anypolicy.stages.common import GroupAdvantage
from tests.helpers import batch_of, lock_loop

KAPPA = {0: 1.0, 1 / 8: 0.288077, 2 / 8: 0.493165, 4 / 8: 0.743119, 7 / 8: 0.907310, 1: 1.0}
REWARD = [1.5, 1, 0.5, 0, 0.5, 0, 0, 0.5]
LENGTH = [300, 500, 900, 400, 1400, 350, 4096, 401]
CORRECT = [True, True, False, False, False, False, False, False]
ADVANTAGE = [1.870829, 0.935414, 0, -0.935414, 0, -0.935414, -0.935414, 0]


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def group(n=8):
    return torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize(("accuracy", "want"), KAPPA.items())
def test_difficulty_weight(accuracy, want):
    got = divergence_weight(tensor([accuracy, accuracy]), torch.tensor([True, False]))
    assert got.tolist() == pytest.approx([want, 1.0], abs=1e-6)


def test_a_whole_group():
    weight = length_weight(tensor(LENGTH), torch.tensor(CORRECT), group(), 1.00001)
    assert weight.tolist() == pytest.approx([1, 1, 1.004987, 1, 1.009950, 1, 1.036285, 1.00001], abs=1e-6)
    batch = batch_of([REWARD], [LENGTH], [CORRECT])
    plain = GroupAdvantage("sample", 1e-9)(batch)
    assert plain.tolist() == pytest.approx(ADVANTAGE, abs=1e-6)
    got = apo().advantage(batch)
    assert got[6] == pytest.approx(-0.969356, abs=1e-6)
    assert torch.equal(got[[0, 1, 2, 3, 4, 5, 7]], plain[[0, 1, 2, 3, 4, 5, 7]])
    assert group_accuracy(batch).tolist() == [0.25] * 8
    batch = replace(batch, advantage=batch.to_rows(got))
    assert apo().loss.weight(batch).tolist() == pytest.approx([0.493165] * 2 + [1] * 6, abs=1e-6)


def test_a_larger_base():
    got = length_weight(tensor([6, 10, 4, 26]), torch.tensor([True, False, False, False]), group(4), 1.05)
    assert got.tolist() == pytest.approx([1, 1.177298, 1, 1.623111], abs=1e-6)


def test_the_rescaled_form_reaches_one_and_a_half_where_it_is_told():
    stage = apo(stcr_half=10.0).advantage
    got = length_weight(tensor([5, 15, 25]), torch.tensor([True, False, False]), group(3), stage.base)
    assert got.tolist() == pytest.approx([1, 1.5, 1.75], abs=1e-9)
    assert apo().advantage.base == 1.00001


def test_without_a_correct_response_nothing_is_stretched_and_all_keep_the_whole_weight():
    wrong = batch_of([[0.5, 0, 0, 0]], [[3, 9, 4, 20]], [[False] * 4])
    assert torch.equal(LengthAwareAdvantage(2.0)(wrong), GroupAdvantage("sample", 1e-9)(wrong))
    wrong = replace(wrong, advantage=wrong.to_rows(LengthAwareAdvantage(2.0)(wrong)))
    assert AsymmetricLoss().weight(wrong).tolist() == [1] * 4


def with_reference(batch, advantage, noise=0.3):
    rng = torch.Generator().manual_seed(0)
    far = batch.logp_old + noise * torch.randn(batch.logp_old.shape, generator=rng, dtype=torch.float64)
    return replace(batch, logp_ref=far, advantage=batch.to_rows(advantage))


def test_of_all_correct_responses_only_the_divergence_acts():
    batch = batch_of([[1.0] * 4], [[3, 2, 1, 2]])
    advantage = apo().advantage(batch)
    assert not advantage.any()
    batch = with_reference(batch, advantage)
    terms, metrics = apo().loss(Scores(batch.logp_old), batch)
    assert float(terms["policy"]) == 0
    assert float(terms["kl"]) > 0
    assert float(metrics["kl/weight"]) == 1


def test_switched_off_it_is_grpo_with_a_token_mean_and_the_divergence_per_response():
    off = apo(dads=False, stcr=False)
    batch = batch_of([REWARD, [1.0, 0, 0, 1, 0, 0, 1, 0]], [[3, 1, 4, 2, 2, 1, 5, 1], [2, 4, 1, 1, 3, 2, 2, 1]])
    plain = compose("grpo", {"grpo": {"eps": 1e-9}}).recipe
    assert off.advantage == plain.advantage
    batch = with_reference(batch, off.advantage(batch))
    logp = batch.logp_old + 0.1
    surrogate = replace(plain.loss, aggregation="token-mean", kl=None, kl_coef=0.0)
    terms = off.loss(Scores(logp), batch).terms
    assert torch.equal(terms["policy"], surrogate(Scores(logp), batch).terms["policy"])
    per_response = reduce(kl(logp, batch.logp_ref, "k3"), batch.mask, "seq-mean-token-mean")
    assert float(terms["kl"]) == pytest.approx(1e-3 * float(per_response), rel=1e-12)


def test_the_weighted_divergence_by_hand():
    batch = batch_of([[1.0, 0.0, 0.0, 0.0]], [[2, 1, 1, 3]])
    batch = with_reference(batch, apo().advantage(batch))
    k3 = kl(batch.logp_old, batch.logp_ref, "k3")
    means = [k3[i, :n].mean() for i, n in enumerate((2, 1, 1, 3))]
    want = (0.493165 * means[0] + means[1] + means[2] + means[3]) / 4
    assert float(apo(kl_coef=1.0).loss(Scores(batch.logp_old), batch).terms["kl"]) == pytest.approx(
        float(want), rel=1e-6
    )


def test_doubling_the_coefficient_is_not_undone_by_halving_the_weight():
    batch = batch_of([[1.0, 0.0, 0.0, 0.0]])
    batch = with_reference(batch, apo().advantage(batch))
    one = float(apo(kl_coef=1.0).loss(Scores(batch.logp_old), batch).terms["kl"])
    kappa = apo().loss.weight(batch)
    k3 = kl(batch.logp_old, batch.logp_ref, "k3").squeeze(1)
    halved = float((2 * torch.where(kappa < 1, kappa / 2, kappa) * k3).mean())
    assert halved != pytest.approx(one, rel=0.05)


def test_after_the_calibration_of_another_method():
    batch = batch_of([[1.0, 0.0, 0.0]], [[2, 3, 9]])
    got = LengthAwareAdvantage(1.1, CalibratedAdvantage())(batch)
    want = CalibratedAdvantage()(batch) * tensor([1, 2 - 1.1**-1, 2 - 1.1**-7])
    assert got.tolist() == pytest.approx(want.tolist(), rel=1e-9)


def test_a_response_without_reward_is_in_no_statistic_and_an_empty_correct_one_is():
    batch = batch_of([[1.0, math.nan, 0.0, 0.0]], [[2, 50, 3, 9]], [[True, True, False, False]])
    assert group_accuracy(batch).tolist() == pytest.approx([1 / 3] * 4)
    got = LengthAwareAdvantage(1.1)(batch) / GroupAdvantage("sample", 1e-9)(batch)
    assert got[[0, 2, 3]].tolist() == pytest.approx([1, 2 - 1.1**-1, 2 - 1.1**-7], rel=1e-6)
    weight = length_weight(tensor([0, 4, 3]), torch.tensor([True, True, False]), group(3), 1.1)
    assert weight.tolist() == pytest.approx([1, 1, 2 - 1.1**-1], rel=1e-6)


class Watched(Batch):
    """A batch that remembers which of its fields were read."""

    def __getattribute__(self, name):
        if name in NAMES:
            READ.add(name)
        return super().__getattribute__(name)


NAMES = {f.name for f in fields(Batch)}
READ = set()


def test_nothing_but_rewards_verdicts_lengths_and_log_probabilities_is_read():
    """So it runs unchanged on images: contexts and media are never looked at. `response` gives its shape alone."""
    batch = batch_of([REWARD], [[3, 5, 9, 4, 14, 3, 40, 4]], [CORRECT])
    batch = with_reference(batch, apo().advantage(batch))
    watched = Watched(**{f.name: getattr(batch, f.name) for f in fields(Batch)})
    READ.clear()
    apo().advantage(watched)
    assert {"reward", "correct", "group_id", "mask", "trajectory"} == READ
    watched = replace(watched, totals=batch.counted())
    READ.clear()
    got = apo().loss(Scores(batch.logp_old), watched).terms
    allowed = {
        "reward",
        "correct",
        "group_id",
        "mask",
        "trajectory",
        "advantage",
        "weight",
        "logp_old",
        "logp_ref",
        "totals",
    }
    assert allowed - {"weight"} <= READ <= allowed | {"max_tokens"}
    other = replace(batch, context=batch.context + 7, response=batch.response + 3)
    assert all(torch.equal(x, got[k]) for k, x in apo().loss(Scores(batch.logp_old), other).terms.items())


def test_in_the_loop_hard_prompts_have_a_smaller_weight():
    loop = lock_loop(apo(kl_coef=0.5, stcr_half=2.0))
    assert [0 < loop.step()["kl/weight"] <= 1 for _ in range(3)] == [True] * 3


@pytest.mark.parametrize(("knobs", "name"), [({"stcr_base": 1.0}, "stcr_base"), ({"stcr_half": 0.0}, "stcr_half")])
def test_settings(knobs, name):
    with pytest.raises(InputError, match=name):
        apo(**knobs)
