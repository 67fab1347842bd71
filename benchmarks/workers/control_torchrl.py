"""Control by TorchRL: SACLoss with a soft target update and Adam, TensorDictReplayBuffer.sample."""

import json
import sys

import numpy as np
import torch
import torchrl
from loop import resident, serve
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
data = {k: torch.from_numpy(v) for k, v in np.load(given["data"]).items()}
n, batch = len(data["reward"]), len(data["now"])
observations, actions = data["observation"].shape[1], data["action"].shape[1]
replay = TensorDictReplayBuffer(storage=LazyTensorStorage(n), batch_size=batch)
ended = data["terminated"].bool()[:, None]
after = {"observation": data["next_observation"], "reward": data["reward"][:, None], "terminated": ended, "done": ended}
replay.extend(TensorDict({"observation": data["observation"], "action": data["action"], "next": after}, [n]))


def update():
    sizes = {"num_cells": [256, 256], "activation_class": nn.ReLU}
    body = nn.Sequential(MLP(in_features=observations, out_features=2 * actions, **sizes), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(body, in_keys=["observation"], out_keys=["loc", "scale"]), in_keys=["loc", "scale"],
        spec=Bounded(-torch.ones(actions), torch.ones(actions)), distribution_class=TanhNormal,
    )  # fmt: skip
    critic = ValueOperator(MLP(in_features=observations + actions, out_features=1, **sizes),
                           in_keys=["observation", "action"])  # fmt: skip
    loss = SACLoss(actor, critic, num_qvalue_nets=given["critics"], loss_function="l2", target_entropy=-float(actions))
    loss.make_value_estimator(gamma=0.99)
    targets = SoftUpdate(loss, tau=0.005)
    adam = torch.optim.Adam(loss.parameters(), lr=3e-4, fused=True)

    def once():
        terms = loss(replay.sample())
        adam.zero_grad()
        (terms["loss_actor"] + terms["loss_qvalue"] + terms["loss_alpha"]).backward()
        adam.step()
        targets.step()

    return {"once": once, "losses": dict}


def draw():
    def check():
        drawn = replay.sample()
        i = (drawn["next", "reward"][:, 0] * n).round().long()
        return {"rows": bool((drawn["observation"] == data["observation"][i]).all()
                             and (drawn["action"] == data["action"][i]).all())}  # fmt: skip

    return {"once": replay.sample, "check": check}


makers = {"sac-update-2": update, "sac-update-10": update, "replay-sample": draw}
serve(makers[given["work"]](), {"torchrl": torchrl.__version__}, resident())
