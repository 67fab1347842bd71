"""Online DPO: pairs of the policy's own newest responses, labelled as they come.

Paper: arXiv 2402.04792 (OAIF, algorithm 1).
Idea: a fixed set of pairs shows what other policies once wrote; two fresh responses and a judge show what this one
does.
Changes: rollout (two responses), selection (a pair of every two), loss, optimiser.
Silent: ties; here they make no pair (TRL takes the first response as the chosen one). The judge; here whatever reward a
run has, the task's verifier or a reward model.
Differs: the paper and TRL sample at temperature 0.9 (`--temperature 0.9`); log-probabilities are those of temperature
1. TRL's penalty for responses without an end is `missing_end`, off by default. Log-probabilities are sums over tokens.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.records import Group
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.methods.preference import CONFLICTS
from anypolicy.methods.preference.dpo import Sigmoid
from anypolicy.parts.pairing import Pairing
from anypolicy.stages.common import GroupRollout, VerifierReward
from anypolicy.stages.needs import Needs
from anypolicy.stages.pairs import MakePairs, PairLoss
from anypolicy.stages.recipe import GroupRecipe, Loss, Reward, World


@dataclass(frozen=True)
class EndPenalty:
    """Another reward − amount for a response that ended at the limit."""

    reward: Reward
    amount: float

    @property
    def needs(self) -> Needs:
        return self.reward.needs

    def __call__(self, world: World, groups: list[Group]) -> None:
        self.reward(world, groups)
        for t in (t for g in groups for t in g.trajectories):
            cut = -self.amount if t.stop == "length" else 0.0
            t.reward, t.rewards = t.reward + cut, t.rewards | {"missing_end": cut}


def sampled_pairs(loss: Loss, samples: int, pairing: Pairing, missing_end: float = 0.0) -> GroupRecipe:
    """Pairs among `samples` fresh responses to a prompt."""
    if missing_end < 0:
        raise InputError("missing_end", missing_end, "use 0 or more")
    base = grpo()
    reward = EndPenalty(VerifierReward(), missing_end) if missing_end else VerifierReward()
    return replace(
        base, rollout=GroupRollout(samples), reward=reward, selection=MakePairs(pairing), loss=loss,
        optimiser=replace(base.optimiser, lr=5e-7),
    )  # fmt: skip


@method(
    Card(
        title="Direct language model alignment from online AI feedback",
        paper="arXiv 2402.04792",
        year=2024,
        family="preference",
        idea="at every step two responses of the policy as it is now, ordered by the reward, make a pair for DPO",
        changes=("rollout", "selection", "loss", "optimiser"),
        composes_with="samplers, rewards, other losses of pairs, other references",
        claim="baseline of the claims of other methods",
        example="anypolicy train online-dpo --task tabular-lock --steps 60",
        look_at="probe/success: 0.23 to 0.52 with seed 0",
        conflicts=CONFLICTS,
    )
)
def online_dpo(
    beta: knobs.Beta = 0.1,
    samples: Annotated[int, Knob("random draws", least=1)] = 2,
    pairing: Annotated[Pairing, Knob("which responses of a prompt are compared")] = "first_round",
    missing_end: Annotated[float, Knob("taken off the score of a response that does not end", least=0)] = 0.0,
) -> GroupRecipe:
    """Two responses a prompt, β = 0.1, one update a batch, the reference as the run began."""
    return sampled_pairs(PairLoss(Sigmoid(beta)), samples, pairing, missing_end)
