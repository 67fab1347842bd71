"""Cog-Rethinker's claim: asking unsolved prompts again, and imitating what that finds, opens prompts that DAPO does not.

Reverse and pick: a two-layer transformer that does easy prompts (3 and 4 digits) and takes a wrong way on hard ones (6 and
7 digits) but for 1 % of direct responses, 12 % where steps are asked for, 25 % where a wrong answer is shown. Three
quarters of the prompts are hard. 12 groups a step, 8 responses, AdamW 3e-4, λ = 0.1, up to three draws a step, the
verifier's reward alone. Every arm ends when 48,000 responses are sampled, those of fallback stages counted. Metric:
accuracy under the direct prompt at temperature 1 on 200 hard prompts, four responses each. "no-imitation" is Cog-Rethinker
with λ = 0: its fallback groups train under their own prompts only. The examples of the buffers are not used here.
"""

from dataclasses import replace

from anypolicy.compose import compose
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.language import fit
from anypolicy.stages.common import VerifierReward
from anypolicy.stages.recipe import GroupRecipe, Optimiser
from anypolicy.tasks.language.reverse_and_pick import ReverseAndPick

CLAIM = (
    "at equal samples Cog-Rethinker's direct accuracy on hard prompts ends more than 0.5 above DAPO's and more than 0.5 above "
    "its own without the supervised term (arXiv 2510.15979)"
)
SEEDS = 10
CURVE = "direct accuracy on hard prompts, by thousands of sampled responses"
ARMS = ("dapo", "no-imitation", "cog-rethinker")
PROMPTS, GROUP, SAMPLES, EVERY = 12, 8, 48_000, 8_000


def recipe(arm: str) -> GroupRecipe:
    """One arm; equal in everything but what it is named for."""
    if arm == "dapo":
        made = replace(
            compose("dapo", {"dapo": {"group_size": GROUP, "max_rounds": 3}}).recipe, reward=VerifierReward()
        )
    else:
        coef = 0.0 if arm == "no-imitation" else 0.1
        knobs = {"group_size": GROUP, "imitation_coef": coef, "examples": 0}
        made = compose("cog-rethinker", {"cog-rethinker": knobs}).recipe
    return replace(made, optimiser=Optimiser(lr=3e-4))


def run(arm: str, seed: int) -> dict:
    task = ReverseAndPick(seed, base="staged")
    policy = task.make_policy(seed)
    base = end = task.probe(policy)
    curve, used, step, first = [(0, base["hard"])], 0, 0, []
    for log, _ in fit(recipe(arm), task, policy, steps=SAMPLES, prompts=PROMPTS, seed=seed):
        used += round(log["tokens/generated"] / log["length/mean"])
        step += 1
        first.append(log["groups/kept"])
        if used >= EVERY * len(curve):
            end = task.probe(policy)
            curve += [(k * EVERY // 1000, end["hard"]) for k in range(len(curve), used // EVERY + 1)]
        if used >= SAMPLES:
            break
    return {
        "base": base["hard"], "hard": end["hard"], "base_easy": base["easy"], "easy": end["easy"], "steps": step,
        "samples": used, "kept_first_10": sum(first[:10]) / 10, "curve": curve[: SAMPLES // EVERY + 1],
    }  # fmt: skip


def gap(other: str):
    return lambda r: r["cog-rethinker"]["hard"] - r[other]["hard"]


CHECKS = [
    Check("above DAPO on hard prompts", "difference > 0.5", gap("dapo"), above=0.5, refuted=0.0, kind="share"),
    Check("above itself without the supervised term", "difference > 0.5", gap("no-imitation"), above=0.5, refuted=0.0,
          kind="share"),
    Check("easy prompts stay solved", "accuracy > 0.95", lambda r: r["cog-rethinker"]["easy"], above=0.95, kind="share",
          core=False),
    Check("more groups with a signal in the first ten steps", "Cog-Rethinker − DAPO > 0",
          lambda r: r["cog-rethinker"]["kept_first_10"] - r["dapo"]["kept_first_10"], above=0.0, core=False),
]  # fmt: skip
NOTE = "it ends {0:.2f} above DAPO and {1:.2f} above itself without the supervised term, where more than 0.5 was asked of both"
AMENDMENTS = (
    Amendment("checks have kinds: accuracies need ten seeds", "2026-12-01", "after a look",
              "a t interval of few shares decides too often"),
    Amendment("“above by 0.5” and “above, else refuted” are one check with both bounds, for DAPO and for the ablation",
              "2026-12-01", "after a look", "each pair was the same number twice"),
    Amendment("the sentence says 0.5 of both comparisons", "2026-12-01", "after a look",
              "it could be read as saying it of DAPO alone"),
    Amendment(
        "ten seeds instead of five",
        "2026-12-01",
        "after a look",
        "shares of success need ten, and the other checks are measured with them",
    ),
)  # fmt: skip
