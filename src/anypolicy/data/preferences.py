"""Pairs of responses of which one is preferred."""

from __future__ import annotations

from dataclasses import dataclass

from anypolicy.data.records import Prompt


@dataclass(frozen=True, slots=True)
class Preference:
    """Two responses to one prompt; `margin` says by how much the chosen one is better, where the data know it."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
