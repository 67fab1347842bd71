"""Which responses of a group are compared, and which of two is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Pairing = Literal["first_round", "tournament", "best_worst", "all"]


def make_pairs(n: int, pairing: Pairing, better: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """(chosen, rejected) among responses 0 … n − 1. `better(i, j)` is above 0 where i is, below where j is, and 0 for a
    tie, which makes no pair.

    - first_round: 0 with 1, 2 with 3, …: n // 2 pairs
    - tournament: then the winners likewise, up to the last: n − 1 pairs (of a tie the first goes on, as does one
      without an opponent)
    - best_worst: the best with the worst, the first of each
    - all: every two: n(n − 1)/2
    """
    if pairing == "tournament":
        return tournament(n, better)
    if pairing == "first_round":
        compared = [(i, i + 1) for i in range(0, n - 1, 2)]
    elif pairing == "all":
        compared = [(i, j) for i in range(n) for j in range(i + 1, n)]
    else:
        best = worst = 0
        for i in range(1, n):
            best = i if better(i, best) > 0 else best
            worst = i if better(worst, i) > 0 else worst
        compared = [(best, worst)] if best != worst else []
    return ordered(compared, better)


def tournament(n: int, better: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """Rounds until one is left."""
    alive, out = list(range(n)), list[tuple[int, int]]()
    while len(alive) > 1:
        met = list(zip(alive[::2], alive[1::2], strict=False))
        out += ordered(met, better)
        alive = [i if better(i, j) >= 0 else j for i, j in met] + alive[2 * len(met) :]
    return out


def ordered(compared: list[tuple[int, int]], better: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """The better one first; without ties."""
    judged = [(i, j, better(i, j)) for i, j in compared]
    return [(i, j) if sign > 0 else (j, i) for i, j, sign in judged if sign != 0]
