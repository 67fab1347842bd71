"""What runs in the scorers' process for answers that a regular expression describes."""

from __future__ import annotations

import re
from collections.abc import Callable


def make() -> Callable[[str, str], bool]:
    """Whether the whole response, stripped, matches the expression; some take for ever on some responses."""
    return lambda response, answer: re.fullmatch(answer, response.strip(), re.DOTALL) is not None
