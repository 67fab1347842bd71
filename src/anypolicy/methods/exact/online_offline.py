"""The online–offline laboratory: one loss on one kind of preferences, and only the source of the pairs differs.

Paper: arXiv 2405.08448 (section 4, appendix B).
Idea: online methods end better than offline ones at the same divergence from the start. Coverage, quality of the data,
skill as a classifier, the contrastive loss: each explanation is a data source or a loss of its own in the same harness.
Changes: data sources (live policy, fixed pairs, the live stream in its order or shuffled, pairs of the final policy).
Silent: how the displayed equation 1 fits its own text; the loss is that of appendix B, (βh − ½)².
Differs: instead of language models a log-linear policy over a finite set of answers, misspecified for a quadratic
score, so that divergence and win rate are exact sums. The preference model that labels online pairs is a logistic
regression on the offline pairs; the win rate is that of the score itself against the policy trained online with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.loops.preference_study import Found, Point, laboratory, study
from anypolicy.parts.log_linear import PairLoss
from anypolicy.parts.reports import Chart, Line, Report, Solution

BINS = ((0.5, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 5.0))
"""Ranges of the divergence in which sources are compared, in nats."""


def peak(points: Sequence[Point]) -> Point:
    """The checkpoint that wins most."""
    return max(points, key=lambda p: p.win)


def best_in(points: Sequence[Point], low: float, high: float) -> float | None:
    """The largest win rate at a divergence in [low, high); None without a checkpoint there."""
    return max((p.win for p in points if low <= p.kl < high), default=None)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The checkpoints that win more than every one at a smaller divergence."""
    out: list[Point] = []
    for p in sorted(points):
        if not out or p.win > out[-1].win:
            out.append(p)
    return out


def correlation(points: Sequence[Point]) -> float | None:
    """Of accuracy as a classifier and win rate over the checkpoints; None where one of them does not vary."""
    accuracies, wins = [p.accuracy for p in points], [p.win for p in points]
    return float(np.corrcoef(accuracies, wins)[0, 1]) if min(len(set(accuracies)), len(set(wins))) > 1 else None


def reports(found: Found) -> list[Report]:
    """Every hypothesis as numbers of one seed."""
    out = [Report(f"{name}: largest difference of a weight from the online run", moved, "exact", "section 4")
           for name, moved in found.moved.items()]  # fmt: skip
    for name, own in found.points.items():
        if lost := found.diverged.get(name, 0):
            out.append(Report(f"{name}: runs that diverged", float(lost), "exact", note="left out of all that follows"))
        if not own:
            continue
        top = peak(own)
        out += [
            Report(f"{name}: peak win rate", top.win, "exact", note=f"at divergence {top.kl:.2f}"),
            Report(f"{name}: accuracy on the offline pairs at the peak", top.accuracy, "exact"),
            Report(f"{name}: log-ratio of the better answers at the peak", top.better, "exact"),
        ]
        for low, high in BINS:
            best = best_in(own, low, high)
            if best is not None:
                out.append(Report(f"{name}: best win rate at divergence {low:g} to {high:g}", best, "exact"))
    if (together := correlation(found.points["offline"])) is not None:
        out.append(Report("offline: correlation of accuracy and win rate", together, "exact"))
    return out


@method(
    Card(
        title="Understanding the performance gap between online and offline alignment algorithms",
        paper="arXiv 2405.08448",
        year=2024,
        family="exact",
        idea="train on the same loss and exchange only the source of the pairs; compare at equal divergence",
        changes=("data source",),
        composes_with="any score, any set of pairs",
        claim="pairs of the live policy win more, at equal divergence and at the peak, than the pairs it began with",
        example="anypolicy solve online-offline",
        look_at="what it finds, printed and drawn in its report",
    ),
)
def online_offline(
    seed: knobs.Seed = 0,
    loss: Annotated[PairLoss, Knob("loss of a pair")] = "squared",
    steps: Annotated[int, Knob("gradient steps of a policy", least=1)] = 3000,
    lr: knobs.LearningRate = 1.0,
    beta: knobs.Beta = 0.1,
    prompts: Annotated[int, Knob("prompts", least=1)] = 200,
    answers: Annotated[int, Knob("answers to a prompt", least=2)] = 300,
    pairs: Annotated[int, Knob("pairs in the offline data", least=1)] = 600,
) -> Solution:
    """One seed of the laboratory: online with `lr` and `beta`, all other sources at six settings of both."""
    counts = {"steps": steps, "lr": lr, "beta": beta, "prompts": prompts, "pairs": pairs, "answers": answers - 1}
    for name, value in counts.items():
        if not value > 0:
            raise InputError(name, value, "use a number above 0 (at least two answers)")
    found = study(laboratory(seed, prompts, answers, pairs=pairs), steps=steps, lr=lr, beta=beta, loss=loss)
    points = found.points
    lines = [Line(name, [p.kl for p in f], [p.win for p in f]) for name, f in
             ((n, frontier(own)) for n, own in points.items())]  # fmt: skip
    spread = [Line(name, [p.accuracy for p in own], [p.win for p in own]) for name, own in points.items()]
    axes = ("divergence from the start (nats)", "win rate against the golden policy")
    charts = [
        Chart("Win rate at divergence", *axes, lines, log="x"),
        Chart("Win rate and skill as a classifier", "accuracy on the offline pairs", axes[1], spread),
    ]
    table = [{"source": name, **p._asdict()} for name, own in points.items() for p in own]
    return Solution(reports(found), charts, {"Checkpoints": table})
