"""Arrays by name in a NumPy .npz file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anypolicy.data.readers import BROKEN, read_arrays
from anypolicy.errors import InputError


def load_arrays(path: str, needs: Iterable[str], may: Iterable[str] = ()) -> dict[str, NDArray[np.float64]]:
    """The arrays of a file: all of `needs`, any of `may`, nothing else; integers stay integers."""
    needs, known = tuple(needs), (*needs, *may)
    try:
        found = read_arrays(Path(path))
    except BROKEN as error:
        raise InputError("data", path, f"give a .npz file with {', '.join(needs)} ({error})") from error
    for name in needs:
        if name not in found:
            raise InputError("data", path, f"it has no array {name!r}; it needs {', '.join(needs)}", choices=found)
    for name, array in found.items():
        if name not in known:
            raise InputError(f"data[{name}]", array.shape, f"known arrays are {', '.join(known)}", choices=known)
        if array.dtype.kind not in "biuf":
            raise InputError(f"data[{name}]", str(array.dtype), "use an array of numbers")
        if not np.isfinite(array).all():
            where = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
            raise InputError(f"data[{name}]{where}", array[tuple(where)], "use finite numbers")
        found[name] = array.astype(np.int64 if array.dtype.kind in "biu" else np.float64)
    return found


def single(field: str, values: Any) -> NDArray[np.float32]:
    """A copy as float32; numbers beyond its range are infinite. Raises InputError for what are no real numbers."""
    try:
        x = np.asarray(values)
        if x.dtype.kind not in "biufO":
            raise TypeError(f"{x.dtype}")
        with np.errstate(over="ignore"):
            return np.array(x, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(field, f"{type(values).__name__} ({error})", "use real numbers of one shape") from error
