"""Diffusion models of the diffusers library: a small class-conditional UNet, or a Stable Diffusion pipeline."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anypolicy.data.readers import first_line, json_object
from anypolicy.errors import InputError
from anypolicy.parts.denoising import Prediction
from anypolicy.parts.noise import normal
from anypolicy.policies.diffusion.denoisers import DiffusionModel, Label, PointDiffusion, Weights, called, class_rows
from anypolicy.runs.seeds import number
from anypolicy.runs.strict_json import json_text


def reverse(
    scheduler: Any, predict: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], generator: torch.Generator,
    steps: int, device: torch.device,
) -> Tensor:  # fmt: skip
    """The reverse process of a diffusers scheduler in `steps` steps, from fresh noise."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device=device)
    x = normal(shape, generator, device) * scheduler.init_noise_sigma
    more = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        out = predict(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(out, t, x, **more).prev_sample
    return x


def predicts(scheduler: Any) -> Prediction:
    """What a network under this scheduler predicts."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction") or not hasattr(scheduler, "alphas_cumprod"):
        told = f"{type(scheduler).__name__}, {kind}"
        raise InputError("policy.scheduler", told, "use a model of noise (epsilon or v_prediction) with fixed steps")
    return kind


class UNetModel:
    """A UNet2DModel with one embedding a class; pictures in [0, 1] are diffused in [−1, 1]."""

    def __init__(self, unet: Any, scheduler: Any, *, steps: int = 20):
        self.module: nn.Module = unet.eval()
        self.unet, self.scheduler, self.steps, self.micro = unet, scheduler, steps, 256
        self.classes: int = unet.config.num_class_embeds
        self.kept: Tensor = scheduler.alphas_cumprod.float()
        self.prediction: Prediction = predicts(scheduler)
        size = unet.config.sample_size
        self.shape: tuple[int, ...] = (unet.config.in_channels, size, size)

    @classmethod
    def fresh(cls, seed: int, *, size: int, channels: int, classes: int, widths: Sequence[int]) -> UNetModel:
        """Untrained: attention below full resolution, T = 1,000 with a cosine schedule, DDIM in 20 steps."""
        diffusers = library()
        depth = len(widths)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number(seed, "weights") % 2**32)
            unet = diffusers.UNet2DModel(
                sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=1,
                block_out_channels=tuple(widths), norm_num_groups=8, num_class_embeds=classes,
                down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * (depth - 1)),
                up_block_types=(*["AttnUpBlock2D"] * (depth - 1), "UpBlock2D"),
            )  # fmt: skip
        scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True)
        return cls(unet, scheduler)

    def to(self, device: torch.device) -> None:
        self.module.to(device)
        self.kept = self.kept.to(device)

    def condition(self, labels: Sequence[Label]) -> Tensor:
        return class_rows(labels, self.classes).to(self.kept.device)

    def predict(self, x: Tensor, t: Tensor, condition: Tensor, weights: Weights | None = None) -> Tensor:
        return called(self.module, weights, x, t, class_labels=condition).sample

    @torch.no_grad()
    def sample(self, condition: Tensor, generator: torch.Generator, weights: Weights | None = None) -> Tensor:
        return reverse(
            self.scheduler, lambda x, t: self.predict(x, t, condition, weights), (len(condition), *self.shape),
            generator, self.steps, self.kept.device,
        )  # fmt: skip

    def encode(self, samples: Tensor) -> Tensor:
        return 2 * samples.to(self.kept.device) - 1

    def decode(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2).clamp(0, 1)

    def save(self, folder: Path) -> None:
        self.unet.save_pretrained(folder / "unet")
        self.scheduler.save_pretrained(folder / "scheduler")
        config = {"type": "diffusion-model", "kind": "unet", "steps": self.steps}
        (folder / "config.json").write_text(json_text(config))

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any]) -> UNetModel:
        diffusers, steps = library(), config.get("steps")
        if type(steps) is not int or not 0 < steps <= 1000:
            raise InputError(
                "policy", str(folder), f"its config.json says {steps!r} steps: it is a number from 1 to 1000"
            )
        try:
            unet = diffusers.UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)
            return cls(unet, diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"), steps=steps)
        except Exception as error:  # what diffusers raises has no common type
            raise InputError("policy", str(folder), f"it cannot be loaded ({first_line(error)})") from error


class PipelineModel:
    """A text-to-image pipeline of Stable Diffusion's kind: its UNet is trained; text encoder and autoencoder stay as
    they are. Sampling is its own scheduler's, with classifier-free guidance against the empty prompt."""

    def __init__(self, pipeline: Any, *, steps: int = 50, guidance: float = 7.5):
        self.pipeline, self.scheduler = pipeline, pipeline.scheduler
        self.steps, self.guidance, self.micro = steps, guidance, 4
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.eval()
        for part in (pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        self.module: nn.Module = pipeline.unet
        self.kept: Tensor = self.scheduler.alphas_cumprod.float()
        self.prediction: Prediction = predicts(self.scheduler)
        size = pipeline.unet.config.sample_size
        self.shape: tuple[int, ...] = (pipeline.unet.config.in_channels, size, size)
        self.pixels: int = size * 2 ** (len(pipeline.vae.config.block_out_channels) - 1)

    def to(self, device: torch.device) -> None:
        self.pipeline.to(device)
        self.kept = self.kept.to(device)

    @torch.no_grad()
    def condition(self, labels: Sequence[Label]) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        ids = tokenizer(
            [str(x) for x in labels], padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        return self.pipeline.text_encoder(ids.to(self.kept.device))[0]

    def predict(self, x: Tensor, t: Tensor, condition: Tensor, weights: Weights | None = None) -> Tensor:
        return called(self.module, weights, x, t, encoder_hidden_states=condition).sample

    @torch.no_grad()
    def sample(self, condition: Tensor, generator: torch.Generator, weights: Weights | None = None) -> Tensor:
        empty = self.condition([""]).expand_as(condition)

        def guided(x: Tensor, t: Tensor) -> Tensor:
            if self.guidance == 1:
                return self.predict(x, t, condition, weights)
            both = torch.cat([empty, condition])
            without, along = self.predict(torch.cat([x, x]), torch.cat([t, t]), both, weights).chunk(2)
            return without + self.guidance * (along - without)

        return reverse(self.scheduler, guided, (len(condition), *self.shape), generator, self.steps, self.kept.device)

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.encode(2 * samples.to(self.kept.device) - 1).latent_dist.mode() * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path) -> None:
        self.pipeline.save_pretrained(folder)

    @classmethod
    def load(cls, folder: str | Path) -> PipelineModel:
        """From a folder in the format of diffusers, or a name in the Hugging Face cache or hub. Weights that are not
        safetensors are refused."""
        try:
            pipeline = library().StableDiffusionPipeline.from_pretrained(
                str(folder), torch_dtype=torch.float32, use_safetensors=True, safety_checker=None,
                requires_safety_checker=False, trust_remote_code=False,
            )  # fmt: skip
        except Exception as error:  # what diffusers raises has no common type
            told = first_line(error)
            raise InputError("policy", str(folder), f"it is no Stable Diffusion pipeline: {told}") from error
        return cls(pipeline)


def library() -> Any:
    """The module diffusers, or a clear error."""
    try:
        import diffusers
    except ImportError as error:
        raise InputError("diffusers", "not installed", "pip install 'anypolicy[diffusion]'") from error
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    return diffusers


def load_model(folder: str | Path) -> DiffusionModel:
    """A model of a run's policy/ folder, or a Stable Diffusion pipeline."""
    path = Path(folder)
    if isdir(path) and not isfile(path / "model_index.json"):
        try:
            config = json_object(path / "config.json", "policy", "give the policy/ folder of a diffusion run")
            kind = {"points": PointDiffusion, "unet": UNetModel}[config["kind"]]
        except (InputError, KeyError, TypeError) as error:
            allowed = "give the policy/ folder of a diffusion run, or a pipeline folder with model_index.json"
            raise InputError("policy", str(folder), allowed) from error
        return kind.load(path, config)
    needed = "its model_index.json must name a StableDiffusionPipeline"
    if isdir(path) and json_object(path / "model_index.json", "policy", needed).get("_class_name") != (
        "StableDiffusionPipeline"
    ):
        raise InputError("policy", str(folder), needed)
    return PipelineModel.load(folder)
