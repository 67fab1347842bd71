"""Preferences over a finite set of answers by log-linear policies π(y | x) ∝ exp(w · f(x, y)): every divergence and win
rate is a finite sum, so that what is compared are methods and not estimates."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pairs = NDArray[np.int64]
PairLoss = Literal["squared", "sigmoid", "best-of-two"]


def policy(weights: Float[Array, " d"], features: Float[Array, "prompts answers d"]) -> Float[Array, "prompts answers"]:
    """softmax over the answers of w · f."""
    z = features @ weights
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def divergence(p: Float[Array, "prompts answers"], q: Float[Array, "prompts answers"]) -> float:
    """Mean over the prompts of Σ_y p ln(p/q), in nats."""
    return float((p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300)))).sum(1).mean())


def win_rate(
    p: Float[Array, "prompts answers"], other: Float[Array, "prompts answers"], score: Float[Array, "prompts answers"]
) -> float:
    """Mean over the prompts of P(score(y) > score(y')) + ½ P(=), y from p and y' from `other`."""
    total = 0.0
    for mine, theirs, s in zip(p, other, score, strict=True):
        value, place = np.unique(s, return_inverse=True)
        mass = np.bincount(place, theirs, len(value))
        total += float(mine @ (mass.cumsum() - mass / 2)[place])
    return total / len(p)


def draw(p: Float[Array, "prompts answers"], prompts: Int[Pairs, " n"], rng: np.random.Generator) -> Int[Pairs, " n"]:
    """An answer to each of these prompts."""
    below = p[prompts].cumsum(1)
    return (below < rng.random((len(prompts), 1)) * below[:, -1:]).sum(1)


def labelled(
    prompts: Int[Pairs, " n"], a: Int[Pairs, " n"], b: Int[Pairs, " n"], score: Float[Array, "prompts answers"]
) -> Int[Pairs, "kept 3"]:
    """(prompt, better, worse) by the score. Equal answers and ties make no pair."""
    gap = score[prompts, a] - score[prompts, b]
    rows = np.stack([prompts, np.where(gap > 0, a, b), np.where(gap > 0, b, a)], 1)
    return rows[(gap != 0) & (a != b)]


def debiased(first: Float[Array, " n"], second: Float[Array, " n"]) -> Float[Array, " n"]:
    """p(x, y1, y2) − p(x, y2, y1): above 0 where y1 is preferred whichever order a preference model sees them in."""
    return first - second


def margins(
    weights: Float[Array, " d"], reference: Float[Array, " d"], features: Float[Array, "prompts answers d"],
    pairs: Int[Pairs, "n 3"],
) -> Float[Array, " n"]:  # fmt: skip
    """h = ln π/π_ref (better) − ln π/π_ref (worse); the normalisations of one prompt cancel."""
    x, w, l = pairs.T  # noqa: E741
    return (features[x, w] - features[x, l]) @ (weights - reference)


def loss_slope(h: Float[Array, " n"], beta: float, loss: PairLoss) -> Float[Array, " n"]:
    """dL/dh: 2β(βh − ½) of (βh − ½)² (arXiv 2405.08448, appendix B), −β σ(−βh) of DPO."""
    return 2 * beta * (beta * h - 0.5) if loss == "squared" else -beta / (1 + np.exp(beta * h))


def pair_gradient(
    weights: Float[Array, " d"], reference: Float[Array, " d"], features: Float[Array, "prompts answers d"],
    pairs: Int[Pairs, "n 3"], beta: float, loss: PairLoss,
) -> Float[Array, " d"]:  # fmt: skip
    """Mean over the pairs of the loss's gradient; best-of-two is −ln π(better). 0 without a pair."""
    if not len(pairs):
        return np.zeros_like(weights)
    x, w, l = pairs.T  # noqa: E741
    if loss == "best-of-two":
        expected = np.einsum("ny,nyd->nd", policy(weights, features[x]), features[x])
        return (expected - features[x, w]).mean(0)
    slope = loss_slope(margins(weights, reference, features, pairs), beta, loss)
    return slope @ (features[x, w] - features[x, l]) / len(pairs)


def accuracy(h: Float[Array, " n"]) -> float:
    """Share of pairs with h > 0, a tie ½: ½ for the reference itself."""
    return float(((h > 0) + 0.5 * (h == 0)).mean())


def better_log_ratio(
    weights: Float[Array, " d"], reference: Float[Array, " d"], features: Float[Array, "prompts answers d"],
    pairs: Int[Pairs, "n 3"],
) -> float:  # fmt: skip
    """Mean of ln π/π_ref over the better answers."""
    ratio = np.log(policy(weights, features)) - np.log(policy(reference, features))
    return float(ratio[pairs[:, 0], pairs[:, 1]].mean())
