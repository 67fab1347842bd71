"""PROPS' claim: pushed away from what it holds, a small sample looks more like the policy, and teaches it more.

Linear softmax policies of one-hot states from zero; behaviour: 16 full-batch epochs of Adam, clip 0.3, bound 1, no weight
on the divergence. A, with the method as it is: uniform policy that is never updated; the exact sampling error of the
buffer, m = 5, after 50, 100 and 200 steps in the two-step tree (rate 0.5) and up to 400 in the grid (rate 0.05). ROS: one step down
mean ρ after every environment step, same rates. B, with the method's behaviour update (rate 0.5, m = 2 steps, one
episode) around a plain policy gradient: every n steps one step of Adam (0.5), advantage = return − mean return of the
state in the batch, which is then thrown away; J of the policy exactly. 2 is best, 1 is reached on the right.
"""

import torch

from anypolicy.engines.environments import Environments
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.loops.control import OnPolicyLoop
from anypolicy.methods.control.ppo import Samples
from anypolicy.methods.control.props import RobustSampling, avoid, sampling_error
from anypolicy.policies.control.actors import CategoricalActor
from anypolicy.runs.seeds import generator
from anypolicy.tasks.control.environments import load_environment
from anypolicy.tasks.control.sampling_error import two_step_tree

CLAIM = (
    "at a fixed policy the sampling error of PROPS is below 0.6 times that of on-policy sampling, and five policy-gradient steps "
    "on batches of 10 and 20 of it reach a higher return (arXiv 2311.08290)"
)
SEEDS = 40
CURVE = "sampling error, two-step tree"
ARMS = ("on-policy", "props", "ros")
BEDS = {"two-step-tree": (0.5, (50, 100, 200)), "grid": (0.05, (50, 100, 200, 400))}
SIZES, UPDATES, EARLY = (10, 20, 40), 40, 5


def from_zero(actor: CategoricalActor) -> CategoricalActor:
    """The actor as a table: no bias, all logits 0."""
    with torch.no_grad():
        actor.net.weights[0].zero_()
        actor.net.biases[0].zero_()
    actor.net.biases[0].requires_grad_(False)
    return actor


def errors(arm: str, bed: str, seed: int) -> dict[int, float]:
    """A: the sampling error by number of steps."""
    lr, points = BEDS[bed]
    ros = {"collect": 1, "behaviour_epochs": 1, "behaviour_clip": None, "kl_bound": None}
    more = {"on-policy": {"behaviour_epochs": 0}, "props": {}, "ros": ros}[arm]
    given = {"collect": 5, "behaviour_epochs": 16, "behaviour_clip": 0.3, "kl_bound": 1.0} | more
    recipe = RobustSampling(
        hidden=(),
        epochs=0,
        horizon=points[-1],
        buffer=1,
        behaviour_lr=lr,
        behaviour_minibatches=1,
        kl_weight=0.0,
        normalise_observation=False,
        normalise_reward=False,
        **given,
    ).recipe()
    task = load_environment(bed)
    learner = recipe.learner(task.space, seed)
    from_zero(learner.target.actor)
    from_zero(learner.behaviour)
    loop, out = OnPolicyLoop(recipe, learner, Environments(task.vector(1), seed), task.space, seed), {}
    uniform = torch.full((task.space.observations, task.space.actions), 1 / task.space.actions, dtype=torch.float64)
    for at in points:
        loop.run(at - loop.steps)
        kept = learner.rollouts.all()
        out[at] = sampling_error(kept.observation.argmax(-1).flatten(), kept.action.long().flatten(), uniform)
    return out


def value(actor: CategoricalActor) -> float:
    """J of a policy in the tree."""
    tree, p = two_step_tree(), actor(torch.eye(7)).log_probabilities.detach().double().exp()
    after = [sum(float(p[s, a]) * tree.reward[tree.after[s][a]] for a in range(2)) for s in range(3)]
    return float(p[0, 0]) * after[1] + float(p[0, 1]) * after[2]


def episode(actor: CategoricalActor, rng: torch.Generator) -> tuple[list[int], list[int], float]:
    """States, actions and the return of one episode in the tree."""
    tree, actions, states = two_step_tree(), [], []
    tree.reset()
    while True:
        states.append(tree.state)
        actions.append(int(actor(torch.from_numpy(tree.seen())[None]).sample(rng)))
        _, reward, over, *_ = tree.step(actions[-1])
        if over:
            return states, actions, reward


def learn(arm: str, n: int, seed: int) -> dict[str, float]:
    """B: J after 5 updates, and whether after 40 the likeliest path is the best."""
    rng = generator(seed, "tree", n)
    actor, behaviour = (from_zero(CategoricalActor(7, 2, (), rng)) for _ in range(2))
    adam = torch.optim.Adam(actor.parameters(), lr=0.5)
    other = torch.optim.Adam(behaviour.parameters(), lr=0.5, eps=1e-5)
    s, early = RobustSampling(behaviour_epochs=16, behaviour_clip=0.3, kl_weight=0.0, kl_bound=1.0), 0.0
    for update in range(UPDATES):
        states, actions, returns = [], [], []
        while len(states) < n:
            visited, chosen, total = episode(behaviour, rng)
            states, actions, returns = states + visited, actions + chosen, returns + [total] * 2
            behaviour.load_state_dict(actor.state_dict())
            seen, action = torch.eye(7)[states], torch.tensor(actions)[:, None].float()
            if arm == "props":
                nothing = torch.zeros(len(states))
                avoid(behaviour, actor, other, Samples(seen, action, nothing, nothing, nothing), s, 1, rng)
        counts, sums = seen.sum(0).clamp(min=1), seen.T @ torch.tensor(returns)
        advantage = torch.tensor(returns) - (sums / counts)[states]
        adam.zero_grad()
        (-(advantage * actor(seen).logp(action)).mean()).backward()
        adam.step()
        behaviour.load_state_dict(actor.state_dict())
        early = value(actor) if update + 1 == EARLY else early
    best = actor(torch.eye(7)).log_probabilities[:2, 0].exp() > 0.5
    return {f"J_{n}": early, f"best_{n}": float(best.all())}


def run(arm: str, seed: int) -> dict:
    out: dict = {}
    for bed in BEDS:
        out[bed] = errors(arm, bed, seed)
    if arm != "ros":
        for n in SIZES:
            out |= learn(arm, n, seed)
    return out | {"curve": list(out["two-step-tree"].items())}


def error(arm: str, bed: str):
    return lambda r: {int(k): v for k, v in r[arm][bed].items()}[BEDS[bed][1][-1]]


def beyond(factor: float, bed: str):
    """PROPS' error less `factor` times that of on-policy sampling, at the last point."""
    return lambda r: error("props", bed)(r) - factor * error("on-policy", bed)(r)


def gap(name: str):
    return lambda r: r["props"][name] - r["on-policy"][name]


CHECKS = [
    Check("tree, 200 steps: sampling error below 0.6 × on-policy", "PROPS − 0.6 on-policy < 0", beyond(0.6, "two-step-tree"), below=0.0),
    Check("grid, 400 steps: sampling error below 0.6 × on-policy", "PROPS − 0.6 on-policy < 0", beyond(0.6, "grid"), below=0.0),
    Check("tree: below 0.9 × on-policy", "PROPS − 0.9 on-policy < 0", beyond(0.9, "two-step-tree"), below=0.0),
    Check("grid: below 0.9 × on-policy", "PROPS − 0.9 on-policy < 0", beyond(0.9, "grid"), below=0.0),
    Check("batches of 10: J after 5 updates", "difference > 0", gap("J_10"), above=0.0, kind="share"),
    Check("batches of 20: J after 5 updates", "difference > 0", gap("J_20"), above=0.0, kind="share"),
    Check("batches of 40: the gain is smaller than with 10", "gain at 10 − gain at 40 > 0",
          lambda r: gap("J_10")(r) - gap("J_40")(r), above=0.0, kind="share", core=False),
    Check("batches of 10: more runs end on the best path", "difference > 0", gap("best_10"), above=0.0, kind="share",
          core=False),
    Check("tree: PROPS below ROS", "difference < 0",
          lambda r: error("props", "two-step-tree")(r) - error("ros", "two-step-tree")(r), below=0.0, core=False),
    Check("grid: PROPS below ROS", "difference < 0",
          lambda r: error("props", "grid")(r) - error("ros", "grid")(r), below=0.0, core=False),
]  # fmt: skip
NOTE = (
    "with batches of 10 the return after five updates is {4:.2f} higher, with batches of 20 {5:.2f}; the share of runs that end "
    "on the best path after 40 differs by {7:.2f}"
)
AMENDMENTS = (
    Amendment("the sentence says after how many updates and with which batches",
              "2026-12-01", "after a look", 'the checks are about five updates, not "end"'),
    Amendment("returns and shares of runs are judged as shares",
              "2026-12-01", "after a look", "they are bounded, and runs can end on the lesser path"),
)  # fmt: skip
