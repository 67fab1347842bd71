"""Offline updates by d3rlpy: DoubleDQN and DiscreteCQL on batches of its replay, its ReLU replaced by SELU."""

import json
import sys
from pathlib import Path

import d3rlpy
import numpy as np
import torch
from loop import resident, serve
from torch import nn

given = json.loads(sys.argv[1])
folder = Path(given["folder"])
torch.set_num_threads(1)
data = dict(np.load(folder / "data.npz"))
n = len(data["reward"])
replay = d3rlpy.dataset.MDPDataset(
    data["observation"], data["action"], data["reward"][:, None], data["terminated"], action_size=4
)
more = {"alpha": 0.1} if given["work"] == "cql" else {}
kind = {"dqn": d3rlpy.algos.DoubleDQNConfig, "cql": d3rlpy.algos.DiscreteCQLConfig}[given["work"]]


def made():
    """A new model with SELU."""
    config = kind(batch_size=128, learning_rate=1e-4, gamma=0.99, target_update_interval=100,
                  encoder_factory=d3rlpy.models.VectorEncoderFactory([256, 256, 256]), **more)  # fmt: skip
    model = config.create(device="cpu")
    model.build_with_dataset(replay)
    for nets in (model.impl.modules.q_funcs, model.impl.modules.targ_q_funcs):
        for module in list(nets.modules()):
            for name, child in list(module._modules.items()):  # named_children() leaves out a child that is shared
                if isinstance(child, nn.ReLU):
                    setattr(module, name, nn.SELU())
    return model


def losses():
    """Of one update from the given weights; writes the rows it drew."""
    model, weights = made(), np.load(folder / "weights.npz")
    with torch.no_grad():
        for nets in (model.impl.modules.q_funcs, model.impl.modules.targ_q_funcs):
            for i, layer in enumerate(m for m in nets.modules() if isinstance(m, nn.Linear)):
                layer.weight.copy_(torch.from_numpy(weights[f"w{i}"]).T)
                layer.bias.copy_(torch.from_numpy(weights[f"b{i}"]))
    batch = replay.sample_transition_batch(128)
    np.save(folder / "rows.npy", np.rint(np.asarray(batch.rewards)[:, 0] * n).astype(np.int64))
    return {"loss": float(model.update(batch)["loss"])}


model = made()
serve({"once": lambda: model.update(replay.sample_transition_batch(128)), "losses": losses},
      {"d3rlpy": d3rlpy.__version__, "torch": torch.__version__}, resident())  # fmt: skip
