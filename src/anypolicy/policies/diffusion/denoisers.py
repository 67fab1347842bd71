"""Diffusion models as policies: from a condition and noise to a picture (or a point), by a network that is trained.

Methods know a model by the protocol `DiffusionModel`. Its frozen copies are sets of weights (`copied`), used by passing
them as `weights`: one module serves the policy and all its references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from anypolicy.data.readers import check_sizes, load_weights, read_tensors
from anypolicy.errors import InputError, check_values
from anypolicy.parts.denoising import Prediction, denoising_error, noised
from anypolicy.parts.diffusion import ddpm_mean
from anypolicy.parts.noise import indices, normal
from anypolicy.policies.control.generative import Denoiser
from anypolicy.runs.seeds import generator as named
from anypolicy.runs.strict_json import json_text

Weights = Mapping[str, Tensor]
Label = int | str
"""What a sample is to be of: a class, or a prompt."""


class DiffusionModel(Protocol):
    """`kept` is ᾱ_t for every t of training, where the model computes; `shape` that of one sample while it is diffused
    (of latents, where the model has an autoencoder), `micro` the number of samples in one pass of the network."""

    module: nn.Module
    kept: Float[Tensor, " times"]
    prediction: Prediction
    shape: tuple[int, ...]
    micro: int

    def to(self, device: torch.device) -> None:
        """Compute there from now on; samples come from the processor, and noise is drawn there."""
        ...

    def condition(self, labels: Sequence[Label]) -> Tensor:
        """One row for every label, as `predict` takes it."""
        ...

    def predict(self, x: Tensor, t: Tensor, condition: Tensor, weights: Weights | None = None) -> Tensor:
        """The network's output at x_t, of the module or of other weights for it."""
        ...

    def sample(self, condition: Tensor, generator: torch.Generator, weights: Weights | None = None) -> Tensor:
        """A whole reverse process for every row of the condition, without gradient."""
        ...

    def encode(self, samples: Tensor) -> Tensor:
        """From pictures in [0, 1] to what is diffused."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`."""
        ...

    def save(self, folder: Path) -> None: ...


def copied(module: nn.Module) -> dict[str, Tensor]:
    """A frozen copy of what is trained of a module."""
    return {k: p.detach().clone() for k, p in module.named_parameters() if p.requires_grad}


def called(module: nn.Module, weights: Weights | None, *inputs: Any, **named_inputs: Any) -> Any:
    """module(…), with other weights if there are any."""
    if weights is None:
        return module(*inputs, **named_inputs)
    return functional_call(module, dict(weights), inputs, named_inputs)


def error_of(
    model: DiffusionModel, x0: Tensor, noise: Tensor, t: Int[Tensor, " batch"], condition: Tensor,
    weights: Weights | None = None,
) -> Float[Tensor, " batch"]:  # fmt: skip
    """m(x₀) of every sample with the given noise and times."""
    x, target = noised(x0, noise, model.kept[t], model.prediction)
    return denoising_error(model.predict(x, t, condition, weights), target)


def pair_errors(
    model: DiffusionModel, winner: Tensor, loser: Tensor, noise: Tensor, t: Tensor, condition: Tensor,
    weights: Weights | None = None,
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:  # fmt: skip
    """m of winners and of losers in one pass: the two of a pair share condition, noise and time."""
    x0, noises, times = torch.cat([winner, loser]), torch.cat([noise, noise]), torch.cat([t, t])
    first, second = error_of(model, x0, noises, times, torch.cat([condition, condition]), weights).chunk(2)
    return first, second


def drawn(model: DiffusionModel, n: int, generator: torch.Generator) -> tuple[Tensor, Int[Tensor, " n"]]:
    """Noise and a uniform time for n samples."""
    noise = normal((n, *model.shape), generator, model.kept.device)
    return noise, indices(len(model.kept), (n,), generator, model.kept.device)


@torch.no_grad()
def samples_of(
    model: DiffusionModel, labels: Sequence[Label], generator: torch.Generator, weights: Weights | None = None
) -> Tensor:
    """Decoded samples for labels, `micro` at a time, on the processor."""
    parts = [labels[i : i + model.micro] for i in range(0, len(labels), model.micro)]
    made = [model.decode(model.sample(model.condition(part), generator, weights)) for part in parts]
    return torch.cat(made).cpu()


def pretrain(
    model: DiffusionModel, draw: Callable[[torch.Generator], tuple[Tensor, Sequence[Label]]], updates: int, lr: float,
    seed: int, tick: Callable[[str], None] = lambda _: None,
) -> None:  # fmt: skip
    """Fit a model from scratch to what `draw` gives: pictures in [0, 1] (or points) and their labels; `tick` is called
    after every tenth of the updates."""
    optimiser = torch.optim.Adam(model.module.parameters(), lr=lr)
    for step in range(updates):
        rng = named(seed, "pretrain", step)
        samples, labels = draw(rng)
        noise, t = drawn(model, len(samples), rng)
        loss = error_of(model, model.encode(samples), noise, t, model.condition(labels)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % max(updates // 10, 1) == 0:
            tick(f"loss {float(loss.detach()):.3f}")


def class_rows(labels: Sequence[Label], classes: int) -> Int[Tensor, " labels"]:
    """Classes as a tensor."""
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < classes:
            raise InputError("label", label, f"this model makes the classes 0 to {classes - 1}")
    return torch.tensor(labels)


class PointDiffusion:
    """Points of the plane by the perceptron that denoises actions of controllers: `classes` conditions, T steps with
    β linear from `low` to `high`, sampled by DDPM with variance β_t in all T steps."""

    prediction: Prediction = "epsilon"

    def __init__(
        self, seed: int, *, classes: int = 1, dimensions: int = 2, hidden: Sequence[int] = (96, 96, 96),
        steps: int = 20, low: float = 1e-3, high: float = 0.4,
    ):  # fmt: skip
        self.config = {"classes": classes, "dimensions": dimensions, "hidden": list(hidden), "steps": steps,
                       "low": low, "high": high}  # fmt: skip
        self.classes, self.shape, self.micro = classes, (dimensions,), 1 << 20
        self.module: nn.Module = Denoiser(classes - 1, dimensions, hidden, named(seed, "weights"), "ddim")
        self.betas = torch.linspace(low, high, steps)
        self.kept = (1 - self.betas).cumprod(0)

    def to(self, device: torch.device) -> None:
        self.module.to(device)
        self.betas, self.kept = self.betas.to(device), self.kept.to(device)

    def condition(self, labels: Sequence[Label]) -> Tensor:
        return torch.eye(self.classes)[class_rows(labels, self.classes)][:, 1:].to(self.kept.device)

    def predict(self, x: Tensor, t: Tensor, condition: Tensor, weights: Weights | None = None) -> Tensor:
        return called(self.module, weights, condition, x, t[:, None].float())

    @torch.no_grad()
    def sample(self, condition: Tensor, generator: torch.Generator, weights: Weights | None = None) -> Tensor:
        n, device = len(condition), self.kept.device
        x = normal((n, *self.shape), generator, device)
        for k in reversed(range(len(self.kept))):
            x = ddpm_mean(
                x, self.predict(x, torch.full((n,), k, device=device), condition, weights), self.betas[k], self.kept[k]
            )  # fmt: skip
            if k > 0:
                x = x + self.betas[k].sqrt() * normal((n, *self.shape), generator, device)
        return x

    def encode(self, samples: Tensor) -> Tensor:
        return samples.to(self.kept.device)

    def decode(self, x: Tensor) -> Tensor:
        return x

    def save(self, folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in self.module.state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json_text({"type": "diffusion-model", "kind": "points", **self.config}))

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any]) -> PointDiffusion:
        given = {k: v for k, v in config.items() if k not in ("type", "kind")}
        kinds: dict[str, Any] = dict.fromkeys(("classes", "dimensions", "steps"), int)
        kinds |= {"hidden": tuple[int, ...], "low": float, "high": float}
        check_values(kinds, given, "policy.")
        if given.keys() != kinds.keys():
            raise InputError("policy", str(folder), f"its config.json must have {', '.join(kinds)} and nothing else")
        tensors = read_tensors(folder / "model.safetensors", "policy")
        hidden = {f"hidden[{i}]": n for i, n in enumerate(given["hidden"])}
        check_sizes(folder, {k: given[k] for k in ("classes", "dimensions")} | hidden, tensors)
        if not 0 <= given["low"] <= given["high"] < 1 or not 0 < given["steps"] <= 100_000:
            raise InputError("policy", str(folder), "the steps and β (from 0 to below 1) of its config.json are wrong")
        model = cls(0, **given)
        load_weights(model.module, tensors, "policy", folder)
        return model


def pieces(n: int, size: int) -> Iterator[slice]:
    """0 … n in slices of at most `size`."""
    return (slice(i, i + size) for i in range(0, n, size))


def encoded(model: DiffusionModel, samples: Tensor) -> Tensor:
    """What is diffused, `micro` samples at a time."""
    return torch.cat([model.encode(samples[p]) for p in pieces(len(samples), model.micro)])


def sampled(model: DiffusionModel, condition: Tensor, rng: torch.Generator, weights: Weights | None = None) -> Tensor:
    """A sample of every condition, `micro` at a time."""
    return torch.cat([model.sample(condition[p], rng, weights) for p in pieces(len(condition), model.micro)])
