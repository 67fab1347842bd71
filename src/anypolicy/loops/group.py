"""The group loop: a policy learns from groups of its own responses.

    sampler → rollout → reward → advantage → selection → loss → optimiser

Group statistics run over all rows before anything is dropped; what a selection drops, and rows that contribute to no
term of the loss, cost no forward pass; denominators are those of the whole optimiser batch. The loop knows no method.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anypolicy.data.batch import Batch, from_groups
from anypolicy.data.records import Group, from_json, to_json
from anypolicy.errors import InputError
from anypolicy.loops.describe import describe
from anypolicy.optimisers.updater import Updater
from anypolicy.parts.moments import Moments
from anypolicy.policies.language.base import Denoises, Policy, Scores, media_of
from anypolicy.runs.seeds import generator, number
from anypolicy.stages.checks import check_images, stages
from anypolicy.stages.pairs import with_pairs
from anypolicy.stages.recipe import (
    Baselined,
    ChecksWorld,
    Choice,
    Credit,
    GroupRecipe,
    LossTerms,
    OwnPasses,
    World,
)
from anypolicy.stages.reference import Reference


class GroupLoop:
    """One recipe at work on one policy. `step()` is one rollout batch and its updates; `state()` is all it remembers;
    `seen` are the groups that the last step sampled.

    `prompts` is the number of groups of a full step; `micro_tokens` bounds the padded tokens of one forward pass and
    does not change the result. `total_steps` is the length of the run, which schedules refer to.
    """

    def __init__(
        self, recipe: GroupRecipe, world: World, *, prompts: int, micro_tokens: int, reference: Policy | None,
        total_steps: int | None = None,
    ):  # fmt: skip
        if reference is not None:
            world = replace(world, reference=world.engine.of(reference))
        self.recipe, self.world, self.prompts, self.micro_tokens = recipe, world, prompts, micro_tokens
        self.total_steps = total_steps
        self.reference: Reference | None = None
        if reference is not None:
            self.reference = Reference(recipe.reference, reference, world.policy, world.seed)
        if total_steps is None and recipe.selection.needs.progress:
            raise InputError("total_steps", None, f"{type(recipe.selection).__name__} follows a schedule of the run")
        check_images(world.policy, world.task.train)
        for stage in stages(recipe):
            if isinstance(stage, ChecksWorld):
                stage.check(world)
        self.order = recipe.sampler.begin(len(world.task.train), world.seed)
        self.steps, self.carried, self.replayed, self.seen = 0, list[Group](), list[Group](), list[Group]()
        sets: dict[str, tuple[Iterable[nn.Parameter], float]] = {
            "policy": (world.policy.module.parameters(), recipe.optimiser.lr)
        }
        self.value_head: nn.Linear | None = None
        if recipe.critic is not None:
            self.value_head = nn.Linear(world.policy.hidden_size, 1, dtype=self.float_dtype, device=world.policy.device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            sets["critic"] = (self.value_head.parameters(), recipe.critic.lr)
        self.updater = Updater(recipe.optimiser, sets)

    @property
    def progress(self) -> float | None:
        """step / (total_steps − 1), from 0 to 1; None where the run has no end."""
        return None if self.total_steps is None else min(self.steps / max(self.total_steps - 1, 1), 1.0)

    @property
    def running(self) -> Moments:
        """Moments of all rewards of the run so far."""
        return Moments.kept(self.world.memory.get("rewards", ()))

    @property
    def float_dtype(self) -> torch.dtype:
        return torch.float64 if self.world.policy.dtype == torch.float64 else torch.float32

    def step(self) -> dict[str, float]:
        """Collect one batch of experience, learn from it, and say what happened."""
        if self.reference is not None:
            self.reference.advance(self.steps)
        batch, metrics = self.collect()
        metrics |= self.update(batch) if batch.rows else {"updates": 0.0, "updates/skipped": 1.0}
        self.steps += 1
        return metrics

    # --- experience --------------------------------------------------------------------------------------------------
    def collect(self) -> tuple[Batch, dict[str, float]]:
        """Sampler, rollout, reward, advantage and selection, with refill; replayed and carried groups come first. An
        advantage of `kept` rows comes after the selection, and before it too unless the selection reads none."""
        groups, seen = self.replayed + self.carried, list[Group]()
        round, late = 0, self.recipe.advantage.needs.kept
        early = not late or self.recipe.selection.needs.advantage
        while True:
            if len(self.carried) < self.prompts or round > 0:
                new = self.sample(round)
                groups, seen = groups + new, seen + new
            batch = self.batched(groups)
            batch = self.credited(batch) if early else batch
            choice = self.recipe.selection(batch, self.prompts)
            round += 1
            if not choice.short or round >= self.recipe.selection.max_rounds:
                break
        self.carried, self.replayed = marked(groups, choice.surplus), marked(groups, choice.replay)
        self.seen = seen
        metrics = describe(seen, self.order.metrics()) | dict(choice.metrics)
        metrics["groups/kept"], metrics["groups/carried"] = float(choice.groups.sum()), float(len(self.carried))
        batch = narrowed(batch, choice)
        if choice.trajectories is not None:
            metrics["rows/kept"] = float(batch.rows)
        if late and batch.rows:
            batch = replace(self.credited(replace(batch, mask=batch.chosen)), mask=batch.mask)
        if choice.mask is not None and not self.recipe.loss.needs.whole_responses:
            batch = batch.trimmed()
        if self.recipe.loss.needs.pairs and batch.rows:
            batch = with_pairs(batch)
            if self.recipe.critic is None:
                batch = batch.select(self.recipe.loss.active(batch))
        return batch, metrics

    def batched(self, groups: list[Group]) -> Batch:
        """All groups of the step so far, with what the loop itself knows."""
        batch = from_groups(groups, self.float_dtype, self.world.sampling.max_tokens)
        seed = number(self.world.seed, "stages", self.steps)
        return replace(batch, progress=self.progress, running=self.running, seed=seed)

    def sample(self, round: int) -> list[Group]:
        """Draw prompts, let the policy answer, score the answers."""
        world = replace(self.world, version=self.updater.updates)
        if self.reads_entropy:
            world = replace(world, sampling=replace(world.sampling, entropy=True))
        positions = self.order.draw(self.prompts, self.steps, round)
        prompts = [world.task.train[i] for i in positions]
        if not self.recipe.reward.needs.labels:
            prompts = [p.without_label() for p in prompts]
        groups = self.recipe.rollout(world, prompts, generator(world.seed, "sampling", self.steps, round))
        where = {p.id: i for p, i in zip(prompts, positions, strict=True)}
        for n, group in enumerate(groups):
            group.id = f"{self.steps}.{round}.{n}/{group.prompt.id}"
            group.position = where[group.prompt.id]
            for i, t in enumerate(group.trajectories):
                t.id = f"{group.id}/{i}"
        sampled = [g.sampled() for g in groups]
        self.recipe.reward(world, sampled)
        world.memory["rewards"] = list(self.running.add([t.reward for g in sampled for t in g.trajectories]))
        self.order.observe([g for g in sampled if g.stage == "direct"])
        return groups

    @property
    def reads_entropy(self) -> bool:
        """Whether advantage or selection reads the entropy of the policy that sampled."""
        return self.recipe.advantage.needs.entropy or self.recipe.selection.needs.entropy

    def credited(self, batch: Batch) -> Batch:
        """Fill in what the advantage asks for, then the advantage."""
        stage: Any = self.recipe.advantage
        if stage.needs.reference:
            batch = self.referenced(batch)
        if batch.entropy is None and self.reads_entropy:
            batch = replace(batch, entropy=self.scores(batch, self.world.policy, entropy=True).entropy)
        if stage.needs.value and batch.value is None:
            hidden = self.scores(batch, self.world.policy, hidden=True).hidden
            batch = replace(batch, value=self.value(hidden).detach())
        credit = stage(batch)
        if not isinstance(credit, Credit):
            credit = Credit(batch.to_rows(credit))
        return replace(batch, advantage=credit.advantage.detach(), value_target=credit.value_target)

    # --- update ------------------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> dict[str, float]:
        """All epochs and mini-batches over one batch of experience; the log of the first and last update."""
        loss, settings = self.recipe.loss, self.recipe.optimiser
        if loss.needs.reference:
            batch = self.referenced(batch)
        if self.temperature != self.world.sampling.temperature:
            batch = replace(batch, logp_old=torch.full_like(batch.logp_old, torch.nan))
        if self.rescores and settings.epochs * settings.minibatches > 1:
            batch = self.rescored(batch, self.scores(batch, self.world.policy))
        sums, seen = defaultdict[str, float](float), defaultdict[str, int](int)
        n, skipped, idle, tokens, read = 0, 0, 0, 0, 0
        edges: dict[str, float] = {}
        for epoch, before in enumerate(self.before(batch)):
            batch = replace(batch, row_seed=self.row_seeds(batch, epoch), before=before)
            for part in self.minibatches(batch, epoch):
                active = loss.active(part)
                if self.value_head is not None:
                    active |= part.mask.any(1)
                idle += int((~active).sum())
                if not active.any():
                    skipped += 1
                    continue
                tokens, read = tokens + int(part.trained[active].sum()), read + int(part.valid[active].sum())
                log = self.one_update(part.select(active))
                for name, value in log.items():
                    fold = max if name.endswith("max") else min
                    if name.endswith(("max", "min")):
                        edges[name] = fold(edges.get(name, value), value)
                    else:
                        sums[name] += value
                        seen[name] += 1
                n += 1
        means = {name: value / seen[name] for name, value in sums.items()}
        counted = {"updates": float(n), "updates/skipped": float(skipped), "rows/skipped": float(idle)}
        return means | edges | counted | {"tokens/trained": float(tokens), "tokens/forward": float(read)}

    def row_seeds(self, batch: Batch, epoch: int) -> Tensor:
        """A seed for every row of a pass, so that no split of the batch changes what a loss draws for it."""
        return torch.randint(2**32, (batch.rows,), generator=generator(self.world.seed, "loss", self.steps, epoch))

    @torch.no_grad()
    def before(self, batch: Batch) -> list[Tensor | None]:
        """What a loss with passes of its own has to know of the weights before several updates: for every epoch, since
        each has its own random numbers. Rows that contribute to no term cost nothing."""
        loss, settings = self.recipe.loss, self.recipe.optimiser
        out: list[Tensor | None] = [None] * settings.epochs
        if not isinstance(loss, OwnPasses) or settings.epochs * settings.minibatches == 1:
            return out
        chosen = loss.active(batch).nonzero().squeeze(1)
        for epoch in range(settings.epochs if len(chosen) else 0):
            part = replace(batch, row_seed=self.row_seeds(batch, epoch)).select(chosen)
            for rows in self.chunks(part):
                x = loss.before(self.world.policy, part.select(rows), self.temperature)
                if x is None:
                    return out
                whole = out[epoch]
                if whole is None:
                    whole = out[epoch] = x.new_zeros(batch.rows, max(x.shape[1], batch.response.shape[1]))
                whole[chosen[rows], : x.shape[1]] = x
        return out

    def minibatches(self, batch: Batch, epoch: int) -> Iterator[Batch]:
        """Split by whole groups in a seeded order; each part carries its own denominators."""
        group = batch.group_id[batch.trajectory]
        groups, parts = torch.unique(group), self.recipe.optimiser.minibatches
        if parts > 1:
            order = torch.randperm(len(groups), generator=generator(self.world.seed, "minibatch", self.steps, epoch))
            groups = groups[order]
        for chosen in torch.tensor_split(groups, min(parts, len(groups))):
            part = batch if parts == 1 else batch.select(torch.isin(group, chosen))
            yield replace(part, totals=part.counted())

    def one_update(self, batch: Batch) -> dict[str, float]:
        """Forward and backward of every micro-batch, then one optimiser step."""
        assert batch.totals is not None
        batch = self.with_baseline(replace(batch, totals=batch.totals._replace(watched=float(batch.mask.sum()))))
        log: dict[str, float] = {}
        for rows in self.chunks(batch, whole_groups=self.recipe.loss.needs.whole_groups):
            for terms, metrics in self.parts(batch.select(rows)):
                torch.stack(list(terms.values())).sum().backward()
                self.updater.accumulate()
                for name, value in ({f"loss/{k}": v for k, v in terms.items()} | metrics).items():
                    x = float(value.detach())
                    fold = {"max": max, "min": min}.get(name[-3:], lambda a, b: a + b)
                    log[name] = fold(log[name], x) if name in log else x
        return log | self.updater.step()

    def chunks(self, batch: Batch, *, whole_groups: bool = False) -> list[Tensor]:
        """Rows of each micro-batch. A policy that sees both sides reads a context again for every row."""
        both_sides = isinstance(self.world.policy, Denoises)
        return batch.chunks(self.micro_tokens, whole_groups=whole_groups, own_contexts=both_sides)

    def parts(self, micro: Batch) -> Iterator[LossTerms]:
        """The loss of a micro-batch: one part, or, from a loss that makes its own passes, many; each is to be
        backwarded before the next is asked for."""
        loss, critic, temperature = self.recipe.loss, self.recipe.critic, self.temperature
        if isinstance(loss, OwnPasses):
            yield from loss.passes(self.world.policy, micro, temperature)
            if critic is not None:
                scores = self.world.policy.score(micro, temperature, hidden=True)
                yield critic.loss(self.value(scores.hidden), micro)
            return
        scores = self.world.policy.score(
            micro, temperature, entropy=loss.needs.entropy, hidden=critic is not None,
            logits=loss.needs.logits,
        )  # fmt: skip
        if self.rescores and self.recipe.optimiser.epochs * self.recipe.optimiser.minibatches == 1:
            micro = self.rescored(micro, scores)
        terms, metrics = loss(scores, micro)
        if critic is not None:
            values = critic.loss(self.value(scores.hidden), micro)
            terms, metrics = terms | values.terms, metrics | values.metrics
        yield LossTerms(terms, metrics)

    # --- scoring -----------------------------------------------------------------------------------------------------
    @property
    def temperature(self) -> float:
        """Of the log-probabilities that are trained."""
        return self.world.sampling.temperature if self.recipe.loss.needs.sampling_temperature else 1.0

    def referenced(self, batch: Batch) -> Batch:
        """With the reference's log-probabilities."""
        if batch.logp_ref is not None:
            return batch
        reference = self.reference
        assert reference is not None
        return replace(batch, logp_ref=reference.logp(batch, lambda part: self.scores(part, reference.policy).logp))

    def with_baseline(self, batch: Batch) -> Batch:
        """With the number of the whole optimiser batch that the loss asks for, if it does."""
        loss: Any = self.recipe.loss
        if not isinstance(loss, Baselined) or (reference := self.reference) is None:
            return batch
        policies = (self.world.policy, reference.policy)
        return replace(batch, baseline=loss.baseline(batch, *(
            lambda part, p=p: self.scores(part, p).logp for p in policies
        )))  # fmt: skip

    @property
    def rescores(self) -> bool:
        """In reduced precision the engine's log-probabilities and the trainer's differ by rounding. That difference is
        no information, so tokens sampled by the current weights take the trainer's own value as logp_old."""
        narrow = self.world.policy.dtype not in (torch.float32, torch.float64)
        return narrow and not isinstance(self.recipe.loss, OwnPasses)

    def rescored(self, batch: Batch, scores: Scores) -> Batch:
        fresh = batch.version == self.updater.updates
        return replace(batch, logp_old=torch.where(fresh, scores.logp.detach(), batch.logp_old))

    @torch.no_grad()
    def scores(self, batch: Batch, policy: Policy | None, *, entropy: bool = False, hidden: bool = False) -> Scores:
        """Scores without gradients, micro-batch by micro-batch, in the batch's own row order."""
        assert policy is not None
        out: list[Tensor | None] = [None, None, None]
        for rows in self.chunks(batch):
            part = batch.select(rows)
            scores = policy.score(part, self.temperature, entropy=entropy, hidden=hidden)
            for i, x in enumerate(scores[:3]):
                if x is not None:
                    shape = (batch.rows, batch.response.shape[1], *x.shape[2:])
                    whole = x.new_zeros(shape) if out[i] is None else out[i]
                    assert whole is not None
                    whole[rows, : x.shape[1]] = x
                    out[i] = whole
        assert out[0] is not None
        return Scores(out[0], out[1], out[2])

    def value(self, hidden: Tensor | None) -> Tensor:
        assert self.value_head is not None and hidden is not None
        return self.value_head(hidden.to(self.float_dtype)).squeeze(-1).cpu()

    # --- memory ------------------------------------------------------------------------------------------------------
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint: the updater's and the reference's."""
        return self.updater.tensors() | ({} if self.reference is None else self.reference.tensors())

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside `tensors`."""
        policy, waiting = self.world.policy, {"carried": self.carried, "replayed": self.replayed}
        kept = {name: [to_json(g, media_of(policy, g.prompt)) for g in groups] for name, groups in waiting.items()}
        beside = {} if self.reference is None else {"reference": self.reference.state()}
        return {"steps": self.steps, "updates": self.updater.updates, "order": self.order.state(),
                "memory": copy.deepcopy(self.world.memory), **kept, **beside}  # fmt: skip

    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.steps = state["steps"]
        self.order.restore(state["order"])
        self.world.memory.clear()
        self.world.memory.update(copy.deepcopy(state.get("memory", {})))
        prompts = self.world.task.train
        self.carried, self.replayed = (
            [from_json(g, p, media_of(self.world.policy, p)) for g in state[name] for p in [prompts[g["position"]]]]
            for name in ("carried", "replayed")
        )
        self.updater.restore(tensors, state["updates"])
        if self.reference is not None:
            self.reference.restore(state["reference"], tensors)


def marked(groups: list[Group], mark: Tensor | None) -> list[Group]:
    """The groups with a True mark."""
    return [] if mark is None else [g for g, m in zip(groups, mark, strict=True) if m]


def narrowed(batch: Batch, choice: Choice) -> Batch:
    """What a selection keeps: targets too, whatever it drops, but no rows that it has emptied. Rows that had nothing to
    train before stay in the denominators."""
    group = batch.group_id[batch.trajectory]
    kept = choice.groups[group]
    if choice.weight is not None:
        batch = replace(batch, weight=batch.weight * choice.weight)
    if choice.mask is not None:
        before = batch.trained.any(1)
        batch = replace(batch, mask=batch.mask & choice.mask)
        kept &= batch.trained.any(1) | ~before
    if batch.target is not None:
        later = False if choice.surplus is None else choice.surplus[group]
        kept = kept | (batch.target.any(1) & ~torch.as_tensor(later))
    batch = replace(batch.select(kept), pairs=choice.pairs)
    if choice.trajectories is None:
        return batch
    return batch.draw(torch.cat([choice.trajectories, (~batch.sampled).nonzero().squeeze(1)]))
