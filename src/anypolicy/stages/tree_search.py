"""A rollout that searches: a tree of steps for every prompt, one path through it, and its decisions as groups.

The trees of a step grow together: each waits for the children it needs, and one call of the engine samples them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Segment, Tokens, Trajectory
from anypolicy.engines.base import Engine, Request
from anypolicy.errors import InputError
from anypolicy.parts.tree_search import (
    Decision,
    Node,
    Search,
    Step,
    chain,
    damped,
    distinct,
    grow,
    outcome,
    outline,
    shared,
    walk,
)
from anypolicy.policies.language.base import Denoises, Policy, media_of, prefilled
from anypolicy.stages.needs import Gives, Needs
from anypolicy.stages.recipe import World
from anypolicy.tasks.language.base import Task
from anypolicy.tasks.language.verify import verifies, verify

QUESTION = """{question}

{example}Proposed solution, perhaps not finished:
{solution}

Is this solution, as far as it goes, (A) incorrect or (B) correct? Reply with one letter."""
EXAMPLE = "A correct solution, as an example:\n{example}\n\n"
READ = 32
"""Questions that the policy reads at once."""


@dataclass(frozen=True)
class TreeSearch:
    """Groups of one prompt: the path that was walked, scored by its verdict (stage "direct"), and for every decision on
    it the candidate steps after the same beginning, scored from 0 to 1 by their place (stage "step"). A step's verdict
    is that of the path; with `solved` steps on a path that ended wrong, or without an end, have no score.

    `group_size` candidates are sampled for a node (`root_candidates` for the question), and with `known_steps` the next
    step of the prompt's reference is one more while the path follows it. With `finish` a node at the search's depth has
    one candidate: the rest of the response. `self_evaluation` asks the policy how sure it is of a partial solution.
    """

    gives = Gives(behaviour=False)
    group_size: int = 2
    root_candidates: int = 2
    search: Search = field(default_factory=Search)
    finish: bool = True
    step_tokens: int = 128
    step_end: str = "\n"
    self_evaluation: bool = True
    known_steps: bool = True
    multiple_choice: bool = False
    novel_bonus: bool = False
    worse: Literal["lowest", "random"] = "lowest"
    solved: bool = True
    online: bool = True
    breadth: int = 4

    def __post_init__(self) -> None:
        counts = {"iterations": self.search.iterations, "depth": self.search.depth, "step_tokens": self.step_tokens,
                  "candidates": self.group_size, "root_candidates": self.root_candidates}  # fmt: skip
        for name, count in counts.items():
            if count < 1:
                raise InputError(name, count, "use a whole number, at least 1")
        if max(self.group_size, self.root_candidates) > self.breadth:
            raise InputError("candidates", max(self.group_size, self.root_candidates), f"use at most {self.breadth}")
        if not self.step_end:
            raise InputError("step_end", self.step_end, "write the text that ends a step")

    @property
    def needs(self) -> Needs:
        return Needs(labels=True, reference=not self.online)

    def check_task(self, task: Task) -> None:
        """Paths need a verdict, and a bonus for another solution than the known one needs that one."""
        if not verifies(task):
            raise InputError("task", task.name, "it has no answers to verify, and the search needs verdicts: give "
                             "every row an 'answer'")  # fmt: skip
        if self.novel_bonus and (unknown := [p.id for p in task.train if p.reference is None]):
            raise InputError("novel_bonus", True, f"prompt {unknown[0]!r} has no reference response to differ from")

    def check(self, world: World) -> None:
        """What the policy must be able to do."""
        if isinstance(world.policy, Denoises):
            raise InputError("policy", "masked diffusion", "steps are sampled from left to right: use another policy")
        if self.self_evaluation:
            if mute := [p.id for p in world.task.train if not p.messages]:
                raise InputError(
                    "self_evaluation", True,
                    f"prompt {mute[0]!r} is token ids, about which nothing can be asked: turn it off",
                )  # fmt: skip
            world.policy.token("B")

    def __call__(self, world: World, prompts: list[Prompt], generator: torch.Generator) -> list[Group]:
        engine = world.engine if self.online else world.reference
        assert engine is not None
        trees = [Tree(p, engine.policy) for p in prompts]
        walks = [walk(t.root, self.search) for t in trees]
        ended: dict[int, tuple[list[Decision], Node]] = {}
        while len(ended) < len(trees):
            waiting: list[tuple[Tree, Node]] = []
            for i in range(len(trees)):
                if i not in ended:
                    try:
                        waiting.append((trees[i], next(walks[i])))
                    except StopIteration as stop:
                        ended[i] = stop.value
            if waiting:
                self.expand(world, engine, waiting, generator)
        return [g for i, t in enumerate(trees) for g in self.groups(world, t, *ended[i], generator)]

    # --- growing -----------------------------------------------------------------------------------------------------
    def expand(
        self, world: World, engine: Engine, waiting: Sequence[tuple[Tree, Node]], generator: torch.Generator
    ) -> None:
        """Children for every waiting node: sampled and known candidates, without repetitions, at most `breadth`."""
        limit, requests = world.sampling.max_tokens, list[Request]()
        for tree, node in waiting:
            so_far, n = node.tokens, self.group_size if node.parent else self.root_candidates
            last = self.ends(node)
            n = (2 if self.multiple_choice else 1) if last else n
            longest = limit if last else min(len(so_far) + self.step_tokens, limit)
            requests.append(Request(tree.context, n, so_far, max_tokens=longest, media=tree.media))
        sampled = engine.generate(requests, world.sampling, generator, world.version)
        known = self.known(world, engine.policy, waiting)
        for (tree, node), answers, given in zip(waiting, sampled, known, strict=True):
            begin, last, found = len(node.tokens), self.ends(node), list(given)
            for segment, _ in answers:
                new = segment.response[begin:]
                n = len(new) if last else self.first_step(engine.policy, new)
                tree.generated += len(new)
                logp = tuple(segment.logp[begin : begin + n].tolist())
                found.append(Step(tuple(new[:n].tolist()), logp, 0.0, False))
            steps = self.valued(world, engine.policy, tree, node, distinct(found)[: self.breadth])
            grow(node, steps, self.search.penalty)

    def ends(self, node: Node) -> bool:
        """Whether the next step is the last one by force."""
        return self.finish and node.depth >= self.search.depth

    def first_step(self, policy: Policy, new: Tokens) -> int:
        """Tokens of the first step: up to `step_end`, at most `step_tokens`."""
        new = new[: self.step_tokens]
        if self.step_end not in policy.decode(new).lstrip():
            return len(new)
        return next(k for k in range(1, len(new) + 1) if self.step_end in policy.decode(new[:k]).lstrip())

    def known(self, world: World, policy: Policy, waiting: Sequence[tuple[Tree, Node]]) -> list[list[Step]]:
        """The next step of the reference, for every node that has followed it so far."""
        out: list[list[Step]] = [[] for _ in waiting]
        if not self.known_steps or self.multiple_choice:
            return out
        rows: dict[int, Group] = {}
        for i, (tree, node) in enumerate(waiting):
            so_far = node.tokens
            rest = tree.solution[len(so_far) :]
            if self.ends(node) or tuple(tree.solution[: len(so_far)].tolist()) != so_far or not len(rest):
                continue
            ids = np.concatenate([tree.solution[: len(so_far)], rest[: self.first_step(policy, rest)]])
            if len(ids) <= world.sampling.max_tokens:
                rows[i] = Group("", tree.prompt, [Trajectory("", [tree.plain(ids)])])
        if rows:
            with torch.no_grad():
                logp = policy.score(from_groups(list(rows.values())), world.sampling.temperature).logp
            for (i, group), row in zip(rows.items(), logp, strict=True):
                ids, begin = group.trajectories[0].segments[0].response, len(waiting[i][1].tokens)
                out[i] = [Step(tuple(ids[begin:].tolist()), tuple(row[begin : len(ids)].tolist()), 0.0, False, True)]
        return out

    def valued(self, world: World, policy: Policy, tree: Tree, node: Node, steps: Sequence[Step]) -> list[Step]:
        """The candidates with the values of the states they lead to."""
        before, depth = node.tokens, node.depth
        responses = [np.array(before + s.tokens, np.int64) for s in steps]
        sure = self.confidence(policy, tree.prompt, responses) if self.self_evaluation else [1.0] * len(steps)
        out: list[Step] = []
        for step, response, c in zip(steps, responses, sure, strict=True):
            over = step.tokens[-1] in policy.stop_ids or len(response) >= world.sampling.max_tokens
            value = damped(c, depth, node.value)
            if over:
                [verdict] = verify(world.task, [(tree.prompt, response, policy.decode(response))])
                novel = self.novel_bonus and not np.array_equal(response, tree.solution)
                value += outcome(bool(verdict.correct), depth, multiple_choice=self.multiple_choice, novel=novel)
            out.append(step._replace(value=value, terminal=over))
        return out

    @torch.no_grad()
    def confidence(self, policy: Policy, prompt: Prompt, responses: Sequence[Tokens]) -> list[float]:
        """C: the policy's probability of "(B) correct" when it is shown a partial solution, beside the reference where
        there is one."""
        example = EXAMPLE.format(example=prompt.reference) if isinstance(prompt.reference, str) else ""
        asked, yes, out = prompt.messages[-1]["content"], policy.token("B"), list[float]()
        contexts, media = list[Tokens](), media_of(policy, prompt)
        for response in responses:
            text = QUESTION.format(question=asked, example=example, solution=policy.decode(response))
            contexts.append(policy.encode(replace(prompt, messages=({"role": "user", "content": text},))))
        for start in range(0, len(contexts), READ):
            part = contexts[start : start + READ]
            _, logits = prefilled(policy, part, [media] * len(part))
            out += logits.float().softmax(-1)[:, yes].tolist()
        return out

    # --- what is learnt from -----------------------------------------------------------------------------------------
    def groups(
        self, world: World, tree: Tree, decisions: Sequence[Decision], end: Node, generator: torch.Generator
    ) -> list[Group]:
        """The path and its decisions as scored trajectories."""
        path = end.steps
        stops = tree.policy.stop_ids
        response = np.array(end.tokens, np.int64)
        [verdict] = verify(world.task, [(tree.prompt, response, tree.policy.decode(response))])
        finished = not stops or int(response[-1]) in stops
        right = bool(verdict.correct) and finished
        whole = Trajectory("", [tree.segment([], path, world.version)], correct=right, info={"score": float(right)})
        whole.stop = "eos" if finished else "length"
        out = [Group(tree.prompt.id, tree.prompt, [whole])]
        for node, children, visits in decisions:
            kept = list(range(len(children)))
            if self.worse == "random":
                kept = [int(torch.randint(len(children) - 1, (1,), generator=generator)), len(children) - 1]
            spans = [chain(children[k]) for k in kept]
            same = shared([[t for n in span if n.step for t in n.step.tokens] for span in spans])
            trajectories: list[Trajectory] = []
            for place, (k, span) in enumerate(zip(kept, spans, strict=True)):
                score = place / (len(kept) - 1) if right or not self.solved else math.nan
                info = {"score": score, "visits": visits[k], "q": children[k].q}
                segment = tree.segment(node.steps, span, world.version, same)
                trajectories.append(Trajectory("", [segment], correct=right, info=info))
            out.append(Group(tree.prompt.id, tree.prompt, trajectories, "step"))
        shown = sum(int((s.version >= 0).sum()) for g in out for t in g.trajectories for s in t.segments)
        whole.info["generated"] = tree.generated - shown
        whole.info["outline"] = "\n".join(outline(tree.root, tree.say, end))
        return out


class Tree:
    """The search for one prompt by one policy, and how many tokens it has sampled."""

    def __init__(self, prompt: Prompt, policy: Policy):
        self.prompt, self.policy, self.root, self.generated = prompt, policy, Node(), 0
        self.context, self.media = policy.encode(prompt), media_of(policy, prompt)
        self.solution = np.zeros(0, np.int64) if prompt.reference is None else policy.encode_reference(prompt)

    def say(self, node: Node) -> str:
        assert node.step is not None
        return self.policy.decode(np.array(node.step.tokens, np.int64))

    def segment(self, before: Sequence[Node], span: Sequence[Node], version: int, same: int = 0) -> Segment:
        """The steps of `span` as what the policy chose after those `before`, without the first `same` tokens."""
        steps = [n.step for n in (*before, *span) if n.step]
        ids = np.array([t for s in steps for t in s.tokens], np.int64)
        logp = np.array([x for s in steps for x in s.logp], np.float32)
        given = np.array([s.given for s in steps for _ in s.tokens], np.bool_)
        forced = np.arange(len(ids)) < sum(len(n.step.tokens) for n in before if n.step)
        chosen = np.arange(len(ids)) >= forced.sum() + same
        made = np.where(given | forced, -1, version)
        shown = np.where(forced, 0, logp).astype(np.float32)
        return Segment(self.context, ids, shown, chosen, made, media=self.media)

    def plain(self, ids: Tokens) -> Segment:
        """Ids to score."""
        n, every = len(ids), np.ones(len(ids), np.bool_)
        return Segment(self.context, ids, np.zeros(n, np.float32), every, np.full(n, -1, np.int64), media=self.media)
