"""VADE's claim: choosing prompts by estimated difficulty gives more groups with a signal and more learning per rollout.

Tabular lock, 1024 prompts of two tokens out of eight: a quarter solved (+7), a quarter at +2, half hard (−0.5). 64
prompts a step, 8 responses, 300 steps, SGD 0.6 per prompt, GRPO's advantage. Equal rollouts (153,600); DAPO's refill is
stopped when it has used them. Metric: exact mean success over all prompts, drawn or not.
"""

from dataclasses import replace

import numpy as np

from anypolicy.compose import compose
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.language import fit
from anypolicy.methods.language.vade import ThompsonSampler, information_gain
from anypolicy.runs.seeds import numpy_generator
from anypolicy.stages.common import Clip, PolicyLoss
from anypolicy.stages.recipe import Optimiser
from anypolicy.tasks.language.tabular_lock import TabularLock

CLAIM = (
    "at equal rollouts VADE beats uniform epochs and DAPO's refill in success over all prompts, with at least 1.3 times the groups "
    "with a signal that uniform epochs have (arXiv 2511.18902)"
)
SEEDS = 10
CURVE = "mean success over all prompts"
STEPS, PROMPTS, GROUP = 300, 64, 8
ROLLOUTS = STEPS * PROMPTS * GROUP
SAMPLERS = {
    "vade": "vade", "uniform": "grpo", "dapo-refill": "grpo+dapo.selection", "vade-even": "vade", "vade-no-forgetting": "vade"
}  # fmt: skip
KNOBS = {"vade-even": {"gain": "p(1-p)"}, "vade-no-forgetting": {"fast": 1.0, "slow": 1.0}}
ARMS = (*SAMPLERS, "forgetting")


def run(arm: str, seed: int) -> dict:
    if arm == "forgetting":
        return forgetting(seed)
    task = TabularLock(seed, start="mixture", prompts=1024, length=2, sigma=1.0)
    policy = task.make_policy(seed)
    recipe = compose(SAMPLERS[arm], {"vade": KNOBS[arm]} if arm in KNOBS else {}).recipe
    recipe = replace(
        recipe,
        loss=PolicyLoss(Clip(0.2, 0.2)),
        optimiser=Optimiser("sgd", lr=0.6 * PROMPTS, grad_clip=None),
    )
    curve, used, mixed = [(0, task.probe(policy)["success"])], 0, []
    for step, (log, _) in enumerate(fit(recipe, task, policy, steps=STEPS, prompts=PROMPTS, seed=seed), 1):
        used += round(log["tokens/generated"]) // 2
        mixed.append(log["groups/mixed"])
        if step % 25 == 0:
            curve.append((step, task.probe(policy)["success"]))
        if used >= ROLLOUTS:
            break
    end = task.probe(policy)["success"]
    curve += [(s, end) for s in range(25, STEPS + 1, 25) if s > step]
    middle = [m for i, m in enumerate(mixed) if 100 <= i < 150] or mixed[-10:]
    return {"end": end, "steps": step, "rollouts": used, "mixed_100_150": float(np.mean(middle)), "curve": curve}


def forgetting(seed: int) -> dict:
    """A frozen table whose success rates turn to 1 − p half way: how good are the drawn prompts, before and after?"""
    rng, n, batch, half = numpy_generator(seed, "forgetting"), 512, 32, 200
    out: dict = {}
    start = rng.random(n)
    for name, sampler in (("vade", ThompsonSampler()), ("kept", ThompsonSampler(fast=1.0, slow=1.0))):
        order, quality = sampler.begin(n, seed), []
        for step in range(2 * half):
            p = start if step < half else 1 - start
            drawn = order.draw(batch, step, 0)
            quality.append(information_gain(p[drawn]).mean() / information_gain(p).mean())
            right = rng.binomial(GROUP, p[drawn])
            order.observe([verdicts(i, int(k)) for i, k in zip(drawn, right, strict=True)])
        before, after = np.mean(quality[half - 50 : half]), np.mean(quality[half + 50 : half + 100])
        out[f"{name}_before"], out[f"{name}_regained"] = float(before), float(after / before)
    return out


def verdicts(position: int, right: int) -> Group:
    trajectories = [Trajectory(str(i), [], correct=i < right) for i in range(GROUP)]
    return Group(str(position), Prompt(str(position)), trajectories, position=position)


def gap(a: str, b: str):
    return lambda r: r[a]["end"] - r[b]["end"]


CHECKS = [
    Check("success above uniform at equal rollouts", "difference > 0.03", gap("vade", "uniform"), above=0.03, kind="share"),
    Check("groups with a signal, steps 100–150", "VADE / uniform > 1.3",
          lambda r: r["vade"]["mixed_100_150"] / r["uniform"]["mixed_100_150"], above=1.3, refuted=1.0, kind="ratio"),
    Check("success above DAPO's refill at equal rollouts", "difference > 0", gap("vade", "dapo-refill"), above=0.0, kind="share"),
    Check("forgetting regains the quality of the draw after a change", "VADE − no forgetting > 0",
          lambda r: r["forgetting"]["vade_regained"] - r["forgetting"]["kept_regained"], above=0.0, core=False),
    Check("ablation p(1 − p) is worse in the paper", "VADE − p(1 − p) > 0", gap("vade", "vade-even"), above=0.0, kind="share",
          core=False),
    Check("forgetting helps in the paper", "VADE − no forgetting > 0", gap("vade", "vade-no-forgetting"), above=0.0, kind="share",
          core=False),
]  # fmt: skip
NOTE = (
    "its success differs from that with p(1 − p) by {4:.4f} and from that without forgetting by {5:.3f}, where the paper finds both "
    "gains"
)
AMENDMENTS = (
    Amendment("checks have kinds: success needs ten seeds, the groups with a signal are judged as a ratio", "2026-12-01",
              "after a look", "a t interval of few shares decides too often"),
    Amendment("no more groups with a signal than uniform refutes", "2026-12-01", "after a look",
              "it is the rule by which the claim is refuted, and no check had it"),
    Amendment("the sentence says 1.3 times the groups", "2026-12-01", "after a look",
              "the sentence and the decisive checks now say the same"),
    Amendment(
        "ten seeds instead of eight",
        "2026-12-01",
        "after a look",
        "shares of success need ten, and the other checks are measured with them",
    ),
)  # fmt: skip
