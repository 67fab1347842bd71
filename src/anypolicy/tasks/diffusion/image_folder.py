"""A folder of images with metadata.jsonl, in the layout of Hugging Face's image folders.

Every line has `text` and `file_name` (a preferred image), or `text`, `chosen` and `rejected` (two images of a prompt).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from anypolicy.data.readers import BROKEN, read_image
from anypolicy.errors import InputError
from anypolicy.policies.diffusion.denoisers import Label
from anypolicy.tasks.diffusion.base import PictureTask
from anypolicy.tasks.lines import json_lines

Record = dict[str, str]


@dataclass(frozen=True)
class Files:
    """Images read when they are needed: cut to their middle square and resized to `size`."""

    paths: list[Path]
    labels: list[str]
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Sequence[int]) -> tuple[Tensor, list[Label]]:
        return torch.stack([read(self.paths[i], self.size) for i in rows]), [self.labels[i] for i in rows]


def read(path: Path, size: int) -> Tensor:
    """An image as (3, size, size) in [0, 1]."""
    try:
        square = ImageOps.fit(read_image(path), (size, size), Image.Resampling.BICUBIC)
    except BROKEN as error:
        raise InputError("task", str(path), f"this image cannot be read ({error}): mend or remove its line") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255


def records(folder: Path) -> list[Record]:
    """The lines of metadata.jsonl, every field checked and every file there."""
    path = folder / "metadata.jsonl"
    if not isfile(path):
        raise InputError("task", str(folder), "put a metadata.jsonl there, one image (or pair of images) a line")
    out = list[Record]()
    for where, row in json_lines(str(path), "text and file_name, or text, chosen and rejected"):
        fields = ("text", "chosen", "rejected") if "chosen" in row else ("text", "file_name")
        for name in fields:
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise InputError(str(path), where, f"it needs the text field {name!r}")
        for name in fields[1:]:
            if not isfile(folder / row[name]):
                raise InputError(str(path), where, f"{name} names {row[name]!r}, which is not in the folder")
        if "chosen" in fields and row["chosen"] == row["rejected"]:
            raise InputError(str(path), where, "chosen and rejected are the same image: remove the pair")
        if out and ("chosen" in out[0]) != ("chosen" in fields):
            raise InputError(str(path), where, "all lines have file_name, or all have chosen and rejected")
        out.append({name: row[name] for name in fields})
    if len(out) < 2:
        raise InputError("task", str(path), "it has less than 2 lines: one is held out")
    return out


def image_folder(folder: Path, *, size: int = 512, heldout: float = 0.1) -> PictureTask:
    """The last `heldout` of the lines (at least one) is held out; its prompts are those that evaluations sample."""
    if not 0 < heldout < 1:
        raise InputError("folder.heldout", heldout, "use a share between 0 and 1")
    if not 8 <= size <= 8192:
        raise InputError("folder.size", size, "use 8 to 8192 pixels")
    rows = records(folder)
    cut = len(rows) - max(round(heldout * len(rows)), 1)
    if not cut:
        raise InputError("folder.heldout", heldout, f"all {len(rows)} lines would be held out: use less, or add lines")
    best = "chosen" if "chosen" in rows[0] else "file_name"

    def files(part: list[Record], name: str) -> Files:
        return Files([folder / r[name] for r in part], [r["text"] for r in part], size)

    losers = files(rows[:cut], "rejected") if best == "chosen" else None
    held = files(rows[cut:], best)
    return PictureTask(str(folder), files(rows[:cut], best), losers, held, list(dict.fromkeys(held.labels)))
