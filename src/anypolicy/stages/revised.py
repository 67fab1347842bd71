"""An answer of the policy beside its revision by an expert: as token ids with the sentence each belongs to, and as a
rollout of both and the reference answer, under the prompt's images and under masked copies of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anypolicy.data.batch import Batch
from anypolicy.data.media import Media
from anypolicy.data.records import Group, Prompt, Tokens, Trajectory
from anypolicy.engines.base import ask
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy, media_of
from anypolicy.runs.seeds import generator
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.recipe import World
from anypolicy.stages.recorded import recorded, written_before
from anypolicy.tasks.language.base import Revises, Revision, Task
from anypolicy.tasks.language.revisions import aligned, as_text, unusable, with_report

Sentences = Int[np.ndarray, " tokens"]
"""The sentence of every token, as its place in the report; an end token belongs to the last one."""


class Kind(IntEnum):
    """The answers of an item."""

    REFERENCE = 0
    GENERATED = 1
    REVISED = 2
    MASKED_REFERENCE = 3
    MASKED_REVISED = 4


# --- ids -------------------------------------------------------------------------------------------------------------
class Revised(NamedTuple):
    """One item: the reference answer, the generated one and its revision, all as ids."""

    reference: Tokens
    generated: Tokens
    generated_sentence: Sentences
    revision: Tokens
    revision_sentence: Sentences
    report: list[Revision]


def reported(task: Task, prompt: Prompt) -> tuple[list[Revision], bool]:
    """The report on the prompt's generated answer, and whether that one ended at the limit. Where the data have none,
    but recorded responses, a task that can play the expert reports on the one with the lowest score."""
    if "report" in prompt.info:
        return prompt.info["report"], bool(prompt.info.get("truncated", False))
    if not isinstance(task, Revises) or "responses" not in prompt.info:
        raise InputError("task", prompt.id, "this prompt has no answer with an expert's report on it: a row needs "
                         "'reference', 'generated' and 'report', as `anypolicy revise` writes them")  # fmt: skip
    given, _ = min(recorded(prompt), key=lambda r: r[1])
    text = given if isinstance(given, str) else " ".join(map(str, given))
    return task.revise(prompt, text), False


def revised_item(policy: Policy, task: Task, prompt: Prompt) -> Revised:
    """The prompt's item as ids of this policy."""
    if prompt.reference is None:
        raise InputError("task", task.name, f"prompt {prompt.id!r} has no reference response: give it a 'reference'")
    report, truncated = reported(task, prompt)
    generated, of_generated = joined(policy, prompt, [r.sentence for r in report], ends=not truncated)
    revision, of_revision = joined(policy, prompt, [r.rewrite for r in report], ends=True)
    return Revised(policy.encode_reference(prompt), generated, of_generated, revision, of_revision, report)


def joined(policy: Policy, prompt: Prompt, pieces: Sequence[str], *, ends: bool) -> tuple[Tokens, Sentences]:
    """The ids of sentences that were encoded one by one, so that a sentence which stands in two answers has the same
    ids in both, and the sentence of every id. A text that begins with a space is encoded without it by tokenizers that
    put one before every text. An end token follows where the answer `ends`."""
    ids, text, sentence = list[int](), "", list[int]()
    for k, piece in enumerate(pieces):
        own, bare = piece_ids(policy, prompt, piece), piece.lstrip(" ")
        text += piece
        if bare and bare != piece and ids and prompt.tokens is None and said(policy, ids + own) != text:
            without = piece_ids(policy, prompt, bare)
            own = without if said(policy, ids + without) == text else own
        ids += own
        sentence += [k] * len(own)
    if not ids:
        raise InputError("responses", text, f"an answer to prompt {prompt.id!r} is empty: remove the item")
    whole = policy.encode_reference(replace(prompt, reference=tuple(ids)))
    whole = whole if ends else whole[: len(ids)]
    return whole, np.array(sentence + sentence[-1:] * (len(whole) - len(ids)), np.int64)


def piece_ids(policy: Policy, prompt: Prompt, piece: str) -> list[int]:
    """The ids of a text alone, without an end token; numbers with spaces between them where the prompt is ids."""
    if not piece.strip():
        return []
    if prompt.tokens is not None:
        return [int(word) for word in piece.split()]
    ids = policy.encode_reference(replace(prompt, reference=piece)).tolist()
    return ids[:-1] if ids[-1] in policy.stop_ids else ids


def said(policy: Policy, ids: list[int]) -> str:
    return policy.decode(np.array(ids, np.int64))


# --- made of the policy's own answers --------------------------------------------------------------------------------
def generated_items(world: World, prompts: Sequence[Prompt], *, expert: bool = True) -> list[Prompt | str]:
    """One answer of the policy to every prompt with its report by the task (an empty one without `expert`), or why the
    item teaches nothing."""
    if missing := [p.id for p in prompts if p.reference is None]:
        raise InputError("task", missing[0], "this prompt has no reference answer: give one to each")
    out = list[Prompt | str]()
    requests = [ask(world.policy, p) for p in prompts]
    answers = world.engine.generate(requests, world.sampling, generator(world.seed, "revise", prompts[0].id))
    for prompt, [(segment, stop)] in zip(prompts, answers, strict=True):
        answer, reference = world.policy.decode(segment.answer), as_text(prompt.reference or "")
        report = world.task.revise(prompt, answer) if expert and isinstance(world.task, Revises) else None
        why = unusable(answer, reference, report, words=prompt.tokens is None)
        cut = stop == "length" and bool(world.policy.stop_ids)
        out.append(why or with_report(prompt, answer, aligned(answer, report) if report else [], truncated=cut))
    return out


# --- rollout ---------------------------------------------------------------------------------------------------------
def language_weight(r: Revision, weights: Sequence[float]) -> float:
    """That of the sentence's score, 1 to 4; 1 for one that the expert added or did not score."""
    return weights[r.score - 1] if r.sentence and 1 <= r.score <= len(weights) else 1.0


def image_weight(r: Revision, weight: float) -> float:
    """`weight` where the image was misread, else 1."""
    return weight if r.error == "image_recognition_error" else 1.0


def masked(x: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """⌊ratio · pixels⌋ pixels of every image, drawn uniformly, set to its mean in all channels. The last two dimensions
    are height and width, the one before them channels, those before count images."""
    whole = x.reshape(-1, *(1,) * max(3 - x.dim(), 0), *x.shape[-3:]).flatten(-2)
    pixels = whole.shape[-1]
    drawn = torch.rand(len(whole), pixels, generator=generator).argsort(1)[:, : int(ratio * pixels)]
    hidden = torch.zeros(len(whole), pixels, dtype=torch.bool).scatter_(1, drawn, True)
    return torch.where(hidden[:, None], whole.mean((1, 2), keepdim=True), whole).reshape(x.shape)


@dataclass(frozen=True)
class RevisedRollout:
    """Reference and revised answer, scored 1, and the generated one, scored 0, under the prompt; where it shows images,
    the first two also under one masked copy of these, drawn anew at every visit, without a score. Tokens weigh by their
    sentence's score, those of the masked revision by its kind of error."""

    needs, gives = Needs(), Gives(behaviour=False, kinds=True, reaches_limit=False)
    language: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    image: float = 1.0
    mask_ratio: float = 0.3
    group_size: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.mask_ratio <= 1:
            raise InputError("mask_ratio", self.mask_ratio, "use a share of the pixels, from 0 to 1")
        if self.group_size != 3:
            raise InputError("group_size", self.group_size, "an item has three answers: leave it out")

    def check_task(self, task: Task) -> None:
        for prompt in task.train:
            reported(task, prompt)

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        return [self.group(world, p, generator) for p in prompts]

    def group(self, world: World, prompt: Prompt, generator: torch.Generator) -> Group:
        """The answers of one item."""
        policy, item = world.policy, revised_item(world.policy, world.task, prompt)
        context, media = policy.encode(prompt), media_of(policy, prompt)
        language = np.array([language_weight(r, self.language) for r in item.report], np.float32)
        image = np.array([image_weight(r, self.image) for r in item.report], np.float32)

        def row(kind: Kind, score: float, ids: Tokens, shown: Media, weight: np.ndarray | None = None) -> Trajectory:
            segment = replace(written_before(context, ids, shown), token_weight=weight)
            return Trajectory("", [segment], info={"score": score, "kind": int(kind)})

        rows = [
            row(Kind.REFERENCE, 1.0, item.reference, media),
            row(Kind.GENERATED, 0.0, item.generated, media, language[item.generated_sentence]),
            row(Kind.REVISED, 1.0, item.revision, media, language[item.revision_sentence]),
        ]
        if media:
            hidden = {
                k: masked(x, self.mask_ratio, generator) if x.is_floating_point() else x for k, x in media.items()
            }
            rows.append(row(Kind.MASKED_REFERENCE, math.nan, item.reference, hidden))
            rows.append(row(Kind.MASKED_REVISED, math.nan, item.revision, hidden, image[item.revision_sentence]))
        return Group(prompt.id, prompt, rows)


def by_kind(x: Tensor, batch: Batch, absent: float = 0) -> Float[Tensor, "kinds items ..."]:
    """Rows of x in the place of their kind and item, `absent` where there is none; items are the groups of the batch in
    their order."""
    assert batch.kind is not None
    kind = batch.kind[batch.trajectory]
    items, index = torch.unique(batch.group_id[batch.trajectory], return_inverse=True)
    here = kind >= 0
    out = x.new_full((len(Kind), len(items), *x.shape[1:]), absent)
    return out.index_put((kind[here], index[here]), x[here])
