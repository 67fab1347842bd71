"""Declared needs: their union, and what is refused where a stage does not declare or misspells them."""

from dataclasses import dataclass, fields, replace

import pytest

from anypolicy import catalogue
from anypolicy.compose import STAGES, compose
from anypolicy.errors import InputError
from anypolicy.methods.language.grpo import grpo
from anypolicy.stages.checks import check, stages
from anypolicy.stages.needs import Gives, Needs, union


def test_a_misspelt_need_is_an_error_where_it_is_written():
    with pytest.raises(TypeError, match="min_gruop"):
        Needs(min_gruop=2)
    with pytest.raises(TypeError, match="target"):
        Gives(target=True)


@dataclass(frozen=True)
class Silent:
    """An advantage that does not say what it needs."""

    min_gruop = 2

    def __call__(self, batch):
        return batch.reward


def test_a_stage_that_declares_nothing_is_refused():
    with pytest.raises(InputError, match=r"Silent.*does not say what it needs"):
        check(replace(grpo(), advantage=Silent()), 4)

    class Rollout:
        needs, group_size = Needs(), 4

    with pytest.raises(InputError, match=r"Rollout.*does not say what it gives"):
        check(replace(grpo(), rollout=Rollout()), 4)


def test_the_union_of_needs():
    assert union([Needs()]) == Needs()
    assert union([Needs(reference=True), Needs(responses=3, behaviour=False)]) == Needs(reference=True, responses=3)
    assert not union([Needs(advantage=False), Needs(advantage=False)]).advantage
    assert union([Needs(most_responses=4), Needs(), Needs(most_responses=0)]).most_responses == 0


@pytest.mark.parametrize("slug", sorted(s for s, m in catalogue.methods().items()))
def test_stages_say_what_they_need_in_no_other_way(slug):
    """Whatever a stage has beside its settings, its needs and its methods is known to somebody."""
    known = {"needs", "gives", "max_rounds", "group_size"}
    for stage in stages(compose(slug).recipe):
        own = {name for kind in type(stage).__mro__[:-1] for name, value in vars(kind).items()
               if not name.startswith("_") and not callable(value) and not isinstance(value, property)}  # fmt: skip
        assert own - {f.name for f in fields(stage)} <= known, (slug, type(stage).__name__)


def test_an_advantage_may_need_verdicts():
    @dataclass(frozen=True)
    class ByVerdict:
        needs = Needs(verdicts=True)

        def __call__(self, batch):
            return batch.correct.to(batch.reward.dtype)

    check(replace(grpo(), advantage=ByVerdict()), 4)
    recorded = compose("dpo").recipe
    with pytest.raises(InputError, match="advantage: got 'ByVerdict'; it reads verdicts"):
        check(replace(recorded, advantage=ByVerdict()), 4)
    assert "advantage" in STAGES
