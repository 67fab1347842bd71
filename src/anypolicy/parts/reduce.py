"""Turning a (rows, tokens) matrix of per-token values into one number, said explicitly."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypolicy.errors import InputError

Mode = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "const"]


class Totals(NamedTuple):
    """Denominators, counted over the whole optimiser batch so that no micro-batch split can change the gradient.

    `watched` counts the tokens that get a forward pass: what logged means divide by, and nothing else. `pairs` counts
    the pairs of sequences with a token in one group (0 where no groups were given).
    """

    tokens: float
    sequences: float
    rows: float
    sequence_tokens: Float[Tensor, " rows"]
    watched: float
    pairs: float = 0.0


def count(
    mask: Bool[Tensor, "rows tokens"], sequence: Tensor | None = None, group: Tensor | None = None
) -> Totals:  # fmt: skip
    """Count tokens with mask 1, sequences with at least one, and all sequences, the empty ones too (`rows`).

    `sequence` (rows,) numbers the trajectory of each row; by default each row is one. `sequence_tokens` gives every
    row the number of masked tokens of its whole trajectory. `group` (sequences,) numbers the group of each.
    """
    per_row = mask.sum(1).to(torch.float32)
    if sequence is None:
        return Totals(float(per_row.sum()), float((per_row > 0).sum()), float(len(mask)), per_row, float(per_row.sum()))
    size = int(sequence.max()) + 1 if len(sequence) else 0
    per_sequence = per_row.new_zeros(size).index_add_(0, sequence, per_row)
    rows = float(len(torch.unique(sequence)))
    tokens, pairs = float(per_row.sum()), 0.0
    if group is not None:
        members = torch.bincount(group[:size][per_sequence > 0]).double()
        pairs = float((members * (members - 1) / 2).sum())
    return Totals(tokens, float((per_sequence > 0).sum()), rows, per_sequence[sequence], tokens, pairs)


def reduce(
    values: Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    mode: Mode,
    *,
    totals: Totals | None = None,
    max_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """One number from per-token values x under mask M.

    - token-mean: Σ xM / ΣM
    - seq-mean-token-mean: mean over sequences with a token of [Σ_t xM / Σ_t M]
    - seq-mean-token-sum: mean over sequences with a token of [Σ_t xM]
    - const: Σ xM / (sequences · max_tokens), the empty sequences counted too (Dr.GRPO)

    With `totals` of the whole optimiser batch the results of micro-batches add up to the result of the whole.
    """
    if mode not in get_args(Mode):
        raise InputError("aggregation", mode, f"use one of {', '.join(get_args(Mode))}", choices=get_args(Mode))
    totals = totals or count(mask)
    x = torch.where(mask, values, 0)
    if mode == "token-mean":
        return x.sum() / max(totals.tokens, 1)
    if mode == "const":
        if max_tokens is None:
            raise InputError("max_tokens", None, "the const aggregation needs the generation limit")
        return x.sum() / (max(totals.rows, 1) * max_tokens)
    per_row = x.sum(1)
    if mode == "seq-mean-token-mean":
        per_row = per_row / totals.sequence_tokens.clamp(min=1)
    return per_row.sum() / max(totals.sequences, 1)
