"""`revise`: one answer of a policy to every prompt and an expert's report on it, as a file to learn from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from anypolicy.data.records import Prompt
from anypolicy.engines.base import Sampling
from anypolicy.engines.of_policy import engine_for
from anypolicy.errors import InputError, check_numbers, settled
from anypolicy.policies.language.load import load_policy
from anypolicy.runs.files import check_unused, make_place, new_folder, write_text
from anypolicy.runs.progress import counting
from anypolicy.runs.strict_json import json_text
from anypolicy.runs.trust import allow
from anypolicy.stages.lengths import check_lengths
from anypolicy.stages.recipe import World
from anypolicy.stages.revised import generated_items
from anypolicy.tasks.language.base import MakesPolicy, Revises
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.revisions import to_row, write_images

AT_ONCE = 64
"""Answers that are sampled together."""


@dataclass(frozen=True)
class Settings:
    """What `revise` needs."""

    task: str
    policy: str | None = None
    out: Path = Path("revisions.jsonl")
    prompts: int | None = None
    seed: int = 0
    max_tokens: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    expert: bool = True


class Made(NamedTuple):
    """Items in the file, and how many prompts gave none, by reason."""

    items: int
    dropped: dict[str, int]


def world_of(s: Settings) -> World:
    """Policy and task. Answers are sampled at temperature 1 from the whole vocabulary."""
    s = settled(s)
    check_numbers(s, positive=("prompts", "max_tokens"), natural=("seed",))
    if s.out.suffix != ".jsonl":
        raise InputError("out", str(s.out), "name a .jsonl file")
    for path in (s.out, images_of(s.out)):
        check_unused(path)
    make_place(s.out)
    allow(vars(s))
    task = load_task(s.task, seed=s.seed)
    if s.expert and not isinstance(task, Revises):
        raise InputError("task", s.task, "it cannot play the expert: give --no-expert and fill in the reports yourself")
    if missing := [p.id for p in task.train if p.reference is None]:
        raise InputError("task", missing[0], "this prompt has no reference answer: give one to each")
    if s.policy is None and not isinstance(task, MakesPolicy):
        raise InputError("policy", None, "the task brings none: name the policy whose answers are to be corrected")
    policy = load_policy(s.policy, dtype=s.dtype, seed=s.seed) if s.policy else task.make_policy(s.seed)  # type: ignore
    world = World(policy, engine_for(policy), task, Sampling(s.max_tokens or task.max_tokens), s.seed)
    check_lengths(world, list(task.train)[: s.prompts])
    return world


def images_of(out: Path) -> Path:
    """The folder of a file's images."""
    return out.with_name(out.stem + "-images")


def revise(s: Settings, *, quiet: bool = False) -> Made:
    """Write the file, and its images beside it. Nothing is written until all is there."""
    s = settled(s)
    world, found, dropped = world_of(s), list[Prompt](), Counter[str]()
    prompts = list(world.task.train)[: s.prompts]
    with counting(len(prompts), "revise", quiet=quiet) as tick:
        for start in range(0, len(prompts), AT_ONCE):
            for given in generated_items(world, prompts[start : start + AT_ONCE], expert=s.expert):
                if isinstance(given, str):
                    dropped[given] += 1
                else:
                    found.append(given)
                tick("")
    if not found:
        raise InputError("task", s.task, f"no item is left ({dict(dropped)}): look at the policy's answers")
    write_text(s.out, "".join(json_text(row, ensure_ascii=False) + "\n" for row in rows(found, images_of(s.out))))
    return Made(len(found), dict(dropped))


def rows(items: list[Prompt], folder: Path) -> list[dict[str, Any]]:
    """The lines, their images written into the folder."""
    if not any(p.media for p in items):
        return [to_row(p, ()) for p in items]
    with new_folder(folder, fresh=True) as work:
        named = [write_images(work, p.id, p.media.get("images", ())) for p in items]
    return [to_row(p, [f"{folder.name}/{n}" for n in names]) for p, names in zip(items, named, strict=True)]
