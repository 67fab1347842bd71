"""Which tests pass: exceptions of the candidate that the tests expect, and those that Python swallows under them."""

import sys

import pytest

from anypolicy.sandbox import Candidate, Limits, run
from anypolicy.sandbox.counting import Judge, Lost, counted

RAISES = {
    kind.__name__: kind for kind in (StopIteration, IndexError, AttributeError, KeyError, TypeError, ValueError, Lost)
}


def f(x):
    """An odd function: a name is raised, 0 gives 0, other numbers one more than they are."""
    if isinstance(x, str):
        raise RAISES[x]("told")
    return x + 1 if x else 0


def judged(tests):
    """Numbers of asserts that held and failed, and the first reason."""
    judge = Judge()
    try:
        exec(counted(tests), {"__name__": "tests", "f": judge.watched(f)} | judge.names())
    except Exception:
        judge.bad()
    judge.end("")
    return judge.passed, judge.failed, judge.first


SWALLOWED = {
    "all": "assert all(map(f, ['StopIteration']))",
    "filter": "assert list(filter(f, ['StopIteration', 3])) == []",
    "sum": "assert sum(map(f, ['StopIteration'])) == 0",
    "after the first": "assert list(map(f, [1, 'StopIteration'])) == [2]",
    "any": "assert not any(map(f, ['StopIteration']))",
    "max": "assert max(map(f, ['StopIteration']), default=0) == 0",
    "next": "assert next(map(f, ['StopIteration']), 0) == 0",
    "dict": "assert dict(map(f, ['StopIteration'])) == {}",
    "star": "assert [*map(f, ['StopIteration'])] == []",
    "iter of a call": "assert list(iter(lambda: f('StopIteration'), 0)) == []",
    "item by item": "class A:\n    def __getitem__(self, i): return f('IndexError')\nassert list(A()) == []",
    "in": "class A:\n    def __getitem__(self, i): return f('StopIteration')\nassert 3 not in A()",
    "own iterator": "class A:\n    def __iter__(self): return self\n    def __next__(self): return f('StopIteration')\nassert list(A()) == []",
    "getattr": "class A:\n    @property\n    def x(self): return f('AttributeError')\nassert getattr(A(), 'x', 0) == 0",
    "hasattr": "class A:\n    def __getattr__(self, x): return f('AttributeError')\nassert not hasattr(A(), 'x')",
    "length hint": "import operator\nclass A:\n    def __length_hint__(self): return f('TypeError')\nassert operator.length_hint(A()) == 0",
    "translate": "class A:\n    def __getitem__(self, i): return f('KeyError')\nassert 'a'.translate(A()) == 'a'",
    "mapping": "from collections.abc import Mapping\nclass A(Mapping):\n    def __getitem__(self, k): return f('KeyError')\n"
    "    def __iter__(self): return iter([])\n    def __len__(self): return 0\nassert A().get(3) is None",
    "finaliser": "class A:\n    def __del__(self): f('ValueError')\na = A(); del a\nassert f(1) == 2",
    "before the assert": "result = list(map(f, ['StopIteration']))\nassert result == []",
    "in a loop": "assert f(1) == 2\nfor x in map(f, ['StopIteration']):\n    assert x > 0",
    "in a loop, at the end": "for x in map(f, [1, 2, 'StopIteration']):\n    assert x > 0",
    "under a with of something else": "import contextlib\ndef g(x):\n    with contextlib.nullcontext():\n        return f(x)\n"
    "assert list(map(g, ['StopIteration'])) == []",
    "raised again": "def g(x):\n    try:\n        return f(x)\n    except Exception:\n        raise\nassert list(map(g, ['StopIteration'])) == []",
    "raised again by name": "def g(x):\n    try:\n        return f(x)\n    except Exception as e:\n        raise e\nassert list(map(g, ['StopIteration'])) == []",
    "cleaned up": "def g(x):\n    try:\n        return f(x)\n    finally:\n        assert True == 1\nassert list(map(g, ['StopIteration'])) == []",
    "lost": "try:\n    f('Lost')\n    assert False\nexcept Exception:\n    pass\nassert f(1) == 2",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", SWALLOWED)
def test_what_python_swallows_fails_the_tests(name):
    plain = {"f": f}
    exec(SWALLOWED[name], plain)  # by themselves the tests see nothing
    passed, failed, first = judged(SWALLOWED[name])
    assert failed == 1, (passed, failed)
    assert "did not see it" in first
    if "\n" not in SWALLOWED[name]:
        assert (passed, first[:28]) == (0, "line 1 of the tests: StopIte")


SEEN = {
    "except": ("try:\n    f('ValueError')\n    assert False\nexcept ValueError:\n    pass", 1),
    "else": ("try:\n    f('ValueError')\nexcept ValueError as e:\n    assert 'told' in str(e)\nelse:\n    assert False, 'none'", 2),
    "bare except": ("x = 0\ntry:\n    f('KeyError')\nexcept:\n    x = 1\nassert x", 1),
    "outer except": ("try:\n    try:\n        f('IndexError')\n    except ValueError:\n        assert False\nexcept LookupError:\n    pass\nassert f(1) == 2", 1),
    "except in a helper": ("def raises(k):\n    try:\n        f(k)\n    except (ValueError, StopIteration):\n        return True\n    return False\n"
                           "assert raises('ValueError') and raises('StopIteration') and not raises(1)", 1),
    "own context": ("class Raises:\n    def __enter__(self): return self\n    def __exit__(self, kind, value, trace):\n"
                    "        assert kind is ValueError\n        return True\nwith Raises():\n    f('ValueError')", 1),
    "contextmanager": ("import contextlib\n@contextlib.contextmanager\ndef raises(kind):\n    try:\n        yield\n    except kind:\n        return\n"
                       "    raise AssertionError\nwith raises(KeyError):\n    f('KeyError')\nassert f(1) == 2", 1),
    "suppress": ("import contextlib\nwith contextlib.suppress(IndexError):\n    f('IndexError')\nassert f(1) == 2", 1),
    "assertRaises": ("import unittest\nt = unittest.TestCase()\nwith t.assertRaises(ValueError):\n    f('ValueError')\n"
                     "t.assertRaises(ValueError, f, 'ValueError')\nt.assertRaisesRegex(KeyError, 'told', f, 'KeyError')\nassert f(1) == 2", 1),
    "raised as another": ("def g(x):\n    try:\n        return f(x)\n    except KeyError as e:\n        raise ValueError from e\n"
                          "try:\n    g('KeyError')\n    assert False\nexcept ValueError:\n    pass\nassert f(1) == 2", 1),
    "raised again and caught": ("try:\n    try:\n        f('KeyError')\n    except KeyError:\n        raise\nexcept KeyError:\n    pass\nassert f(1) == 2", 1),
    "through a generator": ("def g():\n    yield f('StopIteration')\ntry:\n    list(g())\nexcept RuntimeError:\n    pass\nassert f(1) == 2", 1),
    "through map": ("try:\n    list(map(f, ['ValueError']))\nexcept ValueError:\n    pass\nassert f(1) == 2", 1),
    "group": ("try:\n    try:\n        f('KeyError')\n    except* KeyError:\n        pass\nfinally:\n    assert f(1) == 2", 1),
    "on its way": ("try:\n    try:\n        f('ValueError')\n    finally:\n        assert f(1) == 2\nexcept ValueError:\n    pass", 1),
    "async with": ("import asyncio, contextlib\nclass A:\n    async def __aenter__(self): pass\n    async def __aexit__(self, *a): return True\n"
                   "async def g():\n    async with A():\n        f('KeyError')\nasyncio.run(g())\nassert f(1) == 2", 1),
    "several": ("for k in ('KeyError', 'ValueError'):\n    try:\n        f(k)\n        assert False, k\n    except Exception:\n        continue", 2),
    "with and return": ("import contextlib\ndef g():\n    for x in (1, 2):\n        with contextlib.nullcontext():\n            if x == 1:\n"
                        "                continue\n            return f(x)\nassert g() == 3", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_what_the_tests_expect_passes(name):
    tests, asserts = SEEN[name]
    assert judged(tests) == (asserts, 0, "")


def test_an_expected_exception_that_does_not_come_fails():
    assert judged("try:\n    f(1)\n    assert False, 'none came'\nexcept ValueError:\n    pass")[:2] == (0, 1)
    assert judged("try:\n    f('KeyError')\n    assert False\nexcept ValueError:\n    pass")[:2] == (0, 1)
    assert judged("import contextlib\nwith contextlib.suppress(ValueError):\n    f('KeyError')\nassert f(1) == 2")[:2] == (0, 1)  # fmt: skip


def test_each_failure_counts_once():
    tests = "assert f('ValueError')\nassert f(1) == 2\nassert f(2) == 2\nassert all(map(f, ['StopIteration']))\nassert f(3) == 4"
    assert judged(tests) == (2, 3, "line 1 of the tests: ValueError: told")


def test_lines_are_those_of_the_tests():
    """What is put around a statement stands on its line."""
    code = counted(
        "import contextlib\n\nwith contextlib.nullcontext():\n    x = 1\n\ntry:\n    x = 2\nexcept ValueError:\n    raise\n"
    )
    assert {line for *_, line in code.co_lines() if line} <= {1, 3, 4, 6, 7, 8, 9}
    assert judged("import contextlib\nwith contextlib.nullcontext():\n    x = 1\n    f('ValueError')")[2].startswith(
        "line 4 "
    )


def test_messages_that_cannot_be_made_are_left_out():
    limit = sys.get_int_max_str_digits()
    assert limit
    assert judged("assert f(1) == 3, 10 ** 9999") == (0, 1, "line 1 of the tests: AssertionError")
    passed, failed, first = judged("assert f(1) == 3, 'x' * 10 ** 6")
    assert (passed, failed) == (0, 1) and len(first) < 2000


def test_the_same_in_the_sandbox(backend):
    limits = Limits(seconds=60, cpu_seconds=20)
    source = "def f(x):\n    raise {}('told')"
    tests = "assert all(map(f, [1]))\nassert list(filter(f, [1])) == []\nassert sum(map(f, [1])) == 0"
    result = run(Candidate(source.format("StopIteration"), tests, ("f",)), limits, backend)
    assert (result.verdict, result.tests_passed, result.tests) == ("failed", 0, 3)
    assert result.reason.startswith("line 1 of the tests: StopIteration: told (raised by the candidate")
    expecting = "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass"
    assert run(Candidate(source.format("ValueError"), expecting, ("f",)), limits, backend).passed
    assert not run(Candidate(source.format("KeyError"), expecting, ("f",)), limits, backend).passed
    anything = expecting.replace("ValueError", "Exception")
    assert run(Candidate(source.format("KeyError"), anything, ("f",)), limits, backend).passed
    leaves = Candidate("import os\ndef f(x): os._exit(0)", anything + "\nassert True", ("f",))
    result = run(leaves, limits, backend)
    assert not result.passed and "process ended: exit code 0" in result.reason
