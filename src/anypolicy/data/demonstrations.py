"""Demonstrations: whole episodes as transitions, from Minari data sets or from files of our own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from anypolicy.data.readers import read_tensors
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError

FIELDS = ("observation", "action", "reward", "terminated", "truncated")


@dataclass(frozen=True)
class Episode:
    """One episode of T steps as the environment gave it: T+1 observations, T actions in [−1, 1] (or indices)."""

    observation: Float[Tensor, "steps+1 observations"]
    action: Float[Tensor, "steps actions"]
    reward: Float[Tensor, " steps"]
    terminated: Float[Tensor, " steps"]
    truncated: Float[Tensor, " steps"]

    @property
    def finished(self) -> bool:
        """Whether the environment ended it: by termination or by truncation."""
        return bool(self.terminated[-1] or self.truncated[-1])

    def transitions(self, discount: float) -> Transitions:
        """One-step transitions. A last step that is neither terminated nor truncated counts as truncated: the
        recording stopped there."""
        truncated = self.truncated.clone()
        if not self.terminated[-1]:
            truncated[-1] = 1.0
        o = self.observation
        return Transitions(o[:-1], self.action, self.reward, o[1:], self.terminated, truncated,
                           torch.full_like(self.reward, discount))  # fmt: skip


def episodes_of(stream: Transitions) -> list[Episode]:
    """One-step transitions in the order they happened as episodes. One that neither terminates nor is truncated (the
    last one, or where the next row does not begin with what this one led to) stays unfinished: no flag is set."""
    ended = (stream.terminated + stream.truncated) > 0
    broken = (stream.next_observation[:-1] != stream.observation[1:]).any(1)
    cuts = (ended[:-1] | broken).nonzero().squeeze(1) + 1
    made: list[Episode] = []
    for rows in torch.arange(len(stream)).tensor_split(cuts.cpu()):
        t = stream.select(rows)
        seen = torch.cat([t.observation, t.next_observation[-1:]])
        made.append(Episode(seen, t.action, t.reward, t.terminated, t.truncated))
    return made


def check_choices(action: Float[Tensor, "steps 1"], choices: int, where: str = "") -> None:
    """Discrete actions are whole numbers from 0 to `choices` − 1; an error names the first row that is not."""
    wrong = (action != action.round()) | (action < 0) | (action >= choices)
    if wrong.any():
        row = int(wrong.any(1).int().argmax())
        raise InputError("action", f"{where}row {row}: {float(action[row, 0]):g}",
                         f"the task has actions 0 to {choices - 1}")  # fmt: skip


def check_flags(flags: Float[Tensor, " steps"], name: str, where: str = "") -> None:
    """Flags are 0 or 1; an error names the first row that is neither."""
    wrong = (flags != 0) & (flags != 1)
    if wrong.any():
        row = int(wrong.int().argmax())
        raise InputError(name, f"{where}row {row}: {float(flags[row]):g}", "a flag is 0 or 1")


def save_episodes(path: str | Path, episodes: list[Episode]) -> None:
    """A .safetensors file: all steps one after the other, and the length of each episode."""
    parts = {name: torch.cat([getattr(e, name) for e in episodes]) for name in FIELDS}
    save_file(parts | {"length": torch.tensor([len(e.reward) for e in episodes])}, path)


def load_episodes(path: str | Path) -> list[Episode]:
    """The inverse of `save_episodes`."""
    tensors = read_tensors(Path(path), "demos", (*FIELDS, "length"))
    episodes: list[Episode] = []
    length = tensors["length"]
    if length.dim() != 1 or length.is_floating_point() or length.is_complex() or bool((length < 1).any()):
        raise InputError("demos", str(path), "its lengths must be whole numbers above 0, one an episode")
    lengths: list[int] = length.tolist()
    for name in FIELDS:
        x, rows = tensors[name], sum(lengths) + (len(lengths) if name == "observation" else 0)
        wide = name in FIELDS[:2]
        if x.is_complex():
            raise InputError("demos", str(path), f"{name} holds complex numbers: use real ones")
        if x.dim() != 1 + wide or len(x) != rows:
            needed = f"({rows}, n)" if wide else f"({rows},)"
            raise InputError("demos", str(path), f"{name} has the shape {tuple(x.shape)}, its lengths need {needed}")
    steps, seen = 0, 0
    for n in lengths:
        fields = [tensors[name][steps : steps + n].float() for name in FIELDS[1:]]
        episodes.append(Episode(tensors["observation"][seen : seen + n + 1].float(), *fields))
        steps, seen = steps + n, seen + n + 1
    return episodes
