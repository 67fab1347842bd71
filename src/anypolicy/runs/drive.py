"""What every run does, whatever learns in it: checkpoint, evaluate, learn, log, in this order at every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from anypolicy.progress import Progress
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.trackers import make_trackers

Row = dict[str, Any]


@dataclass(frozen=True)
class Schedule:
    """A run of `steps`, a row of the ledger every `stride`; evaluations and checkpoints where they are due (0: only
    where they must be). All are rounded up to whole `unit`s."""

    steps: int
    eval_every: int
    checkpoint_every: int
    stride: int = 1
    unit: int = 1

    def after(self, step: int) -> int:
        """The next step at which there is something to do."""
        marks = [
            (step // every + 1) * every for every in (self.stride, self.eval_every, self.checkpoint_every) if every
        ]
        return step - (step - min(*marks, self.steps)) // self.unit * self.unit

    def due(self, step: int, every: int) -> bool:
        """Whether a multiple of `every` was reached in the unit that ends at `step`."""
        return bool(every) and step // every > (step - self.unit) // every


def drive(
    run: RunDirectory, schedule: Schedule, first: int, *, title: str, trackers: tuple[str, ...], written: Row,
    quiet: bool, learn: Callable[[int], Row], evaluate: Callable[[int], Row], save: Callable[[int], None],
) -> None:  # fmt: skip
    """From step `first` to the end. `learn(n)` makes n more steps and gives their row, `evaluate(step)` the row of an
    evaluation, `save(step)` writes a checkpoint. An exception in the middle leaves the last checkpoint as it is."""
    s = schedule
    with ExitStack() as ending:
        bar = ending.enter_context(Progress(s.steps, first, title, quiet=quiet))
        copies = make_trackers(trackers, run.path, written, first, ending)

        def log(row: Row) -> None:
            run.append(row)
            for tracker in copies:
                tracker.log(row, row["step"])

        step = first
        while True:
            last = step >= s.steps
            if step > first and (last or s.due(step, s.checkpoint_every)):
                run.sync()
                save(step)
            if step == 0 or last or s.due(step, s.eval_every):
                bar.note("evaluating")
                log(row := {"step": step, "event": "eval", **evaluate(step)})
                bar.evaluated(row)
            if last:
                return
            tick, before = time.monotonic(), step
            step = s.after(step)
            log(row := {"step": before, **learn(step - before)})
            run.append_timing({"step": before, "seconds": time.monotonic() - tick})
            bar.stepped(row, step)
