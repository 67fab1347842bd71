"""OPA-DPO's claim: DPO from a policy that was first fine-tuned on the corrections errs less than DPO from the first one.

Slots: 6 rows of 8 numbers a picture, 6 values each, noise 0.6; the base has seen 40 % of the values replaced by the usual
one and the expert's wording with probability e^−7. A one-layer transformer of width 64. 600 items: one answer of the base
to every picture, wrong values rewritten in the expert's wording, the reference wholly in it. S = 2.5 and I = 3 on wrong
values. Arms: "dpo" pairs reference and revision with the answer (no weights, no picture terms, no anchor), from the base;
"off-policy" is the whole loss from the base; "fine-tuned" is cross-entropy on both answers, 40 updates of 64 (AdamW 2e-3);
"opa-dpo" is the whole loss from that policy, which is its reference too. DPO: 300 updates of 64 items, AdamW 1e-3, no
clipping, no warm-up. "wording e^−5" and "e^−2" are "off-policy" from a base that has seen the expert's wording more often.
Metric: share of wrong values in one sampled answer to each of 2,000 fresh pictures.
"""

from dataclasses import replace
from typing import Any

from anypolicy.compose import compose
from anypolicy.data.records import Prompt
from anypolicy.engines.base import Sampling, ask
from anypolicy.engines.of_policy import engine_for
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.language import fit
from anypolicy.policies.language.base import Policy
from anypolicy.runs.seeds import generator
from anypolicy.stages.recipe import GroupRecipe, Optimiser, World
from anypolicy.stages.revised import generated_items
from anypolicy.tasks.language.recorded import RecordedTask
from anypolicy.tasks.language.revisions import answers
from anypolicy.tasks.language.slots import ROWS, Slots

CLAIM = (
    "the whole loss errs at least 0.15 less often from a policy fine-tuned on the corrections than from the first one, and "
    "less than the fine-tuned policy, which errs less than the whole loss from the first one; plain DPO from there errs most "
    "(arXiv 2501.09695)"
)
SEEDS = 5
ARMS = ("dpo", "off-policy", "fine-tuned", "opa-dpo", "wording e^-5", "wording e^-2")
CURVE, CURVE_ARMS = "share of wrong values", ("dpo", "off-policy", "fine-tuned", "opa-dpo")
UPDATES, TUNING, ITEMS, LOOKED_EVERY = 300, 40, 64, 50


def wrong(task: Slots, policy: Policy) -> float:
    """In one sampled answer to every held-out picture."""
    requests = [ask(policy, p) for p in task.heldout]
    found = engine_for(policy).generate(requests, Sampling(ROWS), generator(0, "claim", "wrong"))
    right = [task.score(p, s.response, "").reward for p, [(s, _)] in zip(task.heldout, found, strict=True)]
    return 1 - sum(right) / len(right)


def items_of(task: Slots, policy: Policy, seed: int) -> list[Prompt]:
    """The base's answers with the expert's reports."""
    world = World(policy, engine_for(policy), task, Sampling(ROWS), seed)
    return [p for p in generated_items(world, task.train) if isinstance(p, Prompt)]


def with_optimiser(spec: str, lr: float) -> GroupRecipe:
    return replace(compose(spec).recipe, optimiser=Optimiser("adamw", lr=lr, grad_clip=None))


def run(arm: str, seed: int, updates: int = UPDATES) -> dict[str, Any]:
    task = Slots(seed, heldout=2000, wording=float(arm.partition("^-")[2] or 7))
    policy = task.make_policy(seed)
    items = items_of(task, policy, seed)
    curve, gauge = [(0, wrong(task, policy))], None
    if arm in ("fine-tuned", "opa-dpo"):
        both = RecordedTask("answers", [a for p in items for a in answers(p)], [], ROWS, {})
        for _ in fit(with_optimiser("sft", 2e-3), both, policy, steps=TUNING, prompts=ITEMS, seed=seed):
            pass
        curve.append((TUNING, wrong(task, policy)))
    if arm != "fine-tuned":
        recipe = with_optimiser("opa-dpo+dpo.loss" if arm == "dpo" else "opa-dpo", 1e-3)
        learnt, before = RecordedTask("items", items, [], ROWS, {}), curve[-1][0]
        for step, (log, _) in enumerate(fit(recipe, learnt, policy, steps=updates, prompts=ITEMS, seed=seed), 1):
            gauge = log.get("opa/corrected_logp_ref", gauge) if step == 1 else gauge
            if step % LOOKED_EVERY == 0 or step == updates:
                curve.append((before + step, wrong(task, policy)))
    return {"base": curve[0][1], "wrong": curve[-1][1], "gauge": gauge, "items": len(items), "curve": curve}


CHECKS = [
    Check("fine-tuned first, the whole loss errs less than from the base by", "> 0.15",
          lambda r: r["off-policy"]["wrong"] - r["opa-dpo"]["wrong"], above=0.15, refuted=0.02, kind="share"),
    Check("opa-dpo errs less than fine-tuning alone", "> 0",
          lambda r: r["fine-tuned"]["wrong"] - r["opa-dpo"]["wrong"], above=0.0, kind="share"),
    Check("fine-tuning alone errs less than the whole loss from the base", "> 0",
          lambda r: r["off-policy"]["wrong"] - r["fine-tuned"]["wrong"], above=0.0, kind="share"),
    Check("the whole loss from the base errs less than plain DPO from it", "> 0",
          lambda r: r["dpo"]["wrong"] - r["off-policy"]["wrong"], above=0.0, kind="share"),
    Check("mean log-probability of a corrected token under the base, in nats", "< −5", lambda r: r["off-policy"]["gauge"],
          below=-5.0, core=False),
    Check("the same under the fine-tuned policy", "> −2", lambda r: r["opa-dpo"]["gauge"], above=-2.0, core=False),
    Check("the likelier the expert's wording, the more the whole loss teaches from the base: e^−5 before e^−7", "> 0",
          lambda r: r["off-policy"]["wrong"] - r["wording e^-5"]["wrong"], above=0.0, kind="share", core=False),
    Check("and e^−2 before e^−5", "> 0", lambda r: r["wording e^-5"]["wrong"] - r["wording e^-2"]["wrong"], above=0.0,
          kind="share", core=False),
    Check("plain DPO from the base errs more than the base", "> 0", lambda r: r["dpo"]["wrong"] - r["dpo"]["base"],
          above=0.0, kind="share", core=False),
]  # fmt: skip
NOTE = (
    "fine-tuned first, the whole loss errs {0:.2f} less often than from the base, where 0.15 was asked, and fine-tuning alone {2:.2f}, "
    "where more than 0 was; shares are undecided below ten seeds"
)
AMENDMENTS = (
    Amendment("every check has a kind", "2026-12-01", "after a look",
              "verdicts follow from the kind of an outcome"),
    Amendment("less by 0.15 and less by 0.02 are one check, refuted at 0.02", "2026-12-01", "after a look",
              "they judged the same number"),
    Amendment("the sentence says that fine-tuning alone errs less than the whole loss from the first policy", "2026-12-01", "after a look",
              "every core check is a statement of the sentence, and every statement a core check"),
)  # fmt: skip
