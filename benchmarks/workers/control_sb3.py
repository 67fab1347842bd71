"""Control by Stable-Baselines3: SAC.train, PPO.learn, ReplayBuffer.sample, ten SAC one after the other."""

import json
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import stable_baselines3
import torch
from loop import resident, serve
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
data = dict(np.load(given["data"]))
n, batch = len(data["reward"]), len(data["now"])
sizes = data["observation"].shape[1], data["action"].shape[1]


class Blank(gymnasium.Env):
    """Spaces and nothing else."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (sizes[0],), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (sizes[1],), np.float32)


def fill(replay):
    for i in range(n):
        replay.add(data["observation"][i], data["next_observation"][i], data["action"][i], data["reward"][i],
                   data["terminated"][i], [{}])  # fmt: skip


def linear(net):
    return [x for x in net if isinstance(x, torch.nn.Linear)]


@torch.no_grad()
def copy_weights(model):
    """Those that anypolicy starts from."""
    w = {k: torch.from_numpy(v) for k, v in np.load(given["weights"]).items()}
    actor = model.actor
    layers = linear(actor.latent_pi)
    for i, x in enumerate(layers):
        x.weight.copy_(w[f"actor.net.weights.{i}"].T)
        x.bias.copy_(w[f"actor.net.biases.{i}"])
    last = len(layers)
    for k, (head, part) in enumerate(((actor.mu, 0), (actor.log_std, 1))):
        head.weight.copy_(w[f"actor.net.weights.{last}"].chunk(2, -1)[part].T)
        head.bias.copy_(w[f"actor.net.biases.{last}"].chunk(2, -1)[k])
    for net, name in ((model.critic, "critics"), (model.critic_target, "targets")):
        for e, q in enumerate(net.q_networks):
            for i, x in enumerate(linear(q)):
                x.weight.copy_(w[f"{name}.weights.{i}"][e].T)
                x.bias.copy_(w[f"{name}.biases.{i}"][e, 0])


def update():
    def make():
        policy = {"net_arch": [256, 256], "n_critics": given["critics"]}
        model = SAC("MlpPolicy", Blank(), policy_kwargs=policy, buffer_size=n, batch_size=batch, seed=0, device="cpu")
        model.set_logger(Logger(None, []))
        return model

    model = make()
    fill(model.replay_buffer)

    def losses():
        """Of one update on the first rows with the given noise."""
        other, said, column = make(), {}, lambda k: torch.from_numpy(data[k][:batch])
        copy_weights(other)
        other.logger.record = lambda key, value, *_, **__: said.update({key: float(value)})
        noise = [torch.from_numpy(data[k]) for k in ("now", "later")]
        import torch.distributions.normal as normal

        real, normal._standard_normal = normal._standard_normal, lambda *_, **__: noise.pop(0)
        first = SimpleNamespace(
            observations=column("observation"), actions=column("action"), next_observations=column("next_observation"),
            dones=column("terminated")[:, None], rewards=column("reward")[:, None], discounts=None,
        )  # fmt: skip
        other.replay_buffer.sample = lambda *_, **__: first
        seen = []
        action_log_prob = other.actor.action_log_prob
        other.actor.action_log_prob = lambda x: seen.append(action_log_prob(x)) or seen[-1]
        other.train(1, batch)
        normal._standard_normal = real
        logp = float(seen[0][1].detach().mean())
        return {"critic": said["train/critic_loss"], "actor": said["train/actor_loss"], "entropy": -logp}

    return {"once": lambda: model.train(1, batch), "losses": losses}


def draw():
    replay = ReplayBuffer(n, Blank.observation_space, Blank.action_space, device="cpu")
    fill(replay)

    def check():
        drawn = replay.sample(batch)
        i = (drawn.rewards[:, 0] * n).round().long().numpy()
        return {"rows": bool((drawn.observations.numpy() == data["observation"][i]).all()
                             and (drawn.actions.numpy() == data["action"][i]).all())}  # fmt: skip

    return {"once": lambda: replay.sample(batch), "check": check}


def ppo():
    model = PPO("MlpPolicy", make_vec_env(given["task"], 8), n_steps=128, batch_size=256, n_epochs=4, seed=0,
                device="cpu")  # fmt: skip
    model.set_logger(Logger(None, []))
    return {"once": lambda: model.learn(8 * 128, reset_num_timesteps=False)}


def seeds():
    models = [
        SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [64, 64]}, batch_size=64, learning_starts=100,
            seed=s, buffer_size=100_000, device=given.get("device", "cpu"))
        for s in range(given["seeds"])
    ]  # fmt: skip
    for model in models:
        model.set_logger(Logger(None, []))
        model.learn(100)
    return {"once": lambda: [model.learn(50, reset_num_timesteps=False) for model in models]}


makers = {"sac-update-2": update, "sac-update-10": update, "replay-sample": draw, "ppo": ppo, "ppo-pendulum": ppo,
          "seeds-10": seeds}  # fmt: skip
device = given.get("device", "cpu")
serve(makers[given["work"]](), {"stable-baselines3": stable_baselines3.__version__}, resident(), device)
