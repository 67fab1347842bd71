"""decode.c, compiled by the machine's C compiler on first use and kept in the cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anypolicy.runs.files import cache_folder
from anypolicy.runs.processor import processor

SOURCE = Path(__file__).with_name("decode.c")
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC")
LINK = ("-shared", "-fopenmp")
"""Linked without -ffast-math: with it the library would switch off denormal numbers for the whole process."""
BLOCK = 64
"""Keys in one block of a cache: the same number as in decode.c."""
LANES = 16
"""Head widths are multiples of it."""
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
P, N, F = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
ARGUMENTS = {
    "rms_norm": (P, P, P, N, N, F),
    "silu_mul": (P, P, N, N),
    "attend": (P, P, P, F, P, P, P, P, N, N, P, P, N, P, P, P, N, N, N, N, F),
}


def kernel(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """A function of decode.c for tensors of `dtype`. Raises OSError or SubprocessError without a working compiler."""
    function = getattr(library(), f"{name}_{NAMES[dtype]}")
    function.argtypes, function.restype = ARGUMENTS[name], None
    return function


@functools.cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(compiled()))


def compiled() -> Path:
    """The shared object for this source, compiler and processor, made if it is not there yet."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise OSError("there is no C compiler: install gcc or clang")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    made_of = "".join((SOURCE.read_text(), version, processor(), *FLAGS, *LINK))
    target = cache_folder() / "kernels" / f"decode-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            code, made = Path(folder) / "decode.o", Path(folder) / "decode.so"
            for command in (
                [compiler, *FLAGS, "-c", str(SOURCE), "-o", str(code)],
                [compiler, *LINK, str(code), "-lm", "-o", str(made)],
            ):
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            made.replace(target)
    return target
