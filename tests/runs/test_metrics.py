"""A worked number for every name that a run may log. Each case gives what is logged and what it must be, computed apart."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.data.transitions import Transitions
from anypolicy.engines.base import Sampling
from anypolicy.engines.environments import Environments, Episodes
from anypolicy.engines.native import NativeEngine
from anypolicy.evaluation.diffusion import judged
from anypolicy.evaluation.language import evaluate
from anypolicy.evaluation.reference import beside_reference
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OffPolicyRecipe
from anypolicy.loops import control
from anypolicy.loops.describe import describe
from anypolicy.loops.diffusion import Batch as Noised
from anypolicy.loops.reward_model import PreferenceLoop, PreferenceRecipe, evaluate_pairs
from anypolicy.methods.control.dqn import DoubleQ
from anypolicy.methods.control.ppo import ProximalPolicy, Samples, fit, surrogate
from anypolicy.methods.control.sac import SoftActorCritic
from anypolicy.methods.diffusion.diffusion_dpo import diffusion_dpo
from anypolicy.methods.language.bgpo import BoundLoss
from anypolicy.methods.language.ppo import ValueHead
from anypolicy.methods.language.vade import ThompsonSampler
from anypolicy.optimisers.updater import Updater
from anypolicy.parts.pairing import make_pairs
from anypolicy.policies.control.mlp import q_values
from anypolicy.policies.diffusion.denoisers import PointDiffusion, error_of
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.table import TablePolicy
from anypolicy.runs.metrics import NAMES, wilson
from anypolicy.stages.common import Clip, EpochOrder, PolicyLoss
from anypolicy.stages.needs import Needs as StageNeeds
from anypolicy.stages.pairs import PairLoss, preferences
from anypolicy.stages.recipe import Optimiser, World
from anypolicy.stages.rewards import OwnReward, OwnRewards
from anypolicy.stages.targets import WithImitation
from anypolicy.tasks.control.environments import Space
from anypolicy.tasks.diffusion import ring8
from anypolicy.tasks.language.base import Score
from tests.engines.test_environments import vector
from tests.helpers import batch_of, segment

D = torch.float64
ELSEWHERE = {
    "groups/kept": "loops/test_world.py", "groups/carried": "loops/test_world.py", "rows/kept": "methods/test_pf_ppo.py",
    "rows/skipped": "methods/test_d3s.py", "updates/skipped": "methods/test_d3s.py",
    "tokens/trained": "methods/test_d3s.py", "tokens/forward": "methods/test_d3s.py", 
    "success/<task>": "loops/test_reset_free.py",
    "resets/forced": "loops/test_reset_free.py", "eval/recognised": "tasks/test_pictures.py", "step": "runs/test_resume.py",
    "event": "runs/test_resume.py",
}  # fmt: skip
"""Names whose number is worked out in another file."""


def sampled():
    """Two groups of one stage and one of another, a target, an answer that was not scored."""

    def of(name, reward, correct, stop="eos", logp=-1.0, n=2, **info):
        return Trajectory(name, [segment([1] * n, logp=logp)], reward, {"task": reward, "style": 2 * reward}, correct, stop,
                          info=info)  # fmt: skip

    target = Trajectory("t", [segment([3, 4, 5], logp=-0.25)], target=True, info={"generated": 7})
    prompt = Prompt("p", tokens=(0,))
    return [
        Group("a", prompt, [of("a0", 1.0, True, logp=-0.5), of("a1", 1.0, True, n=4), target]),
        Group("b", prompt, [of("b0", 1.0, True, "length"), of("b1", 0.0, False, unscored="timeout")]),
        Group("c", prompt, [of("c0", 0.0, False, logp=-2.0), of("c1", 0.5, False, n=6)], "corrective"),
        Group("d", prompt, [of("d0", 0.0, False)], "corrective"),
    ]


def groups():
    r = np.array([1, 1, 1, 0, 0, 0.5, 0])
    return describe(sampled(), {}), {
        "reward/mean": r.mean(), "reward/std": r.std(ddof=1), "reward/task": r.mean(), "reward/style": 2 * r.mean(),
        "accuracy": (1 + 0.5) / 4, "accuracy/direct": 0.75, "accuracy/corrective": 0, "prompts/direct": 2, "prompts/corrective": 2,
        "verifier/timeout": 1, "groups/mixed": 0.25, "groups/all_correct": 0.25, "groups/all_wrong": 0.5,
        "length/mean": 20 / 7, "length/truncated": 1 / 7, "tokens/generated": 20 + 7, "entropy/behaviour": 7.5 / 7,
        "target/groups": 0.25, "target/tokens": 3, "target/sampled": 3, "target/logp_sampled": -0.25,
    }  # fmt: skip


def orders():
    """After 12 of 8 prompts an epoch and a half is over; three of eight prompts were observed."""
    epochs, seen = EpochOrder(8, 0), ThompsonSampler().begin(8, 0)
    epochs.draw(12, 0, 0)
    said = [
        Group(str(i), Prompt("p"), [Trajectory("t", [segment([1])], 1.0, correct=True)], position=i)
        for i in (1, 4, 1, 6)
    ]
    seen.observe(said)
    return epochs.metrics() | seen.metrics(), {"epoch": 1.5, "coverage": 3 / 8}


def ratios():
    """Four tokens with these ratios; the advantages are 1 and −1, the clip 0.2; the last row is cut to one token."""
    batch = replace(batch_of([[1.0, 0.0]], [[2, 2]]), advantage=torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=D))
    batch = replace(batch, mask=batch.mask & torch.tensor([[True, True], [True, False]]),
                    logp_ref=batch.logp_old - torch.tensor([[0.1, 0.2], [0.3, 9.0]], dtype=D))  # fmt: skip
    ratio = torch.tensor([[1.5, 1.1], [0.5, 7.0]], dtype=D)
    logp, spread = batch.logp_old + ratio.log(), torch.tensor([[0.4, 0.6], [0.5, 9.0]], dtype=D)
    loss = PolicyLoss(Clip(), aggregation="token-mean", kl="k2", kl_coef=0.1, entropy_coef=0.5)
    terms, log = loss(Scores(logp, spread), batch)
    r, gap = np.array([1.5, 1.1, 0.5]), np.log([1.5, 1.1, 0.5]) + np.array([0.1, 0.2, 0.3])
    return {f"loss/{k}": v for k, v in terms.items()} | log, {
        "ratio/mean": r.mean(), "ratio/max": 1.5, "ratio/clipped": 2 / 3, "kl/behaviour": -np.log(r).mean(),
        "kl/ref": (np.exp(-gap) + gap - 1).mean(), "loss/policy": -(1.2 + 1.1 - 0.8) / 3, "loss/kl": 0.1 * (gap**2 / 2).mean(),
        "loss/entropy": -0.5 * 0.5,
    }  # fmt: skip


def targets():
    """The mean over target tokens, whatever stands beside them."""
    plain = Trajectory("t", [segment([3, 4])], target=True)
    group = Group("g", Prompt("p", tokens=(0,)), [Trajectory("s", [segment([1, 1])], 1.0, correct=True), plain])
    batch = from_groups([group], D)
    batch = replace(batch, advantage=torch.ones_like(batch.logp_old))
    logp = torch.tensor([[-1.0, -1.0], [-0.5, -1.5]], dtype=D)
    _, log = WithImitation(PolicyLoss(), 1.0)(Scores(logp), batch)
    return log, {"target/logp": -1.0}


def bounds():
    """Of a response of one token the bound is exact: the log-ratio of that token."""
    rng = torch.Generator().manual_seed(0)
    old, new = (TablePolicy(torch.randn(1, 1, 4, generator=rng, dtype=D)) for _ in range(2))
    batch = batch_of([[1.0, 0.0]])
    batch = replace(batch, response=torch.tensor([[1], [3]]), advantage=torch.ones(2, 1, dtype=D), row_seed=torch.arange(2),
                    context=torch.zeros_like(batch.context), totals=batch.counted())  # fmt: skip
    with torch.no_grad():
        batch = replace(batch, before=BoundLoss(2).before(old, batch, 1.0))
    gap = (new.module.logits.log_softmax(-1) - old.module.logits.log_softmax(-1))[0, 0, [1, 3]].tolist()
    log = [part.metrics for part in BoundLoss(2).passes(new, batch, 1.0)]
    return {"elbo/gap_max": max(x["elbo/gap_max"] for x in log), "kl/behaviour": sum(x["kl/behaviour"] for x in log)}, {
        "elbo/gap_max": max(gap), "kl/behaviour": -sum(gap) / 2,
    }  # fmt: skip


def values():
    batch = replace(
        batch_of([[1.0, 0.0]], [[2, 1]]), value=torch.zeros(2, 2, dtype=D), value_target=torch.ones(2, 2, dtype=D)
    )
    return ValueHead().loss(torch.tensor([[0.5, -1.0], [2.0, 9.0]], dtype=D), batch).metrics, {"value/mean": 0.5}


def updates():
    """Norms before the clip; the third of four steps of warm-up has three quarters of the rate."""
    policy, critic = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    updater = Updater(Optimiser(warmup=4, grad_clip=1.0), {"policy": ([policy], 0.1), "critic": ([critic], 0.5)})
    for _ in range(3):
        policy.grad, critic.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.5])
        log = updater.step()
    return log, {"grad_norm": 5, "grad_norm/critic": 0.5, "lr": 0.075}


class Gap:
    needs = StageNeeds(reference=True)

    def __call__(self, pair):
        return -pair.margin


def pairs():
    """Log-ratios 0.5 and −0.25 · 3 tokens; a tie of 1 and 1."""
    batch = batch_of([[1.0, 0.0], [1.0, 0.0]], [[1, 3], [2, 2]])
    logp = batch.logp_old + torch.tensor([[0.5, 0, 0], [-0.25] * 3, [0.5, 0.5, 0], [1.0, 0, 0]], dtype=D)
    batch = replace(batch, pairs=torch.tensor([[0, 1], [2, 3]]), logp_ref=batch.logp_old)
    terms, log = PairLoss(Gap())(Scores(logp), batch)
    return log | {f"loss/{k}": v for k, v in terms.items()}, {
        "pairs/accuracy": 0.75, "pairs/margin": 1.25 / 2, "pairs/chosen": 0.75, "pairs/rejected": 0.25 / 2,
        "kl/proxy": (0.5 - 0.75 + 1 + 1) / 4, "loss/preference": -1.25 / 2,
    }  # fmt: skip


def making():
    """One group with a pair, one tied, one whose three answers are two."""

    def group(name, rows):
        made = [Trajectory(f"{name}{i}", [segment(ids)], r, correct=False) for i, (ids, r) in enumerate(rows)]
        return Group(name, Prompt(name, tokens=(0,)), made)

    found = preferences(replace(from_groups([
        group("a", [([1], 1.0), ([2], 0.0)]), group("b", [([1], 0.5), ([2], 0.5)]), group("c", [([1], 1.0), ([1], 1.0), ([3], 0.0)]),
    ]), seed=0), "all")  # fmt: skip
    assert make_pairs(2, "all", lambda i, j: float(j - i)) == [(0, 1)]
    return {"pairs/made": len(found.pairs), "pairs/tied": found.tied, "pairs/equal": found.equal}, {
        "pairs/made": 2, "pairs/tied": 1, "pairs/equal": 1,
    }  # fmt: skip


class Even:
    """Prompts 0 to 3 of a table that answers with their own number; odd numbers are wrong, 3 is not scored."""

    name, max_tokens, train = "even", 1, []
    heldout = [Prompt(str(i), tokens=(i,), reference=((i + 1) % 4,)) for i in range(4)]

    def score(self, prompt, response, text):
        right = int(response[0]) % 2 == 0
        return Score(0.5 + right, right, "timeout" if int(response[0]) == 3 else "")

    def probe(self, policy):
        return {"sharpness": 3.0}


def answers():
    policy, task = TablePolicy(3 * torch.eye(4, dtype=D)[:, None]), Even()
    log, _ = evaluate(World(policy, NativeEngine(policy), task, Sampling(1), 0), task.heldout)
    likely = -math.log(3 + math.exp(3))
    p, n, z = 0.5, 4, 1.959964
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return log, {"eval/accuracy": 0.5, "eval/low": 0.5 - half, "eval/high": 0.5 + half, "eval/n": 4, "eval/unscored": 1,
                 "eval/reward": 1.0, "eval/length": 1, "eval/logp": likely, "eval/perplexity": math.exp(-likely),
                 "probe/sharpness": 3}  # fmt: skip


def rewarded():
    """Answers 0 to 3 are worth their number, and odd ones twice 3 more; nobody has an opinion on 2."""
    policy, task = TablePolicy(3 * torch.eye(4, dtype=D)[:, None]), Even()
    own = OwnRewards([
        OwnReward("value", lambda prompt, texts: [None if t == "2" else float(t) for t in texts]),
        OwnReward("odd", lambda prompt, texts: [3.0 if int(t) % 2 else None for t in texts], 2.0),
    ])  # fmt: skip
    log, _ = evaluate(World(policy, NativeEngine(policy), task, Sampling(1), 0, reward_function=own), task.heldout)
    rewards = [0, 1 + 6, 3 + 6]
    mean = sum(rewards) / 3
    error = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 2 / 3)
    return log, {"eval/accuracy": 0.5, "eval/n": 4, "eval/reward": mean, "eval/reward_se": error, "eval/reward/value": 4 / 3,
                 "eval/reward/odd": 3}  # fmt: skip


def beside():
    """Of independent tokens the divergence is exact whatever was sampled."""
    rng = torch.Generator().manual_seed(0)
    ours, theirs = (TablePolicy(torch.randn(5, 2, 4, generator=rng, dtype=D)) for _ in range(2))
    given = {"responses": [(0, 1), (2, 3)], "scores": [1.0, 0.0]}
    prompts = [Prompt(str(i), tokens=(i,), info=given) for i in range(5)]
    log = beside_reference(World(ours, NativeEngine(ours), Even(), Sampling(2), 0), theirs, prompts)
    p, q = (x.module.logits.log_softmax(-1).detach() for x in (ours, theirs))
    u, kl = p - q, (p.exp() * (p - q)).sum((1, 2))
    w, lost = u[:, 0, 0] + u[:, 1, 1], u[:, 0, 2] + u[:, 1, 3]
    low, high = wilson(float((w > lost).sum()), 5)
    return log, {"eval/pair_accuracy": float((w > lost).double().mean()), "eval/pair_low": low, "eval/pair_high": high,
                 "eval/pairs": 5, "eval/margin": float((w - lost).mean()), "eval/chosen": float(w.mean()),
                 "eval/rejected": float(lost.mean()), "eval/kl": float(kl.mean()),
                 "eval/kl_se": float(kl.std()) / math.sqrt(5)}  # fmt: skip


class Judge:
    """A reward model whose score is one weight times the first id."""

    micro_tokens, context_length = 100, 10

    def __init__(self):
        self.module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.module.weight, 2.0)

    def encode(self, prompt, response):
        return [int(response)]

    def score(self, rows):
        return self.module(torch.tensor(rows, dtype=torch.float32)).squeeze(1)

    scores = score


class Mean:
    needs_margin = False

    def __call__(self, chosen, rejected, margin):
        return {"gap": rejected - chosen}


def judge():
    rows = [
        SimpleNamespace(prompt=Prompt("p"), chosen=a, rejected=b, margin=None)
        for a, b in ((1, 0), (0, 3), (2, 1), (4, 0))
    ]
    model = Judge()
    found = evaluate_pairs(model, rows)
    log = PreferenceLoop(PreferenceRecipe(Mean(), 4, Optimiser(lr=0.1)), model, rows, 0).step()
    return found | log, {"eval/accuracy": 0.75, "eval/low": wilson(3, 4)[0], "eval/high": wilson(3, 4)[1], "eval/n": 4,
                         "eval/margin": 1.5, "pairs/accuracy": 0.75, "pairs/margin": 1.5, "loss/gap": -1.5, "epoch": 1,
                         "grad_norm": 0.75, "lr": 0.1}  # fmt: skip


class Still:
    """Does nothing, and logs the size of its first batch."""

    modules, optimisers, needs = {}, {}, Needs()

    def act(self, observation, generator, *, explore):
        action = torch.zeros(len(observation), 1)
        return Acted(action, action)

    def update(self, batches, generator):
        return {"loss/critic": float(len(batches[0]))}


def episodes():
    """Episodes of three steps, that end by themselves, and of two, that are cut, in turn: rewards 1, 2, 3 and 1, 2."""
    space = Space(1, 1, False, (-1.0,), (1.0,))
    recipe = OffPolicyRecipe(lambda space, seed: Still(), batch=4, warmup=0, updates=1)
    loop = control.OffPolicyLoop(recipe, Still(), Environments(vector(AutoresetMode.SAME_STEP, 2), 0), space, 0)
    log = loop.run(2 * 8)
    return log, {"episode/count": 6, "episode/return": (6 + 3 + 6) / 3, "episode/length": 8 / 3, "episode/success": 2 / 3,
                 "replay/size": 16, "loss/critic": 4, "updates": 16}  # fmt: skip


def returns():
    log, each = control.evaluate(Still(), Environments(vector(AutoresetMode.SAME_STEP, 1), 0), 3, torch.Generator())
    assert each == [6, 3, 6]
    return log, {"eval/return": 5, "eval/n": 3, "eval/length": 8 / 3, "eval/return_se": 1, "eval/success": 2 / 3}


def proximal():
    """Ratios e^0.1 and e^−1 against a clip of 0.2, and how much of the returns the values explain."""
    learner = ProximalPolicy(normalise_advantage=False, epochs=1, anneal=False, lr=0.5)(Space(3, 2, True), 0)
    seen, action = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[0.0], [1.0]])
    pi = learner.actor(seen)
    logp, gap = pi.logp(action).detach(), torch.tensor([0.1, -1.0])
    data = Samples(seen, action, logp - gap, torch.tensor([1.0, 3.0]), torch.tensor([0.5, -0.5]))
    _, log = surrogate(learner.actor, learner.critic, data, learner.settings)
    p = torch.softmax(learner.actor.net(seen), -1).detach()
    want = {"kl/behaviour": 0.45, "kl/k3": float((gap.exp() - 1 - gap).mean()), "ratio/clipped": 0.5,
            "entropy": float(-(p * p.log()).sum(-1).mean())}  # fmt: skip
    rows = fit(
        learner.actor, learner.critic, learner.optimisers["optimiser"], data, learner.settings, 1, torch.Generator()
    )
    return {k: log[k] for k in want} | {k: rows[k] for k in ("value/explained", "lr")}, want | {
        "value/explained": 1 - 0.25 / 0.25, "lr": 0.5,
    }  # fmt: skip


def choices():
    """The values of the actions that were taken, before the step."""
    learner = DoubleQ(hidden=(8,))(Space(3, 2, True), 0)
    rng = torch.Generator().manual_seed(0)
    seen, action, zero = torch.randn(5, 3, generator=rng), torch.tensor([[0.0], [1], [1], [0], [1]]), torch.zeros(5)
    q = learner.critic(seen).detach()
    log = learner.update([Transitions(seen, action, zero, seen, zero, zero, zero + 0.9)], rng)
    return log, {"q/mean": sum(float(q[i, int(a)]) for i, a in enumerate(action)) / 5}


def soft():
    """The temperature before the step; the entropy of the actions that the actor's step drew; written out and with a graph."""
    logs = []
    for way in ("quick_step", "step"):
        learner = SoftActorCritic(hidden=(8,), alpha=0.3)(Space(3, 1, False, (-1.0,), (1.0,)), 0)
        seen, zero = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6)
        batch = Transitions(seen, torch.zeros(6, 1), zero, seen + 1, zero, zero, zero + 0.9)
        again = torch.Generator().manual_seed(5)
        with torch.no_grad():
            learner.actor.sample(batch.next_observation, again)
            logp, q = learner.actor.sample(seen, again)[1], q_values(learner.critics, seen, batch.action)
        logs.append(getattr(learner, way)(batch, torch.Generator().manual_seed(5)))
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    return logs[0], {"alpha": 0.3, "entropy": -float(logp.mean()), "q/mean": float(q.mean())}


def denoising():
    """Errors of both samples of a pair at the same noise and times."""
    model, rng = PointDiffusion(0, hidden=(16,)), torch.Generator().manual_seed(0)
    winner, loser = (torch.randn(6, 2, generator=rng) for _ in range(2))
    learner = diffusion_dpo(batch=6, warmup=2, lr=0.4).learner(model, 0)
    again = torch.Generator().manual_seed(5)
    noise, t = torch.randn(6, 2, generator=again), torch.randint(20, (6,), generator=again)
    with torch.no_grad():
        m = [float(error_of(model, x, noise, t, model.condition([0] * 6)).mean()) for x in (winner, loser)]
    log = learner.update(Noised(winner, model.condition([0] * 6), loser), 0, torch.Generator().manual_seed(5))
    return log, {"error/winner": m[0], "error/loser": m[1], "pairs/margin": 0, "pairs/accuracy": 0, "lr": 0.2}


def samples():
    """The good clusters' centres, 2 : 1 : 1, and a bad one; two held-out points that stand 5 apart."""
    at, points = ring8.centres()[[0, 0, 1, 2, 5]], torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    log = ring8.judge(at, points)
    across = np.mean([math.dist(x, y) for x in at.tolist() for y in points.tolist()])
    within = np.mean([math.dist(x, y) for i, x in enumerate(at.tolist()) for j, y in enumerate(at.tolist()) if i != j])
    task, model = ring8.ring8(winners=4), PointDiffusion(0, hidden=(8,))
    error = judged(task, model, 5, 3)[0]["eval/error"]
    again = judged(replace(task, heldout=ring8.Points(task.heldout.points[:5])), model, 5, 3)[0]["eval/error"]
    return log | {"eval/error": error}, {"eval/preferred": 0.8, "eval/balance": 3 * 0.2 / 0.8, "eval/distance": 2 * across - within - 5,
                                         "eval/error": again}  # fmt: skip


CASES = [groups, orders, ratios, targets, bounds, values, updates, pairs, making, answers, rewarded, beside, judge, episodes, returns,
         proximal, choices, soft, denoising, samples]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_logged_number_is_what_its_name_says(case):
    got, want = case()
    assert {k: float(got[k]) for k in want} == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_every_name_has_a_worked_number():
    worked = {name for case in CASES for name in case()[1]}
    folded = worked | {f"{head}/<" for name in worked for head in (name.partition("/")[0], name.rpartition("/")[0])}
    without = [
        n for n in NAMES if n not in worked and not any("<" in n and n.startswith(k) for k in folded if "<" in k)
    ]
    assert sorted(without) == sorted(ELSEWHERE), "give the name a case here, or say where its number is worked out"
    for name, file in ELSEWHERE.items():
        assert name.partition("<")[0] in Path(__file__).parents[1].joinpath(file).read_text(), name


def test_means_of_no_episodes_are_none():
    assert Episodes().means() == {"episode/count": 0}
