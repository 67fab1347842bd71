"""Seeds, intervals of proportions, tracker names."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from anypolicy.errors import InputError
from anypolicy.runs.metrics import documented, wilson
from anypolicy.runs.seeds import generator, numpy_generator
from anypolicy.runs.trackers import check_trackers


def test_streams_are_pinned_and_apart():
    assert numpy_generator(0, "sampler", 3).integers(0, 1000, 4).tolist() == [95, 905, 115, 499]
    assert torch.randint(0, 1000, (4,), generator=generator(0, "sampling", 3, 0)).tolist() == [364, 29, 222, 361]
    firsts = {float(numpy_generator(s, *n).random()) for s in (0, 1) for n in (("a",), ("a", 1), ("a", "1"), ("b",))}
    assert len(firsts) == 8


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (96, 200)])
def test_wilson_is_scipys(right, n):
    want = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((want.low, want.high), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_names():
    assert documented("loss/policy")
    assert documented("probe/success_hard")
    assert not documented("loss")
    assert not documented("lossy/policy")
    assert documented("mine", {"mine": "x"})


def test_trackers_are_checked_by_name():
    check_trackers(("tensorboard",))
    with pytest.raises(InputError, match="did you mean 'wandb'"):
        check_trackers(("wand",))


def test_numpy_integers_do_not_change_a_stream():
    assert numpy_generator(np.int64(3), "a").random() == numpy_generator(3, "a").random()
