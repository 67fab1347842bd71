"""Linear plants with a linear expert: x′ = A x + B u, u* = −K x, cost Σ xᵀQx + uᵀRu, and runs of them in which an
adversary chooses the error of every measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import LinAlgError, solve_discrete_are, solve_discrete_lyapunov
from torch import Tensor

from anypolicy.data.demonstrations import load_episodes
from anypolicy.data.readers import json_object
from anypolicy.errors import InputError
from anypolicy.parts.lipschitz import check_pairs

FIELDS = {"A": "A, n rows of n numbers", "B": "B, n rows of m numbers", "Q": "Q, n rows of n numbers",
          "R": "R, m rows of m numbers", "K": "K, m rows of n numbers (default: the optimal gain)",
          "box": "box, n half-widths of the set of states", "start": "start, n numbers"}  # fmt: skip


class Trajectory(NamedTuple):
    """x_0 … x_T and u_0 … u_{T−1}."""

    x: Float[Tensor, "steps+1 n"]
    u: Float[Tensor, "steps m"]


@dataclass(frozen=True)
class LinearPlant:
    """All in float64. The states of interest are |x_i| ≤ box_i."""

    a: Float[Tensor, "n n"]
    b: Float[Tensor, "n m"]
    k: Float[Tensor, "m n"]
    q: Float[Tensor, "n n"]
    r: Float[Tensor, "m m"]
    box: Float[Tensor, " n"]
    start: Float[Tensor, " n"]

    def expert(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch m"]:
        return -x @ self.k.T

    def cost(self, x: Float[Tensor, "batch n"], u: Float[Tensor, "batch m"]) -> Float[Tensor, " batch"]:
        """xᵀQx + uᵀRu."""
        return ((x @ self.q) * x).sum(1) + ((u @ self.r) * u).sum(1)

    def total(self, run: Trajectory) -> float:
        """The cost of a whole run."""
        return float(self.cost(run.x[:-1], run.u).sum())

    def to_go(self) -> Float[Tensor, "n n"]:
        """P of the expert's cost xᵀPx from a state on: P = A_cᵀ P A_c + Q + KᵀRK."""
        loop, k = (self.a - self.b @ self.k).numpy(), self.k.numpy()
        return torch.from_numpy(solve_discrete_lyapunov(loop.T, self.q.numpy() + k.T @ self.r.numpy() @ k))


def double_integrator(step: float = 0.1) -> LinearPlant:
    """A cart that is pushed: position and velocity, Q = diag(1, 0.1), R = 0.1, the optimal gain."""
    return plant_of({"A": [[1.0, step], [0.0, 1.0]], "B": [[0.0], [step]], "Q": [[1.0, 0.0], [0.0, 0.1]],
                     "R": [[0.1]], "box": [1.5, 1.5], "start": [0.5, 0.0]})  # fmt: skip


def load_plant(spec: str) -> LinearPlant:
    """`double-integrator`, or a .json file with the matrices."""
    if spec == "double-integrator":
        return double_integrator()
    path = Path(spec)
    if path.suffix != ".json" or not isfile(path):
        raise InputError("plant", spec, "use double-integrator or the path of an existing .json file")
    return plant_of(json_object(path, "plant", f"it holds an object with {'; '.join(FIELDS.values())}"))


def plant_of(given: dict[str, Any]) -> LinearPlant:
    """The plant of plain numbers, checked; an error names the matrix."""
    for name in given:
        if name not in FIELDS:
            raise InputError(f"plant.{name}", given[name], f"it has {', '.join(FIELDS)}", choices=FIELDS)
    n, m = len(array(given, "A", 2)), array(given, "B", 2).shape[1]
    shapes = {"A": (n, n), "B": (n, m), "Q": (n, n), "R": (m, m), "K": (m, n), "box": (n,), "start": (n,)}
    values = {name: array(given, name, len(shape), shape) for name, shape in shapes.items()
              if name != "K" or "K" in given}  # fmt: skip
    if not (values["box"] > 0).all():
        raise InputError("plant.box", given["box"], "half-widths are above 0")
    for name, least in (("Q", -1e-12), ("R", 1e-12)):
        v = values[name]
        if not np.allclose(v, v.T) or np.linalg.eigvalsh(v).min() < least:
            kind = "positive definite" if name == "R" else "positive semidefinite"
            raise InputError(f"plant.{name}", given[name], f"it is symmetric and {kind}")
    k = values["K"] if "K" in values else optimal_gain(*(values[x] for x in "ABQR"))
    return LinearPlant(*(torch.from_numpy(v) for v in (values["A"], values["B"], k, values["Q"], values["R"],
                                                       values["box"], values["start"])))  # fmt: skip


def array(given: dict[str, Any], name: str, rank: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """One field as finite numbers of a shape."""
    try:
        value = np.asarray(given[name], np.float64)
    except KeyError:
        raise InputError("plant", sorted(given), f"it lacks {FIELDS[name]}") from None
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"plant.{name}", given[name], f"write {FIELDS[name]}") from None
    if value.ndim != rank or 0 in value.shape or (shape is not None and value.shape != shape):
        raise InputError(f"plant.{name}", value.shape, f"write {FIELDS[name]}" + (f": {shape}" if shape else ""))
    if not np.isfinite(value).all():
        raise InputError(f"plant.{name}", given[name], "its numbers are finite")
    return value


def optimal_gain(a: np.ndarray, b: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """K = (R + BᵀPB)⁻¹ BᵀPA of the Riccati equation."""
    try:
        p = solve_discrete_are(a, b, q, r)
    except (LinAlgError, ValueError) as error:
        raise InputError("plant", "A, B, Q, R", f"they have no optimal gain ({error}): give K") from error
    return np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)


def sampled(
    plant: LinearPlant, samples: int, noise: float, generator: torch.Generator
) -> tuple[Float[Tensor, "samples n"], Float[Tensor, "samples m"]]:
    """Uniform states of the box and the expert's commands, normal noise added."""
    n, m = plant.b.shape
    x = (2 * torch.rand(samples, n, generator=generator, dtype=torch.float64) - 1) * plant.box
    return x, plant.expert(x) + noise * torch.randn(samples, m, generator=generator, dtype=x.dtype)


def recorded(plant: LinearPlant, path: str) -> tuple[Float[Tensor, "samples n"], Float[Tensor, "samples m"]]:
    """States and commands of a file of episodes."""
    if not isfile(path):
        raise InputError("demos", path, "give a .safetensors file of recorded episodes")
    episodes = load_episodes(path)
    x = torch.cat([e.observation[:-1] for e in episodes]).double()
    u = torch.cat([e.action for e in episodes]).double()
    if (found := (x.shape[1], u.shape[1])) != (wanted := tuple(plant.b.shape)):
        raise InputError("demos", path, f"its states and commands have {found} numbers, the plant's {wanted}")
    check_pairs(x, u)
    return x, u


Value = Callable[[Tensor, Tensor, int], Tensor]
"""What an adversary wants: (next states, commands, step) → one number each."""


def simulate(
    plant: LinearPlant, policy: Callable[[Tensor], Tensor], start: Float[Tensor, " n"], steps: int,
    errors: Float[Tensor, "choices n"] | None = None, value: Value | None = None,
) -> Trajectory:  # fmt: skip
    """The policy acts on x + w; at every step w is that row of `errors` whose consequence has the largest `value`."""
    w = torch.zeros(1, len(start), dtype=start.dtype) if errors is None else errors
    x, states, commands = start, [start], list[Tensor]()
    for t in range(steps):
        u = policy(x + w)
        after = plant.a @ x + u @ plant.b.T
        best = int(value(after, u, t).argmax()) if value is not None else 0
        x = after[best]
        states.append(x)
        commands.append(u[best])
    return Trajectory(torch.stack(states), torch.stack(commands))


def directions(n: int, count: int, generator: torch.Generator) -> Float[Tensor, "choices n"]:
    """Unit vectors: both of a line, evenly spaced ones of a plane, random ones elsewhere."""
    if n == 1:
        return torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    if n == 2:
        angle = torch.arange(count, dtype=torch.float64) * 2 * torch.pi / count
        return torch.stack([angle.cos(), angle.sin()], 1)
    rows = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def costly(plant: LinearPlant) -> Value:
    """An adversary that raises the command's cost and the expert's cost from the next state on."""
    p = plant.to_go()
    return lambda after, u, _: ((after @ p) * after).sum(1) + ((u @ plant.r) * u).sum(1)


def leading_away(reference: Trajectory) -> Value:
    """An adversary that raises the distance to another trajectory."""
    return lambda after, _, t: (after - reference.x[t + 1]).norm(dim=1)
