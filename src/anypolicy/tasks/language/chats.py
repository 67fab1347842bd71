"""Logs of chats: conversations in which some messages of the user say that the answer before them was bad, or good.

One object a line of a .jsonl file, {"conversation": [{"role", "content", perhaps "satisfied": true or false}, …]}. The
mark stands on the user's message; what it is about is the assistant's message before it. Unmarked messages say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.tasks.language.pictures import FIELDS
from anypolicy.tasks.language.preferences import check_spoken, message, name_of
from anypolicy.tasks.language.recorded import RecordedTask, parted, record
from anypolicy.tasks.lines import json_lines

Turns = list[dict[str, Any]]


def from_chats(
    path: str, *, use: Literal["dissatisfied", "pairs"] = "dissatisfied", heldout: float = 0.1, max_tokens: int = 512
) -> RecordedTask:
    """`dissatisfied`: a prompt for every answer that dissatisfied its user. It has that answer as its only recorded
    response, scored 0, and the user's message as `feedback`.

    `pairs`: those of them whose next answer satisfied the user, with that one as chosen and reference response.
    """
    wanted, found = "a conversation", list[Prompt]()
    for where, row in json_lines(path, wanted):
        if any(row.get(f) for f in FIELDS):
            raise InputError(path, where, "a logged conversation is read as text alone: leave its images out")
        found += items(path, where, turns(path, where, row.get("conversation")), use == "pairs")
    if not found:
        kind = '"satisfied": false' if use == "dissatisfied" else "a dissatisfied message and then a satisfied one"
        raise InputError("task", path, f"no conversation has {kind}: mark the user's messages")
    return parted(path, found, heldout, max_tokens)


def turns(path: str, where: str, given: Any) -> Turns:
    """The checked messages of one line."""
    if not isinstance(given, list) or not given or not all(message(m) for m in given):
        raise InputError(path, where, "'conversation' must be a list of messages with role and content")
    for i, m in enumerate(given):
        check_spoken(path, f"{where}, message {i}", m)
        mark = m.get("satisfied")
        if mark is None:
            continue
        if type(mark) is not bool:
            raise InputError(
                path, f"{where}, message {i}", f"'satisfied' is {mark!r}: write true, false or leave it out"
            )
        if m["role"] != "user" or i < 2 or given[i - 1]["role"] != "assistant" or given[i - 2]["role"] != "user":
            raise InputError(
                path,
                f"{where}, message {i}",
                "'satisfied' belongs to a user's message after an answer to a user's",
            )
        for k, what in ((i - 1, "answer"), (i, "message of the user")):
            if not given[k]["content"].strip():
                raise InputError(path, f"{where}, message {k}", f"the {what} is empty: remove the mark after it")
    return given


def items(path: str, where: str, given: Turns, pairs: bool) -> Iterator[Prompt]:
    """What one conversation gives. All of it is on one side of the split, by its beginning."""
    plain: Turns = [{"role": m["role"], "content": m["content"]} for m in given]
    for i, m in enumerate(given):
        if m.get("satisfied") is not False:
            continue
        name = name_of(plain[:1])
        own = Prompt(name, tuple(plain[: i - 1]))
        rejected, place, more = plain[i - 1]["content"], f"{where}, message {i - 1}", {"feedback": plain[i]["content"]}
        if not pairs:
            yield record(own, place, [rejected], [0.0], None, **more)
        elif i + 2 < len(given) and given[i + 2].get("satisfied") is True:
            chosen = plain[i + 1]["content"]
            if chosen.rstrip() == rejected.rstrip():
                raise InputError(path, place, "the answer that satisfied is the one that did not: remove a mark")
            yield record(own, place, [chosen, rejected], [1.0, 0.0], chosen, **more)
