"""PROPS: proximal robust on-policy sampling. A second policy collects what the policy would, but has not yet.

Paper: arXiv 2311.08290, the clipped loss with its divergence, and the algorithm of its two updates.
Idea: a finite sample is never distributed like the policy it comes from. Move the policy that acts away from the pairs
that the buffer already holds, so that the buffer comes to look like data of the current policy, old batches too;
then learn on all of it as if it were on-policy, without importance weights.
Changes: who acts, and a buffer of the last b batches; policy and values are trained by PPO.
Silent: time-outs, which bootstrap here as in PPO.
Differs: our choice comes first; "code" is the authors' for the paper's MuJoCo runs, "later code" their clean-up.
  π_θ in ρ         the policy after this iteration's PPO update | before it (code): ρ ≠ 1 where the behaviour starts
  divergence       KL(behaviour ‖ policy), mean over states and action dimensions (code) | the other way round
                   (the paper's equation) | none (later code)
  KL bound         before a step, which is then not taken (code) | after it (later code)
  oldest m steps   left out once the buffer is full, as the next rollout evicts them (code) | always in (the equation)
  settings         n 2048, b 2, m 1024, rates as in the code's arguments; clip, λ, bound from its tuned
                   ranges. Discrete tasks, later code: m 16, b 1, rate 1e-3, 16 epochs of 4, λ 0, bound 0.01
  PPO's target_kl  after an epoch, as in PPO here | before every step (code)
  weights by |A|   `weigh_advantage`: divided by the std over the update's rows | over the mini-batch's (code)
  Adam's moments   of the behaviour are kept while its weights begin anew (both codes)
ROS (arXiv 2111.14552) is `collect` 1, `behaviour_epochs` 1, `behaviour_minibatches` 1, `behaviour_clip` None,
`kl_weight` 0, `kl_bound` None: a step down mean ρ after every environment step. The code has −mean ln ρ there,
which goes up.
"""

from dataclasses import dataclass
from math import ceil
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Adam, Optimizer

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OnPolicyRecipe, fed
from anypolicy.methods.control.ppo import ProximalPolicy, ProximalPolicyLearner, Samples, anneal, credit, fit
from anypolicy.optimisers.epochs import passes
from anypolicy.parts.kl import kl
from anypolicy.parts.optimisers import make_optimiser
from anypolicy.policies.control.actors import Actor, actor_for, likeliest_head
from anypolicy.policies.control.statistics import Rollouts
from anypolicy.tasks.control.environments import Space


def avoidance(ratio: Float[Tensor, " rows"], clip: float | None) -> Float[Tensor, " rows"]:
    """max(ρ, clip(ρ, 1 − ε, 1 + ε)), to be made small: the gradient is that of ρ down to 1 − ε and 0 below. Without a
    clip, ρ."""
    return ratio if clip is None else torch.maximum(ratio, ratio.clamp(1 - clip, 1 + clip))


def sampling_error(
    state: Int[Tensor, " rows"], action: Int[Tensor, " rows"], policy: Float[Tensor, "states actions"]
) -> float:
    """Σ_s d_D(s) KL(π_D(·|s) ‖ π(·|s)), with the shares of states and of actions in each that the rows have."""
    counts = torch.zeros_like(policy).index_put_((state, action), torch.ones((), dtype=policy.dtype), accumulate=True)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return float((counts / len(state) * (share / policy).log().nan_to_num(neginf=0.0)).sum())


def fitted_error(
    actor: Actor, observation: Float[Tensor, "rows observations"], action: Float[Tensor, "rows actions"], *,
    steps: int = 250, lr: float = 1e-3,
) -> float:  # fmt: skip
    """mean_D (ln π_D(a|s) − ln π(a|s)), π_D being π with the last layer that `steps` of Adam make likelier for D."""
    fitted = likeliest_head(actor, observation, action, steps=steps, lr=lr)
    with torch.no_grad():
        return float((fitted(observation).logp(action) - actor(observation).logp(action)).mean())


@method(
    Card(
        title="On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling",
        paper="arXiv 2311.08290",
        year=2023,
        family="control",
        idea="a second policy acts, pushed away from what the buffer already holds, so that the data fit the policy",
        changes=(),
        composes_with="any environment, with a box of actions or with choices",
        claim="at equal steps the data are distributed more like the policy, and the policy learns more from them",
        example="anypolicy train props --task gym/CartPole-v1 --steps 10000",
        look_at="eval/return: 9 to 246 with seed 0",
        metrics={
            "behaviour/kl": "estimate of the divergence of behaviour from policy, at the last mini-batch looked at",
            "behaviour/steps": "steps of the behaviour's optimiser in an update",
            "sampling_error": "mean ln π_D − ln π over the buffer, π_D's last layer fitted to it (`measure_error`)",
        },
    ),
    slug="props",
)
@dataclass(frozen=True)
class RobustSampling:
    """PPO every `horizon` steps on `buffer` such batches; the behaviour policy begins anew every `collect` steps."""

    hidden: knobs.Hidden = (64, 64)
    lr: knobs.LearningRate = 1e-3
    anneal: Annotated[bool, Knob("the learning rates fall to 0 over the run")] = False
    discount: knobs.Discount = 0.99
    lam: Annotated[float, Knob("λ of generalised advantage estimation", least=0, most=1)] = 0.95
    horizon: Annotated[int, Knob("steps of each copy in a rollout", least=2)] = 2048
    buffer: Annotated[int, Knob("rollouts of `horizon` steps that an update learns from, the newest", least=1)] = 2
    collect: Annotated[int, Knob("steps after which the behaviour policy begins anew", least=1)] = 1024
    environments: knobs.Copies = 1
    minibatches: Annotated[int, Knob("mini-batches of a pass", least=1)] = 32
    epochs: knobs.Epochs = 10
    clip: knobs.ClipRange = 0.2
    entropy_weight: Annotated[float, Knob("weight of the entropy", least=0)] = 0.01
    target_kl: Annotated[
        float | None, Knob("passes end beyond this divergence from the policy that acted, nats; none: never", above=0)
    ] = 0.03  # fmt: skip
    behaviour_lr: Annotated[float, Knob("learning rate of the behaviour policy", above=0)] = 1e-4
    behaviour_epochs: Annotated[int, Knob("passes of the behaviour policy over the buffer", least=0)] = 16
    behaviour_minibatches: Annotated[int, Knob("mini-batches of such a pass", least=1)] = 16
    behaviour_clip: Annotated[
        float | None, Knob("clip of the behaviour policy's ratios; none: no clip", least=0, infinite=True)
    ] = 0.3  # fmt: skip
    kl_weight: Annotated[
        float, Knob("weight of the divergence that holds the behaviour policy near the target", least=0)
    ] = 0.3  # fmt: skip
    kl_bound: Annotated[
        float | None, Knob("the behaviour policy's passes end beyond this divergence, nats; none: never", above=0)
    ] = 0.05  # fmt: skip
    weigh_advantage: Annotated[bool, Knob("the behaviour policy avoids what has large advantages more")] = False
    normalise_observation: Annotated[bool, Knob("observations are standardised by what was seen so far")] = True
    normalise_reward: Annotated[bool, Knob("rewards are divided by the deviation of returns so far")] = True
    measure_error: Annotated[bool, Knob("logs the sampling error (costs a fit)")] = False

    @property
    def ppo(self) -> ProximalPolicy:
        """The learner of the target policy."""
        return ProximalPolicy(
            hidden=self.hidden, lr=self.lr, anneal=self.anneal, discount=self.discount, lam=self.lam,
            minibatches=self.minibatches, epochs=self.epochs, clip=self.clip, entropy_weight=self.entropy_weight,
            target_kl=self.target_kl, normalise_observation=self.normalise_observation,
            normalise_reward=self.normalise_reward,
        )  # fmt: skip

    def __call__(self, space: Space, seed: int) -> "RobustSamplingLearner":
        return RobustSamplingLearner(self, space, seed)

    def recipe(self) -> OnPolicyRecipe:
        if self.horizon % self.collect:
            raise InputError("props.collect", self.collect, f"use a divisor of horizon, {self.horizon}")
        return fed(OnPolicyRecipe, self, horizon=self.collect)


class RobustSamplingLearner:
    """A PPO learner, the behaviour policy with its optimiser, and the last b · n steps as they came."""

    needs = Needs(budget=True)

    def __init__(self, settings: RobustSampling, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings, self.target = s, ProximalPolicyLearner(s.ppo, space, seed)
        self.behaviour = actor_for(space.observations, space.actions, space.discrete, s.ppo.hidden, rng, space.factors)
        self.behaviour.load_state_dict(self.target.actor.state_dict())
        self.rollouts = Rollouts(s.buffer * s.horizon, space.observations, space.action_width)
        self.modules = self.target.modules | {"behaviour": self.behaviour, "rollouts": self.rollouts}
        adam = make_optimiser(Adam, self.behaviour.parameters(), lr=s.behaviour_lr, eps=1e-5, fused=True)
        self.optimisers = self.target.optimisers | {"behaviour_optimiser": adam}

    def budget(self, steps: int) -> None:
        self.target.budget(steps)

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        if not explore:
            return self.target.act(observation, generator, explore=False)
        action = self.behaviour(self.target.inputs(observation)).sample(generator)
        return Acted(action, action)

    def update(self, batches: list[Transitions], generator: torch.Generator) -> dict[str, float]:
        """Keep the rollout; every n steps PPO on all that is kept; then the behaviour, from the policy of now."""
        [rollout], s, target = batches, self.settings, self.target
        copies, log = rollout.reward.shape[1], dict[str, float]()
        self.rollouts.append(rollout)
        target.scale.take(rollout)
        target.seen.steps += rollout.reward.numel()
        kept, steps = self.rollouts.all(), int(target.seen.steps)
        data = credit(target.actor, target.critic, target.inputs, target.scale, kept, s.ppo)
        if steps % (s.horizon * copies) == 0:
            if s.measure_error:
                log["sampling_error"] = fitted_error(target.actor, data.observation, data.action)
            optimiser, size = target.optimisers["optimiser"], s.buffer * s.horizon * copies / s.ppo.minibatches
            anneal(optimiser, s.ppo, steps - s.horizon * copies, target.total)
            log |= fit(target.actor, target.critic, optimiser, data, s.ppo, ceil(len(data.value) / size), generator)
        self.behaviour.load_state_dict(target.actor.state_dict())
        full = len(self.rollouts) == s.buffer * s.horizon
        data = data.select(torch.arange(s.collect * copies if full else 0, len(data.value)))
        size = max((s.buffer * s.horizon - s.collect) * copies / s.behaviour_minibatches, 1)
        optimiser, parts = self.optimisers["behaviour_optimiser"], ceil(len(data.value) / size)
        log |= avoid(self.behaviour, target.actor, optimiser, data, s, parts, generator)
        target.moments.take(rollout.observation)
        return log


def avoid(
    behaviour: Actor, actor: Actor, optimiser: Optimizer, data: Samples, s: RobustSampling, parts: int,
    generator: torch.Generator,
) -> dict[str, float]:  # fmt: skip
    """Epochs down mean max(ρ, clip ρ) + λ mean KL(behaviour ‖ policy), until the k3 divergence passes the bound."""
    if not len(data.value):
        return {}
    with torch.no_grad():
        policy = actor(data.observation)
        reference = policy.logp(data.action)
        weight = torch.ones_like(reference)
        if s.weigh_advantage and len(reference) > 1:
            weight = data.advantage.abs() / (data.advantage.std() + 1e-8)

    def loss(rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        pi = behaviour(data.observation[rows])
        logp = pi.logp(data.action[rows])
        value = weight[rows] * avoidance((logp - reference[rows]).exp(), s.behaviour_clip)
        divergence = pi.divergence(policy.select(rows)).mean()
        return value.mean() + s.kl_weight * divergence, {"k3": kl(reference[rows], logp, "k3").mean()}

    log, steps = passes(loss, len(data.value), optimiser, generator, epochs=s.behaviour_epochs, parts=parts,
                        grad_clip=s.ppo.grad_clip, before=("k3", s.kl_bound))  # fmt: skip
    return {"behaviour/steps": steps} | ({"behaviour/kl": float(log["k3"][-1])} if log else {})
