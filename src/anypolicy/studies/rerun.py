"""A run once more, by the recipe that it keeps: the same numbers, or what differs and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anypolicy.errors import InputError, checked
from anypolicy.evidence.provenance import versions
from anypolicy.families.base import family_of_run
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.recipes import stated


@dataclass(frozen=True)
class Rerun:
    """A run and its repetition: the first row of the ledger that is another, its names with both values, and what
    made both ({name: (then, now)}, where it is another)."""

    path: Path
    again: Path
    step: int | None
    values: dict[str, tuple[float | None, float | None]]
    made_with: dict[str, tuple[Any, Any]]

    def __str__(self) -> str:
        lines = [f"{name}: {then} then, {now} now" for name, (then, now) in self.made_with.items()]
        if self.step is None:
            return "\n".join([*lines, f"the same numbers to the last bit: {self.again}"])
        lines.append(f"the same numbers up to step {self.step}, where they differ first: {self.again}")
        lines += [f"  {name}  {then}  →  {now}" for name, (then, now) in self.values.items()]
        return "\n".join(lines)


@checked
def rerun(path: str | Path, *, out: str | Path | None = None, quiet: bool = False, trust: bool = False) -> Rerun:
    """Train once more by a run's recipe, in a new folder, and compare the ledgers row by row. `trust` runs code that
    the recipe names and the user has not run before."""
    path = Path(path)
    family = family_of_run(path)
    with RunDirectory.open(path, lock=False) as run:
        written, before, then = dict(stated(run)), run.read(), run.made_with()
    if "apart" in written:
        raise InputError("run", str(path), "actor and learner stood apart: such a run is never the same twice")
    again = Path(out) if out else path.with_name(f"{path.name}-again")
    new = family.start(family.plan_from(written | {"out": str(again)}, trust=trust), quiet=quiet)
    step, values = first_difference(before, new.rows)
    now = dict(versions())
    changed = {k: (then.get(k), now.get(k)) for k in (then | now) if then and then.get(k) != now.get(k)}
    return Rerun(path, again, step, values, changed)


def first_difference(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> tuple[int | None, dict[str, tuple[Any, Any]]]:
    """The step of the first row that is another, and its values of both; rows that only the longer ledger has are none
    (the run was stopped, or goes on)."""
    for a, b in zip(before, after, strict=False):
        if a != b:
            return a["step"], {k: (a.get(k), b.get(k)) for k in (a | b) if a.get(k) != b.get(k)}
    return None, {}
