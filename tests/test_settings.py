"""Settings and knobs: numbers that are not finite and values of another type are refused in one place."""

import math
import typing
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from anypolicy import catalogue
from anypolicy.compose import build
from anypolicy.errors import InputError, check_settings, check_values, checked
from anypolicy.families import control, diffusion, exact, reward_models
from anypolicy.families import language as training
from anypolicy.families.actor_and_learner import Pace
from anypolicy.studies import datasets

SETTINGS = {
    training.plan: training.Settings("tabular-lock"),
    control.plan: control.ControlSettings("gym/Pendulum-v1"),
    diffusion.plan: diffusion.DiffusionSettings("ring8"),
    reward_models.plan: reward_models.RewardSettings("pairs.jsonl"),
    datasets.make_datasets: datasets.DatasetSettings("gym/CartPole-v1", Path("out")),
}


def numbers(hints):
    """Names of what takes numbers with a point."""
    return [k for k, kind in hints.items() if kind is float or float in typing.get_args(kind)]


@pytest.mark.parametrize("plan", SETTINGS, ids=lambda p: p.__module__)
def test_no_setting_takes_what_is_no_finite_number(plan):
    settings = SETTINGS[plan]
    for name in numbers(typing.get_type_hints(type(settings))):
        for bad in (math.nan, math.inf, -math.inf):
            with pytest.raises(InputError, match=f"{name}: .*finite"):
                plan("any", replace(settings, **{name: bad}))


@pytest.mark.parametrize("slug", sorted(catalogue.methods(None)))
def test_no_knob_takes_what_is_no_finite_number(slug):
    m = catalogue.get(slug, None)
    for name, kind in typing.get_type_hints(m.build).items():
        if name == "return" or name not in m.knobs:
            continue
        default = m.knobs[name].default
        for bad in (math.nan, -math.inf, math.inf):
            open_above = bad == math.inf and m.meanings[name].infinite
            if name in numbers({name: kind}) and not open_above:
                with pytest.raises(InputError, match=f"{name}: .*finite"):
                    build(m, {name: bad})
            if isinstance(default, tuple):
                with pytest.raises(InputError, match=name):
                    build(m, {name: (bad, *default[1:])})


def test_what_was_trained_to_nan_is_refused_at_the_plan():
    with pytest.raises(InputError, match=r"ngrpo\.virtual_reward: got nan; use a finite number"):
        training.plan("ngrpo", training.Settings("tabular-lock"), {"ngrpo": {"virtual_reward": math.nan}})
    with pytest.raises(InputError, match="hertz"):
        Pace(hertz=math.inf)
    with pytest.raises(InputError, match="gamma"):
        exact.solve("exp2", gamma=math.nan)


@pytest.mark.parametrize(("slug", "name"), [("dapo", "clip_high"), ("ppo-control", "grad_clip"), ("rso", "beta")])
def test_infinity_is_allowed_where_it_means_something(slug, name):
    assert build(catalogue.get(slug, None), {name: math.inf}) is not None
    with pytest.raises(InputError, match="finite"):
        build(catalogue.get(slug, None), {name: -math.inf})


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [(int, [3, -1], ["3", 3.0, True, None]), (float, [3, 0.5], ["3", True]), (bool, [True], [1, "true"]),
     (str, ["a"], [3]), (Path, ["a", Path("a")], [3, "a\0", "\ud800"]), (int | None, [None, 3], ["3"]),
     (typing.Literal["a", "b"], ["a"], ["c", 1, True]), (tuple[int, ...], [(), [1, 2]], [3, "12", (1.5,)]),
     (tuple[float, float], [(1, 2.0), [0, 1]], [(1,), (1, 2, 3), (1, "2")]), (typing.Any, ["x", 3], [])],
    ids=str,
)  # fmt: skip
def test_values_are_of_the_annotated_kinds(kind, good, bad):
    for value in good:
        check_values({"x": kind}, {"x": value})
    for value in bad:
        with pytest.raises(InputError, match=r"a\.x: got .*; use "):
            check_values({"x": kind}, {"x": value}, "a.")


def test_a_checked_call_gets_what_its_annotations_say():
    @checked
    def call(place: Path, n: int, more: tuple[int, ...], rows: list[int], name: str | Path, **others: object) -> object:
        return place, n, more, rows, name, others

    got = call("a", np.int64(2), [1], [1], "b", x=[1])
    assert got == (Path("a"), 2, (1,), [1], "b", {"x": [1]}) and type(got[1]) is int  # type: ignore[index]


def test_numbers_that_a_method_cannot_compute_with_are_refused():
    with pytest.raises(InputError, match="apo"):
        build(catalogue.get("apo", None), {"stcr_half": 1e-228})


def test_every_default_is_of_its_kind():
    for settings in SETTINGS.values():
        check_settings(settings)
        assert all(f.type for f in fields(settings))
    for m in catalogue.methods(None).values():
        check_values(typing.get_type_hints(m.build), {k: p.default for k, p in m.knobs.items()})


@pytest.mark.parametrize("slug", sorted(catalogue.methods(None)))
def test_every_knob_says_what_it_means_and_its_default_is_in_its_range(slug):
    m = catalogue.get(slug, None)
    assert m.meanings.keys() == m.knobs.keys()
    for name, knob in m.meanings.items():
        assert knob.meaning and knob.allows(m.knobs[name].default), name
        bounds = (
            knob.least is not None and knob.least - 1,
            knob.most is not None and knob.most + 1,
            knob.above,
            knob.below,
        )
        for outside in (x for x in bounds if x is not None and x is not False):
            kind = typing.get_type_hints(m.build)[name]
            whole = kind is int or int in typing.get_args(kind)
            if name in numbers({name: kind}) or (whole and not outside % 1):
                with pytest.raises(InputError, match=name):
                    build(m, {name: int(outside) if whole else float(outside)})
