"""Soft actor-critics side by side: one update of several learners at once (or of one), its backward pass written out.

Everything is a batched product over learners and critics. No graph is made and buffers are kept, which is what a small
update costs beside its products. `methods.control.sac` holds the same update as the paper has it; tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.parts.perceptron import as_row
from anypolicy.parts.squashed import squashed
from anypolicy.parts.td import polyak
from anypolicy.policies.control.mlp import MLP, SquashedGaussian


class Soft(Protocol):
    """What the learners need to have: ReLU networks without normalisation, all of the same sizes."""

    settings: Any
    entropy: float
    actor: SquashedGaussian
    critics: MLP
    targets: MLP
    log_alpha: nn.Parameter
    optimisers: dict[str, Optimizer]


def can_stand(learner: Soft) -> bool:
    """Whether the written-out pass is that of this learner."""
    nets = (learner.actor.net, learner.critics)
    return learner.settings.actor_q == "min" and all(net.rectified for net in nets)


@dataclass
class Net:
    """K networks: weights (K, n, m), biases (K, 1, m), their slopes, and what a pass keeps."""

    weights: list[Tensor]
    biases: list[Tensor]
    by_weight: list[Tensor] = field(default_factory=list[Tensor])
    by_bias: list[Tensor] = field(default_factory=list[Tensor])
    hidden: list[Tensor] = field(default_factory=list[Tensor])
    slopes: list[Tensor] = field(default_factory=list[Tensor])

    def ahead(self, x: Float[Tensor, "nets batch n"]) -> Float[Tensor, "nets batch m"]:
        """Outputs; hidden layers stay in `hidden`."""
        if not self.hidden or self.hidden[0].shape[1] != x.shape[1]:
            for kept in (self.hidden, self.slopes):
                kept[:] = [x.new_empty(len(w), x.shape[1], w.shape[2]) for w in self.weights[:-1]]
        for w, b, h in zip(self.weights[:-1], self.biases[:-1], self.hidden, strict=True):
            x = torch.baddbmm(b, x, w, out=h).relu_()
        w = self.weights[-1]
        return torch.baddbmm(self.biases[-1], x, as_row(w).mT if w.shape[2] == 1 else w)

    def behind(self, x: Float[Tensor, "nets batch n"], slope: Float[Tensor, "nets batch m"]) -> None:
        """Slopes of all weights and biases, from those of the outputs of `ahead(x)`."""
        for i in range(len(self.weights) - 1, -1, -1):
            w, seen = self.weights[i], self.hidden[i - 1] if i else x
            thin = w.shape[2] == 1
            if thin:
                torch.bmm(as_row(slope), seen, out=as_row(self.by_weight[i]))
            else:
                torch.bmm(seen.mT, slope, out=self.by_weight[i])
            torch.sum(slope, 1, keepdim=True, out=self.by_bias[i])
            if i:
                into = self.slopes[i - 1]
                torch.mul(slope, as_row(w), out=into) if thin else torch.bmm(slope, w.mT, out=into)
                slope = mask(into, seen)

    def by_input(
        self, net: Int[Tensor, " rows"], row: Int[Tensor, " rows"], start: int
    ) -> Float[Tensor, "rows columns"]:
        """∂output/∂input, from column `start` on, of row `row` of network `net` (in rising order): every row is that of
        one network, so it costs one network's products."""
        counts = torch.bincount(net, minlength=len(self.weights[0])).tolist()
        at = self.weights[-1].flatten(1)[net]
        for i in range(len(self.weights) - 2, -1, -1):
            at = mask(at, self.hidden[i][net, row])
            w = self.weights[i] if i else self.weights[0][:, start:]
            into = at.new_empty(len(at), w.shape[1])
            for k, (a, b) in enumerate(zip(at.split(counts), into.split(counts), strict=True)):
                torch.mm(a, w[k].mT, out=b)
            at = into
        return at


def mask(slope: Tensor, output: Tensor) -> Tensor:
    """The slope before a ReLU with this output, in place."""
    return torch.ops.aten.threshold_backward.grad_input(slope, output, 0, grad_input=slope)


class SideBySide:
    """S learners whose parameters lie in common tensors (S, …) from now on: they act and are saved one by one as
    before, and are updated here together. One learner keeps its own optimisers, several share new ones."""

    def __init__(self, learners: Sequence[Soft]):
        first = learners[0]
        if not all(map(can_stand, learners)):
            allowed = "several learners at once need ReLU without normalisation and actor_q=min"
            raise InputError("learner", "layer_norm or actor_q", allowed)
        self.learners, self.settings, self.seeds = learners, first.settings, len(learners)
        self.entropy, self.ensemble = first.entropy, first.critics.stack or 1
        self.bounds, self.where = first.actor.bounds, first.log_alpha.data_ptr()
        groups: dict[str, Callable[[Soft], list[nn.Parameter]]] = {
            "actor": lambda x: [*x.actor.net.weights, *x.actor.net.biases],
            "critic": lambda x: [*x.critics.weights, *x.critics.biases],
            "alpha": lambda x: [x.log_alpha],
        }
        self.optimisers: dict[str, Optimizer] = {}
        made: dict[str, list[Tensor]] = {}
        self.owners: list[tuple[nn.Parameter, Tensor]] = []
        for name, of in groups.items():
            stacks = [common(same) for same in zip(*map(of, learners), strict=True)]
            slopes = [torch.zeros_like(x) for x in stacks]
            optimiser = first.optimisers[f"{name}_optimiser"]
            owners = of(first) if self.seeds == 1 else [nn.Parameter(x) for x in stacks]
            self.owners += [(p, g[0] if self.seeds == 1 else g) for p, g in zip(owners, slopes, strict=True)]
            lr = optimiser.param_groups[0]["lr"]
            self.optimisers[name] = optimiser if self.seeds == 1 else torch.optim.Adam(owners, lr=lr, fused=True)
            made[name], made[f"{name} slopes"] = stacks, slopes
        made["target"] = [common(same) for same in zip(*([*x.targets.parameters()] for x in learners), strict=True)]
        self.actor, self.critics, self.targets = (self.net(made, k) for k in ("actor", "critic", "target"))
        self.moving = made["target"], made["critic"]
        [self.log_alpha], [self.by_alpha] = made["alpha"], made["alpha slopes"]

    def net(self, made: dict[str, list[Tensor]], name: str) -> Net:
        """The common tensors of a network as those of K = S or S · E networks."""
        nets, layers = self.seeds * (1 if name == "actor" else self.ensemble), len(made[name]) // 2

        def views(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            return ([x.view(nets, *x.shape[-2:]) for x in tensors[:layers]],
                    [x.view(nets, 1, x.shape[-1]) for x in tensors[layers:]])  # fmt: skip

        slopes = views(made[f"{name} slopes"]) if f"{name} slopes" in made else ([], [])
        return Net(*views(made[name]), *slopes)

    def every(self, observation: Tensor, action: Tensor) -> Tensor:
        """(s, a) of each seed (S, batch, …) for each of its critics."""
        x = torch.cat([observation, action], -1)
        return x[:, None].expand(-1, self.ensemble, -1, -1).reshape(-1, *x.shape[1:])

    def step(self, name: str) -> None:
        """One step of an optimiser on the slopes found."""
        for p, slope in self.owners:
            p.grad = slope
        self.optimisers[name].step()

    @torch.no_grad()
    def act(
        self, observation: Float[Tensor, "seeds batch n"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "seeds batch actions"]:
        """Sampled actions of every learner."""
        mean, log_std = self.actor.ahead(observation).chunk(2, -1)
        return squashed(mean, log_std.clamp(*self.bounds), noise(mean, generators))[0]

    @torch.no_grad()
    def update(self, batches: Sequence[Transitions], generators: Sequence[torch.Generator]) -> list[dict[str, float]]:
        """Critics, actor, temperature, targets, of every learner on its own batch."""
        batch = batches[0].each(lambda x: x[None]) if self.seeds == 1 else stacked(batches)
        alpha = self.log_alpha.exp()[:, None]
        loss_q, q = self.critics_step(batch, alpha, generators)
        loss_actor, logp = self.actor_step(batch, alpha, generators)
        if self.settings.learn_alpha:
            slope = -(logp.mean(1) + self.entropy)
            self.by_alpha.copy_(slope if self.settings.alpha_form == "log_alpha" else slope * alpha[:, 0])
            self.step("alpha")
        polyak(*self.moving, self.settings.tau)
        numbers = torch.stack([loss_q, loss_actor, alpha[:, 0], -logp.mean(1), q.mean((1, 2))], 1).tolist()
        names = ("loss/critic", "loss/actor", "alpha", "entropy", "q/mean")
        return [dict(zip(names, row, strict=True)) for row in numbers]

    def critics_step(
        self, t: Transitions, alpha: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Towards y = r + γ(1 − d)(min Q̄ − α ln π)."""
        mean, log_std = self.actor.ahead(t.next_observation).chunk(2, -1)
        action, logp = squashed(mean, log_std.clamp(*self.bounds), noise(mean, generators))
        shape = (self.seeds, self.ensemble, -1)
        low = self.targets.ahead(self.every(t.next_observation, action)).view(shape).amin(1)
        y = t.reward + t.continues * (low - alpha * logp)
        x = self.every(t.observation, t.action)
        q = self.critics.ahead(x).view(shape)
        gap = q - y[:, None]
        self.critics.behind(x, (gap / gap.shape[-1]).view(-1, gap.shape[-1], 1))
        self.step("critic")
        return 0.5 * gap.square().mean(-1).sum(1), q

    def actor_step(self, t: Transitions, alpha: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Down α ln π(a|s) − min Q(s, a) with a = tanh(u), u = m + σε: ∂ln π/∂u = 2a, ∂ln π/∂ln σ = 2aσε − 1."""
        mean, raw = self.actor.ahead(t.observation).chunk(2, -1)
        log_std, eps = raw.clamp(*self.bounds), noise(mean, generators)
        action, logp = squashed(mean, log_std, eps)
        q = self.critics.ahead(self.every(t.observation, action)).view(self.seeds, self.ensemble, -1)
        low, least = q.min(1)
        batch = low.shape[1]
        first = torch.arange(self.seeds, device=least.device)[:, None] * self.ensemble
        net, order = (first + least).flatten().sort(stable=True)
        by_action = torch.empty_like(action)
        by_action.flatten(0, 1)[order] = self.critics.by_input(net, order % batch, t.observation.shape[-1])
        weight = alpha[..., None] / batch
        by_u = 2 * weight * action - by_action * (1 - action.square()) / batch
        inside = (raw >= self.bounds[0]) & (raw <= self.bounds[1])
        by_log_std = (by_u * log_std.exp() * eps - weight) * inside
        self.actor.behind(t.observation, torch.cat([by_u, by_log_std], -1))
        self.step("actor")
        return (alpha * logp - low).mean(1), logp


def common(same: Sequence[Tensor]) -> Tensor:
    """Tensors of the learners in one (S, …), in which they live from now on."""
    if len(same) == 1:
        return same[0].data[None]
    out = torch.stack([x.data for x in same])
    for x, mine in zip(same, out, strict=True):
        x.data = mine
    return out


def stacked(batches: Sequence[Transitions]) -> Transitions:
    """Every field (S, batch, …)."""
    return Transitions(*(torch.stack([getattr(b, n) for b in batches]) for n in Transitions.__dataclass_fields__))


def noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal numbers, those of each seed from its own generator."""
    draw = [torch.randn(like.shape[1:], generator=g, dtype=like.dtype) for g in generators]
    return (draw[0][None] if len(draw) == 1 else torch.stack(draw)).to(like.device)
