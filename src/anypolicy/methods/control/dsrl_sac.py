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
  chunk             rewards inside are discounted, γᵏ after k steps | summed, γ once (authors)
  evaluation        draws from the actor | `deterministic_eval`: u = tanh(mean)
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anypolicy.catalogue import Card, method
from anypolicy.data.replay import Replay
from anypolicy.loops.control import Acted, OffPolicyRecipe
from anypolicy.methods.control.bc import base_policy
from anypolicy.methods.control.sac import SoftActorCritic
from anypolicy.policies.control.cloned import Cloned
from anypolicy.policies.control.generative import Kind, normal
from anypolicy.policies.control.steered import Steered, check_steering
from anypolicy.tasks.control.environments import Space


@dataclass(frozen=True)
class NoiseSpace:
    """The settings of a learner; called with spaces and a seed it makes one."""

    sac: SoftActorCritic
    base: str | Cloned
    magnitude: float = 1.5
    deterministic_eval: bool = False

    def __call__(self, space: Space, seed: int) -> "NoiseSpaceLearner":
        return NoiseSpaceLearner(self, space, seed)


class NoiseSpaceLearner:
    """SAC's learner, and the base between it and the environment."""

    def __init__(self, settings: NoiseSpace, space: Space, seed: int):
        s, rng = settings, torch.Generator().manual_seed(seed)
        self.settings, self.sac = s, s.sac(space, seed)
        self.steered = Steered(base_policy(s.base, space, rng), s.magnitude, space.observations)
        self.modules: dict[str, nn.Module] = {**self.sac.modules, "base": self.steered.policy}
        self.optimisers, self.update = self.sac.optimisers, self.sac.update

    def prepare(self, offline: Replay, generator: torch.Generator) -> None:
        """Behaviour cloning, unless the base came from a folder."""
        if isinstance(self.settings.base, Cloned):
            self.settings.base.fit(self.steered.policy, offline, generator)

    def act(self, observation: Tensor, generator: torch.Generator, *, explore: bool) -> Acted:
        drawn = explore or not self.settings.deterministic_eval
        u = self.sac.act(observation, generator, explore=drawn).executed
        return Acted(self.steered(observation, u), u)

    def warm(self, observation: Tensor, generator: torch.Generator) -> Acted:
        """The base, its noise clipped to the box."""
        w = normal(observation, self.steered.policy.actions, generator)
        u = (w / self.settings.magnitude).clamp(-1, 1)
        return Acted(self.steered(observation, u), u)


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
    ),
    trains="controller",
)
def dsrl_sac(
    magnitude: float = 1.5, hidden: tuple[int, ...] = (128, 128, 128), lr: float = 3e-4, discount: float = 0.99,
    tau: float = 0.005, batch: int = 256, updates: int = 20, target_entropy: float | None = 0.0, alpha: float = 1.0,
    learn_alpha: bool = True, warmup: int | None = None, capacity: int = 1_000_000, deterministic_eval: bool = False,
    base: str | None = None, base_policy: Kind = "flow", base_hidden: tuple[int, ...] = (256, 256, 256),
    base_updates: int = 5000, base_lr: float = 3e-4, denoising_steps: int = 10, chunk: int = 1,
) -> OffPolicyRecipe:  # fmt: skip
    """A box of ±1.5, twenty updates for every step (every `chunk` of actions, decided at once), entropy target 0; a
    flow cloned from the demonstrations, or the policy/ folder of a run as `base`."""
    check_steering(base_policy, magnitude)
    sac = SoftActorCritic(hidden, lr, lr, tau, target_entropy, alpha, learn_alpha, layer_norm=True)
    cloned = Cloned(base_policy, base_hidden, base_updates, base_lr, denoising_steps)
    learner = NoiseSpace(sac, base or cloned, magnitude, deterministic_eval)
    return OffPolicyRecipe(learner, discount, batch, updates, warmup, capacity, needs_offline=base is None,
                           chunk=chunk)  # fmt: skip
