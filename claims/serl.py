"""SERL's claims on control and resets. What its learner does beside cloning and learning alone is RLPD's claim.

Controller: a mass of 1 kg before a wall of 100,000 N/m, moved at 1 kHz by a spring of K = 2,000 N/m and D = 89 N s/m under a
policy of 10 Hz that asks for random moves, on the whole forward, 60 times and then for the farthest target 20 times. Arms: the
controller's error limited to Δ = 3 mm in the fast loop; no limit; the policy's action limited instead. Peak contact force
against K Δ + 2 D Δ f = 540 N; the lasting force against K Δ = 6 N.

Resets: FetchReach's arm goes to a goal and back to where it began, one agent for each, 40 scripted demonstrations (20 each
way), 4,000 steps, batch 128, a safety reset every 20 episodes; success of the last 1,000 steps, exploration included.
The same with observations standardised by the demonstrations is reported and decides nothing. Forced resets cannot exceed one
step in twenty, so that their number decides nothing either.
"""

import tempfile
from pathlib import Path

import numpy as np

from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.control import train_controller
from anypolicy.parts.frames import force_bound
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.control.wall import DAMPING, STIFFNESS, wall

CLAIM = (
    "an error limited in the fast loop bounds the contact force whatever the policy asks, which without it peaks more than "
    "three times as high; two agents that undo each other's work, with a reset every 20 episodes, end well in more than .9 "
    "of the episodes both ways (arXiv 2401.16013)"
)
SEEDS = 5
ARMS = ("error-limited", "unlimited", "action-limited", "reset-free", "reset-free-standardised")
LIMITS = {"error-limited": "error", "unlimited": "none", "action-limited": "action"}
STEPS, DELTA, HERTZ = 4000, 0.003, 1000


def press(limits: str, seed: int) -> dict:
    """Peak and lasting force, and the actions that it took to touch the wall."""
    env, rng = wall(limits, delta=DELTA, hertz=HERTZ, fragile=1e9), numpy_generator(seed, "press")
    env.reset(seed=seed)
    actions = [*rng.uniform(-0.2, 1.0, 60), *np.ones(20)]
    peaks = [env.step(np.array([a], np.float32))[-1]["peak_force"] for a in actions]
    return {"peak": env.peak, "pull": env.pulled, "lasting": env.contact, "touch": sum(p == 0 for p in peaks)}


def run(arm: str, seed: int) -> dict:
    if arm in LIMITS:
        return press(LIMITS[arm], seed)
    with tempfile.TemporaryDirectory() as folder:
        done = train_controller(
            "serl", task="back-and-forth:forced_every=20", demos=f"scripted:episodes=40,seed={seed}",
            knobs={"batch": 128, "standardise": arm == "reset-free-standardised"}, steps=STEPS, seed=seed, out=Path(folder) / "run", quiet=True, trackers=(),
            eval_every=0, eval_episodes=1, checkpoint_every=0,
        )  # fmt: skip
    rows = [{"success/0": 0.0, "success/1": 0.0} | r for r in done.rows if "event" not in r]  # no episode that ended: 0
    return {
        "there": rows[-1]["success/0"], "back": rows[-1]["success/1"], "resets": rows[-1]["resets/forced"] / 1000,
        "seconds": done.seconds, "curve": [(r["step"], (r["success/0"] + r["success/1"]) / 2) for r in rows],
    }  # fmt: skip


CURVE, CURVE_ARMS = "success, mean of both ways", ("reset-free", "reset-free-standardised")
BOUND = force_bound(STIFFNESS, DELTA, DAMPING, float(HERTZ))
CHECKS = [
    Check("peak contact force with a limited error", f"< {BOUND:.0f} N", lambda r: r["error-limited"]["peak"], below=BOUND,
          kind="each"),
    Check("lasting force with a limited error", "< 6.01 N", lambda r: r["error-limited"]["lasting"],
          below=1.0015 * STIFFNESS * DELTA, kind="each"),
    Check("peak contact force without a limit, in limited ones", "ratio > 3",
          lambda r: r["unlimited"]["peak"] / r["error-limited"]["peak"], above=3.0, kind="ratio"),
    Check("steps that do not follow a forced reset", "share > 0.95", lambda r: 1 - r["reset-free"]["resets"], above=0.95,
          kind="share", core=False),
    Check("success on the way there", "> 0.9", lambda r: r["reset-free"]["there"], above=0.9, kind="share"),
    Check("success on the way back", "> 0.9", lambda r: r["reset-free"]["back"], above=0.9, kind="share"),
    Check("success on the way there, standardised", "> 0.9", lambda r: r["reset-free-standardised"]["there"], above=0.9,
          kind="share", core=False),
    Check("success on the way back, standardised", "> 0.9", lambda r: r["reset-free-standardised"]["back"], above=0.9,
          kind="share", core=False),
    Check("actions until the wall is touched: a limited action against a limited error", "difference > 0",
          lambda r: r["action-limited"]["touch"] - r["error-limited"]["touch"], above=0.0, core=False),
]  # fmt: skip
NOTE = (
    "the peak force is at most {0.high:.0f} N, so that the bound of 540 is loose: {2:.1f} times that, without a limit, is within it too; "
    "without resets {4:.2f} of the episodes there and {5:.2f} back end well, where 0.9 was asked, with standardised observations "
    "{6.point:.2f} and {7.point:.2f}"
)
AMENDMENTS = (
    Amendment("2,000 steps instead of 3,000; a way in which no episode ended counts as failed",
              "2026-11-26", "after a look", "cost; such a way has no mean"),
    Amendment("4,000 steps, batch 128, discount .96 instead of 2,000, 256, .99",
              "2026-11-26", "after a look", "longer learning, at the method's own discount"),
    Amendment("a reported arm with standardised observations",
              "2026-11-26", "after a look", "without them few episodes ended well"),
    Amendment("the share of steps without a forced reset is reported, and not in the sentence",
              "2026-12-01", "after a look", "with a reset every 20 episodes it cannot fail"),
    Amendment("the sentence states the peak without a limit and the success of .9",
              "2026-12-01", "after a look", "core checks decide on them"),
    Amendment("the ratio of forces is judged by its logarithm; bounds of force on every seed",
              "2026-12-01", "after a look", "what the numbers are"),
    Amendment("success is judged as a share, which needs ten seeds",
              "2026-12-01", "after a look", "one seed can fail as a whole, which a t interval of five does not show"),
)  # fmt: skip
