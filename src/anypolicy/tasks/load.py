"""One string, one task: `name` or `name:key=value,key=value`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

from anypolicy.data.readers import yaml_value
from anypolicy.errors import InputError, check_values
from anypolicy.runs.strict_json import json_text
from anypolicy.tasks.base import Task

Built = TypeVar("Built")


def reasoning_gym(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.reasoning_gym import ReasoningGymTask

    return call(ReasoningGymTask, name, (name.removeprefix("reasoning-gym/"), seed), settings)


def hub(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.prompts import from_hub

    return call(from_hub, name, (name.removeprefix("hf/"),), settings)


def jsonl(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks import chats, prompts, recorded, revisions
    from anypolicy.tasks.lines import json_lines

    _, first = next(json_lines(name, "a prompt and an answer or response"), ("", {}))
    if {"generated", "report"} <= first.keys():
        return call(revisions.from_revisions, name, (name, seed), settings)
    kinds = {("chosen", "rejected"): recorded.from_pairs, ("completion", "label"): recorded.from_labels,
             ("context", "responses"): recorded.from_stream, ("conversation",): chats.from_chats}  # fmt: skip
    build = next((b for fields, b in kinds.items() if all(f in first for f in fields)), prompts.from_jsonl)
    return call(build, name, (name,), settings)


def tiny_add(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.tiny_add import TinyAdd

    return call(TinyAdd, name, (seed,), settings)


def digit_chain(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.digit_chain import DigitChain

    return call(DigitChain, name, (seed,), settings)


def tabular_lock(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.tabular_lock import TabularLock

    return call(TabularLock, name, (seed,), settings)


def reverse_and_pick(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.reverse_and_pick import ReverseAndPick

    return call(ReverseAndPick, name, (seed,), settings)


def noisy_sort(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.noisy_sort import NoisySort

    return call(NoisySort, name, (seed,), settings)


def shapes(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.shapes import Shapes

    return call(Shapes, name, (seed,), settings)


def slots(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.slots import Slots

    return call(Slots, name, (seed,), settings)


def humaneval(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.humaneval import HumanEval

    return call(HumanEval, name, (), settings)


NAMED = {
    "humaneval": humaneval,
    "tiny-add": tiny_add,
    "digit-chain": digit_chain,
    "noisy-sort": noisy_sort,
    "reverse-and-pick": reverse_and_pick,
    "shapes": shapes,
    "slots": slots,
    "tabular-lock": tabular_lock,
}
PREFIXES = {"reasoning-gym/": reasoning_gym, "hf/": hub}


def load_task(spec: str, *, seed: int = 0) -> Task:
    """Make a task from its name: reasoning-gym/DATA SET, hf/DATA SET or folder, FILE.jsonl, humaneval, tiny-add,
    digit-chain, noisy-sort, reverse-and-pick, shapes, slots, tabular-lock.

    Settings follow a colon, e.g. `reasoning-gym/chain_sum:min_terms=2,max_terms=2`; a value may be quoted to hold a
    comma. The seed decides what is generated, not on which side of the split a problem is.
    """
    check_values({"task": str}, {"task": spec})
    name, _, arguments = spec.partition(":")
    if name.endswith(".jsonl"):
        build = jsonl
    else:
        build = NAMED.get(name) or next((b for prefix, b in PREFIXES.items() if name.startswith(prefix)), None)
    if build is None:
        known = [*NAMED, *(f"{p}…" for p in PREFIXES), "FILE.jsonl"]
        raise InputError("task", spec, f"use {', '.join(known)}", choices=known)
    return build(name, seed, parse(arguments))


def parse(arguments: str) -> dict[str, Any]:
    """`a=1,b=text` → {"a": 1, "b": "text"}, each value a YAML scalar."""
    out: dict[str, Any] = {}
    for part in _pairs(arguments) if arguments else []:
        key, equals, text = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError("task", part, "write its settings as key=value,key=value")
        if key in out:
            raise InputError(f"task.{key}", text, f"it is given twice (first {out[key]!r}): keep one")
        try:
            out[key] = yaml_value(text)
            json_text(out[key])  # dates and bytes have no place in a task
        except (TypeError, ValueError) as error:
            raise InputError(f"task.{key}", text, "this is no single value: put it in quotes") from error
        if not isinstance(out[key], str | int | float | list | dict | None):  # YAML has dates, sets and bytes, too
            raise InputError(f"task.{key}", text, "this is no single value: put it in quotes")
    return out


def _pairs(arguments: str) -> list[str]:
    """`key=value` texts; a comma inside a value that begins with a quote does not separate."""
    parts, quote = [""], ""
    for c in arguments:
        if c == "," and not quote:
            parts.append("")
            continue
        if c == quote:
            quote = ""
        elif c in "\"'" and not quote and parts[-1].rstrip().endswith("="):
            quote = c
        parts[-1] += c
    return parts


def call(build: Callable[..., Built], name: str, first: tuple[Any, ...], settings: dict[str, Any]) -> Built:
    """Build with keyword settings whose names and types the builder's own signature says.

    A builder that takes further settings (**config) checks those itself.
    """
    parameters = inspect.signature(build, eval_str=True).parameters.values()
    known = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    more = any(p.kind is p.VAR_KEYWORD for p in parameters)
    taken = {"self", *(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)}
    fitted: dict[str, Any] = {}
    for key, value in settings.items():
        if key in known:
            fitted[key] = fit(f"{name}.{key}", value, known[key])
        elif more and key not in taken:
            fitted[key] = value
        else:
            raise InputError(f"{name}.{key}", value, f"it has the settings {', '.join(known)}", choices=known)
    try:
        return build(*first, **fitted)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise InputError(
            "task", f"{name}: {fitted}", "it needs more memory than there is: use smaller sizes"
        ) from error


def fit(field: str, value: Any, kind: Any) -> Any:
    """The value as the annotated kind; YAML reads 1e-3 as text, so a float may be given as text."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value not in choices:
            raise InputError(field, value, f"use {', '.join(choices[:-1])} or {choices[-1]}", choices=choices)
        return value
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            value = float(value)
        except (ValueError, OverflowError) as error:
            raise InputError(field, value, "use a number") from error
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise InputError(field, value, f"use {KINDS[kind]}")
    if kind is int and abs(value) > MOST:
        raise InputError(field, value, f"use at most {MOST:,}")
    return value


MOST = 10**9
"""Of a whole number in a task's settings: they are sizes."""
KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text (in quotes where it looks like a number, a list or yes/no)",
}
