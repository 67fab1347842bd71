"""MCTS-DPO: the numbers of the search and of the loss, the tree as groups, what is dropped, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.families.language_pages import page as run_page
from anypolicy.methods.preference.dpo import Sigmoid
from anypolicy.methods.preference.mcts_dpo import StepPairs, VisitSmoothed, mcts_dpo
from anypolicy.parts.preference import soft_sigmoid
from anypolicy.parts.tree_search import (
    Node,
    Search,
    Step,
    backup,
    chain,
    damped,
    distinct,
    grow,
    length_prior,
    outcome,
    preferred,
    puct,
    ranked,
    select,
    shared,
    simulate,
    visit_noise,
    walk,
)
from anypolicy.policies.language.base import Scores
from anypolicy.runs.directory import read_lines
from anypolicy.stages.pairs import PairLoss
from tests.helpers import lock_loop, segment

# --- numbers of a state ----------------------------------------------------------------------------------------------


def test_prior():
    for penalty, want in ((1.25, 0.567971), (1.0, 0.449329), (0.0, 0.040762)):
        assert length_prior([-0.8] * 4, penalty) == pytest.approx(want, abs=5e-7)


def test_value_of_a_state():
    for depth, want in ((0, 0.8), (3, 0.8), (4, 0.8), (5, 0.4), (7, 0.2)):
        assert damped(0.8, depth) == pytest.approx(want, abs=1e-12)
    assert damped(0.0, 5, parent_value=0.3) == 0.3
    assert damped(0.6, 2) + outcome(True, 2) == pytest.approx(1.6)
    assert damped(0.6, 2) + outcome(False, 2) == pytest.approx(-0.4)
    assert damped(0.6, 2) + outcome(True, 2, novel=True) == pytest.approx(1.85)
    assert [outcome(True, d, multiple_choice=True) for d in (0, 1, 2)] == [0.0, 0.5, 1.0]
    assert outcome(False, 0, multiple_choice=True) == outcome(False, 3, novel=True) == -1.0


# --- the worked search -----------------------------------------------------------------------------------------------
WORKED = {
    "A": (0.7, [-0.2, -0.3]), "B": (0.6, [-0.4, -0.2, -0.3]), "AA": (1.9, [-1.6, -0.9]), "AB": (-0.7, [-0.3, -0.2]),
    "BA": (-0.6, [-0.5]), "BB": (-0.8, [-0.7, -0.1]),
}  # fmt: skip


def name(node):
    return "".join("AB"[n.step.tokens[0]] for n in node.steps)


def expand(node):
    def step(i):
        value, logp = WORKED[name(node) + "AB"[i]]
        return Step((i,) * len(logp), tuple(logp), value, node.depth == 1)

    grow(node, [step(0), step(1)])


def finish(search):
    """Run a generator of nodes to expand to its end; what it returns."""
    while True:
        try:
            expand(next(search))
        except StopIteration as end:
            return end.value


def iterated(n):
    root = Node()
    return root, ["".join(name(finish(simulate(root, Search(depth=2)))[-1])) for _ in range(n)]


def test_worked_search():
    root, paths = iterated(6)
    assert paths == ["AA", "BA", "AA", "AA", "AA", "AA"]
    a, b = root.children
    assert [c.prior for c in (a, b, *a.children, *b.children)] == pytest.approx(
        [0.810403, 0.796164, 0.349546, 0.810403, 0.606531, 0.714367], abs=5e-7
    )
    assert (a.visits, b.visits, root.visits) == (5, 1, 12)
    assert (a.q, a.v, b.q, root.v) == pytest.approx((1.466667, 0.766667, -0.7, 1.105556), abs=5e-7)
    assert [(c.visits, c.q) for c in (*a.children, *b.children)] == [
        (5, pytest.approx(1.2)), (0, pytest.approx(-1.4)), (1, pytest.approx(-1.2)), (0, pytest.approx(-1.4))
    ]  # fmt: skip
    assert preferred(root) is a
    decision = ranked(root)
    assert decision.children == (b, a)
    assert decision.visits == (1, 5)
    noise = float(visit_noise(torch.tensor([5.0]), torch.tensor([1.0])))
    assert noise == pytest.approx(0.166667, abs=5e-7)
    assert 1 - noise == pytest.approx(0.833333, abs=5e-7)


@pytest.mark.parametrize(
    ("iterations", "q_a", "v_a", "q_b", "v"),
    [(1, 0.6, -0.1, 0.6, 0.6), (2, 0.6, -0.1, -0.7, -0.05), (3, 1.033333, 0.333333, -0.7, 0.455556)],
)
def test_worked_search_on_its_way(iterations, q_a, v_a, q_b, v):
    root, _ = iterated(iterations)
    a, b = root.children
    assert (a.q, a.v, b.q, root.v) == pytest.approx((q_a, v_a, q_b, v), abs=5e-7)
    if iterations == 2:
        assert b.v == pytest.approx(-1.3)


def test_an_unvisited_child_counts_once():
    root = Node()
    grow(root, [Step((0,), (-1.0,), 0.8, True), Step((1,), (-1.0,), 0.2, True)])
    root.children[0].visits = 3
    backup([root, root.children[0]])
    assert root.children[0].visits == 4
    root.children[0].visits = 3
    leaf = root.children[0]
    leaf.visits = 2  # the backup brings it to 3
    backup([root, leaf])
    assert root.v == pytest.approx(0.65)


def random_tree(rng, depth, breadth=3):
    """A search driver over a random tree; also a check after every expansion."""

    def expand(node):
        n = int(rng.integers(1, breadth + 1))
        steps = [
            Step((i,), (float(-rng.exponential()),), float(rng.normal()), node.depth == depth - 1) for i in range(n)
        ]
        grow(node, steps)

    return expand


@pytest.mark.parametrize("seed", range(40))
def test_rewards_of_a_path_telescope_and_visits_add_up(seed):
    rng = np.random.default_rng(seed)
    grown, root, search = random_tree(rng, 4), Node(), Search(iterations=12, root_factor=1, depth=4, explore=0.7)
    for _ in range(search.iterations):
        run = simulate(root, search)
        try:
            while True:
                grown(next(run))
        except StopIteration as end:
            path = end.value
        assert sum(n.reward for n in path) == pytest.approx(path[-1].value)
        assert path[-1].terminal
    assert root.visits == 24
    assert sum(c.visits for c in root.children) == 12
    nodes = [root]
    for node in nodes:
        nodes += node.children
        if node.children and node.parent:
            assert sum(c.visits for c in node.children) == node.visits
            weights = [max(1, c.visits) for c in node.children]
            assert node.v == pytest.approx(np.average([c.q for c in node.children], weights=weights))
            assert node.q == pytest.approx(node.reward + node.v)
        low, high = min((c.q for c in node.children), default=node.v), max((c.q for c in node.children), default=node.v)
        assert low - 1e-12 <= node.v <= high + 1e-12 or not node.children or node.visits == 0
        if node.children:
            best = select(node, 0.7)
            assert puct(best, node.visits, 0.7) == max(puct(c, node.visits, 0.7) for c in node.children)


def test_ties_go_to_the_first_child_and_full_ties_keep_their_order():
    root = Node()
    grow(root, [Step((i,), (-1.0,), 0.5, True) for i in range(3)])
    assert select(root) is root.children[0]
    assert ranked(root).children == tuple(root.children)
    assert preferred(root) is root.children[0]


def test_the_order_is_by_q_then_share_then_reward_not_by_visits():
    root = Node()
    grow(root, [Step((i,), (-1.0,), v, True) for i, v in enumerate((0.9, 0.1, 0.1))])
    for child, visits in zip(root.children, (1, 7, 7), strict=True):
        child.visits = visits
    assert ranked(root).children[-1] is root.children[0]
    for child in root.children:
        child.q = 0.0
    assert ranked(root).children == (root.children[0], root.children[1], root.children[2])
    root.children[1].visits = 9
    assert ranked(root).children[-1] is root.children[1]
    assert preferred(root) is root.children[1]


def test_the_walk_moves_on_with_the_subtree_and_looks_deeper_each_time():
    """Depth 1 at a time: nodes below the first decision are expanded only from there."""
    root = Node()
    decisions, end = finish(walk(root, Search(iterations=3, root_factor=2, depth=1)))
    assert [name(d.node) for d in decisions] == ["", name(end)[:1]]
    assert end.terminal
    assert len(name(end)) == 2
    assert root.visits == 12
    chosen = decisions[1].node
    assert chosen.visits > decisions[0].visits[decisions[0].children.index(chosen)]
    other = next(c for c in root.children if c is not chosen)
    assert not other.children


def test_one_candidate_is_sampling():
    root = Node()
    run = walk(root, Search(iterations=2, depth=2))
    try:
        while True:
            node = next(run)
            grow(node, [Step((node.depth,), (-0.5,), 1.0, node.depth == 3)])
    except StopIteration as end:
        decisions, leaf = end.value
    assert decisions == []
    assert leaf.tokens == (0, 1, 2, 3)
    assert [n.step.tokens for n in chain(root.children[0])] == [(0,), (1,), (2,), (3,)]


def test_equal_candidates_are_one():
    steps = [Step((t,), (logp,), 0.0, False) for t, logp in ((3, -1.0), (1, -2.0), (3, -3.0), (2, -1.0))]
    assert distinct(steps) == [steps[0], steps[1], steps[3]]


def test_shared_beginnings():
    assert shared([[1, 2, 3], [1, 2, 4]]) == 2
    assert shared([[1], [1, 2]]) == 0
    assert shared([[1, 2], [1, 2, 3]]) == 1
    assert shared([[1, 2], [3, 2]]) == 0


# --- loss ------------------------------------------------------------------------------------------------------------
def test_visit_noise():
    better, worse = torch.tensor([10.0, 5, 3, 0, 7], dtype=torch.float64), torch.tensor([3.0, 5, 10, 4, 0])
    want = [0.230769, 0.5, 0.5, 0.5, 0.0]
    assert visit_noise(better, worse.double()).tolist() == pytest.approx(want, abs=5e-7)
    some = torch.arange(1.0, 20)
    paper = 1 / (some[:, None] / some[None] + 1)
    grid = torch.cartesian_prod(some, some)
    assert torch.allclose(visit_noise(*grid.T).view(19, 19), paper.clamp(max=0.5))


def at(h, noise, beta=0.1):
    x = torch.tensor([h], dtype=torch.float64, requires_grad=True)
    loss = soft_sigmoid(x, beta, torch.tensor([1 - noise], dtype=torch.float64))
    loss.backward()
    return float(loss.detach()), float(x.grad)


def test_loss_of_a_margin():
    assert at(2.0, 0.166667) == pytest.approx((0.631472, -0.028350), abs=5e-7)
    assert at(2.0, 0.0) == pytest.approx((0.598139, -0.045017), abs=5e-7)
    for noise in (0.0, 0.2, 0.5):
        loss, slope = at(0.0, noise)
        assert loss == pytest.approx(math.log(2), abs=5e-7)
        assert slope == pytest.approx(-0.1 * (1 - 2 * noise) / 2)
    assert at(0.0, 0.5)[1] == 0
    best = math.log((1 - 0.25) / 0.25) / 0.1
    assert best == pytest.approx(10.986123, abs=5e-7)
    assert at(best, 0.25)[1] == pytest.approx(0, abs=1e-12)
    assert at(best, 0.25)[0] < min(at(best - 0.1, 0.25)[0], at(best + 0.1, 0.25)[0])


def steps_of(visits, correct=True, question=0, stem=()):
    """A decision between as many candidate steps, from worst to best."""
    rows = []
    for i, n in enumerate(visits):
        s = segment([*stem, 5 + i], [question])
        s.mask[: len(stem)] = False
        info = {"visits": n, "score": i / (len(visits) - 1)}
        rows.append(Trajectory(str(i), [s], reward=info["score"] if correct else math.nan, correct=correct, info=info))
    return Group("g", Prompt("g"), rows, "step")


def chosen(batch, **settings):
    choice = StepPairs(**settings)(batch, 1)
    return choice, replace(batch, weight=batch.weight * choice.weight, pairs=choice.pairs)


def value(objective, batch, logp, ref):
    batch = replace(batch, logp_ref=ref, totals=batch.counted())
    return sum(PairLoss(objective)(Scores(logp), batch).terms.values())


def test_the_loss_of_a_batch_reads_the_visits_and_only_the_step():
    groups = [steps_of((1, 5), stem=(9, 9))]
    _, batch = chosen(from_groups(groups, torch.float64))
    ref = torch.zeros(2, 3, dtype=torch.float64)
    logp = torch.tensor([[7.0, 8, -1], [-3, 4, 1]], dtype=torch.float64)
    assert batch.pairs.tolist() == [[1, 0]]
    assert float(value(VisitSmoothed(), batch, logp, ref)) == pytest.approx(at(2.0, 1 / 6)[0])
    certain = from_groups([replace_visits(groups[0], None)], torch.float64)
    _, certain = chosen(certain)
    assert certain.visits is None
    assert value(VisitSmoothed(), certain, logp, ref) == value(Sigmoid(), certain, logp, ref)


def replace_visits(group, visits):
    for t in group.trajectories:
        t.info = {k: v for k, v in t.info.items() if k != "visits"} | ({} if visits is None else {"visits": visits})
    return group


def test_every_path_counts_the_same_and_only_right_ones_count():
    groups = [*(steps_of((1, 5)) for _ in range(3)), steps_of((2, 3), question=1), steps_of((1, 4), False, question=2)]
    batch = from_groups(groups, torch.float64)
    batch = replace(batch, response=batch.response + 10 * batch.group_id[batch.trajectory][:, None])
    choice, batch = chosen(batch)
    assert choice.groups.tolist() == [True, True, True, True, False]
    assert choice.metrics["search/dropped"] == 2
    assert choice.metrics["search/noise"] == pytest.approx((3 / 6 + 2 / 5) / 4)
    rng = torch.Generator().manual_seed(0)
    logp, ref = torch.randn(10, 1, generator=rng, dtype=torch.float64), torch.zeros(10, 1, dtype=torch.float64)
    each = [at(float(logp[i + 1] - logp[i]), noise)[0] for i, noise in ((0, 1 / 6), (2, 1 / 6), (4, 1 / 6), (6, 0.4))]
    want = (sum(each[:3]) / 3 + each[3]) / 2
    assert float(value(VisitSmoothed(), batch, logp, ref)) == pytest.approx(want)
    assert len(chosen(from_groups(groups), most=2)[0].pairs) == 3


# --- the search of a policy ------------------------------------------------------------------------------------------
def collected(**settings):
    loop = lock_loop(compose("mcts-dpo").recipe, prompts=8)
    given = {"step_tokens": 1, "self_evaluation": False, "known_steps": False, "search": Search(iterations=4)}
    loop.recipe = replace(loop.recipe, rollout=replace(loop.recipe.rollout, **(given | settings)))
    return loop, loop.sample(0)


def test_groups_of_a_tree():
    loop, groups = collected()
    task, policy = loop.world.task, loop.world.policy
    paths = {g.prompt.id: g for g in groups if g.stage == "direct"}
    assert len(paths) == 8
    for g in groups:
        if g.stage == "direct":
            continue
        path = paths[g.prompt.id].trajectories[0]
        said = path.segments[0].response
        candidates = [t.segments[0] for t in g.trajectories]
        scores = [t.info["score"] for t in g.trajectories]
        assert scores == [0.0, 1.0] if path.correct else np.isnan(scores).all()
        assert g.trajectories[0].info["q"] <= g.trajectories[1].info["q"]
        assert {t.correct for t in g.trajectories} == {path.correct}
        begin = int(candidates[0].mask.argmax())
        assert candidates[0].response[begin] != candidates[1].response[begin]
        for s in candidates:
            assert s.response[:begin].tolist() == said[:begin].tolist()
            assert s.mask.tolist() == [False] * begin + [True] * (len(s.mask) - begin)
        assert any(s.response.tolist() == said[: len(s.response)].tolist() for s in candidates)
    assert {True, False} == {g.trajectories[0].correct for g in paths.values()}
    every = [t.info["score"] for g in collected(solved=False)[1] for t in g.trajectories]
    assert not np.isnan(every).any()
    for g in paths.values():
        [path] = g.trajectories
        assert path.correct == task.score(g.prompt, path.segments[0].response, "").correct
        assert path.info["score"] == float(path.correct)
        first = path.info["outline"].splitlines()
        assert sum(line.lstrip().startswith("*") for line in first) == 3
    batch = from_groups(groups)
    known = batch.mask & (batch.version >= 0)
    assert torch.allclose(policy.score(batch, 1.0).logp[known], batch.logp_old[known])
    assert known.sum() == batch.mask.sum()


def test_a_right_path_that_was_cut_off_is_not_right(monkeypatch):
    loop, groups = collected()
    assert any(g.trajectories[0].correct for g in groups)
    monkeypatch.setattr(loop.world.policy, "stop_ids", (10**6,))
    for g in loop.sample(0):
        [*_, t] = g.trajectories
        assert not t.correct and (t.stop == "length" or g.stage == "step")


def test_generated_tokens_are_those_of_the_search(monkeypatch):
    loop, _ = collected()
    count, generate = [0], loop.world.engine.generate

    def counted(requests, *rest):
        answers = generate(requests, *rest)
        count[0] += sum(int((s.version >= 0).sum()) for a in answers for s, _ in a)
        return answers

    monkeypatch.setattr(loop.world.engine, "generate", counted)
    _, log = loop.collect()
    assert log["tokens/generated"] == count[0] > 0


def test_the_known_solution_is_a_candidate_while_the_path_follows_it():
    loop, groups = collected(known_steps=True)
    firsts = {}
    for g in groups:
        if g.stage == "step" and not g.trajectories[0].segments[0].mask[:1].min() < 1:
            firsts[g.prompt.id] = (g.prompt.reference[0], [int(t.segments[0].response[0]) for t in g.trajectories])
    assert firsts
    assert all(first in seen for first, seen in firsts.values())
    right = [g.trajectories[0].correct for g in groups if g.stage == "direct"]
    without = [g.trajectories[0].correct for g in collected()[1] if g.stage == "direct"]
    assert sum(right) > sum(without)
    given = [t for g in groups for t in g.trajectories if (t.segments[0].version[t.segments[0].mask] < 0).any()]
    batch = from_groups(groups)
    logp = loop.world.policy.score(batch, 1.0).logp
    assert given
    assert torch.allclose(logp[batch.mask], batch.logp_old[batch.mask], atol=1e-6)


def test_an_offline_search_asks_the_reference():
    loop, _ = collected()
    loop.recipe = replace(loop.recipe, rollout=replace(loop.recipe.rollout, online=False))
    with torch.no_grad():
        loop.world.policy.module.logits[:, :, 0] += 50.0
    groups = loop.sample(0)
    tokens = np.concatenate([t.response for g in groups for t in g.trajectories])
    assert (tokens != 0).mean() > 0.5
    assert mcts_dpo(online=False).rollout.needs.reference
    assert not mcts_dpo().rollout.needs.reference


def test_a_random_worse_step_is_never_the_best():
    _, groups = collected(group_size=4, root_candidates=4, worse="random")
    _, ordered = collected(group_size=4, root_candidates=4)
    steps = [g for g in groups if g.stage == "step"]
    assert {len(g.trajectories) for g in steps} == {2}
    assert all(g.trajectories[0].info["q"] <= g.trajectories[1].info["q"] for g in steps)
    assert max(len(g.trajectories) for g in ordered if g.stage == "step") > 2


# --- text ------------------------------------------------------------------------------------------------------------
class Words:
    """A policy of words for what a rollout asks of text: each token is one of these."""

    words, stop_ids = ("", "first", "\n", "second", "B"), (0,)

    def decode(self, tokens):
        return " ".join(self.words[t] for t in tokens)

    def token(self, text):
        return self.words.index(text)

    def encode(self, prompt):
        self.asked = prompt.messages[-1]["content"]
        return np.array([len(prompt.messages)], np.int64)

    def prefill(self, contexts):
        logits = torch.zeros(len(contexts), 5)
        logits[:, 4] = math.log(4.0)
        return None, logits


def test_steps_end_with_their_mark():
    rollout = mcts_dpo(step_tokens=4).rollout
    assert rollout.first_step(Words(), np.array([1, 2, 3, 0])) == 2
    assert rollout.first_step(Words(), np.array([2, 1, 2, 3])) == 3
    assert rollout.first_step(Words(), np.array([1, 3, 3, 3, 3, 3])) == 4
    assert rollout.first_step(Words(), np.array([1, 3])) == 2


def test_the_policy_is_asked_beside_an_example():
    policy, rollout = Words(), mcts_dpo().rollout
    prompt = Prompt("q", messages=({"role": "user", "content": "how much?"},), reference="two and two")
    assert rollout.confidence(policy, prompt, [np.array([1]), np.array([1, 3])]) == pytest.approx([0.5, 0.5])
    assert "how much?" in policy.asked
    assert "two and two" in policy.asked
    assert "first second" in policy.asked
    rollout.confidence(policy, replace(prompt, reference=None), [np.array([1])])
    assert "example" not in policy.asked


# --- refusals and runs -----------------------------------------------------------------------------------------------
def test_what_cannot_be_used_is_refused():
    for knobs, field in (({"beta": 0.0}, "beta"), ({"iterations": 0}, "iterations"), ({"depth": 0}, "depth"),
                         ({"candidates": 5}, "candidates"), ({"step_end": ""}, "step_end")):  # fmt: skip
        with pytest.raises(InputError, match=field):
            mcts_dpo(**knobs)
    lock = lock_loop(compose("mcts-dpo").recipe)
    with pytest.raises(InputError, match="self_evaluation"):
        mcts_dpo().rollout.check(lock.world)
    with pytest.raises(InputError, match="has no reference"):
        training.plan("mcts-dpo", training.Settings("tabular-lock"), {"mcts-dpo": {"novel_bonus": True}})
    with pytest.raises(InputError, match="no importance ratio"):
        training.plan("grpo+mcts-dpo.rollout", training.Settings("tabular-lock"))


SMALL = {"mcts-dpo": {"self_evaluation": False, "step_tokens": 1, "iterations": 2}}


def test_a_run_in_two_parts_is_the_whole_run_and_shows_its_trees(tmp_path):
    settings = {"task": "tabular-lock", "trackers": (), "prompts": 4, "eval_every": 2, "checkpoint_every": 2,
                "knobs": SMALL, "quiet": True}  # fmt: skip
    whole = training.train("mcts-dpo", out=tmp_path / "whole", steps=4, **settings)
    training.train("mcts-dpo", out=tmp_path / "part", steps=2, **settings)
    part = training.resume(tmp_path / "part", steps=4, quiet=True)
    assert torch.equal(whole.policy.module.logits, part.policy.module.logits)
    for name in ("step-000002", "step-000004"):
        trees = [read_lines(r.path / "samples" / f"trees-{name}.jsonl") for r in (whole, part)]
        assert trees[0] == trees[1]
        assert len(trees[0]) == 4
        assert "N " in trees[0][0]["outline"]
    page = run_page(part).read_text()
    assert trees[0][0]["outline"].splitlines()[0].split("  ")[-1].strip() in page
