"""PF-PPO's claim with a learned reward model (Bradley–Terry) in place of a given one.

The bandit of PF-PPO's claim: 200 prompts × 20 one-token responses, 5 of them right. For every prompt 20 pairs of a right and a
wrong response are drawn; an annotator prefers the wrong one with probability 0.2. A one-layer transformer (width 64) from
scratch learns from them by Bradley–Terry: 64 pairs a step, AdamW 3e-3, 15 passes; so it knows well what was often compared,
and little of the rest. Its score in (−1, 1) is the reward. All else is as in the other claim, rewards normalised by running
mean and std. R² of every rule is measured on 5 uniform responses a prompt. Metric: exact probability of a right response.
"""

from dataclasses import replace
from pathlib import Path

import torch

from anypolicy.catalogue import get
from anypolicy.compose import compose
from anypolicy.data.preferences import Preference
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.evidence.claims import load
from anypolicy.families.language import fit
from anypolicy.loops.reward_model import PreferenceLoop, calibrate, evaluate_pairs
from anypolicy.policies.language.reward_model import RewardModel
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.runs.seeds import numpy_generator
from anypolicy.stages.recipe import Optimiser
from anypolicy.studies.filtration import Scored, filtration_table

CLAIM = "with a learned reward model best-worst ends above all rows by 0.02 and best-of-n below (arXiv 2409.06957)"
SEEDS = 10
CURVE = "probability of a right response"
ARMS = CURVE_ARMS = ("none", "best-of-n", "best-random", "best-worst")
PAIRS, WRONG, PASSES = 20, 0.2, 15

bandit = load(Path(__file__).with_name("pf_ppo.py"))


def preferences(task, seed: int, name: str, n: int, wrong: float) -> list[Preference]:
    """n pairs a prompt of a right and a wrong response, the annotator wrong with a probability."""
    rng, out = numpy_generator(seed, "preferences", name), []
    for prompt, right in zip(task.train, task.right, strict=True):
        for _ in range(n):
            pair = [str(rng.choice(right.nonzero()[0])), str(rng.choice((~right).nonzero()[0]))]
            if rng.random() < wrong:
                pair.reverse()
            out.append(Preference(prompt, *pair))
    return out


def learned(task, seed: int) -> tuple[RewardModel, dict]:
    """The reward model, its accuracy on pairs by a faultless annotator, and the R² of every rule."""
    trunk = small_transformer(
        vocabulary=bandit.PROMPTS + 1,
        layers=1,
        width=64,
        heads=4,
        context_length=4,
        seed=seed,
        eos_id=bandit.PROMPTS,
        pad_id=bandit.PROMPTS,
    )
    model, pairs = RewardModel.from_policy(trunk, seed), preferences(task, seed, "train", PAIRS, WRONG)
    recipe = replace(get("bradley-terry", "reward-model").recipe(), optimiser=Optimiser(lr=3e-3))
    loop = PreferenceLoop(recipe, model, pairs, seed)
    for _ in range(PASSES * len(pairs) // recipe.pairs):
        loop.step()
    model.calibration, model.scale = calibrate(model, pairs), "unit"
    rng, scored = numpy_generator(seed, "agreement"), []
    for prompt, right in zip(task.train, task.right, strict=True):
        shown = rng.integers(0, bandit.RESPONSES, 5)
        rewards = model(prompt, [str(i) for i in shown])
        scored += [Scored(prompt.id, r, float(right[i])) for i, r in zip(shown, rewards, strict=True)]
    facts = {f"r2/{r.rule}": r.r_squared for r in filtration_table(scored, seed=seed).rows}
    return model, facts | evaluate_pairs(model, preferences(task, seed, "held out", 5, 0.0))


def run(arm: str, seed: int) -> dict:
    task = bandit.Bandit(seed, redrawn=False)
    model, facts = learned(task, seed)
    every = [str(i) for i in range(bandit.RESPONSES)]
    task.reward = torch.tensor([model(prompt, every) for prompt in task.train]).numpy()
    recipe = compose("pf-ppo", {"pf-ppo": {"rule": arm, "kl_coef": 0.02}}).recipe
    recipe = replace(
        recipe,
        critic=replace(recipe.critic, lr=bandit.SHARE * bandit.PROMPTS / bandit.STATE**2),
        optimiser=Optimiser("sgd", lr=0.5 * bandit.PROMPTS, grad_clip=None),
    )
    policy = bandit.ScaledTable(task.start)
    curve = [(0, task.success(policy))]
    for step, _ in enumerate(fit(recipe, task, policy, steps=bandit.STEPS, prompts=bandit.PROMPTS, seed=seed), 1):
        if step % 10 == 0:
            curve.append((step, task.success(policy)))
    return {"start": curve[0][1], "end": curve[-1][1], "curve": curve} | facts


def gap(a: str, b: str):
    """Difference of two arms in one seed."""
    return lambda r: r[a]["end"] - r[b]["end"]


CHECKS = [
    Check("best-worst above all rows", "difference > 0.02", gap("best-worst", "none"), above=0.02, refuted=0.0, kind="share"),
    Check("best-of-n below all rows", "difference < 0", gap("best-of-n", "none"), below=0.0, kind="share"),
    Check("best-random above all rows", "difference > 0.02", gap("best-random", "none"), above=0.02, kind="share", core=False),
    Check("all rows improve on the start", "difference > 0", lambda r: r["none"]["end"] - r["none"]["start"], above=0.0,
          kind="share", core=False),
    Check("the reward model orders pairs", "accuracy > 0.5", lambda r: r["none"]["eval/accuracy"], above=0.5, kind="share",
          core=False),
    Check("R² of best-worst above that of all rows", "difference > 0",
          lambda r: r["none"]["r2/best-worst"] - r["none"]["r2/none"], above=0.0, kind="share", core=False),
]  # fmt: skip
NOTE = "seeds differ in sign: against all rows best-worst ends {0:.3f}, where more than 0.02 was asked, and best-of-n {1:.3f}"
AMENDMENTS = (
    Amendment("checks have kinds: success needs ten seeds", "2026-12-01", "after a look",
              "a t interval of few shares decides too often"),
    Amendment("best-worst not above all rows refutes", "2026-12-01", "after a look",
              "it is the other claim's rule, and no check had it"),
    Amendment("ten seeds instead of five", "2026-12-01", "after a look", "shares of success need ten"),
)  # fmt: skip
