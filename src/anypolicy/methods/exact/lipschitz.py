"""Lipschitz imitation of a linear expert: how far may a copy with bad sensors stray from it?

Paper: Al Makdah, Krishnan and Pasqualetti 2021, arXiv 2103.16629. Only its abstract could be read: the statements are
the paper's programme, the theorems (B1) to (B5) and their constants are derived by us; proofs are in docs/lipschitz.md.
Idea: imitate under a hard Lipschitz bound α; α small moves little when measurements are wrong, α large imitates better.
Changes: nothing; it is a problem of its own. `anypolicy train` has a controller with the same network.
Silent: (to us) everything. Ours are the two policies (the middle of all α-Lipschitz functions nearest to the data; a
MaxMin network projected layer by layer), the choice of α and an adversary that sees the state.
Differs: nothing is known. Covering radii are bounded from above on a grid, so that (B1) is a bound and no estimate.
  (B1) sup ‖π̂ − π*‖ ≤ δ = E + (α + ℓ)ρ          (B3) ‖x̂_t − x*_t‖ ≤ r = g(δ + αω), g = Σ_k ‖(A − BK)ᵏB‖
  (B2) P(ρ > h√n) ≤ N_h (1 − p_h)^N              (B4) regret ≤ T[(c_x + c_u ℓ) r + c_u(δ + αω)]
  (B5) measurement errors add gαω to the radius
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import check_numbers, settings_of
from anypolicy.knobs import Knob
from anypolicy.parts.lipschitz import (
    Gain,
    check_alpha,
    choose_alpha,
    closed_loop_gain,
    covered,
    covering_radius,
    imitation_error,
    regret_bound,
    spectral_norm,
    tube_radius,
)
from anypolicy.parts.reports import Assumption, Chart, Line, Report, Solution
from anypolicy.policies.control.lipschitz import Certified, Extension, Kind, fit
from anypolicy.runs.progress import counting
from anypolicy.runs.seeds import generator
from anypolicy.tasks.exact.linear_plants import (
    LinearPlant,
    Trajectory,
    costly,
    directions,
    leading_away,
    load_plant,
    recorded,
    sampled,
    simulate,
)

GRID = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)  # α as multiples of the expert's constant
USES = {"uniform states": {"samples": 3000, "noise": 0.0}, "demos": {}, "mlp": {"updates": 3000}, "extension": {}}


@dataclass(frozen=True)
class Study:
    """An imitation of a plant's expert, and what can be said about it."""

    plant: LinearPlant
    policy: Certified
    reference: Trajectory
    omega: float
    gain: Gain
    rho: tuple[float, float]
    at_data: float

    @property
    def ell(self) -> float:
        """The expert's Lipschitz constant ‖K‖."""
        return spectral_norm(self.plant.k)

    def delta(self) -> float:
        """(B1) with the covering radius from above."""
        return imitation_error(self.at_data, self.policy.certificate(), self.ell, self.rho[1])

    def radius(self, delta: float) -> float:
        """(B3)."""
        return tube_radius(self.gain.total, delta, self.policy.certificate(), self.omega)

    def reach(self) -> float:
        """The largest |x_i|/box_i in the tube around the expert's trajectory: (B3) needs at most 1."""
        return float(((self.reference.x.abs() + self.radius(self.delta())) / self.plant.box).max())

    def regret(self) -> float:
        """(B4) with |x̂ᵀQx̂ − x*ᵀQx*| ≤ ‖Q‖(2‖x*‖ + r)‖x̂ − x*‖ for c_x, and for c_u the same with R and
        ‖û − u*‖ ≤ ℓr + δ + αω."""
        delta, alpha = self.delta(), self.policy.certificate()
        r = self.radius(delta)
        x, u = (float(v.norm(dim=1).max()) for v in self.reference)
        c_x = spectral_norm(self.plant.q) * (2 * x + r)
        c_u = spectral_norm(self.plant.r) * (2 * u + self.ell * r + delta + alpha * self.omega)
        return regret_bound(len(self.reference.u), c_x, c_u, self.ell, self.gain.total, delta, alpha, self.omega)

    def worst(self, policy: Certified, w: Float[Tensor, "choices n"]) -> list[Trajectory]:
        """Without errors of measurement, with those that cost most, and with those that lead away from the expert."""
        p, start, steps = self.plant, self.reference.x[0], len(self.reference.u)
        goals = (costly(p), leading_away(self.reference))
        return [simulate(p, policy, start, steps), *(simulate(p, policy, start, steps, w, goal) for goal in goals)]

    def away(self, run: Trajectory) -> Float[Tensor, " steps"]:
        return (run.x - self.reference.x).norm(dim=1)


def reports(s: Study, runs: list[Trajectory], probes: Float[Tensor, "probes n"], samples: int) -> list[Report]:
    """Every bound beside what was found; (B2) says what `samples` uniform states would cover."""
    alpha, g, delta = s.policy.certificate(), s.gain, s.delta()
    loop = Assumption("the expert's loop contracts", True, f"spectral radius {g.radius:.4g}")
    inside = Assumption("the state stays in the box", s.reach() <= 1, f"the tube reaches {s.reach():.3g} of it")
    given = Assumption("plant, expert and largest error of measurement are as given", None)
    miss, seen = (float((s.policy(x) - s.plant.expert(x)).norm(dim=1).max())
                  for x in (probes, torch.cat([run.x[:-1] for run in runs])))  # fmt: skip
    small = 1e-3 * directions(probes.shape[1], 8, generator(0, "secants"))
    slope = max(float((s.policy(probes[:200] + w) - s.policy(probes[:200])).norm(dim=1).max() / w.norm())
                for w in small)  # fmt: skip
    closed, n = (loop, inside, given), probes.shape[1]
    width = covered(n, samples, 0.05) * 2 * float(s.plant.box.norm())
    return [
        Report("Lipschitz constant α of the policy", alpha, "bound", "by construction; spectral norms of a network"),
        Report("steepest short secant of the policy", slope, "estimate"),
        Report("Lipschitz constant ℓ of the expert", s.ell, "exact", "‖K‖"),
        Report("error at the data, E", s.at_data, "exact"),
        Report("covering radius ρ", s.rho[1], "bound", f"grid over the box; at least {s.rho[0]:.4g}"),
        Report(f"covering radius of {samples:,} uniform states, with probability 0.95", width, "bound",
               "(B2), our derivation"),
        Report("error of imitation in the box, δ", delta, "bound", "(B1), our derivation"),
        Report("largest error at 2,000 probes", miss, "estimate"),
        Report("gain g of the expert's loop", g.total, "bound",
               f"Σ‖A_cᵏB‖; ‖A_cᵏ‖ ≤ {g.overshoot:.3g} · {g.rate:.3g}ᵏ", assumptions=(loop,)),
        Report("distance to the expert", s.radius(delta), "bound", "(B3), our derivation", assumptions=closed,
               note=f"of which from errors of measurement {g.total * alpha * s.omega:.3g} (B5)"),
        Report("distance to the expert, with δ as found on the simulated runs", s.radius(seen), "bound",
               "(B3), our derivation", assumptions=(loop, given)),
        Report("largest distance that an adversary reached", max(float(s.away(r).max()) for r in runs), "estimate"),
        Report("regret against the expert", s.regret(), "bound", "(B4), our derivation", assumptions=closed),
        Report("largest regret that an adversary reached",
               max(s.plant.total(r) for r in runs) - s.plant.total(s.reference), "estimate"),
    ]  # fmt: skip


def charts(s: Study, runs: list[Trajectory], x: Tensor, u: Tensor, w: Tensor) -> list[Chart]:
    """Distances over time below their bound; the cost with and without errors of measurement over α."""
    steps = [float(t) for t in range(len(s.reference.x))]
    names = ("no errors of measurement", "errors that cost most", "errors that lead away")
    lines = [Line(name, steps, s.away(run).tolist()) for name, run in zip(names, runs, strict=True)]
    tried = [s.worst(Extension(x, u, s.ell * f), w) for f in GRID]
    costs = [Line(name, GRID, [s.plant.total(run[i]) for run in tried]) for i, name in enumerate(names[:2])]
    bound = Line("bound (B3)", steps, [s.radius(s.delta())] * len(steps))
    own = Line("the expert", GRID, [s.plant.total(s.reference)] * len(GRID))
    return [Chart("Distance to the expert", "step", "distance", [*lines, bound]),
            Chart("The trade-off, by extensions of the data", "α/ℓ", "cost of a run", [*costs, own], "x")]  # fmt: skip


@method(
    Card(
        title="Learning Lipschitz feedback policies from expert demonstrations",
        paper="arXiv 2103.16629",
        year=2021,
        family="exact",
        idea="imitate under a hard Lipschitz bound and certify how far wrong measurements lead from the expert",
        changes=(),
        composes_with="any linear plant with a linear expert, its samples or recorded episodes",
        claim="under worst-case errors of measurement the cost is least near the expert's own Lipschitz constant",
        example="anypolicy solve lipschitz-imitation",
        look_at="what it finds, printed and drawn in its report",
    ),
)
def lipschitz_imitation(
    plant: Annotated[str, Knob("name of a plant, or a file")] = "double-integrator",
    demos: Annotated[str | None, Knob("a file of recorded runs; none: they are made here")] = None,
    samples: Annotated[int | None, Knob("demonstrated states", least=1)] = None,
    noise: Annotated[float | None, Knob("deviation of the noise on demonstrations; none: no noise", least=0)] = None,
    alpha: Annotated[
        float | None, Knob("Lipschitz constant of the policy; none: the rule of docs/lipschitz.md", above=0)
    ] = None,
    policy: Annotated[Kind, Knob("what imitates: the extension of the data, or a network")] = "extension",
    disturbance: Annotated[float, Knob("largest disturbance of a step", least=0)] = 0.05,
    horizon: Annotated[int, Knob("steps of an episode", least=1)] = 100,
    directions_tried: Annotated[int, Knob("directions in which disturbances are tried", least=1)] = 16,
    updates: Annotated[int | None, Knob("updates of the network; none: 3,000", least=1)] = None,
    seed: knobs.Seed = 0,
) -> Solution:
    """`samples` = 3000 uniform states in the box with `noise` = 0 on their commands, or `demos`; α by the rule argmin
    E∞(α) + (α + ℓ̂)ρ + αω where it is not given; the "mlp" takes `updates` = 3000."""
    given = SimpleNamespace(samples=samples, horizon=horizon, directions_tried=directions_tried, noise=noise,
                            updates=updates, disturbance=disturbance, seed=seed)  # fmt: skip
    check_numbers(given, positive=("samples", "horizon", "directions_tried", "updates"),
                  natural=("noise", "disturbance", "seed"))  # fmt: skip
    check_alpha(1.0 if alpha is None else alpha)
    data = settings_of("demos" if demos else "uniform states", {"samples": samples, "noise": noise}, USES)
    network = settings_of(policy, {"updates": updates}, USES)
    p = load_plant(plant)
    gain = closed_loop_gain(p.a, p.b, p.k)
    x, u = recorded(p, demos) if demos else sampled(p, **data, generator=generator(seed, "samples"))
    rho = covering_radius(x, -p.box, p.box)
    if alpha is None:
        every = -(-len(x) // 1000)
        alpha = choose_alpha(x[::every], u[::every], rho[1], disturbance, [f * spectral_norm(p.k) for f in GRID])[0]
    with counting(10, "imitation", quiet=policy != "mlp") as tick:
        learnt = fit(x, u, alpha, policy, generator=generator(seed, "weights"), every=tick, **network)
    at_data = float((learnt(x) - p.expert(x)).norm(dim=1).max())
    s = Study(p, learnt, simulate(p, p.expert, p.start, horizon), disturbance, gain, rho, at_data)
    w = disturbance * directions(len(p.start), directions_tried, generator(seed, "directions"))
    runs = s.worst(learnt, w)
    probes, _ = sampled(p, 2000, 0.0, generator(seed, "probes"))
    return Solution(reports(s, runs, probes, len(x)), charts(s, runs, x, u, w), settings=data | network)
