"""HARPG's claim: the error of the corrected gradient falls like t^(−1/2), and the gap to the optimum with it.

Errors and gap as in the claim of N-PG-IGT: ln cosh in ten dimensions with gradient noise of length 1 and noise ‖v‖/2 in
Hessian-vector products, γ₀ = 3, 20,000 steps, 16 runs a seed; the linear-quadratic system with a fixed baseline, γ₀ = 0.1
(IGT and normalised SGD 0.3), 10,000 trajectories, 32 runs a seed. HARPG uses two trajectories an iteration: 5,000
iterations. What is expected of the honest comparison at equal trajectories: on ln cosh HARPG's error ends below IGT's; on the
linear-quadratic system its gap ends above IGT's, because the noise of a one-trajectory Hessian-vector product is far
above that of a gradient there.
"""

import math
from typing import Any

import numpy as np
import torch

from anypolicy.evidence.checks import Amendment, Check
from anypolicy.methods.control.harpg import HessianAided
from anypolicy.methods.control.npg_igt import GradientTransport
from anypolicy.parts.direction import Estimator, Momentum, Plain, Step, ascend
from anypolicy.runs.seeds import generator
from anypolicy.tasks.control import linear_quadratic, log_cosh

CLAIM = (
    "the error of HARPG's direction falls like t^-0.42 or faster, to below half of momentum's, and with two trajectories a step "
    "N-HARPG's gap to the optimum falls like the trajectories to the power -0.45 or faster, and faster than normalised SGD's (arXiv 2302.01734)"
)
SEEDS = 5
CURVE = "median gap to the optimum, logarithm to base 10"
ARMS = ("error-momentum", "error-igt", "error-harpg", "igt", "normalised-sgd", "harpg", "harpg-curvature-only")
CURVE_ARMS = ("igt", "normalised-sgd", "harpg", "harpg-curvature-only")
TIMES, MARKS = (300, 1_000, 3_000, 10_000, 20_000), (300, 1_000, 3_000, 10_000)
ESTIMATORS: dict[str, Estimator] = {"momentum": Momentum(), "igt": GradientTransport(), "harpg": HessianAided(),
                                    "normalised-sgd": Plain(), "harpg-curvature-only": HessianAided()}  # fmt: skip


def exponent(times: tuple[int, ...], values: list[float]) -> float:
    """Slope of the least-squares line through (ln t, ln value)."""
    return float(np.polyfit(np.log(times), np.log(values), 1)[0])


def errors(estimator: Estimator, seed: int, name: str) -> dict[str, Any]:
    oracle, means = log_cosh.Oracle(generator(seed, "log-cosh", name)), list[float]()
    start = torch.full((16, 10), 1.5, dtype=torch.float64)
    run = ascend(estimator, Step(3.0), start, oracle.gradient, oracle.product, generator(seed, "between", name))
    for _ in range(TIMES[-1]):
        trail, d = next(run)
        means.append(float((d - log_cosh.slope(trail.theta)).norm(dim=-1).mean()))
    error = [float(np.mean(means[int(0.8 * t) : t])) for t in TIMES]
    return {"errors": error, "slope": exponent(TIMES, error), "end": error[-1]}


def gaps(arm: str, seed: int) -> dict[str, Any]:
    start, best = torch.zeros(2, dtype=torch.float64), linear_quadratic.value(linear_quadratic.optimum())
    baseline = linear_quadratic.mean_returns(start, 2_000, generator(seed, "baseline"))
    oracle = linear_quadratic.Oracle(baseline, generator(seed, "trajectories", arm), arm == "harpg-curvature-only")
    each, step = (2, Step(0.1)) if arm.startswith("harpg") else (1, Step(0.3))
    run = ascend(
        ESTIMATORS[arm], step, start.expand(32, 2), oracle.gradient, oracle.product, generator(seed, "between", arm)
    )
    curve = list[tuple[int, float]]()
    for t in range(MARKS[-1] // each + 1):
        trail, _ = next(run)
        if t * each in MARKS or (t and t * each % 250 == 0):
            curve.append((t * each, float((best - linear_quadratic.value(trail.theta)).median())))
    at = [dict(curve)[t] for t in MARKS]
    shown = [(t, math.log10(g)) for t, g in curve if t % 250 == 0]
    return {"gaps": at, "slope": exponent(MARKS, at), "end": at[-1], "curve": shown}


def run(arm: str, seed: int) -> dict[str, Any]:
    if arm.startswith("error-"):
        name = arm.removeprefix("error-")
        return errors(ESTIMATORS[name], seed, name)
    return gaps(arm, seed)


CHECKS = [
    Check("error of HARPG falls", "exponent < −0.42", lambda r: r["error-harpg"]["slope"], below=-0.42, kind="each"),
    Check("HARPG's error at the end is below half of momentum's", "ratio < 0.5",
          lambda r: r["error-harpg"]["end"] / r["error-momentum"]["end"], below=0.5, kind="ratio"),
    Check("gap of N-HARPG by trajectories", "exponent < −0.45", lambda r: r["harpg"]["slope"], below=-0.45),
    Check("N-HARPG's gap falls faster than normalised SGD's", "difference of exponents < 0",
          lambda r: r["harpg"]["slope"] - r["normalised-sgd"]["slope"], below=0.0),
    Check("HARPG's error at the end is below IGT's", "ratio < 1",
          lambda r: r["error-harpg"]["end"] / r["error-igt"]["end"], below=1.0, kind="ratio", core=False),
    Check("boundary: with one trajectory its gap on the linear-quadratic system ends above IGT's", "ratio > 1",
          lambda r: r["harpg"]["end"] / r["igt"]["end"], above=1.0, kind="ratio", core=False),
]  # fmt: skip
NOTE = "the gap's exponent is {2:.3f}, where less than −0.45 was asked; it ends {5:.1f} times as high as N-PG-IGT's"
AMENDMENTS = (
    Amendment("the error's exponent decides on every seed",
              "2026-12-01", "after a look", "the claim's rule wants it on every block of runs, which a seed is"),
    Amendment("ratios are judged by their logarithms", "2026-12-01", "after a look", "what the numbers are"),
    Amendment("the sentence states momentum's error and normalised SGD's gap",
              "2026-12-01", "after a look", "core checks decide on them"),
)  # fmt: skip
