"""DSRL-SAC: SAC on the noise that a frozen diffusion policy starts from.

Paper: arXiv 2506.15799, section on the latent-noise action space; details from the released code.
Idea: to the learner the environment and the frozen base together are one environment whose action is u in [−1, 1]; the
base starts from w = b u. Everything else is SAC, to the bit.
Changes: what an action is.
Silent: densities are those of u.
Differs:
  network           3 × 128 ReLU, LayerNorm in the critics | tanh, LayerNorm everywhere, 128 to 2,048 wide (authors)
  target entropy    0 | `target_entropy` none: −|A| (the code's −1)
  warm-up           ten episodes of the base with its noise clipped to the box | 1,501 to 20,001 steps of it (authors)
  time limit        bootstraps | is terminal (authors)
  replay            10⁶ transitions | 10⁷ (authors)
  chunk             rewards inside are discounted, γᵏ after k steps | summed, γ once (authors)
  evaluation        draws from the actor | `deterministic_eval`: u = tanh(mean)
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.replay import Replay
from anypolicy.knobs import Knob
from anypolicy.learners.base import Acted, Needs
from anypolicy.learners.recipe import OffPolicyRecipe, fed
from anypolicy.methods.control.bc import base_policy
from anypolicy.methods.control.sac import SoftActorCritic
from anypolicy.policies.control.cloned import OnBase
from anypolicy.policies.control.generative import normal
from anypolicy.policies.control.steered import Steered, check_steering
from anypolicy.tasks.control.environments import Space


@method(
    Card(
        title="Steering Your Diffusion Policy with Latent Space Reinforcement Learning (without noise aliasing)",
        paper="arXiv 2506.15799",
        year=2025,
        family="control",
        idea="SAC chooses the noise that a frozen generative policy starts from",
        changes=(),
        composes_with="any saved policy of bc whose noise decides its action",
        claim="see DSRL: steering alone lifts a mediocre base, with more samples than noise aliasing needs",
        example="anypolicy train dsrl-sac --task reacher-sparse --demos scripted --steps 500",
        look_at="eval/success: 0.20 to 0.50 with seed 0",
    ),
    slug="dsrl-sac",
)
@dataclass(frozen=True)
class NoiseSpace(OnBase):
    """A box of ±1.5, twenty updates for every step (every `chunk` of actions, decided at once), entropy target 0; a
    flow cloned from the demonstrations, or the policy/ folder of a run as `base`."""

    magnitude: Annotated[float, Knob("largest noise the actor may choose, standard deviations", above=0)] = 1.5
    hidden: knobs.Hidden = (128, 128, 128)
    lr: knobs.LearningRate = 3e-4
    discount: knobs.Discount = 0.99
    tau: knobs.Polyak = 0.005
    batch: knobs.BatchSize = 256
    updates: knobs.Updates = 20
    target_entropy: knobs.TargetEntropy = 0.0
    alpha: knobs.InitialTemperature = 1.0
    learn_alpha: Annotated[bool, Knob("α is learnt towards the target entropy")] = True
    warmup: knobs.Warmup = None
    capacity: knobs.Capacity = 1_000_000
    deterministic_eval: Annotated[bool, Knob("evaluated with the actor's mode instead of a sample")] = False
    chunk: knobs.Chunk = 1

    @property
    def sac(self) -> SoftActorCritic:
        """The learner of the noise."""
        return SoftActorCritic(
            hidden=self.hidden, lr=self.lr, alpha_lr=self.lr, tau=self.tau, target_entropy=self.target_entropy,
            alpha=self.alpha, learn_alpha=self.learn_alpha, layer_norm=True,
        )  # fmt: skip

    def __call__(self, space: Space, seed: int) -> "NoiseSpaceLearner":
        return NoiseSpaceLearner(self, space, seed)

    def recipe(self) -> OffPolicyRecipe:
        check_steering(self.base_policy, self.magnitude)
        return fed(OffPolicyRecipe, self, needs_offline=self.base is None)


class NoiseSpaceLearner:
    """SAC's learner, and the base between it and the environment."""

    needs = Needs(prepare=True, warm=True)

    def __init__(self, settings: NoiseSpace, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings, self.sac = s, s.sac(space, seed)
        self.steered = Steered(base_policy(s.source, space, rng), s.magnitude, space.observations)
        self.modules: dict[str, nn.Module] = {**self.sac.modules, "base": self.steered.policy}
        self.optimisers, self.update = self.sac.optimisers, self.sac.update

    def prepare(self, offline: Replay, generator: torch.Generator) -> None:
        """Behaviour cloning, unless the base came from a folder."""
        self.settings.fit(self.steered.policy, offline, generator)

    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        drawn = explore or not self.settings.deterministic_eval
        u = self.sac.act(observation, generator, explore=drawn).executed
        return Acted(self.steered(observation, u), u)

    def warm(self, observation: Tensor, generator: torch.Generator) -> Acted:
        """The base, its noise clipped to the box."""
        w = normal(observation, self.steered.policy.actions, generator)
        u = (w / self.settings.magnitude).clamp(-1, 1)
        return Acted(self.steered(observation, u), u)
