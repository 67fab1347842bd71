"""Starting policies that a task trains itself, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from anypolicy.policies.causal_lm import CausalLM
from anypolicy.policies.smollm2 import cache_folder


def cached_base(policy: CausalLM, task: str, key: list[Any], train: Callable[[CausalLM], None]) -> CausalLM:
    """The policy with the weights that `train` gives it; trained once for each key and version of torch."""
    name = json.dumps([*key, torch.__version__])
    path = cache_folder() / task / (hashlib.sha256(name.encode()).hexdigest()[:16] + ".safetensors")
    if not path.exists():
        print(f"{task}: training the base policy (about half a minute, kept in the cache)", file=sys.stderr)
        train(policy)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            save_file(dict(policy.module.state_dict()), Path(work) / "base.safetensors")
            os.replace(Path(work) / "base.safetensors", path)
    policy.module.load_state_dict(load_file(path))
    return policy
