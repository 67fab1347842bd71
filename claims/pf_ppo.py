"""PF-PPO's claim: with a reward model that errs in the middle, training on a prompt's best and worst (or best and a random)
responses ends above training on all of them, and best-of-n alone ends below; R² tells the order beforehand.

The reward model: a response of true score s is judged with confidence with probability 0.7 (R ~ U(0.6, 1) if s = 1, else
U(−1, −0.6)), else R ~ U(−0.6, 0.6).

(a) R² per sample: 400 prompts, pass rate ~ Beta(4, 4), 5 responses, two draws with replacement per prompt from each rule's
weights. Beside it the broad case, Beta(1.5, 1.5) with confidence 0.5, where best-of-n is not expected below none.

(b) Training: 200 prompts × 20 one-token responses, 5 of them right; R of every (prompt, response) is drawn once, so its
errors persist. The loop, the recipe (PPO with critic, advantage normalised over kept rows, k1 inside the reward) and the
selection are the library's own; task, table policy and step sizes stand here: logits from N(0, 1), 5 fresh samples per
prompt and step, KL coefficient 0.02, one update on all prompts: SGD 0.5 per prompt, value of a prompt moved by 0.3 of its error, 150
steps. The policy's one-hot state is scaled up so that the value head is a table and its one shared bias hardly moves.
Rewards are not normalised: they are of unit size by construction. Metric: exact probability of a right response.
Beside it the case of errors drawn anew for every sample, in which the filter should not be needed.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from anypolicy.compose import compose
from anypolicy.data.records import Prompt
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.language import fit
from anypolicy.parts.filtration import equal_count_means, fit_line, keep
from anypolicy.policies.language.table import TablePolicy
from anypolicy.runs.seeds import generator, numpy_generator
from anypolicy.stages.recipe import Optimiser
from anypolicy.tasks.language.base import Score

CLAIM = (
    "with a reward model that errs persistently in the middle, best-worst and best-random end above all rows by 0.02 and "
    "best-of-n below; per-sample R² is ordered best-worst > best-random > none > best-of-n (arXiv 2409.06957)"
)
SEEDS = 10
CURVE = "probability of a right response"
RULES = ("none", "best-of-n", "best-random", "best-worst")
CURVE_ARMS = RULES
ARMS = (*RULES, "power-3", "none/redrawn", "best-worst/redrawn", "r2", "r2-broad")
PROMPTS, RESPONSES, RIGHT, STEPS, SHARE = 200, 20, 5, 150, 0.3
STATE = 80.0


def reward_model(right: np.ndarray, confidence: float, rng: np.random.Generator) -> np.ndarray:
    """One score for each response, given whether it is right."""
    sure = rng.uniform(0.6, 1.0, right.shape) * np.where(right, 1, -1)
    return np.where(rng.random(right.shape) < confidence, sure, rng.uniform(-0.6, 0.6, right.shape))


class ScaledTable(TablePolicy):
    """A table policy whose one-hot state has length `STATE`."""

    def score(self, batch, temperature, *, entropy=False, hidden=False, logits=False):
        scores = super().score(batch, temperature, entropy=entropy, hidden=hidden)
        return scores if scores.hidden is None else scores._replace(hidden=STATE * scores.hidden)


class Bandit:
    """Prompts with 20 one-token responses each and a reward model over them; its errors stay, or are drawn anew."""

    name, max_tokens, heldout = "bandit", 1, ()

    def __init__(self, seed: int, redrawn: bool):
        self.rng, self.redrawn = numpy_generator(seed, "bandit"), redrawn
        self.right = self.rng.random((PROMPTS, RESPONSES)).argsort(1) < RIGHT
        self.reward = reward_model(self.right, 0.7, self.rng)
        self.start = torch.from_numpy(self.rng.standard_normal((PROMPTS, 1, RESPONSES))).float()
        self.train = [Prompt(f"bandit-{n}", tokens=(n,)) for n in range(PROMPTS)]

    def score(self, prompt, response, text) -> Score:
        at = prompt.tokens[0], int(response[0])
        right = bool(self.right[at])
        value = reward_model(np.array(right), 0.7, self.rng) if self.redrawn else self.reward[at]
        return Score(float(value), right)

    def success(self, policy: TablePolicy) -> float:
        p = policy.module.logits.detach().double().softmax(-1)[:, 0]
        return float((p * torch.from_numpy(self.right)).sum(1).mean())


def train(arm: str, seed: int) -> dict:
    """Part (b)."""
    name, _, redrawn = arm.partition("/")
    rule, _, power = name.partition("-") if name.startswith("power") else (name, "", "2")
    knobs = {"rule": rule, "power": float(power), "kl_coef": 0.02, "normalise_reward": False}
    recipe = compose("pf-ppo", {"pf-ppo": knobs}).recipe
    recipe = replace(
        recipe,
        critic=replace(recipe.critic, lr=SHARE * PROMPTS / STATE**2),
        optimiser=Optimiser("sgd", lr=0.5 * PROMPTS, grad_clip=None),
    )
    task = Bandit(seed, bool(redrawn))
    policy = ScaledTable(task.start)
    curve, rows = [(0, task.success(policy))], 0.0
    for step, (log, _) in enumerate(fit(recipe, task, policy, steps=STEPS, prompts=PROMPTS, seed=seed), 1):
        rows += log["tokens/trained"]
        if step % 10 == 0 or step == 25:
            curve.append((step, task.success(policy)))
    return {"start": curve[0][1], "end": curve[-1][1], "rows": rows, "curve": curve}


def agreement(broad: bool, seed: int) -> dict:
    """Part (a): R² of every rule, per sample and over ten equal-count groups."""
    rng = numpy_generator(seed, "agreement")
    shape = 1.5 if broad else 4.0
    rate = rng.beta(shape, shape, (400, 1))
    right = rng.random((400, 5)) < rate
    reward = torch.from_numpy(reward_model(right, 0.5 if broad else 0.7, rng)).flatten()
    score, group = torch.from_numpy(right).double().flatten(), torch.arange(400).repeat_interleave(5)
    out = {}
    for rule in RULES:
        kept = keep(rule, reward, group, generator(seed, "agreement", rule), with_replacement=True, n_keep=2)
        out[rule] = fit_line(reward[kept], score[kept]).r_squared
        out[f"{rule}/bins"] = fit_line(*equal_count_means(reward[kept], score[kept])).r_squared
    assert not any(math.isnan(v) for v in out.values())
    return out


def run(arm: str, seed: int) -> dict:
    return agreement(arm == "r2-broad", seed) if arm.startswith("r2") else train(arm, seed)


def gap(a: str, b: str, value: str = "end"):
    """Difference of two arms in one seed."""
    return lambda r: float(r[a][value] - r[b][value])


def order(a: str, b: str, arm: str = "r2"):
    """Difference of two rules' R² in one seed."""
    return lambda r: r[arm][a] - r[arm][b]


def better(r: dict) -> float:
    """The better of best-random and best-worst, less all rows."""
    return max(r["best-random"]["end"], r["best-worst"]["end"]) - float(r["none"]["end"])


CHECKS = [
    Check("(a) R²: best-worst above best-random", "difference > 0", order("best-worst", "best-random"), above=0.0, kind="share"),
    Check("(a) R²: best-random above none", "difference > 0", order("best-random", "none"), above=0.0, kind="share"),
    Check("(a) R²: none above best-of-n", "difference > 0", order("none", "best-of-n"), above=0.0, kind="share"),
    Check("(b) best-random above all rows", "difference > 0.02", gap("best-random", "none"), above=0.02, kind="share"),
    Check("(b) best-worst above all rows", "difference > 0.02", gap("best-worst", "none"), above=0.02, kind="share"),
    Check("(b) the better of the two above all rows", "difference > 0", better, above=0.0, kind="share"),
    Check("(b) best-of-n below all rows", "difference < 0", gap("best-of-n", "none"), below=0.0, kind="share"),
    Check("(b) power 3 above all rows", "difference > 0", gap("power-3", "none"), above=0.0, kind="share", core=False),
    Check("limit: with errors drawn anew, best-worst gains less than 0.02 over all rows", "difference < 0.02",
          gap("best-worst/redrawn", "none/redrawn"), below=0.02, kind="share", core=False),
    Check("(a) R² in ten groups: best-worst above none", "difference > 0",
          order("best-worst/bins", "none/bins"), above=0.0, kind="share", core=False),
    Check("limit: (a) with broad pass rates and less confidence best-of-n is above none", "difference > 0",
          order("best-of-n", "none", "r2-broad"), above=0.0, kind="share", core=False),
]  # fmt: skip
NOTE = "with a given reward model; where its errors are drawn anew for every sample, best-worst gains {8:.3f}"
AMENDMENTS = (
    Amendment("arms of powers 1 and 2, and of two rules with redrawn errors, and their two reported checks were dropped; power 3 is "
              "reported against all rows", "2026-11-25", "before a look", "fewer runs"),
    Amendment("the reported check of broad pass rates expects best-of-n not below none, where it expected it below", "2026-11-25",
              "after a look", "it contradicted the text above it, which stood from the start; it decides nothing"),
    Amendment("checks have kinds: success and R² are shares, which need ten seeds", "2026-12-01", "after a look",
              "a t interval of few shares decides too often"),
    Amendment("a check of the better of the two rules against all rows", "2026-12-01", "after a look",
              "the claim is refuted where neither is above all rows, and no check said so"),
    Amendment("the reported check of the number of rows was removed; that of broad pass rates says “above” for “not below”",
              "2026-12-01", "after a look", "the rows follow from the rule, so it could not fail"),
)  # fmt: skip
