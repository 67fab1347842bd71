"""ExPO's claim: where no sampled answer is right, the policy's own explanations of the known answer teach what GRPO cannot.

Task reverse-and-pick: a two-layer transformer that is sure of a wrong way to do hard prompts (6 and 7 digits) and does them
right when it sees the answer. 75 % hard prompts, 12 prompts a step, 8 responses each, AdamW 3e-4, measured after 100 and 200
steps. Arms: GRPO without KL; ExP-GRPO with β 0.04 and 0.5; GRPO + 0.04 · log-likelihood of a right reference in a style that
the policy never uses ("expert"). Metrics on fixed prompts at temperature 1: accuracy and pass@4 on hard ones, accuracy on easy
ones. Some of the hard prompts have the same answer both ways, so the base is right on those.
"""

from dataclasses import replace

from anypolicy.compose import compose
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.language import fit
from anypolicy.methods.language.grao import ReferenceRollout
from anypolicy.stages.recipe import GroupRecipe
from anypolicy.stages.targets import WithImitation
from anypolicy.tasks.language.reverse_and_pick import ReverseAndPick

CLAIM = (
    "after 100 steps ExP-GRPO is at least 20 points above GRPO on prompts the policy is sure to get wrong, and above imitating "
    "right answers of a foreign style (arXiv 2507.02834)"
)
SEEDS = 10
CURVE = "accuracy on hard prompts"
ARMS = ("grpo", "expo", "expert", "expo-0.5")
STEPS = 200


def recipe(arm: str) -> GroupRecipe:
    plain = compose("grpo", {"grpo": {"kl_coef": 0.0}}).recipe
    if arm.startswith("expo"):
        beta = 0.5 if arm == "expo-0.5" else 0.04
        plain = compose("expo-self-explanation", {"expo-self-explanation": {"beta": beta}}).recipe
    if arm == "expert":
        plain = replace(plain, rollout=ReferenceRollout(), loss=WithImitation(plain.loss, 0.04))
    return replace(plain, optimiser=replace(plain.optimiser, lr=3e-4))


def run(arm: str, seed: int) -> dict:
    task = ReverseAndPick(seed, references=True)
    policy = task.make_policy(seed)
    out = {f"start_{k}": v for k, v in task.probe(policy).items()}
    curve, equal, logs = [(0, out["start_hard"])], [], {}
    for step, (log, _) in enumerate(fit(recipe(arm), task, policy, steps=STEPS, prompts=12, seed=seed), 1):
        equal.append(1 - log["groups/mixed"])
        logs = {k: log[k] for k in ("target/logp", "target/logp_sampled") if k in log}
        if step % 20 == 0:
            probe = task.probe(policy)
            curve.append((step, probe["hard"]))
            if step in (100, 200):
                out |= {f"{k}_{step}": v for k, v in probe.items()}
    return {**out, **logs, "equal_groups_100": sum(equal[:100]) / 100, "curve": curve}


def gap(a: str, b: str, name: str):
    return lambda r: r[a][name] - r[b][name]


CHECKS = [
    Check("hard prompts, 100 steps: ExP-GRPO above GRPO", "difference > 0.20", gap("expo", "grpo", "hard_100"), above=0.20,
          refuted=0.20, kind="share"),
    Check("hard prompts, 100 steps: ExP-GRPO above the foreign expert", "difference > 0", gap("expo", "expert", "hard_100"),
          above=0.0, kind="share"),
    Check("the same after 200 steps, above GRPO", "difference > 0.20", gap("expo", "grpo", "hard_200"), above=0.20, kind="share",
          core=False),
    Check("the same after 200 steps, above the foreign expert", "difference > 0", gap("expo", "expert", "hard_200"), above=0.0,
          kind="share", core=False),
    Check("pass@4 on hard prompts, 100 steps: above GRPO", "difference > 0.20", gap("expo", "grpo", "hard_pass_4_100"),
          above=0.20, kind="share", core=False),
    Check("β 0.5 ends below GRPO on hard prompts, 100 steps", "difference < 0", gap("expo-0.5", "grpo", "hard_100"), below=0.0,
          kind="share", core=False),
    Check("β 0.5 loses what was easy", "β 0.5 − GRPO < −0.2", gap("expo-0.5", "grpo", "easy_100"), below=-0.2, kind="share",
          core=False),
    Check("β 0.04 keeps what was easy", "loss < 0.1", lambda r: r["expo"]["start_easy"] - r["expo"]["easy_100"], below=0.1,
          kind="share", core=False),
    Check("GRPO's groups are almost all equal", "share > 0.9", lambda r: r["grpo"]["equal_groups_100"], above=0.9, kind="share",
          core=False),
]  # fmt: skip
NOTE = (
    "seeds differ widely: after 100 steps it is above GRPO by {0:.2f} and above the foreign expert by {1:.2f}, after 200 by "
    "{2:.2f} and {3:.2f}"
)
AMENDMENTS = (
    Amendment("checks have kinds: accuracies need ten seeds", "2026-12-01", "after a look",
              "a t interval of few shares decides too often"),
    Amendment("less than 20 points above GRPO refutes", "2026-12-01", "after a look",
              "it is the rule by which the claim is refuted; without it nothing would"),
    Amendment("ten seeds instead of five", "2026-12-01", "after a look", "shares of success need ten"),
)  # fmt: skip
