"""Checkpoints: a folder of safetensors and JSON with a manifest of digests, never executable content.

    checkpoints/000010/manifest.json  state.json  optimiser.safetensors

A folder appears under its name only when it is whole, so a kill at any moment leaves the last one usable.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anypolicy.errors import InputError
from anypolicy.runs.files import new_folder, sweep

FORMAT, VERSION = "anypolicy-checkpoint", 1


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: named sets of tensors and plain values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(run: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write checkpoints/<step> whole, then remove the older ones."""
    folder = run / "checkpoints" / f"{step:06d}"
    folder.parent.mkdir(exist_ok=True)
    sweep(folder.parent)
    with new_folder(folder) as work:
        for name, values in tensors.items():
            save_file({k: v.contiguous() for k, v in values.items()}, work / f"{name}.safetensors")
        (work / "state.json").write_text(json.dumps(state))
        files = {f.name: {"sha256": digest(f), "bytes": f.stat().st_size} for f in sorted(work.iterdir())}
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for older in folder.parent.iterdir():
        if older.name < folder.name:
            shutil.rmtree(older)
    return folder


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, if there is one."""
    folders = sorted(f for f in (run / "checkpoints").glob("*") if f.is_dir() and not f.name.startswith("."))
    return folders[-1] if folders else None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint."""
    remedy = "it is no usable checkpoint of anypolicy"
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        kind, version, files = manifest["format"], manifest["version"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("checkpoint", str(folder), f"{remedy}: its manifest.json cannot be read") from error
    if kind != FORMAT or not isinstance(version, int) or version > VERSION:
        raise InputError("checkpoint", f"{kind} {version}", f"this version reads {FORMAT} up to {VERSION}")
    for name, facts in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or digest(path) != facts["sha256"]:
            raise InputError(
                "checkpoint", str(path),
                "the file is missing or not what was written: delete this checkpoint folder and resume from the start, "
                "or put the file back",
            )  # fmt: skip
    try:
        tensors = {Path(n).stem: load_file(folder / n) for n in files if n.endswith(".safetensors")}
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError("checkpoint", str(folder), remedy) from error
    return Checkpoint(manifest["step"], tensors, state)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
