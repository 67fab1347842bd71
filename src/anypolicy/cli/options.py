"""Options of commands: generated from the settings of families and methods."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from anypolicy.knobs import Knob, knobs_of


@dataclass(frozen=True)
class NoKnobs:
    """No method, no settings of methods."""


ONLY = {"scores": "language", "solve": "exact", "make-datasets": "control", "train-apart": "control"}
"""Commands for one family."""


def family_named(specs: list[str], files: list[str], command: str) -> str:
    """Name of the family whose methods are named."""
    from anypolicy import catalogue
    from anypolicy.families.base import family_of

    catalogue.load_files(files)
    if command in ONLY or not specs:
        return ONLY.get(command, "language")
    found = [family_of(spec) for spec in specs]
    return next((f.name for f in found if not f.composes), found[0].name)


def knobs_type(specs: list[str], family: str) -> type:
    """A dataclass with one field a method: its function's parameters."""
    from anypolicy import catalogue
    from anypolicy.compose import parse

    parts: dict[str, Any] = {}
    for spec in specs:
        for m in [m for m, _ in parse(spec)] if family == "language" else [catalogue.get(spec, family)]:
            hints = typing.get_type_hints(m.build)
            inner = [(k, helped(hints[k], m.meanings.get(k)), dataclasses.field(default=p.default))
                     for k, p in m.knobs.items()]  # fmt: skip
            own = dataclasses.make_dataclass(m.slug.replace("-", "_"), inner, frozen=True)
            own.__doc__ = f"Settings of {m.slug}: {m.card.idea}. {' '.join((m.build.__doc__ or '').split())}".strip()
            parts[m.slug.replace("-", "_")] = own
    if not parts:
        return NoKnobs
    outer = [(k, v, dataclasses.field(default_factory=v)) for k, v in parts.items()]
    return dataclasses.make_dataclass("Knobs", outer, frozen=True)


def helped(kind: Any, knob: Knob | None) -> Any:
    """The kind with what `--help` says of it."""
    if knob is None:
        return kind
    return Annotated[kind, tyro.conf.arg(help=knob.meaning + (f" ({knob.limits})" if knob.range else ""))]


def check_settings_of_methods(Knobs: type, args: list[str]) -> None:
    """Refuse `--METHOD.SETTING` of a method that is named and has no such setting, with what it may be called."""
    from anypolicy import catalogue

    named = {f.name.replace("_", "-") for f in dataclasses.fields(Knobs)}
    for i, word in enumerate(args):
        slug, dot, setting = word.partition("=")[0].removeprefix("--").partition(".")
        if word.startswith("--") and dot and slug in named:
            name = setting.removeprefix("no-").replace("-", "_")
            own = catalogue.methods(None)[slug]
            value = word.partition("=")[2] or (args[i + 1] if i + 1 < len(args) else "")
            known = name if name in own.knobs else setting.replace("-", "_")
            catalogue.check_known(own, known, value)


def settings_type(family: str, command: str) -> type:
    """The settings of a family's run, or of making data sets."""
    from anypolicy.families.base import families
    from anypolicy.studies.datasets import DatasetSettings

    if command == "make-datasets":
        return DatasetSettings
    return NoKnobs if family == "exact" else families()[family].settings


def evaluation_type() -> type:
    """A dataclass of what evaluations may be told, of all families."""
    from anypolicy.families.base import evaluation_options, families

    found: dict[str, tuple[str, Any, Any]] = {}
    for family in families().values():
        kinds, meanings = typing.get_type_hints(family.evaluate), knobs_of(family.evaluate)
        for name, default in evaluation_options(family).items():
            found.setdefault(name, (name, helped(kinds[name], meanings.get(name)), dataclasses.field(default=default)))
    return dataclasses.make_dataclass("Options", found.values(), frozen=True)


def given(options: Any) -> dict[str, Any]:
    """The fields that are not their defaults, by name."""
    return {f.name: x for f in dataclasses.fields(options) if (x := getattr(options, f.name)) != f.default}


def changed(knobs: Any) -> dict[str, dict[str, Any]]:
    """Only the settings that differ from the methods' defaults, by slug."""
    out: dict[str, dict[str, Any]] = {}
    for f in dataclasses.fields(knobs):
        if own := given(getattr(knobs, f.name)):
            out[f.name.replace("_", "-")] = own
    return out


def settings_dict(settings: Any) -> dict[str, Any]:
    """The fields of Settings as keyword arguments."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
