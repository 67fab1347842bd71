"""A run is a directory: recipe.yaml, metrics.jsonl, timing.jsonl, checkpoints/, samples/, policy/, report.html."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from os.path import isfile
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

import yaml

from anypolicy.data.readers import json_object, parsed, yaml_value
from anypolicy.errors import InputError
from anypolicy.runs.checkpoint import Position, latest_checkpoint
from anypolicy.runs.files import check_places, disk_errors, new_folder, sweep, sync, write_text
from anypolicy.runs.stop import Stopped
from anypolicy.runs.strict_json import json_text

LOGGED = ("metrics.jsonl", "groups.jsonl")
"""What a checkpoint counts on: the ledger, and the groups of every step where the run keeps them."""

FILES = ("recipe.yaml", "made-with.json", *LOGGED, "timing.jsonl", "report.html")
FOLDERS = ("checkpoints", "samples", "policy", "reward-model", "tensorboard")
"""What runs write."""


KEPT = (*LOGGED, "timing.jsonl", ".lock", "checkpoints", "samples", "policy", "reward-model", "tensorboard")
"""What a run writes beside its recipe. A folder that somebody hands us must not lead this elsewhere by links."""


WORDS = ("event", "why")
"""What a row of the ledger says in words; all else are numbers."""


class Fingerprint(TypedDict):
    """Lines of a file."""

    rows: int
    sha256: str


def check_run(path: Path) -> None:
    """Refuse a run in which something else stands where a file or a folder is written."""
    check_places(path, FILES, FOLDERS)
    samples = path / "samples"
    check_places(samples, (f.name for f in samples.glob("*") if f.suffix in (".jsonl", ".png")))


class RunDirectory:
    """An open run directory; one process at a time. The ledger holds only numbers that a resumed run repeats bit for
    bit; times stand apart in timing.jsonl."""

    def __init__(self, path: Path, *, lock: bool = True, new: bool = False):
        self.path, self.new = path, new
        for own in (*(path / name for name in KEPT), *(path / "checkpoints").glob("*")):
            if own.is_symlink():
                raise InputError("run", str(own), "it is a link: what a run writes and removes lies in its own folder, "
                                 "so put the files themselves there (all of the run may lie elsewhere)")  # fmt: skip
        self._lock: int | None = None
        check_run(path)
        if not lock:
            return
        with disk_errors(path):
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise InputError("run", str(path), "another process is training here: wait for it or stop it") from error
        for folder in (path, path / "checkpoints", path / "samples"):
            sweep(folder)

    @classmethod
    def create(cls, path: Path, recipe: dict[str, Any], made_with: Mapping[str, Any] | None = None) -> RunDirectory:
        """A new run, and what computes it. The directory appears with its recipe in it or not at all."""
        cls.check_free(path)
        path = path.resolve()
        with new_folder(path, fresh=True) as work:
            (work / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
            if made_with is not None:
                (work / "made-with.json").write_text(json_text(dict(made_with), indent=1))
        return cls(path, new=True)

    @staticmethod
    def check_free(path: Path) -> None:
        """Refuse a place where no new run can be made."""
        with disk_errors(path):
            if (path / "recipe.yaml").exists():
                raise InputError(
                    "out", str(path), f"a run is there: `anypolicy resume {path}`, or choose another --out"
                )
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise InputError("out", str(path), "it exists and is no run: choose an empty or new directory")
            if path.resolve() == Path.cwd():
                raise InputError("out", str(path), "it is the working directory: choose another")

    @classmethod
    def check_usable(cls, path: Path) -> None:
        """Refuse a place where neither a new run can be made nor one goes on."""
        check_run(path) if isfile(path / "recipe.yaml") else cls.check_free(path)

    @classmethod
    def open(cls, path: str | Path, *, lock: bool = True) -> RunDirectory:
        """An existing run; without `lock` only to read, or to add samples, while another process may train."""
        path = Path(path)
        if not isfile(path / "recipe.yaml"):
            raise InputError("run", str(path), "it is no run directory (no recipe.yaml in it)")
        return cls(path, lock=lock)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._lock is None:
            return
        os.close(self._lock)
        if isinstance(error, KeyboardInterrupt) and not getattr(error, "told", ""):
            raise Stopped(getattr(error, "number", signal.SIGINT), self.goes_on()) from error

    def goes_on(self) -> str:
        """What resumes the run, and where it then goes on."""
        last = latest_checkpoint(self.path)
        where = f"goes on from step {int(last.name)}" if last else "begins at step 0 (there is no checkpoint yet)"
        return f"stopped; `anypolicy resume {self.path}` {where}"

    def recipe(self) -> dict[str, Any]:
        """What the run was started with."""
        try:
            value = yaml_value((self.path / "recipe.yaml").read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError("recipe.yaml", str(self.path), f"it is not YAML: {error}") from error
        if not isinstance(value, dict):
            raise InputError("recipe.yaml", value, "it must hold the settings of a run")
        return value

    def made_with(self) -> dict[str, Any]:
        """What computed the run when it was begun: versions, commit, machine; empty where that is not known."""
        file = self.path / "made-with.json"
        value = json_object(file, "run", "remove it, or put it back") if isfile(file) else {}
        return dict(value)

    def rewrite_recipe(self, recipe: dict[str, Any]) -> None:
        """Replace recipe.yaml (a run that is made longer)."""
        write_text(self.path / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))

    # --- ledger ------------------------------------------------------------------------------------------------------
    def append(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        append_line(self.path / "metrics.jsonl", row)

    def append_timing(self, row: dict[str, Any]) -> None:
        """One line of timing.jsonl (seconds: different in every run)."""
        append_line(self.path / "timing.jsonl", row)

    def append_groups(self, rows: list[dict[str, Any]]) -> None:
        """Lines of groups.jsonl (the groups of a step, if the run keeps them)."""
        for row in rows:
            append_line(self.path / "groups.jsonl", row)

    def sync(self) -> None:
        """Put ledger and groups on the disk, before a checkpoint counts on them."""
        for path in (self.path / "metrics.jsonl", self.path / "groups.jsonl"):
            if path.exists():
                sync(path)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines of the ledger. A name whose number was not finite is missing in its row."""
        rows = [{k: v for k, v in row.items() if not missing(v)} for _, row in self.lines("metrics.jsonl")]
        for n, row in enumerate(rows, 1):
            if wrong := [k for k, v in row.items() if k not in WORDS and not finite_number(v)]:
                raise InputError(str(self.path / "metrics.jsonl"), f"line {n}", f"{wrong[0]!r} is no number: mend it")
        return rows

    def fingerprints(self, step: int) -> dict[str, Fingerprint]:
        """Of what was logged before `step`, how many lines of each file and their digest."""
        found = {name: [x for x, row in self.lines(name) if row["step"] < step] for name in LOGGED}
        return {name: fingerprint(lines) for name, lines in found.items() if lines}

    def lines(self, name: str) -> list[tuple[bytes, dict[str, Any]]]:
        """Every whole line of a file of the ledger, and what it says."""
        path = self.path / name
        rows = read_lines(path)
        for n, row in enumerate(rows, 1):
            if type(row.get("step")) is not int:
                raise InputError(str(path), f"line {n}", "it is no row of a run (no step): mend or remove it")
        return list(zip(path.read_bytes().split(b"\n"), rows, strict=False)) if rows else []

    def truncate_to(self, at: Position, known: Mapping[str, Fingerprint] | None = None) -> list[str]:
        """Drop what was logged after a checkpoint, and a half-written last line. `known` are the checkpoint's
        `fingerprints`; what is no longer as it was then is what comes back, in words."""
        lost = list[str]()
        timed = [row["step"] for _, row in self.lines("timing.jsonl") if row["step"] < at.began]
        for name in (*LOGGED, "timing.jsonl"):
            lines = self.lines(name)
            want = None if known is None or name not in LOGGED else known.get(name, EMPTY)
            ends = [at.step if name in LOGGED and "event" in row else at.began for _, row in lines]
            kept = [row for (_, row), end in zip(lines, ends, strict=True) if row["step"] < end]
            if want is not None:
                first = lines[: want["rows"]]
                if fingerprint([x for x, _ in first]) == want:
                    kept = [row for _, row in first]
                else:
                    lost.append(f"{name} {what_is_lost(kept, want['rows'], timed)}, before step {at.step}")
            if (self.path / name).exists():
                write_text(self.path / name, "".join(json_text(row) + "\n" for row in kept))
        return lost

    # --- products ----------------------------------------------------------------------------------------------------
    def write_samples(self, name: str, samples: list[dict[str, Any]]) -> None:
        """samples/<name>.jsonl, replaced atomically."""
        folder = self.path / "samples"
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
        lines = [json_text(s, default=str) for s in samples]
        write_text(folder / f"{name}.jsonl", "".join(line + "\n" for line in lines))

    def read_samples(self, name: str) -> list[dict[str, Any]]:
        """The samples of that name; none if there are none."""
        return read_lines(self.path / "samples" / f"{name}.jsonl")

    def save_policy(self, fill: Callable[[Path], None]) -> None:
        """policy/, replaced as a whole."""
        with new_folder(self.path / "policy") as work:
            fill(work)


def missing(value: object) -> bool:
    """Whether a ledger's value says that there was no finite number (older versions wrote NaN and Infinity)."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def finite_number(value: object) -> bool:
    """Whether a ledger's value is a number that a float holds."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def what_is_lost(kept: list[dict[str, Any]], rows: int, steps: Sequence[int]) -> str:
    """In words, of `rows` rows up to a checkpoint, of which only `kept` are there or are others; `steps` had one."""
    there = {row["step"] for row in kept if "event" not in row}
    gone = [list(span) for lost, span in groupby(steps, lambda step: step not in there) if lost]
    spans = [str(span[0]) if len(span) == 1 else f"{span[0]}–{span[-1]}" for span in gone]
    which = f"the rows of steps {', '.join(spans[:MOST])}" + (", …" if len(spans) > MOST else "")
    if len(kept) < rows:
        lost = f"{rows - len(kept)} of {rows} rows"
        return f"lacks {which} ({lost})" if spans else f"lacks {lost}" + (" (of evaluations)" if steps else "")
    return f"lacks {which} and has others" if spans else "has rows that are not as they were written"


def fingerprint(lines: Sequence[bytes]) -> Fingerprint:
    """How many lines, and the digest of all."""
    return {"rows": len(lines), "sha256": hashlib.sha256(b"\n".join(lines)).hexdigest()}


EMPTY = fingerprint([])
MOST = 5
"""Spans of steps that a sentence names."""


def append_line(path: Path, row: dict[str, Any]) -> None:
    """One JSON line in one write; a line cut short by a full disk is taken back."""
    data = (json_text(row) + "\n").encode()
    with disk_errors(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            if os.write(handle, data) < len(data):
                os.ftruncate(handle, size)
                raise OSError(28, "No space left on device")
        finally:
            os.close(handle)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    if not path.is_file():
        raise InputError("run", str(path), "it is no ordinary file: put the ledger back, or remove it")
    rows: list[dict[str, Any]] = []
    for n, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = parsed(line)
        except ValueError as error:
            raise InputError(str(path), f"line {n}", f"it is not JSON ({error}): mend or remove it") from error
        if not isinstance(row, dict):
            raise InputError(str(path), f"line {n}", "it is no object: mend or remove it")
        rows.append(row)
    return rows
