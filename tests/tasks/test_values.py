"""The numeric verifier: what pays what, what is refused at load, and that nothing a policy writes is executed."""

import builtins
import json
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy.parsing import sympy_parser

from anypolicy.errors import InputError
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.values import PLAIN, Unreadable, gold_value, payable, same
from anypolicy.tasks.language.verifiers import check_golds

# gold, responses it pays, responses it does not pay
TABLE = [
    (r"2\pi", (r"$2\pi$", "2pi", "2π", r"The answer is 2\pi."), ("2", "6.283185307179586")),
    (r"3\sqrt{2}", (r"$\sqrt{18}$", "3√2", "3*sqrt(2)"), ("3",)),
    (r"0.\overline{3}", ("1/3", r"$0.\overline{3}$", r"\frac{1}{3}"), ("0.3", "0.333")),
    (r"0.1\overline{6}", ("1/6",), ("0.16", "1/60")),
    ("18", ("She makes 9 × $2 = $18 every day.", "18<|im_end|>", "18</s>", r"\fbox{18}"), ("9 × $2 = $17",)),
    (r"\dbinom{5}{2}", ("10", r"\binom{5}{2}"), ("5",)),
    ("1 1/2", ("1.5", "3/2", r"$1\frac{1}{2}$"), ("1",)),
    ("1.5", ("1 1/2",), ()),
    ("0.5", (r"50\%", r"so it is $\frac{1}{2}$"), ("1 1/2", "0.5%")),
    ("1", ("1 of 10: 1",), ("1 1/2", "1,000")),
    ("12:30", ("It is 12:30.",), ("12:45", "12")),
    ("12", ("12 is the product.",), ("12:30",)),
    ("30", (), ("12:30",)),
    ("3:30 PM", ("15:30", "at 3:30 p.m."), ("3:30 AM",)),
    ("2, 3", ("2 and 3", "3, 2", r"\{2, 3\}", "x = 2 or x = 3", "$x = 2$ and $x = 3$", "The roots are 2 and 3.", "The roots are $2$ and $3$.", "$x=2$ or $x=3$", r"\boxed{2, 3}", r"\boxed{x=2 \text{ or } x=3}"), ("3", "2", "(2, 3)", "2, 3, 4")),
    ("3", ("x = 3", r"\boxed{2} \boxed{3}", "Step 1. We add. Result: 3", "1. First\n2. Second\nSo 3"), ("2, 3", "no number", "9^9^9^9", "$9^{9^{9^9}}$", r"\boxed{3", "The answer is -3.", "The roots are 2 and 3", "x = 3y", "The answer is 3 or 4.", "between 2 and 3")),
    ("2 and 3", ("2, 3",), ()),
    ("(2, 3)", ("(2,3)", "The point is $(2,3)$.", "So (x, y) = (2, 3)."), ("(3, 2)", "2, 3", "[2, 3]")),
    (r"\{2,3\}", ("{3, 2}",), ()),
    ("[0,1)", ("[0, 1)", r"0 \le x < 1", r"$x \in [0, 1)$"), ("[0,1]", "(0,1)")),
    ("x > 3", ("x>3", "3 < x", r"$(3, \infty)$"), ("x >= 3", "y > 3", "3", r"3 \ge x")),
    (r"(-\infty, 2) \cup (3, \infty)", (r"$(3,\infty)\cup(-\infty,2)$",), (r"(3,\infty)",)),
    (r"\sqrt{17}", (r"$\sqrt{17}$", "sqrt(17)"), ("17", "4.123105625617661")),
    ("x^2+1", ("x^2 + 1", "It is $1 + x^2$.", "the answer is x^2+1"), ("x^2", "1")),
    ("x^2-1", ("(x+1)(x-1)",), ()),
    ("1e-3", ("0.001", "10^{-3}", "1/1000"), ("1", "3")),
    ("0.001", ("1e-3",), ()),
    ("1000", ("1,000",), ()),
    ("1,000", ("1000",), ("1, 000",)),
    ("0", ("-0",), ("1,000",)),
    ("(1,000)", (), ("1000",)),
    ("1, 200", (), ("1200",)),
    ("1234567.5", ("1,234,567.50",), ()),
    ("50%", ("50%", "0.5", "50", "1/2", "50 percent"), ()),
    ("50", (), ("50%",)),
    (r"90^\circ", ("90", "90 degrees", r"$90^\circ$"), ()),
    ("90", ("90°",), ()),
    ("5", ("5 cm", "There are 5 apples.", "It costs $5.", "**5**", "The answer is **5**.", "The answer is: $5$", "Answer: 5", "**Answer:** 5", r"Final answer: \(5\)", r"The final answer is $\boxed{5}$.", "x = 5, where $x$ is positive.", "The area is 5 m.", "He runs 5 miles per hour.", "We get $x^2=25$, so $x=5$ since x is positive", "The answer is 5!"), ("It costs $5 and not $6.", "minus 5", "half of 5", "5 divided by 2")),
    ("5 cm", ("5", r"\boxed{5\text{ cm}}", "5 centimeters"), ("5 m",)),
    ("5 cm^2", ("5 square centimeters",), ()),
    ("5 apples", ("5", r"\boxed{5 \text{ apples}}"), ()),
    ("10", (), ("10 million",)),
    ("10000000", ("10 million",), ()),
    ("$5", ("5",), ()),
    ("6", ("It cost $5, now $6.",), ("It is $5, not $6.",)),
    ("2", (), ("2 and a half", r"\boxed{2} \boxed{3}", "The answer is 2 x")),
    ("17", (), ("the square root of 17",)),
    ("3:4", ("3:4", "6:8"), ("4:3", "3/4", "3")),
    ("3/4", (), ("3:4",)),
    ("x = 3", ("3", "x=3"), ("y = 3", "2x = 6")),
    ("7", ("3 + 4 = 7", "The answer is 99. No, The answer is 7."), ()),
    ("4", ("2 + 2",), ("3 + 4 = 7",)),
    ("y = 2x + 1", ("y = 1 + 2x", "2x - y + 1 = 0"), ("y = 2x",)),
    (r"2 \pm \sqrt{3}", (r"$2+\sqrt{3}, 2-\sqrt{3}$", "2 ± √3"), (r"$2+\sqrt{3}$",)),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", (r"$\begin{pmatrix}1&2\\3&4\end{pmatrix}$",), (r"$\begin{pmatrix}1&2\\3&5\end{pmatrix}$",)),
    ("1/2", ("0.5", r"\frac12"), ("0.4", "1", "2")),
    ("99", (), ("The answer is 99. No, The answer is 7.",)),
    ("72", ("48/2 = 24 clips in May.\nAltogether 48+24 = 72 clips.\n#### 72",), ()),
    ("1/3", ("2/6",), ("0.333333",)),
    ("-3", ("- 3", "The answer is -3."), ()),
    ("2020", (), ("2020-05-03",)),
    ("2012", (), ("2020-05-03",)),
    ("10^{16}", ("10000000000000000",), ()),
    ("1e16", ("10000000000000000",), ()),
    (r"\frac{\sqrt{3}}{2}", (r"\frac{\sqrt3}{2}", "sqrt(3)/2", r"\boxed{\dfrac{\sqrt{3}}{2}}"), ()),
    (r"\infty", (r"$\infty$",), (r"-\infty",)),
    (r"\emptyset", (r"\{\}",), ()),
    ("e", ("$e$",), ()),
    ("2+3i", ("3i+2",), ()),
    (r"\ln 2", ("ln(2)",), ()),
    (r"\log 2", (), ("ln(2)",)),
    (r"\binom{5}{2}", ("10",), ()),
    ("5!", ("120", "The answer is 5!.", "$5!$"), ()),
    ("0.75", (".75",), ()),
    ("5 km/h", ("5 kilometers per hour",), ("5 m/s",)),
    (r"\frac{1}{2}", ("1/2", r"\boxed{\frac{1}{2}}", r"The answer is \frac{1}{2}, i.e. one half."), ()),
    ("42", ("<answer>42</answer>", "The answer is 42!", "\"42\"", "`42`", "It's 42.", "I have 41 + 1 apples, so 42"), ()),
    ("3x+2y", ("2y + 3x",), ()),
    ("1, 2, 3", ("1, 2, and 3",), ()),
    ("-1/2", (r"$-\frac{1}{2}$", r"\frac{-1}{2}"), ()),
    ("1:2:3", ("2:4:6",), ()),
    ("100", ("1e2",), ()),
    ("1.50", ("1.5",), ()),
    (r"$\frac{1}{2}$", ("0.5",), ()),
    (r"\boxed{5}", ("5",), ()),
    ("Natalia sold 48/2 clips. #### 72", ("72",), ("24",)),
    ("f(x) = 2x", ("2x", "f(x) = x + x"), ()),
    ("120", ("5!",), ()),
    ("x < 2", (r"(-\infty, 2)",), (r"(-\infty, 2]",)),
    (r"x \le 2", (r"$(-\infty,2]$",), ()),
    ("5€", ("€5",), ("$5",)),
    ("(1, 2)", (), ("(1, 2, 3)",)),
    ("(1,000, 2)", ("(1, 0, 2)",), ()),
    ("2^{10}", ("1024",), ()),
    ("|x|", (r"\sqrt{x^2}",), ()),
    (r"e^{i\pi}", ("-1",), ()),
    (r"\sin^2 x + \cos^2 x", ("1",), ()),
    ("500", ("5 hundred", "It costs 5 hundred dollars."), ("5",)),
    ("25", ("The answer is 25, not 5.",), ("It is not 25.", "The answer is not 25.")),
    ("18", ("$18/day", "9 * 2 = $18/day"), ("18/abc",)),
    ("5", ("5 times", "5 quarters"), ("5 squared", "5 hundred", r"\boxed{5 \text{ thirds}}", "5 factorial")),
    (r"(3, \frac{\pi}{2})", (r"$(r,\theta) = (3, \frac{\pi}{2})$", r"\boxed{(r, \theta) = (3, \pi/2)}"), ()),
    (r"(-\infty,-5)\cup(5,\infty)", ("x<-5 or x>5", r"\boxed{x > 5 \text{ or } x < -5}"), ("x<-5", "x<-5 or x>=5")),
    ("x<-5 or x>5", (r"$(-\infty,-5)\cup(5,\infty)$",), ("x<5 or x>-5",)),
    ("x^2+y^2=1", ("y^2 + x^2 - 1 = 0",), ("x^2+y^2=2",)),
]  # fmt: skip
REFUSED = [
    "Paris",
    "A",
    "(A)",
    r"\text{Paris}",
    "No",
    "3/0",
    "5 feet 3 inches",
    "2020-05-03",
    "no solution",
    "x",
    "",
    "2, x",
    "5/3/2020",
    "9^{9^{9}}",
    "a long sentence with 5 in it",
    "1 000",
]
ROWS = [(g, r, w) for g, paid, unpaid in TABLE for responses, w in ((paid, True), (unpaid, False)) for r in responses]


@pytest.mark.parametrize(("gold", "response", "right"), ROWS)
def test_what_pays_what(gold, response, right):
    assert same(response, gold) is right


@pytest.mark.parametrize("gold", [g for g, *_ in TABLE])
def test_every_gold_of_the_table_is_accepted_and_paid_by_itself(gold):
    assert payable(gold)
    assert same(gold, gold)


@pytest.mark.parametrize("gold", REFUSED)
def test_golds_without_a_value(gold):
    assert not payable(gold)
    assert check_golds("numeric", ["3", gold, "3"]) == [True, False, True]


HOSTILE = [
    "__import__('os').system('touch {path}')", "().__class__.__mro__[1].__subclasses__()", "open('{path}', 'w')",
    "exec('import os')", "lambda: 3", "3 if open('{path}', 'w') else 3", "sqrt(__import__('os').system('touch {path}'))",
    r"\sqrt{__import__('os')}", "9^9^9^9", r"9^{9^{9^9}}", "(9^{999})^{999}", r"(2^{0.5}+1)^{999^{2}}", "999999!", "5!!!!!",
    "(" * 500 + "3" + ")" * 500, "{" * 5000, "1," * 9000, "9" * 30_000, "1e99999999999", r"\boxed{" * 3000, "$" * 20_000,
    "e^{e^{e^{e^{9}}}}", r"\sqrt{" * 18 + "2" + "}" * 18, "answer is " * 3000, " " * 30_000, "|" * 900, "x_" * 400,
]  # fmt: skip


@pytest.mark.parametrize("wrap", ["{}", "${}$", r"\boxed{{{}}}", "The answer is {}."])
def test_hostile_responses_are_wrong_and_leave_nothing_behind(tmp_path, wrap):
    for text in HOSTILE:
        assert not same(wrap.format(text.replace("{path}", str(tmp_path / "F"))), r"\sqrt{17}+x")
    assert not list(tmp_path.iterdir())


def test_no_text_reaches_eval_or_a_parser_of_sympy(monkeypatch):
    seen = []
    monkeypatch.setattr(builtins, "eval", lambda *a: seen.append(a))
    monkeypatch.setattr(sympy_parser, "parse_expr", lambda *a, **k: seen.append(a))
    for response, gold, right in (
        (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}", True), ("(x+2)(x-2)", "x^2-4", True), ("os.system(3)", "x^2-4", False),
        ("sin(x)^2", "1-cos(x)^2", True), (r"\ln 8", r"3\ln 2", True), ("[2x, 1/x]", "[x+x, x^{-1}]", True),
    ):  # fmt: skip
        assert same(response, gold) is right
    assert not seen


def test_reading_plain_answers_loads_neither_torch_nor_sympy():
    code = ("import sys; from anypolicy.tasks.language.values import same; assert same('It is 0.5.', '1/2'); "
            "assert not {'torch', 'sympy'} & sys.modules.keys()")  # fmt: skip
    path = [p for p in sys.path if p]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"], check=True)


rationals = st.fractions(-(10**6), 10**6, max_denominator=1000)


def ways(q):
    """A rational as people write it."""
    yield str(q)
    yield rf"\frac{{{q.numerator}}}{{{q.denominator}}}"
    yield f"{q.numerator * 3}/{q.denominator * 3}"
    if 10**6 % q.denominator == 0:
        yield format(Decimal(q.numerator) / q.denominator, "f")
    if abs(q) > 1 and q.denominator > 1:
        whole, rest = divmod(abs(q), 1)
        yield f"{'-' * (q < 0)}{whole} {rest}"


@settings(derandomize=True, max_examples=60, deadline=None)
@given(rationals, rationals)
def test_rationals_pay_themselves_and_no_other(a, b):
    for gold in ways(a):
        assert payable(gold)
        for response in ways(a):
            assert same(f"The answer is {response}.", gold)
        for response in ways(b):
            assert same(response, gold) is (a == b)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.from_regex(PLAIN, fullmatch=True))
def test_what_is_taken_to_be_readable_is(gold):
    assert gold_value(gold).parts == (Fraction(gold),)
    assert all(same(form.format(gold), gold) for form in ("{}", r"\boxed{{{}}}", "${}$", "The answer is {}."))


PIECES = re.split(" ", r"1 2 10 007 x y e i a \pi \sqrt \frac { } ( ) [ ] \{ \} , ; : + - * / ^ ! | = < \le \in \cup \pm \infty % $ _ . sin "
                  r"\ln \text{cm} cm and & \\ \boxed{ 0.5 1e-3 ° million \left xyz E ½")  # fmt: skip


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, " ", "\n"]), min_size=1, max_size=8).map("".join))
def test_any_text_has_a_value_or_none(text):
    try:
        gold_value(text)
    except (Unreadable, ArithmeticError):
        assert not payable(text)
    same(text, r"\sqrt{3}+x")
    if payable(text):
        assert same(text, text)


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("gold", ["Paris", "A", "5 feet 3 inches"])
def test_a_gold_that_could_never_be_paid_is_refused_at_load(tmp_path, gold):
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": gold}, {"prompt": "c", "answer": "Rome"}]
    file = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(InputError, match=rf"line 2: answer '{gold}' \(and 1 more\).*verifier=exact"):
        load_task(f"{file}:verifier=numeric")
    assert load_task(f"{file}:verifier=exact").train


def test_an_answer_of_nothing_is_refused(tmp_path):
    file = write(tmp_path / "p.jsonl", [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": " "}])
    with pytest.raises(InputError, match=r"line 2.*empty response"):
        load_task(str(file))


@pytest.mark.parametrize("verifier", ["exact", "numeric"])
def test_numbers_of_json_are_labels_that_people_write(tmp_path, verifier):
    numbers = {
        "0.00001": "0.00001",
        "1e16": "10000000000000000",
        "1E-7": "0.0000001",
        "0.1": "0.1",
        "2.50": "2.5",
        "3": "3",
    }
    rows = [f'{{"prompt": "{n}", "answer": {n}}}' for n in numbers]
    task = load_task(f"{write(tmp_path / 'p.jsonl', rows)}:verifier={verifier}")
    for prompt in [*task.train, *task.heldout]:
        label = numbers[prompt.messages[0]["content"]]
        assert prompt.answer.removesuffix(".0") == label
        assert task.score(prompt, np.zeros(0), prompt.answer).correct
    with pytest.raises(InputError, match=r"line 2.*inf"):
        load_task(str(write(tmp_path / "q.jsonl", [rows[0], '{"prompt": "b", "answer": 1e999}'])))
