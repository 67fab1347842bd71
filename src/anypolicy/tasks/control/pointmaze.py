"""Demonstrations in the point mazes of Gymnasium-Robotics, `gym/PointMaze_…`, whatever their map: a ball is steered
along the shortest way through free cells.

As in `pointmaze-sparse` some of the episodes flee from the goal once they are near it, so that a cloned policy reaches
it sometimes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse.csgraph import shortest_path

from anypolicy.data.demonstrations import Episode
from anypolicy.runs.seeds import number, numpy_generator
from anypolicy.tasks.control.environments import EnvironmentTask
from anypolicy.tasks.control.scripted import record

WALL = 1
"""What a map says of a cell that nothing can enter."""


class Ways:
    """Shortest ways between the free cells of a maze."""

    def __init__(self, maze: Any):
        cells = [(i, j) for i, row in enumerate(maze.maze_map) for j, cell in enumerate(row) if cell != WALL]
        self.centres = np.array([maze.cell_rowcol_to_xy(np.array(c)) for c in cells], float)
        apart = np.abs(np.array(cells)[:, None] - np.array(cells)[None]).sum(-1)
        self.lengths: Float[np.ndarray, "cells cells"]
        self.before: Int[np.ndarray, "cells cells"]
        self.lengths, self.before = shortest_path(apart == 1, unweighted=True, return_predecessors=True)

    def cell(self, position: Float[np.ndarray, " xy"]) -> int:
        """The free cell whose centre is nearest."""
        return int(np.square(self.centres - position).sum(1).argmin())

    def waypoint(
        self, position: Float[np.ndarray, " xy"], goal: Float[np.ndarray, " xy"], flees: bool
    ) -> Float[np.ndarray, " xy"]:
        """The next cell's centre on the way, the goal in its own cell, or a point away from it."""
        here, there = self.cell(position), self.cell(goal)
        if flees and self.lengths[here, there] <= 1:
            return position - 0.6 * (goal - position) / (np.linalg.norm(goal - position) + 1e-9)
        return goal if here == there else self.centres[self.before[there, here]]


def demonstrations(task: EnvironmentTask, episodes: int = 40, seed: int = 0, bad: float = 0.5) -> list[Episode]:
    """Steer to the next cell's centre with noise and a bias of the episode; a share `bad` of the episodes steers away
    from the goal within one cell of it. Observations are goal, position and velocity."""
    env, made = task.make(), list[Episode]()
    ways = Ways(env.unwrapped.maze)  # type: ignore[attr-defined]
    for i in range(episodes):
        rng = numpy_generator(seed, "demonstrator", i)
        flees, bias = bool(rng.random() < bad), rng.normal(0, 0.1, 2)

        def controller(
            seen: np.ndarray, rng: np.random.Generator = rng, flees: bool = flees, bias: np.ndarray = bias
        ) -> np.ndarray:
            goal, position, velocity = seen[:2], seen[2:4], seen[4:6]
            aim = ways.waypoint(position, goal, flees)
            return np.clip(4 * (aim - position) - 1.5 * velocity + bias + rng.normal(0, 0.3, 2), -1, 1)

        made.append(record(env, controller, number(seed, "demonstration", i) % 2**31))
    env.close()
    return made
