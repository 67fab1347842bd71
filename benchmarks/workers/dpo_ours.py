"""One DPO update by anypolicy, as a user gets it: GroupLoop.update on given pairs."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from loop import resident, serve
from safetensors.torch import save_file

from anypolicy.compose import compose
from anypolicy.data.records import Prompt
from anypolicy.engines.base import Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.families.language import Settings
from anypolicy.loops.group import GroupLoop
from anypolicy.policies.language.load import load_policy
from anypolicy.stages.recipe import World
from anypolicy.stages.recorded import StreamSampler
from anypolicy.version import __version__

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
policy = load_policy(given["model"], dtype="float32")
reference = copy.deepcopy(policy)
rng = torch.Generator().manual_seed(1)
with torch.no_grad():
    for p in policy.module.parameters():
        p.add_(1e-3 * torch.randn(p.shape, generator=rng))
work = json.loads(Path(given["work"]).read_text())


class Task:
    """The benchmark's pairs, to the token."""

    name, heldout, max_tokens, verifies = "bench", (), given["completion"], False
    train = [
        Prompt(str(i), tokens=tuple(ids), info={"responses": pair, "scores": [1.0, 0.0], "exact": True})
        for i, (ids, pair) in enumerate(zip(work["prompts"], work["completions"], strict=True))
    ]


recipe = compose("dpo").recipe
recipe = replace(recipe, sampler=StreamSampler(), optimiser=replace(recipe.optimiser, lr=given["lr"]))
world = World(policy, NativeEngine(policy), Task(), Sampling(given["completion"]), 0)
loop = GroupLoop(
    recipe, world, prompts=len(Task.train), micro_tokens=Settings("").micro_tokens, reference=reference
)  # fmt: skip
base = resident()
ready, _ = loop.collect()
known = loop.referenced(ready)


def update():
    """The reference's log-probabilities computed anew."""
    loop.reference.known.clear()
    loop.update(ready)


def gradient():
    """Loss and gradient of the given pairs, saved; weights untouched."""
    part = replace(known, totals=known.counted())
    total = sum(recipe.loss(policy.score(part, 1.0), part).terms.values())
    total.backward()
    grads = {n: p.grad.clone() for n, p in policy.module.named_parameters() if p.grad is not None}
    policy.module.zero_grad()
    save_file(grads, given["out"])
    return {"loss": float(total.detach())}


versions = {"anypolicy": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
serve({"update": update, "known": lambda: loop.update(known), "gradient": gradient}, versions, base)
