"""What is fastest on this processor, found out once and kept in the cache (the same seed gives the same bits, however
busy the machine is), written into a run's recipe, and never at the cost of accuracy."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import sys
import time
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from anypolicy.runs.files import cache_folder

STARTED = torch.get_num_threads()
"""Threads that torch began with: the cores this process may use, or OMP_NUM_THREADS."""
Products = Literal["default", "onednn"]

FASTER = 1.3
"""oneDNN must be this many times as fast: below that the gain is not worth other rounding than torch's default."""
SIZE = 512


@functools.cache
def choose_products() -> Products:
    """The library chosen when this processor and this torch first met here."""
    met = hashlib.sha256(f"{processor()} {torch.__version__}".encode()).hexdigest()[:16]
    kept = cache_folder() / f"products-{met}.txt"
    choice = kept.read_text() if kept.is_file() else ""
    if choice not in get_args(Products):
        choice = measure_products()
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with kept.open("x") as file:
                file.write(choice)
    return cast(Products, choice)


def measure_products() -> Products:
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


def use_products(library: Products, device: torch.device) -> None:
    """Let float32 matrices be multiplied by this library from now on; a GPU has one, which is not to round them."""
    medium = library == "onednn" and device.type == "cpu"
    torch.set_float32_matmul_precision("medium" if medium else "highest")


def better(seconds: dict[str, float], error: dict[str, float]) -> bool:
    """Whether "medium" is FASTER and its largest error not above three times that of the default."""
    return seconds["highest"] >= FASTER * seconds["medium"] and error["medium"] <= 3 * error["highest"]


def choose_threads() -> int:
    """Threads of a run that is not told: those torch began with, at most the processors that a container is granted.
    How busy the machine is decides nothing, because another number of threads sums in another order."""
    granted = quota()
    return STARTED if granted is None else max(min(STARTED, int(granted)), 1)


def quota(root: Path = Path("/")) -> float | None:
    """Processors that the control groups of this process grant it; None where they set no limit."""
    groups = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):
        own = (root / "proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
        limits = [(path / "cpu.max").read_text().split() for path in (groups / own, *(groups / own).parents)
                  if path.is_relative_to(groups) and (path / "cpu.max").is_file()]  # fmt: skip
        given = [int(most) / int(period) for most, period in limits if most != "max"]
        if limits:
            return min(given, default=None)
        used, period = (int((groups / "cpu" / f"cpu.cfs_{x}_us").read_text()) for x in ("quota", "period"))
        return used / period if used > 0 else None
    return None


def processor() -> str:
    """Which processor this is and what it can do: what is found for one may not hold for another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    said = [next((x for x in lines if x.startswith(names)), "") for names in (("model name",), ("flags", "Features"))]
    return " ".join(said).strip() or platform.processor()
