"""The harness of a controlled study of preferences: one loss, one start, and sources of pairs that are exchanged.

A source gives batches of pairs: of the policy as it is now, of a fixed set, of a run's recorded stream in its order or
shuffled, of other policies. What comes out are checkpoints with their divergence and win rate, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from anypolicy.errors import InputError
from anypolicy.parts.log_linear import (
    Array,
    PairLoss,
    Pairs,
    accuracy,
    better_log_ratio,
    divergence,
    draw,
    labelled,
    margins,
    pair_gradient,
    policy,
    win_rate,
)
from anypolicy.runs.seeds import numpy_generator

BATCH = 32
SOURCES = ("offline", "stream, shuffled", "final vs final", "start vs final", "stream, windows of 1",
           "stream, windows of 4", "stream, windows of 500")  # fmt: skip
Source = Callable[[Array], Iterator[Pairs]]
"""Batches of pairs without end; the weights are those of the policy that is trained, changed in place."""


class Laboratory(NamedTuple):
    """Features and score of every answer, the start, its labelled pairs, and the learned score of a proxy."""

    features: Array
    score: Array
    start: Array
    pairs: Pairs
    proxy: Array
    seed: int


def laboratory(seed: int, prompts: int = 200, answers: int = 300, d: int = 12, pairs: int = 600) -> Laboratory:
    """Normal features; a score linear + quadratic in them with standard deviation 1.5; pairs of the start's own answers
    labelled by the score; a proxy by logistic regression on them (400 steps of 0.3, L2 10⁻³)."""
    rng = numpy_generator(seed, "laboratory")
    f = rng.normal(size=(prompts, answers, d))
    i, j = np.triu_indices(d)
    q = f[..., i] * f[..., j] / np.sqrt(len(i))
    score = f @ (rng.normal(size=d) / np.sqrt(d)) + 1.5 * q @ rng.normal(size=len(i))
    score *= 1.5 / score.std()
    start = 0.8 * rng.normal(size=d) / np.sqrt(d)
    known = sampled(policy(start, f), policy(start, f), score, pairs, rng)
    both = np.concatenate([f, 3 * q], 2)
    x, w, l = known.T  # noqa: E741
    gap, fitted = both[x, w] - both[x, l], np.zeros(both.shape[2])
    for _ in range(400):
        fitted += 0.3 * ((1 / (1 + np.exp(gap @ fitted))) @ gap / len(gap) - 1e-3 * fitted)
    return Laboratory(f, score, start, known, both @ fitted, seed)


def sampled(p: Array, other: Array, score: Array, n: int, rng: np.random.Generator) -> Pairs:
    """n random prompts, an answer of each policy, labelled; ties are dropped."""
    x = rng.integers(len(p), size=n)
    return labelled(x, draw(p, x, rng), draw(other, x, rng), score)


# --- sources ---------------------------------------------------------------------------------------------------------
def live(lab: Laboratory, score: Array, rng: np.random.Generator) -> Source:
    """Pairs of the policy as it is now."""

    def batches(weights: Array) -> Iterator[Pairs]:
        while True:
            x = rng.integers(len(score), size=BATCH)
            p = policy(weights, lab.features[np.unique(x)])
            row = np.searchsorted(np.unique(x), x)
            yield labelled(x, draw(p, row, rng), draw(p, row, rng), score)

    return batches


def fixed(pairs: Pairs, rng: np.random.Generator) -> Source:
    """Shuffled batches of given pairs, epoch after epoch."""

    def batches(weights: Array) -> Iterator[Pairs]:
        while True:
            order = rng.permutation(len(pairs))
            for at in range(0, max(len(pairs) - BATCH, 0) + 1, BATCH):
                yield pairs[order[at : at + BATCH]]

    return batches


def stream(recorded: list[Pairs], window: int, rng: np.random.Generator) -> Source:
    """A run's own batches in their order, whole batches shuffled inside windows of so many (1: as they were)."""

    def batches(weights: Array) -> Iterator[Pairs]:
        while True:
            for at in range(0, len(recorded), window):
                for k in rng.permutation(len(recorded[at : at + window])):
                    yield recorded[at + k]

    return batches


# --- training --------------------------------------------------------------------------------------------------------
@dataclass
class Trained:
    """Checkpoints (step, weights), and the batches that were learned from. A run has diverged when its weights, or the
    log-ratios of the policies they make, are not finite at a checkpoint."""

    checkpoints: list[tuple[int, Array]] = field(default_factory=list[tuple[int, Array]])
    batches: list[Pairs] = field(default_factory=list[Pairs])
    diverged: bool = False


def train(
    lab: Laboratory, source: Source, *, steps: int, lr: float, beta: float, loss: PairLoss = "squared", looks: int = 12
) -> Trained:
    """Gradient descent from the start; `looks` checkpoints, spaced evenly in the logarithm from step 5 on. A run that
    has diverged ends."""
    weights, out = lab.start.copy(), Trained()
    at = {round(float(s)) for s in np.geomspace(min(5, steps), steps, looks)}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for step, pairs in zip(range(1, steps + 1), source(weights)):
            weights -= lr * pair_gradient(weights, lab.start, lab.features, pairs, beta, loss)
            out.batches.append(pairs)
            if step in at:
                if not np.isfinite(better_log_ratio(weights, lab.start, lab.features, lab.pairs)):
                    out.diverged = True
                    return out
                out.checkpoints.append((step, weights.copy()))
    return out


class Point(NamedTuple):
    """A checkpoint: divergence from the start, win rate against the golden policy, accuracy on the offline pairs as a
    classifier, and the mean log-ratio of their better answers."""

    kl: float
    win: float
    accuracy: float
    better: float


class Found(NamedTuple):
    """The checkpoints of every source, how far a replayed stream ends from the online run (windows of 1: 0), and how
    many runs of a source diverged: none of their checkpoints is among the points."""

    points: dict[str, list[Point]]
    moved: dict[str, float]
    diverged: dict[str, int]


def measured(lab: Laboratory, run: Trained, golden: Array) -> list[Point]:
    """What the checkpoints of a run are worth."""
    out: list[Point] = []
    for _, w in run.checkpoints:
        p = policy(w, lab.features)
        out.append(Point(divergence(p, policy(lab.start, lab.features)), win_rate(p, golden, lab.score),
                         accuracy(margins(w, lab.start, lab.features, lab.pairs)),
                         better_log_ratio(w, lab.start, lab.features, lab.pairs)))  # fmt: skip
    return out


def study(
    lab: Laboratory, *, steps: int = 3000, lr: float = 1.0, beta: float = 0.1, loss: PairLoss = "squared",
    sources: Sequence[str] = SOURCES,
    sweep: tuple[tuple[float, float], ...] = ((0.1, 0.1), (0.3, 0.1), (1.0, 0.1), (0.1, 0.3), (0.3, 0.3), (1.0, 0.3)),
) -> Found:  # fmt: skip
    """The online run, and the same loss on other sources: sets of pairs at all settings of `sweep` (learning rate, β),
    their checkpoints pooled, and the online run's own stream at its own settings."""

    def rng(name: str) -> np.random.Generator:
        return numpy_generator(lab.seed, "laboratory", name)

    def like_online(source: Source, loss: PairLoss) -> Trained:
        return train(lab, source, steps=steps, lr=lr, beta=beta, loss=loss)

    by_score = like_online(live(lab, lab.score, rng("golden")), "squared")
    online = like_online(live(lab, lab.proxy, rng("online")), loss)
    if by_score.diverged or online.diverged:
        raise InputError("lr", lr, f"the online run diverges with it (beta {beta}, loss {loss}): use a lower one")
    golden = policy(by_score.checkpoints[-1][1], lab.features)
    end = online.checkpoints[-1][1]
    final, start, n = policy(end, lab.features), policy(lab.start, lab.features), len(lab.pairs)
    sets: dict[str, Callable[[], Pairs]] = {
        "offline": lambda: lab.pairs,
        "stream, shuffled": lambda: np.concatenate(online.batches),
        "final vs final": lambda: sampled(final, final, lab.score, n, rng("final")),
        "start vs final": lambda: sampled(start, final, lab.score, n, rng("mixed")),
    }
    found = Found({"online": measured(lab, online, golden)}, {}, {})
    for name in sources:
        if name in sets:
            pairs = sets[name]()
            runs = [train(lab, fixed(pairs, rng(name)), steps=steps, lr=a, beta=b, loss=loss) for a, b in sweep]
        else:
            window = int(name.rpartition(" ")[2])
            runs = [like_online(stream(online.batches, window, rng(name)), loss)]
            if not runs[0].diverged:
                found.moved[name] = float(np.abs(runs[0].checkpoints[-1][1] - end).max())
        kept = [run for run in runs if not run.diverged]
        found.diverged[name] = len(runs) - len(kept)
        found.points[name] = [point for run in kept for point in measured(lab, run, golden)]
    return found
