"""What a run of any family gives back: its ledger, curves and samples, a short view, and the way out of its folder."""

from __future__ import annotations

import html
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from anypolicy.errors import InputError
from anypolicy.evidence.plots import Curve, learning_curves, over, save_curves
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.files import new_folder

SPREAD = ("_se", "/low", "/high", "/n", "_low", "_high", "/pairs")
"""How names end that say how sure another value is."""


@dataclass(repr=False)
class Result:
    """A run that has ended (or was loaded): its directory and the rows of its ledger."""

    path: Path
    rows: list[dict[str, Any]]
    learnt: ClassVar[str] = "policy"
    """the folder with what was learnt"""

    def evaluations(self) -> list[dict[str, Any]]:
        """Ledger rows of evaluations."""
        return [r for r in self.rows if r.get("event") == "eval"]

    def names(self) -> list[str]:
        """What the ledger holds, evaluations first."""
        every = {k: None for rows in (self.evaluations(), self.rows) for row in rows for k in row}
        return [k for k in every if k not in ("step", "event", "why")]

    def plot(self, *names: str) -> Any:
        """Curves of values of the ledger over the steps, by default what its evaluations measure first, as a Plotly
        figure. Raises InputError for a name that the ledger does not hold."""
        known = self.names()
        for name in names:
            if name not in known:
                raise InputError("name", name, f"the ledger holds {', '.join(known)}", choices=known)
        return learning_curves(self.curves(*names), y=", ".join(names or self.measured()))

    def curves(self, *names: str) -> list[Curve]:
        """A curve for each name."""
        out = list[Curve]()
        for name in names or self.measured():
            rows = [r for r in self.rows if name in r]
            out.append(Curve(name, [r["step"] for r in rows], [over(rows, name)]))
        return out

    def measured(self) -> list[str]:
        """The name that evaluations measure first; none where there was none."""
        found = [k for k in self.names() if k.startswith(("eval/", "probe/")) and not k.endswith(SPREAD)]
        own = ("eval/reward",) if "eval/reward_se" in self.names() else ()
        first = [k for k in (*own, "eval/accuracy", "eval/success", "eval/return") if k in found]
        return (first or found)[:1]

    def samples(self, step: int | None = None) -> list[dict[str, Any]]:
        """What an evaluation looked at (the last, or that of a step): responses with verdicts, returns of episodes."""
        known = sorted(int(f.stem.removeprefix("step-")) for f in (self.path / "samples").glob("step-*.jsonl"))
        wanted = max(known, default=None) if step is None else step
        if wanted not in known:
            told = f"there are samples of steps {', '.join(map(str, known))}" if known else "this run keeps none"
            raise InputError("step", step, told)
        with RunDirectory.open(self.path, lock=False) as run:
            return run.read_samples(f"step-{wanted:06d}")

    def save(self, folder: str | Path) -> Path:
        """Copy what was learnt into a new folder, to be loaded from there by its path."""
        kept = self.path / self.learnt
        if not kept.is_dir():
            told = f"it has no {self.learnt} yet: let it end, with `anypolicy resume {self.path}`"
            raise InputError("run", str(self.path), told)
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError("folder", str(folder), "something is there: choose an empty or new one")
        with new_folder(folder.resolve()) as work:
            shutil.copytree(kept, work, dirs_exist_ok=True)
        return folder

    def push(self, name: str, *, private: bool = False) -> str:
        """Publish what was learnt on the Hugging Face hub, with a model card made of recipe, evaluation and verdict;
        its address. `name` is OWNER/NAME."""
        from anypolicy.families.publish import push

        return push(self.path, name, private=private)

    def last(self) -> str:
        """Where the run stands, in a few words."""
        evaluated = self.evaluations()
        if not evaluated:
            return "not evaluated yet"
        at, found = evaluated[-1], self.measured()
        told = [f"{k} {at[k]:.4g}" for k in found if k in at]
        return ", ".join([f"step {at['step']:,}", *told])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}: {self.last()})"

    def _repr_html_(self) -> str:
        """What notebooks show: where it stands, and its curve."""
        head = f"<b>{html.escape(self.path.name)}</b>: {html.escape(self.last())}"
        drawn = [c for c in self.curves() if len(c.steps) > 1]
        if not drawn:
            return head
        picture = io.BytesIO()
        save_curves(picture, drawn, y=drawn[0].name)
        return f"{head}<br>{picture.getvalue().decode().partition('?>')[2]}"
