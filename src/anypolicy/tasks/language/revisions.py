"""Answers that an expert has corrected sentence by sentence: what a report says, and files of them.

One object a line of a .jsonl file: `prompt`, perhaps `images`, `reference` (the data set's answer), `generated` (the
policy's own), perhaps `truncated` (it ended at the limit), and `report`, a list of {sentence, score, error, rewrite}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.tasks.language.base import Error, Revision, Task
from anypolicy.tasks.language.preferences import prompt, response
from anypolicy.tasks.language.recorded import RecordedTask, ids_of
from anypolicy.tasks.lines import json_lines
from anypolicy.tasks.split import split

ALIKE = 0.8
"""Least likeness (difflib's ratio) of a copied sentence and what stands in the answer."""
REPEATS = 30
"""Most often that the last word of a usable answer may stand in it."""


# --- reports ---------------------------------------------------------------------------------------------------------
def revised(report: Sequence[Revision]) -> str:
    """The corrected answer."""
    return "".join(r.rewrite for r in report)


def spaced(pieces: Sequence[str]) -> list[str]:
    """The same text with the space between two pieces at the beginning of the later one, as tokenizers have it."""
    out, kept = list[str](), ""
    for piece in pieces:
        bare = (kept + piece).rstrip() if piece else ""
        kept = (kept + piece)[len(bare) :]
        out.append(bare)
    if kept and any(out):
        last = max(i for i, piece in enumerate(out) if piece)
        out[last] += kept
    return out


def aligned(text: str, report: Sequence[Revision]) -> list[Revision]:
    """The report with the answer's own words in place of the expert's copies of them, which may differ in spaces or
    signs; sentences joined are then `text` to the character. A ValueError where a copy does not stand there."""
    copies = [r.sentence for r in report]
    if "".join(copies) == text:
        own, rewrites = spaced(copies), spaced([r.rewrite for r in report])
        return [r._replace(sentence=s, rewrite=w) for r, s, w in zip(report, own, rewrites, strict=True)]
    present = [i for i, copy in enumerate(copies) if copy.strip()]
    if not present:
        raise ValueError("it has no sentence of the generated answer")
    cuts = [0, *places(text, [copies[i].strip() for i in present])[1:], len(text)]
    own = dict(zip(present, (text[a:b] for a, b in pairwise(cuts)), strict=True))
    out, said = list[Revision](), False
    for i, r in enumerate(report):
        piece = own.get(i, "")
        if likeness(r.sentence, piece) < ALIKE:
            raise ValueError(f"sentence {i + 1}, {r.sentence!r}, does not stand there in the generated answer")
        lead = piece[: len(piece) - len(piece.lstrip())] or " "
        rewrite = (lead if said else "") + r.rewrite.strip() if r.rewrite.strip() else ""
        if piece and r.rewrite.strip() == r.sentence.strip():
            rewrite = piece if said else piece.lstrip()
        out.append(r._replace(sentence=piece, rewrite=rewrite))
        said = said or bool(rewrite)
    return out


def places(text: str, copies: Sequence[str]) -> list[int]:
    """Where the sentences begin in the text, the space before them included."""
    found, at = list[int](), 0
    for copy in copies:
        begin = text.find(copy, at)
        if begin < 0 or text[at:begin].strip():
            break
        found.append(at)
        at = begin + len(copy)
    if len(found) == len(copies) and not text[at:].strip():
        return found
    blocks = SequenceMatcher(None, " ".join(copies), text, autojunk=False).get_matching_blocks()
    starts, at = list[int](), 0
    for copy in copies:
        n = next(i for i, b in enumerate(blocks) if b.a + b.size > at or not b.size)
        before = blocks[n - 1].b + blocks[n - 1].size if n else 0
        begin = max(blocks[n].b + at - blocks[n].a, before)
        while begin > before and not text[begin - 1 : begin].isspace():
            begin -= 1
        starts.append(len(text[:begin].rstrip()))
        at += len(copy) + 1
    return starts


def likeness(a: str, b: str) -> float:
    """From 0 to 1, without regard to spaces; two empty ones are alike."""
    one, two = "".join(a.split()), "".join(b.split())
    return SequenceMatcher(None, one, two, autojunk=False).ratio() if one or two else 1.0


def unusable(generated: str, reference: str, report: Sequence[Revision] | None, *, words: bool) -> str | None:
    """Why an item teaches nothing; None if it does. `words`: it is text, in which a sentence that comes again or a word
    that comes too often is a loop. `report` None: nobody has written one yet."""
    said = [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n+", generated.strip()) if s.strip()]
    if not said:
        return "empty answer"
    if words and said[-1] in said[:-1]:
        return "repeated last sentence"
    if words and generated.split().count(generated.split()[-1]) > REPEATS:
        return f"last word more than {REPEATS} times"
    if generated.split() == reference.split():
        return "equal to the reference"
    if report is None:
        return None
    if not report or "".join(r.sentence for r in report) != generated:
        return "empty or invalid report"
    return None if revised(report).strip() else "empty revision"


# --- items -----------------------------------------------------------------------------------------------------------
def as_text(answer: str | Sequence[int]) -> str:
    """An answer as files have it: ids with spaces between them."""
    return answer if isinstance(answer, str) else " ".join(str(int(i)) for i in answer)


def with_report(p: Prompt, generated: str, report: Sequence[Revision], *, truncated: bool) -> Prompt:
    """A prompt that carries its generated answer and the report on it; reference and revision (scored 1) and generated
    answer (scored 0) are its recorded responses too, for methods that learn from those."""
    assert p.reference is not None
    texts = [t for t in dict.fromkeys((as_text(p.reference), revised(report), generated)) if t]
    kept = [t if p.tokens is None else tuple(int(word) for word in t.split()) for t in texts]
    scores = [float(t != generated) for t in texts]
    info = {"generated": generated, "report": list(report), "truncated": truncated, "responses": kept, "scores": scores}
    return replace(p, info=p.info | info)


def answers(p: Prompt) -> list[Prompt]:
    """The answers of an item that are to be learnt, one prompt each: reference and revision."""
    good = [a for a, score in zip(p.info["responses"], p.info["scores"], strict=True) if score]
    return [replace(p, id=f"{p.id}/{i}", reference=answer, info={}) for i, answer in enumerate(good)]


def to_row(p: Prompt, images: Sequence[str]) -> dict[str, Any]:
    """An item as a line of a file."""
    asked: Any = list(p.tokens) if p.tokens is not None else list(p.messages)
    report = [r._asdict() for r in p.info["report"]]
    shown = {"images": list(images)} if images else {}
    own = {"generated": p.info["generated"], "truncated": p.info["truncated"], "report": report}
    return {"id": p.id, "prompt": asked, **shown, "reference": as_text(p.reference or ""), **own}


# --- files -----------------------------------------------------------------------------------------------------------
def from_revisions(
    path: str, load: Callable[..., Task], seed: int = 0, *, use: Literal["items", "answers"] = "items", task: str = "",
    heldout: float = 0.1, max_tokens: int = 512,
) -> Task:  # fmt: skip
    """`items`: a prompt for every line (see `with_report`). `answers`: two prompts for every line, with the reference
    or the revision as reference response. `task` names the task that the items come from (`load` makes it): its
    held-out prompts, verifier, probes and policy are used and all lines are trained on; without it a share of the
    prompts is held out.
    """
    items = [item(path, where, row) for where, row in json_lines(path, "prompt, reference, generated and report")]
    kept = items if use == "items" else [a for p in items for a in answers(p)]
    if task:
        return Measured(path, kept, load(task, seed=seed))
    names = split(list(dict.fromkeys(name(p) for p in items)), str, heldout)
    train, held = ([p for p in kept if name(p) in side] for side in map(set[str], names))
    return RecordedTask(path, train, held, max_tokens, {"prompts": 16})


class Measured:
    """Prompts to train on, with the held-out prompts, the verifier, the probes and the policy of another task."""

    def __init__(self, path: str, train: list[Prompt], task: Task):
        self.name, self.train, self.heldout, self.max_tokens = path, train, task.heldout, task.max_tokens
        self.suggested: dict[str, Any] = getattr(task, "suggested", {})
        self.verifies, self.score = getattr(task, "verifies", True), task.score
        for further in ("score_many", "probe", "make_policy", "reads_thinking"):
            if hasattr(task, further):
                setattr(self, further, getattr(task, further))


def name(p: Prompt) -> str:
    """What stands on one side of the split: all items of a prompt and its images."""
    return p.id.partition("/")[0]


def item(path: str, where: str, row: dict[str, Any]) -> Prompt:
    """One checked line."""
    asked = prompt(path, where, row, "reference", "generated")
    reference, generated = (response(path, where, field, row) for field in ("reference", "generated"))
    for given in (reference, generated):
        ids_of(path, where, asked, given)
    why = unusable(generated, reference, None, words=False)
    report = [] if why else read_report(path, where, row, generated)
    if why := why or unusable(generated, reference, report, words=False):
        raise InputError(path, where, f"{why}: mend or remove the line")
    ids_of(path, where, asked, revised(report))
    if type(cut := row.get("truncated", False)) is not bool:
        raise InputError(path, where, f"'truncated' is {cut!r}: write true, false or leave it out")
    own = replace(asked, id=f"{asked.id}/{where}", reference=ids_of(path, where, asked, reference))
    return with_report(own, generated, report, truncated=cut)


def write_images(folder: Path, name: str, images: Sequence[np.ndarray]) -> list[str]:
    """Write a prompt's images into the folder; their file names."""
    names = list[str]()
    for i, image in enumerate(images):
        coloured = image.dtype == np.uint8 and image.ndim == 3
        names.append(f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}-{i}.{'png' if coloured else 'npy'}")
        if coloured:
            from PIL import Image

            Image.fromarray(image).save(folder / names[-1])
        else:
            np.save(folder / names[-1], image)
    return names


def read_report(path: str, where: str, row: dict[str, Any], generated: str) -> list[Revision]:
    """The checked report of a line, aligned with the answer."""
    given = row.get("report")
    if not isinstance(given, list) or not given:
        raise InputError(path, where, "it has no 'report' yet: let an expert write sentence, score, error and rewrite "
                         "of every sentence, or remove the line")  # fmt: skip
    report = [revision(path, f"{where}, sentence {i}", r) for i, r in enumerate(given, 1)]
    try:
        return aligned(generated, report)
    except ValueError as error:
        raise InputError(path, where, f"its report is invalid: {error}") from error


def revision(path: str, where: str, given: Any) -> Revision:
    """One sentence of a report. `rewrite` null keeps it; a `score` of null counts as 4, an `error` of null as none."""
    if not isinstance(given, dict) or "score" not in given:
        raise InputError(path, where, "write an object with sentence, score (1 to 4, or null), error and rewrite")
    sentence, rewrite, score, error = (given.get(k) for k in ("sentence", "rewrite", "score", "error"))
    if not isinstance(sentence, str) or not isinstance(rewrite, str | None):
        raise InputError(path, where, "'sentence' and 'rewrite' must be text (a rewrite of null keeps the sentence)")
    if score is not None and (type(score) is not int or not 1 <= score <= 4):
        raise InputError(path, where, f"'score' is {score!r}: write 1 (wrong) to 4 (right), or null")
    if error is not None and error not in get_args(Error):
        kinds = get_args(Error)
        raise InputError(path, where, f"'error' is {error!r}: write {', '.join(kinds)} or null", choices=kinds)
    return Revision(sentence, score or 4, error or "correct", sentence if rewrite is None else rewrite)
