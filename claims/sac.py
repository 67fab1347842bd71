"""SAC's claim: a learned temperature does away with tuning it for every scale of the reward.

Pendulum with rewards multiplied by 1, 0.05 and 0.005 while training (evaluation unscaled); actor and two critics (LayerNorm) of two
layers of 64, batch 128, 5,000 environment steps, one update a step, 500 uniform steps at first, discount
0.98, tau 0.01, rates 1e-3, that of ln α 3e-3 (3e-4 could move α only sixfold in so few steps). Arms: α learned from 1 with
H = −1, and fixed at 1, 0.2 and 0.02. Metric: mean return of 20 evaluation episodes at the end.

A fixed α fails as soon as it is a few times the scale of the reward. One that is too small does not hurt in Pendulum, where
exploring is easy: that is not claimed.
"""

import tempfile
from pathlib import Path

from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families import control

CLAIM = (
    "one setting with a learned temperature is as good as the best fixed one at every scale of the reward and, at the two larger "
    "ones, ends near the entropy asked for; a fixed one fails as soon as it is large beside the rewards (arXiv 1812.05905)"
)
SEEDS = 5
CURVE = "mean return by environment step"
SCALES = ("1", "0.05", "0.005")
FIXED = ("1", "0.2", "0.02")
ARMS = tuple(f"{alpha}@{scale}" for scale in SCALES for alpha in ("auto", *FIXED))
CURVE_ARMS = ("auto@0.05", "1@0.05", "0.02@0.05")
STEPS = 5000


def run(arm: str, seed: int) -> dict:
    alpha, _, scale = arm.partition("@")
    knobs = {"hidden": (64, 64), "lr": 1e-3, "alpha_lr": 3e-3, "discount": 0.98, "tau": 0.01, "batch": 128, "warmup": 500,
             "layer_norm": True} | ({} if alpha == "auto" else {"alpha": float(alpha), "learn_alpha": False})  # fmt: skip
    settings = {"steps": STEPS, "seed": seed, "trackers": (), "eval_every": STEPS // 5, "checkpoint_every": 0,
                "eval_episodes": 20}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        made = control.train_controller("sac", task=f"gym/Pendulum-v1:reward_scale={scale}", knobs=knobs, quiet=True,
                                        out=Path(folder) / "run", **settings)  # fmt: skip
    returns = [(r["step"], r["eval/return"] / float(scale)) for r in made.evaluations()]
    last = [r for r in made.rows if "entropy" in r][-1]
    return {"return": returns[-1][1], "entropy": last["entropy"], "alpha": last["alpha"], "curve": returns}


def behind_the_best(scale: str):
    return lambda r: r[f"auto@{scale}"]["return"] - max(r[f"{a}@{scale}"]["return"] for a in FIXED)


def above(alpha: str, scale: str):
    return lambda r: r[f"auto@{scale}"]["return"] - r[f"{alpha}@{scale}"]["return"]


CHECKS = [
    Check("scale 1: within 60 of the best fixed α of the same seed", "> −60", behind_the_best("1"), above=-60.0, refuted=-150.0,
          kind="share"),
    Check("scale 0.05: within 60 of the best fixed α of the same seed", "> −60", behind_the_best("0.05"), above=-60.0,
          refuted=-150.0, kind="share"),
    Check("scale 0.05: above α = 1", "> 150", above("1", "0.05"), above=150.0, kind="share"),
    Check("scale 0.005: above α = 1", "> 0", above("1", "0.005"), above=0.0, kind="share"),
    Check("scale 0.005: above α = 0.2", "> 0", above("0.2", "0.005"), above=0.0, kind="share"),
    Check("scale 1: the entropy ends near H = −1", "distance < 0.3", lambda r: abs(r["auto@1"]["entropy"] + 1), below=0.3,
          refuted=0.3),
    Check("scale 0.05: the entropy ends near H = −1", "distance < 0.3", lambda r: abs(r["auto@0.05"]["entropy"] + 1), below=0.3,
          refuted=0.3),
    Check("scale 0.005: above α = 0.02", "> 0", above("0.02", "0.005"), above=0.0, kind="share"),
]  # fmt: skip
NOTE = (
    "beside the best fixed temperature of each seed {0:.0f} at scale 1 and {1:.0f} at 0.05, where −60 was allowed; {2:.0f} above a "
    "temperature of 1 there, and at 0.005 {3:.0f} above 1, {4:.0f} above 0.2, {7:.0f} above 0.02"
)
AMENDMENTS = (
    Amendment("at scale 0.005 above α = 0.02 decides, which was only reported",
              "2026-12-01", "after a look", "the sentence says: at every scale"),
    Amendment("the sentence states the entropy", "2026-12-01", "after a look", "core checks decide on it"),
    Amendment("more than 150 behind the best fixed α refutes, and an entropy more than 0.3 from H",
              "2026-12-01", "after a look", "so the claim's rule says"),
    Amendment("returns are judged as shares, which need ten seeds",
              "2026-12-01", "after a look", "one seed can fail as a whole, which a t interval of five does not show"),
)  # fmt: skip
