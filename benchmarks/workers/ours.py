"""One GRPO step by anypolicy, as a user gets it: GroupLoop.update on given rows, GroupLoop.step with generation."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from loop import resident, serve
from safetensors.torch import save_file

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Segment, Trajectory
from anypolicy.engines.base import Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.families.language import Settings
from anypolicy.loops.group import GroupLoop
from anypolicy.policies.language.load import load_policy
from anypolicy.runs.devices import choose_device
from anypolicy.stages.recipe import World
from anypolicy.tasks.language.base import Score
from anypolicy.version import __version__

given = json.loads(sys.argv[1])
torch.set_num_threads(given.get("threads", 1))
device = choose_device(given.get("device", "cpu"))
policy = load_policy(given["model"], dtype=given.get("dtype", "float32"), device=device)
policy.stop_ids = ()
work = json.loads(Path(given["work"]).read_text())


class Task:
    """The benchmark's prompts and its reward on token ids."""

    name, heldout, max_tokens = "bench", (), given["completion"]
    train = [Prompt(str(i), tokens=tuple(ids)) for i, ids in enumerate(work["prompts"])]

    def score(self, prompt, response, text):
        return Score(0.5 if int(prompt.id) < given.get("silent", 0) else (int(response.sum()) % 7) / 6, False)


class Uneven(NativeEngine):
    """Every row of the rollout ends at its own length."""

    def generate(self, requests, sampling, generator, version=0):
        lengths = iter(given["lengths"])
        rows = [r._replace(n=1, max_tokens=next(lengths)) for r in requests for _ in range(r.n)]
        made = iter(super().generate(rows, sampling, generator, version))
        return [[answer for _ in range(r.n) for answer in next(made)] for r in requests]


engine = Uneven(policy) if "lengths" in given else NativeEngine(policy)
recipe = compose("grpo", {"grpo": {"kl_coef": 0.0, "eps": 1e-4, "group_size": given["group"]}}).recipe
recipe = replace(recipe, optimiser=replace(recipe.optimiser, lr=given["lr"]))
world = World(policy, engine, Task(), Sampling(given["completion"]), 0)
loop = GroupLoop(recipe, world, prompts=len(Task.train), micro_tokens=Settings("").micro_tokens, reference=None)

groups = []
for i, prompt in enumerate(work["prompts"]):
    trajectories = []
    for j, ids in enumerate(work["completions"][i]):
        response, n = np.array(ids), len(ids)
        segment = Segment(
            np.array(prompt), response, np.zeros(n, np.float32), np.ones(n, np.bool_), np.zeros(n, np.int64)
        )
        trajectories.append(Trajectory(f"{i}/{j}", [segment], reward=work["rewards"][i][j]))
    groups.append(Group(str(i), Task.train[i], trajectories))


base = resident()


def batch():
    """Given rows as a batch whose behaviour policy is the current one and noise."""
    made = from_groups(groups)
    noise = torch.zeros_like(made.logp_old)
    for row, values in zip(noise, (v for group in work["noise"] for v in group), strict=True):
        row[: len(values)] = torch.tensor(values)
    with torch.no_grad():
        return loop.credited(replace(made, logp_old=policy.score(made, 1.0).logp + noise))


ready = batch()


def update():
    loop.update(ready)


def gradient():
    """Loss and gradient of the given rows, saved; weights untouched."""
    part = replace(ready, totals=None)
    terms = recipe.loss(policy.score(part, 1.0), part).terms
    total = sum(terms.values())
    total.backward()
    grads = {n: p.grad.cpu() for n, p in policy.module.named_parameters() if p.grad is not None}
    policy.module.zero_grad()
    save_file(grads, given["out"])
    return {"loss": float(total.detach())}


versions = {"anypolicy": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
serve({"update": update, "step": loop.step, "gradient": gradient}, versions, base, device)
