"""A table of logits as a language policy: exact, instant, and the smallest thing a method must be able to teach."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from anypolicy.data.batch import Batch
from anypolicy.data.readers import read_tensors
from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.logits import Logits
from anypolicy.runs.strict_json import json_text


class TableState(NamedTuple):
    """Which prompt each row answers and how many tokens it has."""

    prompt: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]

    def select(self, rows: Tensor) -> TableState:
        rows = rows.to(self.prompt.device)
        return TableState(self.prompt[rows], self.position[rows])


class Table(nn.Module):
    """z[prompt, position, token], the logits of independent tokens."""

    def __init__(self, logits: Float[Tensor, "prompts length vocabulary"]):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())


class TablePolicy:
    """π(token | prompt n, position l) = softmax(z[n, l]). The context of prompt n is the single id n; every response
    has exactly `length` tokens. `hidden` is the one-hot of (prompt, position), so a linear value head is a table."""

    def __init__(self, logits: Float[Tensor, "prompts length vocabulary"]):
        self.module = Table(logits)
        self.dtype = logits.dtype
        prompts, length, _ = logits.shape
        self.stop_ids: tuple[int, ...] = ()
        self.context_length = 1 + length
        self.hidden_size = prompts * length

    @property
    def device(self) -> torch.device:
        return self.module.logits.device

    def encode(self, prompt: Prompt) -> Tokens:
        return np.array(prompt.tokens, np.int64)

    def encode_reference(self, prompt: Prompt) -> Tokens:
        """Token ids, as many as a response has."""
        ids, (_, length, vocabulary) = prompt.reference, self.module.logits.shape
        if not isinstance(ids, tuple) or len(ids) != length or not all(0 <= i < vocabulary for i in ids):
            raise InputError("reference", ids, f"a table's is {length} token ids from 0 to {vocabulary - 1}")
        return np.array(ids, np.int64)

    def decode(self, tokens: Tokens) -> str:
        return " ".join(str(t) for t in tokens)

    def token(self, text: str) -> int:
        raise InputError("token", text, "a table's tokens are numbers: give the id")

    def score(
        self, batch: Batch, temperature: float, *, entropy: bool = False, hidden: bool = False, logits: bool = False
    ) -> Scores:
        z, tokens = self.module.logits, batch.response.shape[1]
        prompt = batch.context[batch.context_index, -1].to(self.device)
        position = torch.arange(tokens, device=self.device).clamp(max=z.shape[1] - 1)
        all_logp = torch.log_softmax(z / temperature, -1)[prompt[:, None], position]
        logp = all_logp.gather(2, batch.response[..., None].to(self.device)).squeeze(2).cpu()
        spread = -(all_logp.exp() * all_logp).sum(-1).cpu() if entropy else None
        where = None
        if hidden:
            index = prompt[:, None] * z.shape[1] + position
            where = z.new_zeros(*index.shape, self.hidden_size).scatter_(2, index[..., None], 1)
        wanted = Logits(all_logp[batch.target], lambda x: x) if logits else None
        return Scores(torch.where(batch.valid, logp, 0), spread, where, wanted)

    def score_masked(
        self, batch: Batch, masked: Bool[Tensor, "rows tokens"], temperature: float,
        context_masked: Bool[Tensor, "rows context_tokens"] | None = None,
    ) -> Float[Tensor, "rows tokens"]:  # fmt: skip
        """Tokens are independent, so what is masked changes nothing; the prompt is one number and cannot be hidden."""
        return torch.where(masked, self.score(batch, temperature).logp, 0)

    @torch.no_grad()
    def prefill(self, contexts: list[Tokens]) -> tuple[TableState, Tensor]:
        prompt = torch.tensor([int(c[0]) for c in contexts], device=self.device)
        # nothing follows a full response, so the logits after one are those of no token
        position = torch.tensor([len(c) - 1 for c in contexts], device=self.device).clamp(
            max=self.module.logits.shape[1] - 1
        )
        return TableState(prompt, position), self.module.logits[prompt, position]

    @torch.no_grad()
    def step(self, state: TableState, tokens: Tensor) -> Tensor:
        state.position.add_(1)
        return self.module.logits[state.prompt, state.position]

    def save(self, folder: Path) -> None:
        """table.safetensors and config.json."""
        save_file({"logits": self.module.logits.detach().contiguous()}, folder / "table.safetensors")
        (folder / "config.json").write_text(json_text({"type": "table", "shape": list(self.module.logits.shape)}))

    @classmethod
    def load(cls, folder: Path) -> TablePolicy:
        """The policy that `save` has written."""
        file = folder / "table.safetensors"
        if not file.is_file():
            raise InputError("policy", str(folder), "it has no table.safetensors")
        logits = read_tensors(file, "policy", ("logits",))["logits"]
        if logits.dim() != 3 or not logits.numel() or logits.dtype not in (torch.float32, torch.float64):
            held = f"{logits.dtype} of {tuple(logits.shape)}"
            raise InputError("policy", str(file), f"its logits are {held}: they are floats of prompts × tokens × ids")
        return cls(logits)
