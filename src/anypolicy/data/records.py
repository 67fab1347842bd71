"""What a language policy experiences: prompts, segments, trajectories and groups.

Tokens in, tokens out: a response is kept as the ids that were sampled, with the log-probability under the behaviour
policy, the policy version and the trainable mask of every token. Text is never encoded again into training ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anypolicy.data.media import Media, content
from anypolicy.errors import InputError

Tokens = NDArray[np.int64]
Stop = Literal["eos", "stop", "length", "error"]
BESIDE = (
    "tool_calls",
    "function_call",
    "image",
    "images",
    "audio",
    "video",
    "reasoning_content",
    "reasoning",
    "thinking",
)
"""Fields of a message that say something beside its content."""
LARGEST = 1e18
"""Of a reward or a score: its square is a float32 too."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem. `messages` (chat) or `tokens` (already ids) say what the policy sees; `answer` is the label and
    `reference` a response to imitate or to compare with, as text or as response ids. `media` holds what is shown beside
    the text: `images`, a sequence of uint8 arrays (height, width, 3). A policy reads the last `keep` tokens of the
    text (None: all)."""

    id: str
    messages: tuple[dict[str, Any], ...] = ()
    tokens: tuple[int, ...] | None = None
    media: dict[str, Any] = field(default_factory=dict)
    answer: Any = None
    info: dict[str, Any] = field(default_factory=dict)
    reference: str | tuple[int, ...] | None = None
    keep: int | None = None

    def without_label(self) -> Prompt:
        """The prompt as a label-free method may see it."""
        return replace(self, answer=None, info={}, reference=None)


def said_beside(message: dict[str, Any]) -> list[str]:
    """The fields of a message that say something beside its content."""
    return [name for name in BESIDE if message.get(name) not in (None, "", [], {})]


@dataclass(slots=True)
class Segment:
    """Context ids and the response ids that followed, with per-token provenance.

    `logp` is in nats under the sampling temperature; `mask` is True where the policy chose the token (a forced or a
    tool's token is False); `version` counts optimiser steps at sampling time, −1 for a token that no policy of this run
    sampled: a forced one (mask True where its behaviour probability is known), or one written before the run (logp NaN
    where nobody knows it). `training_context` replaces `context` in the update where a method samples under one context
    and trains under another. `entropy` is that of the distribution each token was drawn from, if recorded. `end` says
    how many response tokens are the answer, where a policy of fixed length fills up what follows (None: all are).
    `media` are the processor's outputs for what the context shows. `token_weight` is how much each token counts, for
    losses that ask (None: all alike).
    """

    context: Tokens
    response: Tokens
    logp: NDArray[np.float32]
    mask: NDArray[np.bool_]
    version: NDArray[np.int64]
    training_context: Tokens | None = None
    media: dict[str, Any] = field(default_factory=dict)
    entropy: NDArray[np.float32] | None = None
    end: int | None = None
    token_weight: NDArray[np.float32] | None = None

    @property
    def answer(self) -> Tokens:
        """The response without what fills it up."""
        return self.response[: self.end]


@dataclass(slots=True)
class Trajectory:
    """One sample with one return: a single segment for a plain answer, several for turns or sub-problems.

    `reward` is the total of the named `rewards`; `correct` is the verifier's verdict and is kept apart from it (None:
    unknown). `spans` are (first, last + 1, name) token ranges of turns or steps, counted over the joined responses;
    `parent` and `branch` (token index) say where a trajectory forked from another.

    A `target` is there to be imitated, not sampled for the group: it has no reward, is in no group statistic, no
    reward stage sees it, and the masks of its segments say which tokens a supervised term may use.

    `info["generated"]` counts tokens that were sampled beside those of the segments: for a target alone, or in a search
    (below 0 where segments of the group's prompt show a token twice); `info["visits"]` says how often a search took it;
    `info["outline"]` is text that shows how it was found; `info["kind"]` is a number that says which of the group's
    answers it is, where a method tells them apart; `info["unscored"]` says why the verifier gave no score.
    """

    id: str
    segments: list[Segment]
    reward: float = float("nan")
    rewards: dict[str, float] = field(default_factory=dict)
    correct: bool | None = None
    stop: Stop = "eos"
    spans: tuple[tuple[int, int, str], ...] = ()
    parent: str | None = None
    branch: int | None = None
    info: dict[str, Any] = field(default_factory=dict)
    target: bool = False

    @property
    def length(self) -> int:
        """Number of tokens the policy chose."""
        return int(sum(s.mask.sum() for s in self.segments))

    @property
    def response(self) -> Tokens:
        """The answers of all segments, joined."""
        return np.concatenate([s.answer for s in self.segments])


@dataclass(slots=True)
class Group:
    """The trajectories of one (prompt, stage): what group statistics run over. May be ragged.

    `position` is the prompt's place in the training split, by which samplers keep their books.
    """

    id: str
    prompt: Prompt
    trajectories: list[Trajectory]
    stage: str = "direct"
    position: int = -1

    @property
    def targets(self) -> list[Trajectory]:
        """The trajectories to imitate."""
        return [t for t in self.trajectories if t.target]

    def sampled(self) -> Group:
        """The group as rewards and statistics see it, without targets; the trajectories themselves are shared."""
        return replace(self, trajectories=[t for t in self.trajectories if not t.target]) if self.targets else self


def to_json(group: Group, media: Media | None = None) -> dict[str, Any]:
    """A scored group as plain JSON values, its prompt by name only. What its segments show must be `media`, that of the
    prompt; it is not written again."""
    own_media = content(media or {})

    def segment(s: Segment) -> dict[str, Any]:
        if s.media and content(s.media) != own_media:
            raise InputError("media", group.prompt.id, "a segment that shows other images than its prompt's cannot be "
                             "kept for a later step: use a selection that carries no groups")  # fmt: skip
        return fields(s) | {"media": bool(s.media)}

    def plain(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return x.tolist()
        if isinstance(x, dict):
            return {k: plain(v) for k, v in x.items()}
        return [plain(v) for v in x] if isinstance(x, list | tuple) else x

    def fields(x: Any) -> dict[str, Any]:
        return {name: plain(getattr(x, name)) for name in x.__slots__ if name not in ("media", "segments")}

    trajectories = [{**fields(t), "segments": [segment(s) for s in t.segments]} for t in group.trajectories]
    own = {"id": group.id, "stage": group.stage, "position": group.position, "prompt": group.prompt.id}
    return own | {"trajectories": trajectories}


def from_json(value: dict[str, Any], prompt: Prompt, media: Media | None = None) -> Group:
    """The inverse of `to_json`, bit for bit, given the prompt of that name and what the policy makes of its images."""

    def segment(s: dict[str, Any]) -> Segment:
        train, entropy, weight = s["training_context"], s.get("entropy"), s.get("token_weight")
        return Segment(
            np.array(s["context"], np.int64), np.array(s["response"], np.int64), np.array(s["logp"], np.float32),
            np.array(s["mask"], np.bool_), np.array(s["version"], np.int64),
            None if train is None else np.array(train, np.int64), media if s["media"] and media else {},
            None if entropy is None else np.array(entropy, np.float32), s.get("end"),
            None if weight is None else np.array(weight, np.float32),
        )  # fmt: skip

    def trajectory(t: dict[str, Any]) -> Trajectory:
        own: dict[str, Any] = dict(t)
        own["spans"] = tuple((a, b, name) for a, b, name in t["spans"])
        own["segments"] = [segment(s) for s in t["segments"]]
        return Trajectory(**own)

    trajectories = [trajectory(t) for t in value["trajectories"]]
    return Group(value["id"], prompt, trajectories, value["stage"], value["position"])
