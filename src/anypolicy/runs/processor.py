"""What is fastest on this processor, found out when a run is planned, written into its recipe (a run that goes on must
round as it began), and never at the cost of accuracy."""

from __future__ import annotations

import functools
import sys
import time
from typing import Literal

import torch

Products = Literal["default", "onednn"]

FASTER = 1.3
"""oneDNN must be this many times as fast: below that the gain is not worth other rounding than torch's default."""
SIZE = 512


@functools.cache
def choose_products() -> Products:
    """Which library multiplies float32 matrices. torch gives them to MKL, which is slow on some processors of other
    makers; "medium" precision gives them to oneDNN, which on some processors then rounds to bfloat16. So both are
    timed and compared with float64 here (some 50 ms), and oneDNN is taken only where it is much faster and as exact."""
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(SIZE, SIZE, generator=rng), torch.randn(SIZE, SIZE, generator=rng)
    exact = a.double() @ b.double()
    seconds, error = dict[str, float](), dict[str, float]()
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        error[precision] = float((a @ b - exact).abs().max())
        tries: list[float] = []
        for _ in range(8):
            began = time.perf_counter()
            torch.mm(a, b)
            tries.append(time.perf_counter() - began)
        seconds[precision] = min(tries)
    torch.set_float32_matmul_precision(before)
    if not better(seconds, error):
        return "default"
    gain = seconds["highest"] / seconds["medium"]
    print(f"note: float32 products by oneDNN, {gain:.1f} times as fast here and as exact", file=sys.stderr)
    return "onednn"


def use_products(library: Products) -> None:
    """Let float32 matrices be multiplied by this library from now on."""
    torch.set_float32_matmul_precision("medium" if library == "onednn" else "highest")


def better(seconds: dict[str, float], error: dict[str, float]) -> bool:
    """Whether "medium" is FASTER and its largest error not above three times that of the default."""
    return seconds["highest"] >= FASTER * seconds["medium"] and error["medium"] <= 3 * error["highest"]
