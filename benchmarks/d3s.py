"""What down-sampling saves: tokens and seconds to equal accuracy, beside GRPO and VADE, and the time of an update.

    python benchmarks/d3s.py            three seeds of every arm, results in benchmarks/results/
    python benchmarks/d3s.py --quick    two seeds, few steps, nothing written

All arms have the same rate, prompts, group size and steps, no KL term (so that rows without a signal cost GRPO
nothing) and a token mean. A ratio above 1 means that the arm needs less than GRPO. Seconds are processor time of one
thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from common import ratio, write
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM

from anypolicy.compose import compose
from anypolicy.data.batch import Batch
from anypolicy.data.records import Prompt
from anypolicy.engines.base import Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.loops.group import GroupLoop
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.runs.seeds import generator, numpy_generator
from anypolicy.stages.common import Clip, PolicyLoss
from anypolicy.stages.recipe import GroupRecipe, Optimiser, World
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.tabular_lock import TabularLock
from anypolicy.tasks.language.tiny_add import TinyAdd, class_accuracy
from anypolicy.version import __version__

ARMS = ("grpo", "vade", "d3s", "vade+d3s")
COUNTS = ("tokens trained", "tokens with a forward pass", "tokens sampled", "seconds of updates", "seconds in all")
# task: learning rate, steps, steps between looks at the accuracy, looks that are averaged, goals
TASKS: dict[str, Any] = {"lock": (0.1, 300, 1, 1, (0.6, 0.7)), "addition": (3e-4, 200, 20, 2, (0.43, 0.45))}


def recipe(arm: str, lr: float) -> GroupRecipe:
    """One arm, equal in everything but sampler and selection."""
    made = compose(arm).recipe
    return replace(made, loss=PolicyLoss(Clip(0.2, 0.2), aggregation="token-mean"), optimiser=Optimiser(lr=lr))


def accuracy(task: Any, policy: Any) -> float:
    """Exact on the lock; on additions of 1,536 fixed problems at temperature 1."""
    if isinstance(task, TabularLock):
        return task.probe(policy)["success"]
    return float(np.mean(class_accuracy(policy, numpy_generator(0, "bench"), generator(0, "bench"), 512)))


def learn(kind: str, arm: str, seed: int, limit: int | None) -> list[list[float]]:
    """[accuracy, *COUNTS so far] at every look."""
    lr, steps, every, _, _ = TASKS[kind]
    steps = limit or steps
    task: Any = TabularLock(seed, prompts=256, length=6, low=1.0, high=5.0) if kind == "lock" else TinyAdd(seed)
    policy = task.make_policy(seed)
    world = World(policy, NativeEngine(policy), task, Sampling(task.max_tokens), seed)
    loop = GroupLoop(recipe(arm, lr), world, prompts=32, micro_tokens=1 << 20, reference=None, total_steps=steps)
    rows, total = [[accuracy(task, policy), *[0.0] * 5]], np.zeros(5)
    for step in range(1, steps + 1):
        began = time.process_time()
        batch, log = loop.collect()
        collected = time.process_time()
        if batch.rows:
            log |= loop.update(batch)
        loop.steps += 1
        ended = time.process_time()
        names = ("tokens/trained", "tokens/forward", "tokens/generated")
        total += [*(log.get(n, 0.0) for n in names), ended - collected, ended - began]
        if step % every == 0:
            rows.append([accuracy(task, policy), *total.tolist()])
    return rows


def reached(rows: list[list[float]], looks: int, goal: float) -> list[float] | None:
    """The counts when the mean accuracy of the last looks first reached the goal."""
    for i in range(looks - 1, len(rows)):
        if np.mean([r[0] for r in rows[i - looks + 1 : i + 1]]) >= goal:
            return rows[i][1:]
    return None


def compare(kind: str, seeds: int, limit: int | None) -> list[dict[str, Any]]:
    """Ratios of GRPO's costs over each arm's, per goal; a goal that some seed misses is reported as missed."""
    runs = {arm: [learn(kind, arm, seed, limit) for seed in range(seeds)] for arm in ARMS}
    out: list[dict[str, Any]] = []
    for goal in TASKS[kind][4]:
        costs = {arm: [reached(rows, TASKS[kind][3], goal) for rows in runs[arm]] for arm in ARMS}
        for arm in ARMS[1:]:
            both = [(a, b) for a, b in zip(costs[arm], costs["grpo"], strict=True) if a and b]
            missed = {
                "missed": sum(a is None for a in costs[arm]),
                "missed by grpo": sum(a is None for a in costs["grpo"]),
            }
            for i, name in enumerate(COUNTS):
                row: dict[str, Any] = {"name": f"{kind} to {goal}, {arm}", "peer": "grpo", "unit": name, **missed}
                if len(both) < 2:
                    out.append(row | {"ratio": None, "low": None, "high": None})
                    continue
                ours, theirs = [a[i] for a, _ in both], [b[i] for _, b in both]
                point, low, high = ratio(ours, theirs)
                medians = {"ours": float(np.median(ours)), "theirs": float(np.median(theirs))}
                out.append(row | {"ratio": point, "low": low, "high": high, **medians})
    ends = {arm: [rows[-1][0] for rows in runs[arm]] for arm in ARMS}
    print(kind, {arm: f"{np.mean(x):.3f} ± {np.std(x, ddof=1):.3f}" for arm, x in ends.items()})
    for arm in ARMS[1:]:
        a, b = np.mean(ends[arm]), np.mean(ends["grpo"])
        out.append({
            "name": f"{kind} at the end, {arm}", "ratio": float(a / b), "low": None, "high": None, "peer": "grpo",
            "unit": "accuracy", "ours": float(a), "theirs": float(b),
        })  # fmt: skip
    return out


class Endless:
    """Prompts of 32 random tokens, responses of 64 that are right or wrong by their ids."""

    name, heldout, max_tokens = "endless", (), 64
    train = tuple(
        Prompt(str(i), tokens=tuple(x))
        for i, x in enumerate(numpy_generator(0, "prompts").integers(0, 512, (8, 32)).tolist())
    )

    def score(self, prompt: Prompt, response: Any, text: str) -> Score:
        right = int(response.sum()) % 3 == 0
        return Score(float(right), right)


def updates(blocks: int) -> list[dict[str, Any]]:
    """Processor time of the update on one batch of 8 × 8 responses of 64 tokens, a Qwen2 of 2M parameters (8,192
    words), whole and as the schedule selects at the beginning, in the middle and at the end."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8192, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, eos_token_id=1, pad_token_id=2, bos_token_id=1,
    )  # fmt: skip
    policy = CausalLM(Qwen2ForCausalLM(config), None, ())
    work: dict[str, tuple[GroupLoop, Batch]] = {}
    for name, arm, step in (("grpo", "grpo", 0), ("begin", "d3s", 0), ("middle", "d3s", 50), ("end", "d3s", 100)):
        world = World(policy, NativeEngine(policy), Endless(), Sampling(64), 0)
        loop = GroupLoop(recipe(arm, 1e-9), world, prompts=8, micro_tokens=1 << 20, reference=None, total_steps=101)
        loop.steps = step
        work[name] = loop, loop.collect()[0]
    costs: dict[str, list[float]] = {name: [] for name in work}
    forward: dict[str, float] = {}
    for block in range(blocks + 1):
        for name in list(work) if block % 2 else list(work)[::-1]:
            loop, batch = work[name]
            began = time.process_time()
            forward[name] = loop.update(batch)["tokens/forward"]
            if block:
                costs[name].append(time.process_time() - began)
    out: list[dict[str, Any]] = []
    for name in ("begin", "middle", "end"):
        point, low, high = ratio(costs[name], costs["grpo"])
        medians = {"ours": float(np.median(costs[name])), "theirs": float(np.median(costs["grpo"]))}
        row = {"name": f"update at the {name} of the schedule, d3s", "peer": "grpo"}
        out.append(row | {"unit": "seconds of an update", "ratio": point, "low": low, "high": high, **medians})
        tokens = {"ours": forward[name], "theirs": forward["grpo"]}
        share = {"ratio": forward["grpo"] / forward[name], "low": None, "high": None}
        out.append(row | {"unit": "tokens with a forward pass", **share, **tokens})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--tasks", nargs="*", choices=[*TASKS, "update"], default=[*TASKS, "update"])
    parser.add_argument("--quick", action="store_true", help="two seeds, 20 steps, four blocks, nothing written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds, limit, blocks = (2, 20, 4) if args.quick else (args.seeds, None, args.blocks)
    ratios = updates(blocks) if "update" in args.tasks else []
    for kind in (k for k in TASKS if k in args.tasks):
        ratios += compare(kind, seeds, limit)
    table = Table("work", "unit", "ours", "GRPO", "GRPO / ours [95 %]")
    for r in ratios:
        interval = f" [{r['low']:.2f}, {r['high']:.2f}]" if r["low"] is not None else ""
        shown = "not reached" if r["ratio"] is None else f"{r['ratio']:.2f}{interval}"
        table.add_row(r["name"], r["unit"], *(f"{r[k]:.4g}" if k in r else "—" for k in ("ours", "theirs")), shown)
    Console(width=150).print(table)
    versions = {"anypolicy": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    if not args.quick:
        print(write("d3s", [r for r in ratios if r["ratio"] is not None], versions, vars(args)))


if __name__ == "__main__":
    sys.exit(main())
