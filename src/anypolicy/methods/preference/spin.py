"""SPIN: self-play fine-tuning. The policy learns to tell good responses from those of its own last iteration.

Paper: arXiv 2401.01335 (algorithm 1, eq. 4.7).
Idea: fine-tuning targets are the chosen, samples of the last iterate the rejected responses of a DPO whose reference is
that iterate; when its samples look like the targets, nothing is left to learn.
Changes: rollout (the prompt's reference response and one sample), reward (which is which), selection (these pairs, of
this iteration and the last), loss, optimiser, reference (renewed every iteration).
Silent: nothing that matters here.
Differs: an iteration is one step of the loop over its `prompts`. The authors run RMSprop at 5e-7 (1e-7 and β = 5 in
later iterations) with a warm-up over a tenth, a linear schedule and 3 to 6 epochs an iteration; here AdamW at 5e-7
without, and one pass (`--epochs`, `--minibatches`). A sample that equals its target makes no pair.
Log-probabilities are sums over tokens.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.records import Group, Prompt
from anypolicy.knobs import Knob
from anypolicy.methods.preference import CONFLICTS
from anypolicy.methods.preference.dpo import Sigmoid, dpo
from anypolicy.stages.common import GroupRollout
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.pairs import MakePairs, PairLoss
from anypolicy.stages.recipe import GroupRecipe, World
from anypolicy.stages.recorded import RecordedReward, recorded_group
from anypolicy.stages.reference import PerRound
from anypolicy.stages.targets import check_references
from anypolicy.tasks.language.base import Task


@dataclass(frozen=True)
class AgainstOwn:
    """The reference response of a prompt, scored 1, and `group_size` − 1 samples, scored 0."""

    needs, gives = Needs(), Gives(behaviour=False)
    group_size: int = 2

    def check_task(self, task: Task) -> None:
        check_references(task)

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        groups = GroupRollout(self.group_size - 1)(world, prompts, generator)
        for group in groups:
            given = {"responses": [group.prompt.reference], "scores": [1.0]}
            [target] = recorded_group(world.policy, replace(group.prompt, info=given)).trajectories
            for t in group.trajectories:
                t.info["score"] = 0.0
            group.trajectories.insert(0, target)
        return groups


@method(
    Card(
        title="Self-play fine-tuning converts weak language models to strong language models",
        paper="arXiv 2401.01335",
        year=2024,
        family="preference",
        idea="DPO of fine-tuning targets against samples of the last iterate, which is the reference too",
        changes=("rollout", "reward", "selection", "loss", "optimiser", "reference"),
        composes_with="samplers, other losses of pairs",
        claim="baseline of the claims of other methods",
        example="anypolicy train spin --task tabular-lock:references=true --steps 60",
        look_at="probe/success: 0.23 to 0.94 with seed 0",
        conflicts=CONFLICTS
        | {
            (
                "rollout",
                "adaptthink.reward",
            ): "that reward reads marks of thinking, which reference responses have not: keep another reward"
        },
        no_signal=(),
    )
)
def spin(
    beta: knobs.Beta = 0.1,
    minibatches: Annotated[int, Knob("mini-batches of a pass", least=1)] = 4,
    previous: Annotated[bool, Knob("the pairs of the previous iteration are learnt from too")] = True,
) -> GroupRecipe:
    """One sample against every target, β = 0.1, data of this iteration and the previous, four updates."""
    base = dpo()
    return replace(
        base, rollout=AgainstOwn(), reward=RecordedReward(), selection=MakePairs("best_worst", previous),
        loss=PairLoss(Sigmoid(beta)), reference=PerRound(),
        optimiser=replace(base.optimiser, lr=5e-7, minibatches=minibatches),
    )  # fmt: skip
