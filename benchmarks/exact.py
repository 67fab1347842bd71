"""How the time of exact methods grows with states, actions, features, horizon or rows: seconds, slopes and a plot.

    python benchmarks/exact.py                   all: benchmarks/results/exact.json and docs/benchmarks/exact.svg
    python benchmarks/exact.py horizon-free-rfe  one section, nothing written
    python benchmarks/exact.py --quick           two sizes of each, nothing written

A section is an entry of SECTIONS: a base size, sizes to try one at a time, and a function that makes an instance and
gives back the work to time (processor seconds of one call, the fastest of three). A slope is that of log seconds over
log size between the two largest sizes.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from common import HERE, write

from anypolicy.methods.exact import horizon_free_rfe as rfe
from anypolicy.methods.exact import realizability
from anypolicy.parts import evaluation, mdp
from anypolicy.tasks.evaluation_problems import random_problem
from anypolicy.tasks.mixtures import TableEnvironment, corridor, random_mixture
from anypolicy.tasks.reward_free import random_rewards

Work = Callable[[], Any]


def exploration(states: int, actions: int, features: int, horizon: int) -> Work:
    """Ten episodes of reward-free exploration, with a bank of 20 rewards."""
    m = random_mixture(features, states, actions, 0)
    bank = random_rewards(m.model, horizon, 20, np.random.default_rng(0))
    return lambda: rfe.explore(TableEnvironment(m.kernel, 0, np.random.default_rng(0)), m.model, 10, horizon, bank)


def planning(states: int, actions: int, features: int, horizon: int) -> Work:
    """Planning for 20 rewards with a learnt mixture."""
    m = random_mixture(features, states, actions, 0)
    bank = random_rewards(m.model, horizon, 20, np.random.default_rng(0))
    return lambda: rfe.plan(m.model, m.theta, bank)


def laboratory(horizon: int) -> Work:
    """A hundred episodes of the claim's corridor."""
    m = corridor()
    return lambda: rfe.explore(TableEnvironment(m.kernel, 0, np.random.default_rng(0)), m.model, 100, horizon)


def diagnosis(rows: int, states: int, actions: int, features: int) -> Work:
    """A whole report on a log, intervals included."""
    e = random_problem(states, actions, features, 0)
    log = e.log(rows, np.random.default_rng(0))
    return lambda: realizability.off_policy_report(log, e.policy, e.features, 0.9, (e.phi, e.phi_next, e.occupancy))


def known(states: int, actions: int, features: int) -> Work:
    """β, C and Q^π of known dynamics."""
    e = random_problem(states, actions, features, 0)
    off = e.phi - 0.9 * e.phi_next

    def work() -> float:
        realizability.misalignment(e.phi, e.phi_next, 0.9, "exact", weights=e.mu.ravel())
        mdp.q_values(mdp.pair_kernel(e.kernel, e.policy), e.reward.ravel(), 0.9)
        return evaluation.concentrability(off, off, e.occupancy, e.mu.ravel())

    return work


@dataclass(frozen=True)
class Section:
    """What to time: the method it belongs to, the work, the size all others stay at, and sizes of each by name."""

    method: str
    make: Callable[..., Work]
    base: dict[str, int]
    sizes: dict[str, tuple[int, ...]]


SECTIONS = {
    "exploration": Section(
        "horizon-free-rfe", exploration, {"states": 10, "actions": 4, "features": 3, "horizon": 10},
        {"states": (10, 20, 40, 80), "actions": (4, 8, 16, 32), "features": (3, 6, 12, 24),
         "horizon": (10, 20, 40, 80)},
    ),
    "planning": Section(
        "horizon-free-rfe", planning, {"states": 50, "actions": 4, "features": 3, "horizon": 10},
        {"states": (50, 100, 200, 400), "actions": (4, 16, 64), "features": (3, 12, 48), "horizon": (10, 40, 160)},
    ),
    "laboratory": Section("horizon-free-rfe", laboratory, {"horizon": 8}, {"horizon": (8, 16, 32)}),
    "diagnosis": Section(
        "realizability", diagnosis, {"rows": 5000, "states": 20, "actions": 2, "features": 4},
        {"rows": (5000, 20_000, 80_000), "states": (20, 80, 320), "actions": (2, 8, 32), "features": (4, 16, 64)},
    ),
    "known dynamics": Section(
        "realizability", known, {"states": 50, "actions": 2, "features": 8},
        {"states": (50, 100, 200, 400), "actions": (2, 4, 8, 16), "features": (8, 16, 32, 64)},
    ),
}  # fmt: skip


def seconds(work: Work) -> float:
    """Processor seconds of the fastest of three calls."""
    found: list[float] = []
    for _ in range(3):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def measure(name: str, section: Section, quick: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Result rows and points of a section."""
    rows, points = [], {}
    for what, sizes in section.sizes.items():
        tried = sizes[:2] if quick else sizes
        took = [seconds(section.make(**(section.base | {what: size}))) for size in tried]
        slope = float(np.log(took[-1] / took[-2]) / np.log(tried[-1] / tried[-2]))
        print(f"{name:<15} {what:<9} slope {slope:5.2f}   "
              + "  ".join(f"{n}: {t:.4f} s" for n, t in zip(tried, took, strict=True)), flush=True)  # fmt: skip
        rows.append({"name": f"{name}-{what}", "ratio": slope, "low": None, "high": None, "peer": "itself",
                     "unit": f"slope of log seconds over log {what}"})  # fmt: skip
        points[what] = [{"size": n, "seconds": t} for n, t in zip(tried, took, strict=True)]
    return rows, points


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Seconds over size, both logarithmic, a panel a section."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 3.4), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for what, line in points.items():
            axes.loglog([p["size"] for p in line], [p["seconds"] for p in line], "o-", label=what)
        axes.set(title=name, xlabel="size", ylabel="processor seconds")
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="*", help="only the sections of these methods")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    unknown = set(args.method) - {s.method for s in SECTIONS.values()}
    if unknown:
        parser.error(f"no section of {', '.join(sorted(unknown))}")
    chosen = {k: s for k, s in SECTIONS.items() if not args.method or s.method in args.method}
    ratios: list[dict[str, Any]] = []
    found: dict[str, dict[str, Any]] = {}
    for name, section in chosen.items():
        rows, found[name] = measure(name, section, args.quick)
        ratios += rows
    if not args.quick and not args.method:
        plot(found, HERE.parent / "docs/benchmarks/exact.svg")
        versions = {"numpy": np.__version__, "scipy": scipy.__version__, "python": platform.python_version()}
        print(write("exact", ratios, versions, {"base": {k: s.base for k, s in chosen.items()}, "points": found}))


if __name__ == "__main__":
    main()
