"""JSON as the standard has it: no NaN, no Infinity. The one place where values become JSON text.

A number that is not finite is nothing to report: it is written as null and read as missing. State is another matter,
since a resumed run must go on from the same bits: there it is {"not finite": "inf"}, and comes back as it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from anypolicy.data.readers import parsed

MARK = "not finite"


def json_text(value: object, *, exact: bool = False, **options: Any) -> str:
    """JSON text of plain values; `exact` keeps numbers that are not finite, else they become null. `options` are those
    of `json.dumps`."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        stand_in: Callable[[float], object] = marked if exact else lambda _: None
        return json.dumps(replaced(value, stand_in), allow_nan=False, **options)


def json_value(text: str | bytes) -> Any:
    """The inverse of `json_text`. NaN and Infinity, which older versions wrote, are read too. A ValueError where it is
    no JSON."""
    return parsed(text, unmarked)


def marked(x: float) -> dict[str, str]:
    """A number that is not finite as an object."""
    return {MARK: str(float(x))}


def unmarked(value: dict[str, Any]) -> Any:
    """The inverse of `marked`; all other objects as they are."""
    return float(value[MARK]) if value.keys() == {MARK} and value[MARK] in ("nan", "inf", "-inf") else value


def replaced(value: Any, stand_in: Callable[[float], object]) -> Any:
    """The value with something else for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else stand_in(value)
    if isinstance(value, dict):
        return {k: replaced(v, stand_in) for k, v in value.items()}
    return [replaced(v, stand_in) for v in value] if isinstance(value, list | tuple) else value
