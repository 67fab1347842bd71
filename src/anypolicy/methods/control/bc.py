"""BC: behaviour cloning by a flow, by diffusion, or by one mean action; of choices by a softmax.

Paper: arXiv 2303.04137 (actions by denoising, DDPM and DDIM), arXiv 2209.03003 and 2210.02747 (flow matching); the mean
action is regression as in ALVINN (1988); the softmax as in arXiv 2111.04714.
Idea: imitate what demonstrators did by fitting the distribution of their actions, so that two ways of solving a task
stay two ways instead of their average, which may solve nothing.
Changes: nothing; it is the base that other methods improve.
Silent: the network for vectors of numbers (three layers of 256, SiLU), the learning rate, the average of weights (rate
0.005, faster at the beginning); observations are standardised as the demonstrations' are, deviations taken as ≥ 0.1.
Differs: one action at a time unless `chunk` says more; the first paper predicts chunks and executes a part of each.
  chunks      all of a chunk is executed; behind the end of a demonstration its last action is repeated (as there)
  diffusion   ε-loss summed over actions and the VP process of 10 steps (IDQL, EXPO): "ddpm" | DDIM over 20 steps of the
              cosine schedule with x₀ clipped (DPPO, DSRL): "ddim"; its loss is summed here too, a constant factor
  flow        Euler, clipped once at the end (QC): "flow"
  choices     the cross-entropy of a softmax (SELU) whatever `policy` is; it samples also when evaluated, as in arXiv
              2111.04714's code (rate 1e-4, batches of 128); weights not averaged, observations as they are
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anypolicy import knobs
from anypolicy.catalogue import Card, method, saved_controller
from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs, load_modules
from anypolicy.learners.recipe import OfflineRecipe, fed
from anypolicy.optimisers.step import adam, apply
from anypolicy.policies.control.actors import CategoricalActor
from anypolicy.policies.control.cloned import Cloned
from anypolicy.policies.control.generative import Generative, Kind, generative, imitate
from anypolicy.tasks.control.environments import Space


@method(
    Card(
        title="Diffusion Policy: visuomotor policy learning via action diffusion",
        paper="arXiv 2303.04137",
        year=2023,
        family="control",
        idea="imitate demonstrations by a policy that turns noise into actions",
        changes=(),
        composes_with="any demonstrations; with a box of actions, a base for methods that improve one",
        claim="actions with several modes are imitated without averaging them",
        example="anypolicy train bc --task reacher-sparse --demos scripted --steps 2000",
        look_at="eval/success: 0.00 to 0.20 with seed 0; too short a run to tell learning from chance",
        metrics={"loss/clone": "loss of the flow, of the noise, squared error of the mean action, or −ln π of choices"},
        regions={"return": 91.8, "coverage": 52.5, "narrow": 40.4, "all": 42.2},
    ),
    slug="bc",
)
@dataclass(frozen=True)
class Cloning:
    """A flow of ten Euler steps (of choices a softmax) on the demonstrations, one action at a time or `chunk` of them;
    `--steps` are updates."""

    policy: Annotated[Kind, Knob("what imitates: a flow, diffusion, or one mean action")] = "flow"
    hidden: knobs.Hidden = (256, 256, 256)
    denoising_steps: knobs.DenoisingSteps = 10
    lr: knobs.LearningRate = 3e-4
    batch: knobs.BatchSize = 256
    average: Annotated[
        float, Knob("rate at which the acting weights follow the trained ones; 1: no average", above=0, most=1)
    ] = 0.005  # fmt: skip
    standardise: Annotated[bool, Knob("observations are standardised as the demonstrations' are")] = True
    chunk: knobs.Chunk = 1

    def __call__(self, space: Space, seed: int) -> "CloningLearner | ChoiceCloningLearner":
        for name in ("policy", "denoising_steps", "average", "standardise") if space.discrete else ():
            if (value := getattr(self, name)) != getattr(Cloning, name):
                raise InputError(f"bc.{name}", value, "choices are cloned by a softmax, which does not use it")
        return (ChoiceCloningLearner if space.discrete else CloningLearner)(self, space, seed)

    def recipe(self) -> OfflineRecipe:
        generative(self.policy, 1, 1, self.hidden, torch.Generator(), steps=self.denoising_steps)
        return fed(OfflineRecipe, self)


class CloningLearner:
    """A policy made from noise, and the average of its weights, with which it acts."""

    needs = Needs(prepare=True)

    def __init__(self, settings: Cloning, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings = s
        self.policy = generative(s.policy, space.observations, space.actions, s.hidden, rng, steps=s.denoising_steps)
        self.modules: dict[str, nn.Module] = {"policy": self.policy}
        self.optimisers: dict[str, Optimizer] = {
            "policy_optimiser": adam(self.policy.network.online.parameters(), s.lr)
        }

    def prepare(self, offline: Replay, generator: torch.Generator) -> None:
        """Scales of the observations."""
        if self.settings.standardise:
            self.policy.network.inputs.fit(offline.all().observation)

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action = self.policy.sample(observation, generator)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        optimiser, s = self.optimisers["policy_optimiser"], self.settings
        return {"loss/clone": [imitate(self.policy, optimiser, b, generator, s.average) for b in batches][-1]}


class ChoiceCloningLearner:
    """A softmax over choices."""

    needs = Needs()

    def __init__(self, settings: Cloning, space: Space, seed: int):
        rng = torch.Generator().manual_seed(seed)
        self.actor = CategoricalActor(space.observations, space.choices(), settings.hidden, rng, activation="selu",
                                      init="kaiming", last_gain=1.0)  # fmt: skip
        self.modules: dict[str, nn.Module] = {"actor": self.actor}
        self.optimisers: dict[str, Optimizer] = {"actor_optimiser": adam(self.actor.parameters(), settings.lr)}

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action = self.actor(observation).sample(generator)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """−mean ln π(a|s)."""
        [batch] = batches
        loss = -self.actor(batch.observation).logp(batch.action).mean()
        apply(self.optimisers["actor_optimiser"], loss)
        return {"loss/clone": float(loss.detach())}


def base_policy(base: str | Cloned, space: Space, rng: torch.Generator) -> Generative:
    """The policy of a run's policy/ folder, or a new one."""
    if space.discrete:
        raise InputError("task", f"{space.actions} discrete actions", "a base makes actions of a box from noise")
    if isinstance(base, Cloned):
        return base.make(space.observations, space.actions, rng)
    return saved_policy(base, space)


def saved_policy(folder: str | Path, space: Space) -> Generative:
    """The generative policy of a run's policy/ folder, for an environment of these sizes."""
    saved = saved_controller(folder, "base")
    learner = saved.recipe.learner(space, 0)
    policy = learner.modules.get("policy")
    if not isinstance(policy, Generative):
        raise InputError("base", str(folder), f"{saved.method} makes no actions from noise: clone demonstrations")
    try:
        load_modules(learner, saved.tensors)
    except RuntimeError as error:
        made = f"{saved.task}, chunk {saved.knobs.get('chunk', 1)}"
        raise InputError("base", str(folder), f"it acts in another space or other chunks ({made})") from error
    return policy
