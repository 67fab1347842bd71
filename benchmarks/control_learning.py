"""What SAC and PPO have learnt beside Stable-Baselines3 after equal steps: mean return of 20 evaluation episodes.

    python benchmarks/control_learning.py --workers 2        about an hour; goes on where it was stopped
    python benchmarks/control_learning.py --works sac-pendulum --seeds 2 --quick

Both sides have the same networks, rates, batches, normalisation and numbers of updates, and act by the mode when
they are evaluated. Their own remain initial weights, random numbers, and SAC's ln(1 − a² + 1e-6) there.
Interquartile means over seeds with stratified bootstrap intervals, and the probability that a run of ours ends higher.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import write
from rich.console import Console
from rich.table import Table

from anypolicy.evidence.stats import bootstrap, improvement_interval
from anypolicy.families import control
from anypolicy.runs.progress import counting
from anypolicy.version import __version__

EPISODES = 20
SMALL = {
    "horizon": 128, "environments": 8, "minibatches": 4, "epochs": 10, "lr": 1e-3, "anneal": False, "discount": 0.98,
    "lam": 0.9, "value_weight": 1.0, "clip_value": False, "normalise_observation": False, "normalise_reward": False,
}  # fmt: skip
WORKS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "sac-pendulum": ("sac", "Pendulum-v1", 5000, {"warmup": 500, "lr": 1e-3, "alpha_lr": 1e-3}),
    "sac-halfcheetah": ("sac", "HalfCheetah-v5", 10_000, {"warmup": 1000}),
    "ppo-cartpole": ("ppo-control", "CartPole-v1", 50_000, SMALL),
    "ppo-hopper": (
        "ppo-control",
        "Hopper-v5",
        100_000,
        {"value_weight": 1.0, "clip_value": False, "anneal": False, "minibatches": 32},
    ),
}
"""Name → method, environment, steps, settings."""


def ours(work: str, seed: int) -> float:
    """Mean return of our learner."""
    method, env, steps, knobs = WORKS[work]
    world = control.World(control.plan(method, control.ControlSettings(f"gym/{env}", steps=steps, seed=seed), knobs))
    world.begin()
    world.loop.run(steps)
    return world.evaluate(steps, EPISODES)[0]["eval/return"]


def theirs(work: str, seed: int) -> float:
    """Mean return of Stable-Baselines3's model with the same settings."""
    import torch
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    method, env, steps, k = WORKS[work]
    test: Any = make_vec_env(env, 1, seed=10_000 + seed)
    if method == "sac":
        model: Any = SAC("MlpPolicy", make_vec_env(env, 1, seed=seed), learning_starts=k["warmup"], seed=seed,
                         learning_rate=k.get("lr", 3e-4), device="cpu")  # fmt: skip
    else:
        n, horizon = k.get("environments", 1), k.get("horizon", 2048)
        train: Any = make_vec_env(env, n, seed=seed)
        if k.get("normalise_observation", True):
            train = VecNormalize(train, gamma=k.get("discount", 0.99))
        model = PPO(
            "MlpPolicy", train, n_steps=horizon, batch_size=n * horizon // k["minibatches"],
            n_epochs=k.get("epochs", 10), learning_rate=k.get("lr", 3e-4), gamma=k.get("discount", 0.99),
            gae_lambda=k.get("lam", 0.95), seed=seed, device="cpu",
        )  # fmt: skip
        if isinstance(train, VecNormalize):
            test = VecNormalize(test, training=False, norm_reward=False)
            test.obs_rms = train.obs_rms
    model.learn(steps)
    return float(evaluate_policy(model, test, EPISODES, warn=False)[0])  # type: ignore[arg-type]


SIDES: dict[str, Callable[[str, int], float]] = {"anypolicy": ours, "stable-baselines3": theirs}


def one(work: str, side: str, seed: int) -> dict[str, Any]:
    """A finished run."""
    begin = time.process_time()
    value = SIDES[side](work, seed)
    return {"work": work, "side": side, "seed": seed, "return": value, "cpu_seconds": time.process_time() - begin,
            "version": __version__}  # fmt: skip


def judged(work: str, done: list[dict[str, Any]]) -> dict[str, Any]:
    """Both sides' interquartile means, and the probability of improvement."""
    scores = {s: np.array([[r["return"]] for r in done if (r["work"], r["side"]) == (work, s)]) for s in SIDES}
    means = {s: bootstrap(x) for s, x in scores.items()}
    better = improvement_interval(*scores.values())
    seeds = len(scores["anypolicy"])
    return {"name": f"learning-{work}", "unit": "probability that a run of ours ends higher", "ratio": better.point,
            "low": better.low, "high": better.high, "peer": "stable-baselines3", "steps": WORKS[work][2],
            "seeds": seeds,
            "iqm": {s: list(m) for s, m in means.items()},
            "returns": {s: x.ravel().tolist() for s, x in scores.items()}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="nothing kept or written")
    parser.add_argument("--log", type=Path, default=Path("runs/control-learning.jsonl"), help="finished runs")
    args = parser.parse_args()
    done = [json.loads(x) for x in args.log.read_text().splitlines()] if args.log.exists() and not args.quick else []
    have = {(r["work"], r["side"], r["seed"]) for r in done}
    jobs = [(w, s, seed) for w in args.works for seed in range(args.seeds) for s in SIDES if (w, s, seed) not in have]
    args.log.parent.mkdir(parents=True, exist_ok=True)
    with (
        ProcessPoolExecutor(args.workers, get_context("spawn")) as pool,
        counting(len(jobs), "runs", quiet=False) as count,
    ):
        for future in as_completed([pool.submit(one, *job) for job in jobs]):
            done.append(future.result())
            if not args.quick:
                with args.log.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
            count("{work} {side} seed {seed}".format(**done[-1]))
    found = [judged(w, done) for w in args.works]
    table = Table("work", "steps", "anypolicy [95 %]", "Stable-Baselines3 [95 %]", "P(ours is higher) [95 %]")
    for r in found:
        cells = [f"{a:.4g} [{b:.4g}, {c:.4g}]" for a, b, c in
                 (*r["iqm"].values(), (r["ratio"], r["low"], r["high"]))]  # fmt: skip
        table.add_row(r["name"], str(r["steps"]), *cells)
    Console(width=140).print(table)
    if not args.quick:
        names = ("stable-baselines3", "torch", "gymnasium", "mujoco")
        print(write("control_learning", found, {n: version(n) for n in names}, {"seeds": args.seeds, "works": WORKS}))


if __name__ == "__main__":
    main()
