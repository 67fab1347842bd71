"""A learned reward: a causal trunk with one linear output on the last token, in Hugging Face's sequence-classification
format, so that it and published reward models load each other's way."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from anypolicy.data.readers import first_line, json_object
from anypolicy.data.records import Prompt
from anypolicy.errors import InputError, check_values
from anypolicy.parts.noise import CPU
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.policies.language.load import has_tokenizer
from anypolicy.policies.language.recompute import recomputing
from anypolicy.policies.language.text import beginning, check_beside, known, left_out, quiet_transformers, readable
from anypolicy.runs.seeds import generator
from anypolicy.runs.strict_json import json_text

Scale = Literal["none", "standard", "unit"]
FILE = "reward.json"


class Calibration(NamedTuple):
    """Mean and population standard deviation of the scores of the training responses."""

    mean: float = 0.0
    std: float = 1.0


def rescale(score: Float[Tensor, " n"], calibration: Calibration, scale: Scale) -> Float[Tensor, " n"]:
    """none: the score s · standard: (s − mean) / std · unit: 2 σ(s − mean) − 1 in (−1, 1), by how much more likely than
    not the response is preferred to an average one. All keep the order."""
    if scale == "none":
        return score
    centred = score - calibration.mean
    return centred / calibration.std if scale == "standard" else torch.tanh(centred / 2)


UNCALIBRATED = Calibration()


class RewardModel:
    """R(prompt, response). Called with a prompt and the texts of its responses it is a reward function of a run."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase | None, calibration: Calibration = UNCALIBRATED,
        scale: Scale = "none", micro_tokens: int = 8192,
    ):  # fmt: skip
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise InputError("reward_model", model.config.model_type, "it must have one linear output, named `score`")
        self.module, self.tokenizer, self.calibration = model.eval(), tokenizer, calibration
        self.scale: Scale = scale
        self.micro_tokens, self.recompute = micro_tokens, False
        self.context_length = int(model.config.get_text_config().max_position_embeddings)

    @classmethod
    def from_policy(cls, policy: CausalLM, seed: int) -> RewardModel:
        """The policy's trunk with a new output, its weights N(0, 1/(width + 1)) (arXiv 2009.01325, appendix B.1)."""
        quiet_transformers()
        config = copy.deepcopy(policy.model.config)
        config.num_labels = 1
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
        model.base_model.load_state_dict(policy.model.base_model.state_dict())
        head: nn.Linear = model.score
        with torch.no_grad():
            fresh = torch.randn(head.weight.shape, generator=generator(seed, "reward-head"))
            head.weight.copy_(fresh / math.sqrt(head.in_features + 1))
        return cls(model.to(policy.device), policy.tokenizer)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def vocabulary(self) -> int:
        return int(self.module.get_input_embeddings().weight.shape[0])

    def encode(self, prompt: Prompt, response: str) -> list[int]:
        """Prompt and response through the chat template, or one after the other and an end-of-sequence token. Without a
        tokenizer a response is ids with spaces between them, as such a policy decodes them."""
        if prompt.media:
            raise InputError("reward_model", prompt.id, "the prompt shows images, and a reward model reads text alone")
        ids = self.plain_ids(prompt, response) if self.tokenizer is None else self.text_ids(prompt, response)
        return known("reward_model", prompt, ids, self.vocabulary).tolist()

    def plain_ids(self, prompt: Prompt, response: str) -> list[int]:
        words = response.split()
        if prompt.tokens is None or not all(w.isdecimal() for w in words):
            raise InputError("reward_model", beginning(prompt), "the model has no tokenizer: give prompts as token ids "
                             "and responses as ids with spaces between them")  # fmt: skip
        return [*prompt.tokens, *map(int, words)]

    def text_ids(self, prompt: Prompt, response: str) -> list[int]:
        t: Any = self.tokenizer
        if prompt.tokens is None and t.chat_template is not None:
            whole = [*prompt.messages, {"role": "assistant", "content": response}]
            with readable("prompt", prompt, "the reward model"):
                ids = list(t.apply_chat_template(whole, return_dict=False))
            if role := left_out(t, str(t.chat_template), tuple(str(m["role"]) for m in whole)):
                raise InputError("prompt", beginning(prompt), "the chat template of the reward model leaves out the "
                                 f"words of its message of the {role}")  # fmt: skip
            check_beside(prompt, lambda messages: t.apply_chat_template(messages, tokenize=False), "the reward model")
            return ids
        end = [] if t.eos_token_id is None else [t.eos_token_id]
        if prompt.tokens is not None:
            begin: list[int] = list(prompt.tokens)
        elif len(prompt.messages) == 1:
            check_beside(prompt, lambda messages: messages[0]["content"], "the reward model")
            begin = t.encode(prompt.messages[0]["content"])
            begin = begin[:-1] if end and begin[-1:] == end else begin
        else:
            raise InputError("reward_model", "no chat template", "its tokenizer has none, so give one message a prompt")
        return [*begin, *t.encode(response, add_special_tokens=False), *end]

    def score(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, " n"]:
        """The output on the last token of every sequence, with gradients, on the processor."""
        longest = max(map(len, sequences))
        if longest > self.context_length:
            raise InputError("reward_model", f"{longest} tokens", f"it holds {self.context_length}: shorten responses")
        tokens = torch.zeros(len(sequences), longest, dtype=torch.long)
        valid = torch.zeros_like(tokens)
        for i, ids in enumerate(sequences):
            tokens[i, : len(ids)], valid[i, : len(ids)] = torch.tensor(ids), 1
        last, ids, seen = valid.sum(1) - 1, tokens.to(self.device), valid.to(self.device)
        with recomputing(self.module) if self.recompute else nullcontext():
            states = self.module.base_model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
        score: Tensor = self.module.score(states[torch.arange(len(tokens)), last])[:, 0].cpu()
        return score if score.dtype == torch.float64 else score.float()

    @torch.no_grad()
    def scores(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, " n"]:
        """The same without gradients, in parts of at most `micro_tokens` padded tokens."""
        size = max(self.micro_tokens // max(map(len, sequences), default=1), 1)
        parts = [self.score(sequences[i : i + size]) for i in range(0, len(sequences), size)]
        return torch.cat(parts) if parts else torch.zeros(0)

    def __call__(self, prompt: Prompt, responses: list[str]) -> list[float]:
        raw = self.scores([self.encode(prompt, r) for r in responses])
        return rescale(raw.double(), self.calibration, self.scale).tolist()

    def __repr__(self) -> str:
        return "model"

    def save(self, folder: Path) -> None:
        """Hugging Face format, and the calibration in reward.json."""
        quiet_transformers()
        self.module.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        (folder / FILE).write_text(json_text(self.calibration._asdict()))

    @classmethod
    def load(
        cls, source: str | Path, *, dtype: str = "float32", scale: Scale = "none", device: torch.device = CPU
    ) -> RewardModel:  # fmt: skip
        """A saved reward model, a run that has trained one, or a sequence classifier of the Hugging Face hub."""
        quiet_transformers()
        folder = Path(source)
        folder = folder / "reward-model" if isdir(folder / "reward-model") else folder
        local = exists(folder) or str(source).count("/") != 1
        if local and not isfile(folder / "config.json"):
            raise InputError("reward_model", str(source), "it is no folder with a config.json and no OWNER/NAME")
        where = str(folder) if local else str(source)
        try:
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                where, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True,
                trust_remote_code=False,
            )  # fmt: skip
            model, report = loaded
            known = has_tokenizer(folder) or not local
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False) if known else None
        except Exception as error:  # what transformers raises has no common type
            raise InputError("reward_model", str(source), f"it cannot be loaded ({first_line(error)})") from error
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])[:3]
            raise InputError("reward_model", str(source), f"it lacks {missing}: is it a reward model?")
        return cls(
            model.to(device), tokenizer, calibration_of(folder / FILE) if isfile(folder / FILE) else UNCALIBRATED, scale
        )


def calibration_of(file: Path) -> Calibration:
    """What stands in reward.json."""
    allowed = "train the reward model again"
    facts = json_object(file, "reward_model", allowed, Calibration._fields)
    given = {name: facts[name] for name in Calibration._fields}
    check_values(dict.fromkeys(given, float), given, "reward_model.")
    if not given["std"] > 0:
        raise InputError("reward_model.std", given["std"], allowed)
    return Calibration(**given)
