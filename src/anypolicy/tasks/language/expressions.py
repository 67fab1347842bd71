r"""Mathematical expressions, plain or in LaTeX, read by a small grammar into exact values.

What a policy wrote is never given to `eval` or to sympy's parser: the grammar knows numbers, letters, a list of
functions and constants, and builds the value itself. Rational numbers are fractions; only what has a root, π, e, a
letter or a function becomes an expression of sympy. Everything is bounded: length, nesting, exponents, factorials.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

TOKENS, NESTING, DIGITS, EXPONENT, BITS, ROOT, FACTORIAL = 300, 20, 400, 1000, 20_000, 1000, 500

TOKEN = re.compile(r"\s*((?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?![\d.A-Za-z]))?|\\?[A-Za-z]+|[-+*/^!|(){}\[\]_])")
NUMBER = re.compile(r"[\d.]")
WHOLE = re.compile(r"\d+")
FUNCTIONS = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "arcsin": "asin",
    "arccos": "acos", "arctan": "atan", "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "ln": "log", "exp": "exp", "abs": "Abs",
}  # fmt: skip
GREEK = (
    r"alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|varphi|"
    r"chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega"
)
NAMES = {*FUNCTIONS, "log", "lg", "sqrt", "cbrt", "pi"}
PRODUCTS = re.compile(r"[xyz]+|abc?|bc|[mnpqrst]{2}|[abckmn][xyz]{1,2}")  # letters that stand for a product, no word


class Unreadable(ValueError):
    """The text is no expression of the grammar, or too large."""


@lru_cache(256)
def expression(text: str) -> Any:
    """The value of an expression: a Fraction, or an expression of sympy."""
    parser = Parser(tokens(text))
    value = parser.sum()
    if parser.here is not None:
        raise Unreadable(text)
    return value


def tokens(text: str) -> list[str]:
    """Numbers, names and signs; refused where something else stands there."""
    found: list[str] = []
    at, text, depth = 0, text.strip(), 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None or len(found) >= TOKENS or len(match[1]) > DIGITS:
            raise Unreadable(text)
        found.append(match[1])
        at = match.end()
        depth += (match[1] in ("(", "[", "{")) - (match[1] in (")", "]", "}"))
        if depth > NESTING:
            raise Unreadable(text)
    return found


def literal(token: str) -> Fraction:
    """A number as written; 1e-3 is 0.001."""
    power = re.split("[eE]", token)[1:]
    if power and abs(int(power[0])) > DIGITS:
        raise Unreadable(token)
    return Fraction(token)


class Parser:
    """Sums of products of powers. A product sign may be left out between factors, not between two numbers."""

    def __init__(self, found: list[str]):
        self.tokens, self.at, self.bars = found, 0, 0
        dated = [t for t in found if len(t) > 1 and t[0] == "0" and t.isdecimal()]
        if dated and len(found) > 2:
            raise Unreadable("a number that begins with 0 inside an expression is a date or a code")

    @property
    def here(self) -> str | None:
        return self.ahead(0)

    def ahead(self, n: int) -> str | None:
        return self.tokens[self.at + n] if self.at + n < len(self.tokens) else None

    def take(self, *wanted: str) -> str:
        token = self.here
        if token is None or (wanted and token not in wanted):
            raise Unreadable(f"{token!r}")
        self.at += 1
        return token

    def sum(self) -> Any:
        value = self.signed(self.product)
        while self.here in ("+", "-"):
            sign = self.take()
            term = self.signed(self.product)
            value = add(value, term if sign == "+" else multiply(Fraction(-1), term))
        return value

    def signed(self, inner: Callable[[], Any]) -> Any:
        if self.here in ("+", "-"):
            value = Fraction(-1) if self.take() == "-" else Fraction(1)
            return multiply(value, inner())
        return inner()

    def product(self) -> Any:
        value, divided = self.factor(), 0
        while self.here is not None:
            if self.here in ("*", "\\cdot", "\\times"):
                self.take()
                value, divided = multiply(value, self.signed(self.factor)), 0
            elif self.here in ("/", "\\div"):
                self.take()
                value, divided = divide(value, self.signed(self.power)), divided + 1
                if divided > 1:
                    raise Unreadable("a/b/c is a date or needs brackets")
            elif self.starts():
                value = multiply(value, self.factor())
            else:
                break
        return value

    def starts(self) -> bool:
        """Whether a factor without a product sign follows."""
        token = self.here or ""
        if NUMBER.match(token):
            raise Unreadable("two numbers side by side")
        return token in ("(", "{") or (token == "|" and not self.bars) or token[:1] == "\\" or token[:1].isalpha()

    def factor(self) -> Any:
        mixed = self.mixed()
        return self.power() if mixed is None else mixed

    def mixed(self) -> Fraction | None:
        r"""1 1/2 and 1\frac{1}{2}, whose fraction must be below 1; None where no mixed number stands."""
        after = [self.ahead(n) or "" for n in range(8)]
        if not WHOLE.fullmatch(after[0]):
            return None
        if WHOLE.fullmatch(after[1]) and after[2] == "/" and WHOLE.fullmatch(after[3]):
            whole, above, below, length = after[0], after[1], after[3], 4
        elif after[1] == "\\frac" and [after[i] for i in (2, 4, 5, 7)] == ["{", "}", "{", "}"]:
            whole, above, below, length = after[0], after[3], after[6], 8
        else:
            return None
        if not (WHOLE.fullmatch(above) and WHOLE.fullmatch(below)):
            return None
        if not 0 < int(above) < int(below) or self.ahead(length) in ("^", "/", "!"):
            raise Unreadable("no mixed number")
        self.at += length
        return int(whole) + Fraction(int(above), int(below))

    def power(self) -> Any:
        value = self.atom()
        while self.here == "!":
            self.take()
            value = factorial(value)
        if self.here == "^":
            value = power(value, self.exponent())
        return value

    def exponent(self) -> Any:
        self.take("^")
        if self.here == "{":
            value = self.group("{", "}")
        else:
            value = self.signed(self.atom)
        if self.here in ("^", "!"):
            raise Unreadable("a^b^c needs brackets")
        return value

    def group(self, left: str, right: str) -> Any:
        self.take(left)
        bars, self.bars = self.bars, 0
        value = self.sum()
        self.bars = bars
        self.take(right)
        return value

    def argument(self) -> Any:
        r"""What stands in braces behind \frac or \sqrt; a single digit or letter needs none."""
        if self.here == "{":
            return self.group("{", "}")
        if NUMBER.match(self.here or "") and len(self.here or "") > 1:
            raise Unreadable("needs braces")
        return self.atom()

    def atom(self) -> Any:
        token = self.take()
        if NUMBER.match(token):
            return literal(token)
        if token in ("(", "{"):
            self.at -= 1
            return self.group(token, {"(": ")", "{": "}"}[token])
        if token == "|" and not self.bars:
            self.bars = 1
            value = self.sum()
            self.bars = 0
            self.take("|")
            return function("Abs", value)
        return self.named(token)

    def named(self, token: str) -> Any:
        name = token.removeprefix("\\")
        if token == "\\frac":
            above = self.argument()
            return divide(above, self.argument())
        if token == "\\binom":
            return binomial(self.argument(), self.argument())
        if name in ("sqrt", "cbrt"):
            degree = Fraction(3 if name == "cbrt" else 2)
            if self.here == "[":
                degree = self.group("[", "]")
            inside = self.argument() if token[0] == "\\" else self.atom()
            return power(inside, divide(Fraction(1), degree))
        if name in FUNCTIONS or name in ("log", "lg"):
            return self.call(name)
        if name == "pi":
            return sympy().pi
        if token == "e":
            return sympy().E
        if token == "i":
            return sympy().I
        if len(token) == 1 or (token[0] == "\\" and re.fullmatch(GREEK, name)):
            return self.letter(token)
        if token.isalpha() and PRODUCTS.fullmatch(token):
            self.tokens[self.at : self.at] = list(token)[1:]
            return self.letter(token[0])
        raise Unreadable(token)

    def letter(self, token: str) -> Any:
        if not token.lstrip("\\").isalpha():
            raise Unreadable(token)
        name = token
        if self.here == "_":
            self.take()
            index = self.take()
            if index == "{":
                index = self.take()
                self.take("}")
            name += f"_{index}"
            if not re.fullmatch(r"\\?[A-Za-z]+_[A-Za-z0-9]+", name):
                raise Unreadable(name)
        elif NUMBER.match(self.here or ""):
            raise Unreadable("a number behind a letter")
        return sympy().Symbol(name, real=True)

    def call(self, name: str) -> Any:
        base = self.base() if self.here == "_" else None
        raised = self.exponent() if self.here == "^" else None
        if self.here in ("(", "{"):
            inside = self.group(self.here, ")" if self.here == "(" else "}")
        else:
            inside = self.bare()
        value = self.logarithm(name, base, inside) if name in ("log", "lg") else function(FUNCTIONS[name], inside)
        return value if raised is None else power(value, raised)

    def base(self) -> Any:
        self.take("_")
        return self.argument()

    def logarithm(self, name: str, base: Any, inside: Any) -> Any:
        """A logarithm whose base is not said is that to some base, which one is left open."""
        top = function("log", inside)
        if name == "lg":
            base = Fraction(10)
        below = sympy().Symbol("log", positive=True) if base is None else function("log", base)
        return divide(top, below)

    def bare(self) -> Any:
        r"""An argument without brackets: \sin 2x is the sine of 2x, \sin x \cos x a product."""
        value = self.power()
        while (token := self.here) is not None and token not in ("(", "{", "|"):
            if token.removeprefix("\\") in NAMES - {"pi", "sqrt"} or not (token[0].isalpha() or token in ("\\pi",)):
                break
            value = multiply(value, self.power())
        return value


def sympy() -> Any:
    """Imported when the first expression needs it."""
    import sympy as module

    return module


def symbolic(value: Any) -> Any:
    """A Fraction as sympy's rational."""
    return sympy().Rational(value.numerator, value.denominator) if isinstance(value, Fraction) else value


def simple(value: Any) -> Any:
    """A rational of sympy as a Fraction; what is infinite or undefined is refused, and what is too large."""
    if not isinstance(value, Fraction):
        if value.has(sympy().nan, sympy().zoo, sympy().oo, sympy().S.NegativeInfinity):
            raise Unreadable("not finite")
        if not value.is_Rational:
            return value
        value = Fraction(int(value.p), int(value.q))
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
        raise Unreadable("too large")
    return value


def add(a: Any, b: Any) -> Any:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return simple(a + b)
    return simple(symbolic(a) + symbolic(b))


def multiply(a: Any, b: Any) -> Any:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return simple(a * b)
    return simple(symbolic(a) * symbolic(b))


def divide(a: Any, b: Any) -> Any:
    if isinstance(b, Fraction):
        if not b:
            raise Unreadable("division by 0")
        return multiply(a, 1 / b)
    return simple(symbolic(a) / symbolic(b))


def power(base: Any, exponent: Any) -> Any:
    """A power whose exponent is small: a rational up to 1,000, or an expression without powers of its own."""
    if isinstance(exponent, Fraction):
        if isinstance(base, Fraction) and exponent.denominator <= EXPONENT:
            if exponent < 0 and not base:
                raise Unreadable("division by 0")
            size = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent)
            if size > BITS:
                raise Unreadable("too large")
            if exponent.denominator == 1:
                return base ** int(exponent)
            if max(abs(base.numerator), base.denominator).bit_length() > ROOT or abs(exponent) > EXPONENT:
                raise Unreadable("root of too large a number")
        elif max(abs(exponent.numerator), exponent.denominator) > EXPONENT:
            raise Unreadable("exponent too large")
    elif exponent.has(sympy().exp) or any(not p.exp.is_Rational for p in exponent.atoms(sympy().Pow)):
        raise Unreadable("a tower of powers")
    elif not exponent.free_symbols and abs(complex(exponent.evalf(5))) > EXPONENT:
        raise Unreadable("exponent too large")
    value = simple(symbolic(base) ** symbolic(exponent))
    if not isinstance(value, Fraction) and any(
        p.exp.is_Rational and abs(p.exp) > EXPONENT for p in value.atoms(sympy().Pow)
    ):
        raise Unreadable("powers of powers, together too large")
    return value


def function(name: str, inside: Any) -> Any:
    if name == "Abs" and isinstance(inside, Fraction):
        return abs(inside)
    if name == "exp":
        return power(sympy().E, inside)
    return simple(getattr(sympy(), name)(symbolic(inside)))


def factorial(value: Any) -> Any:
    if isinstance(value, Fraction):
        if value.denominator != 1 or not 0 <= value <= FACTORIAL:
            raise Unreadable("no factorial, or too large")
        return Fraction(math.factorial(int(value)))
    if value.free_symbols:
        return sympy().factorial(value)
    raise Unreadable("no factorial")


def binomial(n: Any, k: Any) -> Any:
    if not (isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1):
        raise Unreadable("no binomial coefficient")
    if not 0 <= k <= n <= FACTORIAL:
        raise Unreadable("no binomial coefficient, or too large")
    return Fraction(math.comb(int(n), int(k)))


def equal(a: Any, b: Any) -> bool:
    """The same value, exactly: a decimal is not an irrational number however many of its digits it has."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = symbolic(a), symbolic(b)
    if a == b:
        return True
    difference = a - b
    letters = sorted(difference.free_symbols, key=str)
    for shift in (0, 1):  # where the numbers differ there is nothing to prove
        values = {x: sympy().Rational(7 * n + 5 + 3 * shift, 3 * n + 4) for n, x in enumerate(letters)}
        gap = difference.subs(values).evalf(40, maxn=200)
        if gap.is_number and gap.is_finite and abs(gap) > sympy().Rational(1, 10**25):
            return False
    return sympy().simplify(difference) == 0 or difference.equals(0) is True
