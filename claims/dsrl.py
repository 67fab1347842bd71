"""DSRL's claim: steering the noise of a mediocre frozen base lifts it, with noise aliasing sooner than by SAC on noise.

reacher-sparse: reward 1 inside .025 of the target, 50 steps, discount .95. 40 scripted demonstrations, of which about
half miss the target by .058 with another elbow. The base is a flow (3 × 128, 8 Euler steps) cloned from them by 2,500
updates, the same for all arms of a seed; it is hashed before and after. DSRL-NA: noise within ±1.5, 4 critics of which 2
are compared, 2 × 128, half of every batch demonstrations, 4 updates and 2 distillations a step, entropy target 0, first
temperature .01, batch 128. DSRL-SAC: SAC on the noise, two critics of the same size, 4 updates a step, its own experience
alone, for demonstrations hold no noise. The arm "na-online" is NA with two critics and without demonstrations: beside SAC it
differs in aliasing alone (and in tanh networks for ReLU ones). 500 of 3,000 environment steps are the base's.
Steering can avoid the bad mode; it cannot correct an action that no noise gives. Metric: share of 50 evaluation episodes
that end inside the radius.
"""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families import control

CLAIM = (
    "after 3,000 steps steering has lifted the success of a cloned base by at least .2 without changing it, and at 2,000 steps "
    "noise aliasing is ahead of SAC on noise (arXiv 2506.15799)"
)
SEEDS = 5
CURVE = "success at the last step, reacher-sparse"
CURVE_ARMS = ("na", "na-online", "sac")
ARMS = ("base", *CURVE_ARMS)
STEPS, EVERY, EPISODES, CLONING = 3000, 500, 50, 2500
CLONED = {"hidden": (128, 128, 128), "denoising_steps": 8, "lr": 1e-3, "batch": 256}
SHARED: dict[str, Any] = {
    "magnitude": 1.5, "hidden": (128, 128), "discount": 0.95, "batch": 128, "updates": 4, "alpha": 0.01,
    "target_entropy": 0.0, "warmup": 500,
}  # fmt: skip
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "na": ("dsrl", {"ensemble": 4, "subset": 2, "distillations": 2, "offline_share": 0.5}),
    "na-online": ("dsrl", {"distillations": 2}),
    "sac": ("dsrl-sac", {}),
}


def settings(seed: int, steps: int, demos: bool) -> control.ControlSettings:
    given = f"scripted:episodes=40,seed={seed}" if demos else None
    return control.ControlSettings("reacher-sparse", steps=steps, seed=seed, demos=given, trackers=())


def cloned(seed: int, folder: Path) -> control.World:
    """The base of a seed, saved as a run saves its policy."""
    p = control.plan("bc", settings(seed, CLONING, True), CLONED)
    world = control.World(p)
    world.begin()
    world.loop.run(CLONING)
    control.save_controller(folder, p, world.learner)
    return world


def digest(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in module.state_dict().values())).hexdigest()


def run(arm: str, seed: int) -> dict:
    with TemporaryDirectory() as folder:
        base = cloned(seed, Path(folder))
        if arm == "base":
            measured = base.evaluate(0, 2 * EPISODES)[0]
            return {"success": measured["eval/success"], "inside": measured["eval/return"]}
        method, own = OWN[arm]
        knobs = {**SHARED, **own, "base": folder}
        world = control.World(
            control.plan(method, settings(seed, STEPS, OWN[arm][1].get("offline_share", 0) > 0), knobs)
        )
    world.begin()
    before, curve, inside = digest(world.learner.modules["base"]), [], 0.0
    for step in range(0, STEPS + 1, EVERY):
        if step:
            world.loop.run(EVERY)
        measured = world.evaluate(step, EPISODES)[0]
        curve.append((step, measured["eval/success"]))
        inside = measured["eval/return"]
    changed = float(digest(world.learner.modules["base"]) != before)
    return {"success": curve[-1][1], "at_2000": dict(curve)[2000], "inside": inside, "changed": changed, "curve": curve}


def gap(a: str, b: str, what: str = "success"):
    return lambda r: r[a][what] - r[b][what]


CHECKS = [
    Check("success above the base at 3,000 steps", "difference > .2", gap("na", "base"), above=0.2, refuted=0.0, kind="share"),
    Check("noise aliasing ahead of SAC on noise at 2,000 steps", "difference > 0", gap("na", "sac", "at_2000"), above=0.0,
          kind="share"),
    Check("the base has not changed", "changed bases < .5", lambda r: sum(r[a]["changed"] for a in OWN), below=0.5, kind="each"),
    Check("aliasing alone, without demonstrations, ahead of SAC at 2,000 steps", "difference > 0",
          gap("na-online", "sac", "at_2000"), above=0.0, kind="share", core=False),
    Check("steps inside the radius, of 50: above the base", "difference > 0", gap("na", "base", "inside"), above=0.0,
          kind="share", core=False),
    Check("the base is mediocre", "success < .5", lambda r: r["base"]["success"], below=0.5, kind="share", core=False),
]  # fmt: skip
NOTE = (
    "{0:.2f} over the base, where 0.2 was asked; at 2,000 steps noise aliasing less SAC on noise is {1:.2f}, and {3:.2f} "
    "without demonstrations"
)
AMENDMENTS = (
    Amendment("above the base by .2 decides, not by 0 alone",
              "2026-11-25", "before a look", "the whole effect is what is expected"),
    Amendment("the arm na learns with entropy in its targets, as the method does by default",
              "2026-11-26", "before a look", "SAC on noise has it too"),
    Amendment("a reported arm na-online: two critics, no demonstrations",
              "2026-11-26", "before a look", "beside SAC on noise it differs in aliasing alone"),
    Amendment("the core checks > 0 and > .2 over the base became one: > .2, refuted at 0",
              "2026-12-01", "after a look", "they judged the same number twice"),
    Amendment("the sentence says that the base is not changed, instead of frozen",
              "2026-12-01", "after a look", "a core check decides on it"),
    Amendment("success and steps inside are judged as shares, which need ten seeds; the unchanged base on every seed",
              "2026-12-01", "after a look", "one seed can fail as a whole, which a t interval of five does not show"),
)  # fmt: skip
