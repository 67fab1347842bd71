"""One seed, many independent generators, each known by name.

Everything random in a run asks for its generator by (seed, stream name, step, …). Nothing is drawn from a global
generator and no generator lives longer than one step, so a resumed run needs no generator state to go on bit for bit.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from anypolicy.errors import InputError


def _entropy(seed: int, names: tuple[str | int, ...]) -> np.random.SeedSequence:
    if seed < 0:
        raise InputError("seed", seed, "use 0 or more")
    key = "\x1f".join(f"{type(n).__name__}:{n}" for n in names).encode()
    digest = hashlib.sha256(key).digest()
    return np.random.SeedSequence([seed, *np.frombuffer(digest, "<u4").tolist()])


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """The NumPy generator of a named stream, e.g. numpy_generator(0, "sampler", step)."""
    return np.random.default_rng(_entropy(seed, names))


def generator(seed: int, *names: str | int) -> torch.Generator:
    """The torch generator of a named stream, e.g. generator(0, "sampling", step, round). Torch's processor generator
    takes 32 bits of a seed."""
    return torch.Generator().manual_seed(number(seed, *names))


def number(seed: int, *names: str | int) -> int:
    """The named stream as a whole number below 2⁶³, for what makes generators of its own from it."""
    return int(_entropy(seed, names).generate_state(1, np.uint64)[0] >> np.uint64(1))
