"""The group loop: a policy learns from groups of its own responses.

    sampler → rollout → reward → advantage → selection → loss → optimiser

Group statistics run over all rows before anything is dropped; what a selection drops, and rows that contribute to no
term of the loss, cost no forward pass; denominators are those of the whole optimiser batch. The loop knows no method.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anypolicy.data.batch import Batch, from_groups
from anypolicy.data.records import Group, from_json, to_json
from anypolicy.errors import InputError
from anypolicy.loops.optimise import Updater
from anypolicy.loops.recipe import Credit, GroupRecipe, World
from anypolicy.parts.moments import Moments
from anypolicy.parts.reduce import count
from anypolicy.policies.base import Policy, Scores
from anypolicy.runs.seeds import generator, number


class GroupLoop:
    """One recipe at work on one policy. `step()` is one rollout batch and its updates; `state()` is all it remembers.

    `prompts` is the number of groups of a full step; `micro_tokens` bounds the padded tokens of one forward pass and
    does not change the result.
    """

    def __init__(self, recipe: GroupRecipe, world: World, *, prompts: int, micro_tokens: int, reference: Policy | None):
        self.recipe, self.world, self.prompts, self.micro_tokens = recipe, world, prompts, micro_tokens
        self.reference = reference
        self.order = recipe.sampler.begin(len(world.task.train), world.seed)
        self.steps, self.carried, self.running = 0, list[Group](), Moments()
        sets: dict[str, tuple[Iterable[nn.Parameter], float]] = {
            "policy": (world.policy.module.parameters(), recipe.optimiser.lr)
        }
        self.value_head: nn.Linear | None = None
        if recipe.critic is not None:
            self.value_head = nn.Linear(world.policy.hidden_size, 1, dtype=self.float_dtype)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            sets["critic"] = (self.value_head.parameters(), recipe.critic.lr)
        self.updater = Updater(recipe.optimiser, sets)

    @property
    def float_dtype(self) -> torch.dtype:
        return torch.float64 if self.world.policy.dtype == torch.float64 else torch.float32

    def step(self) -> dict[str, float]:
        """Collect one batch of experience, learn from it, and say what happened."""
        batch, metrics = self.collect()
        metrics |= self.update(batch) if batch.rows else {"updates": 0.0, "updates/skipped": 1.0}
        self.steps += 1
        return metrics

    # --- experience --------------------------------------------------------------------------------------------------
    def collect(self) -> tuple[Batch, dict[str, float]]:
        """Sampler, rollout, reward, advantage and selection, with refill; carried groups come first."""
        groups, seen = self.carried, list[Group]()
        round, late = 0, getattr(self.recipe.advantage, "on_kept", False)
        early = not late or getattr(self.recipe.selection, "needs_advantage", True)
        while True:
            if len(self.carried) < self.prompts or round > 0:
                new = self.sample(round)
                groups, seen = groups + new, seen + new
            batch = from_groups(groups, self.float_dtype, self.world.sampling.max_tokens)
            batch = replace(batch, running=self.running, seed=number(self.world.seed, "stages", self.steps))
            batch = self.credited(batch) if early else batch
            choice = self.recipe.selection(batch, self.prompts)
            round += 1
            if not choice.short or round >= self.recipe.selection.max_rounds:
                break
        self.carried = [] if choice.surplus is None else [g for g, c in zip(groups, choice.surplus, strict=True) if c]
        if choice.mask is not None:
            batch = replace(batch, mask=batch.mask & choice.mask)
        if choice.weight is not None:
            batch = replace(batch, weight=batch.weight * choice.weight)
        metrics = describe(seen, self.order.metrics())
        metrics["groups/kept"], metrics["groups/carried"] = float(choice.groups.sum()), float(len(self.carried))
        if choice.trajectories is not None:
            batch = batch.draw(choice.trajectories)
            metrics["rows/kept"] = float(batch.rows)
        batch = batch.select(choice.groups[batch.group_id[batch.trajectory]])
        return self.credited(batch) if late and batch.rows else batch, metrics

    def sample(self, round: int) -> list[Group]:
        """Draw prompts, let the policy answer, score the answers."""
        world = replace(self.world, version=self.updater.updates)
        positions = self.order.draw(self.prompts, self.steps, round)
        prompts = [world.task.train[i] for i in positions]
        if not self.recipe.reward.needs_labels:
            prompts = [p.without_label() for p in prompts]
        groups = self.recipe.rollout(world, prompts, generator(world.seed, "sampling", self.steps, round))
        where = {p.id: i for p, i in zip(prompts, positions, strict=True)}
        for n, group in enumerate(groups):
            group.id = f"{self.steps}.{round}.{n}/{group.prompt.id}"
            group.position = where[group.prompt.id]
            for i, t in enumerate(group.trajectories):
                t.id = f"{group.id}/{i}"
        self.recipe.reward(world, groups)
        self.running = self.running.add([t.reward for g in groups for t in g.trajectories])
        self.order.observe(groups)
        return groups

    def credited(self, batch: Batch) -> Batch:
        """Fill in what the advantage asks for, then the advantage."""
        stage: Any = self.recipe.advantage
        if getattr(stage, "needs_reference", False) and batch.logp_ref is None:
            batch = replace(batch, logp_ref=self.scores(batch, self.reference).logp)
        if getattr(stage, "needs_entropy", False) and batch.entropy is None:
            batch = replace(batch, entropy=self.scores(batch, self.world.policy, entropy=True).entropy)
        if getattr(stage, "needs_value", False) and batch.value is None:
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
        if loss.needs_reference and batch.logp_ref is None:
            batch = replace(batch, logp_ref=self.scores(batch, self.reference).logp)
        if self.rescores and settings.epochs * settings.minibatches > 1:
            batch = self.rescored(batch, self.scores(batch, self.world.policy))
        sums, n, skipped, idle, tokens = defaultdict[str, float](float), 0, 0, 0, 0
        edges: dict[str, float] = {}
        for epoch in range(settings.epochs):
            for part in self.minibatches(batch, epoch):
                active = loss.active(part)
                if self.value_head is not None:
                    active |= part.mask.any(1)
                idle += int((~active).sum())
                if not active.any():
                    skipped += 1
                    continue
                tokens += int(part.mask[active].sum())
                log = self.one_update(part.select(active))
                for name, value in log.items():
                    fold = max if name.endswith("max") else min
                    if name.endswith(("max", "min")):
                        edges[name] = fold(edges.get(name, value), value)
                    else:
                        sums[name] += value
                n += 1
        means = {name: value / n for name, value in sums.items()}
        counted = {"updates": float(n), "updates/skipped": float(skipped), "rows/skipped": float(idle)}
        return means | edges | counted | {"tokens/trained": float(tokens)}

    def minibatches(self, batch: Batch, epoch: int) -> Iterator[Batch]:
        """Split by whole groups in a seeded order; each part carries its own denominators."""
        group = batch.group_id[batch.trajectory]
        groups, parts = torch.unique(group), self.recipe.optimiser.minibatches
        if parts > 1:
            order = torch.randperm(len(groups), generator=generator(self.world.seed, "minibatch", self.steps, epoch))
            groups = groups[order]
        for chosen in torch.tensor_split(groups, min(parts, len(groups))):
            part = batch if parts == 1 else batch.select(torch.isin(group, chosen))
            yield replace(part, totals=count(part.mask, part.trajectory))

    def one_update(self, batch: Batch) -> dict[str, float]:
        """Forward and backward of every micro-batch, then one optimiser step."""
        assert batch.totals is not None
        batch = replace(batch, totals=batch.totals._replace(watched=float(batch.mask.sum())))
        log: dict[str, float] = {}
        loss, temperature = self.recipe.loss, self.world.sampling.temperature
        critic = self.recipe.critic
        for rows in batch.chunks(self.micro_tokens):
            micro = batch.select(rows)
            scores = self.world.policy.score(
                micro, temperature, entropy=loss.needs_entropy, hidden=critic is not None
            )  # fmt: skip
            if self.rescores and self.recipe.optimiser.epochs * self.recipe.optimiser.minibatches == 1:
                micro = self.rescored(micro, scores)
            terms, metrics = loss(scores, micro)
            if critic is not None:
                values = critic.loss(self.value(scores.hidden), micro)
                terms, metrics = terms | values.terms, metrics | values.metrics
            torch.stack(list(terms.values())).sum().backward()
            self.updater.accumulate()
            for name, value in ({f"loss/{k}": v for k, v in terms.items()} | metrics).items():
                x = float(value.detach())
                fold = {"max": max, "min": min}.get(name[-3:], lambda a, b: a + b)
                log[name] = fold(log[name], x) if name in log else x
        return log | self.updater.step()

    # --- scoring -----------------------------------------------------------------------------------------------------
    @property
    def rescores(self) -> bool:
        """In reduced precision the engine's log-probabilities and the trainer's differ by rounding. That difference is
        no information, so tokens sampled by the current weights take the trainer's own value as logp_old."""
        return self.world.policy.dtype not in (torch.float32, torch.float64)

    def rescored(self, batch: Batch, scores: Scores) -> Batch:
        fresh = batch.version == self.updater.updates
        return replace(batch, logp_old=torch.where(fresh, scores.logp.detach(), batch.logp_old))

    @torch.no_grad()
    def scores(self, batch: Batch, policy: Policy | None, *, entropy: bool = False, hidden: bool = False) -> Scores:
        """Scores without gradients, micro-batch by micro-batch, in the batch's own row order."""
        assert policy is not None
        out: list[Tensor | None] = [None, None, None]
        for rows in batch.chunks(self.micro_tokens):
            part = batch.select(rows)
            for i, x in enumerate(policy.score(part, self.world.sampling.temperature, entropy=entropy, hidden=hidden)):
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
        return self.value_head(hidden.to(self.float_dtype)).squeeze(-1)

    # --- memory ------------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the updater's tensors."""
        carried = [to_json(g) for g in self.carried]
        own = {"steps": self.steps, "updates": self.updater.updates, "rewards": list(self.running)}
        return own | {"order": self.order.state(), "carried": carried}

    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.steps, self.running = state["steps"], Moments(*state["rewards"])
        self.order.restore(state["order"])
        prompts = self.world.task.train
        self.carried = [from_json(g, prompts[g["position"]]) for g in state["carried"]]
        self.updater.restore(tensors, state["updates"])


def describe(groups: list[Group], more: dict[str, float]) -> dict[str, float]:
    """Rewards, verdicts and lengths of the sampled groups."""
    trajectories = [t for g in groups for t in g.trajectories]
    if not trajectories:
        return more
    reward = torch.tensor([t.reward for t in trajectories], dtype=torch.float64)
    length = torch.tensor([t.length for t in trajectories], dtype=torch.float64)
    right = [sum(bool(t.correct) for t in g.trajectories) / max(len(g.trajectories), 1) for g in groups]
    named: dict[str, list[float]] = {}
    for t in trajectories:
        for name, value in t.rewards.items():
            named.setdefault(name, []).append(value)
    logp = [float(s.logp[s.mask].mean()) for t in trajectories for s in t.segments if s.mask.any()]
    return more | {
        "reward/mean": float(reward.nanmean()),
        "reward/std": float(reward[~reward.isnan()].std()) if len(reward) > 1 else 0.0,
        **({f"reward/{k}": sum(v) / len(v) for k, v in named.items()} if len(named) > 1 else {}),
        "accuracy": sum(right) / len(right),
        "groups/mixed": sum(0 < r < 1 for r in right) / len(right),
        "groups/all_correct": sum(r == 1 for r in right) / len(right),
        "groups/all_wrong": sum(r == 0 for r in right) / len(right),
        "length/mean": float(length.mean()),
        "length/truncated": sum(t.stop == "length" for t in trajectories) / len(trajectories),
        "tokens/generated": float(length.sum()),
        "entropy/behaviour": -sum(logp) / max(len(logp), 1),
    }


def check(recipe: GroupRecipe, prompts: int) -> None:
    """Refuse recipes that cannot work, before any work."""
    advantage, size = recipe.advantage, recipe.rollout.group_size
    for stage in (advantage, recipe.selection):
        if size < (least := getattr(stage, "min_group", 1)):
            raise InputError("group_size", size, f"{type(stage).__name__} compares responses: use at least {least}")
    if getattr(advantage, "needs_value", False) and recipe.critic is None:
        raise InputError("critic", None, f"{type(advantage).__name__} needs a value head: add a method's .critic stage")
    if recipe.critic is not None and not getattr(advantage, "needs_value", False):
        raise InputError(
            "advantage", type(advantage).__name__, "the recipe has a critic, so use an advantage with value targets"
        )
    if prompts < 1:
        raise InputError("prompts", prompts, "use at least 1")
    if recipe.optimiser.minibatches > prompts:
        raise InputError("minibatches", recipe.optimiser.minibatches, f"a step has only {prompts} groups to split")
