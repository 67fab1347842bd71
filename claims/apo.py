"""APO's claim: STCR shortens responses at no cost, DADS raises the hardest prompts at an equal weight of the KL term.

A lock with a length token: 128 prompts, three tokens out of sixteen. The first is a free choice n of the response's length
(n + 2, without influence on correctness), the other two are the answer; logits N(0, 0.7²), flat for the length, + 2 … + 6 on the
answer, rising over the prompts. All prompts in every step, 8 responses, 300 steps, SGD 6 per prompt, token mean. STCR reads the
length that the first token names. Metrics: exact success (all, hardest and easiest third), exact mean length choice (7.5 at first).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from anypolicy.compose import compose
from anypolicy.data.batch import Batch
from anypolicy.data.records import Prompt
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.language import fit
from anypolicy.methods.language.apo import length_weight
from anypolicy.policies.language.table import TablePolicy
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import GroupRecipe, Optimiser
from anypolicy.tasks.language.base import Score

CLAIM = (
    "STCR shortens the more, the larger its base, without loss of success; DADS lifts the hardest third by more than 0.01 at "
    "equal KL weight, more than the easiest, which it leaves as it is (arXiv 2506.21655)"
)
SEEDS = 10
CURVE = "success on the hardest third"
PROMPTS, LENGTH, VOCABULARY, STEPS = 128, 3, 16, 300
# arm: base of STCR (0: off), weight of the KL term, DADS
SETTINGS = {
    "grpo": (0.0, 0.0, False), "stcr-released": (1.00001, 0.0, False), "stcr-1.1": (1.1, 0.0, False),
    "stcr-2": (2.0, 0.0, False), "grpo-kl": (0.0, 1.0, False), "dads-kl": (0.0, 1.0, True),
    "grpo-kl-0.3": (0.0, 0.3, False), "apo": (1.1, 0.3, True),
}  # fmt: skip
ARMS = tuple(SETTINGS)
CURVE_ARMS = ("grpo-kl", "dads-kl", "grpo-kl-0.3", "apo")


class LengthLock:
    """Prompts, answers and the exact numbers of a table policy."""

    name, heldout, max_tokens = "length-lock", (), LENGTH

    def __init__(self, seed: int):
        rng = torch.Generator().manual_seed(seed)
        self.target = torch.randint(VOCABULARY, (PROMPTS, LENGTH), generator=rng)
        self.start = 0.7 * torch.randn(PROMPTS, LENGTH, VOCABULARY, generator=rng)
        self.start[:, 0] = 0
        delta = torch.linspace(2, 6, PROMPTS)[:, None, None].expand(PROMPTS, LENGTH - 1, 1)
        self.start[:, 1:].scatter_add_(2, self.target[:, 1:, None], delta)
        self.train = [Prompt(str(n), tokens=(n,)) for n in range(PROMPTS)]
        self.answers = self.target[:, 1:].numpy()

    def score(self, prompt: Prompt, response: Any, text: str) -> Score:
        correct = bool((response[1:] == self.answers[prompt.tokens[0]]).all())
        return Score(float(correct), correct)

    def measure(self, policy: TablePolicy) -> dict[str, float]:
        logp = policy.module.logits.detach().double().log_softmax(-1)
        p = logp.exp()
        success = p[:, 1:].gather(2, self.target[:, 1:, None]).squeeze(2).prod(1)
        third = PROMPTS // 3
        divergence = (p * (logp - self.start.double().log_softmax(-1))).sum(-1).sum(1)
        return {
            "all": float(success.mean()), "hardest": float(success[:third].mean()), "easiest": float(success[-third:].mean()),
            "length": float((p[:, 0] * torch.arange(VOCABULARY)).sum(1).mean()), "kl": float(divergence.mean()),
        }  # fmt: skip


@dataclass(frozen=True)
class NamedLengthAdvantage:
    """STCR with the length that the first token names."""

    needs = Needs(verdicts=True)
    base: float
    inner: Any

    def __call__(self, batch: Batch) -> torch.Tensor:
        length = (batch.response[:, 0] + 2).to(batch.reward.dtype)
        return self.inner(batch) * length_weight(length, batch.correct, batch.group_id, self.base)


def recipe(arm: str) -> GroupRecipe:
    base, kl_coef, dads = SETTINGS[arm]
    made = compose("apo", {"apo": {"stcr": False, "dads": dads, "kl_coef": kl_coef}}).recipe
    made = replace(made, optimiser=Optimiser("sgd", lr=6.0 * PROMPTS, grad_clip=None))
    return replace(made, advantage=NamedLengthAdvantage(base, made.advantage)) if base else made


def run(arm: str, seed: int) -> dict:
    task = LengthLock(seed)
    policy = TablePolicy(task.start)
    curve = [(0, task.measure(policy)["hardest"])]
    for step, _ in enumerate(fit(recipe(arm), task, policy, steps=STEPS, prompts=PROMPTS, seed=seed), 1):
        if step % 20 == 0:
            curve.append((step, task.measure(policy)["hardest"]))
    return task.measure(policy) | {"curve": curve}


def gap(a: str, b: str, name: str):
    return lambda r: r[a][name] - r[b][name]


def sided(r: dict) -> float:
    """What DADS gains on the hardest third, less what it gains on the easiest."""
    return gap("dads-kl", "grpo-kl", "hardest")(r) - gap("dads-kl", "grpo-kl", "easiest")(r)


CHECKS = [
    Check("STCR 1.1 shortens", "length, STCR 1.1 − GRPO < −0.3", gap("stcr-1.1", "grpo", "length"), below=-0.3, refuted=0.0),
    Check("STCR 2 shortens more", "length, STCR 2 − STCR 1.1 < 0", gap("stcr-2", "stcr-1.1", "length"), below=0.0),
    Check("STCR 1.1 loses no success", "difference > −0.01", gap("stcr-1.1", "grpo", "all"), above=-0.01, kind="share"),
    Check("STCR 2 loses no success", "difference > −0.01", gap("stcr-2", "grpo", "all"), above=-0.01, kind="share"),
    Check("DADS lifts the hardest third", "DADS − GRPO at KL weight 1 > 0.01", gap("dads-kl", "grpo-kl", "hardest"), above=0.01,
          kind="share"),
    Check("DADS lifts it more than the easiest third", "difference of gains > 0", sided, above=0.0, kind="share"),
    Check("DADS leaves the easiest third", "|difference| < 0.003",
          lambda r: abs(r["dads-kl"]["easiest"] - r["grpo-kl"]["easiest"]), below=0.003, kind="share"),
    Check("the released base does nothing on short responses", "|length, released − GRPO| < 0.01",
          lambda r: abs(r["stcr-released"]["length"] - r["grpo"]["length"]), below=0.01, core=False),
    Check("both together: shorter", "APO − GRPO at KL weight 0.3 < −0.2", gap("apo", "grpo-kl-0.3", "length"), below=-0.2, core=False),
    Check("both together: hardest third", "APO − GRPO at KL weight 0.3 > 0", gap("apo", "grpo-kl-0.3", "hardest"), above=0.0,
          kind="share", core=False),
    Check("price: DADS moves further from the reference", "exact KL, DADS − GRPO > 0", gap("dads-kl", "grpo-kl", "kl"), above=0.0,
          core=False),
]  # fmt: skip
NOTE = "the success of the easiest third moves by {6:.4f}, where less than 0.003 was asked"
AMENDMENTS = (
    Amendment("checks have kinds: shares of success need ten seeds", "2026-12-01", "after a look",
              "a t interval of few shares decides too often"),
    Amendment("a length that does not fall refutes, and so does a gain on the easiest third above that on the hardest",
              "2026-12-01", "after a look", "it is the rule by which the claim is refuted, and no check had it"),
    Amendment("the sentence names the gain against that of the easiest third", "2026-12-01", "after a look",
              "the sentence and the decisive checks now say the same"),
    Amendment("ten seeds instead of five", "2026-12-01", "after a look", "shares of success need ten"),
)  # fmt: skip
