"""GRAO's claim: with imperfect references it passes their score, where supervised learning ends at it and GRPO is slow.

Tabular lock, 128 prompts, six tokens out of eight, no head start (low = high = 0); a token of a reference is right with probability
0.7. score(u) is the share of right tokens, R(o, y) = sign(score(o) − score(y)). Eight responses, all prompts in every step, SGD 3
per prompt, no gradient clipping, 200 steps. Arms: GRAO; without imitation (β 0), without the exploration term, without the
alignment term (λ 0); SFT (log-likelihood of the reference alone, coefficient 1); GRPO on the same R without KL. Metric: exact
expected token score. "weak" arms start with −1 on the right tokens.
"""

from dataclasses import dataclass, field, replace

import torch

from anypolicy.compose import compose
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.language import fit
from anypolicy.methods.language.grao import AlignmentLoss
from anypolicy.stages.common import NoClip, PolicyLoss
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import GroupRecipe, LossTerms, Optimiser
from anypolicy.stages.targets import WithImitation
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.tabular_lock import TabularLock

CLAIM = (
    "GRAO ends above the score of the references while SFT does not, and reaches every level that GRPO reaches in less than a "
    "third of its steps (arXiv 2508.07750)"
)
SEEDS = 5
CURVE = "expected token score"
ARMS = ("sft", "grpo", "grao", "no-imitation", "no-exploration", "no-alignment", "sft-weak", "grpo-weak", "grao-weak")
CURVE_ARMS = ARMS[:6]
STEPS, PROMPTS = 200, 128


class GradedLock(TabularLock):
    """A lock whose reward is the share of right tokens."""

    def score(self, prompt, response, text):
        right = response == self.target[prompt.tokens[0]].numpy()
        return Score(float(right.mean()), bool(right.all()))

    def token_score(self, policy) -> float:
        p = policy.module.logits.detach().double().softmax(-1)
        return float(p.gather(2, self.target[..., None]).mean())

    def reference_score(self) -> float:
        return float((torch.tensor([p.reference for p in self.train]) == self.target).double().mean())


@dataclass(frozen=True)
class WithoutExploration:
    """GRAO's loss without its first term."""

    loss: AlignmentLoss = field(default_factory=AlignmentLoss)
    needs = Needs(whole_groups=True)

    def active(self, batch):
        return self.loss.active(batch)

    def __call__(self, scores, batch):
        terms, metrics = self.loss(scores, batch)
        return LossTerms({k: v for k, v in terms.items() if k != "exploration"}, metrics)


@dataclass(frozen=True)
class NoAdvantage:
    """Sampled responses teach nothing."""

    needs = Needs()

    def __call__(self, batch):
        return torch.zeros_like(batch.reward)


def recipe(arm: str) -> GroupRecipe:
    base, plain = compose("grao").recipe, PolicyLoss(NoClip())
    if arm == "grpo":
        base = replace(base, advantage=compose("grpo").recipe.advantage, loss=plain)
    if arm == "sft":
        base = replace(base, advantage=NoAdvantage(), loss=WithImitation(plain, 1.0))
    if arm == "no-imitation":
        base = replace(base, loss=AlignmentLoss(beta=0.0))
    if arm == "no-alignment":
        base = replace(base, loss=AlignmentLoss(lam=0.0))
    if arm == "no-exploration":
        base = replace(base, loss=WithoutExploration())
    # the losses are means over prompts; a table's rows are independent, so 3 a prompt
    return replace(base, optimiser=Optimiser("sgd", lr=3.0 * PROMPTS, grad_clip=None))


def run(arm: str, seed: int) -> dict:
    start = -1.0 if arm.endswith("-weak") else 0.0
    task = GradedLock(
        seed, prompts=PROMPTS, length=6, low=start, high=start, references=True, reference_accuracy=0.7
    )  # fmt: skip
    policy = task.make_policy(seed)
    curve, beaten = [(0, task.token_score(policy))], 0.0
    rollouts = fit(recipe(arm.removesuffix("-weak")), task, policy, steps=STEPS, prompts=PROMPTS, seed=seed)
    for step, (log, _) in enumerate(rollouts, 1):
        curve.append((step, task.token_score(policy)))
        beaten = log["reward/mean"]
    values = [v for _, v in curve]
    return {
        "reference": task.reference_score(), "end": values[-1], "comparison_end": beaten,
        **{f"step_{s}": values[s] for s in (0, 25, 50, 100, 200)}, "to_0.7": first(values, 0.7), "curve": curve,
    }  # fmt: skip


def first(values: list[float], level: float) -> int:
    """The first step at which a level is reached; one more than the run's steps if it never is."""
    return next((i for i, v in enumerate(values) if v >= level), STEPS + 1)


LEVELS = [0.2 + 0.05 * i for i in range(16)]


def slowest_share(r: dict) -> float:
    """Largest GRAO steps / GRPO steps over the levels 0.2, 0.25, … that GRPO reaches. The first five seeds were recorded
    without their curves, and with this number."""
    if "curve" not in r["grao"]:
        return r["grao"]["slowest_share"]
    grpo, grao = ([v for _, v in r[arm]["curve"]] for arm in ("grpo", "grao"))
    return max(first(grao, v) / first(grpo, v) for v in LEVELS if max(grpo) >= v)


CHECKS = [
    Check("GRAO ends above the references' score", "difference > 0", lambda r: r["grao"]["end"] - r["grao"]["reference"],
          above=0.0, kind="share"),
    Check("SFT ends below it", "difference < 0", lambda r: r["sft"]["end"] - r["sft"]["reference"], below=0.0, kind="share"),
    Check("GRAO's share of GRPO's steps, worst of the levels that GRPO reaches", "< 1/3", slowest_share, below=1 / 3, kind="ratio"),
    Check("without imitation it is slower to 0.7", "steps no-imitation − GRAO > 0",
          lambda r: r["no-imitation"]["to_0.7"] - r["grao"]["to_0.7"], above=0.0, core=False),
    Check("without exploration it is slower to 0.7", "steps no-exploration − GRAO > 0",
          lambda r: r["no-exploration"]["to_0.7"] - r["grao"]["to_0.7"], above=0.0, core=False),
    Check("without alignment it is slower to 0.7", "steps no-alignment − GRAO > 0",
          lambda r: r["no-alignment"]["to_0.7"] - r["grao"]["to_0.7"], above=0.0, core=False),
    Check("unlike in the paper, it ends higher without imitation", "no-imitation − GRAO > 0",
          lambda r: r["no-imitation"]["end"] - r["grao"]["end"], above=0.0, kind="share", core=False),
    Check("from a weaker start GRAO still passes the references", "difference > 0",
          lambda r: r["grao-weak"]["end"] - r["grao-weak"]["reference"], above=0.0, kind="share", core=False),
    Check("from a weaker start GRPO has no comparison to win", "GRPO < 0.2", lambda r: r["grpo-weak"]["end"], below=0.2,
          kind="share", core=False),
]  # fmt: skip
NOTE = "without its imitation term it ends {6:.3f} higher, where the paper finds it lower"
AMENDMENTS = (
    Amendment("checks have kinds: token scores need ten seeds, the share of steps is judged as a ratio", "2026-12-01",
              "after a look", "a t interval of few shares decides too often"),
    Amendment("that it is slower without imitation is reported, no longer decisive", "2026-12-01", "after a look",
              "the sentence does not say it"),
)  # fmt: skip
