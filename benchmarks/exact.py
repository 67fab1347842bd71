"""How the time of exact methods grows with states, actions, features, horizon or rows: seconds, slopes and a plot.

    python benchmarks/exact.py                   all: benchmarks/results/exact.json and docs/benchmarks/exact.svg
    python benchmarks/exact.py exp2 inspect      only what belongs to these; what is recorded of others stays
    python benchmarks/exact.py --paper           only the instances on which claims are checked
    python benchmarks/exact.py --quick           two sizes of each, nothing written

A section is an entry of SECTIONS: a base size, sizes to try one at a time, and a function that makes an instance and
gives back the work to time (processor seconds of one call, the fastest of three). A slope is that of log seconds over
log size between the two largest sizes. PAPER holds the instances on which claims are checked, timed once.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from common import HERE, RESULTS, write

from anypolicy.data.demonstrations import Episode
from anypolicy.loops import one_sided
from anypolicy.methods.exact import horizon_free_rfe as rfe
from anypolicy.methods.exact import realizability
from anypolicy.methods.exact.context_semi_bandit_ftpl import ContextSemiBanditFTPL, Finite
from anypolicy.methods.exact.exp2 import Exp2
from anypolicy.parts import coverage, evaluation, mdp
from anypolicy.parts.fairness import Mahalanobis, Panel
from anypolicy.parts.lipschitz import closed_loop_gain, extension, spectral_norm
from anypolicy.parts.one_sided import theory_rate
from anypolicy.policies.control.lipschitz import Extension, LipschitzMLP, fit
from anypolicy.studies.inspection import dataset_report
from anypolicy.tasks.exact.evaluation_problems import random_problem
from anypolicy.tasks.exact.linear_plants import costly, directions, double_integrator, sampled, simulate
from anypolicy.tasks.exact.mixtures import TableEnvironment, corridor, random_mixture
from anypolicy.tasks.exact.one_sided import Cases, Halfspaces
from anypolicy.tasks.exact.reward_free import random_rewards

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


def laboratory(horizon: int, episodes: int = 100) -> Work:
    """Episodes of the claim's corridor."""
    m = corridor()
    return lambda: rfe.explore(TableEnvironment(m.kernel, 0, np.random.default_rng(0)), m.model, episodes, horizon)


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


def uniform(*shape: int) -> torch.Tensor:
    """Numbers in [−1, 1]."""
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1


def network(inputs: int, width: int, layers: int) -> Work:
    """Twenty updates of a projected network on 256 samples, and its certificate."""
    x, u = uniform(256, inputs), uniform(256, 2)
    net = LipschitzMLP(inputs, 2, [width] * layers, 2.0, torch.Generator().manual_seed(0)).double()
    net.scale(x, u)
    adam = torch.optim.Adam(net.parameters(), 3e-3)

    def work() -> float:
        for _ in range(20):
            net.imitate(adam, x, u)
        return net.certificate()

    return work


def middle(samples: int, queries: int, inputs: int) -> Work:
    """The extension of samples at queries."""
    x, u, q = uniform(samples, inputs), uniform(samples, 1), uniform(queries, inputs)
    return lambda: extension(x, u, 2.0, q)


def loop(states: int) -> Work:
    """The gain of a loop whose matrix has norm 0.9."""
    a, b = uniform(states, states), uniform(states, states)
    a *= 0.9 / spectral_norm(a)
    return lambda: closed_loop_gain(a, b, torch.zeros(states, states, dtype=a.dtype))


def cloning() -> Work:
    """3,000 updates on 300 demonstrations."""
    plant = double_integrator()
    x, u = sampled(plant, 300, 0.3, torch.Generator().manual_seed(0))
    return lambda: fit(x, u, spectral_norm(plant.k), "mlp")


def attack() -> Work:
    """An extension of 300 demonstrations, for 100 steps against the best of 16 errors."""
    plant = double_integrator()
    x, u = sampled(plant, 300, 0.3, torch.Generator().manual_seed(0))
    policy, w = Extension(x, u, spectral_norm(plant.k)), 0.15 * directions(2, 16, torch.Generator())
    return lambda: simulate(plant, policy, plant.start, 100, w, costly(plant))


def stream(rules: int, actions: int, auditors: int, features: int, rounds: int) -> tuple[Cases, Panel]:
    """Uniform cases (as many a round as there are `actions`), half-spaces and a panel."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (rounds, actions, features))
    w = rng.normal(size=(rules - 2, features)) / features**0.5
    half = Halfspaces(w, rng.uniform(-0.6, 0.6, rules - 2)).with_constants()
    panel = tuple(Mahalanobis(np.diag(v)) for v in rng.uniform(0, 1, (auditors, features)))
    made = Cases("random", x, (x[..., 0] > 0).astype(float), half, panel, rng.uniform(-1, 1, (64, features)))
    return made, Panel(panel)


def weights(rules: int, actions: int, auditors: int, features: int, rounds: int = 300) -> Work:
    """Rounds of Exp2, the panel's distances included."""
    given, panel = stream(rules, actions, auditors, features, rounds)
    eta = theory_rate(actions, rounds, rules, 4.0)

    def work() -> Any:
        learner = Exp2(given.rules, rules, 4.0, eta, np.random.default_rng(0))
        return one_sided.run(given, learner, panel.limits(given.x), panel.alpha)

    return work


def perturbed(rules: int, actions: int, auditors: int, features: int, rounds: int = 100) -> Work:
    """Rounds of FTPL with the exact oracle, the panel's distances included."""
    given, panel = stream(rules, actions, auditors, features, rounds)

    def work() -> Any:
        oracle = Finite(given.rules, given.separators[:16])
        learner = ContextSemiBanditFTPL(oracle, 16, 4.0, 0.05, 50, 40, np.random.default_rng(0))
        return one_sided.run(given, learner, panel.limits(given.x), panel.alpha)

    return work


def measures(rows: int, axes: int) -> Work:
    """SACo's count and the entropy of binned pairs."""
    rng = np.random.default_rng(0)
    seen, acted = rng.normal(size=(rows, axes)), rng.integers(0, 4, rows)
    limits = np.stack([seen.min(0), seen.max(0)], 1)
    return lambda: coverage.occupancy_entropy(coverage.pair_counts(seen, acted, limits))


def report(rows: int) -> Work:
    """All measures of a data set like CartPole's, the fitted behaviour included."""
    rng, steps = torch.Generator().manual_seed(0), 100
    made = [Episode(torch.randn(steps + 1, 4, generator=rng), torch.randint(2, (steps, 1), generator=rng).float(),
                    torch.ones(steps), torch.arange(steps) == steps - 1, torch.zeros(steps))
            for _ in range(rows // steps)]  # fmt: skip
    return lambda: dataset_report(made, made, 20.0, 500.0, choices=2)


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
    "network": Section(
        "lipschitz-imitation", network, {"inputs": 4, "width": 64, "layers": 2},
        {"inputs": (4, 16, 64, 256), "width": (32, 64, 128, 256), "layers": (1, 2, 4, 8)},
    ),
    "extension": Section(
        "lipschitz-imitation", middle, {"samples": 1000, "queries": 500, "inputs": 4},
        {"samples": (1000, 4000, 16_000), "queries": (500, 2000, 8000), "inputs": (4, 16, 64)},
    ),
    "closed loop": Section("lipschitz-imitation", loop, {"states": 4}, {"states": (4, 16, 64, 128)}),
    "exp2": Section(
        "exp2", weights, {"rules": 62, "actions": 4, "auditors": 3, "features": 3},
        {"rules": (62, 1000, 16_000), "actions": (4, 16, 64), "auditors": (3, 48, 768), "features": (3, 48, 768)},
    ),
    "ftpl": Section(
        "context-semi-bandit-ftpl", perturbed, {"rules": 62, "actions": 4, "auditors": 3, "features": 3},
        {"rules": (62, 500, 4000), "actions": (4, 16, 64), "auditors": (3, 48, 768), "features": (3, 48, 768)},
    ),
    "measures": Section(
        "inspect", measures, {"rows": 20_000, "axes": 4}, {"rows": (20_000, 80_000, 320_000), "axes": (4, 16, 64)},
    ),
}  # fmt: skip

PAPER = {
    "horizon-free-rfe": {
        "400 episodes of 8 steps in the corridor": (laboratory, (8, 400)),
        "400 episodes of 32 steps in the corridor": (laboratory, (32, 400)),
    },
    "realizability": {"report on 32,000 rows, 20 states, 4 features": (diagnosis, (32_000, 20, 2, 4))},
    "lipschitz-imitation": {
        "network of 64 and 64 on 300 demonstrations, 3,000 updates": (cloning, ()),
        "extension against an adversary, 100 steps": (attack, ()),
    },
    "exp2": {"8,000 rounds of 4 cases, 62 rules, 3 auditors": (weights, (62, 4, 3, 3, 8000))},
    "context-semi-bandit-ftpl": {"2,000 rounds of 4 cases, 62 rules, 3 auditors": (perturbed, (62, 4, 3, 3, 2000))},
    "inspect": {"all measures of 100,000 transitions": (report, (100_000,))},
}


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
    from matplotlib.ticker import NullFormatter

    from anypolicy.evidence.plots import write_picture

    rows = -(-len(found) // 4)
    figure = Figure(figsize=(12.8, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, 4, squeeze=False).ravel()
    for axes in panels[len(found) :]:
        axes.remove()
    for axes, (name, points) in zip(panels, found.items(), strict=False):
        for what, line in points.items():
            axes.loglog([p["size"] for p in line], [p["seconds"] for p in line], "o-", label=what)
        axes.set(title=name, xlabel="size", ylabel="processor seconds")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False, fontsize=8)
    write_picture(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="*", help=f"only what belongs to these: {', '.join(PAPER)}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--paper", action="store_true", help="only the instances on which claims are checked")
    args = parser.parse_args()
    if unknown := set(args.method) - set(PAPER):
        parser.error(f"nothing belongs to {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    ratios: dict[str, list[dict[str, Any]]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, section in SECTIONS.items():
        if not args.paper and (not args.method or section.method in args.method):
            ratios[name], found[name] = measure(name, section, args.quick)
    if not args.quick:
        keep(ratios, found, once(args.method))


def once(methods: list[str]) -> dict[str, dict[str, float]]:
    """Processor seconds of one call on the papers' instances, by method."""
    took: dict[str, dict[str, float]] = {}
    for method, instances in PAPER.items():
        for name, (make, sizes) in instances.items():
            if methods and method not in methods:
                continue
            work, began = make(*sizes), time.process_time()
            work()
            took.setdefault(method, {})[name] = time.process_time() - began
            print(f"{method:<15} {name}: {took[method][name]:.2f} s", flush=True)
    return took


def keep(
    ratios: dict[str, list[dict[str, Any]]], found: dict[str, dict[str, Any]], took: dict[str, dict[str, float]]
) -> None:
    """Write what was measured beside what is recorded of the other sections, and draw all."""
    path = RESULTS / "exact.json"
    old = json.loads(path.read_text()) if path.is_file() else {"ratios": [], "settings": {}}
    points = old["settings"].get("points", {}) | found
    points = {name: points[name] for name in SECTIONS if name in points}
    rows = [r for name in points for r in ratios.get(name) or
            [r for r in old["ratios"] if r["name"].rpartition("-")[0] == name]]  # fmt: skip
    plot(points, HERE.parent / "docs/benchmarks/exact.svg")
    versions = {"numpy": np.__version__, "scipy": scipy.__version__, "torch": torch.__version__,
                "python": platform.python_version()}  # fmt: skip
    settings = {"base": {name: SECTIONS[name].base for name in points}, "points": points,
                "paper": old["settings"].get("paper", {}) | took}  # fmt: skip
    print(write("exact", rows, versions, settings))


if __name__ == "__main__":
    main()
