"""Masked convolutions: what sees what, and that a walk by pixels or rows computes each once, and the same."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels.nets import MaskedConv2d, PixelCNN, RowConvNet
from flowkernels.nets.masked_conv import Strip, first_of_group
from tests.transforms.test_transforms import randomise

C = 3


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """Small tensors: a second thread costs more than it gives. And the same numbers every time."""
    threads(1)
    torch.manual_seed(0)


def loose(net: nn.Module) -> nn.Module:
    randomise(net)
    return net.double().eval()


# ---- one layer ----


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize(("sizes", "groups"), [((3, 6), 3), ((6, 3), 3), ((4, 5), 3), ((2, 3), 1), ((2, 1), 4)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_masked_convolution_is_a_convolution_of_a_masked_weight(mask, sizes, groups, k) -> None:
    """The mask as it is defined, weight by weight."""
    n_in, n_out = sizes
    layer = MaskedConv2d(n_in, n_out, k, mask, groups).double()
    weight = layer.weight.detach().clone()
    for o in range(n_out):
        for i in range(n_in):
            for a in range(k):
                for b in range(k):
                    mine, other = o * groups // n_out, i * groups // n_in
                    here = (a, b) == (k // 2, k // 2) and (other < mine or (mask == "B" and other == mine))
                    if not (here or (a, b) < (k // 2, k // 2)):
                        weight[o, i, a, b] = 0
    x = torch.randn(2, n_in, 6, 4).double()
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.bias, padding=k // 2))
    layer(x).sum().backward()
    assert (layer.weight.grad[weight == 0] == 0).all()
    with torch.no_grad():
        layer.weight[weight == 0] = torch.nan
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.bias, padding=k // 2))


@pytest.mark.parametrize(("channels", "groups"), [(3, 3), (7, 3), (2, 4), (1, 1), (10, 4)])
def test_first_of_group(channels, groups) -> None:
    of = [o * groups // channels for o in range(channels)]
    for g in range(groups):
        begin, end = (first_of_group(channels, groups, i) for i in (g, g + 1))
        assert of[begin:end] == [g] * of.count(g)


# ---- a network ----

NETS = {
    "residual": functools.partial(PixelCNN, 2, 6, hidden=7, blocks=2, first_kernel_size=5),
    "gated": functools.partial(PixelCNN, 3, 6, hidden=6, blocks=1, block="gated", first_kernel_size=3, kernel_size=5),
    "bare": functools.partial(PixelCNN, 1, 2, hidden=4, blocks=0),
    "context": functools.partial(PixelCNN, 2, 4, hidden=4, blocks=1, context=C),
    "images of context": functools.partial(PixelCNN, 2, 4, hidden=4, blocks=1, context=C, context_dims=3),
    "narrow": functools.partial(PixelCNN, 4, 4, hidden=2, blocks=1),
}


def given(name: str, n: int, height: int, width: int) -> Tensor | None:
    if "context" not in name:
        return None
    return torch.randn(n, C, *((height, width) if "images" in name else ())).double()


def test_a_pixel_cnn_is_its_formula() -> None:
    x = torch.randn(2, 2, 4, 3).double()
    for block in ("residual", "gated"):
        net = loose(PixelCNN(2, 4, hidden=5, blocks=1, block=block))
        h = net.initial_layer(x)
        if block == "gated":
            (b,) = net.blocks
            h = h + b.last_layer(torch.tanh(b.conv_layer(h)) * torch.sigmoid(b.gate_layer(h)))
        else:
            first, second, third = net.blocks[0].layers
            h = h + third(F.relu(second(F.relu(first(F.relu(h))))))
        torch.testing.assert_close(net(x), net.final_layer(F.relu(net.hidden_layer(F.relu(h)))))


@pytest.mark.parametrize("name", NETS)
def test_no_number_sees_itself_nor_what_is_behind_it(name) -> None:
    net = loose(NETS[name]())
    net.activation = torch.tanh  # whose units are never dead
    channels, P = net.in_channels, net.out_channels // net.in_channels
    x, context = torch.randn(1, channels, 3, 4).double(), given(name, 1, 3, 4)
    J = torch.autograd.functional.jacobian(lambda v: net(v, context), x)[0, :, :, :, 0]
    J = J.unflatten(0, (channels, P)).movedim(0, 3).movedim(0, -1)  # i, j, c of the output, c, i, j of x, P
    J = J.movedim(3, 5).flatten(0, 2).flatten(1, 3)  # both in the order in which they are found
    assert all((J[..., p].triu() == 0).all() for p in range(P))
    if name != "narrow":
        assert (J.abs().sum(-1)[-1] != 0).any()


@pytest.mark.parametrize("name", NETS)
def test_steps_are_the_network_and_compute_each_pixel_once(name, monkeypatch) -> None:
    net = loose(NETS[name]())
    n, (height, width) = 2, (4, 3)
    x, context = torch.randn(n, net.in_channels, height, width).double(), given(name, n, height, width)
    wanted = net(x, context).unflatten(1, (net.in_channels, -1))
    computed: Counter[nn.Module] = Counter()
    whole: list[nn.Module] = []
    pixel = Strip.pixel

    def counted(self: Strip, group: int) -> Tensor:
        out = pixel(self, group)
        computed[self.layer] += out.shape[1]
        return out

    monkeypatch.setattr(Strip, "pixel", counted)
    for layer in net.modules():
        if isinstance(layer, MaskedConv2d):
            layer.register_forward_hook(lambda m, *_: whole.append(m))
    steps = net.steps(torch.full_like(x, torch.nan), context)  # whose numbers nobody looks at
    for i in range(height):
        for j in range(width):
            for c in range(net.in_channels):
                torch.testing.assert_close(steps.params(), wanted[:, c, :, i, j])
                steps.put(x[:, c, i, j])
    layers = [m for m in net.modules() if isinstance(m, MaskedConv2d)]
    assert computed == {layer: layer.out_channels * height * width for layer in layers} and not whole


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaskedConv2d(0, 1), "MaskedConv2d: in_channels must be at least 1, got 0"),
        (lambda: MaskedConv2d(1, 1, 4), "MaskedConv2d: kernel_size must be odd, got 4"),
        (
            lambda: MaskedConv2d(2, 1)(torch.zeros(3, 5, 4, 4)),
            r"H, W\] with pixels, got \[3, 5, 4, 4\]",
        ),
        (
            lambda: MaskedConv2d(2, 1)(torch.zeros(3, 2, 0, 4)),
            r"H, W\] with pixels, got \[3, 2, 0, 4\]",
        ),
        (lambda: MaskedConv2d(2, 1)(torch.zeros(2, 4)), r"H, W\] with pixels, got \[2, 4\]"),
        (lambda: MaskedConv2d(1, 1, mask="C"), 'MaskedConv2d: mask must be "A" or "B", got \'C\''),
        (lambda: MaskedConv2d(1, 1, channel_groups=0), "channel_groups must be at least 1, got 0"),
        (lambda: PixelCNN(1, 2, block="dense"), 'PixelCNN: block must be "residual" or "gated", got \'dense\''),
        (lambda: PixelCNN(1, 2, blocks=-1), "PixelCNN: blocks must be at least 0, got -1"),
        (lambda: RowConvNet(1, 2, kernel_size=(2, 4)), r"kernel_size must be \(rows, odd columns\), got \(2, 4\)"),
        (lambda: RowConvNet(1, 2, hidden=()), "RowConvNet: hidden must be at least one width from 1 on"),
    ],
)
def test_errors(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# ---- rows ----


@pytest.mark.parametrize("kernel", [(1, 1), (2, 5), (3, 3), (6, 1)])
def test_row_conv_net_is_its_formula(kernel) -> None:
    """A convolution of the image with k rows of zeros above it and none of its last one."""
    net, (k, w) = loose(RowConvNet(2, 5, hidden=(4, 3), kernel_size=kernel)), kernel
    x = torch.randn(3, 2, 5, 4).double()
    above = torch.cat((torch.zeros(3, 2, k, 4).double(), x[:, :, :-1]), 2)
    first = net.initial_layer
    h = F.elu(F.conv2d(above, first.weight, first.bias, padding=(0, w // 2)))
    h = F.elu(net.hidden_layers[0](h))
    torch.testing.assert_close(net(x), net.final_layer(h))
    for i in range(5):
        torch.testing.assert_close(net.row(x[:, :, :i]), net(x)[:, :, i : i + 1])
