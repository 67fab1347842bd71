"""What a task with verifiable prompts gives. A protocol: it carries no code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from anypolicy.data.records import Prompt, Tokens
from anypolicy.policies.language.base import Policy


class Score(NamedTuple):
    """A verifier's verdict on one response: the reward and, apart from it, whether the answer is correct; and why it
    was not scored, where it was not: it must not be read (refused), time was up (timeout), its process died (ended).
    `rewards` are the user's own by name, where these make the reward."""

    reward: float
    correct: bool | None
    unscored: Literal["", "refused", "timeout", "ended"] = ""
    rewards: dict[str, float] | None = None

    @property
    def note(self) -> dict[str, str]:
        """What a trajectory's `info` says of a response that was not scored."""
        return {"unscored": self.unscored} if self.unscored else {}


class Task(Protocol):
    """Prompts in two disjoint splits and the verifier. `max_tokens` is the response limit that fits the task. One whose
    verifier knows where a response stops thinking says `reads_thinking = True` and is given whole responses."""

    @property
    def name(self) -> str: ...

    @property
    def train(self) -> Sequence[Prompt]: ...

    @property
    def heldout(self) -> Sequence[Prompt]: ...

    @property
    def max_tokens(self) -> int: ...

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        """Verify one response, given as sampled ids and as decoded text."""
        ...


def reads_thinking(task: Task) -> bool:
    """Whether the verifier is to see what a response thinks, too."""
    return bool(getattr(task, "reads_thinking", False))


@runtime_checkable
class ScoresMany(Protocol):
    """A task that verifies many responses faster together than one after the other."""

    def score_many(self, responses: Sequence[tuple[Prompt, Tokens, str]]) -> list[Score]: ...


@runtime_checkable
class MakesPolicy(Protocol):
    """A task that brings the policy to start from (a table, a transformer of its own vocabulary)."""

    def make_policy(self, seed: int) -> Policy: ...


@runtime_checkable
class Reasks(Protocol):
    """A task that can word a prompt again for a fallback stage of a rollout. Tasks of token ids need it."""

    def reask(self, prompt: Prompt, stage: str, wrong: Tokens | None, examples: Sequence[tuple[str, str]]) -> Prompt:
        """The prompt as the stage asks it, with a wrong response to correct (or none) and solved examples."""
        ...


@runtime_checkable
class ShowsFeedback(Protocol):
    """A task of token ids that can show the policy what was wrong with a response."""

    def feedback_shown(self, prompt: Prompt, wrong: Tokens) -> Prompt:
        """The prompt with a wrong response and what helps to mend it in sight."""
        ...


@runtime_checkable
class ShowsAnswers(Protocol):
    """A task of token ids that can show a prompt's known answer to the policy and end a response with it."""

    def answer_shown(self, prompt: Prompt) -> Prompt:
        """The prompt with its answer in sight."""
        ...

    def ended_by_answer(self, prompt: Prompt, response: Tokens) -> Tokens:
        """What a response says before its own answer, then the known answer and the stop token; empty if it says
        nothing."""
        ...


Error = Literal["correct", "image_recognition_error", "language_comprehension_error"]


class Revision(NamedTuple):
    """An expert's word on one sentence of a response: a score from 1 (wrong) to 4 (right), what is wrong with it, and
    the sentence as it should be. A sentence that should not be there has rewrite ""; one that was added is ""."""

    sentence: str
    score: int
    error: Error
    rewrite: str


@runtime_checkable
class Revises(Protocol):
    """A task that can play the expert who corrects a response as little as possible."""

    def revise(self, prompt: Prompt, response: str) -> list[Revision]:
        """The response sentence by sentence: the sentences joined are the response to the character, the rewrites
        joined are the corrected response. None for an empty response; a right one comes back as it was."""
        ...


@runtime_checkable
class Probes(Protocol):
    """A task that can measure a policy beyond sampled answers, e.g. its exact success probability."""

    def probe(self, policy: Policy) -> dict[str, float]: ...
