"""Turning a (rows, tokens) matrix of per-token values into one number, said explicitly."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypolicy.errors import InputError

Mode = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "group-mean-token-mean",
               "group-mean-token-sum", "const"]  # fmt: skip


class Totals(NamedTuple):
    """Denominators, counted over the whole optimiser batch so that no micro-batch split can change the gradient.

    `watched` counts the tokens that get a forward pass: what logged means divide by, and nothing else. `groups` counts
    every group of the batch, also one without a masked token; `group_sequences` gives every row the number of
    sequences with a masked token in its group, `pairs` counts their pairs within groups, `preferences` those that were
    made to learn from. `target` are the same counts over the supervised tokens, if any.
    """

    tokens: float
    sequences: float
    rows: float
    sequence_tokens: Float[Tensor, " rows"]
    watched: float
    groups: float = 0.0
    group_sequences: Float[Tensor, " rows"] | None = None
    pairs: float = 0.0
    preferences: float = 0.0
    target: Totals | None = None

    def select(self, rows: Tensor) -> Totals:
        """The same denominators for a part of the rows (indices or mask)."""
        return self._replace(
            sequence_tokens=self.sequence_tokens[rows],
            group_sequences=None if self.group_sequences is None else self.group_sequences[rows],
            target=None if self.target is None else self.target.select(rows),
        )


def count(
    mask: Bool[Tensor, "rows tokens"], sequence: Tensor | None = None, group: Int[Tensor, " rows"] | None = None
) -> Totals:
    """Count tokens with mask 1, sequences with at least one, and all sequences, the empty ones too (`rows`).

    `sequence` (rows,) numbers the trajectory of each row; by default each row is one. `sequence_tokens` gives every
    row the number of masked tokens of its whole trajectory. `group` (rows,) numbers the group of each row; without it
    groups are not counted.
    """
    per_row = mask.sum(1).to(torch.float32)
    if sequence is None and group is None:
        return Totals(float(per_row.sum()), float((per_row > 0).sum()), float(len(mask)), per_row, float(per_row.sum()))
    sequence = torch.arange(len(mask)) if sequence is None else sequence
    size = int(sequence.max()) + 1 if len(sequence) else 0
    per_sequence = per_row.new_zeros(size).index_add_(0, sequence, per_row)
    rows = float(len(torch.unique(sequence)))
    tokens = float(per_row.sum())
    totals = Totals(tokens, float((per_sequence > 0).sum()), rows, per_sequence[sequence], tokens)
    if group is None:
        return totals
    names, index = torch.unique(group, return_inverse=True)
    group_of = torch.zeros(size, dtype=torch.long).scatter_(0, sequence, index)
    filled = per_row.new_zeros(len(names)).index_add_(0, group_of, (per_sequence > 0).to(per_row.dtype))
    pairs = float((filled.double() * (filled.double() - 1) / 2).sum())
    return totals._replace(groups=float(len(names)), group_sequences=filled[index], pairs=pairs)


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
    - group-mean-token-mean, group-mean-token-sum: mean over all groups of the mean over the group's sequences with a
      token of [Σ_t xM / Σ_t M] or [Σ_t xM]; a group without any counts as 0
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
    if mode in ("seq-mean-token-mean", "group-mean-token-mean"):
        per_row = per_row / totals.sequence_tokens.clamp(min=1)
    if mode in ("group-mean-token-mean", "group-mean-token-sum"):
        if totals.group_sequences is None:
            raise InputError("aggregation", mode, "the totals must be counted with the group of every row")
        return (per_row / totals.group_sequences.clamp(min=1)).sum() / max(totals.groups, 1)
    return per_row.sum() / max(totals.sequences, 1)
