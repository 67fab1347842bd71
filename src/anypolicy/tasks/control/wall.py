"""A mass before a wall, moved by a spring-damper controller that runs much faster than the policy.

The policy moves the controller's target a few times a second; where the wall stands it does not see. The episode is won
when the mass has pressed on the wall gently for one whole action, and lost when a contact force exceeds `fragile`.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from anypolicy.errors import InputError
from anypolicy.parts.frames import impedance

MASS, STIFFNESS, DAMPING = 1.0, 2000.0, 89.0
"""kg, N/m, N s/m: critically damped."""
WALL_STIFFNESS, WALL_DAMPING = 1e5, 50.0
REACH, STEP = 0.05, 0.01
"""m: the farthest that the wall stands, and what one action moves the target at most."""
FASTEST, GENTLE = 0.1, (2.0, 8.0)
"""m/s that an observation of 1 means, and the forces in N that win."""

Limits = Literal["error", "action", "none"]


class Wall(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observation: position, velocity, target − position, and contact force, scaled to about 1. Action: the move of the
    target. `limits` says what is clipped to ±`delta`: the controller's error in every fast tick, the policy's action
    alone (the target then starts from where the mass is), or nothing."""

    metadata = {"render_modes": []}

    def __init__(self, limits: Limits, delta: float, ticks: int, hertz: int, fragile: float, horizon: int):
        for name, value in (("delta", delta), ("ticks", ticks), ("hertz", hertz), ("fragile", fragile),
                            ("horizon", horizon)):  # fmt: skip
            if not value > 0:
                raise InputError(f"wall.{name}", value, "use a number above 0")
        self.limits, self.delta, self.ticks, self.hertz = limits, delta, ticks, hertz
        self.fragile, self.horizon = fragile, horizon
        self.observation_space = Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = Box(-1, 1, (1,), np.float32)
        self.wall = self.x = self.v = self.target = self.contact = self.peak = self.pulled = 0.0
        self.count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.wall = float(self.np_random.uniform(0.2, 1.0)) * REACH
        self.x = self.v = self.target = self.contact = self.peak = self.pulled = 0.0
        self.count = 0
        return self.seen(), {}

    def step(self, action: np.ndarray):
        move = STEP * float(np.clip(action[0], -1, 1))
        if self.limits == "action":
            self.target = self.x + float(np.clip(move, -self.delta, self.delta))
        else:
            self.target = float(np.clip(self.target + move, -REACH, 2 * REACH))
        forces = [self.tick() for _ in range(self.ticks)]
        self.count += 1
        won = min(forces) >= GENTLE[0] and max(forces) <= GENTLE[1]
        broken = self.peak > self.fragile
        info = {"is_success": float(won and not broken), "peak_force": self.peak, "peak_pull": self.pulled}
        return self.seen(), info["is_success"], won or broken, self.count >= self.horizon, info

    def tick(self) -> float:
        """One step of the controller and of the world (semi-implicit Euler); the contact force."""
        error, speed = torch.tensor([self.x - self.target, self.v], dtype=torch.float64)
        pull = float(impedance(error, speed, STIFFNESS, DAMPING, self.delta if self.limits == "error" else None))
        depth = self.x - self.wall
        self.contact = max(WALL_STIFFNESS * depth + WALL_DAMPING * self.v, 0.0) if depth > 0 else 0.0
        self.v += (pull - self.contact) / MASS / self.hertz
        self.x += self.v / self.hertz
        self.peak, self.pulled = max(self.peak, self.contact), max(self.pulled, abs(pull))
        return self.contact

    def seen(self) -> np.ndarray:
        out = (self.x / REACH, self.v / FASTEST, (self.target - self.x) / STEP, self.contact / GENTLE[1])
        return np.array(out, np.float32)

    def get_state(self) -> dict[str, float]:
        return {k: getattr(self, k) for k in ("wall", "x", "v", "target", "contact", "peak", "pulled", "count")}

    def set_state(self, value: dict[str, float]) -> None:
        for name, number in value.items():
            setattr(self, name, number)


def wall(
    limits: Limits = "error", delta: float = 0.003, ticks: int = 100, hertz: int = 1000, fragile: float = 60.0,
    horizon: int = 100,
) -> Wall:  # fmt: skip
    """The mass before the wall; 1 kHz under a policy of 10 Hz."""
    return Wall(limits, delta, ticks, hertz, fragile, horizon)
