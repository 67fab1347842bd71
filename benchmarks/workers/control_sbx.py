# ruff: noqa: E402 (JAX reads its settings when it is imported)
"""Control by SBX: SAC.train, one step a call as in training, PPO.learn; compiled before anything is timed."""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import gymnasium
import jax
import numpy as np
import sbx
from loop import resident, serve
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

given = json.loads(sys.argv[1])
data = dict(np.load(given["data"]))
n, batch = len(data["reward"]), len(data["now"])


class Blank(gymnasium.Env):
    """Spaces and nothing else."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, data["observation"].shape[1:], np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, data["action"].shape[1:], np.float32)


def update():
    policy = {"net_arch": [256, 256], "n_critics": given["critics"]}
    model = sbx.SAC("MlpPolicy", Blank(), policy_kwargs=policy, buffer_size=n, batch_size=batch, seed=0)
    model.set_logger(Logger(None, []))
    for i in range(n):
        model.replay_buffer.add(data["observation"][i], data["next_observation"][i], data["action"][i],
                                data["reward"][i], data["terminated"][i], [{}])  # fmt: skip
    return {"once": lambda: model.train(1, batch), "losses": dict}


def ppo():
    model = sbx.PPO("MlpPolicy", make_vec_env(given["task"], 8), n_steps=128, batch_size=256, n_epochs=4, seed=0)
    model.set_logger(Logger(None, []))
    return {"once": lambda: model.learn(8 * 128, reset_num_timesteps=False)}


makers = {"sac-update-2": update, "sac-update-10": update, "ppo": ppo, "ppo-pendulum": ppo}
serve(makers[given["work"]](), {"sbx": sbx.__version__, "jax": jax.__version__}, resident())
