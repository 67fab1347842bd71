"""The loop of a reward model: pairs in, one optimiser step out."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.data.preferences import Preference
from anypolicy.errors import InputError
from anypolicy.optimisers.updater import Updater
from anypolicy.policies.language.reward_model import Calibration, RewardModel
from anypolicy.policies.language.text import beginning
from anypolicy.runs.metrics import wilson
from anypolicy.stages.common import EpochOrder
from anypolicy.stages.lengths import Long
from anypolicy.stages.recipe import Optimiser


class PairLoss(Protocol):
    @property
    def needs_margin(self) -> bool: ...

    def __call__(
        self, chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"], margin: Float[Tensor, " pairs"]
    ) -> dict[str, Float[Tensor, " pairs"]]:
        """Named terms of every pair; the loop takes the mean over the pairs of a step and their sum."""
        ...


@dataclass(frozen=True)
class PreferenceRecipe:
    """A complete method for reward models: the loss of a pair, pairs in a step, and how they become updates."""

    loss: PairLoss
    pairs: int = 64
    optimiser: Optimiser = field(default_factory=Optimiser)


class PreferenceLoop:
    """`step()` is one optimiser step on the next pairs of a shuffled epoch; `state()` is all it remembers."""

    def __init__(self, recipe: PreferenceRecipe, model: RewardModel, pairs: Sequence[Preference], seed: int):
        if recipe.loss.needs_margin and any(p.margin is None for p in pairs):
            raise InputError("pairs", "a pair without margin", "this loss needs a 'margin' in every line")
        self.recipe, self.model, self.pairs = recipe, model, pairs
        self.order = EpochOrder(len(pairs), seed)
        self.updater = Updater(recipe.optimiser, {"policy": (model.module.parameters(), recipe.optimiser.lr)})
        self.encoded: dict[int, tuple[list[int], list[int]]] = {}

    def tokens(self, i: int) -> tuple[list[int], list[int]]:
        """(chosen, rejected) ids of a pair."""
        if i not in self.encoded:
            self.encoded[i] = encode(self.model, self.pairs[i])
        return self.encoded[i]

    def step(self) -> dict[str, float]:
        drawn = self.order.draw(self.recipe.pairs, self.updater.updates, 0)
        longest = max(len(ids) for i in drawn for ids in self.tokens(i))
        size = max(self.model.micro_tokens // (2 * longest), 1)
        log = defaultdict[str, float](float)
        for start in range(0, len(drawn), size):
            part = drawn[start : start + size]
            score = self.model.score([ids for i in part for ids in self.tokens(i)]).view(-1, 2)
            margin = score.new_tensor([self.pairs[i].margin or 0.0 for i in part])
            terms = {k: v.sum() / len(drawn) for k, v in self.recipe.loss(score[:, 0], score[:, 1], margin).items()}
            torch.stack(list(terms.values())).sum().backward()
            self.updater.accumulate()
            gap = (score[:, 0] - score[:, 1]).detach()
            log["pairs/accuracy"] += float((gap > 0).sum()) / len(drawn)
            log["pairs/margin"] += float(gap.sum()) / len(drawn)
            for name, value in terms.items():
                log[f"loss/{name}"] += float(value.detach())
        return {**log, **self.updater.step(), **self.order.metrics()}

    def state(self) -> dict[str, Any]:
        return {"updates": self.updater.updates, "order": self.order.state()}

    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.order.restore(state["order"])
        self.updater.restore(tensors, state["updates"])


def encode(model: RewardModel, pair: Preference) -> tuple[list[int], list[int]]:
    """Ids of prompt + chosen and of prompt + rejected; of a prompt that may be cut the last `keep` of them."""
    first = -pair.prompt.keep if pair.prompt.keep else None
    return model.encode(pair.prompt, pair.chosen)[first:], model.encode(pair.prompt, pair.rejected)[first:]


def told_apart(model: RewardModel, pair: Preference) -> tuple[list[int], list[int]]:
    """`encode`, refused where both are the same to the model."""
    chosen, rejected = encode(model, pair)
    if chosen == rejected:
        raise InputError(
            "pairs", beginning(pair.prompt), "to the model chosen and rejected are the same tokens: its chat template "
            "or its tokenizer leaves out (or --long-prompts truncate-left cuts) what parts them",
        )  # fmt: skip
    return chosen, rejected


def fit_pairs(
    model: RewardModel, train: Sequence[Preference], heldout: Sequence[Preference], long: Long
) -> tuple[list[Preference], list[Preference], dict[str, int]]:
    """Pairs that the model holds, and how many of each split were dropped or cut for it. All are encoded; one that
    cannot be is an InputError."""
    room = model.context_length
    lengths = {id(p): max(map(len, told_apart(model, p))) for p in (*train, *heldout)}
    over = [p for p in (*train, *heldout) if lengths[id(p)] > room]
    if not over:
        return list(train), list(heldout), {}
    counts = {"train": sum(lengths[id(p)] > room for p in train)}
    counts["heldout"] = len(over) - counts["train"]
    told = (f"{counts['train']} of {len(train)} training pairs and {counts['heldout']} of {len(heldout)} held out "
            f"have more tokens than the model holds ({room})")  # fmt: skip
    if long == "refuse":
        raise InputError(
            "pairs", f"{lengths[id(over[0])]} tokens: {beginning(over[0].prompt)}", f"{told}: shorten them, or use "
            "--long-prompts drop or truncate-left (the last tokens are kept)",
        )  # fmt: skip
    if long == "drop" and counts["train"] == len(train):
        raise InputError("long_prompts", long, f"{told}: nothing is left to train on")
    print(f"note: {told}: {'dropped' if long == 'drop' else 'cut to their last tokens'}", file=sys.stderr)

    def fitting(pairs: Sequence[Preference]) -> list[Preference]:
        if long == "drop":
            return [p for p in pairs if lengths[id(p)] <= room]
        cut = [replace(p, prompt=replace(p.prompt, keep=room)) if lengths[id(p)] > room else p for p in pairs]
        for p in cut:
            told_apart(model, p)
        return cut

    return fitting(train), fitting(heldout), counts


def pair_scores(model: RewardModel, pairs: Sequence[Preference]) -> Float[Tensor, "pairs 2"]:
    """Raw scores of (chosen, rejected) of every pair."""
    return model.scores([ids for p in pairs for ids in encode(model, p)]).view(-1, 2)


def evaluate_pairs(model: RewardModel, pairs: Sequence[Preference]) -> dict[str, float]:
    """Share of pairs whose chosen response scores higher (a tie is wrong), with its Wilson 95 % interval."""
    if not pairs:
        return {}
    gap = pair_scores(model, pairs).diff(dim=1).neg()[:, 0]
    right = int((gap > 0).sum())
    low, high = wilson(right, len(pairs))
    out = {"eval/accuracy": right / len(pairs), "eval/low": low, "eval/high": high, "eval/n": float(len(pairs))}
    return out | {"eval/margin": float(gap.mean())}


def calibrate(model: RewardModel, pairs: Sequence[Preference]) -> Calibration:
    """Mean and standard deviation of the scores of all responses in the pairs."""
    score = pair_scores(model, pairs).double()
    return Calibration(float(score.mean()), max(float(score.std(correction=0)), 1e-8))
