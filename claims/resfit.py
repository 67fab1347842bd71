"""ResFiT's claim: a residual learnt off-policy lifts a mediocre cloned policy, sooner than learning from scratch.

reacher-sparse: reward 1 inside .025 of the target, 50 steps, discount .95. 40 scripted demonstrations, of which about
half miss the target by .058 (another elbow, another aim), so that the cloned flow averages two modes. The base arm is
that flow, before any correction: the residual's last layer is zero at first. ResFiT: 500 steps of the base with uniform
noise, 2,000 critic updates before the actor moves, residual scale .3, 4 critic updates a step. RLPD has the same number
and size of critics, the same demonstrations and updates, and a Gaussian actor without base. 3,000 environment steps.
Metric: share of 50 evaluation episodes that end inside the radius.
"""

from typing import Any

from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families import control

CLAIM = (
    "after 3,000 steps the residual has lifted the success of a base cloned from half-bad demonstrations by at least .3 "
    "and keeps it inside the radius for longer, and on the way it is ahead of RLPD (arXiv 2509.19301)"
)
SEEDS = 10
CURVE = "success at the last step, reacher-sparse"
CURVE_ARMS = ("resfit", "rlpd")
ARMS = ("base", "resfit", "rlpd")
STEPS, EVERY, EPISODES = 3000, 500, 50
SHARED: dict[str, Any] = {
    "hidden": (128, 128),
    "ensemble": 4,
    "discount": 0.95,
    "batch": 128,
    "updates": 4,
    "warmup": 500,
}
RESIDUAL = {
    "action_scale": 0.3, "noise": 0.1, "noise_clip": 0.3, "warmup_noise": 0.2, "critic_warmup": 2000, "q_range": (0.0, 20.0),
    "base_hidden": (128, 128, 128), "base_updates": 2500, "base_lr": 1e-3, "denoising_steps": 8,
}  # fmt: skip
SCRATCH = {"alpha": 0.01, "backup_entropy": False}


def run(arm: str, seed: int) -> dict:
    method, own = ("rlpd", SCRATCH) if arm == "rlpd" else ("resfit", RESIDUAL)
    settings = control.ControlSettings(
        "reacher-sparse", steps=STEPS, seed=seed, demos=f"scripted:episodes=40,seed={seed}", trackers=()
    )
    world = control.World(control.plan(method, settings, {**SHARED, **own}))
    world.begin()
    if arm == "base":
        measured = world.evaluate(0, 2 * EPISODES)[0]
        return {"success": measured["eval/success"], "inside": measured["eval/return"]}
    curve, inside = [], []
    for step in range(0, STEPS + 1, EVERY):
        if step:
            world.loop.run(EVERY)
        measured = world.evaluate(step, EPISODES)[0]
        curve.append((step, measured["eval/success"]))
        inside.append(measured["eval/return"])
    on_the_way = [value for step, value in curve if 1000 <= step <= 2000]
    return {"success": curve[-1][1], "inside": inside[-1], "way": sum(on_the_way) / len(on_the_way), "curve": curve}


CHECKS = [
    Check("success above the base at 3,000 steps", "difference > .3",
          lambda r: r["resfit"]["success"] - r["base"]["success"], above=0.3, refuted=0.15, kind="share"),
    Check("steps inside the radius, of 50: above the base", "difference > 0",
          lambda r: r["resfit"]["inside"] - r["base"]["inside"], above=0.0, kind="share"),
    Check("ahead of RLPD between 1,000 and 2,000 steps", "difference > 0",
          lambda r: r["resfit"]["way"] - r["rlpd"]["way"], above=0.0, kind="share"),
    Check("the base is mediocre", "success < .5", lambda r: r["base"]["success"], below=0.5, kind="share", core=False),
]  # fmt: skip
NOTE = (
    "{0:.2f} over the base, where 0.3 was asked, and {1:.0f} steps of 50 longer inside the radius; between 1,000 and 2,000 steps "
    "{2:.2f} ahead of RLPD"
)
AMENDMENTS = (
    Amendment("the core check > .15 and the reported one > .3 became one core check: > .3, refuted at .15",
              "2026-12-01", "after a look", "the sentence states .3"),
    Amendment("ahead of RLPD on the way decides, which was only reported",
              "2026-12-01", "after a look", "the sentence states it"),
    Amendment("the sentence states the steps inside the radius",
              "2026-12-01", "after a look", "they decided without being in it"),
    Amendment("outcomes are judged as shares, which need ten seeds",
              "2026-12-01", "after a look", "one seed can fail as a whole, which a t interval of five does not show"),
    Amendment("ten seeds instead of five", "2026-12-01", "after a look", "shares of success need ten"),
)  # fmt: skip
