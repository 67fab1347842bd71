"""Files that somebody hands us: JSON, YAML, tensors, arrays, images. Whatever is wrong with one is an InputError that
names the file, before memory is taken for what it only claims to hold."""

from __future__ import annotations

import json
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from anypolicy.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Kinds of images that are read. Others run programs beside them (EPS), or nobody has them."""
BROKEN = (OSError, ValueError, EOFError, SyntaxError, OverflowError, RuntimeError, struct.error, zlib.error,
          tokenize.TokenError, zipfile.BadZipFile, Image.DecompressionBombError)  # fmt: skip
"""What the decoders of NumPy, zipfile and Pillow raise on damaged files."""
MOST = 100_000
"""Values in a YAML text."""
LONG = re.compile(r"\d{300}")
UNPACKED = 1032
"""Bytes that one byte of a deflated file can become."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- JSON and YAML ---------------------------------------------------------------------------------------------------
def parsed(data: str | bytes, each: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The value of JSON in UTF-8, `each` object of it changed. A ValueError, of whatever kind, where it is none."""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        return json.loads(text, object_hook=each, parse_int=whole if LONG.search(text) else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def whole(digits: str) -> int:
    """A whole number that floating point has room for."""
    if (number := int(digits)).bit_length() >= 1024:
        raise ValueError(f"it holds the number {digits[:20]}…: at most 308 digits can be read")
    return number


def json_object(path: Path, field: str, allowed: str, needs: Iterable[str] = ()) -> dict[str, Any]:
    """The object in a JSON file, with the fields that it `needs`; `allowed` says what the file should be."""
    try:
        value = parsed(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(field, str(path), f"it cannot be read as JSON ({error}); {allowed}") from error
    if not isinstance(value, dict):
        raise InputError(field, str(path), f"it holds no JSON object; {allowed}")
    if missing := [name for name in needs if name not in value]:
        raise InputError(field, str(path), f"it has no {', '.join(missing)}; {allowed}")
    return value


class Plain(yaml.SafeLoader):
    """Plain values in which no key comes twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given twice")
        return super().construct_mapping(node, deep)


def yaml_value(text: str) -> Any:
    """The value of YAML text. A ValueError where it is none, or grows beyond bounds by pointing to its own parts."""
    try:
        loader = Plain(text)
        node: Any = loader.get_single_node()
        if node is None:
            return None
        if written_out(node, {}) > MOST:
            raise ValueError("it grows beyond bounds by pointing to its own parts")
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def written_out(node: Any, known: dict[int, float]) -> float:
    """How many values a YAML node has where those that it points to stand in full; infinite for one inside itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node.value, list) else []
        inner = [x for part in parts for x in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(written_out(x, known) for x in inner)
    return known[id(node)]


# --- tensors and arrays ----------------------------------------------------------------------------------------------
COMPUTED = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
            torch.float32, torch.float64, torch.complex64, torch.complex128}  # fmt: skip
"""Kinds of numbers that PyTorch computes with; others it only stores."""


def read_tensors(path: Path, field: str, needs: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of a .safetensors file; all that it `needs` are there."""
    try:
        found = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(field, str(path), f"it is no whole .safetensors file ({error})") from error
    if missing := [name for name in needs if name not in found]:
        raise InputError(field, str(path), f"it lacks {', '.join(missing)}")
    for name, tensor in found.items():
        if tensor.dtype not in COMPUTED:
            raise InputError(field, str(path), f"{name} holds {tensor.dtype} numbers: use float32 or int64")
    return found


def check_sizes(folder: Path, sizes: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
    """Refuse sizes of a saved network that its tensors cannot have, before memory is taken for them."""
    most = max((n for x in tensors.values() for n in (*x.shape, len(tensors))), default=0)
    for name, n in sizes.items():
        if not 0 < n <= most:
            raise InputError("policy", str(folder), f"its config.json says {name} {n}, which its weights do not have")


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], field: str, path: Path) -> None:
    """Put saved weights into a network that has all of them, in their shapes, and no others."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise InputError(field, str(path), f"its weights are not those of its config.json ({told})") from error


def read_array(path: Path, field: str) -> NDArray[Any]:
    """The array of an .npy file."""
    try:
        with path.open("rb") as file:
            return _array(file, path.stat().st_size)
    except BROKEN as error:
        raise InputError(field, str(path), f"it is no .npy file that can be read ({error})") from error


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file by name. One of `BROKEN` where it is none."""
    found: dict[str, NDArray[Any]] = {}
    most = UNPACKED * path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename} is packed in a way that NumPy does not use")
            with archive.open(member) as file:
                found[member.filename.removesuffix(".npy")] = _array(file, min(member.file_size, most))
    return found


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """The array of a stream of `size` bytes, whose header may not claim more."""
    version = npy.read_magic(file)  # pyright: ignore[reportArgumentType]
    if version > (2, 0):
        raise ValueError("it holds named fields: use plain numbers")
    read: Callable[..., Any] = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, kind = read(file)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"its shape is {shape}")
    claimed = math.prod(shape) * kind.itemsize
    if claimed > size - file.tell():
        raise ValueError(f"it claims {claimed} bytes of numbers and has {size - file.tell()}")
    file.seek(0)
    return npy.read_array(file)  # pyright: ignore[reportArgumentType]


# --- images ----------------------------------------------------------------------------------------------------------
def check_image(path: Path) -> None:
    """Refuse, by one of `BROKEN`, what is no image of a known kind, is damaged, or unpacks to more than Pillow's limit;
    without unpacking it."""
    with _opened(path) as image:
        image.verify()


def read_image(path: Path) -> Image.Image:
    """An image in RGB, turned as the camera says. One of `BROKEN` where it cannot be read."""
    with _opened(path) as image:
        return rgb(image)


def rgb(image: Image.Image) -> Image.Image:
    """In RGB, turned as the camera says."""
    return ImageOps.exif_transpose(image).convert("RGB")


def _opened(path: Path) -> Image.Image:
    image = Image.open(path, formats=FORMATS)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise ValueError(f"{image.width} × {image.height} pixels, at most {limit:,} are read")
    return image
