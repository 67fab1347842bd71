"""Control by d3rlpy: SAC.update on batches of its replay, ReplayBuffer.sample_transition_batch."""

import json
import sys

import d3rlpy
import numpy as np
import torch
from loop import resident, serve

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
data = dict(np.load(given["data"]))
n, batch = len(data["reward"]), len(data["now"])
ends = data["terminated"].copy()
ends[-1] = 1
replay = d3rlpy.dataset.MDPDataset(data["observation"], data["action"], data["reward"][:, None], ends)


def update():
    config = d3rlpy.algos.SACConfig(
        batch_size=batch, n_critics=given["critics"], actor_learning_rate=3e-4, critic_learning_rate=3e-4,
        temp_learning_rate=3e-4, initial_temperature=1.0,
    )  # fmt: skip
    model = config.create(device="cpu")
    model.build_with_dataset(replay)
    return {"once": lambda: model.update(replay.sample_transition_batch(batch)), "losses": dict}


def draw():
    def check():
        drawn = replay.sample_transition_batch(batch)
        i = np.rint(np.asarray(drawn.rewards)[:, 0] * n).astype(int)
        return {"rows": bool((np.asarray(drawn.observations) == data["observation"][i]).all()
                             and (np.asarray(drawn.actions) == data["action"][i]).all())}  # fmt: skip

    return {"once": lambda: replay.sample_transition_batch(batch), "check": check}


makers = {"sac-update-2": update, "sac-update-10": update, "replay-sample": draw}
serve(makers[given["work"]](), {"d3rlpy": d3rlpy.__version__}, resident())
