"""Composition: `a+b` takes from b the stages that b changes, `a+b.stage` takes one stage, left to right."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from anypolicy.catalogue import Method, build, get
from anypolicy.errors import InputError, checked
from anypolicy.stages.recipe import GroupRecipe

STAGES = tuple(f.name for f in fields(GroupRecipe))
"""The stages of the language family, in the order of events."""


@dataclass(frozen=True)
class Composition:
    """A recipe and where each of its stages comes from (stage → slug)."""

    spec: str
    recipe: GroupRecipe
    origin: dict[str, str]
    knobs: dict[str, dict[str, Any]]


def parse(spec: str) -> list[tuple[Method, str | None]]:
    """`a+b.stage` → [(a, None), (b, "stage")], every name checked."""
    parts: list[tuple[Method, str | None]] = []
    for word in spec.split("+"):
        slug, dot, stage = word.strip().partition(".")
        if dot and stage not in STAGES:
            raise InputError(
                "stage", stage, f"in {word!r}: a method has the stages {', '.join(STAGES)}", choices=STAGES
            )
        parts.append((get(slug), stage or None))
    return parts


@checked
def compose(spec: str, knobs: dict[str, dict[str, Any]] | None = None) -> Composition:
    """Build the recipe of a composition. `knobs` maps a method's slug to settings of its own.

    The first method gives every stage. A whole method after it gives the stages its card says it changes; two of them
    that change the same stage, the first one included unless it is plain, are an error until a `.stage` says whose it
    is. A `.stage` part always wins.
    """
    parts = parse(spec)
    knobs = dict(knobs or {})
    names = [m.slug for m, _ in parts]
    for slug in knobs:
        if slug not in names:
            raise InputError("settings", slug, f"{spec!r} has only the methods {', '.join(names)}", choices=names)
    base, first = parts[0]
    if first is not None:
        raise InputError("method", spec, f"begin with a whole method, e.g. {base.slug} or grpo+{base.slug}.{first}")
    built = {m.slug: build(m, knobs.get(m.slug, {})) for m, _ in parts}
    origin = dict.fromkeys(STAGES, base.slug)
    picked = {stage: m.slug for m, stage in parts[1:] if stage}
    if len(picked) < sum(stage is not None for _, stage in parts[1:]):
        raise InputError("method", spec, "a stage is taken twice: name each stage once")
    claimed = dict.fromkeys(base.card.changes, base.slug)
    for other, stage in parts[1:]:
        if stage:
            continue
        if not other.card.changes:
            raise InputError(
                "method", spec, f"{other.slug} changes no stage: begin with it, or take {other.slug}.STAGE"
            )
        for changed in other.card.changes:
            rival = claimed.get(changed)
            if rival and changed not in picked:
                rest = "+".join(w for w in spec.split("+") if w.strip() != other.slug)
                wanted = f"{rest}+{other.slug}.{changed}"
                raise InputError(
                    "method", spec, f"{rival} and {other.slug} both change the {changed}: write {wanted} for that of "
                    f"{other.slug}, or take from {other.slug} only the stages you want",
                )  # fmt: skip
            claimed[changed] = origin[changed] = other.slug
    origin |= picked
    recipe = replace(built[base.slug], **{stage: getattr(built[slug], stage) for stage, slug in origin.items()})
    contradictions([m for m, _ in parts], origin)
    unused({m.slug: m for m, _ in parts}, built, knobs, origin)
    return Composition(spec, recipe, origin, {slug: k for slug, k in knobs.items() if k})


def unused(
    used: dict[str, Method], built: dict[str, GroupRecipe], knobs: dict[str, dict[str, Any]], origin: dict[str, str]
) -> None:
    """A setting that changes no stage that was taken is an error, not a silent nothing."""
    for slug, given in knobs.items():
        taken = [stage for stage, owner in origin.items() if owner == slug]
        for name, value in given.items():
            if value == used[slug].knobs[name].default:
                continue
            without = build(used[slug], {k: v for k, v in given.items() if k != name})
            if all(getattr(without, stage) == getattr(built[slug], stage) for stage in taken):
                where = ", ".join(taken) or "nothing"
                raise InputError(f"{slug}.{name}", value, f"it changes nothing here: only {where} is taken from {slug}")


def contradictions(used: list[Method], origin: dict[str, str]) -> None:
    """Declared incompatibilities between the stages that were taken."""
    for m in used:
        for (own, other), reason in m.card.conflicts.items():
            slug, _, stage = other.partition(".")
            if origin.get(own) == m.slug and origin.get(stage) == slug:
                raise InputError("method", f"{m.slug}.{own} with {other}", reason)
