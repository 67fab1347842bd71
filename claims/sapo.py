"""SAPO's claim: a soft gate keeps learning where a hard clip stops, and stays stable where no clip does not.

Tabular lock, 64 prompts, eight tokens out of eight, +1 … +4 on the targets; 60 iterations over all prompts, each batch
used for 16 passes so that ratios leave 1. The verifier's bit is flipped with probability q. SGD 32/16 per prompt and pass.
Metric: exact mean success.

Measured beside: tiny addition (a dense two-layer network whose ratios change much; 32 prompts, four mini-batches, one pass, 120
iterations, AdamW 3e-4), where the hard clip is expected to do better than SAPO(1, 1.05).
"""

from dataclasses import dataclass, replace

from anypolicy.compose import compose
from anypolicy.data.records import Group
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.language import fit
from anypolicy.methods.language.sapo import SoftGate
from anypolicy.runs.seeds import numpy_generator
from anypolicy.stages.common import Clip, NoClip, PolicyLoss, VerifierReward
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import Optimiser, World
from anypolicy.tasks.language.tabular_lock import TabularLock
from anypolicy.tasks.language.tiny_add import TinyAdd

CLAIM = (
    "under reuse, SAPO(1, 1.05) ends above GRPO's clip, and that above GSPO, with an exact verifier, and above no clip with a "
    "noisy one (arXiv 2511.20347)"
)
SEEDS = 10
CURVE = "mean success, exact verifier"
CURVE_ARMS = ("grpo", "gspo", "no-clip", "sapo", "sapo-10")
STEPS, PROMPTS, PASSES = 60, 64, 16
GATES = {
    "sapo": PolicyLoss(SoftGate(1.0, 1.05)),
    "sapo-10": PolicyLoss(SoftGate(10.0, 10.5)),
    "grpo": PolicyLoss(Clip(0.2, 0.2)),
    "gspo": PolicyLoss(Clip(3e-4, 4e-4), ratio="sequence"),
    "no-clip": PolicyLoss(NoClip()),
}
ARMS = (*GATES, "sapo-noisy", "sapo-10-noisy", "grpo-noisy", "no-clip-noisy", "sapo-addition", "grpo-addition")


@dataclass(frozen=True)
class NoisyVerifier:
    """The verifier's bit flipped with a probability, for the reward alone."""

    probability: float
    needs = Needs(labels=True, verifier=True)

    def __call__(self, world: World, groups: list[Group]) -> None:
        VerifierReward()(world, groups)
        for group in groups:
            flip = numpy_generator(world.seed, "flip", group.id).random(len(group.trajectories)) < self.probability
            for t, flipped in zip(group.trajectories, flip, strict=True):
                t.reward = 1 - t.reward if flipped else t.reward


def addition(name: str, seed: int) -> dict:
    """One run on tiny addition: accuracy at temperature 1, mean over the classes, of the base and at the end."""
    task = TinyAdd(seed)
    policy = task.make_policy(seed)
    recipe = replace(compose("grpo").recipe, loss=GATES[name], optimiser=Optimiser(lr=3e-4, minibatches=4))
    start = task.probe(policy)["class_mean"]
    for _ in fit(recipe, task, policy, steps=120, prompts=32, seed=seed):
        pass
    return {"start": start, "end": task.probe(policy)["class_mean"]}


def run(arm: str, seed: int) -> dict:
    if arm.endswith("-addition"):
        return addition(arm.removesuffix("-addition"), seed)
    name, noisy = arm.removesuffix("-noisy"), arm.endswith("-noisy")
    task = TabularLock(seed, start="graded", prompts=PROMPTS, length=8, sigma=1.0, low=1.0, high=4.0)
    policy = task.make_policy(seed)
    recipe = replace(
        compose("grpo").recipe,
        reward=NoisyVerifier(0.1 if noisy else 0.0),
        loss=GATES[name],
        optimiser=Optimiser("sgd", lr=32 / PASSES * PROMPTS, grad_clip=None, epochs=PASSES),
    )
    curve = [(0, task.probe(policy)["success"])]
    for step, _ in enumerate(fit(recipe, task, policy, steps=STEPS, prompts=PROMPTS, seed=seed), 1):
        if step % 5 == 0:
            curve.append((step, task.probe(policy)["success"]))
    return {"start": curve[0][1], "end": curve[-1][1], "curve": curve}


def gap(a: str, b: str):
    return lambda r: r[a]["end"] - r[b]["end"]


CHECKS = [
    Check("above GRPO's clip, exact verifier", "difference > 0.05", gap("sapo", "grpo"), above=0.05, refuted=0.0, kind="share"),
    Check("GRPO's clip above GSPO 3e-4/4e-4, exact verifier", "difference > 0.05", gap("grpo", "gspo"), above=0.05, kind="share"),
    Check("above no clip, verifier wrong in 10 %", "difference > 0.05", gap("sapo-noisy", "no-clip-noisy"), above=0.05, refuted=0.0,
          kind="share"),
    Check("a sharper gate ends lower with an exact verifier", "SAPO(10) − SAPO(1) < 0", gap("sapo-10", "sapo"), below=0.0,
          kind="share", core=False),
    Check("and higher with a noisy one", "SAPO(10) − SAPO(1) > 0", gap("sapo-10-noisy", "sapo-noisy"), above=0.0, kind="share",
          core=False),
    Check("limit: with a noisy verifier the hard clip is safer than SAPO(1)", "SAPO(1) − GRPO < 0",
          gap("sapo-noisy", "grpo-noisy"), below=0.0, kind="share", core=False),
    Check("limit: on tiny addition the hard clip is better", "SAPO(1) − GRPO < 0",
          gap("sapo-addition", "grpo-addition"), below=0.0, kind="share", core=False),
]  # fmt: skip
NOTE = "with a noisy verifier it ends {5:.2f} against GRPO's clip; on tiny addition {6:.3f}"
AMENDMENTS = (
    Amendment("two arms and a reported check on tiny addition were added", "2026-11-24", "before a look",
              "a known weakness was to be measured too"),
    Amendment("checks have kinds: success needs ten seeds", "2026-12-01", "after a look",
              "a t interval of few shares decides too often"),
    Amendment("not above GRPO's clip, or not above no clip, refutes", "2026-12-01", "after a look",
              "it is the rule by which the claim is refuted, and no check had it"),
    Amendment("the sentence says that GSPO is below GRPO's clip; the check on tiny addition is a limit, no longer a known result",
              "2026-12-01", "after a look", "the first is what the decisive check says; the second did not show surely"),
    Amendment("ten seeds instead of eight", "2026-12-01", "after a look", "shares of success need ten"),
)  # fmt: skip
