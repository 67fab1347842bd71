"""Observations of whatever kind as one vector: the same one for a live environment and for recorded data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple, flatten, flatten_space
from jaxtyping import Float

from anypolicy.data.arrays import single
from anypolicy.errors import InputError

UNSEEN = "achieved_goal"
"""The part of a goal observation that the rest of it already says."""
CODES = 10
"""What the codes of Minigrid's pictures are divided by."""
CHANNELS, SIDE = 12, 16
"""The most channels of a picture, and the shortest side of one that is no bytes with the channels last."""


@dataclass(frozen=True)
class Picture:
    """Bytes of height × width × channels, whatever order and range the environment has them in."""

    shape: tuple[int, int, int]
    first: bool
    """Whether the environment has the channels first."""
    scale: float | None
    """What the environment's numbers are multiplied by and rounded, where they are no bytes."""

    def bytes_of(self, pictures: Float[np.ndarray, "n a b c"]) -> Float[np.ndarray, "n height width channels"]:
        """Whole numbers from 0 to 255, channels last."""
        if not np.isfinite(pictures).all():
            raise InputError("observation", "NaN or infinite", "pictures must hold finite numbers")
        x = np.moveaxis(pictures, 1, -1) if self.first else pictures
        return x if self.scale is None else np.clip(np.rint(x * self.scale), 0, 255)


def picture(space: gymnasium.Space[Any]) -> Picture | None:
    """How a space holds a picture (or a few, one behind the other, as channels), if it does: bytes, or numbers from 0
    to 1 or to 255."""
    if not isinstance(space, Box) or len(space.shape) != 3:
        return None
    first = space.shape[0] < space.shape[2]
    height, width, channels = space.shape[1:] + space.shape[:1] if first else space.shape
    if channels > CHANNELS or ((first or space.dtype != np.uint8) and min(height, width) < SIDE):
        return None
    if space.dtype == np.uint8:
        return Picture((height, width, channels), first, None)
    highest = float(space.high.max())
    if space.dtype.kind != "f" or space.low.any() or space.high.min() != highest or highest not in (1, 255):
        return None
    return Picture((height, width, channels), first, 255 / highest)


@dataclass(frozen=True)
class Part:
    """A part of an observation that has no parts itself, and how to get there."""

    path: tuple[str | int, ...]
    space: gymnasium.Space[Any]
    picture: Picture | None
    codes: bool = False

    def of(self, observation: Any) -> Any:
        """This part of it."""
        for name in self.path:
            observation = observation[name]
        return observation

    def numbers(self, values: Any) -> Float[np.ndarray, "n k"]:
        """n values of this part as rows of numbers. Raises InputError for what the space does not hold."""
        space, n = self.space, len(values)
        if isinstance(space, MultiBinary):
            return bits(values, space.shape)
        if isinstance(space, Discrete | MultiDiscrete):
            return one_hot(values, *choices(space))
        if not isinstance(space, Box):
            return np.stack([np.asarray(flatten(space, v), np.float32) for v in values])
        x = single("observation", values)
        if x.shape[1:] != space.shape:
            raise InputError("observation", x.shape[1:], f"this part of it has the shape {space.shape}")
        x = self.picture.bytes_of(x) if self.picture else x / CODES if self.codes else x
        return x.reshape(n, -1)


def choices(space: Discrete | MultiDiscrete) -> tuple[np.ndarray, np.ndarray]:
    """How many there are of each, and from which number on."""
    if isinstance(space, Discrete):
        return np.array([space.n]), np.array([space.start])
    return space.nvec.ravel(), space.start.ravel()


def bits(values: Any, shape: tuple[int, ...]) -> Float[np.ndarray, "n k"]:
    """Zeros and ones."""
    x = single("observation", values)
    if x.shape[1:] != shape or not np.isin(x, (0, 1)).all():
        raise InputError("observation", values, f"this part of it is zeros and ones of the shape {shape}")
    return x.reshape(len(x), -1)


def one_hot(values: Any, sizes: np.ndarray, starts: np.ndarray) -> Float[np.ndarray, "n k"]:
    """Choices as Gymnasium flattens them, one block for each."""
    given = np.asarray(values).reshape(len(values), -1)
    if given.dtype.kind not in "biuf" or given.shape[1] != len(sizes):
        raise InputError("observation", given.tolist(), f"this part of it is {len(sizes)} choices")
    index = given - starts
    wrong = ((index < 0) | (index >= sizes) | (index != np.rint(index))).any(1)
    if wrong.any():
        raise InputError("observation", given[wrong.argmax()].tolist(), f"this part of it is whole numbers from "
                         f"{starts.tolist()} to {(starts + sizes - 1).tolist()}")  # fmt: skip
    out = np.zeros((len(given), int(sizes.sum())), np.float32)
    out[np.arange(len(given))[:, None], index.astype(np.int64) + np.cumsum(sizes) - sizes] = 1
    return out


def leaves(space: gymnasium.Space[Any], path: tuple[str | int, ...] = ()) -> Iterator[Part]:
    """The parts of a space, in its own order."""
    if isinstance(space, Dict | Tuple):
        named: Any = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        for name, inner in named:
            yield from leaves(inner, (*path, name))
    else:
        yield Part(path, space, picture(space))


class Layout:
    """Which number of the vector is what. Pictures come first, and then, as before them, parts go by their names; where
    there are none, parts are in the space's own order. Of a goal observation what is achieved is left out, of
    Minigrid's all but the picture of codes."""

    def __init__(self, space: gymnasium.Space[Any]):
        parts = [p for p in leaves(space) if p.path[:1] != (UNSEEN,)]
        if isinstance(space, Dict) and "mission" in space.spaces and isinstance(space.spaces.get("image"), Box):
            parts = [Part(("image",), space["image"], None, codes=True)]
        if any(p.picture for p in parts):
            parts.sort(key=lambda p: (p.picture is None, tuple(map(str, p.path))))
        self.parts = tuple(parts)
        self.images = tuple(p.picture.shape for p in parts if p.picture)
        boxes = [limits(p) for p in parts]
        if not any(b[0].size for b in boxes):
            raise InputError("task", str(space), "observations must hold a number at least")
        low, high = (np.concatenate([b[i] for b in boxes]) for i in (0, 1))
        self.box = Box(low, high, dtype=np.float32)
        self.vector = isinstance(space, Box) and len(space.shape) == 1

    def one(self, observation: Any) -> Float[np.ndarray, " numbers"]:
        """An observation as a vector of its own."""
        if self.vector and np.shape(observation) == self.box.shape:
            return single("observation", observation)
        return np.concatenate([p.numbers([p.of(observation)])[0] for p in self.parts])

    def many(self, observations: Any) -> Float[np.ndarray, "n numbers"]:
        """Observations of which every part is stacked, as rows."""
        return np.concatenate([p.numbers(p.of(observations)) for p in self.parts], 1)

    def writes(self, space: Box) -> bool:
        """Whether vectors of a space are those that this layout makes, and not the same numbers in another order: where
        observations have parts, bounds and type are those that we record them with."""
        if space.shape != self.box.shape:
            return False
        same = np.allclose(space.low, self.box.low) and np.allclose(space.high, self.box.high)
        return self.vector or (same and space.dtype == self.box.dtype)

    def fits(self, space: gymnasium.Space[Any]) -> bool:
        """Whether the observations of another space have the same parts."""
        theirs = {p.path: p for p in leaves(space)}
        return all(p.path in theirs and alike(p, theirs[p.path]) for p in self.parts)


def limits(part: Part) -> Sequence[np.ndarray]:
    """Lowest and highest numbers of a part."""
    box = flatten_space(part.space)
    if not isinstance(box, Box):
        raise InputError("task", str(part.space), "observations must flatten to a vector of numbers")
    if part.picture:
        return np.zeros(box.shape, np.float32), np.full(box.shape, 255, np.float32)
    with np.errstate(over="ignore"):
        return tuple(x.astype(np.float32) / (CODES if part.codes else 1) for x in (box.low, box.high))


def alike(ours: Part, theirs: Part) -> bool:
    """Whether the numbers of two parts mean the same."""
    a, b = ours.space, theirs.space
    if isinstance(a, Box):
        return isinstance(b, Box) and a.shape == b.shape and (ours.codes or ours.picture == theirs.picture)
    if isinstance(a, Discrete | MultiDiscrete):
        return isinstance(b, type(a)) and all(map(np.array_equal, choices(a), choices(b)))
    return type(a) is type(b) and a.shape == b.shape


class Flat(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Observations as the vector of their layout."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        self.layout = Layout(env.observation_space)
        self.observation_space = self.layout.box

    def observation(self, observation: Any) -> Float[np.ndarray, " numbers"]:
        return self.layout.one(observation)
