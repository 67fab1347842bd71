"""Networks that are one node of the graph, beside the plain ones."""

import pytest
import torch

from anypolicy.parts.perceptron import normalised_networks, relu_network
from anypolicy.policies.control import mlp
from anypolicy.policies.control.mlp import MLP


@pytest.mark.parametrize("stack", [None, 3])
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("learn", [True, False])
def test_one_node_has_the_gradients_of_the_plain_network(stack, width, learn):
    net = MLP([5, 8, 8, width], torch.Generator().manual_seed(0), stack=stack).double().requires_grad_(learn)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    wanted = [x, *(net.parameters() if learn else ())]
    out, plain = relu_network(x, list(net.weights), list(net.biases)), net(x)
    torch.testing.assert_close(out, plain)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight = weight * (torch.arange(6) % 2)[:, None]  # rows whose slope is zero
    for got, want in zip(torch.autograd.grad((out * weight).sum(), wanted),
                         torch.autograd.grad((plain * weight).sum(), wanted), strict=True):  # fmt: skip
        torch.testing.assert_close(got, want)


def test_a_second_derivative_through_one_node_is_refused():
    net = MLP([2, 4, 1], torch.Generator().manual_seed(0))
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(net.quick(x).sum(), x, create_graph=True)


def normalised(net: MLP, x: torch.Tensor, tanh: bool) -> torch.Tensor:
    return normalised_networks(x, list(net.weights), list(net.biases), list(net.scales), list(net.shifts), tanh=tanh)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("rows", ["shared", "own"])
@pytest.mark.parametrize("wants", ["all", "input", "weights"])
def test_normalised_networks_have_the_gradients_of_the_plain_ones(activation, width, rows, wants):
    rng = torch.Generator().manual_seed(0)
    net = MLP([5, 8, 7, width], rng, stack=3, activation=activation, layer_norm=True).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, generator=rng)
    net.requires_grad_(wants != "input")
    x = torch.randn(*((3,) if rows == "own" else ()), 6, 5, generator=rng, dtype=torch.float64,
                    requires_grad=wants != "weights")  # fmt: skip
    wanted = [*([x] if x.requires_grad else []), *(net.parameters() if wants != "input" else ())]
    out, plain = normalised(net, x, activation == "tanh"), net(x)
    torch.testing.assert_close(out, plain)
    weight = torch.randn(out.shape, generator=rng, dtype=torch.float64)
    for got, want in zip(torch.autograd.grad((out * weight).sum(), wanted),
                         torch.autograd.grad((plain * weight).sum(), wanted), strict=True):  # fmt: skip
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_the_quick_way_is_the_plain_one_whatever_the_size(activation, monkeypatch):
    net = MLP([2, 6, 1], torch.Generator().manual_seed(0), stack=2, activation=activation, layer_norm=True)
    x, seen = torch.randn(4, 2, generator=torch.Generator().manual_seed(1)), []
    monkeypatch.setattr(mlp, "normalised_networks", lambda *a, **k: seen.append(a) or normalised_networks(*a, **k))
    for least, times in ((25, 0), (24, activation != "silu")):
        monkeypatch.setattr(mlp, "WORTH_A_LOOP", least)
        torch.testing.assert_close(net.quick(x), net(x))
        assert len(seen) == times


def test_a_second_derivative_through_normalised_networks_is_refused():
    net = MLP([2, 4, 1], torch.Generator().manual_seed(0), stack=2, layer_norm=True)
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(normalised(net, x, False).sum(), x, create_graph=True)
