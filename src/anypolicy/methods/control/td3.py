"""TD3: a deterministic actor, two critics that are compared, and an actor that waits for them.

Paper: arXiv 1802.09477, eq. 10 and 15 (targets), section 5.2 (delayed updates), 5.3 (smoothing), algorithm 1.
Idea: a deterministic actor finds the errors of its critic. So a target takes the smaller of two critics, at an action
with clipped noise on it, and actor and targets move only at every second update of the critics.
Changes: nothing; it is the base that other methods with deterministic actors change.
Silent: initial weights; here PyTorch's own.
Differs: the authors' later code has layers of 256, rates of 3e-4, batches of 256 and 25,000 steps of warm-up. With
pictures, or choices, it does not work.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.transitions import Transitions
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OffPolicyRecipe, fed
from anypolicy.optimisers.step import adam, apply
from anypolicy.parts.noise import normal_like
from anypolicy.parts.td import polyak, soft_target
from anypolicy.policies.control.mlp import MLP, critics, q_values
from anypolicy.policies.control.statistics import Counter
from anypolicy.tasks.control.environments import Space


def smoothed(
    action: Float[Tensor, "batch actions"], noise: Float[Tensor, "batch actions"], clip: float
) -> Float[Tensor, "batch actions"]:
    """clip(a + clip(ε, −c, c), −1, 1), the action of a target (eq. 14–15)."""
    return (action + noise.clamp(-clip, clip)).clamp(-1, 1)


@method(
    Card(
        title="Addressing Function Approximation Error in Actor-Critic Methods",
        paper="arXiv 1802.09477",
        year=2018,
        family="control",
        idea="the smaller of two critics at a smoothed action, and an actor that moves less often than they do",
        changes=(),
        composes_with="any environment with a box of actions",
        claim="baseline of the claims of other methods",
        example="anypolicy train td3 --task gym/Pendulum-v1 --td3.hidden 64 64 --td3.lr 1e-3 --steps 5000",
        look_at="eval/return: -1367 to -511 with seed 0",
    ),
    slug="td3",
)
@dataclass(frozen=True)
class TwinDelayed:
    """Two critics, the actor at every second of their updates, target noise 0.2 clipped at 0.5."""

    hidden: knobs.Hidden = (400, 300)
    lr: knobs.LearningRate = 1e-3
    discount: knobs.Discount = 0.99
    tau: knobs.Polyak = 0.005
    batch: knobs.BatchSize = 100
    updates: knobs.Updates = 1
    warmup: knobs.Warmup = 1000
    capacity: knobs.Capacity = 1_000_000
    noise: Annotated[float, Knob("deviation of the exploring noise", least=0)] = 0.1
    target_noise: Annotated[float, Knob("deviation of the noise on a target's action", least=0)] = 0.2
    noise_clip: Annotated[float, Knob("largest noise on a target's action", least=0, infinite=True)] = 0.5
    delay: Annotated[int, Knob("updates of the critics for one of actor and targets", least=1)] = 2

    def __call__(self, space: Space, seed: int) -> "TwinDelayedLearner":
        return TwinDelayedLearner(self, space, seed)

    def recipe(self) -> OffPolicyRecipe:
        return fed(OffPolicyRecipe, self)


class TwinDelayedLearner:
    """Actor and critics with their targets, and the number of updates."""

    needs = Needs()

    def __init__(self, settings: TwinDelayed, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings, self.counter = s, Counter()
        self.actor = MLP((space.observations, *s.hidden, space.box()), rng)
        self.critics = critics(space.observations, space.box(), s.hidden, rng, ensemble=2)
        self.target_actor, self.targets = (deepcopy(x).requires_grad_(False) for x in (self.actor, self.critics))
        self.modules: dict[str, nn.Module] = {
            "actor": self.actor, "critics": self.critics, "target_actor": self.target_actor, "targets": self.targets,
            "counter": self.counter,
        }  # fmt: skip
        self.optimisers: dict[str, Optimizer] = {
            "actor_optimiser": adam(self.actor.parameters(), s.lr),
            "critic_optimiser": adam(self.critics.parameters(), s.lr),
        }

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        action = self.actor(observation).tanh()
        if explore:
            noise = self.settings.noise * normal_like(action, generator)
            action = (action + noise).clamp(-1, 1)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        log: dict[str, float] = {}
        for batch in batches:
            log |= self.update_critics(batch, generator)
            self.counter.steps += 1
            if int(self.counter.steps) % self.settings.delay == 0:
                log |= self.update_actor(batch)
        return log

    def update_critics(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """Σ_i mean (Q_i(s, a) − y)², y = r + γ(1 − d) min_i Q̄_i(s′, ã)."""
        s = self.settings
        with torch.no_grad():
            noise = s.target_noise * normal_like(batch.action, generator)
            action = smoothed(self.target_actor(batch.next_observation).tanh(), noise, s.noise_clip)
            y = soft_target(batch.reward, batch.continues, q_values(self.targets, batch.next_observation, action))
        q = q_values(self.critics, batch.observation, batch.action)
        loss = (q - y).square().mean(-1).sum()
        apply(self.optimisers["critic_optimiser"], loss)
        return {"loss/critic": float(loss.detach()), "q/mean": float(q.detach().mean())}

    def update_actor(self, batch: Transitions) -> dict[str, float]:
        """−mean Q_1(s, π(s)), then all targets."""
        self.critics.requires_grad_(False)
        loss = -q_values(self.critics, batch.observation, self.actor(batch.observation).tanh())[0].mean()
        apply(self.optimisers["actor_optimiser"], loss)
        self.critics.requires_grad_(True)
        polyak(self.targets.parameters(), self.critics.parameters(), self.settings.tau)
        polyak(self.target_actor.parameters(), self.actor.parameters(), self.settings.tau)
        return {"loss/actor": float(loss.detach())}
