"""Memory and time of one update of a masked-diffusion policy over the number of masks a response: the bound, whose
masks are backwarded one after the other, beside the ratio of evidence lower bounds, which holds all their graphs.

    python benchmarks/bgpo_memory.py           benchmarks/results/bgpo_memory.json and docs/benchmarks/bgpo-memory.svg

Two measures: bytes of tensors that autograd has saved for the backward pass, counted with
`torch.autograd.graph.saved_tensors_hooks` (parameters aside), and the growth of the process's peak resident memory.
Each point is a fresh fork of this process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, write

from anypolicy.data.batch import Batch, from_groups
from anypolicy.data.records import Group, Prompt, Segment, Trajectory
from anypolicy.evidence.memory import peak_saved_bytes
from anypolicy.methods.language.bgpo import BoundLoss
from anypolicy.methods.language.vrpo_ol import RatioLoss
from anypolicy.policies.language.masked_diffusion import MaskedDiffusionLM, small_denoiser
from anypolicy.version import __version__

SIZES: dict[str, int] = {
    "layers": 4,
    "width": 128,
    "heads": 4,
    "vocabulary": 512,
    "rows": 8,
    "prompt": 16,
    "response": 48,
}
MASKS = (1, 2, 4, 8, 16, 32, 64)
LOSSES = {"bound": BoundLoss, "ratio": RatioLoss}


def made_batch() -> Batch:
    """Two groups of random responses with advantages of both signs."""
    rng, s = np.random.default_rng(0), SIZES
    groups = []
    for g in range(2):
        context, ts = rng.integers(0, s["vocabulary"] - 2, s["prompt"]), []
        for i in range(s["rows"] // 2):
            n = s["response"]
            segment = Segment(context, rng.integers(0, s["vocabulary"] - 2, n), np.zeros(n, np.float32),
                              np.ones(n, np.bool_), np.zeros(n, np.int64))  # fmt: skip
            ts.append(Trajectory(f"{g}/{i}", [segment], 0.0))
        groups.append(Group(str(g), Prompt(str(g)), ts))
    batch = from_groups(groups)
    advantage = torch.where(torch.arange(batch.rows) % 2 == 0, 1.0, -1.0)[:, None].expand(batch.response.shape)
    return replace(batch, advantage=advantage, totals=batch.counted(), row_seed=torch.arange(batch.rows))


def update(loss: Any, policy: MaskedDiffusionLM, batch: Batch) -> None:
    """Every part of the loss, backwarded before the next."""
    for part in loss.passes(policy, batch, 1.0):
        torch.stack(list(part.terms.values())).sum().backward()


def measure(loss: str, masks: int, answer: Any) -> None:
    """One update in this process."""
    torch.set_num_threads(1)
    s = SIZES
    policy = small_denoiser(
        vocabulary=s["vocabulary"], layers=s["layers"], width=s["width"], heads=s["heads"], context_length=128, seed=0,
        eos_id=s["vocabulary"] - 2, mask_id=s["vocabulary"] - 1,
    )  # fmt: skip
    batch = made_batch()
    update(BoundLoss(1), policy, batch)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    saved = peak_saved_bytes(lambda: update(LOSSES[loss](masks), policy, batch), policy.module.parameters())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.put({"loss": loss, "masks": masks, "saved": saved / 2**20, "process": (after - before) / 1024,
                "cpu": time.process_time() - began})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few masks, nothing written")
    args = parser.parse_args()
    fork = multiprocessing.get_context("fork")
    points: list[dict[str, Any]] = []
    for masks in MASKS[:3] if args.quick else MASKS:
        for loss in LOSSES:
            answer = fork.Queue()
            child = fork.Process(target=measure, args=(loss, masks, answer))
            child.start()
            points.append(answer.get())
            child.join()
            p = points[-1]
            grown = f"saved {p['saved']:8.1f} MiB   process +{p['process']:8.1f} MiB"
            print(f"{loss:<6} n={masks:<3} {grown}   {p['cpu']:.2f} s")
    if not args.quick:
        plot(points, HERE.parent / "docs/benchmarks/bgpo-memory.svg")
        print(write("bgpo_memory", ratios(points), {"anypolicy": __version__, "torch": torch.__version__},
                    {"sizes": SIZES, "points": points}))  # fmt: skip


def ratios(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The baseline's memory over ours at every number of masks, and ours over ours at one mask."""
    at = {(p["loss"], p["masks"]): p for p in points}
    out: list[dict[str, Any]] = []
    for masks in sorted({m for _, m in at}):
        ours, theirs = at["bound", masks], at["ratio", masks]
        for unit in ("saved", "process", "cpu"):
            label = "seconds" if unit == "cpu" else f"MiB, {unit}"
            out.append({"name": f"bgpo-{unit}-{masks}", "ratio": theirs[unit] / max(ours[unit], 1e-9), "low": None,
                        "high": None, "peer": "ratio of ELBOs in one graph", "unit": label, "ours": ours[unit],
                        "theirs": theirs[unit]})  # fmt: skip
        out.append({"name": f"bgpo-saved-{masks}-over-1", "ratio": ours["saved"] / at["bound", 1]["saved"], "low": None,
                    "high": None, "peer": "itself with one mask", "unit": "MiB, saved"})  # fmt: skip
    return out


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """MiB over masks, both logarithmic."""
    from matplotlib.figure import Figure

    from anypolicy.evidence.plots import write_picture

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, unit in zip(figure.subplots(1, 2), ("saved", "process"), strict=True):
        for loss, label in (("bound", "bound: a mask at a time"), ("ratio", "ratio: all masks in one graph")):
            mine = [p for p in points if p["loss"] == loss]
            axes.loglog([p["masks"] for p in mine], [max(p[unit], 0.1) for p in mine], "o-", base=2, label=label)
        axes.set(xlabel="masks a response", ylabel=f"MiB ({'saved tensors' if unit == 'saved' else 'process, growth'})")
    axes.legend(frameon=False, fontsize=8)
    write_picture(figure, path)


if __name__ == "__main__":
    main()
