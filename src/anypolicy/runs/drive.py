"""What every run does, whatever learns in it: checkpoint, evaluate, learn, log, in this order at every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from anypolicy.errors import outliving
from anypolicy.runs.checkpoint import Position
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.output import lasting_output
from anypolicy.runs.progress import Progress
from anypolicy.runs.stop import Pause, Stopped, first_signal
from anypolicy.runs.trackers import make_trackers

Row = dict[str, Any]
Callback = Callable[[Row], Any]
CALLBACK: ContextVar[Callback | None] = ContextVar("called with each row of a ledger", default=None)


@dataclass(frozen=True)
class Schedule:
    """A run of `steps`, a row of the ledger every `stride`; evaluations and checkpoints where they are due (0: only
    where they must be), checkpoints also when `minutes` have passed since the last one (0: never for that). All but
    the latter are rounded up to whole `unit`s."""

    steps: int
    eval_every: int
    checkpoint_every: int
    stride: int = 1
    unit: int = 1
    minutes: float = 0.0

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
    run: RunDirectory, schedule: Schedule, first: Position, *, title: str, trackers: tuple[str, ...], written: Row,
    quiet: bool, learn: Callable[[int, Pause], Row], evaluate: Callable[[int], Row], save: Callable[[Position], None],
) -> None:  # fmt: skip
    """From the position `first` to the end. `learn(n, pause)` makes n more steps and gives the row that they end; where
    there are several it calls `pause(made)` between them, and what `save` writes there must go on to the same bits.
    `evaluate(step)` gives the row of an evaluation, `save(position)` writes a checkpoint. An exception in the middle
    leaves the last checkpoint as it is; a signal raises Stopped after the step in hand and a checkpoint. The CALLBACK
    is given each row as it is logged; where it returns False, the run ends there as it would at its last step."""
    s, callback, ends = schedule, CALLBACK.get(), False
    with outliving("run"), lasting_output(), ExitStack() as ending:
        bar = ending.enter_context(Progress(s.steps, first.step, title, quiet=quiet))
        if not run.new:
            bar.say(f"goes on from step {first.step} of {s.steps}" if first.step else "begins at step 0: no checkpoint")
        copies = make_trackers(trackers, run.path, written, first.step, ending)
        wish, kept, saved = ending.enter_context(first_signal()), first.step, time.monotonic()

        def log(row: Row) -> None:
            nonlocal ends
            run.append(row)
            ends = (callback is not None and callback(dict(row)) is False) or ends
            for tracker in copies:
                tracker.log(row, row["step"])

        def keep(at: Position) -> None:
            nonlocal kept, saved
            if at.step > kept:
                run.sync()
                save(at)
            kept, saved = at.step, time.monotonic()

        def pause(at: Position) -> None:
            number = wish.number  # a signal may come after this: it waits for the next pause, which keeps a checkpoint
            if number or (s.minutes and time.monotonic() - saved >= 60 * s.minutes):
                keep(at)
            if number:
                raise Stopped(number, run.goes_on())

        def evaluated(step: int) -> None:
            bar.note("evaluating")
            log(row := {"step": step, "event": "eval", **evaluate(step)})
            bar.evaluated(row)

        at = first
        while True:
            if at.step == at.began:
                last = at.step >= s.steps or ends
                if at.step > first.step and (last or s.due(at.step, s.checkpoint_every)):
                    keep(at)
                pause(at)
                if at.step == 0 or last or s.due(at.step, s.eval_every):
                    evaluated(at.step)
                pause(at)
                if ends:
                    keep(at)
                if last or ends:
                    return
            tick, before, end = time.monotonic(), at, max(s.after(at.began), at.step)
            row = learn(end - before.step, lambda made, b=before: pause(Position(b.step + made, b.began)))
            log(row := {"step": before.began, **row})
            run.append_timing({"step": before.began, "seconds": time.monotonic() - tick})
            at = Position(end, end)
            bar.stepped(row, end)
