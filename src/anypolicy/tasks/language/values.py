r"""Answers as values: numbers with units, lists, sets, tuples, intervals, times, ratios, equations, inequalities.

`same` says whether a response gives a gold's value. Both are read by one grammar; where the answer stands in a response
is found by rules of their own (`responses`). What cannot be read has no value and is equal to nothing. This module
imports neither torch nor, until an expression needs it, sympy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from anypolicy.tasks.language.expressions import GREEK, Unreadable, add, equal, expression, multiply
from anypolicy.tasks.language.responses import OTHER, SCALES, UNITS, WORDS, answers, marked

LENGTH = 1000
PLAIN = re.compile(r"-?(?:0|[1-9][0-9]{0,99})(?:\.[0-9]{1,99})?|-?[1-9][0-9]{0,99}/[1-9][0-9]{0,99}")
SIGNS = {
    "−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ",
    "∪": "\\cup ", "∈": "\\in ", "±": "\\pm ", "°": "\\degree ", "√": "sqrt ", "²": "^2", "³": "^3", "∅": "\\emptyset ",
    "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "€": "\\euro ", "£": "\\pound ", "**": "^", "<=": "\\le ", ">=": "\\ge ",
    "\\%": "%", "\\$": "$", "\\{": "⦃", "\\}": "⦄", "\\lbrace": "⦃", "\\rbrace": "⦄", "^\\circ": "\\degree ",
    "^{\\circ}": "\\degree ", "{,}": "", "~": " ",
}  # fmt: skip
SPACES = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|limits|[bB]igg?[lr]?)(?![A-Za-z])")
RENAMED = {
    "dbinom": "binom", "tbinom": "binom", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le",
    "leqslant": "le", "geq": "ge", "geqslant": "ge", "lt": "<", "gt": ">", "varnothing": "emptyset", "lvert": "|",
    "rvert": "|", "vert": "|",
}  # fmt: skip
TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
DOLLARS = re.compile(r"\$(?=\d)")
REPEATING = re.compile(r"(?<![\d.])(\d{0,20})\.(\d{0,20})\\overline\s*\{?(\d{1,20})\}?(?!\.?\d)")
CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+")
RELATION = re.compile(r"\\(?:le|ge|in)(?![A-Za-z])|[<>=]")
FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
MATRIX = re.compile(r"\\begin\{([pb])matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
OPEN, CLOSED = "([{⦃", ")]}⦄"
LETTER = re.compile(rf"(?:[A-Za-z]|\\(?:{GREEK})(?![A-Za-z]))(?:_\{{?[A-Za-z0-9]+\}}?)?")
NAME = re.compile(rf"{LETTER.pattern}(?:\(\s*[a-z]\s*\))?|\(\s*{LETTER.pattern}(?:\s*,\s*{LETTER.pattern})+\s*\)")
QUANTITY = re.compile(
    rf"(.*?(?:[\d)\]}}!]|\\pi))\s*((?:/(?=[A-Za-z]{{3}}))?{WORDS}(?:\s*/?\s*{WORDS})*)(?:\s*\^\s*\{{?([23])\}}?)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Value:
    """What an answer is: its kind, its parts, and a number's unit, an equation's left side or a row's brackets."""

    kind: str
    parts: tuple[Any, ...]
    note: str = ""


def make() -> Callable[[str, str], bool]:
    """`same`, for the scorers' process, with sympy imported once for all answers."""
    import sympy as sympy

    return same


def same(response: str, answer: str) -> bool:
    """Whether the answer of a response has the value of the gold `answer`."""
    try:
        gold = gold_value(answer)
        return pays(gold, response_value(response))
    except Exception:  # what has no value, and whatever sympy raises on an expression it cannot compare
        return False


def payable(answer: str) -> bool:
    """Whether a gold is paid to responses that give it: as it stands, boxed, as mathematics and in a sentence."""
    if PLAIN.fullmatch(answer):
        return True
    shown = marked(answer) or answer
    return all(same(f, answer) for f in (answer, f"\\boxed{{{shown}}}", f"${shown}$", f"The answer is {shown}."))


def gold_value(text: str) -> Value:
    r"""The value of a gold, which is nothing but the value, or a solution that ends with \boxed{…} or #### …"""
    found = marked(text)
    return read(text if found is None else found)


def response_value(text: str) -> Value:
    """The value of the answer of a response: of the first reading that `answers` offers and that can be read."""
    for candidate in answers(text):
        for written in dict.fromkeys((candidate, DOLLARS.sub("", candidate))):  # 9 × $2 = $18
            with suppress(Unreadable):
                return read(written)
    raise Unreadable(text[-100:])


def tidy(text: str) -> str:
    """One way of writing each sign, and no delimiters of mathematics."""
    if len(text) > LENGTH:
        raise Unreadable("too long")
    text = text.strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(left) and text.endswith(right) and len(text) >= len(left + right):
            text = text[len(left) : -len(right)]
    for written, meant in SIGNS.items():
        text = text.replace(written, meant)
    text = SPACES.sub(" ", re.sub(r"(?<!\\)\\([!,;: ])", lambda m: "" if m[1] == "!" else " ", text))
    text = re.sub(r"\\([A-Za-z]+)", lambda m: "\\" + RENAMED[m[1]] if m[1] in RENAMED else m[0], text)
    text = re.sub(r"\\([|<>])", r"\1", text)
    text = REPEATING.sub(repeating, text)
    text = TEXT.sub(lambda m: f" {m[1].strip()} ", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(?<=\d)\s+(1/[24]|3/4)(?![\d/])", r" \1", text)
    if not text.replace("⦃", "").replace("⦄", "").isascii():
        raise Unreadable(text)
    return text.strip().removesuffix(".").strip()


def repeating(found: re.Match[str]) -> str:
    r"""0.1\overline{6} as the fraction (15/90)."""
    before, digits = found[1] + found[2], found[3]
    above = int(before + digits) - int(before or "0")
    return f"({above}/{(10 ** len(digits) - 1) * 10 ** len(found[2])})"


def read(text: str) -> Value:
    """The value of an answer's text; Unreadable where the rules give it none."""
    text = tidy(text)
    if "\\pm" in text:
        signs = [text.replace("\\pm", "+"), text.replace("\\pm", "-")]
        return Value("list", tuple(part(re.sub(r"^\s*\+", "", s)) for s in signs))
    return part(text)


def part(text: str) -> Value:
    text = text.strip()
    matrix = MATRIX.fullmatch(text)
    if matrix:
        rows = [Value("row", tuple(part(c) for c in r.split("&"))) for r in matrix[2].strip().split("\\\\")]
        return Value("row", tuple(rows), "matrix")
    depths = nesting(text)
    if not depths or depths[-1] or min(depths) < 0:
        raise Unreadable(text)
    text = "".join(c for c, keep in zip(text, outside(text, depths)) if keep)
    text = re.sub(r"\s*,?\s*\b(?:and|or)\b\s*", ",", text)
    items = cut(text, ",") if "," in text else cut(text, ";")
    if len(items) > 1:
        return Value("list", tuple(part(i) for i in items))
    return related(text) or timed(text) or bracketed(text) or quantity(text)


def nesting(text: str) -> list[int]:
    """The depth of brackets behind every character; [0, 1) is a pair."""
    depths, depth = [], 0
    for c in text:
        depth += (c in OPEN) - (c in CLOSED)
        depths.append(depth)
    return depths


def outside(text: str, depths: list[int]) -> list[bool]:
    """Which characters stay when commas that mark thousands go: 1,000 outside brackets is one number."""
    keep = [True] * len(text)
    for match in THOUSANDS.finditer(text):
        for i in range(*match.span()):
            keep[i] = text[i] != "," or depths[i] > 0
    return keep


def cut(text: str, sign: str) -> list[str]:
    """The text between the signs that stand outside all brackets."""
    parts, start = [], 0
    for i, (c, depth) in enumerate(zip(text, nesting(text))):
        if c == sign and not depth:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def related(text: str) -> Value | None:
    """An equation, or a chain of inequalities, turned to read upwards."""
    depths = nesting(text)
    found = [m for m in RELATION.finditer(text) if not depths[m.start()]]
    unions = [m for m in re.finditer(r"\\cup(?![A-Za-z])", text) if not depths[m.start()]]
    if not found:
        return Value("union", tuple(part(s) for s in between(text, unions))) if unions else None
    signs, sides = [m[0] for m in found], between(text, found)
    if signs == ["\\in"] and NAME.fullmatch(sides[0]):
        return Value("equation", (None, part(sides[1])), sides[0])
    if set(signs) == {"="}:
        if NAME.fullmatch(sides[-1]) and not NAME.fullmatch(sides[0]):
            sides = sides[::-1]
        if NAME.fullmatch(sides[0]):
            return Value("equation", (None, side(sides[-1])), re.sub(r"[\s{}]", "", sides[0]))
        return Value("equation", (side(sides[0]), side(sides[-1])))
    if set(signs) <= {">", "\\ge"}:
        signs, sides = [FLIPPED[s] for s in reversed(signs)], sides[::-1]
    if not set(signs) <= {"<", "\\le"}:
        raise Unreadable(text)
    return Value("chain", tuple(side(s) for s in sides), " ".join(signs))


def between(text: str, found: list[re.Match[str]]) -> list[str]:
    """The stripped texts between matches."""
    starts, ends = [0, *(m.end() for m in found)], [*(m.start() for m in found), len(text)]
    return [text[i:j].strip() for i, j in zip(starts, ends)]


def side(text: str) -> Value:
    """A side of a relation, which may be a letter."""
    return Value("number", (expression(text),)) if LETTER.fullmatch(text) else part(text)


def timed(text: str) -> Value | None:
    """12:30 is a time, 3:4 a ratio."""
    if ":" not in text:
        return None
    clock = CLOCK.fullmatch(text)
    if clock and int(clock[1]) < 25:
        hour = int(clock[1]) % 12 + 12 * (clock[4].lower() == "p") if clock[4] else int(clock[1])
        return Value("time", (hour, int(clock[2]), int(clock[3] or 0)))
    if not RATIO.fullmatch(text):
        raise Unreadable(text)
    parts = [Fraction(p) for p in text.replace(" ", "").split(":")]
    if not all(parts):
        raise Unreadable(text)
    return Value("ratio", tuple(p / parts[0] for p in parts))


def bracketed(text: str) -> Value | None:
    """A tuple, an interval, a set; None where the brackets only group."""
    if text == "\\emptyset":
        return Value("set", ())
    depths = nesting(text)
    if text[:1] not in tuple(OPEN) or 0 in depths[:-1]:
        return None
    inside = text[1:-1].strip()
    items = cut(inside, ",") if inside else []
    kind = text[0] + text[-1]
    if kind == "⦃⦄" or (kind == "{}" and len(items) > 1):
        return Value("set", tuple(part(i) for i in items))
    if kind in ("()", "{}") and len(items) == 1:
        return None
    if not items or kind not in ("()", "[]", "[)", "(]"):
        raise Unreadable(text)
    return Value("row", tuple(part(i) for i in items), kind)


def quantity(text: str) -> Value:
    """A number or an expression, with its unit."""
    bare = text.strip("() ")
    if LETTER.fullmatch(bare) and bare not in ("e", "i"):
        raise Unreadable("a letter is no value")
    if text.isalpha() and text not in ("e", "i"):
        raise Unreadable("a word is no value")
    unit, factor = "", 1
    money = re.match(r"-?\s*(\$|\\euro|\\pound)\s*(?=[\d.])", text)
    percent = re.fullmatch(r"(.*?)\s*(%|\\degree|\\euro|\\pound|\$|\bpercent)\s*([CFK]?)", text, re.DOTALL)
    if money:
        unit, text = money[1].lstrip("\\"), text.replace(money[1], "", 1)
    elif percent:
        unit, text = percent[2].replace("percent", "%").lstrip("\\") + percent[3], percent[1]
    words = QUANTITY.fullmatch(text)
    if words and not percent:
        said = re.findall(r"[A-Za-z]+|/", words[2])
        if OTHER.fullmatch(said[0]):
            raise Unreadable("no unit: 5 squared is 25")
        factor = SCALES.get(said[0].lower(), 1)
        known = [UNITS.get(w) or UNITS.get(w.lower(), "") for w in said]
        unit = unit or "".join(sorted(known, key=str.isdigit)) + (words[3] or "")
        text = words[1]
    infinite = re.fullmatch(r"([-+]?)\s*\\infty", text.strip())
    if infinite:
        return Value("infinity", (infinite[1] == "-",))
    return Value("number", (multiply(expression(text), Fraction(factor)),), unit)


def pays(gold: Value, found: Value) -> bool:
    """Whether what a response says is the gold."""
    if found.kind == "equation" and gold.kind != "equation":
        return pays(gold, found.parts[1])
    if gold.kind == "equation":
        return equations(gold, found)
    if {gold.kind, found.kind} == {"chain", "row"}:
        gold, found = interval(gold), interval(found)
    if {gold.kind, found.kind} == {"union", "list"}:
        gold, found = united(gold), united(found)
    if len(gold.parts) != len(found.parts):
        return False
    if gold.kind in ("list", "set") and found.kind in ("list", "set"):
        return matched(gold, found)
    if gold.kind != found.kind or (gold.note != found.note and gold.kind != "number"):
        return False
    if gold.kind == "number":
        return numbers(gold, found)
    if gold.kind == "union":
        return matched(gold, found)
    if gold.kind in ("row", "chain"):
        return all(pays(g, f) for g, f in zip(gold.parts, found.parts, strict=True))
    return gold.parts == found.parts


def united(value: Value) -> Value:
    """x < 2 or x > 3 as a union; other values as they are."""
    chains = value.kind == "list" and all(p.kind == "chain" for p in value.parts)
    return Value("union", value.parts) if chains else value


def interval(value: Value) -> Value:
    """x > 3 and 0 < x < 1 as the numbers for which they hold; other values as they are."""
    sides: list[Value] = list(value.parts)
    if value.kind != "chain" or len(sides) > 3:
        return value
    letter = [i for i, s in enumerate(sides) if s.kind == "number" and getattr(s.parts[0], "is_Symbol", False)]
    signs = value.note.split()
    if letter == [0] and len(sides) == 2:
        sides, signs = [Value("infinity", (True,)), *sides], ["<", *signs]
    elif letter == [1] and len(sides) == 2:
        sides, signs = [*sides, Value("infinity", (False,))], [*signs, "<"]
    elif letter != [1]:
        return value
    return Value("row", (sides[0], sides[2]), "[("[signs[0] == "<"] + "])"[signs[1] == "<"])


def numbers(gold: Value, found: Value) -> bool:
    """A unit that one of them leaves out is that of the other; but a percent sign that a gold lacks is a hundredth."""
    a, b = gold.parts[0], found.parts[0]
    if gold.note == found.note or "%" not in (gold.note, found.note):
        return (gold.note == found.note or "" in (gold.note, found.note)) and equal(a, b)
    hundredth = Fraction(1, 100)
    if found.note == "%":
        return not gold.note and equal(a, multiply(b, hundredth))
    return not found.note and (equal(a, b) or equal(multiply(a, hundredth), b))


def matched(gold: Value, found: Value) -> bool:
    """The same parts in any order."""
    rest = list(found.parts)
    for g in gold.parts:
        hit = next((i for i, f in enumerate(rest) if pays(g, f)), None)
        if hit is None:
            return False
        del rest[hit]
    return True


def equations(gold: Value, found: Value) -> bool:
    """x = 3 is paid by 3 and x = 3; an equation in several letters by every multiple of it."""
    if found.kind != "equation":
        return bool(gold.note) and pays(gold.parts[1], found)
    if gold.note and gold.note == found.note:
        return pays(gold.parts[1], found.parts[1])
    if gold.note and gold.parts[1].kind == "number" and not letters(gold.parts[1].parts[0]):
        return False
    one, other = difference(gold), difference(found)
    if one is None or other is None or isinstance(one, Fraction) or isinstance(other, Fraction):
        return False
    ratio = (one / other).simplify()
    return not ratio.free_symbols and bool(ratio.is_finite) and not ratio.is_zero


def letters(value: Any) -> bool:
    return not isinstance(value, Fraction) and bool(value.free_symbols)


def difference(equation: Value) -> Any:
    """Left minus right, where both are expressions."""
    left, right = equation.parts
    if not isinstance(left, Value) and LETTER.fullmatch(equation.note):
        left = Value("number", (expression(equation.note),))
    if not isinstance(left, Value) or left.kind != "number" or right.kind != "number":
        return None
    return add(left.parts[0], multiply(right.parts[0], Fraction(-1)))
