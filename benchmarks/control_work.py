"""The same control work for all sides: transitions, initial weights, noise; and what makes two sides comparable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, Worker, peer_python

TORCH = "torch==2.13.*"
CONTROL = [TORCH, "stable-baselines3==2.9.*", "sbx-rl==0.28.*", "tianshou==2.*", "torchrl==0.14.*"]
PEERS = {
    "sb3": ("stable-baselines3 2.9", "control", CONTROL),
    "sbx": ("sbx 0.28", "control", CONTROL),
    "tianshou": ("tianshou 2", "control", CONTROL),
    "torchrl": ("torchrl 0.14", "control", CONTROL),
    "d3rlpy": ("d3rlpy 2.8", "d3rlpy", [TORCH, "d3rlpy==2.8.*"]),
}
OBSERVATIONS, ACTIONS, ROWS, BATCH = 17, 6, 10_000, 256


def make_work(path: Path, seed: int = 0) -> None:
    """Transitions whose reward is their row number over ROWS, and the noise of one update's two samples."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    np.savez(
        path, observation=normal(ROWS, OBSERVATIONS), next_observation=normal(ROWS, OBSERVATIONS),
        action=np.tanh(normal(ROWS, ACTIONS)), reward=(np.arange(ROWS) / ROWS).astype(np.float32),
        terminated=(rng.random(ROWS) < 0.01).astype(np.float32), now=normal(BATCH, ACTIONS),
        later=normal(BATCH, ACTIONS),
    )  # fmt: skip


def sides_of(folder: Path, peer: str, work: str, settings: dict[str, Any]) -> dict[str, Worker]:
    """Our worker and the peer's at the same work."""
    given = {"data": str(folder / "data.npz"), "weights": str(folder / "weights.npz"), "work": work} | settings
    ours = Worker(Path(sys.executable), HERE / "workers/control_ours.py", given)
    if peer == "loop":
        theirs = Worker(Path(sys.executable), HERE / "workers/control_ours.py", given | {"work": f"{work}-loop"})
    else:
        _, home, packages = PEERS[peer]
        theirs = Worker(peer_python(home, packages), HERE / f"workers/control_{peer}.py", given)
    return {"ours": ours, "peer": theirs}


def update_gap(sides: dict[str, Worker]) -> float | None:
    """The largest relative difference of one update's losses and of the actions' entropy, from the same weights, rows
    and noise; None where the peer cannot be given them."""
    ours, theirs = (sides[side].ask("losses") for side in ("ours", "peer"))
    if not theirs:
        return None
    gap = max(abs(ours[k] - v) / max(abs(v), 1e-8) for k, v in theirs.items())
    if not gap < 1e-5:
        sys.exit(f"not comparable: {ours} {theirs}")
    return gap


def sample_gap(sides: dict[str, Worker]) -> float:
    """0 if both draw 256 rows that are rows of the data."""
    for side, worker in sides.items():
        if not worker.ask("check")["rows"]:
            sys.exit(f"not comparable: {side} draws what is not in the data")
    return 0.0
