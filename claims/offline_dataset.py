"""The claim that the data set decides which offline learner works: how well it acts (TQ) and how much it covers (SACo).

CartPole. A double DQN (two layers of 64, Adam 1e-3, γ = 0.95) learns online for 15,000 steps; five data sets of 15,000
transitions are made from it (`make-datasets`: ten evaluations of ten episodes). Learners: two layers of 64, Adam 1e-3, γ = 0.95,
3,000 updates on batches of 128. Performance: mean return of five episodes minus the random policy's, in per cent of that distance
of the best online evaluation; the best of five evaluations (as in the paper), the last one beside it.

Every check is one number of a seed: correlations are over the five data sets of a seed, then averaged over seeds.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families import control
from anypolicy.studies.datasets import KINDS, DatasetSettings, make_datasets
from anypolicy.studies.inspection import dataset_report

CLAIM = (
    "the quality of cloning follows TQ and not SACo, while double Q-learning is more than 40 points above it on broad data of low "
    "return, and on narrow data of high return more than 30 below BCQ and CQL, on the expert's also below BCQ alone (arXiv 2111.04714)"
)
SEEDS = 5
ARMS = ("bc", "mce", "dqn", "bcq", "cql", "crr")
CURVE = "mean performance over the five data sets (%), by update"
TASK, STEPS, UPDATES = "gym/CartPole-v1", 15_000, 3_000
SMALL = {"hidden": (64, 64), "lr": 1e-3}


def run(arm: str, seed: int) -> dict[str, Any]:
    more: dict[str, Any] = {} if arm == "bc" else {"discount": 0.95}
    more |= {"offline_batch": 128} if arm == "dqn" else {"batch": 128}
    found: dict[str, Any] = {"tq": [], "saco": [], "bound": [], "best": [], "last": []}
    curves = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = DatasetSettings(TASK, folder / "data", STEPS, seed, evaluations=10)
        made = make_datasets("dqn", settings, SMALL | {"discount": 0.95}, quiet=True)
        for kind in KINDS:
            r = dataset_report(made.kinds[kind], made.kinds["replay"], made.g_min, made.g_max, choices=None)
            trained = control.train_controller(
                arm, task=TASK, demos=str(folder / "data" / f"{kind}.safetensors"), steps=UPDATES, seed=seed, knobs=SMALL | more,
                out=folder / kind, eval_every=UPDATES // 5, eval_episodes=5, checkpoint_every=0, trackers=(), quiet=True,
            )  # fmt: skip
            scale = 100 / (made.g_max - made.g_min)
            points = [(e["step"], scale * (e["eval/return"] - made.g_min)) for e in trained.evaluations()[1:]]
            found["tq"].append(r.tq)
            found["saco"].append(r.saco)
            found["bound"].append(r.entropy - math.log(r.u))
            found["best"].append(max(v for _, v in points))
            found["last"].append(points[-1][1])
            curves.append(points)
    steps = [s for s, _ in curves[0]]
    found["curve"] = [[s, float(np.mean([c[i][1] for c in curves]))] for i, s in enumerate(steps)]
    return found | {"g_min": made.g_min, "g_max": made.g_max}


def on(r: dict[str, Any], *kinds: str) -> float:
    """Mean performance on these data sets."""
    return float(np.mean([r["best"][KINDS.index(kind)] for kind in kinds]))


def correlation(r: dict[str, Any], measure: str) -> float:
    return float(np.corrcoef(r["best"], r[measure])[0, 1])


NARROW, BROAD = ("noisy", "expert"), ("random", "mixed")
CHECKS = [
    Check("cloning follows TQ", "correlation > 0.85", lambda r: correlation(r["bc"], "tq"), above=0.85, kind="share"),
    Check("and not SACo", "difference of correlations > 0",
          lambda r: correlation(r["bc"], "tq") - correlation(r["bc"], "saco"), above=0.0, kind="share"),
    Check("noisy and expert: double Q-learning is far below BCQ and CQL", "difference < −30",
          lambda r: on(r["dqn"], *NARROW) - (on(r["bcq"], *NARROW) + on(r["cql"], *NARROW)) / 2, below=-30.0, kind="share"),
    Check("expert: it is below BCQ", "difference < 0", lambda r: on(r["dqn"], "expert") - on(r["bcq"], "expert"), below=0.0,
          kind="share"),
    Check("random and mixed: it is far above cloning", "difference > 40",
          lambda r: on(r["dqn"], *BROAD) - on(r["bc"], *BROAD), above=40.0, kind="share"),
    Check("e to the entropy is at most the number of pairs, on every data set", "largest Ĥ − ln u ≤ 1e-9",
          lambda r: max(r["bc"]["bound"]), below=1e-9, kind="each", core=False),
    Check("CRR on all five", "mean > 80", lambda r: on(r["crr"], *KINDS), above=80.0, kind="share", core=False),
    Check("expert: returns alone are not enough, MCE against BCQ", "difference < 0",
          lambda r: on(r["mce"], "expert") - on(r["bcq"], "expert"), below=0.0, kind="share", core=False),
]  # fmt: skip
NOTE = (
    "cloning correlates with TQ by {0:.2f}, {1:.1f} more than with SACo; double Q-learning is {4:.0f} above cloning on broad data, and "
    "beside BCQ and CQL {2:.0f} on narrow ones, where less than −30 was asked ({3:.0f} beside BCQ on the expert's); CRR reaches "
    "{6:.0f} % over all five sets, where 80 was hoped for"
)
AMENDMENTS = (
    Amendment("the bound on the entropy is reported and decides nothing",
              "2026-12-01", "after a look", "it is a theorem, cannot fail and is not in the sentence"),
    Amendment("the sentence names the checks: not SACo, 40 above cloning, 30 below BCQ and CQL",
              "2026-12-01", "after a look", '"works" and "falls behind" were vague'),
    Amendment("performances and correlations near 1 are judged as shares, which need ten seeds",
              "2026-12-01", "after a look", "one seed can fail as a whole, which a t interval of five does not show"),
)  # fmt: skip
