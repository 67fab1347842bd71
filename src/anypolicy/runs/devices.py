"""Where a run computes: the processor, or a GPU.

Weights, caches, hidden states and the state of optimisers stand on the device; batches, replays and noise stay on the
processor, so that a seed draws the same on both.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Annotated, Any

import torch

from anypolicy.errors import InputError
from anypolicy.knobs import Knob

Where = Annotated[str | None, Knob("auto, cpu, cuda or cuda:N, if not where the run trained")]
"""Where a run is evaluated."""
ALLOWED = "use auto, cpu, cuda, or cuda:N for the GPU of that number"


def choose_device(given: str) -> torch.device:
    """auto is a GPU if there is one (which is said once), else the processor; all others are taken at their word.
    Raises InputError for a device that is not there, or that this library does not train on."""
    if given == "auto":
        return told() if torch.cuda.is_available() else torch.device("cpu")
    if re.fullmatch("mps(:[0-9]+)?", given):
        raise InputError("device", given, f"its results are not checked against the processor's here: {ALLOWED}")
    if not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", given):
        raise InputError("device", given, ALLOWED)
    device = torch.device(given)
    if device.type == "cuda" and (device.index or 0) >= (there := torch.cuda.device_count()):
        count = f"{there} GPU{'s' if there > 1 else ''}" if there else "no GPU"
        raise InputError("device", given, f"torch finds {count} here: {ALLOWED}")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def elsewhere(written: dict[str, Any], device: str | None) -> dict[str, Any]:
    """A recipe, for another device if one is given."""
    return written if device is None else written | {"device": device}


@functools.cache
def told() -> torch.device:
    """The first GPU, and the words that it was taken."""
    print(f"note: computing on {torch.cuda.get_device_name(0)} (cuda:0); device=cpu is the processor", file=sys.stderr)
    return torch.device("cuda", 0)


REMEDIES = {
    "micro_tokens": "fewer tokens in a forward pass", "recompute": "no activations kept", "lora_rank": "adapters alone",
    "dtype": "bfloat16", "group_size": "fewer responses at once", "max_tokens": "shorter ones",
    "micro": "fewer samples in a pass", "capacity": "a smaller replay", "envs": "fewer environments",
}  # fmt: skip
"""Settings that decide how much memory a run takes, and what helps."""


@contextmanager
def memory_errors(settings: Iterable[str]) -> Generator[None]:
    """Memory that does not suffice, of a GPU or of the machine, is one error, which says what helps among the settings
    that there are."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).strip()
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in text:
            raise
        helps = ", ".join(f"{name} ({REMEDIES[name]})" for name in REMEDIES if name in settings)
        what = text.splitlines()[0][:160] if text else "none left"
        raise InputError("memory", what, f"less is needed with another {helps}") from error
