"""Checkpoints: a folder of safetensors and JSON with a manifest of digests, never executable content.

    checkpoints/000010/manifest.json  state.json  optimiser.safetensors

A folder appears under its name only when it is whole, so a kill at any moment leaves the last one usable.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from anypolicy.data.readers import read_tensors
from anypolicy.errors import InputError
from anypolicy.runs.files import disk_errors, new_folder, sweep
from anypolicy.runs.strict_json import json_text, json_value

FORMAT, VERSION = "anypolicy-checkpoint", 1


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: named sets of tensors and plain values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@dataclass(frozen=True)
class Position:
    """Where a run is: the steps it has made, and with which of them the open row of the ledger began."""

    step: int
    began: int


def save_checkpoint(run: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write checkpoints/<step> whole, then remove the older ones."""
    folder = run / "checkpoints" / f"{step:06d}"
    with disk_errors(folder.parent):
        folder.parent.mkdir(exist_ok=True)
    sweep(folder.parent)
    with new_folder(folder) as work:
        for name, values in tensors.items():
            save_file({k: v.contiguous() for k, v in values.items()}, work / f"{name}.safetensors")
        (work / "state.json").write_text(json_text(state, exact=True))
        files = {f.name: {"sha256": digest(f), "bytes": f.stat().st_size} for f in sorted(work.iterdir())}
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
        (work / "manifest.json").write_text(json_text(manifest, indent=2))
    for older in numbered(run):
        if int(older.name) < step:
            shutil.rmtree(older)
    return folder


def numbered(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; other things that lie there are left alone."""
    folders = [f for f in (run / "checkpoints").glob("*") if f.is_dir() and f.name.isascii() and f.name.isdecimal()]
    return sorted(folders, key=lambda f: int(f.name))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, if there is one."""
    folders = numbered(run)
    return folders[-1] if folders else None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint."""
    remedy = "it is no usable checkpoint of anypolicy: delete this folder to resume from the start, or put it back"
    try:
        manifest = json_value((folder / "manifest.json").read_bytes())
        kind, version = str(manifest["format"]), int(manifest["version"])
        step, files = int(manifest["step"]), {str(n): str(facts["sha256"]) for n, facts in manifest["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise InputError("checkpoint", str(folder), f"its manifest.json cannot be read; {remedy}") from error
    if kind != FORMAT or not 1 <= version <= VERSION:
        raise InputError("checkpoint", f"{kind} {version}", f"this version reads {FORMAT} up to {VERSION}")
    if "state.json" not in files or str(step) != folder.name.lstrip("0"):
        raise InputError("checkpoint", str(folder), f"its manifest.json does not describe it; {remedy}")
    for name, sha256 in files.items():
        path = folder / name
        if Path(name).name != name or not isfile(path) or digest(path) != sha256:
            raise InputError("checkpoint", str(path), f"the file is missing or not what was written; {remedy}")
    try:
        tensors = {Path(n).stem: read_tensors(folder / n, "checkpoint") for n in files if n.endswith(".safetensors")}
        state = json_value((folder / "state.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError("checkpoint", str(folder), remedy) from error
    if not isinstance(state, dict):
        raise InputError("checkpoint", str(folder / "state.json"), remedy)
    return Checkpoint(step, tensors, state)  # type: ignore[reportUnknownArgumentType]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
