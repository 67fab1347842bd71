"""Images that rows of a data set show: files beside it, or what a data set of the Hugging Face hub holds itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from os.path import isfile
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anypolicy.data.readers import BROKEN, check_image, read_array, read_image, rgb
from anypolicy.errors import InputError
from anypolicy.runs.digests import file_digest

FIELDS = ("image", "images")
Source = Path | Image.Image


class Shown(Sequence[NDArray[Any]]):
    """Images that are read anew each time they are looked at, so that a data set of them need not fit into memory."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Shown: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | Shown:
        if isinstance(index, slice):
            return Shown(self.sources[index])
        return pixels(self.sources[index])


def pixels(source: Source) -> NDArray[Any]:
    """(height, width, 3) in 0 … 255, turned as the camera says; the numbers of an .npy file as they are."""
    if isinstance(source, Path) and source.suffix == ".npy":
        return read_array(source, "image")
    try:
        return np.asarray(read_image(source) if isinstance(source, Path) else rgb(source))
    except BROKEN as error:
        raise InputError("image", str(source), f"it was there before and cannot be unpacked now ({error})") from error


def of_row(name: str, where: str, row: dict[str, Any], folder: Path | None) -> tuple[dict[str, Any], list[str]]:
    """The media of a row's `image` or `images`, and a digest of each. Paths are relative to `folder`."""
    given = [row[f] for f in FIELDS if row.get(f) not in (None, "", [])]
    if not given:
        return {}, []
    if len(given) > 1:
        raise InputError(name, where, "it has 'image' and 'images': put all into 'images'")
    listed = list(given[0]) if isinstance(given[0], list | tuple) else given
    sources = [source(name, where, x, folder) for x in listed]
    return {"images": Shown([s for s, _ in sources])}, [digest for _, digest in sources]


def source(name: str, where: str, given: Any, folder: Path | None) -> tuple[Source, str]:
    """One image, checked, and its digest."""
    if isinstance(given, Image.Image):
        return given, hashlib.sha256(pixels(given).tobytes()).hexdigest()
    if not isinstance(given, str) or folder is None:
        raise InputError(name, where, f"its image is {given!r}: write the path of a file, or a list of paths")
    path = folder / given
    if not isfile(path):
        raise InputError(name, where, f"there is no image {path}: paths are relative to the file they stand in")
    try:
        if path.suffix == ".npy":
            read_array(path, name)
        else:
            check_image(path)
    except BROKEN as error:
        raise InputError(name, where, f"{path} is no image that can be read ({error})") from error
    return path, file_digest(path)
