"""DRIFT: answers that dissatisfied a user are the rejected ones, for ever; the chosen ones are the policy's newest.

Paper: arXiv 2510.02341 (ICLR 2026), read through its official code (generation, settings, data) and public notes; the
two bounds are from the notes.
Idea: users say seldom that an answer was good and often that it was bad. Pairs of a real bad answer with a fresh sample
of the policy, which saw the complaint, need no reward model and keep their gradient as the policy improves, where
pairs with fixed good answers (SPIN) or of two samples (iterative DPO) lose it.
Changes: rollout (the dissatisfying answer, and samples that saw the feedback), reward (which is which), selection,
loss (DPO + α · likelihood of the sample), optimiser, reference (renewed every round).
Silent: what to do with an answer that comes out the same again (no pair), or that says nothing (kept and counted in
`drift/one_token`). Words of the request to improve; here our own. The warm start on pairs of a bad answer and the good
one after it is a run of DPO before this one (docs/preferences.md), without such pairs there is none.
Differs: a round is one step of the loop over its `prompts`, not all the data. Training is under the plain prompt, which
shows neither complaint nor request; where the request does not fit into the policy's window, the beginning of the
history is left out. The authors' first 100 items are held out, here a share by prompt. They sample at temperature 0.7
and top-p 0.9 (`--temperature 0.7 --top-p 0.9`) and use RMSprop at 5e-7 with a warm-up over a tenth and a
linear schedule; here AdamW at 5e-7 without.
`smoothing` is for logs with wrong marks. Without feedback (`guided` False) the expected step from θ = π_k only unlearns
the bad answer: the sample's own score has mean 0 (our derivation). Nothing stops the push: watch the entropy.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.batch import Batch
from anypolicy.data.records import Group, Prompt, Tokens
from anypolicy.engines.base import Request
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.preference import CONFLICTS
from anypolicy.methods.preference.dpo import Sigmoid, dpo
from anypolicy.policies.language.base import media_of
from anypolicy.stages.common import group_of
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.pairs import MakePairs, PairLoss
from anypolicy.stages.recipe import Choice, GroupRecipe, World
from anypolicy.stages.recorded import RecordedReward, recorded, recorded_group
from anypolicy.stages.reference import Fixed, PerRound
from anypolicy.tasks.language.base import ShowsFeedback, Task

REQUEST = """Below is a conversation. The user was not content with the last answer and said why.

{history}
Assistant: {rejected}
User: {feedback}

Answer the user's last request before that again, better: take what the user said into account. Write only the answer.
Assistant: """


def pair_weight(h: Float[Tensor, " pairs"], beta: float) -> Float[Tensor, " pairs"]:
    """βσ(−s), s = βh: how strongly DPO's gradient at margin h pulls along ∇log π(y⁺) − ∇log π(y⁻)."""
    return beta * torch.sigmoid(-beta * h)


def gradient_bound(
    h: Float[Tensor, " pairs"], length: Float[Tensor, " pairs"], beta: float, tau: float
) -> Float[Tensor, ""]:
    """β τ p₀ Δ ≤ mean of βσ(−s)‖d‖ (lemma 1): p₀ is the share of pairs with σ(−s) ≥ τ, Δ the mean among them of
    ‖d‖, d = ∇log π(y⁺) − ∇log π(y⁻), whose `length` is given."""
    event = torch.sigmoid(-beta * h) >= tau
    return beta * tau * torch.where(event, length, 0).mean()


def worst(prompt: Prompt) -> int:
    """Which recorded response is the fixed negative: the one with the lowest score, the first of equals."""
    scores = [score for _, score in recorded(prompt)]
    return scores.index(min(scores))


def request(prompt: Prompt, rejected: str, cut: int = 0) -> Prompt:
    """The prompt that shows history, bad answer and complaint, without the first `cut` characters of the history."""
    history = "\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt.messages)
    text = REQUEST.format(history=history[cut:], rejected=rejected, feedback=prompt.info["feedback"])
    return replace(prompt, messages=({"role": "user", "content": text},))


@dataclass(frozen=True)
class AgainstDissatisfaction:
    """The recorded response with the lowest score, scored 0, and `group_size` − 1 fresh samples, scored 1, which are
    trained under the plain prompt though they were sampled in view of the feedback (`guided`)."""

    needs, gives = Needs(), Gives(behaviour=False)
    group_size: int = 2
    guided: bool = True

    def check_task(self, task: Task) -> None:
        for prompt in task.train:
            if "responses" not in prompt.info or not recorded(prompt):
                raise InputError("responses", prompt.id, "a prompt needs a recorded response that was bad: give "
                                 "'conversation' with \"satisfied\": false on the user's message after it")  # fmt: skip
            shown = prompt.info.get("feedback")
            if self.guided and not isinstance(task, ShowsFeedback) and not (prompt.messages and isinstance(shown, str)):
                raise InputError("feedback", prompt.id, "this prompt has no message of its user to improve by: give "
                                 "'conversation' with \"satisfied\": false on it, or set guided to false")  # fmt: skip

    def check(self, world: World) -> None:
        for prompt in world.task.train if self.guided else ():
            self.shown(world, prompt)

    def shown(self, world: World, prompt: Prompt) -> Tokens:
        """The ids that the fresh response is sampled after."""
        policy, [rejected] = world.policy, recorded_group(world.policy, prompt, [worst(prompt)]).trajectories
        if not self.guided:
            return policy.encode(prompt)
        if isinstance(world.task, ShowsFeedback):
            return policy.encode(world.task.feedback_shown(prompt, rejected.response))
        text, room = policy.decode(rejected.response), policy.context_length - world.sampling.max_tokens
        most = sum(len(f"{m['role']}: {m['content']}\n") for m in prompt.messages)
        ids = policy.encode(request(prompt, text))
        if len(ids) > room:
            cut = bisect_left(range(most), True, key=lambda n: len(policy.encode(request(prompt, text, n))) <= room)
            ids = policy.encode(request(prompt, text, cut))
        if len(ids) > room:
            raise InputError("prompt", prompt.id, f"its answer and feedback take {len(ids)} tokens where the response "
                             f"of {world.sampling.max_tokens} leaves {room}: drop it, or lower max_tokens")  # fmt: skip
        return ids

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        see, policy, most = self.shown, world.policy, self.group_size - 1
        requests = [Request(see(world, p), most, media=media_of(policy, p)) for p in prompts]
        sampled, groups = world.engine.generate(requests, world.sampling, generator, world.version), list[Group]()
        for prompt, answers in zip(prompts, sampled, strict=True):
            plain, group = world.policy.encode(prompt), group_of(prompt, answers)
            for t in group.trajectories:
                [s], t.info["score"] = t.segments, 1.0
                t.segments = [s if np.array_equal(s.context, plain) else replace(s, training_context=plain)]
            negative = recorded_group(world.policy, prompt, [worst(prompt)]).trajectories[0]
            negative.info["score"] = 0.0
            group.trajectories.insert(0, negative)
            groups.append(group)
        return groups


@dataclass(frozen=True)
class FixedNegativePairs:
    """Every fresh response with the fixed one, unless they are equal."""

    needs = Needs(advantage=False, responses=2)
    max_rounds = 1

    def __call__(self, batch: Batch, target: int) -> Choice:
        choice = MakePairs("all")(batch, target)
        assert choice.pairs is not None
        tokens = torch.zeros(len(batch.reward)).index_add_(0, batch.trajectory, batch.valid.sum(1).float())
        short = tokens[choice.pairs[:, 0]] == 1
        log = {"drift/one_token": float(short.float().mean()) if len(short) else 0.0}
        return choice._replace(metrics={**choice.metrics, **log})


@method(
    Card(
        title="Learning from abundant user dissatisfaction in real-world preference learning",
        paper="arXiv 2510.02341",
        year=2025,
        family="preference",
        idea="rejected: what dissatisfied a user; chosen: a fresh answer that saw the complaint, learnt as if not",
        changes=("rollout", "reward", "selection", "loss", "optimiser", "reference"),
        composes_with="samplers, other losses of pairs, other references",
        claim="after five rounds its reward is 0.3 above SPIN's and iterative DPO's, and its gradient does not fade",
        example="anypolicy train drift --task tabular-lock:recorded=4 --steps 60",
        look_at="probe/success: 0.23 to 0.35 with seed 0",
        conflicts=CONFLICTS,
        no_signal=(),
        metrics={"drift/one_token": "share of pairs whose fresh response is one token long, as a rule the end alone"},
    )
)
def drift(
    beta: knobs.Beta = 0.1,
    nll_coef: Annotated[float, Knob("weight of the chosen response's negative log-likelihood", least=0)] = 0.001,
    guided: Annotated[bool, Knob("answers are sampled with the complaint in sight")] = True,
    samples: Annotated[int, Knob("answers of the policy to each complaint, the preferred ones", least=1)] = 1,
    smoothing: Annotated[float, Knob("share of labels taken to be wrong", least=0, below=0.5)] = 0.0,
    minibatches: Annotated[int, Knob("mini-batches of a pass", least=1)] = 4,
    reference: Annotated[
        Literal["round", "init"], Knob("the reference: renewed every round, or the policy as the run began")
    ] = "round",
) -> GroupRecipe:
    """One guided sample against every bad answer, β = 0.1, α = 0.001, four updates a round, its policy as reference."""
    if samples < 1:
        raise InputError("samples", samples, "use at least 1")
    if nll_coef < 0:
        raise InputError("nll_coef", nll_coef, "use 0 or more")
    base = dpo()
    return replace(
        base, rollout=AgainstDissatisfaction(samples + 1, guided), reward=RecordedReward(),
        selection=FixedNegativePairs(), loss=PairLoss(Sigmoid(beta, smoothing), nll_coef),
        reference=PerRound() if reference == "round" else Fixed(),
        optimiser=replace(base.optimiser, lr=5e-7, minibatches=minibatches),
    )  # fmt: skip
