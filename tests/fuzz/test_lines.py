"""JSON lines that people write: prompts, pairs, labels, streams, chats, revisions, scores; and the strings of tasks."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anypolicy.studies.filtration import filtration_table, read_scores
from anypolicy.tasks.arguments import parse
from anypolicy.tasks.control.environments import load_environment
from anypolicy.tasks.diffusion.load import load_pictures
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.preferences import load_pairs
from tests.fuzz.harness import allowed, broken_lines, cases, found

U, A = {"role": "user", "content": "what is 1+1?"}, {"role": "assistant", "content": "2"}
REPORT = [{"sentence": "It is 3.", "score": 1, "error": "logic", "rewrite": "It is 2."}]
KINDS: dict[str, list[dict[str, Any]]] = {
    "prompts": [{"prompt": "a", "answer": "b", "level": 3}, {"prompt": [U], "answer": 2}, {"prompt": "c", "answer": "d"}],
    "references": [{"prompt": "a", "response": "b"}, {"messages": [U, A]}, {"prompt": "c", "response": [1, 2]}],
    "scored": [{"prompt": "a", "responses": ["x", "y"], "scores": [1, 0]}, {"prompt": "b", "responses": ["x", "y"], "scores": [0.5, 0]}],
    "pairs": [{"prompt": "a", "chosen": "x", "rejected": "y", "margin": 0.5}, {"chosen": [U, A], "rejected": [U, {**A, "content": "3"}]}, {"prompt": [1, 2], "chosen": "1 2", "rejected": "3"}],
    "labels": [{"prompt": "a", "completion": "x", "label": True}, {"prompt": "b", "completion": "y", "label": False}, {"prompt": [U], "completion": "z", "label": True}],
    "stream": [{"step": 0, "context": [1, 2], "responses": [[1], [2, 3]], "scores": [0.0, 1.0]}, {"step": 1, "context": [3], "responses": [[1], [4]], "scores": [1, 0]}],
    "chats": [{"conversation": [U, A, {"role": "user", "content": "no", "satisfied": False}, A, {"role": "user", "content": "yes", "satisfied": True}]}, {"conversation": [{**U, "content": "hi"}, A, {"role": "user", "content": "bad", "satisfied": False}]}],
    "revisions": [{"prompt": "q", "reference": "It is 2.", "generated": "It is 3.", "truncated": False, "report": REPORT}, {"prompt": "r", "reference": "No.", "generated": "It is 3.", "report": REPORT}],
}  # fmt: skip
SETTINGS = ("", ":verifier=numeric", ":verifier=regex", ":verifier=none", ":heldout=0.5", ":use=pairs", ":use=answers", ":use=items,task=tiny-add", ":reference=response", ":prompt=question",
            ":answer=prompt", ":instruction=Think.", ":max_tokens=0", ":max_tokens=-5", ":heldout=1", ":heldout=0", ":prompt=,answer=", ":reference=prompt", ":answer=scores")  # fmt: skip


@given(st.sampled_from(sorted(KINDS)).flatmap(lambda kind: broken_lines(KINDS[kind])), st.sampled_from(SETTINGS))
@found(more="", data=b'{"prompt": "a", "answer": "b"}\n' + b"[" * 100_000)
@found(more="", data=b'{"prompt": "a", "answer": ' + b"9" * 23 + b"}\n3\n")
@found(more="", data=b'{"prompt": "a", "answer": ' + b"9" * 5000 + b"}\n")
@cases(500)
def test_tasks_of_lines(place, data, more):
    (place / "t.jsonl").write_bytes(data)
    allowed(load_task, f"{place / 't.jsonl'}{more}")


@given(broken_lines(KINDS["pairs"]), st.sampled_from((0.1, 0.0, 0.5, 1.0, -1.0, float("nan"))))
@cases(150)
def test_pairs(place, data, heldout):
    (place / "p.jsonl").write_bytes(data)
    allowed(load_pairs, str(place / "p.jsonl"), heldout=heldout)


SCORES = [
    {"prompt": i % 3, "reward": r / 4, "score": r % 2, "correct": True} for i, r in enumerate((1, 2, 3, 4, 0, 2, 1, 3))
]


@given(broken_lines(SCORES), st.integers(-2, 9), st.sampled_from(("sample", "bins")), st.integers(-1, 3), st.booleans())
@cases(60)
def test_scores(place, data, bins, by, keep, again):
    (place / "s.jsonl").write_bytes(data)

    def table() -> None:
        str(filtration_table(read_scores(place / "s.jsonl"), bins=bins, by=by, n_keep=keep, with_replacement=again))

    allowed(table)


# --- strings ---------------------------------------------------------------------------------------------------------
# what is merely large costs what it costs: base 60 is read from 1:30
VALUES = st.sampled_from(("1", "2", "3", "0", "-1", "0.5", "1e-3", "nan", ".nan", ".inf", "true", "null", "", "x", "'", '"', "'a,b'", "[1,2]", "{a: 1}", "1e999", "9" * 5000, "9" * 23,
                          "-" + "9" * 23, "2147483648", "!!python/object:os.system x", "!!binary x", "&a [*a]", "*a", "2001-13-45", "1:30", "0x1f", "0b", "=", "<<", "a: b: c", "\0", "\ud800",
                          "[" * 1000, "{" * 500, "- 1", "%x", "@", "`", "? ", "!!int x", "!!float", "!!timestamp 1", "1_000", "~", "é"))  # fmt: skip


@given(
    st.text(max_size=30)
    | st.lists(st.tuples(st.text(max_size=4) | st.just("a"), VALUES), max_size=3).map(
        lambda x: ",".join(f"{k}={v}" for k, v in x)
    )
)
@found(
    *(
        f"a={x}"
        for x in ("!!int x", "!!int", "2001-13-45", "!!timestamp 1", "!!float x", "[" * 1000, "&a [*a]", "9" * 5000)
    )
)
@cases(150)
def test_settings_behind_a_name(data):
    allowed(parse, data)


NAMED = {
    "tiny-add": ("prompts", "heldout", "base_accuracy", "max_tokens"), "digit-chain": ("prompts", "length", "heldout"), "noisy-sort": ("prompts", "length", "heldout"),
    "reverse-and-pick": ("prompts", "length"), "shapes": ("prompts", "heldout"), "slots": ("prompts", "slots"),
    "tabular-lock": ("prompts", "vocabulary", "length", "start", "low", "high", "sigma", "bias", "hints", "references", "recorded"),
    "reasoning-gym/chain_sum": ("size", "min_terms", "max_terms", "min_digits", "shots", "heldout", "graded", "extract", "max_tokens", "instruction", "seed"),
    "reasoning-gym/basic_arithmetic": ("size", "min_terms", "max_terms", "operators", "allow_parentheses"),
    "reasoning-gym/nothing": ("size",), "hf/nothing": ("split", "config"), "hf/": (), "reasoning-gym/": (), "humaneval": ("max_tokens",), "": (), "x": (), "x.jsonl": (), "\0.jsonl": (), "a" * 4000 + ".jsonl": (),
}  # fmt: skip


def specs(named: dict[str, tuple[str, ...]]) -> st.SearchStrategy[str]:
    """A name of a task with up to three of its settings."""

    def of(name: str) -> st.SearchStrategy[str]:
        key = st.sampled_from(named[name] or ("x",)) | st.just("x")
        pairs = st.lists(st.tuples(key, VALUES), max_size=3, unique_by=lambda pair: pair[0])
        return pairs.map(lambda x: f"{name}:" + ",".join(f"{k}={v}" for k, v in x))

    return st.sampled_from(sorted(named)).flatmap(of)


LONG = re.compile(r"max_terms=(\d{2}|\d[:_]|0x)")
"""Sums of many terms: they are made, and take their time."""


@given(specs(NAMED).filter(lambda spec: not LONG.search(spec)))
@found(spec="reasoning-gym/basic_arithmetic:allow_parentheses=2001-01-01")
@found(spec="noisy-sort:prompts=2147483648")
@found(spec="reverse-and-pick:prompts=12:30:45")
@found(spec="tabular-lock:recorded=-1")
@found(spec="tabular-lock:prompts=12:30:45,recorded=12:30:45")
@found(spec="a" * 4000 + ".jsonl")
@found(spec="reasoning-gym/chain_sum:min_digits=0.5")
@cases(120)
def test_names_of_tasks(spec):
    allowed(load_task, spec)


@pytest.mark.parametrize("value", [None, 3, b"tiny-add", ["tiny-add"], True, 1.5, {}])
def test_a_task_is_named_by_text(value):
    allowed(load_task, value)
    allowed(load_environment, value)
    allowed(load_pictures, value)


ENVIRONMENTS = {
    "gym/Pendulum-v1": ("reward_scale", "max_steps", "time", "g", "render_mode"), "gym/CartPole-v1": ("reward_scale", "max_steps", "time", "sutton_barto_reward"),
    "gym/FrozenLake-v1": ("map_name", "desc", "is_slippery", "max_steps"), "gym/CliffWalking-v1": (), "gym/nothing-v0": (), "gym/": (), "gym/a:b/c-v1": (), "": (), "x": (),
    "two-step-tree": ("x",), "grid": ("size", "steps"), "linear-quadratic": ("horizon", "states", "actions"), "combination-lock": ("horizon", "actions"), "back-and-forth": ("steps",),
    "tip": ("steps",), "wall": ("steps",),
}  # fmt: skip


@given(specs(ENVIRONMENTS))
@found(spec="combination-lock:horizon=12:30:45")
@cases(80)
def test_names_of_environments(spec):
    allowed(load_environment, spec)


@given(
    specs(
        {
            "digits": ("winners",),
            "photos": ("winners",),
            "ring8": ("winners", "points", "n"),
            "": (),
            ".": ("size", "heldout"),
            "x": (),
        }
    )
)
@cases(40)
def test_names_of_picture_tasks(spec):
    allowed(load_pictures, spec)
