"""Starting policies that a task trains itself: once for each setting, then from the cache."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anypolicy.runs.files import cache_folder


class HasModule(Protocol):
    @property
    def module(self) -> nn.Module: ...


def trained_once(policy: HasModule, task: str, facts: list[Any], train: Callable[[], None]) -> None:
    """Put the weights that `train` gives the policy into it: from the cache if it was called with these `facts` (and
    this torch) before, else by training now."""
    key = json.dumps([*facts, torch.__version__])
    path = cache_folder() / task / (hashlib.sha256(key.encode()).hexdigest()[:16] + ".safetensors")
    if not path.exists():
        train()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            save_file(dict(policy.module.state_dict()), Path(work) / "base.safetensors")
            os.replace(Path(work) / "base.safetensors", path)
    policy.module.load_state_dict(load_file(path))
