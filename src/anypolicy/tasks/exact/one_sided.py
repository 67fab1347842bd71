"""Cases that arrive in rounds to be accepted or rejected, candidate rules, and auditors: generated or from a table.

- `halfspaces`: x uniform in [−1, 1]³, y = 1[x_1 + x_2/2 + 0.2 N(0, 1) > 0], 60 random half-spaces.
- `breast-cancer`: scikit-learn's table; accept is "biopsy", which alone shows whether a tumour is malignant.
- a `.csv` file with a column `label` (1: should be accepted, 0: should not); columns of text become indicators.

Of a table, a fifth of the cases is the past, whose labels are known: logistic regressions on resamples of it, each with
several thresholds, are the candidate rules. The stream draws from the other cases with replacement. Accepting all and
accepting none are always among the rules.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from anypolicy.errors import InputError
from anypolicy.parts.fairness import Array, Mahalanobis
from anypolicy.runs.seeds import numpy_generator

AUDITORS = ((0.8, 0.8, 0.2), (0.5, 1.0, 0.1), (1.0, 0.3, 0.3))
RESAMPLES, THRESHOLDS, SEPARATORS = 12, (0.1, 0.3, 0.5, 0.7, 0.9), 64


@dataclass(frozen=True)
class Halfspaces:
    """h(x) = 1[⟨w, x⟩ > b] for every row of `weights`."""

    weights: Float[Array, "rules features"]
    offsets: Float[Array, " rules"]

    def __call__(self, x: Array) -> Array:
        return x @ self.weights.T > self.offsets

    def with_constants(self) -> Halfspaces:
        """Together with accepting all and accepting none."""
        w = np.concatenate([self.weights, np.zeros((2, self.weights.shape[1]))])
        return Halfspaces(w, np.append(self.offsets, [-1.0, 1.0]))


@dataclass(frozen=True)
class Cases:
    """A stream of rounds with labels (which a learner sees for accepted cases only), rules and auditors. `separators`
    are further contexts like those of the stream."""

    name: str
    x: Float[Array, "rounds cases features"]
    y: Float[Array, "rounds cases"]
    rules: Halfspaces
    auditors: tuple[Mahalanobis, ...]
    separators: Float[Array, "separators features"]

    def __post_init__(self) -> None:
        if self.x.shape[:2] != self.y.shape or 0 in self.x.shape:
            raise InputError("cases", f"x {self.x.shape}, y {self.y.shape}", "give every round one label a case")
        for name, bad in (("features", ~np.isfinite(self.x).all(-1)), ("label", (self.y != 0) & (self.y != 1))):
            for t, i in np.argwhere(bad)[:1]:
                value = self.x[t, i].tolist() if name == "features" else float(self.y[t, i])
                raise InputError(f"{name} of round {t}, case {i}", value, "use finite features and labels 0 or 1")

    @property
    def accept(self) -> Bool[Array, "rounds cases rules"]:
        """What every rule would do."""
        return self.rules(self.x)


def load(name: str, rounds: int, cases: int, seed: int = 0) -> Cases:
    """A stream by name or file."""
    for field, value in (("rounds", rounds), ("cases", cases)):
        if value < 1:
            raise InputError(field, value, "use at least 1")
    if name == "halfspaces":
        return halfspaces(rounds, cases, seed)
    if name == "breast-cancer":
        x, benign = library("datasets").load_breast_cancer(return_X_y=True)
        return from_table(name, x, 1.0 - benign, rounds, cases, seed)
    if not name.endswith(".csv"):
        raise InputError(
            "data", name, "use halfspaces, breast-cancer or a .csv file", choices=("halfspaces", "breast-cancer")
        )
    return from_table(name, *read_csv(Path(name)), rounds, cases, seed)


def library(module: str) -> Any:
    """A module of scikit-learn, which is optional."""
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise InputError(f"sklearn.{module}", None, "install scikit-learn: pip install 'anypolicy[exact]'") from error


def halfspaces(rounds: int, cases: int, seed: int = 0, rules: int = 60) -> Cases:
    """The generated stream with three auditors, who weigh the three features differently."""
    rng = numpy_generator(seed, "one-sided", "cases")
    x = rng.uniform(-1, 1, (rounds, cases, 3))
    y = x[..., 0] + 0.5 * x[..., 1] + 0.2 * rng.standard_normal((rounds, cases)) > 0
    rng = numpy_generator(seed, "one-sided", "rules")
    w = rng.standard_normal((rules, 3))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    chosen = Halfspaces(w, rng.uniform(-0.6, 0.6, rules)).with_constants()
    separators = numpy_generator(seed, "one-sided", "separators").uniform(-1, 1, (SEPARATORS, 3))
    return Cases("halfspaces", x, y.astype(float), chosen, tuple(Mahalanobis(np.diag(v)) for v in AUDITORS), separators)


def read_csv(path: Path) -> tuple[Float[Array, "rows features"], Float[Array, " rows"]]:
    """Features and labels; a column with anything that is no number becomes one indicator a value."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError("data", str(path), f"give a .csv file in UTF-8 ({error})") from error
    columns = list(rows[0]) if rows else []
    if "label" not in columns or len(columns) < 2:
        raise InputError(str(path), columns, "it needs rows, a column label (0 or 1) and at least one other")
    for n, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise InputError(f"{path}, line {n}", row, f"give {len(columns)} values")
        if row["label"] not in ("0", "1"):
            raise InputError(f"{path}, line {n}: label", row["label"], "use 0 or 1")
        for name, value in row.items():
            if not value.strip():
                raise InputError(f"{path}, line {n}: {name}", value, "give a value: drop the row or fill the gap")
    features = [c for name in columns if name != "label" for c in encoded(f"{path}, {name}", [r[name] for r in rows])]
    return np.stack(features, 1), np.array([float(row["label"]) for row in rows])


def encoded(name: str, values: list[str]) -> list[Array]:
    """One column of numbers, or an indicator for each text."""
    try:
        numbers = np.array([float(v) for v in values])
    except ValueError:
        return [np.array([float(v == text) for v in values]) for text in sorted(set(values))]
    for n in np.flatnonzero(~np.isfinite(numbers)):
        raise InputError(f"{name}, line {n + 2}", values[n], "numbers must be finite")
    return [numbers]


def from_table(name: str, x: Array, y: Array, rounds: int, cases: int, seed: int = 0) -> Cases:
    """Past, candidate rules, auditors and stream from a table of labelled cases."""
    order = numpy_generator(seed, "one-sided", "past").permutation(len(x))
    past, rest = order[: len(x) // 5], order[len(x) // 5 :]
    known = y[past]
    if known.min(initial=1) == known.max(initial=0) or not len(known):
        raise InputError(
            "label", f"{len(past)} past cases, {known.sum():g} of them 1", "the past needs labels of both kinds"
        )
    x = x[:, x[past].std(0) > 0]
    if not x.shape[1]:
        raise InputError("features", f"{len(past)} past cases", "all are alike: give a column that varies")
    x = (x - x[past].mean(0)) / x[past].std(0)
    rng = numpy_generator(seed, "one-sided", "rules")
    rules = candidates(x[past], known, rng)
    drawn = numpy_generator(seed, "one-sided", "cases").choice(rest, (rounds, cases))
    main = library("decomposition").PCA(min(3, *x[past].shape), svd_solver="full").fit(x[past])
    kept = main.explained_variance_ > 1e-9 * main.explained_variance_[0]
    whiten = main.components_[kept].T / np.sqrt(main.explained_variance_[kept])
    auditors = tuple(Mahalanobis(whiten * rng.uniform(0.1, 0.6, whiten.shape[1])) for _ in AUDITORS)
    return Cases(name, x[drawn], y[drawn], rules, auditors, x[past][:SEPARATORS])


def candidates(x: Array, y: Array, rng: np.random.Generator) -> Halfspaces:
    """Logistic regressions on resamples (both labels as often as in the past), each at every threshold of its
    probability."""
    fit, groups = library("linear_model").LogisticRegression, [np.flatnonzero(y == label) for label in (0, 1)]
    weights, offsets = list[Array](), list[float]()
    for _ in range(RESAMPLES):
        rows = np.concatenate([rng.choice(g, len(g)) for g in groups])
        model = fit(max_iter=1000).fit(x[rows], y[rows])
        for threshold in THRESHOLDS:
            weights.append(model.coef_[0])
            offsets.append(float(np.log(threshold / (1 - threshold)) - model.intercept_[0]))
    return Halfspaces(np.stack(weights), np.array(offsets)).with_constants()
