"""Exact problems from the command line and from Python: build, solve, write what was found."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anypolicy import catalogue
from anypolicy.compose import build
from anypolicy.errors import checked
from anypolicy.evidence.plots import draw
from anypolicy.evidence.report import Block, Figure, Table, Text, write_report
from anypolicy.parts.reports import Report, Solution
from anypolicy.runs.files import check_unused, disk_errors, write_text
from anypolicy.runs.strict_json import json_text
from anypolicy.version import __version__

COLUMNS = ("quantity", "value", "kind", "interval", "assumptions", "source")


@checked
def solve(method: str, *, out: Path | None = None, **settings: Any) -> Solution:
    """Solve a problem by a catalogued method and, with `out`, write solution.json and report.html there."""
    m = catalogue.get(method, "exact")
    if out is not None:
        check_unused(out, folder=True)
    found: Solution = build(m, settings)
    if out is not None:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        given = {k: settings.get(k, p.default) for k, p in m.knobs.items()} | dict(found.settings)
        write_solution(out, method, m.card.title, given, found)
    return found


def write_solution(out: Path, method: str, title: str, settings: dict[str, Any], found: Solution) -> None:
    """The numbers as JSON and a page with charts."""
    record = {"method": method, "version": __version__, **asdict(found), "settings": settings}
    write_text(out / "solution.json", json_text(record, indent=1, default=str) + "\n")
    blocks: list[Block] = [
        Text([", ".join(f"{k}: {cell(v)}" for k, v in settings.items() if v not in (None, "")) or "no settings"]),
        Table("Found", COLUMNS, [row(r) for r in found.reports]),
        *(Figure(c.title, draw(c)) for c in found.charts),
        *(Table(name, list(rows[0]), [[cell(v) for v in r.values()] for r in rows])
          for name, rows in found.tables.items() if rows),
    ]  # fmt: skip
    write_report(out / "report.html", f"{method}: {title}", blocks)


def row(r: Report) -> list[str]:
    """A report as cells in the order of `COLUMNS`."""
    held = {True: "holds", False: "FAILS", None: "not checked"}
    rests = "; ".join(f"{a.name}: {held[a.holds]}" + (f" ({a.why})" if a.why else "") for a in r.assumptions)
    span = f"[{r.interval[0]:.4g}, {r.interval[1]:.4g}]" if r.interval else ""
    return [r.quantity, cell(r.value), r.kind + (" (void)" if r.failed and r.kind == "bound" else ""), span, rests,
            "; ".join(x for x in (r.source, r.note) if x)]  # fmt: skip


def cell(value: object) -> str:
    """Numbers with five digits (a dash for one that is not finite), all else as text."""
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else "—"
    return str(value)
