"""Convolutional conditioners: their formulas, any leading dims, contexts of both kinds, the start at zero."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels.nets import ConvNet, ConvResNet
from tests.transforms.test_transforms import randomise

C = 3
KINDS = {
    "glow": functools.partial(ConvNet, hidden=(8, 7)),
    "glow-bare": functools.partial(ConvNet, hidden=()),
    "real-nvp": functools.partial(ConvResNet, hidden=8, blocks=2),
    "real-nvp-normed": functools.partial(ConvResNet, hidden=8, blocks=1, batch_norm=True),
}
EVERY = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """Small tensors: a second thread costs more than it gives."""
    threads(1)


def loose(net: nn.Module) -> nn.Module:
    randomise(net)
    return net.double().eval()


def test_conv_net_is_its_formula() -> None:
    net = loose(ConvNet(2, 5, hidden=(4, 3, 6), activation=torch.tanh))
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    shapes = [tuple(layer.weight.shape) for layer in (*net.hidden_layers, net.final_layer)]
    assert shapes == [(4, 2, 3, 3), (3, 4, 1, 1), (6, 3, 1, 1), (5, 6, 3, 3)]
    h = x
    for i, layer in enumerate(net.hidden_layers):
        h = torch.tanh(F.conv2d(h, layer.weight, layer.bias, padding=0 if i else 1))
    wanted = F.conv2d(h, net.final_layer.weight, net.final_layer.bias, padding=1)
    wanted = wanted * torch.exp(3 * net.log_scale).view(-1, 1, 1)
    torch.testing.assert_close(net(x), wanted)


def test_conv_res_net_is_its_formula() -> None:
    net = loose(ConvResNet(2, 5, hidden=4, blocks=2))
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    h = net.initial_layer(x)
    total = net.skip_layers[0](h)
    for block, skip in zip(net.blocks, net.skip_layers[1:], strict=True):
        first, second = block.conv_layers
        h = h + second(F.relu(first(F.relu(h))))
        total = total + skip(h)
    torch.testing.assert_close(net(x), net.final_layer(F.relu(total)))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("name", ["glow", "real-nvp", "real-nvp-normed"])
def test_context_is_as_if_it_stood_beside_x(name, dims) -> None:
    """Images of context are more channels of x. A vector is a bias: unlike channels it is not padded at the border."""
    net = loose(KINDS[name](2, 5, context=C, context_dims=dims))
    x = torch.randn(6, 2, 5, 4, dtype=torch.float64)
    context = torch.randn(6, C, *((5, 4) if dims == 3 else ()), dtype=torch.float64)
    state = {k: v for k, v in net.state_dict().items() if "context_layer" not in k}
    first = "initial_layer" if "initial_layer.weight" in state else "hidden_layers.0"

    def other(channels: int, **changed: Tensor) -> nn.Module:
        plain = KINDS[name](channels, 5).double().eval()
        plain.load_state_dict({**state, **{f"{first}.{k}": v for k, v in changed.items()}})
        return plain

    if dims == 3:
        weight = torch.cat((state[f"{first}.weight"], net.context_layer.weight), 1)
        wanted = other(2 + C, weight=weight)(torch.cat((x, context), 1))
    else:
        biases = state[f"{first}.bias"] + net.context_layer(context)
        wanted = torch.stack([other(2, bias=b)(image) for b, image in zip(biases, x, strict=True)])
    torch.testing.assert_close(net(x, context), wanted)
    assert (net(x, context) - net(x, context.flip(0))).abs().max() > 1e-3


def test_bare_conv_net_with_context() -> None:
    net = loose(ConvNet(2, 5, hidden=(), context=C))
    x, context = torch.randn(6, 2, 5, 4).double(), torch.randn(6, C).double()
    wanted = loose(ConvNet(2, 5, hidden=()))
    wanted.load_state_dict({k: v for k, v in net.state_dict().items() if "context_layer" not in k})
    torch.testing.assert_close(net(x, context), wanted(x) + net.context_layer(context)[:, :, None, None])
    assert (ConvNet(2, 5, hidden=(), context=C)(torch.randn(6, 2, 4, 4), torch.randn(C)) == 0).all()


@EVERY
def test_any_leading_dims(kind) -> None:
    net = loose(kind(2, 5, context=C))
    x, context = torch.randn(3, 4, 2, 5, 4).double(), torch.randn(4, C).double()
    found = net(x, context)
    assert found.shape == (3, 4, 5, 5, 4)
    torch.testing.assert_close(found, net(x, context.expand(3, 4, C)))
    torch.testing.assert_close(found[1, 2], net(x[1, 2], context[2]))
    torch.testing.assert_close(found[1], net(x[1], context))
    assert net(x[:0], context).shape == (0, 4, 5, 5, 4)
    torch.testing.assert_close(net(x[1].contiguous(memory_format=torch.channels_last), context), found[1])


@EVERY
def test_start(kind) -> None:
    """Values where they were asked for, a network that is alive at the first step or, from zero, at the second."""
    net = kind(2, 5).eval()
    values = torch.arange(5.0)
    net.start_at(values)
    x = torch.randn(6, 2, 5, 4)
    torch.testing.assert_close(net(x), values.view(5, 1, 1).expand(6, 5, 5, 4), rtol=0, atol=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (net(x) * x.sum(1, keepdim=True)).square().sum().backward()
        optimizer.step()
    for name, p in net.named_parameters():
        assert p.grad is not None and (p.grad != 0).any(), name


def test_conv_net_starts_at_zero() -> None:
    assert (ConvNet(2, 5)(torch.randn(6, 2, 5, 4)) == 0).all()


@EVERY
def test_state_copies_and_compile(kind) -> None:
    net = loose(kind(2, 5, context=C))
    x, context = torch.randn(6, 2, 5, 4).double(), torch.randn(6, C).double()
    wanted = net(x, context)
    fresh = kind(2, 5, context=C).double().eval()
    fresh.load_state_dict(net.state_dict())
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh, compiled):
        torch.testing.assert_close(other(x, context), wanted)


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def test_activation_may_be_a_class() -> None:
    assert isinstance(ConvNet(2, 5, activation=Plain).activation, Plain)
    assert isinstance(ConvResNet(2, 5, activation=nn.ELU).blocks[0].activation, nn.ELU)


X = torch.zeros(6, 2, 4, 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConvNet(0, 5), "nets.ConvNet: in_channels must be at least 1, got 0"),
        (lambda: ConvResNet(2, 5, context=-1), "nets.ConvResNet: context must be at least 0, got -1"),
        (lambda: ConvNet(2, 5, context=2, context_dims=2), r"context_dims must be 1 \(features\) or 3 .*, got 2"),
        (lambda: ConvNet(3, 5)(X), r"nets.ConvNet: x must be \[\.\.\., 3, H, W\], got \[6, 2, 4, 4\]"),
        (lambda: ConvNet(2, 5, context=C)(X), r"nets.ConvNet: context must be \[\.\.\., 3\], got None"),
        (lambda: ConvNet(2, 5, context=C)(X, torch.zeros(6, 2)), r"context must broadcast to \[6, 3\], got \[6, 2\]"),
        (lambda: ConvResNet(2, 5)(X, torch.zeros(6, 2)), "nets.ConvResNet: context must be None where context=0"),
        (
            lambda: ConvNet(2, 5, context=C, context_dims=3)(X, torch.zeros(6, 3, 4, 5)),
            r"context must be \[6, 3, 4, 4\], got \[6, 3, 4, 5\]",
        ),
    ],
)
def test_errors(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()
