"""Log-probabilities of 4,096 tokens at a large vocabulary and their gradients, one way of computing them a process."""

import json
import sys
from pathlib import Path

import torch
from loop import resident, serve
from safetensors.torch import save_file

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
rng = torch.Generator().manual_seed(0)
states = torch.randn(given["tokens"], given["width"], generator=rng).requires_grad_()
weight = (0.05 * torch.randn(given["vocabulary"], given["width"], generator=rng)).requires_grad_()
targets = torch.randint(given["vocabulary"], (given["tokens"],), generator=rng)
weighing = torch.randn(given["tokens"], generator=rng)

if given["way"] == "ours":
    from anypolicy.parts.token_logp import token_logp

    def logp():
        return token_logp(states, weight, None, targets)[0]

elif given["way"] == "trl":
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

    def logp():
        return ChunkedLogProbFunction.apply(states, weight, None, targets, 1.0, CHUNK, None, 1.0, ("log_probs",))[0]

else:

    def logp():
        logits = torch.nn.functional.linear(states, weight)
        return torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)


base = resident()


def once():
    states.grad = weight.grad = None
    (logp() * weighing).sum().backward()


def gradient():
    once()
    with torch.no_grad():
        file = {"logp": logp(), "states": states.grad, "weight": weight.grad}
        save_file(file, str(Path(given["out"])))
    return {"loss": 0.0}


serve({"once": once, "gradient": gradient}, {"torch": torch.__version__}, base)
