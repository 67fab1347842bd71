"""Options of commands: generated from the settings of families and methods."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from anypolicy.knobs import Knob


@dataclass(frozen=True)
class NoKnobs:
    """No method, no settings of methods."""


def trained_by(specs: list[str], files: list[str], command: str) -> str:
    """What the named methods train, as the catalogue has it."""
    from anypolicy import catalogue
    from anypolicy.families.base import families

    catalogue.load_files(files)
    own = {"reward-model": "reward-model", "solve": "problem", "make-datasets": "controller"}
    if command in own:
        return own[command]
    alone = {m.trains for spec in specs if (m := catalogue.methods(None).get(spec)) is not None}
    single = (f.trains for f in families().values() if not f.composes)
    return next((kind for kind in single if kind in alone), "policy")


def knobs_type(specs: list[str], trains: Any) -> type:
    """A dataclass with one field a method: its function's parameters."""
    from anypolicy import catalogue
    from anypolicy.compose import parse

    parts: dict[str, Any] = {}
    for spec in specs:
        for m in [m for m, _ in parse(spec)] if trains == "policy" else [catalogue.get(spec, trains)]:
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


def settings_type(trains: str) -> type:
    """The settings of a run that trains this, or of making data sets."""
    from anypolicy.families.base import families
    from anypolicy.studies.datasets import DatasetSettings

    own = {f.trains: f.settings for f in families().values()}
    return DatasetSettings if trains == "data" else own.get(trains, own["policy"])


def changed(knobs: Any) -> dict[str, dict[str, Any]]:
    """Only the settings that differ from the methods' defaults, by slug."""
    out: dict[str, dict[str, Any]] = {}
    for f in dataclasses.fields(knobs):
        own = getattr(knobs, f.name)
        given = {k.name: getattr(own, k.name) for k in dataclasses.fields(own) if getattr(own, k.name) != k.default}
        if given:
            out[f.name.replace("_", "-")] = given
    return out


def settings_dict(settings: Any) -> dict[str, Any]:
    """The fields of Settings as keyword arguments."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
