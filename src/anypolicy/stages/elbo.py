"""Monte-Carlo samples of the evidence lower bound of a batch's tokens, one forward pass each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anypolicy.data.batch import Batch
from anypolicy.errors import InputError
from anypolicy.parts.elbo import MaskDraw, elbo_sample, random_mask
from anypolicy.policies.language.base import Policy, PredictsMasked
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import World


def denoiser(policy: Policy) -> PredictsMasked:
    """The policy, if it predicts masked tokens."""
    if isinstance(policy, PredictsMasked):
        return policy
    raise InputError(
        "policy", type(policy).__name__,
        "the loss needs a masked-diffusion policy: use --policy masked-diffusion:… or a task that brings one",
    )  # fmt: skip


def elbo_samples(
    policy: Policy, batch: Batch, tokens: Bool[Tensor, "rows tokens"], temperature: float, samples: int, draw: MaskDraw
) -> Iterator[Float[Tensor, " rows"]]:
    """ℓ(y_t(j), t(j)) for j = 1 … samples, computed one after the other when asked for.

    Masks come from each row's own seed and the row's `tokens` alone: the same seeds give the same masks for any
    weights, padding, order and micro-batch. All other tokens of a row are seen.
    """
    assert batch.row_seed is not None
    rngs = [torch.Generator().manual_seed(seed) for seed in batch.row_seed.tolist()]
    count = tokens.sum(1)
    for _ in range(samples):
        drawn = [torch.rand(n + 1, generator=rng, dtype=torch.float64) for n, rng in zip(count.tolist(), rngs)]
        uniform = torch.zeros(tokens.shape, dtype=torch.float64)
        uniform[tokens] = torch.cat([x[1:] for x in drawn])
        masked, weight = random_mask(uniform, torch.stack([x[0] for x in drawn]), tokens, draw)
        yield elbo_sample(denoiser(policy).score_masked(batch, masked, temperature), masked, weight)


def row_advantage(batch: Batch) -> Float[Tensor, " rows"]:
    """One advantage a row: the mean over its trained tokens, on which an advantage of whole responses is the same."""
    assert batch.advantage is not None
    return torch.where(batch.mask, batch.advantage, 0).sum(1) / batch.mask.sum(1).clamp(min=1)


@torch.no_grad()
def elbo_distances(d: Float[Tensor, " rows"], batch: Batch, samples: int) -> dict[str, Tensor]:
    """What a loss on ELBO differences d = ℓ_θ − ℓ_old of one mask (or their mean, `samples` = 1) logs: the ratio e^d of
    the responses, and the divergence a token."""
    share = max(batch.counted().watched, 1) * samples
    ratio, n = d.clamp(-20, 20).exp(), batch.mask.sum(1).to(d.dtype)
    return {"ratio/mean": (n * ratio).sum() / share, "ratio/max": ratio.amax(), "kl/behaviour": -d.sum() / share,
            "elbo/gap_max": d.amax()}  # fmt: skip


@dataclass(frozen=True)
class ElboLoss:
    """What losses on estimates of the lower bound of whole responses share: `samples` masks for each response, the same
    for the policy of now and for the one that began the step."""

    samples: int
    draw: MaskDraw = "count"
    needs = Needs(behaviour=False, whole_responses=True)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError("samples", self.samples, "use at least 1 mask for each response")

    def check(self, world: World) -> None:
        denoiser(world.policy)

    def active(self, batch: Batch) -> Bool[Tensor, " rows"]:
        assert batch.advantage is not None
        return (batch.mask & (batch.advantage != 0)).any(1) & (batch.weight != 0)

    def before(self, policy: Policy, batch: Batch, temperature: float) -> Float[Tensor, "rows samples"]:
        return torch.stack(list(self.estimates(policy, batch, temperature)), 1)

    def estimates(self, policy: Policy, batch: Batch, temperature: float) -> Iterator[Float[Tensor, " rows"]]:
        """ℓ of every mask, computed when asked for."""
        return elbo_samples(policy, batch, batch.mask, temperature, self.samples, self.draw)
