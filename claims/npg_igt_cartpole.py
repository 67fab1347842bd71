"""N-PG-IGT's claim on CartPole: normalised steps along gradients taken ahead learn more than the usual policy gradient.

Softmax of 32-32, five trajectories a gradient, discount .99, linear baseline, 50,000 environment steps. Both have three rates,
γ₀ = 0.1, 0.3, 1 for N-PG-IGT and 0.001, 0.01, 0.1 for the usual policy gradient (whose steps are not normalised), and count with the
best of them in each seed. Metric: mean return of 20 evaluation episodes, averaged over the evaluations after every
2,500 steps.
"""

import tempfile
from pathlib import Path

from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families import control

CLAIM = (
    "on CartPole the mean return over training is higher than that of the usual policy gradient, each with the best of its three "
    "rates (arXiv 2302.01734)"
)
SEEDS = 10
CURVE = "mean return by environment step"
RATES = {"igt": (0.1, 0.3, 1.0), "usual": (0.001, 0.01, 0.1)}
ARMS = tuple(f"{name}@{rate}" for name, rates in RATES.items() for rate in rates)
STEPS, EVERY = 50_000, 2_500


def run(arm: str, seed: int) -> dict:
    name, _, rate = arm.partition("@")
    knobs = {"gamma0": float(rate), "batch": 5, "horizon": 500, "hidden": (32, 32)}
    knobs |= {} if name == "igt" else {"direction": "plain", "normalised": False}
    with tempfile.TemporaryDirectory() as folder:
        made = control.train_controller("npg-igt", task="gym/CartPole-v1", knobs=knobs, quiet=True, steps=STEPS, seed=seed,
                                        out=Path(folder) / "run", trackers=(), eval_every=EVERY, eval_episodes=20,
                                        checkpoint_every=0)  # fmt: skip
    curve = [(r["step"], r["eval/return"]) for r in made.evaluations()]
    learnt = [value for step, value in curve if step]
    return {"mean": sum(learnt) / len(learnt), "last": learnt[-1], "curve": curve}


def best(name: str, what: str):
    """The best rate's number."""
    return lambda r: max(r[f"{name}@{rate}"][what] for rate in RATES[name])


def gap(what: str):
    return lambda r: best("igt", what)(r) - best("usual", what)(r)


CHECKS = [
    Check("mean return over training", "difference > 0", gap("mean"), above=0.0, kind="share"),
    Check("return at the end", "difference > 0", gap("last"), above=0.0, kind="share", core=False),
    Check("N-PG-IGT's worst rate above the usual gradient's best", "difference > 0",
          lambda r: min(r[f"igt@{rate}"]["mean"] for rate in RATES["igt"]) - best("usual", "mean")(r), above=0.0, kind="share",
          core=False),
]  # fmt: skip
NOTE = "{0:.0f} above the usual policy gradient over training, each with its best rate of three; at the end the difference is {1:.0f}"
AMENDMENTS = (
    Amendment("the sentence says that each has the best of three rates",
              "2026-12-01", "after a look", "the check compares these"),
    Amendment("returns are judged as shares, which need ten seeds",
              "2026-12-01", "after a look", "one seed can fail as a whole, which a t interval of five does not show"),
    Amendment("ten seeds instead of five", "2026-12-01", "after a look", "shares of success need ten"),
)  # fmt: skip
