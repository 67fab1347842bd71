"""Pairs of a group's responses as stages: a selection that makes them, and a loss of log-probabilities of whole
responses that learns from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anypolicy.data.batch import Batch
from anypolicy.errors import InputError
from anypolicy.parts.pairing import Pairing, make_pairs
from anypolicy.parts.preference import margin, mean_margin, pair_metrics, sequence_sum
from anypolicy.parts.surrogate import token_ratio
from anypolicy.policies.language.base import Scores
from anypolicy.runs.seeds import generator
from anypolicy.stages.common import distances
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import Choice, LossTerms


# --- making pairs ----------------------------------------------------------------------------------------------------
class Made(NamedTuple):
    """Pairs of trajectories (chosen, rejected), and how many comparisons were ties or of equal responses."""

    pairs: Int[Tensor, "pairs 2"]
    tied: int
    equal: int


def contents(batch: Batch) -> list[bytes]:
    """What every trajectory says: the tokens of its rows."""
    out = [b""] * len(batch.reward)
    for i, t in enumerate(batch.trajectory.tolist()):
        out[t] += batch.response[i][batch.valid[i]].numpy().tobytes() + b"|"
    return out


def preferences(batch: Batch, pairing: Pairing) -> Made:
    """The pairs of every group by reward, its responses in an order drawn anew in every step. Responses without a
    reward or a token of the policy's take no part; ties, equal responses and pairs that came before are dropped."""
    reward, group, said = batch.reward.tolist(), batch.group_id.tolist(), contents(batch)
    present = torch.unique(batch.trajectory[batch.chosen.any(1)])
    members: dict[int, list[int]] = {}
    for t in present[~batch.reward[present].isnan()].tolist():
        members.setdefault(group[t], []).append(t)
    pairs, tied, equal = list[tuple[int, int]](), 0, 0
    for g, own in members.items():
        order = torch.randperm(len(own), generator=generator(batch.seed, "pairs", g)).tolist()
        own, seen = [own[i] for i in order] if pairing != "all" else own, set[tuple[bytes, bytes]]()

        def better(i: int, j: int, own: list[int] = own) -> float:
            return 0.0 if said[own[i]] == said[own[j]] else reward[own[i]] - reward[own[j]]

        found = make_pairs(len(own), pairing, better)
        for i, j in found:
            key = (said[own[i]], said[own[j]])
            if key not in seen:
                seen.add(key)
                pairs.append((own[i], own[j]))
        same = len(own) - len({said[t] for t in own})
        equal += same
        tied += not found and not same
    return Made(torch.tensor(pairs, dtype=torch.long).view(-1, 2), tied, equal)


@dataclass(frozen=True)
class MakePairs:
    """Groups with at least one pair are kept; with `replay` the step's own groups are trained on again in the next."""

    needs = Needs(advantage=False, responses=2)
    max_rounds = 1
    pairing: Pairing = "best_worst"
    replay: bool = False

    def __call__(self, batch: Batch, target: int) -> Choice:
        made = preferences(batch, self.pairing)
        groups = torch.zeros(int(batch.group_id.max()) + 1, dtype=torch.bool)
        groups[batch.group_id[made.pairs[:, 0]]] = True
        log = {"pairs/made": float(len(made.pairs)), "pairs/tied": float(made.tied), "pairs/equal": float(made.equal)}
        newest = torch.arange(len(groups)) >= len(groups) - target
        return Choice(groups, pairs=made.pairs, metrics=log, replay=newest if self.replay else None)


# --- learning from them ----------------------------------------------------------------------------------------------
class Responses(NamedTuple):
    """The responses in a batch: sums of log-probabilities under policy and reference, tokens, reward and weight; how
    often a search took them (0 where none did); `name` is the trajectory of each."""

    logp: Float[Tensor, " n"]
    logp_ref: Float[Tensor, " n"]
    length: Float[Tensor, " n"]
    reward: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]
    visits: Float[Tensor, " n"]
    name: Int[Tensor, " n"]

    @property
    def ratio(self) -> Float[Tensor, " n"]:
        """u = ℓ − ℓ_ref."""
        return self.logp - self.logp_ref


def responses(logp: Float[Tensor, "rows tokens"], batch: Batch) -> Responses:
    """Rows joined to their responses; every token counts that the policy chose. Without a reference its
    log-probabilities are 0, and u is ℓ."""
    name, of = torch.unique(batch.trajectory, return_inverse=True)

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(len(name)).index_add_(0, of, x)

    length = total(batch.chosen.sum(1).to(logp.dtype))
    weight = logp.new_ones(len(name)).index_put_((of,), batch.weight.to(logp.dtype))
    ours = total(sequence_sum(logp, batch.chosen))
    reference = torch.zeros_like(ours)
    if batch.logp_ref is not None:
        reference = total(sequence_sum(batch.logp_ref.to(logp.dtype), batch.chosen))
    visits = torch.zeros_like(batch.reward) if batch.visits is None else batch.visits
    return Responses(
        ours, reference, length, batch.reward[name].to(logp.dtype), weight, visits[name].to(logp.dtype), name
    )


class Pair(NamedTuple):
    """Both responses of every pair."""

    chosen: Responses
    rejected: Responses

    @property
    def margin(self) -> Float[Tensor, " pairs"]:
        """h of sums."""
        w, l = self.chosen, self.rejected  # noqa: E741
        return margin(w.logp, l.logp, w.logp_ref, l.logp_ref)

    @property
    def mean_margin(self) -> Float[Tensor, " pairs"]:
        """h of means over tokens."""
        return mean_margin(self.chosen.ratio, self.rejected.ratio, self.chosen.length, self.rejected.length)


class Objective(Protocol):
    @property
    def needs(self) -> Needs:
        """Whether it reads log-probabilities of the reference."""
        ...

    def __call__(self, pair: Pair) -> Float[Tensor, " pairs"]:
        """The loss of every pair."""
        ...


@dataclass(frozen=True)
class PairLoss:
    """Mean over the pairs of the whole optimiser batch of `objective`, + nll_coef · the mean over the chosen response's
    tokens of −log π. Scored at temperature 1, whatever the responses were sampled at."""

    objective: Objective
    nll_coef: float = 0.0

    @property
    def needs(self) -> Needs:
        return Needs(
            reference=self.objective.needs.reference, pairs=True, responses=2, behaviour=False,
            sampling_temperature=False, whole_groups=True, whole_responses=True,
        )  # fmt: skip

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        assert batch.pairs is not None
        return torch.isin(batch.trajectory, batch.pairs)

    def __call__(self, scores: Scores, batch: Batch) -> LossTerms:
        assert batch.pairs is not None
        r = responses(scores.logp, batch)
        here = batch.pairs[torch.isin(batch.pairs, r.name).all(1)]
        at = torch.searchsorted(r.name, here)
        pair = Pair(*(Responses(*(x[at[:, side]] for x in r)) for side in (0, 1)))
        weight, total = pair.chosen.weight, max(batch.counted().preferences, 1)
        terms = {"preference": (weight * self.objective(pair)).sum() / total}
        if self.nll_coef:
            mean = -pair.chosen.logp / pair.chosen.length.clamp(min=1)
            terms["nll"] = self.nll_coef * (weight * mean).sum() / total
        log = {k: v.sum() / total for k, v in pair_metrics(pair.chosen.ratio, pair.rejected.ratio).items()}
        if batch.logp_ref is None:
            del log["kl/proxy"]
        return LossTerms(terms, behaviour_metrics(scores, batch) | log)


@torch.no_grad()
def behaviour_metrics(scores: Scores, batch: Batch) -> dict[str, Tensor]:
    """Divergences from behaviour and reference policy, where it is known who wrote the responses."""
    if not bool(batch.logp_old[batch.mask].isfinite().all()):
        return {}
    return distances(scores, batch, token_ratio(scores.logp, batch.logp_old), {})


def with_pairs(batch: Batch) -> Batch:
    """Where no selection has made pairs, every two responses of a group with different rewards are one."""
    return batch if batch.pairs is not None else replace(batch, pairs=preferences(batch, "all").pairs)


def check_positive(**numbers: float) -> None:
    """Settings of a loss that must be above 0."""
    for name, value in numbers.items():
        if not value > 0:
            raise InputError(name, value, "use a number above 0")
