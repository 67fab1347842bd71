"""One new token a row, for the usual decoder blocks: fused projections, attention that reads a group's prompt in place.

The prompt's keys and values are stored once and shared by the rows of its group; each row adds its own. The oracle is
the model's own forward pass with its own cache: `CausalLM` compares the two before it uses this one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from subprocess import SubprocessError
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from anypolicy.policies.language.kernels import BLOCK, LANES, NAMES, kernel

FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles do not depend on the sequence's length."""


class Unsupported(Exception):
    """Why a model cannot be decoded here; the caller falls back to the model's own forward pass."""


@dataclass
class DecoderState:
    """`prompt_keys`, `prompt_values`: one tensor a layer, shared; `keys`, `values`: what the rows have added, `used`
    tokens each, in a buffer that may hold more rows than there are. `owner` is the prompt of each row."""

    prompt_keys: list[Float[Tensor, "prompts heads blocks width block"]]
    prompt_values: list[Float[Tensor, "prompts heads tokens width"]]
    length: Int[Tensor, " prompts"]
    owner: Int[Tensor, " rows"]
    keys: list[Tensor] = field(default_factory=list[Tensor])
    values: list[Tensor] = field(default_factory=list[Tensor])
    used: int = 0

    @property
    def capacity(self) -> int:
        """Tokens that a row's buffer holds."""
        return self.values[0].shape[2] if self.values else 0

    @property
    def wide(self) -> int:
        """Places of the prompts' buffers."""
        return self.prompt_values[0].shape[2]

    def select(self, rows: Tensor) -> DecoderState:
        """The given rows; this state must not be used afterwards. Rows that stay where they are cost nothing."""
        if self.used:
            place = torch.arange(len(rows))
            moved = torch.nonzero(rows != place).squeeze(1)
            if len(moved) and int(rows[moved].min()) < len(rows):
                self.keys = [x.index_select(0, rows) for x in self.keys]
                self.values = [x.index_select(0, rows) for x in self.values]
            elif len(moved):
                for x in (*self.keys, *self.values):
                    x[moved] = x[rows[moved]]
        self.owner = self.owner[rows]
        return self

    def reserve(self) -> None:
        """Room for one more token in every row."""
        capacity = self.capacity
        if self.used < capacity:
            return
        wide, rows = max(2 * capacity, BLOCK), len(self.owner)
        for i, (k, v) in enumerate(zip(self.prompt_keys, self.prompt_values, strict=True)):
            heads, width = k.shape[1], k.shape[3]
            keys, values = k.new_empty(rows, heads, wide // BLOCK, width, BLOCK), v.new_empty(rows, heads, wide, width)
            if capacity:
                keys[:, :, : capacity // BLOCK], values[:, :, :capacity] = self.keys[i][:rows], self.values[i][:rows]
                self.keys[i], self.values[i] = keys, values
            else:
                self.keys.append(keys)
                self.values.append(values)


class Projection:
    """One or several linear layers on the same input as one product. Weights are read anew by `refresh`."""

    def __init__(self, *layers: nn.Module):
        self.layers: tuple[Any, ...] = layers
        for layer in layers:
            if type(getattr(layer, "base_layer", layer)) not in (nn.Linear, Conv1D):
                raise Unsupported(f"a {type(layer).__name__} is not a plain linear layer")
        self.packed: Tensor | None = None

    def refresh(self) -> None:
        """Join the weights; in bfloat16 also in the order in which the product reads them fastest."""
        self.weight = torch.cat([weight_of(x) for x in self.layers])
        self.bias = joined_bias([getattr(x, "base_layer", x) for x in self.layers])
        if self.weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def __call__(self, x: Float[Tensor, "rows n"], add: Tensor | None = None) -> Float[Tensor, "rows m"]:
        """x Wᵀ + b (+ add)."""
        if self.packed is not None and add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.packed, self.bias, "add")
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        if add is not None and self.bias is None:
            return torch.addmm(add, x, self.weight.T)
        y = functional.linear(x, self.weight, self.bias)
        return y if add is None else y.add_(add)


def weight_of(layer: Any) -> Float[Tensor, "out inner"]:
    """The layer's weight, with its low-rank adapters if it has any."""
    base = getattr(layer, "base_layer", layer)
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight
    if base is not layer:
        weight = weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters)
    return weight


def joined_bias(layers: list[Any]) -> Tensor | None:
    have = [getattr(x, "bias", None) for x in layers]
    if all(b is None for b in have):
        return None
    sizes = [x.nf if isinstance(x, Conv1D) else x.out_features for x in layers]
    return torch.cat([layers[0].weight.new_zeros(n) if b is None else b for b, n in zip(have, sizes, strict=True)])


class Norm:
    """Layer norm, or weight · x / √(mean x² + eps)."""

    def __init__(self, module: Any):
        self.module, self.eps = module, float(getattr(module, "variance_epsilon", getattr(module, "eps", 0)))
        self.plain = isinstance(module, nn.LayerNorm)
        self.rms = kernel("rms_norm", module.weight.dtype)

    def refresh(self) -> None:
        """Look up where the weights are."""
        self.weight = self.module.weight.data_ptr()

    def __call__(self, x: Float[Tensor, "rows n"], out: Tensor) -> Float[Tensor, "rows n"]:
        """Into `out`."""
        if self.plain:
            return self.module(x)
        self.rms(x.data_ptr(), self.weight, out.data_ptr(), *x.shape, self.eps)
        return out


@dataclass
class Layer:
    """A block: h + out(attention(qkv(norm(h)))), then h + down(activation(up(norm(h)))). With `gated` the activation is
    silu(first half) · second half. Head norms (`q_norm`, `k_norm`) come before the rotary embedding."""

    first: Norm
    qkv: Projection
    out: Projection
    second: Norm
    up: Projection
    down: Projection
    activation: Any = None
    q_norm: Any = None
    k_norm: Any = None


def layer_of(block: Any) -> Layer:
    """The parts of a Llama, Qwen2, Qwen3 or GPT-2 block."""
    if hasattr(block, "attn"):
        a, m = block.attn, block.mlp
        return Layer(
            Norm(block.ln_1), Projection(a.c_attn), Projection(a.c_proj), Norm(block.ln_2), Projection(m.c_fc),
            Projection(m.c_proj), m.act,
        )  # fmt: skip
    a, m = block.self_attn, block.mlp
    return Layer(
        Norm(block.input_layernorm), Projection(a.q_proj, a.k_proj, a.v_proj), Projection(a.o_proj),
        Norm(block.post_attention_layernorm), Projection(m.gate_proj, m.up_proj), Projection(m.down_proj), None,
        getattr(a, "q_norm", None), getattr(a, "k_norm", None),
    )  # fmt: skip


class Decoder:
    """The forward pass of single tokens for a model of class Llama, Qwen2, Qwen3 or GPT-2 in float32 or bfloat16."""

    def __init__(self, model: Any):
        config, base = model.config.get_text_config(), model.base_model
        if config.model_type not in ("llama", "qwen2", "qwen3", "gpt2"):
            raise Unsupported("its blocks are not known")
        self.dtype = next(model.parameters()).dtype
        if self.dtype not in NAMES:
            raise Unsupported(f"in {self.dtype} there is no fast decoding")
        if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
            raise Unsupported("it attends within a window")
        try:
            self.attend, self.silu_mul = kernel("attend", self.dtype), kernel("silu_mul", self.dtype)
        except (OSError, SubprocessError) as error:
            said = str(getattr(error, "stderr", None) or error).strip().splitlines()[0]
            raise Unsupported(f"decode.c cannot be compiled ({said})") from error
        self.model, self.base, self.rotary = model, base, getattr(base, "rotary_emb", None)
        if self.rotary is not None and (self.rotary.rope_type not in FIXED_ROTARY or config.hidden_act != "silu"):
            raise Unsupported("its rotary embedding or activation is not known")
        self.heads = int(config.num_attention_heads)
        self.key_heads = int(getattr(config, "num_key_value_heads", None) or self.heads)
        self.width = int(getattr(config, "head_dim", None) or config.hidden_size // self.heads)
        if self.width % LANES:
            raise Unsupported(f"its heads are {self.width} wide, no multiple of {LANES}")
        self.layers = [layer_of(block) for block in (base.h if self.rotary is None else base.layers)]
        attention = base.h[0].attn if self.rotary is None else base.layers[0].self_attn
        self.scale = float(attention.scaling)
        self.inner = int(getattr(config, "n_inner", None) or getattr(config, "intermediate_size", 0))
        self.final = Norm(base.ln_f if self.rotary is None else base.norm)
        self.head = Projection(model.get_output_embeddings())
        self.cosine = self.sine = torch.zeros(0, self.width)

    def __deepcopy__(self, memo: dict[int, Any]) -> Decoder:
        """A decoder of the copied model: compiled functions cannot be copied, weights are read anew in any case."""
        return Decoder(copy.deepcopy(self.model, memo))

    def refresh(self) -> None:
        """Read the weights again: they may have changed since the last generation."""
        self.head.refresh()
        self.final.refresh()
        for layer in self.layers:
            for part in (layer.first, layer.qkv, layer.out, layer.second, layer.up, layer.down):
                part.refresh()

    def state(self, cache: Any, valid: Tensor) -> DecoderState:
        """The state after prompts that the model has read: its cache, left-padded where `valid` is False."""
        length = valid.sum(1)
        wide = -(-int(length.max()) // BLOCK) * BLOCK
        place = (torch.arange(wide) + (~valid).sum(1)[:, None]).clamp(max=valid.shape[1] - 1)
        keys, values = [], []
        for layer in cache.layers:
            index = place[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            k = layer.keys.gather(2, index)
            keys.append(k.unflatten(2, (-1, BLOCK)).transpose(3, 4).contiguous())
            values.append(layer.values.gather(2, index))
        return DecoderState(keys, values, length, torch.arange(len(length)))

    def angles(self, position: Int[Tensor, " rows"]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each row's position, from a table that grows."""
        assert self.rotary is not None
        need = int(position.max()) + 1
        if need > len(self.cosine):
            every = torch.arange(max(need, 2 * len(self.cosine), 256))[None]
            cosine, sine = self.rotary(torch.empty(0, dtype=self.dtype), every)
            self.cosine, self.sine = cosine[0].float().contiguous(), sine[0].float().contiguous()
        return self.cosine[position], self.sine[position]

    def step(self, state: DecoderState, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Append one token to every row; the logits of the next."""
        position = state.length[state.owner] + state.used
        state.reserve()
        angles = None
        if self.rotary is None:
            h = self.base.wte(tokens) + self.base.wpe(position)
        else:
            h, angles = self.base.embed_tokens(tokens), self.angles(position)
        space, mixed = torch.empty_like(h), h.new_empty(len(h), self.heads * self.width)
        inner = h.new_empty(len(h), self.inner)
        for i, layer in enumerate(self.layers):
            self.attention(layer, i, layer.qkv(layer.first(h, space)), angles, state, mixed)
            h = layer.out(mixed, add=h)
            up = layer.up(layer.second(h, space))
            if layer.activation is None:
                self.silu_mul(up.data_ptr(), inner.data_ptr(), *inner.shape)
            else:
                inner = layer.activation(up)
            h = layer.down(inner, add=h)
        state.used += 1
        return self.head(self.final(h, space))

    def attention(
        self, layer: Layer, i: int, qkv: Tensor, angles: tuple[Tensor, Tensor] | None, state: DecoderState, out: Tensor
    ) -> None:
        """Store the new keys and values of layer i, attend to the prompt and to the row's own tokens; into `out`."""
        q, k = layer.q_norm, layer.k_norm
        self.attend(
            qkv.data_ptr(), None if q is None else q.weight.data_ptr(), None if k is None else k.weight.data_ptr(),
            0.0 if q is None else q.variance_epsilon, None if angles is None else angles[0].data_ptr(),
            None if angles is None else angles[1].data_ptr(), state.keys[i].data_ptr(), state.values[i].data_ptr(),
            state.capacity, state.used, state.prompt_keys[i].data_ptr(), state.prompt_values[i].data_ptr(),
            state.wide, state.length.data_ptr(), state.owner.data_ptr(), out.data_ptr(), len(qkv),
            self.heads, self.key_heads, self.width, self.scale,
        )  # fmt: skip
