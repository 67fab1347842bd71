"""Finding the texts that are nearest to a text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def bm25(query: str, documents: Sequence[str], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Okapi BM25 of every document: Σ_w idf(w) f(w,d) (k1+1) / (f(w,d) + k1 (1 − b + b |d|/avgdl)) over the words of
    the query (repeated ones again), idf(w) = ln(1 + (N − df + ½)/(df + ½)). Words are lower-cased, split at spaces."""
    counts = [Counter(d.lower().split()) for d in documents]
    lengths = [sum(c.values()) for c in counts]
    mean = sum(lengths) / max(len(lengths), 1)
    scores = [0.0] * len(counts)
    for word in query.lower().split():
        df = sum(word in c for c in counts)
        idf = math.log(1 + (len(counts) - df + 0.5) / (df + 0.5))
        for i, (c, n) in enumerate(zip(counts, lengths, strict=True)):
            if word in c:
                scores[i] += idf * c[word] * (k1 + 1) / (c[word] + k1 * (1 - b + b * n / mean))
    return scores
