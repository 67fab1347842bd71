"""A free tip that must be brought to a target, with poses in the base's frame or seen from where the episode began."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor

from anypolicy.data.demonstrations import Episode
from anypolicy.errors import InputError
from anypolicy.parts.frames import FrameMap, relative_pose, rotation_of, to_base, to_tip
from anypolicy.runs.seeds import number, numpy_generator
from anypolicy.tasks.control.environments import flat
from anypolicy.tasks.control.scripted import record

STEP, TURN = 0.01, 0.1
"""m and rad that one action moves at most, on each axis."""
ROOM, NEAR = 0.05, 0.01
"""m: how far targets are, and how near is won."""
UNITS = torch.tensor([STEP] * 3 + [TURN] * 3, dtype=torch.float64)
SIDE = 32
"""Pixels of a side of the picture."""


class Tip(gymnasium.Env[Any, Any]):
    """Kinematics of a tip without an arm. Actions are twists (v, ω) in base axes. With `images` the target is seen by a
    camera on the tip that looks along its z axis, else its position is a number among the others."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, images: bool, turned: float, horizon: int, render_mode: str | None = None):
        if horizon < 1:
            raise InputError("tip.horizon", horizon, "use at least 1")
        if not 0 <= turned <= np.pi:
            raise InputError("tip.turned", turned, "use an angle between 0 and π")
        self.images, self.turned, self.horizon, self.render_mode = images, turned, horizon, render_mode
        numbers = {"tip_position": 3, "tip_rotation": 9, "tip_velocity": 6} | ({} if images else {"target_position": 3})
        spaces: dict[str, Any] = {k: Box(-np.inf, np.inf, (n,), np.float32) for k, n in numbers.items()}
        if images:
            spaces["picture"] = Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.observation_space = Dict(spaces)
        self.action_space = Box(-1, 1, (6,), np.float32)
        self.position, self.target, self.velocity = np.zeros(3), np.zeros(3), np.zeros(6)
        self.rotation, self.count = np.eye(3), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        rng, given = self.np_random, options or {}
        turn = torch.tensor([0.0, 0.0, rng.uniform(-self.turned, self.turned)], dtype=torch.float64)
        self.rotation = np.asarray(given.get("rotation", rotation_of(turn).numpy()), np.float64)
        self.position = np.asarray(given.get("position", rng.uniform(-0.2, 0.2, 3)), np.float64)
        place = self.position + self.rotation @ rng.uniform(-ROOM, ROOM, 3)
        self.target = np.asarray(given.get("target", place), np.float64)
        self.velocity, self.count = np.zeros(6), 0
        return self.seen(), {}

    def step(self, action: np.ndarray):
        twist = np.asarray(action, np.float64)
        twist = np.concatenate([STEP * no_longer(twist[:3]), TURN * no_longer(twist[3:6])])
        self.velocity = twist
        self.position = self.position + twist[:3]
        self.rotation = rotation_of(torch.from_numpy(twist[3:])).numpy() @ self.rotation
        self.count += 1
        won = bool(np.linalg.norm(self.target - self.position) < NEAR)
        return self.seen(), float(won), won, self.count >= self.horizon, {"is_success": float(won)}

    def seen(self) -> dict[str, np.ndarray]:
        numbers = {"tip_position": self.position, "tip_rotation": self.rotation.ravel(), "tip_velocity": self.velocity}
        if not self.images:
            numbers["target_position"] = self.target
        out = {k: v.astype(np.float32) for k, v in numbers.items()}
        return out | ({"picture": self.picture()} if self.images else {})

    def picture(self) -> np.ndarray:
        """The target as a disc where the camera sees it: red, the greener the farther along z, on a dark ground."""
        x, y, z = self.rotation.T @ (self.target - self.position) / (2 * ROOM)
        at = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
        inside = (at[None, :] - x) ** 2 + (at[:, None] - y) ** 2 < 0.15**2
        out = np.full((SIDE, SIDE, 3), 30, np.uint8)
        out[inside] = (220, int(np.clip(128 + 120 * z, 0, 255)), int(np.clip(128 - 120 * z, 0, 255)))
        return out

    def render(self) -> np.ndarray:
        return np.kron(self.picture(), np.ones((8, 8, 1), np.uint8))

    def get_state(self) -> dict[str, Any]:
        return {k: getattr(self, k).tolist() for k in ("position", "target", "velocity", "rotation")} | {
            "count": self.count
        }

    def set_state(self, value: dict[str, Any]) -> None:
        for name, numbers in value.items():
            setattr(self, name, numbers if name == "count" else np.array(numbers))


class RelativeFrames(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Everything seen from the tip's pose at reset, velocity and action in the tip's own frame.

    Needs a dictionary with `tip_position`, `tip_rotation`, `tip_velocity` in base axes; other keys that end in
    `_position` are points and are carried along. The first six numbers of an action are a twist of the tip in shares of
    the environment's largest step (`units`: metres and radians). Where an episode starts then does not matter: moving
    the start is moving the target.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], frame_map: FrameMap = "blockdiag", units: Tensor = UNITS):
        super().__init__(env)
        self.frame_map: FrameMap = frame_map
        self.units = units
        self.start = self.now = (torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        observation, info = self.env.reset(seed=seed, options=options)
        self.start = self.now = pose_of(observation)
        return self.relative(observation), info

    def step(self, action: Any):
        """Metres and radians are carried, not shares of the largest step."""
        position, rotation = self.now
        twist = torch.from_numpy(np.asarray(action[:6], np.float64)) * self.units
        base = to_base(twist, rotation, position, self.frame_map) / self.units
        observation, reward, terminated, truncated, info = self.env.step(
            np.concatenate([base.numpy(), np.asarray(action[6:], np.float64)]).astype(np.float32)
        )
        self.now = pose_of(observation)
        return self.relative(observation), reward, terminated, truncated, info

    def intervention(self, base_action: np.ndarray) -> np.ndarray:
        """A person's command in base axes as the action that a policy would have had to give."""
        position, rotation = self.now
        twist = torch.from_numpy(np.asarray(base_action[:6], np.float64)) * self.units
        own = to_tip(twist, rotation, position, self.frame_map) / self.units
        return np.concatenate([own.numpy(), base_action[6:]]).astype(np.float32)

    def relative(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (p0, r0), (p, r) = self.start, self.now
        out = dict(observation)
        for name, value in observation.items():
            if name.endswith("_position"):
                seen = relative_pose(p0, r0, double(value), r)[0]
                out[name] = seen.numpy().astype(np.float32)
        out["tip_rotation"] = (r0.T @ r).numpy().ravel().astype(np.float32)
        velocity = to_tip(double(observation["tip_velocity"]), r, p, self.frame_map)
        out["tip_velocity"] = velocity.numpy().astype(np.float32)
        return out

    def get_state(self) -> dict[str, Any]:
        return {"start": [x.tolist() for x in self.start], "now": [x.tolist() for x in self.now]}

    def set_state(self, value: dict[str, Any]) -> None:
        for name, pose in value.items():
            setattr(self, name, tuple(torch.tensor(x, dtype=torch.float64) for x in pose))


def double(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(x, np.float64))


def pose_of(observation: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Position and rotation of the tip in base axes."""
    return double(observation["tip_position"]), double(observation["tip_rotation"]).view(3, 3)


def no_longer(vector: np.ndarray) -> np.ndarray:
    """The vector, cut to the length √3 of the cube's corners: the same whatever axes it is written in."""
    return vector * min(1.0, np.sqrt(3) / max(float(np.linalg.norm(vector)), 1e-12))


def tip(
    frames: Literal["relative", "base"] = "relative", frame_map: FrameMap = "blockdiag", images: bool = False,
    turned: float = 1.5, horizon: int = 50, render_mode: str | None = None,
) -> gymnasium.Env[Any, Any]:  # fmt: skip
    """The tip and its target; every episode starts elsewhere, turned by up to ± `turned` about z."""
    env = Tip(images, turned, horizon, render_mode)
    return RelativeFrames(env, frame_map) if frames == "relative" else env


def demonstrations(episodes: int = 20, seed: int = 0, noise: float = 0.2, images: bool = False) -> list[Episode]:
    """Straight to the target in the tip's frame, with noise on the action."""
    env, made = flat(tip(images=images)), list[Episode]()
    for i in range(episodes):
        rng = numpy_generator(seed, "demonstrator", i)

        def controller(_: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
            inner: Any = env.unwrapped
            move = inner.rotation.T @ (inner.target - inner.position)
            move = np.append(move / max(STEP, float(np.abs(move).max())), np.zeros(3))
            return np.clip(move + rng.normal(0, noise, 6), -1, 1)

        made.append(record(env, controller, number(seed, "demonstration", i) % 2**31))
    return made
