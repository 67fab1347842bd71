"""The one place where a task's verifier is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import outliving
from anypolicy.tasks.language.base import Score, ScoresMany, Task


def verify(task: Task, responses: Sequence[tuple[Prompt, Tokens, str]]) -> list[Score]:
    """The task's scores of (prompt, ids, text), all at once where it can."""
    many = isinstance(task, ScoresMany)
    with outliving("verifier"):
        given: Any = task.score_many(responses) if many else [task.score(*response) for response in responses]
    return [s if isinstance(s, Score) else Score(s.reward, s.correct) for s in given]  # a user's own kind of score


def verifies(task: Task) -> bool:
    """Whether the task knows right responses from wrong ones; one that has only references says `verifies = False`."""
    return bool(getattr(task, "verifies", True))
