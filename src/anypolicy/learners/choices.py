"""What all methods of arXiv 2111.04714 share that learn values of choices from demonstrations alone (its appendix)."""

from __future__ import annotations

from dataclasses import dataclass

from anypolicy import knobs


@dataclass(frozen=True)
class OfChoices:
    """One network, its optimiser, the discount and the batch."""

    hidden: knobs.Hidden = (256, 256, 256)
    lr: knobs.LearningRate = 1e-4
    discount: knobs.Discount = 0.95
    batch: knobs.BatchSize = 128
