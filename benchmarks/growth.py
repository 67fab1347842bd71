"""How time and memory of an update grow with group size, prompt, response, vocabulary and prompts; slopes and a plot.

    python benchmarks/growth.py            benchmarks/results/growth.json and docs/benchmarks/growth.svg

A slope is that of log cost over log size between the two largest sizes: 1 is linear. Attention among the tokens of
long responses is quadratic in the end; the prompt's share of a group should grow slower than the group.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import HERE, write

from anypolicy.version import __version__

BASE = {"prompts": 2, "group": 4, "prompt": 64, "completion": 64, "vocabulary": 2048}
SIZES = {
    "prompts": (1, 2, 4, 8, 16), "group": (2, 4, 8, 16, 32), "prompt": (64, 128, 256, 512, 1024),
    "completion": (64, 128, 256, 512), "vocabulary": (2048, 8192, 32768, 131072),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two sizes of each, nothing written")
    args = parser.parse_args()
    found, ratios = {}, []
    for what, sizes in SIZES.items():
        points = []
        for size in sizes[:2] if args.quick else sizes:
            given = json.dumps(BASE | {what: size})
            done = subprocess.run(
                [sys.executable, str(HERE / "workers/growth.py"), given], capture_output=True, text=True, check=True
            )
            points.append({"size": size, **json.loads(done.stdout.splitlines()[-1])})
        found[what] = points
        slope = {
            unit: float(np.log(points[-1][unit] / points[-2][unit]) / np.log(points[-1]["size"] / points[-2]["size"]))
            for unit in ("cpu", "memory")
        }
        print(f"{what:<11} slope of time {slope['cpu']:.2f}, of memory {slope['memory']:.2f}   "
              + "  ".join(f"{p['size']}: {p['cpu']:.3f} s {p['memory']:.0f} MiB" for p in points))  # fmt: skip
        ratios += [{"name": f"growth-{what}-{unit}", "ratio": value, "low": None, "high": None, "peer": "itself",
                    "unit": f"slope of log {unit} over log {what}"} for unit, value in slope.items()]  # fmt: skip
    if not args.quick:
        plot(found, HERE.parent / "docs/benchmarks/growth.svg")
        print(write("growth", ratios, {"anypolicy": __version__}, {"base": BASE, "points": found}))


def plot(found: dict, path: Path) -> None:
    """Seconds and MiB over size, both logarithmic, each divided by its value at the smallest size."""
    from matplotlib.figure import Figure

    from anypolicy.evidence.plots import write_picture

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, unit in zip(figure.subplots(1, 2), ("cpu", "memory"), strict=True):
        for what, points in found.items():
            first = points[0]
            axes.loglog(
                [p["size"] / first["size"] for p in points], [p[unit] / first[unit] for p in points], "o-", label=what
            )
        axes.loglog([1, 64], [1, 64], "k:", lw=1, label="linear")
        axes.set(
            xlabel="size over the smallest", ylabel=f"{'processor time' if unit == 'cpu' else unit} over the first"
        )
    axes.legend(frameon=False, fontsize=8)
    write_picture(figure, path)


if __name__ == "__main__":
    main()
