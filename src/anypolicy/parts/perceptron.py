"""Small networks as one node of the graph: the backward pass is written out, with nothing in it that nobody needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

aten = torch.ops.aten


def relu_network(
    x: Float[Tensor, "*rows n"], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Float[Tensor, "*ensemble batch m"]:
    """h ← max(h W + b, 0) for every layer but the last, which is h W + b. Weights are (n, m), or (E, n, m) for E
    networks, which see the same rows (batch, n) or their own (E, batch, n). It can be differentiated once, and not
    inside torch.func."""
    return _ReluNetwork.apply(x, *weights, *biases)  # pyright: ignore[reportReturnType, reportUnknownVariableType]


class _ReluNetwork(torch.autograd.Function):
    """Gradients of weights only if they want them; of the input alone, only from rows whose slope is not zero (of a
    minimum over E networks each row's slope is zero in all but one)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        layers = len(parameters) // 2
        weights, biases = parameters[:layers], parameters[layers:]
        ctx.shared, ctx.layers = x.dim() < weights[0].dim(), layers
        inputs = [x.expand(len(weights[0]), *x.shape) if ctx.shared else x]
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(affine(inputs[-1], w, b).relu_())
        ctx.save_for_backward(*inputs, *weights)
        return affine(inputs[-1], weights[-1], biases[-1])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError("this network can be differentiated once only: call its forward for second derivatives")
        n, [slope] = ctx.layers, slopes
        inputs, weights = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        learn = any(ctx.needs_input_grad[1:])
        if ctx.shared and not learn:
            return slope_of_input(slope, inputs, weights), *[None] * (2 * n)
        by_weight: list[Tensor | None] = [None] * n
        by_bias: list[Tensor | None] = [None] * n
        for i in range(n - 1, -1, -1):
            if learn:
                by_weight[i] = crossed(inputs[i], slope)
                by_bias[i] = slope.sum(-2, keepdim=slope.dim() == 3)
            if i:
                slope = aten.threshold_backward(back(slope, weights[i]), inputs[i], 0)
        seen = back(slope, weights[0]) if ctx.needs_input_grad[0] else None
        return seen.sum(0) if ctx.shared and seen is not None else seen, *by_weight, *by_bias


def affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x W + b, where a single output column goes the way that libraries are fast in."""
    if x.dim() == 2:
        return torch.addmm(b, x, w)
    return torch.baddbmm(b, x, as_row(w).mT if w.shape[-1] == 1 else w)


def crossed(x: Tensor, slope: Tensor) -> Tensor:
    """xᵀ g: the slope of W."""
    return (as_row(slope) @ x).view(*x.shape[:-2], -1, 1) if slope.shape[-1] == 1 else x.mT @ slope


def back(slope: Tensor, w: Tensor) -> Tensor:
    """g Wᵀ: the slope of x."""
    return slope * as_row(w) if w.shape[-1] == 1 else slope @ w.mT


def as_row(column: Tensor) -> Tensor:
    """(…, n, 1) as (…, 1, n)."""
    return column.reshape(*column.shape[:-2], 1, -1)


def slope_of_input(slope: Tensor, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Σ_e ∂/∂x of E networks on the same rows, from the rows (e, b) whose slope is not zero."""
    ensemble, batch, _ = slope.shape
    rows = slope.abs().amax(-1).flatten().nonzero().squeeze(1)
    counts = torch.bincount(rows // batch, minlength=ensemble).tolist()
    dense = len(rows) == ensemble * batch
    pick = (lambda x: x.flatten(0, 1)) if dense else (lambda x: x.flatten(0, 1).index_select(0, rows))
    at = pick(slope)
    for i in range(len(weights) - 1, -1, -1):
        at = torch.cat([back(g, w) for g, w in zip(at.split(counts), weights[i].unbind(0), strict=True)])
        if i:
            at = aten.threshold_backward(at, pick(inputs[i]), 0)
    return at.new_zeros(batch, at.shape[1]).index_add_(0, rows % batch, at)


def normalised_networks(
    x: Float[Tensor, "*rows n"], weights: Sequence[Tensor], biases: Sequence[Tensor], scales: Sequence[Tensor],
    shifts: Sequence[Tensor], *, tanh: bool = False,
) -> Float[Tensor, "ensemble batch m"]:  # fmt: skip
    """h ← f(LayerNorm(h W + b)) for every layer but the last, which is h W + b; f is max(·, 0) or tanh. Parameters are
    those of E networks, (E, …), which see the same rows (batch, n) or their own (E, batch, n). They are computed one
    after the other, so that what a layer makes of a batch stays in the processor's cache. It can be differentiated
    once, and not inside torch.func."""
    return _NormalisedNetworks.apply(x, tanh, *weights, *biases, *scales, *shifts)  # pyright: ignore[reportReturnType, reportUnknownVariableType]


class _NormalisedNetworks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tanh: bool, *parameters: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layers, ctx.tanh, ctx.shared = (len(parameters) + 2) // 4, tanh, x.dim() == 2
        kept, outs = list[Tensor](), list[Tensor]()
        for h, one in zip(own_rows(x, len(parameters[0])), one_by_one(parameters), strict=True):
            w, b, scale, shift = by_kind(one, ctx.layers)
            for i in range(ctx.layers - 1):
                z = torch.addmm(b[i], h, w[i])
                h, mean, rstd = torch.native_layer_norm(z, z.shape[1:], scale[i][0], shift[i][0], 1e-5)
                h = h.tanh_() if tanh else h.relu_()
                kept += [z, mean, rstd, h]
            outs.append(torch.addmm(b[-1], h, w[-1]))
        ctx.save_for_backward(x, *parameters, *kept)
        return torch.stack(outs)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError("this network can be differentiated once only: call its forward for second derivatives")
        n, count = ctx.layers, 4 * ctx.layers - 2
        x, *saved = ctx.saved_tensors
        parameters, kept = saved[:count], saved[count:]
        learn, seen = any(ctx.needs_input_grad[2:]), list[Tensor]()
        made = [torch.empty_like(p) if learn else p for p in parameters]
        both, each = zip(one_by_one(parameters), one_by_one(made), strict=True), 4 * (n - 1)
        for e, (h0, (one, to), g) in enumerate(zip(own_rows(x, len(slopes[0])), both, slopes[0], strict=True)):
            w, _, scale, shift = by_kind(one, n)
            to_w, to_b, to_scale, to_shift = by_kind(to, n)
            layers = kept[each * e : each * (e + 1)]
            for i in range(n - 1, -1, -1):
                h = layers[4 * i - 1] if i else h0
                if learn:
                    torch.mm(h.T, g, out=to_w[i])
                    torch.sum(g, 0, keepdim=True, out=to_b[i])
                if i:
                    z, mean, rstd, _ = layers[4 * i - 4 : 4 * i]
                    g = back(g, w[i])
                    g = aten.tanh_backward(g, h) if ctx.tanh else aten.threshold_backward(g, h, 0)
                    g, by_scale, by_shift = aten.native_layer_norm_backward(
                        g, z, z.shape[1:], mean, rstd, scale[i - 1][0], shift[i - 1][0], [True, learn, learn]
                    )
                    if learn:
                        to_scale[i - 1].copy_(by_scale)
                        to_shift[i - 1].copy_(by_shift)
            if ctx.needs_input_grad[0]:
                seen.append(g @ w[0].T)
        by_x = None if not seen else torch.stack(seen).sum(0) if ctx.shared else torch.stack(seen)
        return by_x, None, *(made if learn else [None] * count)


def own_rows(x: Tensor, networks: int) -> Sequence[Tensor]:
    """What each network sees."""
    return [x] * networks if x.dim() == 2 else x.unbind()


def one_by_one(parameters: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The parameters of every network."""
    return list(zip(*map(torch.unbind, parameters), strict=True))


def by_kind(parameters: Sequence[Tensor], layers: int) -> tuple[Sequence[Tensor], ...]:
    """Weights, biases, scales and shifts of one network."""
    weights, biases, rest = parameters[:layers], parameters[layers : 2 * layers], parameters[2 * layers :]
    return weights, biases, rest[: layers - 1], rest[layers - 1 :]
