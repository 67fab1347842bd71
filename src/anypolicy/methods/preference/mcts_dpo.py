"""MCTS-DPO: tree search over the steps of a response gives pairs of steps for DPO, and the policy searches on.

Paper: arXiv 2405.00451; values, prior and the choice of pairs from the authors' code.
Idea: where a search has looked at several next steps, their values say which is better, so one right answer teaches at
every step and not only as a whole; how often the search went there says how sure that is.
Changes: rollout (search), reward (place among the candidates), selection (pairs of right paths), loss, optimiser.
Silent: how far near-equal candidates are one; here only equal tokens are.
Differs: the policy's verdict on itself is its probability of "B" as the first token of its reply. A step ends with
`step_end` or after `step_tokens`. The authors warm up and decay the learning rate; here it is constant. A path is
walked by visits alone, without their temperature. Their code draws the worse step at random (`worse`), though its flag
says the worst. `online=False` searches with the policy as the run began. IPO's loss: `mcts-dpo+ipo.loss`.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.methods.preference import CONFLICTS
from anypolicy.parts.pairing import Pairing
from anypolicy.parts.preference import soft_sigmoid
from anypolicy.parts.tree_search import Search, visit_noise
from anypolicy.stages.needs import Needs
from anypolicy.stages.pairs import Pair, PairLoss, check_positive, preferences
from anypolicy.stages.recipe import Choice, GroupRecipe
from anypolicy.stages.recorded import RecordedReward
from anypolicy.stages.tree_search import TreeSearch

ONE_VERDICT = (
    "all candidates of a step have one verdict, and the selection drops groups without two: keep another selection"
)


@dataclass(frozen=True)
class StepPairs:
    """Pairs of steps, the first `most` of a path; every path counts the same."""

    needs = Needs(advantage=False, responses=2)
    max_rounds = 1
    pairing: Pairing = "best_worst"
    most: int = 8

    def __call__(self, batch: Batch, target: int) -> Choice:
        made = preferences(batch, self.pairing)
        question = torch.zeros(len(batch.reward), dtype=torch.long)
        question[batch.trajectory] = batch.context_index
        asked = question[made.pairs[:, 0]]
        place = torch.stack([(asked[:i] == a).sum() for i, a in enumerate(asked)]) if len(asked) else asked
        keep = place < self.most
        pairs, asked = made.pairs[keep], asked[keep]
        groups = torch.zeros(int(batch.group_id.max()) + 1, dtype=torch.bool)
        groups[batch.group_id[pairs[:, 0]]] = True
        each = torch.bincount(asked, minlength=len(batch.context)).to(batch.weight.dtype)
        even = len(pairs) / ((each > 0).sum().clamp(min=1) * each.clamp(min=1))
        log = {"pairs/made": float(len(pairs)), "pairs/tied": float(made.tied), "pairs/equal": float(made.equal),
               "search/dropped": float(batch.reward.isnan().sum())}  # fmt: skip
        if batch.visits is not None and len(pairs):
            log["search/noise"] = float(visit_noise(*batch.visits[pairs].T).mean())
        return Choice(groups, weight=even[batch.context_index], pairs=pairs, metrics=log)


@dataclass(frozen=True)
class VisitSmoothed:
    """−(1 − α) log σ(βh) − α log σ(−βh), α from the visits of both steps (0 where nothing was searched)."""

    needs = Needs(reference=True)
    beta: float = 0.1

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)

    def __call__(self, pair: Pair) -> Float[Tensor, " pairs"]:
        noise = visit_noise(pair.chosen.visits, pair.rejected.visits)
        return soft_sigmoid(pair.margin, self.beta, 1 - noise)


@method(
    Card(
        title="Monte Carlo tree search boosts reasoning via iterative preference learning",
        paper="arXiv 2405.00451",
        year=2024,
        family="preference",
        idea="search over reasoning steps, and DPO on the better and the worse step wherever the path had a choice",
        changes=("rollout", "reward", "selection", "loss", "optimiser"),
        composes_with="samplers, losses of pairs and of marked responses, other references",
        claim="after 20 to 50 updates it is 10 points ahead of pairs of whole responses",
        conflicts=CONFLICTS
        | {("rollout", f"{other}.selection"): ONE_VERDICT for other in ("cog-rethinker", "dapo", "ngrpo")},
        no_signal=(0.0,),
        metrics={
            "search/dropped": "candidate steps on paths that ended wrong; they are not trained on",
            "search/noise": "mean α of the pairs that are: how likely their order is wrong, by the search's visits",
        },
    )
)
def mcts_dpo(
    beta: knobs.Beta = 0.1,
    candidates: Annotated[int, Knob("steps proposed at a node", least=2)] = 2,
    root_candidates: Annotated[int, Knob("steps proposed at the root", least=2)] = 2,
    iterations: Annotated[int, Knob("iterations of a search; four times as many at the root", least=1)] = 64,
    depth: Annotated[int, Knob("steps below the present one that are expanded", least=1)] = 3,
    finish: Annotated[bool, Knob("a walk that is too deep is finished by sampling")] = True,
    step_tokens: Annotated[int, Knob("tokens of a step at most", least=1)] = 128,
    step_end: Annotated[str, Knob("text that ends a step")] = "\n",
    self_evaluation: Annotated[bool, Knob("the policy judges each step itself")] = True,
    known_steps: Annotated[bool, Knob("a known answer is shown where steps are judged")] = True,
    multiple_choice: Annotated[bool, Knob("judgements are asked as a choice")] = False,
    novel_bonus: Annotated[bool, Knob("unseen steps are tried first")] = False,
    worse: Annotated[Literal["lowest", "random"], Knob("which sibling is the rejected step")] = "lowest",
    solved: Annotated[bool, Knob("only paths that end right make pairs")] = True,
    online: Annotated[bool, Knob("pairs come from the policy of now, not of the beginning")] = True,
    explore: Annotated[float, Knob("weight of what was rarely tried", least=0)] = 1.0,
    length_penalty: Annotated[float, Knob("exponent of a step's length in its prior", least=0)] = 1.25,
) -> GroupRecipe:
    """The settings for mathematics: 64 iterations (256 at the root), two candidates, three steps and a forced end."""
    base = grpo()
    rollout = TreeSearch(
        candidates, root_candidates, Search(iterations, depth=depth, explore=explore, penalty=length_penalty), finish,
        step_tokens, step_end, self_evaluation, known_steps, multiple_choice, novel_bonus, worse, solved, online,
    )  # fmt: skip
    return replace(
        base, rollout=rollout, reward=RecordedReward(), selection=StepPairs(),
        loss=PairLoss(VisitSmoothed(beta)), optimiser=replace(base.optimiser, lr=1e-6, weight_decay=0.05),
    )  # fmt: skip
