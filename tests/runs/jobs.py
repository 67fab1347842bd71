"""What workers do in tests; light, because every process imports it."""

import ctypes
import signal
import time

from anypolicy.errors import InputError
from anypolicy.runs.stop import Stopped, first_signal


class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__("one text")


def job(name: str, number: int):
    if name == "refused":
        raise InputError("metric", number, "use another")
    if name == "odd":
        raise Unpicklable(1, 2)
    if name == "killed":
        signal.raise_signal(signal.SIGKILL)
    return name, number


def held(kept: str):
    """A job that ends when it is asked to; it says when it is at work."""
    with first_signal() as wish:
        print("at work", flush=True)
        while not wish.number:
            time.sleep(0.01)
        print(kept, flush=True)
        raise Stopped(wish.number)


def deaf_to_linux(kept: str):
    """The same where only a thread watches the parent."""
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
    held(kept)
