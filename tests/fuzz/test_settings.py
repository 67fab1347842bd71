"""Settings of every family, by name and from Python: wrong types, huge and non-finite numbers, compositions, commands."""

import dataclasses
import typing
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import anypolicy as ap
from anypolicy import catalogue
from anypolicy.cli import app as cli
from anypolicy.compose import compose
from anypolicy.errors import finite, fits
from anypolicy.families import actor_and_learner as apart
from anypolicy.families import control, diffusion, exact, reward_models
from anypolicy.families import language as training
from anypolicy.studies import datasets, inspection, revisions
from anypolicy.studies.filtration import Scored, collect_scores, filtration_table
from anypolicy.studies.record import record
from tests.fuzz.harness import HUGE, allowed, cases, found, odd
from tests.fuzz.test_numbers import recorded
from tests.fuzz.test_runs import put

METHODS = catalogue.methods(None)
NAMES = st.sampled_from(sorted(METHODS))
LOCK = "tabular-lock:prompts=4,length=2"


def field_values(kind: Any) -> st.SearchStrategy[Any]:
    """Odd values, and those of the kind that a field has."""
    inner = typing.get_args(kind)
    own: tuple[Any, ...] = (None, 1, 2, 0, -1, 0.5, "x", True)
    if typing.get_origin(kind) is typing.Literal:
        own = inner
    return odd | st.sampled_from(own) | st.sampled_from(HUGE)


def cheap(case: tuple[str, dict[str, Any]]) -> bool:
    """Whether no number in it is merely large, and the policy not the one of 135 million parameters that is meant by none:
    what is asked for would be done, and take its time."""
    policy = case[1].get("policy", "x")
    large = any(isinstance(v, Real) and 50 < abs(v) < 2**63 for v in case[1].values())
    return not large and policy is not None and not (isinstance(policy, str) and policy == "")


def some(kinds: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """One to three settings with odd values, sometimes one that does not exist."""
    pairs = st.sampled_from([*sorted(kinds), "x"]).flatmap(
        lambda k: st.tuples(st.just(k), field_values(kinds.get(k, Any)))
    )
    return st.lists(pairs, min_size=1, max_size=3).map(dict)


def fields_of(kind: type) -> dict[str, Any]:
    """What can be set, but for what says where to write or which code to run."""
    return {k: v for k, v in typing.get_type_hints(kind).items() if k not in ("out", "method_file", "reward", "family")}


FAMILIES: dict[str, tuple[Any, str, dict[str, Any], Any]] = {
    "language": (training.Settings, "grpo", {"task": LOCK}, training.plan),
    "controller": (control.ControlSettings, "dqn", {"task": "gym/CartPole-v1"}, control.plan),
    "diffusion": (diffusion.DiffusionSettings, "diffusion-sft", {"task": "ring8"}, diffusion.plan),
    "reward": (reward_models.RewardSettings, "bradley-terry", {"pairs": "pairs.jsonl", "policy": "transformer:layers=1,width=8,heads=2"}, reward_models.plan),
    "revisions": (revisions.Settings, "", {"task": "slots", "out": Path("new.jsonl"), "policy": "transformer:layers=1,width=8,heads=2"}, lambda _, settings: revisions.world_of(settings)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def pairs(place):
    (place / "pairs.jsonl").write_text(
        '{"prompt": "a", "chosen": "x", "rejected": "y"}\n{"prompt": "b", "chosen": "x", "rejected": "y"}\n' * 3
    )


@given(
    st.sampled_from(sorted(FAMILIES)).flatmap(
        lambda family: st.tuples(st.just(family), some(fields_of(FAMILIES[family][0])))
    )
)
@found(
    ("language", {"dtype": np.zeros(2)}),
    ("language", {"steps": 10**400}),
    ("controller", {"seed": 2**63}),
    ("language", {"lr": "3e-4"}),
    ("language", {"prompts": True}),
)
@cases(400)
def test_settings_of_a_family(data):
    family, given = data
    kind, method, base, plan = FAMILIES[family]

    def resolve() -> None:
        unknown = [k for k in given if k not in fields_of(kind)]
        if not unknown:
            plan(method, kind(**base | given))

    allowed(resolve)


@given(NAMES.flatmap(lambda slug: st.tuples(st.just(slug), some(typing.get_type_hints(METHODS[slug].build)))))
@found(("apo", {"stcr_half": 1e-228}))
@found(*(("dqn", {"hidden": (n,)}) for n in (0, -1)))
@found(*(("serl", {name: n}) for name in ("alpha", "ensemble", "subset") for n in (0, -1)))
@cases(500)
def test_settings_of_a_method(data):
    slug, knobs = data
    m = METHODS[slug]

    def resolve() -> None:
        if m.family == "language":
            compose(slug, {slug: knobs})
        elif m.family == "control" and cheap(data):
            for task in ("gym/CartPole-v1", "gym/Pendulum-v1"):
                p = control.plan(slug, control.ControlSettings(task, steps=10, demos="x", trackers=()), knobs)
                control.learner_for(p)
        elif m.family != "exact":
            catalogue.build(m, knobs)

    allowed(resolve)


QUICK = {
    "realizability": {"n": 20, "states": 3, "actions": 2, "features": 2},
    "exp2": {"rounds": 4, "cases": 4}, "context-semi-bandit-ftpl": {"rounds": 4}, "horizon-free-rfe": {"episodes": 3},
    "online-offline": {"steps": 6, "prompts": 5, "answers": 6, "pairs": 20},
    "lipschitz-imitation": {"samples": 6}, "lipschitz-certificate": {},
}  # fmt: skip


@given(
    st.sampled_from(sorted(QUICK))
    .flatmap(lambda slug: st.tuples(st.just(slug), some(typing.get_type_hints(METHODS[slug].build))))
    .filter(cheap)
)
@found(("lipschitz-imitation", {"alpha": 1}))
@cases(60)
def test_settings_of_a_problem(data):
    slug, given = data
    known = METHODS[slug].knobs
    base = {k: v for k, v in QUICK[slug].items() if k in known}
    hints = typing.get_type_hints(METHODS[slug].build)
    wrong = {k: v for k, v in given.items() if k not in known or not fits(hints[k], v) or not finite(v)}
    allowed(exact.solve, slug, **base | wrong)  # what fits its kind may be of any size, and cost what it costs


words = st.sampled_from(
    (
        "grpo",
        "ngrpo",
        "sapo",
        "sapo.loss",
        "vade.sampler",
        "vade",
        "dpo",
        "dqn",
        "bradley-terry",
        "seppo",
        "realizability",
        "grpo.x",
        "",
        ".",
        "x",
        " grpo ",
        "grpo.loss.loss",
        "\0",
        "é",
        "GRPO",
        "a" * 3000,
    )
)
compositions = st.lists(words, max_size=5).map("+".join) | st.text(max_size=8) | odd


@given(compositions, st.none() | st.dictionaries(words, odd, max_size=2) | odd)
@found(spec=3, knobs=None)
@found(spec=b"grpo", knobs=None)
@found(spec="grpo", knobs=3)
@found(spec="grpo", knobs={"grpo": 3})
@found(spec="grpo", knobs={3: {}})
@cases(200)
def test_compositions(spec, knobs):
    allowed(compose, spec, knobs)


@given(compositions)
@found(name=[])
@found(name={})
@found(name=None)
@cases(150)
def test_names_of_methods(name):
    allowed(catalogue.get, name, None)
    allowed(ap.show, name)
    allowed(control.plan, name, control.ControlSettings("gym/CartPole-v1"))
    allowed(diffusion.plan, name, diffusion.DiffusionSettings("ring8"))
    allowed(
        reward_models.plan,
        name,
        reward_models.RewardSettings("pairs.jsonl", policy="transformer:layers=1,width=8,heads=2"),
    )


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "train": (ap.train, {"method": "grpo", "task": LOCK, "steps": 1, "prompts": 2, "group_size": 2, "knobs": None, "trackers": (), "quiet": True}),
    "compare": (ap.compare, {"methods": ["grpo", "rloo"], "task": LOCK, "seeds": 2, "steps": 1, "prompts": 2, "group_size": 2, "metric": None, "knobs": None, "workers": 1, "trackers": (), "quiet": True}),
    "explain": (ap.explain, {"method": "grpo", "task": LOCK, "knobs": None, "steps": 3}),
    "resume": (ap.resume, {"path": "nothing", "steps": None, "quiet": True}),
    "evaluate": (ap.evaluate, {"path": "nothing", "prompts": None, "temperature": 0.0}),
    "reproduce": (ap.reproduce, {"slug": "nothing", "seeds": None, "workers": 1, "claims": "nothing"}),
    "show": (ap.show, {"slug": "grpo"}),
    "filtration_table": (filtration_table, {"scored": [Scored("a", 0.5, 1.0), Scored("a", 0.1, 0.0), Scored("b", 0.3, 1.0)], "bins": 2, "by": "sample", "seed": 0, "with_replacement": False, "n_keep": 1}),
    "train_reward_model": (ap.train_reward_model, {"method": "bradley-terry", "pairs": "pairs.jsonl", "policy": "transformer:layers=1,width=8,heads=2,context=64", "knobs": None, "trackers": (), "epochs": 0.2, "quiet": True}),
    "inspect": (inspection.inspect, {"data": ["nothing"], "task": "gym/CartPole-v1", "reference": "nothing", "g_min": 0.0, "g_max": 1.0, "gamma": 1.0, "bins": 5, "seed": 0, "figure": Path("p.svg"), "quiet": True}),
    "record": (record, {"path": "nothing", "episodes": 1, "out": "x.safetensors", "explore": False}),
}  # fmt: skip


@given(
    st.sampled_from(sorted(CALLS))
    .flatmap(lambda name: st.tuples(st.just(name), some(dict.fromkeys(CALLS[name][1], Any))))
    .filter(cheap)
)
@found(
    *(
        (name, {key: value})
        for name, key, value in (
            ("resume", "path", 3),
            ("resume", "path", None),
            ("explain", "x", 1),
            ("explain", "knobs", "a"),
            ("filtration_table", "bins", "x"),
            ("filtration_table", "scored", 3),
            ("filtration_table", "scored", ["a"]),
            ("filtration_table", "seed", -1),
            ("filtration_table", "with_replacement", "a"),
            ("compare", "workers", 0.5),
            ("compare", "methods", 3),
            ("record", "episodes", None),
            ("record", "out", None),
            ("train_reward_model", "knobs", "a"),
            ("inspect", "seed", -1),
            ("inspect", "data", []),
            ("inspect", "gamma", None),
            ("train", "lr", np.float32(2)),
            ("train", "lr", 1e308),
            ("train_reward_model", "epochs", 1e308),
            ("train", "steps", np.int64(1)),
            ("train", "steps", 10**400),
        )
    )
)
@cases(200)
def test_the_python_interface(tmp_path_factory, data):
    name, given = data
    call, base = CALLS[name]
    more = {"out": tmp_path_factory.mktemp("out") / "run"} if name in ("train", "compare", "train_reward_model") else {}
    allowed(
        call,
        **base
        | {k: v for k, v in given.items() if k != "x" or name in ("train", "compare", "explain", "train_reward_model")}
        | more,
    )


def called(name: str) -> Any:
    """The call with its base arguments and a place to write to."""
    call, base = CALLS[name]
    return lambda out: call(**base | {"out": out})


def logged() -> str:
    """A file of recorded episodes."""
    Path("log.safetensors").write_bytes(recorded())
    return "log.safetensors"


WRITES = {
    **{name: called(name) for name in ("train", "compare", "train_reward_model")},
    "inspect": lambda out: inspection.inspect([logged()], task="gym/CartPole-v1", reference=logged(), g_min=0.0, g_max=9.0, figure=out, quiet=True),
    "record": lambda out: record(put(Path("acts"), "controller", {}), episodes=1, out=out),
    "solve": lambda out: exact.solve("exp2", out=out, rounds=4, cases=4),
    "make_datasets": lambda out: datasets.make_datasets("dqn", datasets.DatasetSettings("gym/CartPole-v1", out, 0), quiet=True),
    "revise": lambda out: revisions.world_of(revisions.Settings("slots", out=out, policy="transformer:layers=1,width=8,heads=2")),
    "collect_scores": lambda out: collect_scores("grpo", training.Settings(LOCK, out=out, reward="x.py:f")),
}  # fmt: skip


@given(
    st.sampled_from(sorted(WRITES)),
    odd.filter(lambda x: not isinstance(x, str | Path))
    | st.sampled_from(
        (
            "a" * 300,
            "/dev/null",
            "/proc/x/y",
            "\0",
            "\ud800",
            "",
            ".",
            "/",
            "x.jsonl",
            "x.svg",
            "/proc/x/y.svg",
            "/proc/x/y.safetensors",
            "y.safetensors",
            Path("a" * 300),
        )
    ),
)
@found(name="compare", out="/proc/x/y")
@found(name="train", out="/proc/x/y")
@found(name="solve", out="/proc/x/y")
@found(name="solve", out="a" * 300)
@found(name="solve", out=3)
@found(name="make_datasets", out="x")
@found(name="revise", out="a" * 300 + ".jsonl")
@found(name="revise", out="x.jsonl")
@found(name="collect_scores", out="a" * 300)
@found(name="inspect", out="/proc/x/y.svg")
@found(name="inspect", out="x.svg")
@found(name="train", out=3)
@found(name="train", out=b"x")
@found(name="train", out="a" * 300)
@found(name="train", out="\0")
@found(name="compare", out=3)
@found(name="compare", out=b"x")
@found(name="compare", out="a" * 300)
@found(name="compare", out="\0")
@cases(40)
def test_places_to_write_to(name, out):
    allowed(WRITES[name], out)


@given(st.dictionaries(st.sampled_from(("send_every", "publish_every", "hertz")), odd, min_size=1, max_size=2))
@cases(40)
def test_paces(given):
    allowed(apart.Pace, **given)


@given(some(fields_of(datasets.DatasetSettings)))
@found(given={"transitions": np.zeros(2)})
@found(given={"transitions": 10**400})
@cases(60)
def test_settings_of_data_sets(given):
    def make() -> None:
        settings = datasets.DatasetSettings(
            **{"task": "gym/CartPole-v1", "out": Path("sets"), "transitions": 0}
            | {k: v for k, v in given.items() if k != "x"}
        )
        datasets.make_datasets("dqn", settings, quiet=True)

    n = given.get("transitions")
    if not isinstance(n, Integral) or not 0 < n < 2**63:  # any other number of transitions is made, and takes its time
        allowed(make)


COMMANDS = (
    "train",
    "compare",
    "explain",
    "scores",
    "solve",
    "train-apart",
    "make-datasets",
    "resume",
    "eval",
    "reproduce",
    "methods",
    "show",
    "open",
    "filtration",
    "record",
    "inspect",
    "revise",
    "",
    "x",
)
ARGUMENTS = ("grpo", "dqn", "nothing", "--task", LOCK, "--steps", "0", "-1", "x", "--seed", "nan", "--lr", "--help", "--json", "--out", "--quiet", "--", "-", "", "\0", "--grpo.group-size", "--seeds", "--episodes", "--bins",
             "9" * 23, "9" * 5000, "--x=1", "--task=", "é", "\ud800", "--method-file", "x.py", "--method-file=", "--prompts", "--workers")  # fmt: skip


@given(st.sampled_from(COMMANDS), st.lists(st.sampled_from(ARGUMENTS), max_size=5))
@found(command="open", arguments=["9" * 5000])
@cases(120)
def test_commands(command, arguments):
    """The command line gives a number whatever it is given; `--steps 0` keeps what is complete from running."""
    argv = [command, *arguments, *(["--steps", "0"] if command == "train" else [])]
    if command in ("methods", "show", "open"):
        argv = [command, *arguments[:2]]
    ended = allowed(cli.main, argv)
    assert ended in (0, 2), ended


def test_every_field_is_drawn():
    """Settings that are new are drawn, too."""
    assert all(dataclasses.is_dataclass(kind) for kind, *_ in FAMILIES.values())
    assert set(QUICK) >= {slug for slug, m in METHODS.items() if m.family == "exact"}
