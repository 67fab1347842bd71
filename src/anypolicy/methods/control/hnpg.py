"""HNPG: natural policy gradient whose critic and states come from demonstrations too.

Paper: arXiv 2311.08384 (HAC: algorithm 1, HPE: algorithm 2, HNPG: section 5), in the form of the authors' code.
Idea: fit the critic to returns of the policy and, by temporal differences, to offline data at once, and improve the
policy on both state distributions: as good as offline learning where its assumptions hold, as on-policy learning where
they do not.
Changes: nothing of another method; with `offline` false it is TRPO with a critic Q fitted to returns.
Silent: evaluation; here by the policy's mean. Early ends: a step without on-policy samples is fitted and improved on
offline ones alone. The end of a rollout inside an episode: bootstrapped by the critic of the next step.
Differs: finite horizon as in the authors' lock: one policy and one critic for each step, so the task must show the step
(`combination-lock`, or `gym/ID:time=true`); their single-network variant is not here. The horizon ends the return
(value 0 behind the last step, also where the environment calls it a truncation); an earlier truncation bootstraps. The
paper fits a linear critic to the advantage and steps along its weights; the code takes a TRPO step on the concatenated
samples, as here. Actions of the demonstrations enter the critic alone; at their states the policy's own are judged. The
discount is 1 (the code has a flag that it does not use), advantages are not normalised, no weight decay. A rollout is
one episode in each of `environments` copies, the code's as many as make 1,000 steps.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Adam, Optimizer

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.replay import Replay
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OnPolicyRecipe, fed
from anypolicy.parts.optimisers import make_optimiser
from anypolicy.parts.td import generalised_advantage
from anypolicy.parts.trust_region import policy_update
from anypolicy.policies.control.finite_horizon import (
    CriticPerStep,
    GaussianPerStep,
    sampled_value,
    sampled_values,
    state_and_step,
)
from anypolicy.runs import seeds
from anypolicy.tasks.control.environments import Space


def hac(policy: Float[Tensor, "*states actions"], f: Float[Tensor, "*states actions"], eta: float) -> Tensor:
    """π_{t+1}(a|s) ∝ π_t(a|s) exp(η f(s, a)), the exact update of a table of probabilities (algorithm 1)."""
    return (policy.log() + eta * f).softmax(-1)


def hybrid_loss(offline: Float[Tensor, " m"], online: Float[Tensor, " n"], weight: float) -> Float[Tensor, ""]:
    """mean (f − target)² over offline errors + λ mean (f − return)² over on-policy ones (algorithm 2); none count 0."""
    terms = [(1.0, offline), (weight, online)]
    return torch.stack([c * e.square().mean() for c, e in terms if len(e)]).sum()


def hybrid_table(
    off: Int[Tensor, " m"], target: Float[Tensor, " m"], on: Int[Tensor, " n"], returns: Float[Tensor, " n"],
    cells: int, weight: float,
) -> Float[Tensor, " cells"]:  # fmt: skip
    """The minimiser of `hybrid_loss` among all functions of a cell (s, a); 0 in cells without data."""
    parts = ((1.0, off, target), (weight, on, returns))
    share = torch.cat([torch.full_like(y, c / max(len(y), 1)) for c, _, y in parts])
    cell, y = torch.cat([off, on]), torch.cat([target, returns])
    mass = torch.bincount(cell, share, cells)
    return torch.where(mass > 0, torch.bincount(cell, share * y, cells) / mass, 0.0)


@method(
    Card(
        title="Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees",
        paper="arXiv 2311.08384",
        year=2023,
        family="control",
        idea="a natural policy gradient with a critic fitted to its returns and to offline data, on the states of both",
        changes=(),
        composes_with="any environment with a box of actions, a longest episode and the step in its observations",
        claim="with offline data it opens a combination lock that on-policy exploration never does",
        metrics={
            "kl/step": "mean KL(old ‖ new) of a policy step, over states and steps of the episode",
            "accepted": "share of the steps of the episode whose line search took a step",
        },
    ),
    slug="hnpg",
)
@dataclass(frozen=True)
class HybridNaturalGradient:
    """Offline and on-policy losses with equal weight; `weight` 0 leaves the on-policy loss of the critic out, `offline`
    false everything offline. A rollout is `rollout` steps of each environment; None: one longest episode."""

    offline: Annotated[bool, Knob("demonstrations are used: they are needed then")] = True
    weight: Annotated[
        float, Knob("weight λ of on-policy errors beside the demonstrations' in the critic's loss", least=0)
    ] = 1.0  # fmt: skip
    lam: knobs.GAELambda = 0.97
    max_kl: Annotated[float, Knob("trust region, nats", above=0)] = 1e-2
    damping: Annotated[float, Knob("multiple of the identity in the Fisher matrix", least=0)] = 0.1
    hidden: knobs.Hidden = (16, 16)
    critic_hidden: Annotated[tuple[int, ...], Knob("widths of the critics' hidden layers", least=1)] = (64, 64)
    critic_lr: Annotated[float, Knob("learning rate of the critics", above=0)] = 3e-4
    critic_steps: Annotated[int, Knob("steps of each critic after a rollout", least=0)] = 30
    value_samples: Annotated[int, Knob("actions of the policy whose mean value stands for a state's", least=1)] = 10
    environments: knobs.Copies = 200
    rollout: Annotated[int | None, Knob("steps of a rollout of each copy; none: whole episodes", least=1)] = None

    def __call__(self, space: Space, seed: int) -> "HybridNaturalGradientLearner":
        return HybridNaturalGradientLearner(self, space, seed)

    def recipe(self) -> OnPolicyRecipe:
        if self.weight == 0 and not self.offline:
            raise InputError("hnpg.weight", self.weight, "use a number above 0 (0 only with offline data)")
        return fed(OnPolicyRecipe, self, horizon=self.rollout, discount=1.0, needs_offline=self.offline)


class HybridNaturalGradientLearner:
    """A policy and a critic for every step of the episode, in double precision and the environment's own units."""

    needs = Needs(offline=True)

    def __init__(self, settings: HybridNaturalGradient, space: Space, seed: int):
        sizes = (space.observations - 1, space.box())
        if space.steps is None:
            why = "networks for each step need it, and a longest episode: gym/ID:time=true"
            raise InputError("task", "observations without the step", why)
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings, self.space, self.horizon = s, space, space.steps
        self.actors = GaussianPerStep(self.horizon, *sizes, s.hidden, rng)
        self.critics = CriticPerStep(self.horizon, *sizes, s.critic_hidden, rng)
        self.modules = {"actors": self.actors, "critics": self.critics}
        self.optimisers: dict[str, Optimizer] = {}
        self.offline = Replay(1, space.observations, space.actions)

    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        unit = self.space.unit(self.actors.act(*state_and_step(observation), generator if explore else None))
        return Acted(unit.float(), unit)

    @cached_property
    def pools(self) -> list[Transitions]:
        """Demonstrations by the number of their step."""
        every = self.offline.all()
        return [every.select(state_and_step(every.observation)[1] == h) for h in range(self.horizon)]

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """Critics from the last step to the first, then advantages and the policy of every step. Offline draws have a
        generator of their own: leaving them out changes no other draw."""
        t, s, own = batches[0], self.settings, seeds.generator(generator.initial_seed(), "offline")
        nets = self.actors, self.critics
        (x, step), next_x = state_and_step(t.observation), state_and_step(t.next_observation)[0]
        action, reward = self.space.native(t.action.double()), t.reward.double()
        ends = t.terminated.double(), t.truncated.double()
        inside = (ends[0] + ends[1] == 0) & (torch.arange(len(step), device=step.device) < len(step) - 1)[:, None]
        cut = ~inside & (ends[0] == 0)
        behind = sampled_values(*nets, next_x, step + 1, cut, s.value_samples, generator)
        returns = generalised_advantage(reward, torch.zeros_like(reward), behind, *ends, 1.0, 1.0)
        count, device = step.numel() // self.horizon, t.reward.device
        offline = [pool.drawn(count, own).to(device) for pool in self.pools]
        losses, made = list[float](), list[tuple[float, bool]]()
        for h in reversed(range(self.horizon)):
            here = step == h
            losses.append(self.fit(h, x[here], action[here], returns[here], offline[h], own))
        value = sampled_values(*nets, x, step, step >= 0, s.value_samples, generator)
        behind = sampled_values(*nets, next_x, step + 1, cut, s.value_samples, generator)
        next_value = torch.where(inside, value.roll(-1, 0), behind)
        advantage = generalised_advantage(reward, value, next_value, *ends, 1.0, s.lam)
        for h, actor in enumerate(self.actors.at):
            here, seen = step == h, state_and_step(offline[h].observation)[0]
            chosen = self.actors.sample(h, seen, own)
            judged = self.critics(h, seen, chosen).detach() - sampled_value(*nets, h, seen, s.value_samples, own)
            both = torch.cat([x[here], seen])
            if len(both):
                a, adv = torch.cat([action[here], chosen]), torch.cat([advantage[here], judged])
                made.append(policy_update(partial(actor, both), a, adv, list(actor.parameters()), s.max_kl, s.damping))
        kl, accepted = torch.tensor(made).mean(0).tolist()
        return {"loss/critic": sum(losses) / len(losses), "kl/step": kl, "accepted": accepted}

    def fit(self, h: int, x: Tensor, a: Tensor, returns: Tensor, off: Transitions, generator: torch.Generator) -> float:
        """Full-batch steps of a new Adam on `hybrid_loss`; offline target r + Q_{h+1}(s′, a′), one a′ ~ π_{h+1}, with
        the critic that this sweep has just fitted; r at the last step."""
        target, m = off.reward.double(), len(off)
        if h + 1 < self.horizon:
            next_x = state_and_step(off.next_observation)[0]
            action = self.actors.sample(h + 1, next_x, generator)
            target = target + off.continues * self.critics(h + 1, next_x, action).detach()
        states = torch.cat([state_and_step(off.observation)[0], x])
        actions = torch.cat([self.space.native(off.action.double()), a])
        y, loss = torch.cat([target, returns]), target.new_zeros(())
        adam = make_optimiser(Adam, self.critics.at[h].parameters(), lr=self.settings.critic_lr, fused=True)
        for _ in range(self.settings.critic_steps if len(y) else 0):
            error = self.critics(h, states, actions) - y
            loss = hybrid_loss(error[:m], error[m:], self.settings.weight)
            adam.zero_grad()
            loss.backward()
            adam.step()
        return float(loss.detach())
