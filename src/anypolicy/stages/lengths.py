"""Before the first step every prompt is encoded and measured, so that none of them ends a run in the middle: what does
not fit into the policy beside its response is refused, dropped or cut."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy, media_of
from anypolicy.policies.language.reward_model import RewardModel
from anypolicy.policies.language.text import beginning
from anypolicy.stages.checks import check
from anypolicy.stages.recipe import GroupRecipe, World
from anypolicy.stages.recorded import recorded
from anypolicy.stages.rewards import own_rewards
from anypolicy.tasks.language.verify import verifies

Long = Literal["refuse", "drop", "truncate-left"]


@dataclass(frozen=True)
class Over:
    """A prompt that is too long: its place, its tokens, how many may stay, and what holds so few."""

    place: int
    tokens: int
    room: int
    why: str


@dataclass(frozen=True)
class Measure:
    """What must fit into `room` tokens of a policy: a prompt and after it `limit` sampled tokens, its reference or its
    recorded responses, whichever is longest of those asked for. A prompt and `limit` tokens must fit into the `reward`
    model too; they are counted as if it cut text into as many tokens as the policy does."""

    policy: Policy
    room: int
    limit: int
    reference: bool
    recorded: bool
    reward: RewardModel | None = None

    def over(self, prompts: Sequence[Prompt]) -> list[Over]:
        """The prompts that are too long. One that cannot be encoded is an InputError."""
        found = list[Over]()
        for place, prompt in enumerate(prompts):
            n, answer = len(self.policy.encode(prompt)), self.answer(prompt)
            media_of(self.policy, prompt)
            if n + answer > self.room:
                held = f"the policy holds {self.room} and its response takes up to {answer} of them"
                found.append(Over(place, n, self.room - answer, held))
            elif self.reward and (own := len(self.reward.encode(prompt, ""))) + self.limit > self.reward.context_length:
                held = f"the reward model holds {self.reward.context_length}, a response takes up to {self.limit}"
                found.append(Over(place, own, 0, held))
        return found

    def answer(self, prompt: Prompt) -> int:
        """The longest of the prompt's responses."""
        given: list[Any] = [prompt.reference] if self.reference and prompt.reference is not None else []
        if self.recorded and prompt.info.get("responses"):
            given += [response for response, _ in recorded(prompt)]
        return max([self.limit, *(len(self.policy.encode_reference(replace(prompt, reference=r))) for r in given)])


def fit_prompts(
    recipe: GroupRecipe, world: World, prompts: int, reference: Policy | None, long: Long
) -> tuple[World, dict[str, int]]:
    """A world whose task's prompts all fit, and how many of each split were dropped or cut for it."""
    task, rollout, most = world.task, recipe.rollout, world.sampling.max_tokens
    room = min(p.context_length for p in (world.policy, reference) if p is not None)
    known, labels = not rollout.gives.behaviour, recipe.reward.needs.labels
    written = rollout.group_size > 0 if rollout.gives.reaches_limit is None else rollout.gives.reaches_limit
    sampled = written or (reference is not None and not task.heldout)
    learnt = labels and (known or rollout.gives.targets)
    parts = () if world.reward_function is None else own_rewards(world.reward_function).parts
    reward = next((p.function for p in parts if isinstance(p.function, RewardModel)), None)
    train = Measure(world.policy, room, most * sampled, learnt, known, reward)
    answered = verifies(task) or bool(parts) or reference is not None
    held = Measure(world.policy, room, most * answered, True, reference is not None)
    sides = {"train": (train, list(task.train)), "heldout": (held, list(task.heldout))}
    over = {name: measure.over(own) for name, (measure, own) in sides.items()}
    counts = {name: len(found) for name, found in over.items()}
    if not any(counts.values()):
        return world, {}
    told = (f"{counts['train']} of {len(task.train)} training prompts and {counts['heldout']} of {len(task.heldout)} "
            "held out do not fit")  # fmt: skip
    if long == "refuse":
        name = "train" if over["train"] else "heldout"
        raise refused(sides[name][1], over[name], f"; {told}: shorten them, use --long-prompts drop or "
                      "truncate-left (the last tokens are kept), or a smaller max_tokens")  # fmt: skip
    fitted: Any = copy.copy(task)
    for name, (measure, own) in sides.items():
        setattr(fitted, name, shortened(own, over[name], measure) if long == "truncate-left" else left(own, over[name]))
    if not fitted.train:
        raise InputError("long_prompts", long, f"{told}: nothing is left to train on")
    check(recipe, prompts, fitted, rewarded=bool(parts))
    print(f"note: {told}: {'dropped' if long == 'drop' else 'cut to their last tokens'}", file=sys.stderr)
    return replace(world, task=fitted), counts


def refused(prompts: Sequence[Prompt], over: Sequence[Over], remedy: str) -> InputError:
    """The error that names the first of the prompts that are too long."""
    first = over[0]
    return InputError("prompt", beginning(prompts[first.place]), f"it has {first.tokens} tokens, {first.why}{remedy}")


def check_lengths(world: World, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that do not fit beside a sampled response."""
    policy = world.policy
    if over := Measure(policy, policy.context_length, world.sampling.max_tokens, False, False).over(prompts):
        raise refused(prompts, over, f": shorten these {len(over)} prompts, or take a smaller max_tokens")


def left(prompts: Sequence[Prompt], over: Sequence[Over]) -> list[Prompt]:
    """The prompts without those that are too long."""
    if over and prompts[over[0].place].info.get("exact"):
        raise InputError("long_prompts", "drop", "a recorded stream is learnt group by group as it stands: its groups "
                         "fit the policy that recorded them, so take one that holds as many tokens")  # fmt: skip
    gone = {x.place for x in over}
    return [p for i, p in enumerate(prompts) if i not in gone]


def shortened(prompts: Sequence[Prompt], over: Sequence[Over], measure: Measure) -> list[Prompt]:
    """The prompts, of those that are too long the last tokens."""
    out = list(prompts)
    for x in over:
        if x.room < 1:
            raise InputError("long_prompts", "truncate-left", f"of prompt {beginning(out[x.place])} nothing would be "
                             f"left ({x.why}): use drop")  # fmt: skip
        out[x.place] = replace(out[x.place], keep=x.room)
    for again in measure.over([out[x.place] for x in over]):
        raise InputError("long_prompts", "truncate-left", f"prompt {beginning(out[over[again.place].place])} cannot be "
                         "cut (it shows images, say): use drop")  # fmt: skip
    return out
