"""The catalogue: the methods folder is the registry. A method is a function with a `Card` that returns a recipe."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os.path import isfile
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from torch import Tensor

from anypolicy.data.readers import json_object, read_tensors
from anypolicy.errors import RAISED, InputError, check_values, checked, converted
from anypolicy.knobs import Knob, check_knobs, knobs_of
from anypolicy.runs.trust import allow, load_module

PARTS_OF = {"preference": "language", "supervised": "language"}
"""Words of cards that are parts of a family."""


@dataclass(frozen=True)
class Card:
    """The facts of a method. `family` says what learns: language (or its parts preference and supervised), control,
    diffusion, reward-model, the name of a family that was registered, or exact for a problem that is solved.
    `changes` names the stages it gives to a composition; `conflicts` maps
    "own stage × other.stage" pairs that contradict each other to the reason; `no_signal` lists the constant rewards
    from which the method must learn nothing; `metrics` documents log names of its own; `regions`, of a method that
    learns from data sets, is its mean performance (%) there, by regions of the plane that `inspection` draws. `example`
    is a whole command that shows the method at work in two minutes on two cores, `look_at` what to see in it."""

    title: str
    paper: str
    year: int
    family: str
    idea: str
    changes: tuple[str, ...]
    composes_with: str
    claim: str
    conflicts: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    no_signal: tuple[float, ...] = (0.0, 1.0)
    metrics: Mapping[str, str] = field(default_factory=dict[str, str])
    regions: Mapping[str, float] = field(default_factory=dict[str, float])
    example: str = ""
    look_at: str = ""


@dataclass(frozen=True)
class Method:
    """A catalogued method: `recipe(**knobs)` gives its recipe, with the paper's defaults. `build` is a function that
    returns it, or the dataclass of a learner's settings, whose `recipe()` does. Of the exact family it is its
    Solution."""

    slug: str
    card: Card
    build: Callable[..., Any]

    @property
    def family(self) -> str:
        """Name of the family that trains it."""
        return PARTS_OF.get(self.card.family, self.card.family)

    @property
    def knobs(self) -> dict[str, inspect.Parameter]:
        """The method's own settings: its function's parameters, or its dataclass's fields."""
        return dict(inspect.signature(self.build).parameters)

    @property
    def meanings(self) -> dict[str, Knob]:
        """What the method says of its settings."""
        return knobs_of(self.build)

    def recipe(self, **knobs: Any) -> Any:
        """The recipe with these settings."""
        made = self.build(**knobs)
        return made.recipe() if isinstance(self.build, type) else made

    @property
    def source(self) -> str:
        """The whole method file, as a reader sees it."""
        return Path(inspect.getsourcefile(inspect.unwrap(self.build)) or "").read_text()

    @property
    def header(self) -> str:
        """The docstring of the method's file."""
        return inspect.getdoc(sys.modules[self.build.__module__]) or ""


REGISTERED: dict[str, Method] = {}
Built = TypeVar("Built", bound=Callable[..., Any])


def method(card: Card, slug: str | None = None) -> Callable[[Built], Built]:
    """Enter a method: a function that returns its recipe, or the frozen dataclass of a learner's settings. Its slug is
    the function's name with dashes; its parameters, or fields, are its settings."""

    def register(build: Built) -> Built:
        name = slug or build.__name__.replace("_", "-")
        known = REGISTERED.get(name)
        if known is not None and known.build.__module__ != build.__module__:
            raise InputError("method", name, f"{known.build.__module__} has this name already: choose another")
        REGISTERED[name] = Method(name, card, build)
        return build

    return register


@functools.cache
def load_all() -> None:
    """Import every method file of this package and every `anypolicy.methods` entry point of other packages."""
    folder = importlib.import_module("anypolicy.methods")

    for module in pkgutil.walk_packages(folder.__path__, folder.__name__ + "."):
        importlib.import_module(module.name)
    for entry in importlib.metadata.entry_points(group="anypolicy.methods"):
        try:
            entry.load()
        except RAISED as error:
            told = f"{type(error).__name__}: {error}"
            raise InputError(
                "entry point", entry.value, f"it cannot be imported ({told}): mend or remove it"
            ) from error


def load_file(path: str | Path, *, trust: bool = False) -> None:
    """Import a method file by path (`--method-file`). One that the user has not run before is refused without
    `trust`."""
    path = Path(path).resolve()
    if path.suffix != ".py" or not isfile(path):
        raise InputError("method-file", str(path), "give the path of an existing .py file with an @method function")
    name = f"anypolicy_method_file_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    if trust:
        allow({"method_file": path})
    load_module("method-file", path, name)


def load_files(paths: Iterable[str | Path]) -> None:
    """The method files that the user names on a command."""
    for path in paths:
        load_file(path, trust=True)


def methods(family: str | None = "language") -> dict[str, Method]:
    """The methods of a family by slug, or (None) all."""
    load_all()
    return {slug: m for slug, m in sorted(REGISTERED.items()) if family in (None, m.family)}


@checked
def get(slug: str, family: str | None = "language") -> Method:
    """One method; an unknown name is an error that says the nearest."""
    known = methods(family)
    if slug not in known and slug in REGISTERED:
        other = REGISTERED[slug].family
        command = "solve" if other == "exact" else "train"
        raise InputError("method", slug, f"it is of the {other} family: use `anypolicy {command} {slug}` alone")
    if slug not in known:
        told = f"there is no such method: `anypolicy methods` lists all {len(REGISTERED)}"
        raise InputError("method", slug, told, choices=sorted(REGISTERED))
    return known[slug]


ELSEWHERE = {
    "gamma": "discount", "learning_rate": "lr", "batch_size": "batch", "buffer_size": "capacity",
    "learning_starts": "warmup", "n_epochs": "epochs", "num_generations": "group_size", "clip_range": "clip",
    "epsilon": "clip_low", "epsilon_high": "clip_high", "beta": "kl_coef", "kl_coef": "beta", "ent_coef": "alpha",
    "gae_lambda": "lam", "n_steps": "horizon", "gradient_steps": "updates", "net_arch": "hidden",
}  # fmt: skip
"""Names that settings have in other libraries."""


def check_known(m: Method, name: str, value: Any) -> None:
    """Refuse a setting that the method has not, with what it may be called here."""
    if name in m.knobs:
        return
    here = ELSEWHERE.get(name)
    allowed = f"{m.slug} has the settings: {', '.join(m.knobs) or 'nothing'}"
    told = f"here it is {here!r}; {allowed}" if here in m.knobs else allowed
    raise InputError(f"{m.slug}.{name}", value, told, choices=() if here in m.knobs else m.knobs)


def build(m: Method, given: dict[str, Any]) -> Any:
    """Call the method's function with settings of its own; lists, as files have them, are tuples."""
    for name in given:
        check_known(m, name, given[name])
    kinds, meanings = get_type_hints(m.build), m.meanings
    check_values(kinds, given, f"{m.slug}.", [name for name, knob in meanings.items() if knob.infinite])
    check_knobs(meanings, given, f"{m.slug}.")
    try:
        return m.recipe(**{k: converted(kinds[k], v) for k, v in given.items()})
    except ArithmeticError as error:
        raise InputError(m.slug, given, f"these numbers cannot be computed with ({error}): use others") from error


@dataclass(frozen=True)
class Saved:
    """What the policy/ folder of a control run says: its method, the recipe of it, and the environment; its weights."""

    method: str
    knobs: dict[str, Any]
    recipe: Any
    task: str
    tensors: dict[str, Tensor]


def saved_controller(folder: str | Path, field: str) -> Saved:
    """Read a policy/ folder; `field` is whose value names it."""
    path, files = Path(folder), ("controller.safetensors", "config.json")
    if not all(isfile(path / name) for name in files):
        raise InputError(field, str(folder), "it holds no controller: give the policy/ folder of a control run")
    kinds: dict[str, Any] = {"method": str, "knobs": dict, "task": str}
    config = json_object(path / "config.json", field, "give the policy/ folder of a control run", kinds)
    method, knobs, task = (config[name] for name in kinds)
    if not isinstance(method, str) or not isinstance(knobs, dict) or not isinstance(task, str):
        raise InputError(field, str(folder), "its config.json must name a method, its knobs and a task")
    return Saved(method, knobs, build(get(method, "control"), knobs), task, read_tensors(path / files[0], field))
