"""Rewards of the user's own: Python functions and a learnt reward, each with a weight."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from anypolicy.data.records import LARGEST, Prompt
from anypolicy.errors import RAISED, InputError
from anypolicy.runs.objects import PREFIX, given, is_object
from anypolicy.runs.trust import load_module

Named = dict[str, float]
"""What each reward gave a response, those left out that abstained."""


@dataclass(frozen=True)
class OwnReward:
    """`function(prompt, responses)` gives one number for each response of a group; None where it has nothing to say.
    Parameters after these two get the row's fields of their names, `**fields` all of them, `answer` and `reference`
    too. It may be `async`: the groups of a step are then asked at once."""

    name: str
    function: Callable[..., Any]
    weight: float = 1.0

    def __call__(self, prompt: Prompt, responses: list[str]) -> Any:
        """What the function returns (for an async one, what is to be awaited)."""
        try:
            return self.function(prompt, responses, **self.fields(prompt))
        except InputError:
            raise
        except RAISED as error:
            raise self.failed(prompt, error) from error

    def fields(self, prompt: Prompt) -> dict[str, Any]:
        """The row's fields that the function asks for."""
        try:
            asked = list(inspect.signature(self.function).parameters.values())[2:]
        except (TypeError, ValueError):  # a function that Python cannot look into
            return {}
        known = {**prompt.info, "answer": prompt.answer, "reference": prompt.reference}
        if any(p.kind is p.VAR_KEYWORD for p in asked):
            return known
        named = [p for p in asked if p.kind is not p.VAR_POSITIONAL]
        for p in named:
            if p.name not in known and p.default is p.empty:
                told = f"a function can ask for {', '.join(known)}: rename the parameter, or give it a default"
                raise InputError(f"reward {self.name}", p.name, told, choices=known)
        return {p.name: known[p.name] for p in named if p.name in known}

    def checked(self, prompt: Prompt, responses: list[str], given: Any) -> list[float | None]:
        """One finite number, or None, for each response."""
        try:
            values = [None if v is None else float(v) for v in given]
        except RAISED as error:
            raise self.failed(prompt, error) from error
        if len(values) != len(responses):
            told = f"return one number for each of the {len(responses)} responses"
            raise InputError(f"reward {self.name}", f"{len(values)} values", told)
        if bad := [v for v in values if v is not None and not abs(v) <= LARGEST]:
            told = f"rewards must be finite numbers of at most {LARGEST:g}; look at prompt {prompt.id!r}"
            raise InputError(f"reward {self.name}", bad[0], told)
        return values

    def failed(self, prompt: Prompt, error: BaseException) -> InputError:
        """The error where the function itself failed, with the line."""
        own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
        at = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        told = f"it failed{at} on prompt {prompt.id!r}: mend it, and go on with `anypolicy resume`"
        return InputError(f"reward {self.name}", f"{type(error).__name__}: {error}", told)


class OwnRewards:
    """R = Σ_k w_k r_k over the rewards that have something to say; NaN (no reward: the response trains nothing) where
    none has."""

    def __init__(self, parts: Sequence[OwnReward]):
        self.parts = tuple(parts)
        names = [p.name for p in self.parts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError("reward", twice[0], "there are two rewards of this name: rename one of the functions")

    def __call__(self, groups: Sequence[tuple[Prompt, list[str]]]) -> list[list[Named]]:
        """What each reward gives every response of every group (a prompt and the texts of its responses)."""
        out = [[Named() for _ in texts] for _, texts in groups]
        for part in self.parts:
            given = awaited([part(prompt, texts) for prompt, texts in groups], part, groups)
            for (prompt, texts), values, named in zip(groups, given, out, strict=True):
                for response, value in zip(named, part.checked(prompt, texts, values), strict=True):
                    if value is not None:
                        response[part.name] = value
        return out

    def total(self, named: Named) -> float:
        """R of a response."""
        return sum(p.weight * named[p.name] for p in self.parts if p.name in named) if named else math.nan


def awaited(given: list[Any], part: OwnReward, groups: Sequence[tuple[Prompt, list[str]]]) -> list[Any]:
    """The values themselves where a function is async: all at once, in a thread of their own (a notebook has a loop of
    events already)."""
    if not any(inspect.isawaitable(x) for x in given):
        return given

    async def one(x: Any, prompt: Prompt) -> Any:
        try:
            return await x
        except RAISED as error:
            raise part.failed(prompt, error) from error

    async def every() -> list[Any]:
        return await asyncio.gather(*(one(x, prompt) for x, (prompt, _) in zip(given, groups, strict=True)))

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(every())).result()


def own_rewards(function: Any) -> OwnRewards:
    """Several rewards as they are, a single function (prompt, responses) as one of them."""
    if isinstance(function, OwnRewards):
        return function
    return OwnRewards([OwnReward(str(getattr(function, "__name__", function)), function)])


def load_reward(spec: str) -> OwnReward:
    """FILE.py:FUNCTION, or FILE.py:FUNCTION:WEIGHT; or the name of a function that was handed in."""
    if is_object(spec):
        whole, _, factor = spec.partition(":")
        if not callable(function := given("reward", whole)):
            raise InputError("reward", function, "use a function (prompt, responses, …) that gives one number for each")
        return OwnReward(whole.removeprefix(PREFIX), function, weighed(spec, factor or "1"))
    known = re.fullmatch(r"(.+\.py):([^:]+)(?::([^:]*))?", spec)
    if known is None or not isfile(known[1]):
        raise InputError("reward", spec, "give FILE.py:FUNCTION (and :WEIGHT) with an existing file")
    path, name, weight = known[1], known[2], weighed(spec, known[3] or "1")
    module = load_module("reward", Path(path), f"anypolicy_reward_{Path(path).stem}")
    if not callable(getattr(module, name, None)):
        raise InputError("reward", name, f"{path} has no such function", choices=dir(module))
    return OwnReward(name, getattr(module, name), weight)


def weighed(spec: str, text: str) -> float:
    """The weight that a reward is given, a finite number."""
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise InputError("reward", spec, f"the weight is {text!r}: write a number")
