"""Monte Carlo tree search over the steps of a response: selection, backup, the walk down one path, and what it leaves.

A node is a state: the question and the steps so far. Its `value` is what is known of the state itself, `reward` what
the step gained over its parent, `v` the visit-weighted mean of its children's `q`, and q = reward + discount · v. Nodes
are grown by whoever drives the search: `walk` yields a node that wants children and goes on when it has some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

Pairs = Float[Tensor, " pairs"]


class Step(NamedTuple):
    """A candidate for the next step: its tokens with their log-probabilities, and the value of the state it leads to.
    `given` steps were not sampled."""

    tokens: tuple[int, ...]
    logp: tuple[float, ...]
    value: float
    terminal: bool
    given: bool = False


@dataclass(eq=False)
class Node:
    """A state and its statistics; `step` led here (None: the question itself)."""

    step: Step | None = None
    parent: Node | None = None
    prior: float = 1.0
    reward: float = 0.0
    q: float = 0.0
    v: float = 0.0
    visits: int = 0
    children: list[Node] = field(default_factory=list["Node"])

    @property
    def value(self) -> float:
        return self.step.value if self.step else 0.0

    @property
    def terminal(self) -> bool:
        return self.step is not None and self.step.terminal

    @property
    def steps(self) -> list[Node]:
        """The nodes from below the question down to this one."""
        out, node = list[Node](), self
        while node.parent is not None:
            out.append(node)
            node = node.parent
        return out[::-1]

    @property
    def depth(self) -> int:
        return len(self.steps)

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens so far."""
        return tuple(t for n in self.steps if n.step for t in n.step.tokens)


# --- numbers of a state ----------------------------------------------------------------------------------------------
def length_prior(logp: Sequence[float], penalty: float = 1.25) -> float:
    """p = exp(Σ_j log π(a_j) / |a|^penalty); 1 is the geometric mean, 0 the product."""
    return math.exp(sum(logp) / len(logp) ** penalty)


def damped(confidence: float, parent_depth: int, parent_value: float = 0.0) -> float:
    """C / max(depth of the parent − 3, 1); the parent's own value where that is exactly 0."""
    return confidence / max(parent_depth - 3, 1) or parent_value


def outcome(right: bool, parent_depth: int, *, multiple_choice: bool = False, novel: bool = False) -> float:
    """O of a finished response: +1 if the answer is right, else −1. A right one that does not repeat the known solution
    (`novel`) counts 5/4. A multiple-choice answer that comes at once (parent depth 0) counts nothing, after one step
    half: a lucky letter is no reasoning."""
    if not right:
        return -1.0
    if multiple_choice:
        return {0: 0.0, 1: 0.5}.get(parent_depth, 1.0)
    return 1.25 if novel else 1.0


# --- search ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Search:
    """`iterations` a decision, `root_factor` times as many at the first; nodes `depth` steps below the decision are not
    expanded; exploration weight of PUCT, length penalty of the prior, discount."""

    iterations: int = 64
    root_factor: int = 4
    depth: int = 3
    explore: float = 1.0
    penalty: float = 1.25
    discount: float = 1.0


def distinct(steps: Sequence[Step]) -> list[Step]:
    """Of steps with the same tokens the first, in their order."""
    first: dict[tuple[int, ...], Step] = {}
    for step in steps:
        first.setdefault(step.tokens, step)
    return list(first.values())


def grow(node: Node, steps: Sequence[Step], penalty: float = 1.25) -> None:
    """Children of these steps: r = value − value(parent), Q = V(parent) + r, nothing visited."""
    for step in steps:
        reward = step.value - node.value
        prior = length_prior(step.logp, penalty)
        node.children.append(Node(step, node, prior, reward, q=node.v + reward))


def puct(node: Node, parent_visits: int, explore: float) -> float:
    """Q + w · p · √N(parent) / (1 + N)."""
    return node.q + explore * node.prior * math.sqrt(parent_visits) / (1 + node.visits)


def select(node: Node, explore: float = 1.0) -> Node:
    """The child with the largest PUCT score, the first one of a tie."""
    return max(node.children, key=lambda c: puct(c, node.visits, explore))


def backup(path: Sequence[Node], discount: float = 1.0) -> None:
    """From the leaf up: V = Σ_c max(1, N_c) Q_c / Σ_c max(1, N_c), N += 1, Q = r + γV (not of the path's root)."""
    for i in reversed(range(len(path))):
        node = path[i]
        if i < len(path) - 1:
            weight = [max(1, c.visits) for c in node.children]
            node.v = sum(w * c.q for w, c in zip(weight, node.children, strict=True)) / sum(weight)
        node.visits += 1
        if i:
            node.q = node.reward + discount * node.v


def simulate(root: Node, search: Search) -> Generator[Node, None, list[Node]]:
    """One iteration: down by PUCT, expanding what is not, to a terminal node or the depth limit, then back up. The
    root counts twice, on the way down and in the backup. Yields nodes to expand; returns the path."""
    root.visits += 1
    path = [root]
    while not path[-1].terminal and len(path) <= search.depth:
        if not path[-1].children:
            yield path[-1]
        path.append(select(path[-1], search.explore))
    backup(path, search.discount)
    return path


# --- the path that is walked -----------------------------------------------------------------------------------------
class Decision(NamedTuple):
    """A node of the path with its children from worst to best, and their visits right after the search there."""

    node: Node
    children: tuple[Node, ...]
    visits: tuple[int, ...]


def ranked(node: Node) -> Decision:
    """Children in ascending order of (Q, share of the visits, r, value, N), ties in the order of generation. The share
    is that of a greedy choice: equal over the most visited ones, 0 for the others."""
    most = max(c.visits for c in node.children)
    share = 1 / sum(c.visits == most for c in node.children)
    order = sorted(node.children, key=lambda c: (c.q, share * (c.visits == most), c.reward, c.value, c.visits))
    return Decision(node, tuple(order), tuple(c.visits for c in order))


def preferred(node: Node) -> Node:
    """The child to move to: largest (N · (gap + 1), Q, V), gap the range of the visits among its own children."""

    def key(c: Node) -> tuple[float, float, float]:
        below = [g.visits for g in c.children] or [0]
        return float(c.visits * (max(below) - min(below) + 1)), c.q, c.v

    return max(node.children, key=key)


def walk(root: Node, search: Search) -> Generator[Node, None, tuple[list[Decision], Node]]:
    """Search, decide, move on with the subtree, until a terminal node. Yields nodes to expand; returns the decisions
    between at least two children and the node that ends the path."""
    node, decisions = root, list[Decision]()
    while not node.terminal:
        for _ in range(search.iterations * (search.root_factor if node is root else 1)):
            yield from simulate(node, search)
        if len(node.children) > 1:
            decisions.append(ranked(node))
        node = preferred(node)
    return decisions, node


def chain(node: Node) -> list[Node]:
    """The node with what can only follow: descendants down to the next alternatives."""
    return [node, *chain(node.children[0])] if len(node.children) == 1 else [node]


def shared(spans: Sequence[Sequence[int]]) -> int:
    """Leading tokens that all spans have in common, at least one token of each left over."""
    least = min(len(s) for s in spans) - 1
    return next((i for i in range(least) if len({s[i] for s in spans}) > 1), least)


# --- what it says about a pair ---------------------------------------------------------------------------------------
def visit_noise(better: Pairs, worse: Pairs) -> Pairs:
    """α = min(1 − c, 1/2) with the confidence c = 1/(1 + N_worse/max(1, N_better)): how likely the label is wrong."""
    return (1 - 1 / (1 + worse / better.clamp(min=1))).clamp(max=0.5)


def outline(node: Node, say: Callable[[Node], str], end: Node, indent: int = 0) -> list[str]:
    """The tree as lines, a child indented below its parent; `*` marks the path to `end`."""
    path, lines = end.steps, list[str]()
    for child in node.children:
        mark = "*" if child in path else " "
        numbers = f"N {child.visits} Q {child.q:+.3f} p {child.prior:.3f} value {child.value:+.3f}"
        lines.append(f"{'  ' * indent}{mark} {say(child)!r}  {numbers}")
        lines += outline(child, say, end, indent + 1)
    return lines
