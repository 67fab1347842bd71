"""Digests of the files that a run reads its data from: it goes on with the data it began with."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any

from anypolicy.data.readers import parsed
from anypolicy.errors import InputError

FIELDS = ("task", "pairs", "demos", "reward")
"""Settings that can name data, or a reward of the user's own."""
ROWS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
"""How the names of files with rows end."""


def digests_of(settings: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of every file and folder that the settings name as data, by its name there. What cannot be read is left
    to the task, which says so."""
    out: dict[str, str] = {}
    for field in FIELDS:
        given = settings.get(field)
        for spec in given if isinstance(given, list | tuple) else [given]:
            if isinstance(spec, str) and spec:
                with suppress(OSError):
                    out |= {name: digest(path) for name, path in named(field, spec)}
    return out


def check_digests(kept: Any, settings: dict[str, Any]) -> None:
    """Refuse data whose digests are others than those `kept`. A reward may be mended; a note says that it was."""
    if not isinstance(kept, dict):
        raise InputError("recipe.yaml", kept, "'digests' must hold a digest for every file")
    mendable = digests_of({"reward": settings.get("reward")})
    for name, now in digests_of(settings).items():
        if kept.get(name, now) == now:
            continue
        if name in mendable:
            print(f"note: {name} has changed since the run began: from here on its rewards are the new ones",
                  file=sys.stderr)  # fmt: skip
        else:
            raise InputError(
                name, f"SHA-256 {now[:12]}…", f"it, or a picture it shows, was {str(kept[name])[:12]}… when the run "
                "began: put it back as it was, or start a new run",
            )  # fmt: skip


def named(field: str, spec: str) -> Iterator[tuple[str, Path]]:
    """The files and folders that a setting names, settings of a task's own included."""
    name, _, arguments = spec.partition(":")
    own = Path(name.removeprefix("hf/"))
    if field == "task":
        folder = name.startswith("hf/") or isfile(own / "metadata.jsonl")
        there = isdir(own) if folder else name.endswith(ROWS) and isfile(own)
        for value in (part.partition("=")[2].strip(" '\"") for part in arguments.split(",")):
            yield from named("task", value) if value else ()
    elif field == "demos":
        name, own = spec, Path(spec)
        if not exists(own):
            own = Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari" / "datasets")) / spec
        there = exists(own) and not spec.startswith("scripted")
    else:
        name, own = (spec, Path(spec)) if field == "pairs" else (name, own)
        there = isfile(own)
    if there:
        yield name, own


def digest(path: Path) -> str:
    """Of a file with the pictures that a .jsonl file shows, or of all files in a folder but those of runs."""
    if path.is_dir():
        runs = [p.parent for p in path.rglob("recipe.yaml")]
        files = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        parts = sorted(p for p in files if not any(p.is_relative_to(run) for run in runs))
    else:
        parts = shown(path, file_digest(path)) if path.suffix == ".jsonl" else ()
        if not parts:
            return file_digest(path)
        parts = (path, *parts)
    root = path if path.is_dir() else path.parent
    lines = [f"{file_digest(p)} {os.path.relpath(p, root)}\n" for p in parts]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file; it is read again only where its size, time or place on the disk is another."""
    s = path.stat()
    return content(str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ino)


@lru_cache(maxsize=1 << 17)
def content(path: str, *_: int) -> str:
    """SHA-256 of the file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=64)
def shown(path: Path, _: str) -> tuple[Path, ...]:
    """The pictures that lines of a file show, in their order; a line that cannot be read is left to the task."""
    out = dict[Path, None]()
    for line in path.read_bytes().split(b"\n"):
        if b'"image' not in line:
            continue
        try:
            row = parsed(line)
        except ValueError:
            continue
        for given in (row.get("image"), row.get("images")) if isinstance(row, dict) else ():
            for x in given if isinstance(given, list) else [given]:
                if isinstance(x, str) and x and isfile(path.parent / x):
                    out[path.parent / x] = None
    return tuple(out)
