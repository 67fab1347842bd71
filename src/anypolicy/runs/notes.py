"""What a finished run must say of itself beside its results: that nothing was learnt, or that numbers are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

IDLE = {
    True: "no environment step came after the warm-up, which acts at random: use more --steps or a shorter warm-up",
    False: "no response differed in reward from the others of its prompt, or all were dropped",
}
"""Why no update was made, of controllers and of others."""


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for the end of a run and its report, from the ledger; none for a run as it should be."""
    out = list[str]()
    updates = [r["updates"] * r.get("grad_norm", 1.0) for r in rows if "updates" in r]
    if updates and not any(updates):
        acts = any("episode/count" in r for r in rows)
        out.append(f"NOTE: no update moved anything, the policy is what it was: {IDLE[acts]}")
    rewards = [r["reward/mean"] for r in rows if "reward/mean" in r]
    if rewards and not any(rewards) and not any(r.get("reward/std") for r in rows):
        out.append("NOTE: every reward of the run was 0: look at the answers and at what the task pays for")
    returns = [r[name] for r in rows for name in ("episode/return", "eval/return") if name in r]
    if returns and not any(returns):
        out.append("NOTE: every episode of the run returned 0: no reward was ever found")
    lost = [r["why"] for r in rows if r.get("event") == "lost"]
    return out + [f"NOTE: {why}" for why in lost]
