"""SePPO: preferred samples alone; an earlier checkpoint makes the other one, and may turn out to be right.

Paper: arXiv 2410.05255 (2024; its second version is named SSPO).
Idea: draw an earlier checkpoint as reference, let it make the rival of a preferred sample, and push the rival down only
where the model already denoises the preferred sample better than that checkpoint (anchor-based adaptive flipper, AAF).
Changes: who makes the losers (an earlier checkpoint, drawn uniformly); the sign of their term, one for every sample.
Silent: β, the learning rate, guidance while training, and whether a reference is drawn for every update or for every
stage. β and the rate are those of Diffusion-DPO, without its warm-up (500 updates, of 210 that the paper makes);
guidance is the model's own; a reference is drawn for every update unless `ref_every` says otherwise.
Differs: the authors published no training code. The full text was not at hand: this follows quotations of equations and
tables of the first version. The direction of the sign follows from the loss quoted for s = −1, −log σ(−β(σ̂_w² + σ̂_r²)).
  rivals      made anew in every update by the checkpoint drawn for it, never kept: m_ref is always of who made them
  s = 0       where both denoise the preferred sample equally well (every first update): the rival counts for nothing
  ref_strategy "initial" is what DITTO does, "latest" with aaf "off" is SPIN-Diffusion
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.loops.diffusion import Batch, DiffusionRecipe, Pool, adamw, descend, mean_of
from anypolicy.parts.preference import diffusion_margin, sigmoid
from anypolicy.policies.diffusion.denoisers import DiffusionModel, Weights, drawn, pair_errors, pieces, sampled
from anypolicy.runs.seeds import generator

Flip = Literal["sign", "indicator", "off"]


def flipper(
    winner: Float[Tensor, " pairs"], reference_winner: Float[Tensor, " pairs"], kind: Flip
) -> Float[Tensor, " pairs"]:
    """s = sign(m_ref(x_w) − m_θ(x_w)), or 1 where that is above 0 and else 0 ("indicator"), or 1 ("off"). It carries no
    gradient, and is of the same noise and time as the loss."""
    gain = (reference_winner - winner).detach()
    if gain.isnan().any():
        raise InputError("denoising error", "NaN", "a sign cannot be taken of it: lower the learning rate")
    return {"sign": gain.sign(), "indicator": (gain > 0).to(gain.dtype), "off": torch.ones_like(gain)}[kind]


def flipped_margin(
    winner: Float[Tensor, " pairs"], rival: Float[Tensor, " pairs"], reference_winner: Float[Tensor, " pairs"],
    reference_rival: Float[Tensor, " pairs"], beta: float, sign: Float[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:  # fmt: skip
    """−½β[(m_θ(x_w) − m_ref(x_w)) − s (m_θ(x_r) − m_ref(x_r))]: Diffusion-DPO's with the rival's terms times s."""
    return diffusion_margin(winner, sign * rival, reference_winner, sign * reference_rival, beta)


@dataclass(frozen=True)
class SemiPolicy:
    """The settings of a learner; called with a model and a seed it makes one."""

    beta: float
    stage: int
    aaf: Flip
    ref_strategy: Literal["random", "initial", "latest"]
    ref_every: Literal["update", "stage"]
    pool: int | None
    lr: float
    warmup: int
    weight_decay: float
    clip: float

    def __call__(self, model: DiffusionModel, seed: int) -> "SemiPolicyLearner":
        return SemiPolicyLearner(self, model, seed)


class SemiPolicyLearner:
    """A network, its optimiser, and its earlier checkpoints: all of them, the first, or the last."""

    def __init__(self, settings: SemiPolicy, model: DiffusionModel, seed: int):
        self.settings, self.model, self.seed = settings, model, seed
        self.modules = {"network": model.module}
        self.optimisers = {"optimiser": adamw(model.module, settings.lr, settings.weight_decay)}
        self.pools = {"checkpoints": Pool(settings.pool if settings.ref_strategy == "random" else 1)}
        self.pools["checkpoints"].add(model.module)

    def update(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, float]:
        """Draw the reference, let it make the rivals, learn; a checkpoint at the end of a stage."""
        s, pool = self.settings, self.pools["checkpoints"]
        k = pool.draw(generator(self.seed, "reference", step if s.ref_every == "update" else step // s.stage))
        rivals = sampled(self.model, batch.condition, rng, pool[k])
        log = self.learn(batch, rivals, pool[k], step, rng)
        if (step + 1) % s.stage == 0 and s.ref_strategy != "initial":
            pool.add(self.model.module)
        return log | {"reference": float(k)}

    def learn(
        self, batch: Batch, rivals: Tensor, reference: Weights, step: int, rng: torch.Generator
    ) -> dict[str, float]:
        """L = −log σ(−½β[(m_θ(x_w) − m_ref(x_w)) − s (m_θ(x_r) − m_ref(x_r))]), mean over the batch."""
        s, model, n = self.settings, self.model, len(batch.winner)
        noise, t = drawn(model, n, rng)
        names = ("loss/preference", "pairs/margin", "error/winner", "error/loser", "sign")
        seen = {name: list[Tensor]() for name in names}
        behind = list[Tensor]()
        for p in pieces(n, model.micro):
            pairs = (batch.winner[p], rivals[p], noise[p], t[p], batch.condition[p])
            with torch.no_grad():
                before = pair_errors(model, *pairs, reference)
            errors = pair_errors(model, *pairs)
            sign = flipper(errors[0], before[0], s.aaf)
            margin = flipped_margin(*errors, *before, s.beta, sign)
            loss = sigmoid(margin, 1.0)
            (loss.sum() / n).backward()
            for name, value in zip(seen, (loss, margin, *errors, sign), strict=True):
                seen[name].append(value.detach())
            behind.append((errors[0].detach() > before[0]).float())
        log = {name: mean_of(values) for name, values in seen.items()} | {"behind": mean_of(behind)}
        return log | descend(self.optimisers["optimiser"], step, s.warmup, s.clip)


@method(
    Card(
        "SePPO: Semi-Policy Preference Optimization for Diffusion Alignment",
        "arXiv 2410.05255",
        2024,
        "diffusion",
        "an earlier checkpoint, drawn at random, makes the losers, which are pulled up where it is still ahead",
        ("loss", "data"),
        "any diffusion model and preferred samples alone",
        "without the flipper it falls below fine-tuning; references drawn at random beat the first and the last",
        example="anypolicy train seppo --task ring8 --steps 100",
        look_at="eval/preferred: 0.17 to 0.42 with seed 0",
        metrics={
            "sign": "mean of s over the batch: 1 pushes rivals down, −1 pulls them up, 0 leaves them out",
            "behind": "share of the batch on which the reference denoises the preferred sample better than the model; "
            "it rises when training overshoots",
            "reference": "index of the checkpoint drawn as reference, mean over updates (0 is the oldest kept)",
        },
    ),
)
def seppo(
    beta: knobs.Beta = 5000.0,
    stage: Annotated[int, Knob("steps after which rivals come from newer weights", least=1)] = 30,
    aaf: Annotated[Flip, Knob("what becomes of a rival that is better than the reference")] = "sign",
    ref_strategy: Annotated[
        Literal["random", "initial", "latest"], Knob("which earlier weights make the rival")
    ] = "random",
    ref_every: Annotated[Literal["update", "stage"], Knob("how often a rival's weights are chosen")] = "update",
    pool: Annotated[int | None, Knob("earlier weights that are kept; none: all", least=1)] = None,
    batch: Annotated[int, Knob("samples, or pairs, in a step", least=1)] = 2048,
    lr: knobs.LearningRate = 2.05e-5,
    warmup: Annotated[int, Knob("steps over which the learning rate rises", least=0)] = 0,
    weight_decay: Annotated[float, Knob("decoupled decay of the weights", least=0)] = 0.01,
    clip: Annotated[float, Knob("largest norm of a gradient", above=0, infinite=True)] = 1.0,
) -> DiffusionRecipe:
    """A checkpoint every 30 updates (the paper makes 7 such stages), all of them kept unless `pool` says how many."""
    if stage < 1:
        raise InputError("seppo.stage", stage, "a checkpoint comes after at least 1 update")
    settings = SemiPolicy(beta, stage, aaf, ref_strategy, ref_every, pool, lr, warmup, weight_decay, clip)
    return DiffusionRecipe(settings, batch)
