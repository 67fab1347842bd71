"""Two small test-beds in which sampling error misleads a policy gradient (arXiv 2311.08290), seen as one-hot vectors.

The two-step tree: the best leaf lies behind the branch whose other leaf is the worst, so a batch in which it is drawn
too rarely turns the gradient away from it. The grid: a reward of ½ in one corner, of 1 in the opposite one.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

SIDE = 5
LIGHT, DARK, GREEN = (215, 215, 215), (40, 40, 40), (120, 200, 120)


class Walk(gymnasium.Env[np.ndarray, Any]):
    """States in a table: `after[s][a]` follows s, `reward[s]` is given on arrival in s, an episode ends in `ends` and
    is cut after `horizon` steps. `layout` places the states in a picture."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self, after: list[list[int]], reward: list[float], ends: list[int], *, start: int, best: int, horizon: int,
        layout: list[list[int | None]], render_mode: str | None = None,
    ):  # fmt: skip
        self.after, self.reward, self.ends, self.start, self.best = after, reward, ends, start, best
        self.horizon, self.layout, self.render_mode = horizon, layout, render_mode
        self.observation_space = Box(0, 1, (len(reward),), np.float32)
        self.action_space = Discrete(len(after[start]))
        self.state, self.time = start, 0

    def seen(self) -> np.ndarray:
        """The state as a one-hot vector."""
        return np.eye(len(self.reward), dtype=np.float32)[self.state]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.time = self.start, 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.state, self.time = self.after[self.state][int(action)], self.time + 1
        over = self.state in self.ends
        cut = self.time >= self.horizon and not over
        return self.seen(), self.reward[self.state], over, cut, {"is_success": self.state == self.best}

    def get_state(self) -> list[int]:
        return [self.state, self.time]

    def set_state(self, value: list[int]) -> None:
        self.state, self.time = value

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Squares: dark where the episode is, green where it may end."""
        out = np.full((32 * len(self.layout), 32 * len(self.layout[0]), 3), 255, np.uint8)
        for r, row in enumerate(self.layout):
            for c, state in enumerate(row):
                if state is not None:
                    colour = DARK if state == self.state else GREEN if state in self.ends else LIGHT
                    out[32 * r + 1 : 32 * r + 31, 32 * c + 1 : 32 * c + 31] = colour
        return out


def two_step_tree(render_mode: str | None = None) -> Walk:
    """Left and right lead from i to 2i + 1 and 2i + 2, twice; the leaves 3, 4, 5, 6 give 2, ½, 1, 1."""
    n = None
    layout: list[list[int | None]] = [[n, n, n, 0, n, n, n], [n, 1, n, n, n, 2, n], [3, n, 4, n, 5, n, 6]]
    after = [[2 * i + 1, 2 * i + 2] for i in range(3)]
    reward = [0.0, 0.0, 0.0, 2.0, 0.5, 1.0, 1.0]
    return Walk(after, reward, [3, 4, 5, 6], start=0, best=3, horizon=2, layout=layout, render_mode=render_mode)


def grid(max_steps: int = 100, render_mode: str | None = None) -> Walk:
    """5 × 5 cells from the middle one; up, down, left, right, and walls hold. A step costs 0.01; the first cell gives ½
    and the last 1 instead, and both end the episode."""
    last = SIDE * SIDE - 1
    after: list[list[int]] = []
    for r in range(SIDE):
        for c in range(SIDE):
            places = [(max(r - 1, 0), c), (min(r + 1, SIDE - 1), c), (r, max(c - 1, 0)), (r, min(c + 1, SIDE - 1))]
            after.append([SIDE * x + y for x, y in places])
    reward = [0.5, *[-0.01] * (last - 1), 1.0]
    layout: list[list[int | None]] = [[SIDE * r + c for c in range(SIDE)] for r in range(SIDE)]
    return Walk(after, reward, [0, last], start=last // 2, best=last, horizon=max_steps, layout=layout,
                render_mode=render_mode)  # fmt: skip
