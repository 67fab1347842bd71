"""One string, one policy: Hugging Face id or folder, GGUF file, `smollm2-135m`, or a small transformer; the same for
masked-diffusion models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoProcessor,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedModel,
)

from anypolicy.data.readers import first_line, json_object
from anypolicy.errors import RAISED, InputError, check_values
from anypolicy.parts.noise import CPU
from anypolicy.policies.language.base import Policy
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.policies.language.gguf import from_gguf, tried
from anypolicy.policies.language.masked_diffusion import MaskedDiffusionLM, small_denoiser
from anypolicy.policies.language.picture_reader import PictureReader
from anypolicy.policies.language.smollm2 import smollm2_folder
from anypolicy.policies.language.table import TablePolicy
from anypolicy.policies.language.text import quiet_transformers
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.policies.language.vision_lm import VisionLM
from anypolicy.runs.objects import given, is_object
from anypolicy.runs.trust import allow, enter_model

ALIASES: dict[str, Callable[[], Path]] = {"smollm2-135m": smollm2_folder}
MOST = 2 * 10**9
"""Weights of a model from scratch: this is to try things."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def load_policy(
    spec: str, *, dtype: Literal["float32", "bfloat16", "float64"] = "float32", lora_rank: int = 0, seed: int = 0,
    trust: bool = False, device: torch.device = CPU,
) -> Policy:  # fmt: skip
    """Load a policy onto a device.

    `spec`: a Hugging Face id, a folder with config.json and weights (a run's own `policy/` is one), a .gguf file, an
    alias, or
    `transformer:layers=2,width=64,heads=4` (bytes as tokens, weights from `seed`). `lora_rank` above 0 trains low-rank
    adapters through peft and freezes the rest. `masked-diffusion:SOURCE` takes an id or a folder of a bidirectional
    model, `masked-diffusion:layers=2,width=64,heads=4` makes one. A folder of a vision-language model is known by its
    config; of an id write `vlm:OWNER/NAME`; `vlm:layers=2,width=64,heads=4,image=32,patch=8` makes one. Classes of a
    model's own (`,own-code=true`) that the user has not run before are refused without `trust`.
    """
    check_values({"policy": str, "lora_rank": int}, {"policy": spec, "lora_rank": lora_rank})
    if trust:
        allow({"policy": spec})
    quiet_transformers()
    if is_object(spec):
        return of_object(spec, given("policy", spec), dtype, lora_rank, seed, device)
    name, _, arguments = spec.partition(":")
    if name == "masked-diffusion" or holds(Path(spec), "ForMaskedLM"):
        if lora_rank:
            raise InputError("lora_rank", lora_rank, "a masked-diffusion policy is trained whole: use 0")
        return masked_diffusion(arguments if name == "masked-diffusion" else spec, dtype, seed, device)
    if name == "transformer":
        if lora_rank:
            raise InputError("lora_rank", lora_rank, "a transformer from scratch has nothing to adapt: use 0")
        policy = from_scratch(arguments, seed)
        policy.module.to(getattr(torch, dtype))
        return placed(policy, device)
    if name == "vlm" and (not arguments or "=" in arguments):
        if lora_rank:
            raise InputError("lora_rank", lora_rank, "a model from scratch has nothing to adapt: use 0")
        small = small_vision(arguments, seed)
        small.module.to(device, getattr(torch, dtype))
        return small
    path = ALIASES[spec]() if spec in ALIASES else Path(spec)
    if isfile(path / "table.safetensors"):
        return placed(TablePolicy.load(path), device)
    if isfile(path / "picture_reader.safetensors"):
        return placed(PictureReader.load(path), device)
    if name == "vlm" or holds(path, "ForConditionalGeneration", "vision_config"):
        policy: CausalLM | VisionLM = vision_from_pretrained(arguments if name == "vlm" else spec, dtype, device)
    elif path.suffix == ".gguf":
        policy = placed(from_gguf(path, dtype), device)
    else:
        policy = from_pretrained(str(path), dtype, device)
    policy.module.requires_grad_(True)
    if lora_rank:
        adapt(policy, lora_rank, seed)
    return policy


P = TypeVar("P", bound=Policy)


def placed(policy: P, device: torch.device) -> P:
    """The policy with its weights on a device, and the passes that are fastest there."""
    if policy.device != device:
        policy.module.to(device)
        if isinstance(policy, CausalLM):
            policy.prepare()
    return policy


def of_object(name: str, value: Any, dtype: str, rank: int, seed: int, device: torch.device) -> Policy:
    """A policy of a copy of (model, tokenizer), or of (model, processor) where it sees; or a copy of a policy."""
    pair: Any = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)  # type: ignore
    model, words = pair
    if isinstance(model, PreTrainedModel) and words is not None:
        check_whole(model.config, name)
        copied: Any = copy.deepcopy(model)
        model = copied.to(device, getattr(torch, dtype))
        sees = getattr(words, "image_processor", None) is not None
        kind: Any = VisionLM if sees else MaskedDiffusionLM if type(model).__name__.endswith("MaskedLM") else CausalLM
        policy: Any = tried(lambda: kind(model, words), name)
        policy.module.requires_grad_(True)
    elif all(hasattr(model, x) for x in ("encode", "score", "prefill", "save")):
        owned: Any = copy.deepcopy(model)
        policy = placed(owned, device)
        policy.module.to(getattr(torch, dtype))
    else:
        told = "hand in (model, tokenizer) of transformers, (model, processor) where it sees"
        raise InputError("policy", value, told)
    if rank and not isinstance(policy, CausalLM | VisionLM):
        raise InputError("lora_rank", rank, "adapters are for language models of transformers: use 0")
    if rank:
        adapt(policy, rank, seed)
    return policy


def check_whole(config: Any, source: str) -> None:
    """Refuse weights of a few bits: their model's own layers cannot be trained."""
    if getattr(config, "quantization_config", None) is not None:
        raise InputError("policy", source, "its weights are quantised, and these cannot be trained: load the model in "
                         "full (a .gguf file is read so), and add --lora-rank where memory is short")  # fmt: skip


def from_pretrained(source: str, dtype: str, device: torch.device) -> CausalLM:
    """A folder, or an id of the Hugging Face hub."""
    folder = Path(source)
    local = isdir(folder) or source.startswith((".", "/", "~")) or source.count("/") != 1
    if local:
        if not isfile(folder / "config.json"):
            raise InputError(
                "policy", source,
                "it is no folder with a config.json, no .gguf file, no Hugging Face id (OWNER/NAME) and no alias "
                f"({', '.join(ALIASES)}, transformer:…)", choices=[*ALIASES, "transformer:"],
            )  # fmt: skip
        if not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
            raise InputError("policy", source, "the folder has no weights (model.safetensors): save the model there")
    check_whole(config_of(source), source)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
        model, report = loaded
        known = has_tokenizer(folder) or not local
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False) if known else None
    except Exception as error:  # what transformers raises has no common type
        remedy = "check the folder" if local else "without a network, give a local folder or an alias"
        raise InputError("policy", source, f"it cannot be loaded ({first_line(error)}): {remedy}") from error
    if report["missing_keys"]:
        raise InputError(
            "policy", source, f"its weights lack {sorted(report['missing_keys'])[:3]}: save the model again"
        )
    return tried(lambda: CausalLM(model.to(device), tokenizer), source)


def holds(folder: Path, ending: str, field: str = "architectures") -> bool:
    """Whether a folder has a model whose class ends so, with a field in its config."""
    file = folder / "config.json"
    config = json_object(file, "policy", "save the model again") if isfile(file) else {}
    named = config.get("architectures") or []
    return field in config and isinstance(named, list) and any(str(name).endswith(ending) for name in named)


def vision_from_pretrained(source: str, dtype: str, device: torch.device) -> VisionLM:
    """A vision-language model with its processor: a folder, or an id of the Hugging Face hub."""
    check_whole(config_of(source), source)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
        processor: Any = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # what transformers raises has no common type
        raise InputError(
            "policy", source, "no vision-language model with its processor can be loaded from it "
            f"({first_line(error)}); the processors of some families need torchvision",
        ) from error  # fmt: skip
    model, report = loaded
    if report["missing_keys"]:
        raise InputError(
            "policy", source, f"its weights lack {sorted(report['missing_keys'])[:3]}: save the model again"
        )
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        raise InputError("policy", source, "its processor has no tokenizer and image processor: save it with the model")
    return tried(lambda: VisionLM(model.to(device), processor), source)


def masked_diffusion(arguments: str, dtype: str, seed: int, device: torch.device) -> MaskedDiffusionLM:
    """`layers=2,…` from scratch over bytes; else an id or a folder, `,own-code=true` behind it where its classes are
    code of its own."""
    source, _, option = arguments.partition(",")
    if not source or "=" in source:
        s, tokenizer = sizes(arguments), ByT5Tokenizer(extra_ids=0, mask_token="<mask>")
        made: Any = tokenizer
        policy = small_denoiser(
            vocabulary=len(made), layers=s["layers"], width=s["width"], heads=s["heads"], context_length=s["context"],
            seed=seed, eos_id=int(made.eos_token_id), mask_id=int(made.mask_token_id), tokenizer=made,
        )  # fmt: skip
        policy.module.to(device, getattr(torch, dtype))
        return policy
    if option not in ("", "own-code=true"):
        raise InputError("policy", option, "behind a masked-diffusion model stands nothing or own-code=true")
    own_code = bool(option)
    if own_code:
        enter_model("policy", source)
    try:
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=own_code)
        own = getattr(config, "auto_map", None) or {}
        kinds: dict[str, Any] = {"AutoModelForMaskedLM": AutoModelForMaskedLM, "AutoModel": AutoModel}
        kind = next((kinds[k] for k in kinds if k in own), AutoModelForMaskedLM) if own_code else AutoModelForMaskedLM
        model = kind.from_pretrained(
            source, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=own_code
        )
        local = exists(source)
        tokenizer = tokenizer_of(source, own_code) if has_tokenizer(Path(source)) or not local else None
    except RAISED as error:  # what transformers raises has no common type
        raise InputError(
            "policy", source,
            f"it is no masked-diffusion model that can be loaded ({first_line(error)}); if its classes are code of its "
            f"own that you have read, write masked-diffusion:{source},own-code=true",
        ) from error  # fmt: skip
    policy = tried(lambda: MaskedDiffusionLM(model.to(device), tokenizer), source)
    policy.module.requires_grad_(True)
    return policy


def tokenizer_of(source: str, own_code: bool) -> Any:
    """The tokenizer of an id or a folder. transformers pairs some families of models with one class whatever the folder
    says, so that of our own small models is made by its name."""
    file = Path(source) / "tokenizer_config.json"
    named = json_object(file, "policy", "save it again").get("tokenizer_class") if isfile(file) else None
    if named == "ByT5Tokenizer":
        return ByT5Tokenizer.from_pretrained(source)
    return AutoTokenizer.from_pretrained(source, trust_remote_code=own_code)


def config_of(source: str) -> Any:
    """The config of a folder or an id; None where there is none that can be read (which loading says better)."""
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except RAISED:
        return None


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def sizes(arguments: str, **more: int) -> dict[str, int]:
    """`layers=2,width=64,heads=4,context=256`, and `more` with their defaults."""
    settings = {"layers": 2, "width": 64, "heads": 4, "context": 256} | more
    for pair in filter(None, arguments.split(",")):
        key, _, value = pair.partition("=")
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0
        if key not in settings or number < 1:
            raise InputError(
                "policy", pair, f"a model from scratch takes {', '.join(settings)} as whole numbers", choices=settings
            )
        settings[key] = number
    if settings["width"] % settings["heads"]:
        raise InputError("policy", arguments, "the width must be a multiple of the heads")
    if settings["context"] < 2:
        raise InputError("policy", arguments, "use a context of at least 2 tokens")
    places = settings["context"] + (settings.get("image", 0) // settings.get("patch", 1)) ** 2
    if settings["width"] * (12 * settings["layers"] * settings["width"] + places) > MOST:
        raise InputError("policy", arguments, f"it would have more than {MOST:,} weights: use smaller numbers")
    return settings


def from_scratch(arguments: str, seed: int) -> CausalLM:
    """A causal transformer of the given sizes over bytes."""
    settings = sizes(arguments)
    tokenizer: Any = ByT5Tokenizer(extra_ids=0)
    return small_transformer(
        vocabulary=len(tokenizer), layers=settings["layers"], width=settings["width"], heads=settings["heads"],
        context_length=settings["context"], seed=seed, eos_id=int(tokenizer.eos_token_id),
        pad_id=int(tokenizer.pad_token_id), tokenizer=tokenizer,
    )  # fmt: skip


def small_vision(arguments: str, seed: int) -> VisionLM:
    """A vision-language model of the given sizes over bytes."""
    from anypolicy.policies.language.small_vision import byte_tokenizer, small_vision_lm

    s = sizes(arguments, image=32, patch=8)
    if s["image"] % s["patch"]:
        raise InputError("policy", arguments, "the image's side must be a multiple of the patch's")
    return small_vision_lm(
        byte_tokenizer(), layers=s["layers"], width=s["width"], heads=s["heads"], context_length=s["context"],
        image=s["image"], patch=s["patch"], seed=seed,
    )  # fmt: skip


def adapt(policy: CausalLM | VisionLM, rank: int, seed: int) -> None:
    """Low-rank adapters on every linear layer of the trunk; only they are trained."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError("lora_rank", rank, "install peft: pip install 'anypolicy[lora]'") from error
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy.module = get_peft_model(policy.model, settings).eval()
    if isinstance(policy, CausalLM):
        policy.prepare()
