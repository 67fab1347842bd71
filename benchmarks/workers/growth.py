"""One update of a small Qwen2 at given sizes: median processor seconds of five, and the peak of memory."""

import json
import resource
import sys
import time

import numpy as np
import torch
from loop import resident
from transformers import Qwen2Config, Qwen2ForCausalLM

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Segment, Trajectory
from anypolicy.engines.base import Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.families.language import Settings
from anypolicy.loops.group import GroupLoop
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.stages.recipe import World

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
rng = np.random.default_rng(0)
config = Qwen2Config(
    vocab_size=given["vocabulary"], hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=4096, eos_token_id=1, pad_token_id=2, bos_token_id=1,
)  # fmt: skip
policy = CausalLM(Qwen2ForCausalLM(config), None, ())


class Task:
    name, heldout, max_tokens, train = "growth", (), given["completion"], [Prompt("0", tokens=(3,))]


recipe = compose("grpo", {"grpo": {"kl_coef": 0.0}}).recipe
world = World(policy, NativeEngine(policy), Task(), Sampling(given["completion"]), 0)
loop = GroupLoop(
    recipe, world, prompts=given["prompts"], micro_tokens=Settings("").micro_tokens, reference=None
)  # fmt: skip


def trajectory(name, context):
    n = given["completion"]
    ids = rng.integers(3, given["vocabulary"], n)
    segment = Segment(context, ids, np.full(n, -7, np.float32), np.ones(n, np.bool_), np.zeros(n, np.int64))
    return Trajectory(name, [segment], reward=float(rng.random()))


groups = []
for i in range(given["prompts"]):
    context = rng.integers(3, given["vocabulary"], given["prompt"])
    rows = [trajectory(f"{i}/{j}", context) for j in range(given["group"])]
    groups.append(Group(str(i), Prompt(str(i)), rows))
batch = loop.credited(from_groups(groups))
base, seconds = resident(), []
for _ in range(6):
    began = time.process_time()
    loop.update(batch)
    seconds.append(time.process_time() - began)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"cpu": sorted(seconds[1:])[2], "memory": (peak - base) / 1024}))
