"""The claim of RLPD, and of SERL which builds on it: twenty demonstrations and sparse rewards are enough.

Two tasks with reward 1 at the goal, which ends the episode, and 0 elsewhere: a ball in a U-shaped maze (pointmaze-sparse,
12,000 steps; random play rarely crosses the maze) and a robot arm (fetchreach-sparse, 5,000 steps). 20 scripted
demonstrations, noisy, all with the right aim; in the maze about one in five runs out of time. Arms: behaviour cloning (a
flow, 2,500 updates), SAC without demonstrations, RLPD (10 critics, minimum of 2, LayerNorm, half of every batch
demonstrations), RLPD without LayerNorm, RLPD with the demonstrations put into the one replay instead (the last two on the
arm only: the maze is dear). All that learn online: 4 updates a step, batch 128, two layers of 128 (the paper's 256 and 256
cost four times as much), discount .98, first temperature .01, 300 random steps. Metric: success in 50 evaluation episodes;
at the end the mean of the last two evaluations, within 3,000 steps the best of those until then.

The "std" arms are the same three with observations standardised by the demonstrations. The arm's observations are metres
around (1.3, .8, .5) of which a task changes ± .15, actions are from −1 to 1. Their checks are reported and decide nothing.
"""

from dataclasses import replace
from typing import Any

from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families import control

CLAIM = (
    "with sparse rewards and 20 demonstrations RLPD ends above behaviour cloning and above SAC without demonstrations in the "
    "maze, and reaches .95 within 3,000 steps on the easier arm (arXiv 2302.02948, 2401.16013)"
)
SEEDS = 5
CURVE = "success, pointmaze-sparse"
LEARNERS = ("rlpd", "sac", "no-norm", "one-buffer", "std-rlpd", "std-no-norm", "std-one-buffer")
CURVE_ARMS = ("rlpd-maze", "sac-maze")
ARMS = (*(f"{arm}-maze" for arm in ("bc", "rlpd", "sac")), *(f"{arm}-reach" for arm in ("bc", *LEARNERS)))
TASKS = {"maze": ("pointmaze-sparse", "scripted:episodes=20,bad=0,seed={}", 12_000, 2000),
         "reach": ("fetchreach-sparse", "scripted:episodes=20,seed={}", 5000, 1000)}  # fmt: skip
EPISODES = 50
ONLINE: dict[str, Any] = {
    "hidden": (128, 128), "batch": 128, "updates": 4, "warmup": 300, "discount": 0.98, "alpha": 0.01,
}  # fmt: skip
CLONED = {"hidden": (128, 128, 128), "denoising_steps": 8, "lr": 1e-3}


def world_of(arm: str, task: str, seed: int) -> control.World:
    name, demos, steps, _ = TASKS[task]
    method = arm if arm in ("bc", "sac") else "rlpd"
    knobs = CLONED if arm == "bc" else ONLINE if arm == "sac" else {**ONLINE, "backup_entropy": False}
    if arm.startswith("std-"):
        knobs["standardise"] = True
    if arm.endswith("no-norm"):
        knobs["layer_norm"] = False
    given = None if arm == "sac" else demos.format(seed)
    settings = control.ControlSettings(name, steps=steps, seed=seed, demos=given, trackers=())
    world = control.World(control.plan(method, settings, knobs))
    world.begin()
    if arm.endswith("one-buffer"):
        world.loop.replay.add(world.loop.offline.all())
        world.loop.recipe = replace(world.loop.recipe, offline_share=0.0)
    return world


def run(arm: str, seed: int) -> dict:
    name, _, task = arm.rpartition("-")
    world = world_of(name, task, seed)
    _, _, steps, every = TASKS[task]
    if name == "bc":
        world.loop.run(2500)
        return {"success": world.evaluate(0, 2 * EPISODES)[0]["eval/success"]}
    curve = []
    for step in range(0, steps + 1, every):
        if step:
            world.loop.run(every)
        curve.append((step, world.evaluate(step, EPISODES)[0]["eval/success"]))
    values = [value for _, value in curve]
    early = max(value for step, value in curve if step <= 3000)
    return {"success": sum(values[-2:]) / 2, "mean": sum(values) / len(values), "by_3000": early, "curve": curve}


def gap(a: str, b: str, what: str = "success"):
    return lambda r: r[a][what] - r[b][what]


CHECKS = [
    Check("maze: RLPD above behaviour cloning", "difference > 0", gap("rlpd-maze", "bc-maze"), above=0.0, kind="share"),
    Check("maze: RLPD above SAC without demonstrations", "difference > 0", gap("rlpd-maze", "sac-maze"), above=0.0,
          kind="share"),
    Check("arm: RLPD is reliable within 3,000 steps", "success > .95", lambda r: r["rlpd-reach"]["by_3000"], above=0.95,
          kind="share"),
    Check("maze: SAC without demonstrations hardly learns", "success < .3", lambda r: r["sac-maze"]["success"], below=0.3,
          kind="share", core=False),
    Check("arm: balanced batches better than one replay, over all evaluations", "difference > 0",
          gap("rlpd-reach", "one-buffer-reach", "mean"), above=0.0, kind="share", core=False),
    Check("arm: LayerNorm helps, over all evaluations", "difference > 0", gap("rlpd-reach", "no-norm-reach", "mean"),
          above=0.0, kind="share", core=False),
    Check("arm, standardised: RLPD is reliable within 3,000 steps", "success > .95",
          lambda r: r["std-rlpd-reach"]["by_3000"], above=0.95, kind="share", core=False),
    Check("arm, standardised: balanced batches better than one replay, over all evaluations", "difference > 0",
          gap("std-rlpd-reach", "std-one-buffer-reach", "mean"), above=0.0, kind="share", core=False),
    Check("arm, standardised: LayerNorm helps, over all evaluations", "difference > 0",
          gap("std-rlpd-reach", "std-no-norm-reach", "mean"), above=0.0, kind="share", core=False),
    Check("arm: RLPD ends above behaviour cloning", "difference > 0", gap("rlpd-reach", "bc-reach"), above=0.0, kind="share",
          core=False),
]  # fmt: skip
NOTE = (
    "in the maze {0:.2f} above cloning and {1:.2f} above SAC alone; on the arm {2:.2f} within 3,000 steps, where 0.95 was "
    "asked, with standardised observations {6:.2f}; as they are, its success at the end less cloning's is {9:.2f}"
)
AMENDMENTS = (
    Amendment("12,000 steps in the maze instead of 20,000", "2026-11-26", "before a look", "the maze is dear"),
    Amendment("the arms without LayerNorm and with one replay learn on the arm instead of in the maze",
              "2026-11-26", "before a look", "the maze is dear"),
    Amendment("three reported arms with standardised observations",
              "2026-11-26", "after a look", "after the first seed, RLPD hardly learned on the arm"),
    Amendment("the arm with one replay draws no demonstrations, instead of having none",
              "2026-11-26", "after a look", "RLPD now refuses to have none"),
    Amendment("the sentence says that it is the maze where RLPD ends above the others",
              "2026-12-01", "after a look", "the checks never were about the arm"),
    Amendment("a reported check of RLPD beside cloning on the arm",
              "2026-12-01", "after a look", "the sentence now leaves it out"),
    Amendment("balanced batches, reported: better, instead of at least as good",
              "2026-12-01", "after a look", "the bound is 0, which says better"),
    Amendment("outcomes are judged as shares, which need ten seeds",
              "2026-12-01", "after a look", "one seed can fail as a whole, which a t interval of five does not show"),
)  # fmt: skip
