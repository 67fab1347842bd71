"""Any policy learns by any published method.

import anypolicy as ap
run = ap.train("ngrpo+vade", task="reasoning-gym/chain_sum", policy="smollm2-135m", steps=200, seed=0)
study = ap.compare(["grpo", "ngrpo"], task="tiny-add", seeds=5)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from anypolicy.errors import InputError
from anypolicy.version import __version__

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    # torch's threads wait for one another by turning round and round, unless they are told before it is loaded: on a
    # busy machine that multiplies every interruption (docs/first-run.md)
    os.environ |= {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}

if TYPE_CHECKING:
    from anypolicy import methods as methods
    from anypolicy.catalogue import Card as Card
    from anypolicy.catalogue import method as method
    from anypolicy.families.base import evaluate as evaluate
    from anypolicy.families.base import explain as explain
    from anypolicy.families.base import load as load
    from anypolicy.families.base import resume as resume
    from anypolicy.families.base import train as train
    from anypolicy.families.language import Run as Run
    from anypolicy.families.language import Settings as Settings
    from anypolicy.families.reward_models import train_reward_model as train_reward_model
    from anypolicy.studies.compare import Arm as Arm
    from anypolicy.studies.compare import compare as compare
    from anypolicy.studies.filtration import filtration_table as filtration_table
    from anypolicy.studies.reproduce import reproduce as reproduce
    from anypolicy.studies.rerun import rerun as rerun
    from anypolicy.studies.show import show as show

_HOME = {
    "Card": "catalogue",
    "method": "catalogue",
    "train": "families.base",
    "resume": "families.base",
    "evaluate": "families.base",
    "explain": "families.base",
    "load": "families.base",
    "Run": "families.language",
    "Settings": "families.language",
    "Arm": "studies.compare",
    "compare": "studies.compare",
    "reproduce": "studies.reproduce",
    "rerun": "studies.rerun",
    "show": "studies.show",
    "filtration_table": "studies.filtration",
    "train_reward_model": "families.reward_models",
}

__all__ = ["InputError", "__version__", "methods", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "methods":
        return importlib.import_module("anypolicy.methods")
    if name not in _HOME:
        raise AttributeError(f"module 'anypolicy' has no attribute {name!r}")
    return getattr(importlib.import_module(f"anypolicy.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
