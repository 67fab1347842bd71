"""Trackers: copies of the ledger elsewhere. TensorBoard by default; W&B, MLflow and trackio by name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from anypolicy.errors import RAISED, InputError


class Tracker(Protocol):
    def log(self, row: dict[str, Any], step: int) -> None: ...

    def close(self) -> None: ...


class TrackerAdapter:
    """Turns `log(numbers, step)` and `close()` of a tracking library into a tracker that never stops a run: the ledger
    has the numbers already, so a tracker that fails is reported once and left."""

    def __init__(self, name: str, log: Callable[[dict[str, float], int], Any], close: Callable[[], Any]):
        self.name, self._log, self._close, self.alive = name, log, close, True

    def log(self, row: dict[str, Any], step: int) -> None:
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        self._guard(lambda: self._log(numbers, step))

    def close(self) -> None:
        self._guard(self._close)

    def _guard(self, call: Callable[[], Any]) -> None:
        if not self.alive:
            return
        try:
            call()
        except RAISED as error:
            self.alive = False
            print(f"warning: tracker {self.name} failed ({error}); the ledger goes on without it", file=sys.stderr)


def tensorboard(run: Path, recipe: dict[str, Any], first: int) -> TrackerAdapter:
    """Event files under tensorboard/; steps from `first` on replace those of a run that was killed later."""
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(
        str(run / "tensorboard"), purge_step=first
    )

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return TrackerAdapter("tensorboard", log, writer.close)


def wandb(run: Path, recipe: dict[str, Any], first: int) -> TrackerAdapter:
    """Weights & Biases; the project is "anypolicy"; a resumed run goes on under its id."""
    module = importlib.import_module("wandb")
    name = hashlib.sha256(f"{run.resolve()} {recipe}".encode()).hexdigest()[:16]
    session = module.init(project="anypolicy", name=run.name, id=name, resume="allow", config=recipe, dir=str(run))
    return TrackerAdapter("wandb", lambda numbers, step: session.log(numbers, step=step), session.finish)


def mlflow(run: Path, recipe: dict[str, Any], first: int) -> TrackerAdapter:
    """MLflow; the experiment is "anypolicy". A resumed run is a new MLflow run of the same name."""
    module = importlib.import_module("mlflow")
    module.set_experiment("anypolicy")
    module.start_run(run_name=run.name)
    module.log_params({k: str(v)[:500] for k, v in recipe.items()})
    return TrackerAdapter("mlflow", lambda numbers, step: module.log_metrics(numbers, step=step), module.end_run)


def trackio(run: Path, recipe: dict[str, Any], first: int) -> TrackerAdapter:
    """trackio; the project is "anypolicy"."""
    module = importlib.import_module("trackio")
    module.init(project="anypolicy", name=run.name, config=recipe, resume="allow")
    return TrackerAdapter("trackio", lambda numbers, step: module.log(numbers, step=step), module.finish)


KINDS = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio}


def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
    """The trackers meant: `none` alone is none, `auto` alone tensorboard where it is installed."""
    if names == ("auto",):
        return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    return () if names == ("none",) else names


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse unknown trackers and missing packages before any work."""
    for name in chosen(names):
        if name not in KINDS:
            raise InputError("trackers", name, f"use {', '.join(KINDS)}, or auto or none alone", choices=KINDS)
        if importlib.util.find_spec(name) is None:
            raise InputError("trackers", name, f"its package is missing: pip install {name}")


def make_trackers(
    names: tuple[str, ...], run: Path, recipe: dict[str, Any], first: int, ending: ExitStack
) -> list[TrackerAdapter]:
    """Open the named trackers for a run that begins at step `first`; `ending` closes them."""
    opened: list[TrackerAdapter] = []
    for name in chosen(names):
        try:
            opened.append(KINDS[name](run, recipe, first))
        except RAISED as error:
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError("trackers", name, f"it cannot be started ({told}): set it up, or leave it out") from error
        ending.callback(opened[-1].close)
    return opened
