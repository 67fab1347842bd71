"""One string, one task: `name` or `name:key=value,key=value`."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from anypolicy.errors import InputError, check_values
from anypolicy.runs.digests import ROWS
from anypolicy.runs.objects import PREFIX, given
from anypolicy.tasks.arguments import call, parse
from anypolicy.tasks.language.base import Task


def reasoning_gym(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.language.reasoning_gym import ReasoningGymTask

    return call(ReasoningGymTask, name, (name.removeprefix("reasoning-gym/"), seed), settings)


def hub(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.language.prompts import from_hub

    return call(from_hub, name, (name.removeprefix("hf/"),), settings)


def jsonl(name: str, seed: int, settings: dict[str, Any]) -> Task:
    from anypolicy.tasks.language import chats, prompts, recorded, revisions
    from anypolicy.tasks.lines import json_lines

    _, first = next(json_lines(name, "a prompt and an answer or response"), ("", {}))
    if {"generated", "report"} <= first.keys():
        return call(revisions.from_revisions, name, (name, load_task, seed), settings)
    kinds = {("chosen", "rejected"): recorded.from_pairs, ("completion", "label"): recorded.from_labels,
             ("context", "responses"): recorded.from_stream, ("conversation",): chats.from_chats}  # fmt: skip
    build = next((b for fields, b in kinds.items() if all(f in first for f in fields)), prompts.from_jsonl)
    return call(build, name, (name,), settings)


NAMED = {
    "humaneval": ("humaneval", "HumanEval"),
    "tiny-add": ("tiny_add", "TinyAdd"),
    "digit-chain": ("digit_chain", "DigitChain"),
    "noisy-sort": ("noisy_sort", "NoisySort"),
    "reverse-and-pick": ("reverse_and_pick", "ReverseAndPick"),
    "shapes": ("shapes", "Shapes"),
    "slots": ("slots", "Slots"),
    "tabular-lock": ("tabular_lock", "TabularLock"),
}
"""Name → module here, class. It is given the seed, where it has one, and its settings by name."""


def named(name: str, seed: int, settings: dict[str, Any]) -> Task:
    module, kind = NAMED[name]
    build: Any = getattr(importlib.import_module(f"anypolicy.tasks.language.{module}"), kind)
    return call(build, name, (seed,) if "seed" in inspect.signature(build).parameters else (), settings)


def handed(name: str, seed: int, settings: dict[str, Any]) -> Task:
    value = given("task", name)
    if isinstance(value, list):
        return jsonl(name, seed, settings)
    if not all(hasattr(value, x) for x in ("train", "heldout", "score", "max_tokens")):
        raise InputError("task", value, "hand in a list of rows, a datasets.Dataset, or a task (train, heldout, score, "
                         "max_tokens)")  # fmt: skip
    return value


PREFIXES = {"reasoning-gym/": reasoning_gym, "hf/": hub, PREFIX: handed}


def load_task(spec: str, *, seed: int = 0) -> Task:
    """Make a task from its name: reasoning-gym/DATA SET, hf/DATA SET or folder, FILE.jsonl (or .jsonl.gz, .json, .csv,
    .parquet), humaneval, tiny-add, digit-chain, noisy-sort, reverse-and-pick, shapes, slots, tabular-lock.

    Settings follow a colon, e.g. `reasoning-gym/chain_sum:min_terms=2,max_terms=2`; a value may be quoted to hold a
    comma. The seed decides what is generated, not on which side of the split a problem is.
    """
    check_values({"task": str}, {"task": spec})
    name, _, arguments = spec.partition(":")
    if name.endswith(ROWS):
        build = jsonl
    else:
        build = named if name in NAMED else next((b for prefix, b in PREFIXES.items() if name.startswith(prefix)), None)
    if build is None:
        known = [*NAMED, *(f"{p}…" for p in PREFIXES if p != PREFIX), "FILE.jsonl (.jsonl.gz, .json, .csv, .parquet)"]
        if name.startswith("gym/"):
            raise InputError("task", spec, "it is an environment, for controllers (ppo-control, sac, dqn, …), "
                             f"and this method learns from prompts: {', '.join(known)}")  # fmt: skip
        raise InputError("task", spec, f"use {', '.join(known)}", choices=known)
    return build(name, seed, parse(arguments))
