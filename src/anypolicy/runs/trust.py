"""The one door for code that a file names: a recipe's method file, reward or model classes, a claim in a folder.

What the user writes on a command, or passes to a function, is the user's word: its content is remembered (`allow`) and
runs. What a file names must have been remembered before (`check`), unless the user says `--trust`. Nothing goes through
the door (`load_module`, `enter_module`, `enter_model`) whose content, as it is at that moment, is not remembered,
whoever named it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import stat
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, PathFinder, all_suffixes
from os.path import isfile
from pathlib import Path
from types import ModuleType
from typing import Any

from anypolicy.errors import RAISED, InputError
from anypolicy.runs.files import cache_folder
from anypolicy.runs.strict_json import json_text, json_value

ALLOWED = set[str]()
"""What this process was told may run: all of what the cache remembers of it, and what cannot be remembered."""
TASK = re.compile(r"gym/(?P<module>[A-Za-z_][\w.]*):[^:=,]+(?=:|$)")
"""A task that names the module which registers its environment, up to the settings behind it."""
HOW = "read it, then allow it with --trust (in Python: trust=True)"


@dataclass(frozen=True)
class Code:
    """Code as a setting names it. `key` is the SHA-256 of its content; `fixed` is false where the content is not at
    hand (a model of the Hub), so that no later command can know it again."""

    field: str
    name: str
    key: str
    fixed: bool = True

    def allowed(self) -> bool:
        """Whether the user let this content run, now or (where it is known again) before."""
        return self.key in ALLOWED or (self.fixed and remembered(self.key))

    def refused(self) -> InputError:
        """The error where it is not allowed."""
        why = "have not run before (or it has changed since)"
        if not self.fixed:
            why = "cannot know again, since some of it is kept elsewhere: it is asked for every time"
        return InputError(self.field, self.name, f"it is code that you did not name on this command and {why}; {HOW}")


def allow(settings: Mapping[str, Any]) -> None:
    """The user's word: what these settings name may run, now and when a file names the same content."""
    for code in named(settings):
        ALLOWED.add(code.key)
        if code.fixed:
            remember(code)


def inherit(keys: Iterable[str]) -> None:
    """What the process that started this one was told may run."""
    ALLOWED.update(keys)


def check(settings: Mapping[str, Any]) -> None:
    """A file's word. Raises InputError where it names code that the user has not allowed."""
    for code in named(settings):
        if not code.allowed():
            raise code.refused()


def named(settings: Mapping[str, Any]) -> Iterable[Code]:
    """The code that settings name. What is not there is left out: nothing is known of it that the door would let in."""
    for field, read in FIELDS.items():
        if settings.get(field) is not None:
            yield from read(field, settings[field])


# --- the door --------------------------------------------------------------------------------------------------------
class Content(SourceLoader):
    """Runs the bytes that were looked at, not what lies there or in `__pycache__` by then."""

    def __init__(self, path: Path, source: bytes):
        self.path, self.source = path, source

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_data(self, path: bytes | str) -> bytes:
        return self.source


def load_module(field: str, path: Path, name: str) -> ModuleType:
    """A .py file as the module `name`. Raises InputError where its content is not allowed or cannot be imported."""
    code, source = file_code(field, path)
    if not code.allowed():
        raise code.refused()
    spec = importlib.util.spec_from_file_location(name, path, loader=Content(path, source))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with importing(field, str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def importing(field: str, name: str) -> Generator[None]:
    """Whatever a module raises while it is imported is one error."""
    try:
        yield
    except InputError:
        raise
    except RAISED as error:
        raise InputError(field, name, f"it cannot be imported: {type(error).__name__}: {error}") from error


class Sources(MetaPathFinder):
    """Finds the modules of packages that went through the door, those of the working directory too, and runs their
    sources, not what lies in `__pycache__`."""

    def __init__(self):
        self.entered = set[str]()

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.entered:
            return None
        spec = found(fullname) if path is None else PathFinder.find_spec(fullname, path)
        if spec is not None and spec.has_location and str(spec.origin).endswith(".py"):
            spec.loader = Content(Path(str(spec.origin)), Path(str(spec.origin)).read_bytes())
        return spec


SOURCES = Sources()


def enter_modules(names: Iterable[str]) -> None:
    """Import modules by name, or FILE.py under the name of the file (`--import`)."""
    for name in names:
        if not name.endswith(".py"):
            enter_module("import", name)
            continue
        if not isfile(name):
            raise InputError("import", name, "there is no such file: give FILE.py, or the name of a module")
        path = Path(name).resolve()
        known = sys.modules.get(path.stem)
        if known is None:
            load_module("import", path, path.stem)
        elif getattr(known, "__file__", None) != str(path):
            raise InputError("import", name, f"a module called {path.stem} is loaded already: rename the file")


def enter_module(field: str, name: str) -> None:
    """Import a module by its dotted name. Raises InputError where its package is not allowed, or cannot be imported."""
    code = module_code(field, name)
    if code is None:
        raise InputError(field, name, "Python finds no such module: install it, go to its folder, or set PYTHONPATH")
    if not code.allowed():
        raise code.refused()
    if SOURCES not in sys.meta_path:
        sys.meta_path.insert(0, SOURCES)
    SOURCES.entered.add(name.partition(".")[0])
    with importing(field, name):
        importlib.import_module(name)


def found(name: str) -> ModuleSpec | None:
    """Where a module without a parent is: where Python looks, then in the working directory. Nothing is imported."""
    specs = (finder.find_spec(name, None) for finder in sys.meta_path if finder is not SOURCES)
    return next((s for s in specs if s is not None), None) or PathFinder.find_spec(name, [os.getcwd()])


def enter_model(field: str, source: str) -> None:
    """Before a model folder or an id of the Hub is loaded by classes of its own. Raises InputError where they are not
    allowed."""
    code = model_code(field, source)
    if not code.allowed():
        raise code.refused()


# --- which settings can name code, and how ---------------------------------------------------------------------------
def files(field: str, value: Any) -> Iterable[Code]:
    """One path, or several."""
    for path in [value] if isinstance(value, str | Path) else value:
        if isfile(path):
            yield file_code(field, Path(path))[0]


def function(field: str, value: Any) -> Iterable[Code]:
    """FILE.py:FUNCTION, or FILE.py:FUNCTION:WEIGHT; or several."""
    for spec in [value] if isinstance(value, str) else value:
        path, extension, _ = str(spec).partition(".py:")
        yield from files(field, path + extension.removesuffix(":"))


def model(field: str, value: Any) -> Iterable[Code]:
    """A policy as text: [masked-diffusion:]SOURCE,own-code=true."""
    source, _, option = str(value).partition(",")
    if option == "own-code=true":
        yield model_code(field, source.removeprefix("masked-diffusion:"))


def modules(field: str, value: Any) -> Iterable[Code]:
    """A module's name, or FILE.py; or several."""
    for name in [value] if isinstance(value, str) else value:
        if str(name).endswith(".py"):
            yield from files(field, name)
        elif code := module_code(field, str(name)):
            yield code


def environment(field: str, value: Any) -> Iterable[Code]:
    """gym/MODULE:ID, whose module registers the environment."""
    if named := TASK.match(str(value)):
        yield from modules(field, [named["module"]])


FIELDS: dict[str, Callable[[str, Any], Iterable[Code]]] = {
    "method_file": files, "reward": function, "policy": model, "reference": model, "claim": files, "imports": modules,
    "task": environment,
}  # fmt: skip
"""Setting → the code that a value of it names. No other setting of any recipe may name code."""


def file_code(field: str, path: Path) -> tuple[Code, bytes]:
    """A file as code, and its content."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(field, str(path), f"it cannot be read ({error})") from error
    return Code(field, str(path), hashlib.sha256(source).hexdigest()), source


def module_code(field: str, name: str) -> Code | None:
    """The package (or the one file) that a dotted name begins with: all that Python can import of it, bytecode that it
    keeps beside left out. None where there is none."""
    top = name.partition(".")[0]
    spec = found(top) if all(part.isidentifier() for part in name.split(".")) else None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        return None
    if not spec.submodule_search_locations:
        return file_code(field, Path(str(spec.origin)))[0]
    parts = dict[str, str]()
    for folder in map(Path, spec.submodule_search_locations):
        for path in sorted(p for suffix in all_suffixes() for p in folder.rglob(f"*{suffix}")):
            if path.is_file() and path.parent.name != "__pycache__":
                parts[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    where = str(next(iter(spec.submodule_search_locations)))
    return Code(field, where, hashlib.sha256(json_text(parts).encode()).hexdigest())


def model_code(field: str, source: str) -> Code:
    """The classes of a model: all .py and .json files of its folder. Those of the Hub, or of a folder that points
    there, are known by name alone."""
    folder = Path(source)
    found = sorted(p for kind in ("*.py", "*.json") for p in folder.rglob(kind) if p.is_file())
    if not folder.is_dir() or any(points_elsewhere(p) for p in found if p.suffix == ".json"):
        return Code(field, source, f"elsewhere: {source}", fixed=False)
    parts = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}
    return Code(field, source, hashlib.sha256(json_text(parts).encode()).hexdigest())


def points_elsewhere(path: Path) -> bool:
    """Whether a config may take classes from another place (OWNER/NAME--module.Class, the base of an adapter), or
    cannot be read."""
    try:
        config = json_text(json_value(path.read_text()))
    except (OSError, ValueError):
        return True
    return path.name == "adapter_config.json" or ("auto_map" in config and "--" in config)


# --- what is remembered ----------------------------------------------------------------------------------------------
def memory() -> Path:
    """A file for each content that was allowed; it says what that was called."""
    return cache_folder() / "trusted"


def remembered(key: str) -> bool:
    """Whether the cache has it, and nobody but the user can have put it there."""
    with contextlib.suppress(OSError):
        folder = memory().stat()
        own = folder.st_uid == os.getuid() and not folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return own and (memory() / key).is_file()
    return False


def remember(code: Code) -> None:
    """Put it there. A cache that cannot be written is asked again another time."""
    with contextlib.suppress(OSError):
        memory().mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(memory() / code.key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(f"{code.field}: {Path(code.name).absolute()}\n")
