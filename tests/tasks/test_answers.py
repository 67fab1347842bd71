"""No answer of a policy is run: every data set of reasoning-gym against answers that try."""

from pathlib import Path

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from anypolicy.errors import InputError
from anypolicy.sandbox.scorers import Scorer, door
from anypolicy.tasks.language import answers
from anypolicy.tasks.language.answers import EVALUATED, grammar
from anypolicy.tasks.language.load import load_task

MARK = "/tmp/anypolicy-was-here"
TOUCH = f"__import__('pathlib').Path({MARK!r}).touch()"
HOSTILE = [
    TOUCH, f"{TOUCH} or 1", f"[{TOUCH}]", f"x + {TOUCH}", f"(lambda: {TOUCH})()", f"[{TOUCH} for _ in 'a']",
    f'{{"a": {TOUCH}}}', "exit(0)", "9**9**9**9", "oracle_answer", "list(oracle_answer)", "expected_answer",
    "setattr(type(self), 'score_answer', lambda *a, **k: 1.0)", "().__class__.__base__.__subclasses__()",
    "S.__class__", "x.subs", "Integral(x, x)", "sympify('1')", "factorial(99999999)", "x**(9**9)", "x**1e9",
    "'a' * 10**10", "1e99999999999", "[" * 5000, "(" * 5000 + "1" + ")" * 5000, "-" * 50000 + "1", "9" * 50000,
    "\0", "\ud800", "{" * 3000, '{"a": ' * 3000, "1" + "+1" * 5000, "", " ", None,
]  # fmt: skip
WRITTEN = {
    "string_insertion": lambda gold: str(list(gold)),
    "spiral_matrix": lambda gold: f"[{', '.join(gold.split())}]",
    "binary_matrix": lambda gold: str([[int(x) for x in row.split()] for row in gold.split("\n")]),
    "n_queens": lambda gold: str([row.split() for row in gold.split("\n")]),
    "countdown": "({}) * 1".format,
    "puzzle24": "({})".format,
}
"""Other ways to write an answer, which the data set evaluates."""
SLOW = {"knight_swap": 1}


def scores(name, pairs, size):
    given = Scorer.of(name, answers.__name__, given=(name, {"size": size, "seed": 1}), isolated=name in EVALUATED)
    return door.score(given, pairs)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"composite"}))
def test_nothing_that_a_policy_wrote_runs(name):
    Path(MARK).unlink(missing_ok=True)
    size = SLOW.get(name, 2)
    dataset = reasoning_gym.create_dataset(name, size=size, seed=1)
    entries = [dataset[i] for i in range(size)]
    own = [(e["answer"], e) for e in entries if e["answer"] is not None]
    before = scores(name, own, size)
    assert [o.value for o in before] == [dataset.score_answer(a, e) for a, e in own]
    told = scores(name, [(a, entries[0]) for a in HOSTILE], size)
    full = [a for a, o in zip(HOSTILE, told, strict=True) if o.value >= 1]
    if name != "game_of_life_halting":  # pays everything, and is refused for it
        assert full == [], "an answer that knows nothing is right"
    if name in EVALUATED:
        assert all(o.verdict == "refused" for o in told[:7] if o.verdict != "scored")
        assert {o.value for a, o in zip(HOSTILE, told, strict=True) if a and a.strip()} == {0.0}
    assert not Path(MARK).exists()
    assert scores(name, own, size) == before, "an earlier answer has changed what a later one is paid"


def test_a_step_goes_on_after_hostile_answers():
    task = load_task("reasoning-gym/countdown:size=20")
    prompt = task.train[0]
    told = task.score_many([(prompt, (), text) for text in (TOUCH, prompt.answer, "exit(0)", "1e", "what?", "0")])
    assert [s.unscored for s in told] == ["refused", "", "refused", "", "", ""]
    assert [s.correct for s in told] == [False, True, False, False, False, False]
    assert not Path(MARK).exists()


@pytest.mark.parametrize(
    ("dataset", "text", "fit"),
    [
        ("countdown", "(3 + 4) * 25 - 7 / 2", True), ("countdown", "-3 + 4", True), ("countdown", "3 ** 2", False),
        ("countdown", "x + 1", False), ("countdown", "3 4", None), ("countdown", "1j", False), ("countdown", "1e99", False),
        ("countdown", "True", False), ("countdown", "'3'", False), ("countdown", "[3]", False),
        ("puzzle24", "(6 - 2) * 6", True), ("puzzle24", "6 // 2", False),
        ("string_insertion", "['A', 'B']", True), ("string_insertion", "'AB'", True), ("string_insertion", "AB", False),
        ("string_insertion", "f'{1}'", False), ("string_insertion", "['A'] * 3", False), ("string_insertion", "b'A'", False),
        ("spiral_matrix", "[1, -2, 3]", True), ("spiral_matrix", "1 2 3", None), ("spiral_matrix", "[[[[1]]]]", False),
        ("binary_matrix", "[[0, 1], [1, 0]]", True), ("binary_matrix", "[x for x in [1]]", False),
        ("n_queens", "[['Q', '_'], ['_', 'Q']]", True), ("n_queens", "{'Q'}", False),
        ("simple_integration", "3*X**2/2 + C", True), ("simple_integration", "x.diff(x)", False),
        ("simple_integration", "x**-2 + 0.5", True), ("simple_integration", "x**101", False),
        ("intermediate_integration", "-exp(2*x)*sin(x)/5 + sqrt(1 - x**2)*asin(x) + C", True),
        ("intermediate_integration", "Integral(sin(x**2), x)", False), ("intermediate_integration", "2**(2**x)", False),
        ("polynomial_multiplication", "8*x**4 - 24*x**3*y + z", True), ("polynomial_multiplication", "foo*x", False),
        ("polynomial_multiplication", "log(x, base=2)", False), ("polynomial_multiplication", "__name__", False),
    ],
)  # fmt: skip
def test_the_grammar_of_what_is_evaluated(dataset, text, fit):
    assert grammar(text, dataset) is fit


def test_a_data_set_that_pays_any_answer_is_refused():
    with pytest.raises(InputError, match="it finds any answer right"):
        load_task("reasoning-gym/game_of_life_halting:size=20")


def test_names_of_the_problem_are_known():
    assert grammar("foo*x", "polynomial_multiplication", frozenset({"foo"}))


@pytest.mark.parametrize("name", sorted(EVALUATED))
def test_what_is_evaluated_is_paid_as_before(name):
    dataset = reasoning_gym.create_dataset(name, size=6, seed=2)
    pairs = []
    for entry in dataset:
        gold, facts = entry["answer"], entry["metadata"]
        if "Integral" in gold:  # sympy could not do it; as an answer of a policy it would be the question itself
            continue
        other = WRITTEN.get(name, "0 + {}".format)(gold)
        pairs += [(gold, entry), (other, entry), (f" {gold}\n", entry), ("0", entry), (None, entry)]
        assert facts["source_dataset"] == name
    given = Scorer.of(name, answers.__name__, given=(name, {"size": 6, "seed": 2}))
    assert [o.value for o in door.score(given, pairs)] == [dataset.score_answer(a, e) for a, e in pairs]
