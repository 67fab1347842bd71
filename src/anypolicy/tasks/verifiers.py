"""Verifiers by name: does a response answer the question?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from anypolicy.errors import InputError
from anypolicy.tasks.numeric import Judge
from anypolicy.tasks.values import payable

Verifier = Callable[[str, str], bool]

judge = Judge()


def exact(response: str, answer: str) -> bool:
    """The same text, white space aside."""
    return response.split() == answer.split()


def numeric(response: str, answer: str) -> bool:
    """The same mathematical value (`values`): 1/2 = 0.5, LaTeX included; the final answer of the response."""
    return judge(response, answer)


def pattern(response: str, answer: str) -> bool:
    """The whole response, stripped, matches the regular expression."""
    return re.fullmatch(answer, response.strip(), re.DOTALL) is not None


VERIFIERS: dict[str, Verifier] = {"exact": exact, "numeric": numeric, "regex": pattern}


def verifier(name: str) -> Verifier:
    """A verifier by name."""
    if name not in VERIFIERS:
        raise InputError("verifier", name, f"use {', '.join(VERIFIERS)}", choices=VERIFIERS)
    return VERIFIERS[name]


def check_golds(name: str, golds: Sequence[str]) -> list[bool]:
    """Whether the verifier pays each gold to a response that gives it; what a pattern accepts is not asked."""
    if name == "regex":
        return [True] * len(golds)
    check = payable if name == "numeric" else str.split
    known = {gold: bool(check(gold)) for gold in dict.fromkeys(golds)}
    return [known[gold] for gold in golds]
