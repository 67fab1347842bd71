"""Control by Tianshou: SAC.update on its replay, ReplayBuffer.sample."""

import json
import sys

import gymnasium
import numpy as np
import tianshou
import torch
from loop import resident, serve
from tianshou.algorithm.modelfree.sac import SAC, AutoAlpha, SACPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, ReplayBuffer
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from tianshou.utils.torch_utils import policy_within_training_step

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
data = dict(np.load(given["data"]))
n, batch = len(data["reward"]), len(data["now"])
shapes = data["observation"].shape[1:], data["action"].shape[1:]
replay = ReplayBuffer(n)
for i in range(n):
    replay.add(Batch(obs=data["observation"][i], act=data["action"][i], rew=float(data["reward"][i]),
                     terminated=bool(data["terminated"][i]), truncated=False, obs_next=data["next_observation"][i],
                     info={}))  # fmt: skip


def update():
    space = gymnasium.spaces.Box(-1.0, 1.0, shapes[1], np.float32)
    rate = lambda: AdamOptimizerFactory(lr=3e-4)  # noqa: E731
    body = Net(state_shape=shapes[0], hidden_sizes=[256, 256])
    actor = ContinuousActorProbabilistic(
        preprocess_net=body, action_shape=shapes[1], unbounded=True, conditioned_sigma=True
    )
    critics = [
        ContinuousCritic(
            preprocess_net=Net(state_shape=shapes[0], action_shape=shapes[1], hidden_sizes=[256, 256], concat=True)
        )
        for _ in range(2)
    ]
    model = SAC(
        policy=SACPolicy(actor=actor, action_space=space), policy_optim=rate(), critic=critics[0], critic_optim=rate(),
        critic2=critics[1], critic2_optim=rate(), alpha=AutoAlpha(-float(shapes[1][0]), 0.0, rate()),
    )  # fmt: skip

    def once():
        with policy_within_training_step(model.policy):
            model.update(replay, batch)

    return {"once": once, "losses": dict}


def draw():
    def check():
        drawn, _ = replay.sample(batch)
        i = np.rint(drawn.rew * n).astype(int)
        return {"rows": bool((drawn.obs == data["observation"][i]).all() and (drawn.act == data["action"][i]).all())}

    return {"once": lambda: replay.sample(batch), "check": check}


makers = {"sac-update-2": update, "replay-sample": draw}
model = makers[given["work"]]()
torch.set_grad_enabled(True)
serve(model, {"tianshou": tianshou.__version__}, resident())
