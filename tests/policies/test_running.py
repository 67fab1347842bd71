"""State that follows the data: moments, the scale of returns, the newest rollouts."""

import pytest
import torch

from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.policies.control.statistics import ReturnScale, Rollouts, RunningMoments


def steps(observation, terminated=0.0, truncated=0.0, reward=1.0):
    """A rollout of one environment whose observations are the given numbers, each followed by itself + 1."""
    o = torch.tensor(observation)[:, None, None]
    shape = (len(observation), 1)
    field = lambda x: torch.as_tensor(x).expand(shape[0])[:, None].clone()  # noqa: E731
    return Transitions(o, torch.zeros(*shape, 1), field(reward), o + 1, field(terminated), field(truncated),
                       torch.full(shape, 0.9))  # fmt: skip


def test_moments_of_parts_are_those_of_the_whole():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 2
    one = RunningMoments(3)
    for part in x.split([1, 7, 92, 400]):
        one.take(part)
    torch.testing.assert_close(one.mean, x.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.variance, x.var(0, correction=0), atol=1e-4, rtol=1e-4)
    got = one.normalised(x.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(got.std(0), torch.ones(3), atol=2e-3, rtol=0)
    assert one.normalised(torch.full((1, 3), 1e6)).tolist() == [[10, 10, 10]]


def test_nothing_taken_in_changes_nothing_and_a_constant_is_no_division_by_zero():
    one, x = RunningMoments(2), torch.tensor([[3.0, -4.0]])
    torch.testing.assert_close(one.normalised(x), x)
    one.take(torch.full((1000, 2), 3.0))
    assert one.normalised(x).isfinite().all()


def test_returns_begin_anew_after_an_end_and_go_on_over_rollouts(monkeypatch):
    taken = []
    monkeypatch.setattr(RunningMoments, "take", lambda self, x: taken.append(x.squeeze(1).tolist()))
    scale = ReturnScale(0.5)
    scale.take(steps([0.0, 1.0, 2.0, 3.0], terminated=torch.tensor([0.0, 1.0, 0.0, 0.0])))
    scale.take(steps([4.0, 5.0], truncated=torch.tensor([1.0, 0.0])))
    assert taken == [[1, 1.5, 1, 1.5], [1.75, 1]]


def test_rewards_are_divided_by_the_std_of_returns_and_keep_their_sign():
    scale = ReturnScale(0.9)
    data = steps(list(torch.arange(200.0)), reward=torch.randn(200, generator=torch.Generator().manual_seed(0)) * 7)
    scale.take(data)
    want = data.reward / scale.moments.variance.sqrt().float()
    torch.testing.assert_close(scale.scaled(data.reward), want, atol=1e-5, rtol=1e-5)
    assert float(scale.moments.variance) > 49


@pytest.mark.parametrize("copies", [1, 3])
def test_a_saved_scale_goes_on_whatever_the_number_of_environments(copies):
    one, two = ReturnScale(0.9), ReturnScale(0.9)
    data = steps([0.0, 1.0, 2.0])
    data = Transitions(
        *(getattr(data, n).expand(-1, copies, *getattr(data, n).shape[2:]) for n in data.__dataclass_fields__)
    )
    one.take(data)
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    one.take(data)
    two.take(data)
    assert torch.equal(one.carry, two.carry) and one.carry.shape == (copies,)
    assert torch.equal(one.moments.variance, two.moments.variance)


def test_rollouts_keep_the_newest_in_order_and_mark_what_is_cut():
    kept = Rollouts(5, 1, 1)
    kept.append(steps([0.0, 1.0, 2.0]))
    assert len(kept) == 3 and kept.all().truncated.sum() == 0
    kept.append(steps([3.0, 4.0], terminated=torch.tensor([0.0, 1.0])))
    kept.append(steps([0.0, 1.0]))
    assert kept.all().observation.flatten().tolist() == [2, 3, 4, 0, 1]
    assert kept.all().truncated.sum() == 0
    kept.append(steps([7.0]))  # not what followed: that episode began anew elsewhere
    assert kept.all().truncated.flatten().tolist() == [0, 0, 0, 1, 0]
    other = Rollouts(5, 1, 1)
    other.load_state_dict({k: v.clone() for k, v in kept.state_dict().items()})
    assert torch.equal(other.rows, kept.rows)
    with pytest.raises(InputError, match="envs"):
        kept.append(Transitions(*(torch.zeros(2, 3, *x) for x in ((1,), (1,), (), (1,), (), (), ()))))
