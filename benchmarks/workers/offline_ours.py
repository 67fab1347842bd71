"""Offline updates by anypolicy, as a user gets them: a batch of the replay, one update."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from loop import resident, serve

from anypolicy import catalogue
from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.runs.processor import choose_products, use_products
from anypolicy.tasks.control.environments import Space
from anypolicy.version import __version__

given = json.loads(sys.argv[1])
folder = Path(given["folder"])
torch.set_num_threads(1)
use_products(choose_products(), torch.device("cpu"))
data = {k: torch.from_numpy(v).float() for k, v in np.load(folder / "data.npz").items()}
n, rng = len(data["reward"]), torch.Generator().manual_seed(0)
rows = Transitions(data["observation"], data["action"], data["reward"], data["next_observation"], data["terminated"],
                   torch.zeros(n), torch.full((n,), 0.99))  # fmt: skip
replay = Replay(n, rows.observation.shape[1], 1)
replay.add(rows)
make = catalogue.get(given["work"], "control").recipe(discount=0.99).learner
space = Space(rows.observation.shape[1], 4, True)
learner = make(space, 0)


def weights():
    """The first weights, layer by layer, for the peer."""
    critic = make(space, 0).critic
    layers = {f"w{i}": w.detach().numpy() for i, w in enumerate(critic.weights)}
    np.savez(folder / "weights.npz", **layers, **{f"b{i}": b.detach().numpy() for i, b in enumerate(critic.biases)})
    return {}


def losses():
    """Of one update from these weights on the rows that the peer drew."""
    batch = rows.select(torch.from_numpy(np.load(folder / "rows.npy")))
    log = make(space, 0).update([batch], rng)
    return {"loss": log["loss/critic"] + 0.1 * log.get("loss/conservative", 0.0)}


calls = {"once": lambda: learner.update([replay.sample(128, rng)], rng), "weights": weights, "losses": losses}
serve(calls, {"anypolicy": __version__, "torch": torch.__version__}, resident())
