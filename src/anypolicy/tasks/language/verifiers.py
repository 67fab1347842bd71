"""Verifiers by name: does a response answer the question?

exact    the same text, white space aside
numeric  the same mathematical value (`values`): 1/2 = 0.5, LaTeX included; the final answer of the response
regex    the whole response, stripped, matches the regular expression
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from anypolicy.errors import InputError
from anypolicy.sandbox.scorers import Outcome, Scorer, door
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.values import payable

SOURCES = {"numeric": ("expressions", "responses", "values"), "regex": ("patterns",)}
VERIFIERS = ("exact", *SOURCES)


def check_verifier(name: str) -> str:
    """The name, if there is such a verifier."""
    if name not in VERIFIERS:
        raise InputError("verifier", name, f"use {', '.join(VERIFIERS)}", choices=VERIFIERS)
    return name


@functools.cache
def scorer(name: str) -> Scorer:
    """The verifier for the process that scores answers."""
    return Scorer.of(f"verifier={name}", *(f"anypolicy.tasks.language.{module}" for module in SOURCES[name]))


def verify(name: str, pairs: Sequence[tuple[str, str]]) -> list[Score]:
    """The verdicts on pairs (response, answer)."""
    if name == "exact":
        return [scored(Outcome("scored", response.split() == answer.split())) for response, answer in pairs]
    return [scored(outcome) for outcome in door.score(scorer(name), pairs)]


def scored(outcome: Outcome, *, graded: bool = False) -> Score:
    """A full score is correct; what is below it, or what could not be scored, is not, and is paid only if `graded`."""
    if outcome.verdict in ("refused", "timeout", "ended"):
        return Score(0.0, False, outcome.verdict)
    correct = outcome.value >= 1
    return Score(min(max(outcome.value, 0.0), 1.0) if graded and outcome.value > 0 else float(correct), correct)


def check_golds(name: str, golds: Sequence[str]) -> list[bool]:
    """Whether the verifier pays each gold to a response that gives it; what a pattern accepts is not asked."""
    if name == "regex":
        return [True] * len(golds)
    check = payable if name == "numeric" else str.split
    known = {gold: bool(check(gold)) for gold in dict.fromkeys(golds)}
    return [known[gold] for gold in golds]
