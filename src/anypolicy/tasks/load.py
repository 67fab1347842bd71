"""One string, one task: `name` or `name:key=value,key=value`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import yaml

from anypolicy.errors import InputError
from anypolicy.tasks.base import Task


def reasoning_gym(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.reasoning_gym import ReasoningGymTask

    return ReasoningGymTask(name.removeprefix("reasoning-gym/"), seed, **settings)


def hub(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.prompts import from_hub

    return call(from_hub, name, name.removeprefix("hf/"), settings)


def jsonl(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.prompts import from_jsonl

    return call(from_jsonl, name, name, settings)


def tiny_add(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.tiny_add import TinyAdd

    return call(TinyAdd, name, seed, settings)


def tabular_lock(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.tabular_lock import TabularLock

    return call(TabularLock, name, seed, settings)


NAMED = {"tiny-add": tiny_add, "tabular-lock": tabular_lock}
PREFIXES = {"reasoning-gym/": reasoning_gym, "hf/": hub}


def load_task(spec: str, *, seed: int = 0) -> Task:
    """Make a task from its name: reasoning-gym/DATA SET, hf/DATA SET or folder, FILE.jsonl, tiny-add, tabular-lock.

    Settings follow a colon, e.g. `reasoning-gym/chain_sum:min_terms=2,max_terms=2`; a value may be quoted to hold a
    comma. The seed decides what is generated, not on which side of the split a problem is.
    """
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
    """`a=1,b=text` → {"a": 1, "b": "text"}, values as YAML."""
    if not arguments:
        return {}
    try:
        flow = yaml.safe_load("{" + ", ".join(_pairs(arguments)) + "}")
    except yaml.YAMLError as error:
        raise InputError("task", arguments, "write its settings as key=value,key=value") from error
    return {str(k): v for k, v in flow.items()}


def _pairs(arguments: str) -> list[str]:
    """`key: value` texts; commas inside quotes do not separate."""
    parts, quote = [""], ""
    for c in arguments:
        quote = ("" if c == quote else quote) if quote else (c if c in "\"'" else "")
        if c == "," and not quote:
            parts.append("")
        else:
            parts[-1] += c
    for part in parts:
        if "=" not in part:
            raise InputError("task", part, "write its settings as key=value,key=value")
    return [part.replace("=", ": ", 1) for part in parts]


def call(build: Callable[..., Task], name: str, first: Any, settings: dict[str, Any]) -> Task:
    """Build with checked keyword settings."""
    known = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key in settings:
        if key not in known:
            raise InputError(f"{name}.{key}", settings[key], f"it has the settings {', '.join(known)}", choices=known)
    return build(first, **settings)
