"""PF-PPO: policy filtration for proximal policy optimisation.

Paper: arXiv 2409.06957, section 4 (filtered policy, weights over ranks, R²), algorithm 2, section 5.3 (normalisation).
Idea: a reward model is reliable at its extremes and noisy in between, so train only on a prompt's best and worst
responses (or best and a random one), and choose the rule beforehand by the R² between reward and true score
(`anypolicy filtration`).
Changes: rollout (five responses per prompt), advantage (rewards normalised by their running mean and std, A normalised
over the kept rows), selection (by the rank of the reward), critic and loss (PPO's).
Silent: ties (broken at random), thresholds (0 here), how many are drawn for the powers (two per prompt).
Differs: kept rows are chosen without repetition: best and worst, or best and one other; `with_replacement` draws them
from the paper's weights. The authors' OpenRLHF code does either; their verl port takes best and worst of the whole
batch, not of each prompt, which is not copied. No correction for the filtered policy, as in the paper. Dropped rows
cost no forward pass, so advantages are computed on kept rows only (they depend on no other row).
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

import torch

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.ppo import GeneralisedAdvantage, ppo
from anypolicy.parts.filtration import Rule, keep
from anypolicy.runs.seeds import generator
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import Choice, GroupRecipe


@dataclass(frozen=True)
class FilterByReward:
    """Keep responses by the rank (or, for powers and thresholds, the value) of their reward; see `parts.filtration`."""

    rule: Rule = "best-worst"
    with_replacement: bool = False
    n_keep: int = 2
    power: float = 2.0
    high: float = 0.0
    low: float = 0.0
    needs = Needs(advantage=False)
    max_rounds = 1

    def __call__(self, batch: Batch, target: int) -> Choice:
        groups = torch.ones(int(batch.group_id.max()) + 1, dtype=torch.bool)
        if self.rule == "none" and not self.with_replacement:
            return Choice(groups)
        kept = keep(
            self.rule, batch.reward, batch.group_id, generator(batch.seed, "filtration"),
            with_replacement=self.with_replacement, n_keep=self.n_keep, power=self.power, high=self.high, low=self.low,
        )  # fmt: skip
        return Choice(torch.isin(torch.arange(len(groups)), batch.group_id[kept]), trajectories=kept)


@method(
    Card(
        title="Policy Filtration in RLHF to Fine-Tune LLM for Code Generation",
        paper="arXiv 2409.06957",
        year=2024,
        family="language",
        idea="train PPO only on the responses whose rank says that the reward model can be believed",
        changes=("rollout", "advantage", "selection", "loss", "critic"),
        composes_with="learned rewards; its selection before any group method (statistics over all responses first); "
        "pointless with an exact verifier",
        claim="with a reward model that errs in the middle, best-worst and best-random end above all rows, best-of-n "
        "below",
        example="anypolicy train pf-ppo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.69 with seed 0",
        no_signal=(0.0, 1.0),
    )
)
def pf_ppo(
    group_size: knobs.GroupSize = 5,
    rule: Annotated[Rule, Knob("which responses of a prompt are kept")] = "best-worst",
    with_replacement: Annotated[bool, Knob("a response may be kept twice")] = False,
    n_keep: Annotated[int, Knob("responses kept of a prompt", least=1)] = 2,
    power: Annotated[float, Knob("exponent of the reward in rule power", least=0)] = 2.0,
    high: Annotated[float, Knob("reward above which the rules top, top-random and top-bottom keep")] = 0.0,
    low: Annotated[float, Knob("reward below which top-bottom keeps")] = 0.0,
    kl_coef: knobs.KLCoef = 0.01,
    value_clip: Annotated[
        float, Knob("values are clipped this far from those of the rollout", least=0, infinite=True)
    ] = 0.2,
    std: Annotated[
        Literal["sample", "population"], Knob("deviation of a group's rewards: of a sample, or of the population")
    ] = "population",
    normalise_reward: Annotated[bool, Knob("rewards are standardised by those seen so far")] = True,
) -> GroupRecipe:
    """PPO on two of five responses per prompt, the best and the worst by reward."""
    if rule not in get_args(Rule):
        raise InputError("pf-ppo.rule", rule, f"use one of {', '.join(get_args(Rule))}", choices=get_args(Rule))
    if n_keep < 1:
        raise InputError("pf-ppo.n_keep", n_keep, "keep at least 1 response per prompt")
    if rule == "top-bottom" and low > high:
        raise InputError("pf-ppo.low", low, f"it must not lie above high ({high:g})")
    base = ppo(group_size, kl_coef=kl_coef, value_clip=value_clip, std=std, normalise_reward=normalise_reward)
    return replace(
        base,
        advantage=GeneralisedAdvantage(1.0, 0.95, kl_coef, std, normalise_reward, on_kept=True),
        selection=FilterByReward(rule, with_replacement, n_keep, power, high, low),
    )
