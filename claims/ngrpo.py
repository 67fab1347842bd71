"""NGRPO's claim: on prompts that the policy gets wrong with confidence, all-wrong groups carry a signal GRPO ignores.

Tabular lock, 64 prompts, two tokens out of eight: 16 easy prompts, 48 hard ones with +bias on one fixed wrong token per
position. 300 steps, all prompts every step, 4 passes over each batch, SGD 0.5 per prompt. All arms without entropy
bonus and without a filter (every prompt is drawn in every step, and an all-correct group has advantage 0 in any case; dropping
it would only change the denominator of the mean), so that only advantage and clip differ. Metric: exact success on the hard
prompts. The boundary, three tokens and no dominant wrong answer, runs 400 steps; its metric is success on all prompts.
"""

from dataclasses import replace

from anypolicy.compose import compose
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.language import fit
from anypolicy.stages.common import Clip, KeepAll, PolicyLoss
from anypolicy.stages.recipe import GroupRecipe, Optimiser
from anypolicy.tasks.language.tabular_lock import TabularLock

CLAIM = (
    "at bias 4, NGRPO ends with at least 1.5 times GRPO's success on confidently wrong prompts, and above GRPO with clip 0.2/0.28 "
    "(arXiv 2509.18851)"
)
SEEDS = 10
CURVE = "success on hard prompts, bias 4"
CURVE_ARMS = ("grpo", "grpo-clip-higher", "calibration-only", "ngrpo")
ARMS = ("grpo", "grpo-clip-higher", "ngrpo", "calibration-only", "grpo-bias-3", "ngrpo-bias-3", "grpo-unbiased",
        "ngrpo-unbiased")  # fmt: skip
STEPS, PROMPTS, PASSES = 300, 64, 4


def recipe(name: str) -> GroupRecipe:
    """One arm; equal in everything but what it is named for."""
    clip = {"ngrpo": Clip(0.16, 0.24), "grpo-clip-higher": Clip(0.2, 0.28)}.get(name, Clip(0.2, 0.2))
    base = compose("ngrpo" if name in ("ngrpo", "calibration-only") else "grpo").recipe
    return replace(
        base,
        loss=PolicyLoss(clip, aggregation="token-mean"),
        selection=KeepAll(),
        optimiser=Optimiser("sgd", lr=0.5 * PROMPTS, grad_clip=None, epochs=PASSES),
    )


def run(arm: str, seed: int) -> dict:
    unbiased = arm.endswith("-unbiased")
    bias = 3.0 if arm.endswith("-bias-3") else 4.0
    task = (
        TabularLock(seed, start="graded", prompts=PROMPTS, length=3, low=0.0, high=0.0)
        if unbiased
        else TabularLock(seed, start="confident", prompts=PROMPTS, length=2, sigma=0.5, bias=bias)
    )
    metric = "success" if unbiased else "success_hard"
    policy = task.make_policy(seed)
    name = arm.removesuffix("-bias-3").removesuffix("-unbiased")
    curve, all_wrong = [(0, task.probe(policy)[metric])], 0.0
    steps = 400 if unbiased else STEPS
    for step, (log, _) in enumerate(fit(recipe(name), task, policy, steps=steps, prompts=PROMPTS, seed=seed), 1):
        all_wrong = log["groups/all_wrong"]
        if step % 25 == 0:
            curve.append((step, task.probe(policy)[metric]))
    return {"start": curve[0][1], "end": curve[-1][1], "all_wrong": all_wrong, "curve": curve}


CHECKS = [
    Check("success over GRPO's at bias 4", "NGRPO / GRPO > 1.5", lambda r: r["ngrpo"]["end"] / r["grpo"]["end"], above=1.5,
          refuted=1.0, kind="ratio"),
    Check("above GRPO with clip 0.2/0.28 at bias 4", "difference > 0",
          lambda r: r["ngrpo"]["end"] - r["grpo-clip-higher"]["end"], above=0.0, kind="share"),
    Check("calibration alone above GRPO", "difference > 0",
          lambda r: r["calibration-only"]["end"] - r["grpo"]["end"], above=0.0, kind="share", core=False),
    Check("above GRPO at bias 3", "difference > 0",
          lambda r: r["ngrpo-bias-3"]["end"] - r["grpo-bias-3"]["end"], above=0.0, kind="share", core=False),
    Check("fewer all-wrong groups at the end", "difference < 0",
          lambda r: r["ngrpo"]["all_wrong"] - r["grpo"]["all_wrong"], below=0.0, kind="share", core=False),
    Check("boundary: below GRPO without a dominant wrong answer, three tokens", "difference < 0",
          lambda r: r["ngrpo-unbiased"]["end"] - r["grpo-unbiased"]["end"], below=0.0, kind="share", core=False),
]  # fmt: skip
NOTE = "{0:.2f} times GRPO's success; without a dominant wrong answer it ends {5:.3f} from GRPO"
AMENDMENTS = (
    Amendment("no arm has a filter; NGRPO's dropped groups that were all correct", "2026-11-24", "after a look",
              "dropping changes the denominator of the mean, so more than advantage and clip differed; all arms were run again"),
    Amendment("the boundary runs 400 steps instead of 300", "2026-11-24", "after a look", "its expectation was for 400"),
    Amendment("“above 1.5 GRPO” and “above GRPO, else refuted” are one check of the ratio, with 1.5 and 1 as bounds", "2026-12-01",
              "after a look", "they were one statement, and a difference from 1.5 GRPO below 0 does not refute"),
    Amendment("checks have kinds: success is a share, which needs ten seeds", "2026-12-01", "after a look",
              "a t interval of few shares decides too often"),
    Amendment("the sentence names GRPO with clip 0.2/0.28; the boundary's check says “below” for “not better”", "2026-12-01",
              "after a look", "the sentence and the decisive checks now say the same"),
)  # fmt: skip
