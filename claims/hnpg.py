"""HNPG's claim: with offline data an on-policy method opens a combination lock that on-policy exploration never opens, and
bad offline data do not make it worse.

Continuous combination lock with rich observations, 5 steps, one lock for each seed; the chance of opening it at random is 1e-5 an
episode. 5,000 offline episodes of the ε-greedy behaviour policy, whose mean return is exactly 0.4015; 1,000 environment steps an
iteration, 120 iterations. Falling always gives 0.05, opening always 1. Arms of the same code: hnpg; trpo, without any offline
term; offline-critic, whose critic is fitted to offline data alone; hnpg-bad, with offline actions drawn at random. Metric: mean
return of the last 10 iterations (2,000 episodes; its standard error at 0.05 is 0.0011).

The last three arms are ours: with bad data a lock of 5 steps stays shut for everyone, so the second half of the claim can be seen
in a lock of 3 only, which trpo opens by itself.
"""

import tempfile
from pathlib import Path

from anypolicy.data.demonstrations import save_episodes
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.control import ControlSettings, World, plan
from anypolicy.tasks.control.combination_lock import Lock, behaviour_data

CLAIM = (
    "in a combination lock of 5 steps, where TRPO only learns to fall, HNPG ends above 5 times TRPO's return and above the "
    "behaviour policy's; in one of 3 steps, with random offline actions, it is not worse than TRPO by .05 or more (arXiv 2311.08384)"
)
SEEDS = 5
CURVE = "return of an iteration's episodes, lock of 5 steps"
CURVE_ARMS = ("hnpg", "trpo", "offline-critic", "hnpg-bad")
ARMS = (*CURVE_ARMS, "trpo-3", "hnpg-bad-3", "offline-critic-bad-3")
ITERATIONS, LAST, EPISODES = 120, 10, 5000
BEHAVIOUR, FALL, NOISE = 0.4015, 0.05, 0.005


def run(arm: str, seed: int) -> dict:
    horizon = 3 if arm.endswith("-3") else 5
    knobs = {"offline": False} if arm.startswith("trpo") else {"weight": 0.0} if arm.startswith("offline") else {}
    with tempfile.TemporaryDirectory() as folder:
        demos = None
        if not arm.startswith("trpo"):
            demos = str(Path(folder) / "lock.safetensors")
            behaviour = "random" if "-bad" in arm else "behaviour"
            save_episodes(demos, list(behaviour_data(Lock(horizon, seed, 0.1), EPISODES, seed, behaviour)))
        task = f"combination-lock:horizon={horizon},combination={seed}"
        copies = -(-1000 // horizon)
        world = World(plan("hnpg", ControlSettings(task, seed=seed, demos=demos, envs=copies), knobs))
        world.begin()
        returns = [world.loop.run(world.plan.unit)["episode/return"] for _ in range(ITERATIONS)]
        world.environments.close()
    curve = [(i, sum(returns[i - LAST : i]) / LAST) for i in range(LAST, ITERATIONS + 1, LAST)]
    return {"end": curve[-1][1], "curve": curve}


CHECKS = [
    Check("5 × TRPO", "HNPG − 5 TRPO > 0", lambda r: r["hnpg"]["end"] - 5 * r["trpo"]["end"], above=0.0, kind="share"),
    Check("above the behaviour policy", f"HNPG > {BEHAVIOUR}", lambda r: r["hnpg"]["end"], above=BEHAVIOUR, refuted=BEHAVIOUR,
          kind="share"),
    Check("TRPO only learns to fall", f"TRPO < {FALL + NOISE}", lambda r: r["trpo"]["end"], below=FALL + NOISE, kind="share"),
    Check("bad data do no harm", f"HNPG with random offline actions − TRPO > −{NOISE}",
          lambda r: r["hnpg-bad"]["end"] - r["trpo"]["end"], above=-NOISE, kind="share", core=False),
    Check("the on-policy loss does no harm with good data", "HNPG − offline critic > −0.05",
          lambda r: r["hnpg"]["end"] - r["offline-critic"]["end"], above=-0.05, kind="share", core=False),
    Check("lock of 3: bad data do no harm", "HNPG with random offline actions − TRPO > −0.05",
          lambda r: r["hnpg-bad-3"]["end"] - r["trpo-3"]["end"], above=-0.05, kind="share"),
    Check("lock of 3: with bad data the on-policy loss is what helps", "HNPG − offline critic > 0",
          lambda r: r["hnpg-bad-3"]["end"] - r["offline-critic-bad-3"]["end"], above=0.0, kind="share", core=False),
]  # fmt: skip
NOTE = (
    "it ends at {1.point:.2f}, TRPO at {2.point:.2f}, and the offline critic alone {4.point:.2f} below it; five times TRPO is passed "
    "by {0:.2f}; in the lock of 3 with bad data it ends {5:.4f} above TRPO"
)
AMENDMENTS = (
    Amendment("an iteration is one whole rollout of 1,000 steps",
              "2026-11-26", "before a look", "run counts steps, and one step ends no episode"),
    Amendment("the runs are given their demonstrations",
              "2026-11-26", "after a look", "they had been measured without"),
    Amendment("bad data are decided in the lock of 3 with its bound of −0.05, and reported in that of 5",
              "2026-12-01", "after a look", "no policy gets less than falling does, and in the lock of 5 TRPO only falls"),
    Amendment("the sentence says so, and that TRPO only learns to fall in the lock of 5",
              "2026-12-01", "after a look", "core checks decide on both"),
    Amendment("above the behaviour policy is refuted at its return",
              "2026-12-01", "after a look", "the bound says a direction only"),
    Amendment("returns are judged as shares, which need ten seeds",
              "2026-12-01", "after a look", "one seed can fail as a whole, which a t interval of five does not show"),
)  # fmt: skip
