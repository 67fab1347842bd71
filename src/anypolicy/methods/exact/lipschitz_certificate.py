"""Certificate of a trained Lipschitz controller: what its constant says about wrong measurements in its environment.

Paper: Al Makdah, Krishnan and Pasqualetti 2021, arXiv 2103.16629, of which only the abstract could be read; the
statements are those of `lipschitz-imitation`, derived by us, where the plant is not known.
Idea: the constant holds everywhere, so ‖π̂(x + w) − π̂(x)‖ ≤ αω needs no model; the distance to the expert needs the
expert's own constant and how its loop contracts.
Changes: nothing; it judges a run's policy/ folder on the demonstrations it learnt from.
Silent: (to us) everything. (B1) is used at every visited state, through the demonstration nearest to it, so that no
covering radius is guessed. The adversary picks the error that moves the action most, and sees the state.
Differs: nothing is known. ‖ê_t‖ ≤ g(δ + αω) with g = M L_u/(1 − λ) for an expert's loop that forgets what happened
like Mλᵏ, and next states that are L_u-Lipschitz in the action.
"""

from types import SimpleNamespace
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method, saved_controller
from anypolicy.engines.environments import Environments
from anypolicy.errors import InputError, check_numbers
from anypolicy.knobs import Knob
from anypolicy.learners.base import load_modules
from anypolicy.parts.lipschitz import nearest, steepness, tube_radius
from anypolicy.parts.reports import Assumption, Chart, Line, Report, Solution
from anypolicy.policies.control.lipschitz import LipschitzMLP
from anypolicy.runs.progress import counting
from anypolicy.runs.seeds import generator, number
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import EnvironmentTask, load_environment
from anypolicy.tasks.exact.linear_plants import directions

SCALES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Sizes of errors in the charts, as multiples of ω."""


def trained(folder: str | None) -> tuple[LipschitzMLP, EnvironmentTask]:
    """The network of a run's policy/ folder, in double precision, and its task."""
    saved = saved_controller(folder or "", "policy")
    task = load_environment(saved.task)
    learner = saved.recipe.learner(task.space, 0)
    network = learner.modules.get("policy")
    if not isinstance(network, LipschitzMLP):
        raise InputError("policy", folder, f"the networks of {saved.method} have no certified Lipschitz constant")
    try:
        load_modules(learner, saved.tensors)
    except RuntimeError as error:
        raise InputError("policy", folder, f"its weights are not those of its config.json ({error})") from error
    return network.double().requires_grad_(False), task


class Runs(NamedTuple):
    """Episodes under errors of one size: returns, visited states, the largest change of an action."""

    returns: list[float]
    visited: Float[Tensor, "states n"]
    moved: float

    def mean(self, quantity: str) -> Report:
        """The mean return with its 95 % t interval; of one episode without."""
        x = torch.tensor(self.returns, dtype=torch.float64)
        if len(x) < 2:
            return Report(quantity, float(x.mean()), "estimate")
        half = float(stats.t.ppf(0.975, len(x) - 1) * x.std() / len(x) ** 0.5)
        return Report(quantity, float(x.mean()), "estimate", interval=(float(x.mean()) - half, float(x.mean()) + half))


def attacked(network: LipschitzMLP, task: EnvironmentTask, w: Float[Tensor, "choices n"], episodes: int, seed: int
             ) -> Runs:  # fmt: skip
    """The action is that for x + w, w being the error which changes it most; same episodes for every set of errors."""
    environments, visited, moved = Environments(task.vector(1), number(seed, "episodes") % 2**31), list[Tensor](), 0.0
    while len(environments.ended.returns) < episodes:
        x = environments.current.double()
        u = network(torch.cat([x, x + w])).clamp(-1, 1)
        change = (u[1:] - u[0]).norm(dim=1)
        moved = max(moved, float(change.max()))
        environments.step(u[1 + int(change.argmax())][None].float())
        visited.append(x)
    environments.close()
    return Runs(environments.ended.returns, torch.cat(visited), moved)


def expert_constant(x: Tensor, u: Tensor, given: float | None) -> tuple[float, Assumption]:
    """ℓ as given, or the steepest secant of the demonstrations; they can refute it but not prove it."""
    rows = torch.arange(0, len(x), max(len(x) // 2000, 1))
    steepest = steepness(x[rows], u[rows], 1.0, 0.0)
    ell = steepest if given is None else given
    if ell == float("inf"):
        raise InputError("demos", "one observation with two actions", "no Lipschitz expert acts so: give --expert, or "
                         "record without exploration")  # fmt: skip
    holds = False if steepest > ell * (1 + 1e-6) else None
    return ell, Assumption("the expert's constant is ℓ", holds, f"steepest demonstrated secant {steepest:.4g}")


def reports(
    network: LipschitzMLP, x: Tensor, u: Tensor, clean: Runs, worst: Runs, omega: float, expert: float | None,
    gain: float | None,
) -> list[Report]:  # fmt: skip
    """What holds by the constant alone, then what needs the expert's."""
    alpha, (ell, known) = network.certificate(), expert_constant(x, u, expert)
    misses = (network(x).clamp(-1, 1) - u).norm(dim=1)
    states = torch.cat([clean.visited, worst.visited])
    distance, row = nearest(x, states)
    delta = float((misses[row] + (alpha + ell) * distance).max())
    closed = (
        known,
        Assumption("the expert's loop and ω are as given", None),
        Assumption("observations are states", None),
    )
    tube = [] if gain is None else [
        Report("distance to the expert's states on these runs", tube_radius(gain, delta, alpha, omega), "bound",
               "(B3), our derivation", assumptions=closed),
        Report("of which from errors of measurement", gain * alpha * omega, "bound", "(B5)", assumptions=closed),
    ]  # fmt: skip
    return [
        Report("Lipschitz constant α of the policy", alpha, "bound", "spectral norms, double precision"),
        Report("change of an action by an error of ω", alpha * omega, "bound", "αω"),
        Report("largest change that an adversary reached", worst.moved, "estimate"),
        clean.mean("mean return"), worst.mean("mean return under the adversary"),
        Report("error at the demonstrations, E", float(misses.max()), "exact"),
        Report("root mean square of these errors", float(misses.square().mean().sqrt()), "exact"),
        Report("largest distance of a visited state to the demonstrations", float(distance.max()), "exact"),
        Report("error of imitation at visited states, δ", delta, "bound", "(B1), our derivation", assumptions=(known,),
               note=f"ℓ = {ell:.4g}" + ("" if tube else "; overshoot, rate and input_gain would give distances")),
        *tube,
    ]  # fmt: skip


@method(
    Card(
        title="Learning Lipschitz feedback policies from expert demonstrations",
        paper="arXiv 2103.16629",
        year=2021,
        family="exact",
        idea="certify how far wrong measurements move a trained controller, and compare with an adversary",
        changes=(),
        composes_with="policies of lipschitz-bc in any environment with a box of actions",
        claim="no adversary moves an action by more than its Lipschitz constant times the error of measurement",
    ),
)
def lipschitz_certificate(
    policy: Annotated[str | None, Knob("policy/ folder to certify; none: the extension of the data")] = None,
    demos: Annotated[str | None, Knob("a file of recorded runs; none: they are made here")] = None,
    disturbance: Annotated[float, Knob("largest disturbance of a step", least=0)] = 0.05,
    expert: Annotated[
        float | None, Knob("Lipschitz constant of the expert; none: the steepest demonstrated secant", above=0)
    ] = None,
    overshoot: Annotated[
        float | None, Knob("M: runs of the expert that begin apart are apart by M λᵏ after k steps", above=0)
    ] = None,
    rate: Annotated[float | None, Knob("λ of the same", least=0, below=1)] = None,
    input_gain: Annotated[float | None, Knob("how much an action moves the next observation", least=0)] = None,
    episodes: Annotated[int, Knob("demonstrated episodes", least=1)] = 5,
    directions_tried: Annotated[int, Knob("directions in which disturbances are tried", least=1)] = 16,
    seed: knobs.Seed = 0,
) -> Solution:
    """Actions are those in [−1, 1], states the observations; M, λ and L_u of the expert's loop if they are known."""
    given = SimpleNamespace(disturbance=disturbance, expert=expert, overshoot=overshoot, input_gain=input_gain,
                            episodes=episodes - 1, directions_tried=directions_tried, seed=seed)  # fmt: skip
    check_numbers(given, positive=("disturbance", "expert", "overshoot", "input_gain", "episodes", "directions_tried"),
                  natural=("seed",))  # fmt: skip
    constants = {"overshoot": overshoot, "rate": rate, "input_gain": input_gain}
    missing = [k for k, v in constants.items() if v is None]
    if missing and len(missing) < 3:
        raise InputError(missing[0], None, "overshoot, rate and input_gain go together: give all three or none")
    if rate is not None and not 0 <= rate < 1:
        raise InputError("rate", rate, "the expert's loop must contract: at least 0, below 1")
    gain = None if missing else overshoot * input_gain / (1 - rate)  # type: ignore[operator]
    network, task = trained(policy)
    if demos is None:
        raise InputError("demos", None, "give the demonstrations that the policy learnt from")
    kept = load_demonstrations(demos, task)
    x, u = torch.cat([e.observation[:-1] for e in kept]).double(), torch.cat([e.action for e in kept]).double()
    ring = disturbance * directions(x.shape[1], directions_tried, generator(seed, "directions"))
    with counting(len(SCALES), "certificate", quiet=False) as tick:
        runs: list[Runs] = []
        for scale in SCALES:
            runs.append(attacked(network, task, scale * ring, episodes, seed))
            tick(f"errors of {scale * disturbance:g}")
    sizes = [scale * disturbance for scale in SCALES]
    found = Line("an adversary", sizes, [r.moved for r in runs])
    means = Line("an adversary", sizes, [sum(r.returns) / episodes for r in runs])
    bound = Line("bound αω", sizes, [network.certificate() * size for size in sizes])
    return Solution(reports(network, x, u, runs[0], runs[SCALES.index(1.0)], disturbance, expert, gain),
                    [Chart("Change of an action", "error of measurement ω", "change", [bound, found]),
                     Chart("Return", "error of measurement ω", "mean return", [means])])  # fmt: skip
