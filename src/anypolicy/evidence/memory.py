"""How much autograd keeps for the backward pass, counted tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Account:
    """Bytes of saved tensors that are alive, and the most there were at a time."""

    def __init__(self, ignored: set[int]):
        self.ignored, self.alive, self.peak = ignored, 0, 0

    def pack(self, x: Tensor) -> Saved:
        return Saved(self, x)


class Saved:
    """A tensor kept for the backward pass; it is given back when autograd lets it go."""

    def __init__(self, account: Account, x: Tensor):
        self.account, self.x = account, x
        self.size = 0 if x.data_ptr() in account.ignored else x.numel() * x.element_size()
        account.alive += self.size
        account.peak = max(account.peak, account.alive)

    def __del__(self) -> None:
        self.account.alive -= self.size


def peak_saved_bytes(run: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """The most bytes that stood saved for the backward pass at a time while `run` ran. `parameters`, which are there in
    any case, do not count; a tensor that is saved several times counts each time."""
    account = Account({p.data_ptr() for p in parameters})
    with torch.autograd.graph.saved_tensors_hooks(account.pack, lambda saved: saved.x):
        run()
    return account.peak
