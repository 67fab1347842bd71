"""Verifiers by name: does a response answer the question?"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable

from anypolicy.errors import InputError
from anypolicy.tasks.numeric import Judge

Verifier = Callable[[str, str], bool]

judge = Judge()


def exact(response: str, answer: str) -> bool:
    """The same text, white space aside."""
    return response.split() == answer.split()


def numeric(response: str, answer: str) -> bool:
    """The same mathematical value, by math-verify: 1/2 = 0.5, LaTeX included; the last expression of the response."""
    return judge(response, answer)


def pattern(response: str, answer: str) -> bool:
    """The whole response, stripped, matches the regular expression."""
    return re.fullmatch(answer, response.strip(), re.DOTALL) is not None


VERIFIERS: dict[str, Verifier] = {"exact": exact, "numeric": numeric, "regex": pattern}


def verifier(name: str) -> Verifier:
    """A verifier by name."""
    if name not in VERIFIERS:
        raise InputError("verifier", name, f"use {', '.join(VERIFIERS)}", choices=VERIFIERS)
    if name == "numeric" and importlib.util.find_spec("math_verify") is None:
        raise InputError("verifier", name, "install math-verify: pip install 'anypolicy[tasks]'")
    return VERIFIERS[name]
