"""Starting policies that a task trains itself: once for each setting, then from the cache."""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anypolicy.runs.files import cache_folder
from anypolicy.runs.strict_json import json_text


class HasModule(Protocol):
    @property
    def module(self) -> nn.Module: ...


P = TypeVar("P", bound=HasModule)


def trained_once(policy: P, task: str, facts: list[Any], train: Callable[[P], None]) -> None:
    """Put the weights that `train` gives a policy like this one into it: from the cache if it was called with these
    `facts` (and this torch) before, else by training now. What is trained is a copy, on one thread and with torch's
    default products: a run goes on from the same weights, and from nothing else, whether it trained or found them."""
    key = json_text([*facts, torch.__version__, "one thread"])
    path = cache_folder() / task / (hashlib.sha256(key.encode()).hexdigest()[:16] + ".safetensors")
    if not path.exists():
        trained = copy.deepcopy(policy)
        with plain_arithmetic():
            train(trained)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            save_file(dict(trained.module.state_dict()), Path(work) / "base.safetensors")
            os.replace(Path(work) / "base.safetensors", path)
    policy.module.load_state_dict(load_file(path))


@contextmanager
def plain_arithmetic() -> Generator[None]:
    """torch as it comes, with one thread: with more of them, or by another library, sums are rounded otherwise."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
