"""The catalogue as people read it: a list of methods, and one method whole."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from anypolicy import catalogue
from anypolicy.errors import checked
from anypolicy.evidence.claims import verdict_of
from anypolicy.knobs import said


def listing() -> list[dict[str, Any]]:
    """The catalogue as plain values: one object a method."""
    out = []
    for slug, m in catalogue.methods(None).items():
        card = {k: v for k, v in asdict(m.card).items() if k not in ("conflicts", "no_signal")}
        conflicts = {f"{own} × {other}": why for (own, other), why in m.card.conflicts.items()}
        knobs = {k: p.default for k, p in m.knobs.items()}
        out.append({"slug": slug, **card, "conflicts": conflicts, "settings": knobs})
    return out


def measured(slug: str) -> str:
    """The verdict on a method's claim, one line, where one is known."""
    known = verdict_of(slug)
    return f"verdict: {known['verdict']} over {known['seeds']} seeds. {known['note']}\n" if known else ""


def tried(card: catalogue.Card) -> str:
    """The method's example, where it has one."""
    return f"try: {card.example}\n     ({card.look_at})\n" if card.example else ""


@checked
def show(slug: str) -> str:
    """A method: its card, its settings and its whole file."""
    m = catalogue.get(slug, None)
    said_of = m.meanings
    knobs = "\n".join(
        f"  --{slug}.{k.replace('_', '-')}  {said(said_of.get(k), p.default)}" for k, p in m.knobs.items()
    )
    changes = ", ".join(m.card.changes) or "no stage of another: it stands alone"
    return (
        f"{slug}: {m.card.title} ({m.card.paper}, {m.card.year})\n{m.card.idea}\n\n"
        f"changes: {changes}\ncomposes with: {m.card.composes_with}\n"
        f"claim: {m.card.claim}\n{measured(slug)}{tried(m.card)}settings:\n{knobs}\n\n{m.source}"
    )
