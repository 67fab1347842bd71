"""DAPO's length penalty and group filter."""

import pytest

from anypolicy.methods.language.dapo import dapo, soft_overlong
from tests.helpers import batch_of


@pytest.mark.parametrize(("length", "penalty"), [(70, 0), (80, 0), (85, -0.25), (90, -0.5), (100, -1), (101, -1)])
def test_soft_overlong(length, penalty):
    assert soft_overlong(length, 100, 20) == pytest.approx(penalty)


def test_groups_without_contrast_are_dropped_and_refilled():
    groups = batch_of([[1.0, 1, 1], [0.0, 0, 0], [1.0, 0, 0], [0.0, 1, 1], [1.0, 0, 1]])
    choice = dapo().selection(groups, 2)
    assert choice.groups.tolist() == [False, False, True, True, False]
    assert choice.surplus is None
    assert dapo().selection(groups, 4).short
