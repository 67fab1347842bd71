"""EXPO's claim: choosing among samples of an imitating base and edits of them beats the base and the samples alone.

reacher-sparse: reward 1 inside .025 of the target, 50 steps, discount .95. 40 scripted demonstrations, of which about
half miss the target by .058 with another elbow. The base is a flow (3 × 128, 8 Euler steps) cloned from them by 2,500
updates, the same for all arms of a seed. EXPO: 4 samples, 4 edits of at most .3, 4 critics of which 2 are compared, 4
critic updates a step, batch 128, first temperature .01, 3,000 environment steps. Best-of-N: the same without edits. RLPD:
the same critics and data, a Gaussian actor, no base; no difference to it is expected here (exploration is easy), so it is
only reported. Metric: share of 50 evaluation episodes that end inside the radius.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families import control

CLAIM = (
    "after 3,000 steps sampling, editing and choosing by value ends at least .1 above choosing among samples, and both end "
    "above the cloned base (arXiv 2507.07986)"
)
SEEDS = 5
CURVE = "success at the last step, reacher-sparse"
CURVE_ARMS = ("expo", "best-of-n", "rlpd")
ARMS = ("base", "expo", "best-of-n", "rlpd")
STEPS, EVERY, EPISODES, CLONING = 3000, 500, 50, 2500
CLONED = {"hidden": (128, 128, 128), "denoising_steps": 8, "lr": 1e-3, "batch": 256}
SHARED: dict[str, Any] = {
    "hidden": (128, 128), "ensemble": 4, "subset": 2, "discount": 0.95, "batch": 128, "updates": 4, "alpha": 0.01,
    "offline_share": 0.5,
}  # fmt: skip
CHOICE = {"samples": 4, "beta": 0.3, "warmup": 0, "base_lr": 1e-3}
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "expo": ("expo-expressive", {**CHOICE, "edits": 4}),
    "best-of-n": ("expo-expressive", {**CHOICE, "edits": 0}),
    "rlpd": ("rlpd", {"backup_entropy": False, "warmup": 500}),
}


def settings(seed: int, steps: int) -> control.ControlSettings:
    demos = f"scripted:episodes=40,seed={seed}"
    return control.ControlSettings("reacher-sparse", steps=steps, seed=seed, demos=demos, trackers=())


def cloned(seed: int, folder: Path) -> control.World:
    """The base of a seed, saved as a run saves its policy."""
    p = control.plan("bc", settings(seed, CLONING), CLONED)
    world = control.World(p)
    world.begin()
    world.loop.run(CLONING)
    control.save_controller(folder, p, world.learner)
    return world


def run(arm: str, seed: int) -> dict:
    with TemporaryDirectory() as folder:
        base = cloned(seed, Path(folder))
        if arm == "base":
            measured = base.evaluate(0, 2 * EPISODES)[0]
            return {"success": measured["eval/success"], "inside": measured["eval/return"]}
        method, own = OWN[arm]
        given = {} if arm == "rlpd" else {"base": folder}
        world = control.World(control.plan(method, settings(seed, STEPS), {**SHARED, **own, **given}))
    world.begin()
    curve, inside = [], 0.0
    for step in range(0, STEPS + 1, EVERY):
        if step:
            world.loop.run(EVERY)
        measured = world.evaluate(step, EPISODES)[0]
        curve.append((step, measured["eval/success"]))
        inside = measured["eval/return"]
    return {"success": curve[-1][1], "inside": inside, "curve": curve}


def gap(a: str, b: str, what: str = "success"):
    return lambda r: r[a][what] - r[b][what]


CHECKS = [
    Check("above best-of-N", "difference > .1", gap("expo", "best-of-n"), above=0.1, refuted=0.0, kind="share"),
    Check("above the base", "difference > 0", gap("expo", "base"), above=0.0, kind="share"),
    Check("best-of-N above the base", "difference > 0", gap("best-of-n", "base"), above=0.0, kind="share"),
    Check("steps inside the radius, of 50: above best-of-N", "difference > 0", gap("expo", "best-of-n", "inside"), above=0.0,
          kind="share", core=False),
    Check("the base is mediocre", "success < .5", lambda r: r["base"]["success"], below=0.5, kind="share", core=False),
    Check("RLPD, without a base, ends above", "difference > 0", gap("rlpd", "expo"), above=0.0, kind="share", core=False),
]  # fmt: skip
NOTE = (
    "{0:.2f} above choosing among samples, where 0.1 was asked; {1:.2f} over the base, choosing among samples {2:.2f}"
)
AMENDMENTS = (
    Amendment("above best-of-N by .1 decides, not by 0 alone",
              "2026-11-25", "before a look", "the whole effect is what is expected"),
    Amendment("the core checks > 0 and > .1 over best-of-N became one: > .1, refuted at 0",
              "2026-12-01", "after a look", "they judged the same number twice"),
    Amendment("the reported check of RLPD asks whether it ends above, not whether it is not behind",
              "2026-12-01", "after a look", "its bound is 0"),
    Amendment("outcomes are judged as shares, which need ten seeds",
              "2026-12-01", "after a look", "one seed can fail as a whole, which a t interval of five does not show"),
)  # fmt: skip
