"""Generation of SmolLM2-135M: rows of uneven length from shared prompts, by one of three engines."""

import json
import sys

import numpy as np
import torch
import transformers
from loop import resident, serve

given = json.loads(sys.argv[1])
torch.set_num_threads(given["threads"])
rng = np.random.default_rng(0)
prompts = [rng.integers(3, 40_000, given["prompt"]) for _ in range(given["prompts"])]
lengths = rng.integers(given["least"], given["most"] + 1, (given["prompts"], given["group"]))
if given["even"]:
    lengths[:] = given["even"]
total = int(lengths.sum())

if given["engine"] == "ours":
    from anypolicy.engines.base import Request, Sampling
    from anypolicy.engines.native import NativeEngine
    from anypolicy.policies.language.load import load_policy

    policy = load_policy(given["model"], dtype=given["dtype"])
    policy.stop_ids = ()
    engine = NativeEngine(policy)
    requests = [
        Request(p, 1, max_tokens=int(n)) for p, row in zip(prompts, lengths, strict=True) for n in row
    ]  # fmt: skip

    def generate(greedy=False):
        sampling = Sampling(given["most"], 0.0 if greedy else 1.0)
        answers = engine.generate(requests, sampling, torch.Generator().manual_seed(0))
        return [segment.response.tolist() for [(segment, _)] in answers]

else:
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, StoppingCriteria

    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=getattr(torch, given["dtype"])).eval()
    ids = torch.tensor(np.stack([p for p in prompts for _ in range(given["group"])]))
    ends = torch.tensor(lengths.reshape(-1)) + given["prompt"]

    class Lengths(StoppingCriteria):
        """Every row ends at its own length."""

        def __call__(self, input_ids, scores, **_):
            return input_ids.shape[1] >= ends

    def config(greedy):
        return GenerationConfig(
            max_new_tokens=given["most"], do_sample=not greedy, top_k=0, pad_token_id=2, eos_token_id=-1
        )

    def generate(greedy=False):
        if given["engine"] == "continuous batching":
            c = config(greedy)
            c.max_new_tokens = given["even"]
            pages = len(ids) * (-(-(given["prompt"] + given["even"]) // 32) + 1)
            room = ContinuousBatchingConfig(num_blocks=pages, max_batch_tokens=max(512, len(ids)))
            made = model.generate_batch(ids.tolist(), c, room)
            return [a.generated_tokens for a in made.values()]
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config(greedy), stopping_criteria=[Lengths()]
        )
        return [row[given["prompt"] : end].tolist() for row, end in zip(made, ends.tolist(), strict=True)]


base = resident()


def bounds():
    """Bytes a second of a read, operations a second of the model's largest product at full and at single rows."""
    import time

    def best(work, seconds=1.0):
        work()
        least, start = float("inf"), time.perf_counter()
        while time.perf_counter() - start < seconds:
            began = time.perf_counter()
            work()
            least = min(least, time.perf_counter() - began)
        return least

    x = torch.zeros(1 << 27, dtype=torch.int16).view(torch.int64)
    weights = [torch.randn(3072, 576, dtype=torch.bfloat16) for _ in range(40)]
    packed = [torch.ops.mkldnn._reorder_linear_weight(w, None) for w in weights]
    rows = torch.randn(given["prompts"] * given["group"], 576, dtype=torch.bfloat16)

    def products():
        for w in packed:
            torch.ops.mkldnn._linear_pointwise(rows, w, None, "none", [], "")

    flops = 2 * len(rows) * 576 * 3072 * len(packed)
    return {"bytes": x.numel() * 8 / best(x.sum), "flops": flops / best(products), "tokens": total}


def greedy():
    return {"tokens": generate(greedy=True)}


versions = {"torch": torch.__version__, "transformers": transformers.__version__}
serve({"once": generate, "greedy": greedy, "bounds": bounds}, versions, base)
