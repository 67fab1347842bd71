"""Two splits that cannot overlap: the side a problem is on follows from its own text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

from anypolicy.errors import InputError

T = TypeVar("T")


def place(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split(items: Iterable[T], text: Callable[[T], str], heldout: float) -> tuple[list[T], list[T]]:
    """(train, held out): duplicates removed, the share `heldout` held out by `place(text)`.

    A problem is on the same side whatever the seed, the order and the number of problems. Where so few problems are
    given that one side would be empty, the one nearest the border goes there.
    """
    if not 0 <= heldout < 1:
        raise InputError("heldout", heldout, "use a share in [0, 1)")
    once = {text(item): item for item in items}
    train = [item for key, item in once.items() if place(key) >= heldout]
    held = [item for key, item in once.items() if place(key) < heldout]
    if heldout and len(once) >= 2:
        if not held:
            held = [min(train, key=lambda item: place(text(item)))]
            train = [item for item in train if item is not held[0]]
        elif not train:
            train = [max(held, key=lambda item: place(text(item)))]
            held = [item for item in held if item is not train[0]]
    return train, held
