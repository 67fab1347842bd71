"""Control by anypolicy, as a user gets it: SAC's update, PPO's loop, the replay, several seeds."""

import json
import sys

import numpy as np
import torch
from loop import resident, serve

from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.families import control
from anypolicy.methods.control.sac import SoftActorCritic
from anypolicy.parts.squashed import log_slope, squashed
from anypolicy.runs.processor import choose_products, use_products
from anypolicy.tasks.control.environments import Space
from anypolicy.version import __version__

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
use_products(choose_products(), torch.device("cpu"))
data = {k: torch.from_numpy(v) for k, v in np.load(given["data"]).items()}
rng, n, batch = torch.Generator().manual_seed(0), len(data["reward"]), len(data["now"])
rows = Transitions(data["observation"], data["action"], data["reward"], data["next_observation"], data["terminated"],
                   torch.zeros(n), torch.full((n,), 0.99))  # fmt: skip
observations, actions = rows.observation.shape[1], rows.action.shape[1]
replay = Replay(n, observations, actions)
replay.add(rows)


def update():
    space = Space(observations, actions, False, (-1.0,) * actions, (1.0,) * actions)
    make = SoftActorCritic(ensemble=given["critics"])
    learner = make(space, 0)
    weights = {f"{m}.{k}": v.numpy() for m, x in learner.modules.items() for k, v in x.state_dict().items()}
    np.savez(given["weights"], **weights)

    def losses():
        """Of one update on the first rows with the given noise, ln(1 − a²) taken as ln(1 − a² + 1e-6) like the peer."""
        other, noise = make(space, 0), [data["later"], data["now"]]

        def sample(seen, _):
            mean, log_std = other.actor(seen)
            eps = noise.pop(0)
            action, logp = squashed(mean, log_std, eps)
            exact = log_slope(mean + log_std.exp() * eps)
            return action, logp + (exact - (1 - action.square() + 1e-6).log()).sum(-1)

        other.actor.sample = sample
        log = other.step(rows.select(torch.arange(batch)), rng)
        return {"critic": log["loss/critic"], "actor": log["loss/actor"], "entropy": log["entropy"]}

    return {"once": lambda: learner.update([replay.sample(batch, rng)], rng), "losses": losses}


def draw():
    def check():
        drawn = replay.sample(batch, rng)
        same = rows.select((drawn.reward * n).round().long())
        return {"rows": bool((drawn.observation == same.observation).all() and (drawn.action == same.action).all())}

    return {"once": lambda: replay.sample(batch, rng), "check": check}


def ppo():
    knobs = {"anneal": False, "horizon": 128, "environments": 8, "minibatches": 4, "epochs": 4, "clip_value": False,
             "normalise_observation": False, "normalise_reward": False}  # fmt: skip
    settings = control.ControlSettings(f"gym/{given['task']}", steps=10**7, trackers=())
    loop = control.World(control.plan("ppo-control", settings, knobs)).loop
    return {"once": lambda: loop.run(8 * 128)}


KNOBS = {"hidden": (64, 64), "batch": 64, "warmup": 100}


def seeds():
    device = given.get("device", "cpu")
    loop = control.several("sac", task="gym/Pendulum-v1", seeds=range(given["seeds"]), knobs=KNOBS, device=device)
    loop.run(100)
    return {"once": lambda: loop.run(50)}


def seeds_loop():
    settings = [control.ControlSettings("gym/Pendulum-v1", seed=s, trackers=()) for s in range(given["seeds"])]
    loops = [control.World(control.plan("sac", s, KNOBS)).loop for s in settings]
    for loop in loops:
        loop.run(100)
    return {"once": lambda: [loop.run(50) for loop in loops]}


makers = {"sac-update-2": update, "sac-update-10": update, "replay-sample": draw, "ppo": ppo, "ppo-pendulum": ppo,
          "seeds-10": seeds, "seeds-10-loop": seeds_loop}  # fmt: skip
device = given.get("device", "cpu")
serve(makers[given["work"]](), {"anypolicy": __version__, "torch": torch.__version__}, resident(), device)
