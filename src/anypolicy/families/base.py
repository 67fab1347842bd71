"""A family: what is common to all methods that train one kind of thing, as one object.

Its file says how a run is planned, prepared, run and judged; starting, resuming and finding the family of a run are
here, once for all. `FAMILIES` names those of this package; others enter by `register`, from a method file or an
`anypolicy.families` entry point.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from anypolicy import catalogue
from anypolicy.errors import RAISED, InputError, check_values, checked
from anypolicy.evidence.provenance import versions
from anypolicy.knobs import check_knobs, knobs_of
from anypolicy.runs.devices import memory_errors
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.drive import CALLBACK, Callback
from anypolicy.runs.objects import NAMES, check_same, handed
from anypolicy.runs.recipes import settings_from, stated


class Plan(Protocol):
    """A run, resolved and checked, not begun."""

    @property
    def settings(self) -> Any: ...

    def written(self) -> dict[str, Any]:
        """The recipe as plain values, enough to run again."""
        ...


class Ended(Protocol):
    """A run that has ended: its directory, and the rows of its ledger."""

    path: Path
    rows: list[dict[str, Any]]
    seconds: float


P = TypeVar("P", bound=Plan)
R = TypeVar("R", bound=Ended)


@dataclass(frozen=True, kw_only=True)
class Family(Generic[P, R]):
    """One kind of training."""

    settings: type
    """the dataclass of a run's settings: `family` is the name, as recipes and cards have it, the first field says what
    is learnt from, and `seed` and `out` are among them"""
    plan: Callable[[str, Any, dict[str, Any] | None], P]
    """(method, settings, knobs): names and defaults resolved; every error that can be known now is raised now"""
    folder: Callable[[P], str]
    """name of a run's directory under runs/, where `out` is not given"""
    begin: Callable[[P], tuple[P, Any]]
    """what a run needs, made before its directory: the plan (which may know more then) and the loop's world"""
    go: Callable[..., R]
    """(plan, run directory, world, quiet): the run itself, from its newest checkpoint on"""
    load: Callable[..., R]
    """(path, *, device, trust): a run as it stands, with what its newest checkpoint has learnt"""
    evaluate: Callable[..., dict[str, float]]
    """(path, *, trust, …): of the newest checkpoint; its other keywords are options of `anypolicy eval`"""
    explain: Callable[[P], str]
    """what a run would do, without starting it"""
    summary: Callable[[R, Path], str]
    """a finished run on the screen; the path is that of its page"""
    page: Callable[[R], Path]
    """writes report.html of a finished run"""
    metrics: Callable[[P], tuple[str, ...]]
    """names of the evaluation rows of a plan, larger is better: runs are compared by the first that they have"""
    cost: str = ""
    """log name whose sum is what a run has cost, where that is not its steps"""
    composes: bool = False
    """methods compose (a+b.stage); the knobs of a plan are then by method"""

    @property
    def name(self) -> str:
        """As recipes and cards have it."""
        return self.settings.family  # type: ignore[attr-defined]

    @property
    def data(self) -> str:
        """The setting that says what is learnt from."""
        return fields(self.settings)[0].name

    def train(self, method: str, *, knobs: dict[str, Any] | None = None, quiet: bool = False, **settings: Any) -> R:
        """Train by a method and return the run; `settings` are the fields of the family's settings."""
        return self.start(self.planned(method, settings, knobs), quiet=quiet)

    def planned(self, method: str, settings: Mapping[str, Any], knobs: dict[str, Any] | None = None) -> P:
        """The plan of a method with settings by name. `knobs` are the method's own, or by method."""
        if self.data not in settings:
            raise InputError(self.data, None, f"say what {method} learns from")
        settings, knobs = self.sorted_out(method, settings, self.own(method, knobs or {}))
        return self.plan(method, self.settings(**settings), knobs)

    def sorted_out(
        self, method: str, given: Mapping[str, Any], knobs: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Settings of the run, and those of methods, of which some stand among the former."""
        names = [f.name for f in fields(self.settings)]
        words = [w.strip().partition(".")[0] for w in method.split("+")] if self.composes else [method]
        known = {m.slug: m for m in map(catalogue.methods(None).get, words) if m}
        own = {slug: dict(k) for slug, k in knobs.items()} if self.composes else {method: dict(knobs)}
        for name, value in given.items():
            having = [slug for slug, m in known.items() if name in m.knobs and name not in names]
            if len(having) > 1:
                told = f"{' and '.join(having)} have it: say whose it is, knobs={{{having[0]!r}: {{{name!r}: …}}}}"
                raise InputError(name, value, told)
            if having:
                own.setdefault(having[0], {})[name] = value
            elif name not in names:
                every = [*names, *(k for m in known.values() for k in m.knobs)]
                here = catalogue.ELSEWHERE.get(name)
                told = f"a run of the {self.name} family has the settings {', '.join(every)}"
                told = f"here it is {here!r}; {told}" if here in every else told
                raise InputError(name, value, told, choices=() if here in every else every)
        return {k: v for k, v in given.items() if k in names}, own if self.composes else own.get(method, {})

    def own(self, method: str, knobs: dict[str, Any]) -> dict[str, Any]:
        """Knobs as `plan` takes them."""
        by_method = all(isinstance(v, dict) for v in knobs.values())
        if self.composes:
            return knobs if by_method else {method: knobs}
        return knobs[method] if by_method and set(knobs) == {method} else knobs

    def start(self, p: P, *, quiet: bool = False) -> R:
        """Run a plan from step 0 in a new directory."""
        name = self.folder(p).replace("/", "-").replace(":", "-")
        out = Path(p.settings.out) if p.settings.out else unused(Path("runs") / name)
        RunDirectory.check_free(out)
        with self.memory():
            p, world = self.begin(p)
            with RunDirectory.create(out, p.written(), versions()) as run:
                return self.go(p, run, world, quiet=quiet)

    def memory(self) -> AbstractContextManager[None]:
        """Memory that does not suffice is an error that names settings of the family."""
        return memory_errors({f.name for f in fields(self.settings)})

    def plan_from(self, written: dict[str, Any], *, trust: bool = False) -> P:
        """The plan that a recipe.yaml describes."""
        alone = {k: v for k, v in written.items() if k != "apart"}
        method, knobs, settings = settings_from(self.settings, alone, trust=trust)
        return self.plan(method, settings, knobs)

    def resume(
        self, path: str | Path, *, steps: int | None = None, device: str | None = None, quiet: bool = False,
        trust: bool = False,
    ) -> R:  # fmt: skip
        """Go on with a run as if it had never stopped; `steps` makes it longer, on another `device` it goes on up to
        rounding, `trust` runs code that its recipe names and the user has not run before (here, and where a run is
        evaluated)."""
        with RunDirectory.open(path) as run:
            written = dict(stated(run))
            if "apart" in written:
                raise InputError("run", str(path), "actor and learner stood apart: such a run cannot be resumed")
            given = {k: v for k, v in (("steps", steps), ("device", device)) if v is not None}
            for name, value in given.items():
                if name not in written:
                    raise InputError(name, value, f"a run of the {self.name} family has no {name}: leave it out")
            with self.memory():
                p, world = self.begin(self.plan_from(written | given, trust=trust))
                return self.go(p, run, world, quiet=quiet)


def unused(place: Path) -> Path:
    """The place, or where something is there NAME-2, NAME-3, …"""
    taken = lambda path: path.exists() and not (path.is_dir() and not any(path.iterdir()))  # noqa: E731
    return next(p for n in count(1) if not taken(p := place if n == 1 else place.with_name(f"{place.name}-{n}")))


FAMILIES = ("language", "control", "diffusion", "reward_models")
"""Modules of this package, each with a `FAMILY`."""
REGISTERED: dict[str, Family[Any, Any]] = {}


def register(family: Family[Any, Any]) -> None:
    """Enter a family; its name is its own."""
    if (known := REGISTERED.get(family.name)) is not None and known != family:
        raise InputError("family", family.name, "there is one of this name: choose another")
    REGISTERED[family.name] = family


def families() -> dict[str, Family[Any, Any]]:
    """All families by name."""
    own = [importlib.import_module(f"anypolicy.families.{name}").FAMILY for name in FAMILIES]
    for entry in importlib.metadata.entry_points(group="anypolicy.families"):
        try:
            register(entry.load())
        except RAISED as error:
            told = f"{type(error).__name__}: {error}"
            raise InputError("entry point", entry.value, f"it is no family ({told}): mend or remove it") from error
    return {f.name: f for f in own} | REGISTERED


def family_of(method: str, method_file: Any = ()) -> Family[Any, Any]:
    """The family of a method, or of a composition, which may stand in a method file of the user's."""
    check_values({"method_file": tuple[Path, ...]}, {"method_file": method_file})
    catalogue.load_files(method_file)
    m, known = catalogue.methods(None).get(method), families()
    name = "language" if m is None else m.family
    if name == "exact":
        raise InputError("method", method, f"it is of the exact family: use `anypolicy solve {method}` alone")
    if name not in known:
        raise InputError("family", name, f"{method} is of none of {', '.join(known)}: register it", choices=known)
    return known[name]


@checked
def family_of_run(path: str | Path) -> Family[Any, Any]:
    """The family that a run's recipe names."""
    with RunDirectory.open(path, lock=False) as run:
        name = run.recipe().get("family")
    known = families()
    if not isinstance(name, str) or name not in known:
        told = f"use one of {', '.join(known)} (a run of before families had names says none)"
        raise InputError("recipe.yaml: family", name, told, choices=known)
    return known[name]


# --- the Python interface: one of each for all families --------------------------------------------------------------
@checked
def train(
    method: str, *, knobs: dict[str, Any] | None = None, quiet: bool = False, callback: Callback | None = None,
    **settings: Any,
) -> Any:  # fmt: skip
    """Train by a method, whatever it trains, and return the run.

    `method` is a name, or of language models a composition ("grpo+ngrpo.advantage"); `settings` are the fields of the
    family's settings, such as `task`, and those of the methods; `knobs` are the latter by themselves, by method where
    there are several. Where these are texts, objects may stand: as `task` (or `pairs`) a list of rows, a
    `datasets.Dataset` or a task; as `policy` a transformers model with its tokenizer, (model, tokenizer), of which a
    copy is trained; as `reward` functions, or (function, weight). `callback` is called with each row of the ledger as
    it is written, and ends the run there (checkpoint, evaluation and policy included) where it returns False. Raises
    InputError before any work for what cannot be used.
    """
    family = family_of(method, settings.get("method_file", ()))
    with handed(settings) as named, calling(callback):
        return family.train(method, knobs=knobs, quiet=quiet, **named)


@checked
def resume(
    path: str | Path, *, steps: int | None = None, device: str | None = None, quiet: bool = False, trust: bool = False,
    callback: Callback | None = None, **objects: Any,
) -> Any:  # fmt: skip
    """Go on with a run of any family as if it had never stopped; `steps` makes it longer, on another `device` it goes
    on up to rounding, `trust` runs code that its recipe names and the user has not run before. `objects` are those the
    run was begun with, by setting (`task=…`); `callback` is as in `train`."""
    with handed_again(path, objects), calling(callback):
        return family_of_run(path).resume(path, steps=steps, device=device, quiet=quiet, trust=trust)


@contextmanager
def calling(callback: Callback | None) -> Generator[None]:
    """Inside, runs call this with their rows."""
    if callback is not None and not callable(callback):
        raise InputError("callback", callback, "give a function of one argument, a row of the ledger")
    token = CALLBACK.set(callback)
    try:
        yield
    finally:
        CALLBACK.reset(token)


@contextmanager
def handed_again(path: str | Path, objects: Mapping[str, Any]) -> Generator[None]:
    """Inside, what a run was begun with is at hand. Raises InputError for what is something else than that."""
    for name, value in objects.items():
        if name not in NAMES:
            raise InputError(name, value, f"what a run was begun with is {', '.join(NAMES)}", choices=NAMES)
    with handed(objects) as named:
        if named:
            with RunDirectory.open(path, lock=False) as run:
                check_same(named, run.recipe())
        yield


@checked
def load(path: str | Path, *, device: str | None = None, trust: bool = False, **objects: Any) -> Any:
    """A run of any family as it stands: its ledger, and what its newest checkpoint has learnt (`run.predict` of a
    controller, `run.generate` of a language model). `objects` are those the run was begun with."""
    family = family_of_run(path)
    with handed_again(path, objects), family.memory():
        return family.load(path, device=device, trust=trust)


@checked
def evaluate(path: str | Path, *, trust: bool = False, **options: Any) -> dict[str, float]:
    """Evaluate a run's newest checkpoint: on held-out prompts (`prompts`, `temperature`), in episodes (`episodes`,
    `video`), by samples (`samples`), or on held-out pairs. Objects that the run was begun with are handed in by
    setting. Writes samples/eval.*."""
    family = family_of_run(path)
    known = evaluation_options(family)
    objects = {k: options.pop(k) for k in NAMES if k in options and k not in known}
    for name, value in options.items():
        if name not in known:
            allowed = f"takes {', '.join(known)}" if known else "takes no options"
            raise InputError(name, value, f"an evaluation of the {family.name} family {allowed}", choices=known)
    check_knobs(knobs_of(family.evaluate), options)
    with handed_again(path, objects), family.memory():
        return family.evaluate(path, trust=trust, **options)


def evaluation_options(family: Family[Any, Any]) -> dict[str, Any]:
    """What an evaluation of this family may be told: names and defaults."""
    own = inspect.signature(family.evaluate).parameters.values()
    return {p.name: p.default for p in own if p.kind is p.KEYWORD_ONLY and p.name != "trust"}


@checked
def explain(method: str, *, knobs: dict[str, Any] | None = None, **settings: Any) -> str:
    """What a run would do, stage by stage, without starting it: whose each stage is, its numbers, and its cost."""
    family = family_of(method, settings.get("method_file", ()))
    with handed(settings) as named:
        return family.explain(family.planned(method, named, knobs))
