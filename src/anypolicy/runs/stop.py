"""Ctrl-C and SIGTERM: a run finishes the step in hand and keeps a checkpoint; the second one stops it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NOTE = b"\nstopping after the step in hand, with a checkpoint; once more stops at once\n"
Pause = Callable[[int], None]
"""Called between two steps, with how many of them are made: the loop can be saved there, and it may end there."""


def go_on(made: int) -> None:
    """A pause that is none."""


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal; the text says what goes on from where."""

    def __init__(self, number: int, told: str = ""):
        super().__init__(number, told)
        self.number, self.told = number, told

    def __str__(self) -> str:
        return self.told

    @property
    def code(self) -> int:
        """How a command ends that was stopped so."""
        return 128 + self.number


@dataclass
class Wish:
    """The signal that asked to stop; 0 while none has."""

    number: int = 0


@contextmanager
def handled(handler: Callable[[int, Callable[[], None]], None]) -> Generator[None]:
    """Call this for the signals that stop, in the main thread; those that the process was told to ignore stay ignored.
    It is given the number, and what puts the handlers back that were there before, as the end does."""
    mine: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        mine = {n: h for n in SIGNALS if (h := signal.getsignal(n)) not in (None, signal.SIG_IGN)}

    def put_back() -> None:
        for number, before in mine.items():
            signal.signal(number, before)

    for number in mine:
        signal.signal(number, lambda n, _: handler(n, put_back))
    try:
        yield
    finally:
        put_back()


@contextmanager
def first_signal() -> Generator[Wish]:
    """Notes the first signal; from then on signals do what they did before."""
    wish = Wish()

    def noted(number: int, put_back: Callable[[], None]) -> None:
        wish.number = number
        put_back()
        with suppress(OSError):
            os.write(2, NOTE)

    with handled(noted):
        yield wish


@contextmanager
def in_order() -> Generator[None]:
    """The signals that stop raise Stopped, so that what was opened is closed and processes that were started end."""

    def stops(number: int, put_back: Callable[[], None]) -> None:
        raise Stopped(number)

    with handled(stops):
        yield
