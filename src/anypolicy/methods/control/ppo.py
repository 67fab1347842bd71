"""PPO for control: the clipped surrogate with generalised advantages. (The slug ppo is PPO on language models.)

Paper: arXiv 1707.06347, eq. 7 (clip) and 9 (sum of losses), algorithm 1; advantages of arXiv 1506.02438, eq. 16.
Idea: take several passes over one rollout, and let the gradient vanish where the ratio to the policy that acted has
left 1 ± ε in the direction that pays.
Changes: nothing; it is the base of the on-policy methods.
Silent: normalisation, initial weights, value clip, the order of mini-batches. All as in CleanRL's script for continuous
actions; its script for discrete ones has 4 copies of 128 steps, 4 mini-batches, 4 epochs, rate 2.5e-4, entropy 0.01 and
normalises neither observations nor rewards: all of them are knobs here.
Differs: our choice comes first.
  time-outs        bootstrap from the last observation; the advantage is cut there | treated as ends (CleanRL)
  observations     by the moments of all earlier rollouts: the policy that acted is the one in the ratio | the moments
                   move at every step (CleanRL, by Gymnasium's wrapper) | not normalised (SB3's default)
  rewards          divided by the std of the discounted return, this rollout included; a return ends with its episode |
                   step by step; forgets what led to a terminal step, runs on over time-outs (Gymnasium 1's wrapper)
  actions          units of the box, [−1, 1]: an initial std of 1 is half the box | the environment's units (CleanRL)
  advantages       normalised per mini-batch (CleanRL, SB3) | per rollout (OpenAI Baselines)
  value clip       ε, in units of the scaled reward (CleanRL, Baselines) | none (paper, SB3): `clip_value`
  target_kl        after every epoch, of its last mini-batch (CleanRL) | before every step, 1.5 times it (SB3)
  mini-batches     differ by at most one row | the remainder is one of its own (CleanRL)
  rate             falls to 0 over the run (CleanRL) | constant (SB3): `anneal`. A run that is made longer later goes on
                   at the rate that the longer run would have there
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.transitions import Transitions
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OnPolicyRecipe, fed
from anypolicy.optimisers.epochs import means, passes
from anypolicy.parts.kl import kl
from anypolicy.parts.optimisers import make_optimiser
from anypolicy.parts.surrogate import clip_active, clipped, clipped_value_loss
from anypolicy.parts.td import generalised_advantage
from anypolicy.policies.control.actors import Actor, actor_for
from anypolicy.policies.control.mlp import MLP
from anypolicy.policies.control.statistics import Counter, ReturnScale, RunningMoments
from anypolicy.tasks.control.environments import Space


@method(
    Card(
        title="Proximal Policy Optimization Algorithms",
        paper="arXiv 1707.06347",
        year=2017,
        family="control",
        idea="several passes over a rollout, with a gradient that vanishes outside 1 ± ε of the policy that acted",
        changes=(),
        composes_with="any environment, with a box of actions or with choices",
        claim="one set of settings learns continuous control as fast as methods that need a trust region",
        example="anypolicy train ppo-control --task gym/CartPole-v1 --steps 30000",
        look_at="eval/return: 9 to 157 with seed 0",
    ),
    slug="ppo-control",
)
@dataclass(frozen=True)
class ProximalPolicy:
    """Ten epochs of 32 mini-batches over 2,048 steps, everything normalised."""

    hidden: knobs.Hidden = (64, 64)
    lr: knobs.LearningRate = 3e-4
    anneal: Annotated[bool, Knob("the learning rate falls to 0 over the run")] = True
    discount: knobs.Discount = 0.99
    lam: Annotated[float, Knob("λ of generalised advantage estimation", least=0, most=1)] = 0.95
    horizon: Annotated[int, Knob("steps of each copy in a rollout", least=2)] = 2048
    environments: knobs.Copies = 1
    minibatches: Annotated[int, Knob("mini-batches of a pass", least=1)] = 32
    epochs: knobs.Epochs = 10
    clip: knobs.ClipRange = 0.2
    clip_value: Annotated[bool, Knob("the value loss is clipped as ratios are")] = True
    value_weight: Annotated[float, Knob("weight of the value loss", least=0)] = 0.5
    entropy_weight: Annotated[float, Knob("weight of the entropy", least=0)] = 0.0
    grad_clip: Annotated[float, Knob("largest norm of a gradient", above=0, infinite=True)] = 0.5
    target_kl: Annotated[
        float | None, Knob("passes end beyond this divergence from the policy that acted, nats; none: never", above=0)
    ] = None  # fmt: skip
    normalise_advantage: Annotated[bool, Knob("advantages of a mini-batch are standardised")] = True
    normalise_observation: Annotated[bool, Knob("observations are standardised by what was seen so far")] = True
    normalise_reward: Annotated[bool, Knob("rewards are divided by the deviation of returns so far")] = True

    def __call__(self, space: Space, seed: int) -> "ProximalPolicyLearner":
        return ProximalPolicyLearner(self, space, seed)

    def recipe(self) -> OnPolicyRecipe:
        return fed(OnPolicyRecipe, self)


class Samples(NamedTuple):
    """What the surrogate is made of, one row a step."""

    observation: Float[Tensor, "rows observations"]
    action: Float[Tensor, "rows actions"]
    logp: Float[Tensor, " rows"]
    value: Float[Tensor, " rows"]
    advantage: Float[Tensor, " rows"]

    def select(self, rows: Tensor) -> "Samples":
        return Samples(*(x[rows] for x in self))


class ProximalPolicyLearner:
    """Actor, value function, one optimiser over both, the moments of observations and returns."""

    needs = Needs(budget=True)

    def __init__(self, settings: ProximalPolicy, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings, self.total = s, 0
        self.actor = actor_for(space.observations, space.actions, space.discrete, s.hidden, rng, space.factors)
        self.critic = MLP([space.observations, *s.hidden, 1], rng, activation="tanh", init="orthogonal")
        self.moments, self.scale, self.seen = RunningMoments(space.observations), ReturnScale(s.discount), Counter()
        self.modules: dict[str, nn.Module] = {
            "actor": self.actor, "critic": self.critic, "moments": self.moments, "scale": self.scale, "seen": self.seen,
        }  # fmt: skip
        both = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimisers = {"optimiser": make_optimiser(Adam, both, lr=s.lr, eps=1e-5, fused=True)}

    def budget(self, steps: int) -> None:
        self.total = steps

    def inputs(self, observation: Tensor) -> Tensor:
        """What the networks see."""
        return self.moments.normalised(observation) if self.settings.normalise_observation else observation

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        pi = self.actor(self.inputs(observation))
        action = pi.sample(generator) if explore else pi.mode()
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """Advantages, then the passes over them; last of all the moments take in what was seen."""
        [rollout], s, optimiser = batches, self.settings, self.optimisers["optimiser"]
        self.scale.take(rollout)
        anneal(optimiser, s, int(self.seen.steps), self.total)
        data = credit(self.actor, self.critic, self.inputs, self.scale, rollout, s)
        log = fit(self.actor, self.critic, optimiser, data, s, s.minibatches, generator)
        self.moments.take(rollout.observation)
        self.seen.steps += rollout.reward.numel()
        return log


def anneal(optimiser: Optimizer, s: ProximalPolicy, seen: int, total: int) -> None:
    """The rate of this update: lr · (1 − steps before it / steps of the run), or lr where `total` is 0 (not known)."""
    for group in optimiser.param_groups:
        group["lr"] = s.lr * (1 - seen / total) if s.anneal and total else s.lr


@torch.no_grad()
def credit(
    actor: Actor, critic: MLP, inputs: Callable[[Tensor], Tensor], scale: ReturnScale, steps: Transitions,
    s: ProximalPolicy,
) -> Samples:  # fmt: skip
    """ln π, V and A of steps (steps, environments, …) under the networks of now."""
    shape = steps.reward.shape
    seen, action = inputs(steps.observation.flatten(0, 1)), steps.action.flatten(0, 1)
    value, after = critic(seen).view(shape), critic(inputs(steps.next_observation.flatten(0, 1))).view(shape)
    reward = scale.scaled(steps.reward) if s.normalise_reward else steps.reward
    advantage = generalised_advantage(reward, value, after, steps.terminated, steps.truncated, s.discount, s.lam)
    return Samples(seen, action, actor(seen).logp(action), value.flatten(), advantage.flatten())


def surrogate(actor: Actor, critic: MLP, batch: Samples, s: ProximalPolicy) -> tuple[Tensor, dict[str, Tensor]]:
    """−mean min(ρA, clip(ρ)A) + c_v ½ mean max(…)² − c_e mean entropy of a mini-batch, and numbers for the ledger."""
    pi = actor(batch.observation)
    logp, a = pi.logp(batch.action), batch.advantage
    ratio, target = (logp - batch.logp).exp(), batch.advantage + batch.value
    if s.normalise_advantage:
        a = (a - a.mean()) / (a.std() + 1e-8)
    value = critic(batch.observation).squeeze(-1)
    errors = clipped_value_loss(value, batch.value, target, s.clip) if s.clip_value else (value - target).square() / 2
    loss_policy, loss_value, entropy = -clipped(ratio, a, s.clip, s.clip).mean(), errors.mean(), pi.entropy().mean()
    log = {"loss/policy": loss_policy, "loss/value": loss_value, "entropy": entropy,
           "kl/behaviour": (batch.logp - logp).mean(), "kl/k3": kl(batch.logp, logp, "k3").mean(),
           "ratio/clipped": clip_active(ratio, a, s.clip, s.clip).float().mean()}  # fmt: skip
    return loss_policy + s.value_weight * loss_value - s.entropy_weight * entropy, log


def fit(
    actor: Actor, critic: MLP, optimiser: Optimizer, data: Samples, s: ProximalPolicy, parts: int,
    generator: torch.Generator,
) -> dict[str, float]:  # fmt: skip
    """The passes, in `parts` mini-batches of two rows at least."""
    rows = len(data.value)
    log, _ = passes(
        lambda part: surrogate(actor, critic, data.select(part), s), rows, optimiser, generator, epochs=s.epochs,
        parts=max(min(parts, rows // 2), 1), grad_clip=s.grad_clip, after=("kl/k3", s.target_kl),
    )  # fmt: skip
    out, spread = means(log) | {"lr": optimiser.param_groups[0]["lr"]}, (data.advantage + data.value).var(correction=0)
    if spread > 0:
        out["value/explained"] = 1 - float(data.advantage.var(correction=0) / spread)
    return out
