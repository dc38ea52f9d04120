"""Convolutional conditioners: their formulas, any leading dims, contexts of both kinds, the start at zero."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels.nets import ConvNet, ConvResNet, GatedConvNet, PixelCNN, RowConvNet
from flowkernels.ops.conv_net import fused_torch
from flowkernels.ops.conv_net.fused_torch import pieces
from tests.transforms.test_transforms import randomise

C = 3
KINDS = {
    "glow": functools.partial(ConvNet, hidden=(8, 7)),
    "glow-bare": functools.partial(ConvNet, hidden=()),
    "real-nvp": functools.partial(ConvResNet, hidden=8, blocks=2),
    "real-nvp-normed": functools.partial(ConvResNet, hidden=8, blocks=1, batch_norm=True),
    "flow++": functools.partial(GatedConvNet, hidden=8, blocks=1),
    "flow++-attention": functools.partial(GatedConvNet, hidden=6, blocks=2, attention=2),
    "pixel-cnn": functools.partial(PixelCNN, hidden=8, blocks=1),
    "macow": functools.partial(RowConvNet, hidden=(8, 7)),
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
@pytest.mark.parametrize("name", ["glow", "real-nvp", "real-nvp-normed", "flow++", "flow++-attention"])
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


def test_gated_conv_net_is_its_formula() -> None:
    net = loose(GatedConvNet(2, 5, hidden=4, blocks=1, attention=2))
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    both = lambda h: F.elu(torch.cat((h, -h), 1))  # noqa: E731
    norm = lambda h, m: F.layer_norm(h.permute(0, 2, 3, 1), (4,), m.weight, m.bias).permute(0, 3, 1, 2)  # noqa: E731
    h = net.initial_layer(x)
    conv, attention = net.blocks
    a, b = conv.gate_layer(both(conv.conv_layer(both(h)))).chunk(2, 1)
    h = norm(h + a * torch.sigmoid(b), conv.norm_layer)
    row, column = torch.meshgrid(torch.arange(3.0).double(), torch.arange(4.0).double(), indexing="ij")
    places = torch.stack((row.sin(), row.cos(), column.sin(), column.cos()))
    q, k, v = attention.qkv_layer(h + places).flatten(2).unflatten(1, (3, 2, 2)).unbind(1)  # [N, head, 2, pixel]
    weights = (torch.einsum("nhcp,nhcq->nhpq", q, k) / 2**0.5).softmax(-1)
    a, b = attention.gate_layer(torch.einsum("nhpq,nhcq->nhcp", weights, v).reshape(2, 4, 3, 4)).chunk(2, 1)
    h = norm(h + a * torch.sigmoid(b), attention.norm_layer)
    torch.testing.assert_close(net(x), net.final_layer(h))


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
        (lambda: ConvNet(3, 5)(X), r"nets.ConvNet: x must be \[\.\.\., 3, H, W\] with pixels, got \[6, 2, 4, 4\]"),
        (
            lambda: ConvNet(2, 5)(X[..., :0, :]),
            r"2, H, W\] with pixels, got \[6, 2, 0, 4\]",
        ),
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


# ---- what is not called, and what is ----


def captured(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each convolution returned, as a hook keeps it, against a call on a copy of its input afterwards."""
    seen: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
    for name, m in net.named_modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(lambda m, args, out, name=name: seen.update({name: (m, args[0].clone(), out)}))
    net(x)
    return {name: (out, m.forward(given)) for name, (m, given, out) in seen.items()}


@EVERY
@pytest.mark.parametrize("graph", [False, True])
def test_hooks_see_what_layers_return_and_keep_it(kind, graph) -> None:
    """Nothing is written over where somebody may be looking."""
    net = loose(kind(2, 5))
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    before = net(x)
    with torch.set_grad_enabled(graph):
        found = captured(net, x)
        last = "final_layer" if isinstance(net, ConvNet) else ""
        assert found.keys() == {n for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and n != last}
        for out, wanted in found.values():
            torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(net(x), before)


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("change", ["class", "stride", "kernel", "no bias", "activation", "scale of a subclass"])
def test_modules_that_were_put_in_are_called(change) -> None:
    net = loose(ConvNet(2, 5, hidden=(8, 7)))
    x = torch.randn(3, 2, 6, 4, dtype=torch.float64)
    net(x)  # what is known of it is known from before
    if change in ("class", "stride", "kernel", "no bias"):
        cls = Doubled if change == "class" else nn.Conv2d
        kernel = {"kernel": 3, "stride": 3}.get(change, 1)
        new = cls(8, 7, kernel, padding=1 if change == "kernel" else 0, bias=change != "no bias").double()
        net.hidden_layers[1] = new
    elif change == "activation":
        net.activation = torch.sin
    else:
        net.__class__ = type("Other", (ConvNet,), {"_final": lambda self, h: 3 * ConvNet._final(self, h)})
    h = net.activation(F.conv2d(x, net.hidden_layers[0].weight, net.hidden_layers[0].bias, padding=1))
    h = net.activation(net.hidden_layers[1](h))
    weight, bias = net.final_layer.weight, net.final_layer.bias
    wanted = F.conv2d(h, weight, bias, padding=1) * torch.exp(3 * net.log_scale).view(-1, 1, 1)
    torch.testing.assert_close(net(x), 3 * wanted if change.startswith("scale") else wanted)


@EVERY
def test_plain_modules_give_the_same(kind, monkeypatch) -> None:
    """Values and gradients of what runs without calling modules against the modules, with contexts too."""
    for dims in (1, 3):
        net = kind(2, 5, context=C, context_dims=dims).eval()
        randomise(net)
        x = torch.randn(6, 2, 5, 4, requires_grad=True)
        context = torch.randn(6, C, *((5, 4) if dims == 3 else ()), requires_grad=True)
        found = []
        for known in (True, False):
            if not known:
                monkeypatch.setattr("flowkernels.nets.conv._plain", lambda net: None)
            y = net(x, context)
            found.append((y, *torch.autograd.grad(y.square().sum(), [x, context, *net.parameters()])))
            with torch.no_grad():
                found[-1] += (net(x, context),)
        monkeypatch.undo()
        for mine, right in zip(*found, strict=True):
            atol = 8 * torch.finfo().eps * max(right.abs().max().item(), 1)
            torch.testing.assert_close(mine, right, rtol=0, atol=atol)


@EVERY
def test_batches_in_pieces(kind, monkeypatch) -> None:
    net = loose(kind(2, 5, context=C))
    x, context = torch.randn(7, 2, 5, 4, dtype=torch.float64), torch.randn(7, C, dtype=torch.float64)
    with torch.no_grad():
        whole = net(x, context)
        training = copy.deepcopy(net).train()(x, context)
        monkeypatch.setattr(fused_torch, "_WHOLE", 0)
        monkeypatch.setattr(fused_torch, "_PIECE", 3 * 8 * 8 * 20)
        assert pieces(7, 8 * 8 * 20) == 3
        torch.testing.assert_close(net(x, context), whole)
        torch.testing.assert_close(net.train()(x, context), training)  # batch norm is of the whole batch


def test_in_place_activations_of_the_user_do_what_they_did() -> None:
    """In a residual network one that works in place changes the stream, as it does without us."""
    net = loose(ConvResNet(2, 5, hidden=8, blocks=2, activation=functools.partial(nn.ReLU, inplace=True)()))
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    h = net.initial_layer(x)
    total = net.skip_layers[0](h)
    for block, skip in zip(net.blocks, net.skip_layers[1:], strict=True):
        first, second = block.conv_layers
        h = F.relu(h) + second(F.relu(first(F.relu(h))))
        total = total + skip(h)
    torch.testing.assert_close(net(x), net.final_layer(F.relu(total)))


@EVERY
def test_double_backward_transforms_and_autocast(kind) -> None:
    net = loose(kind(2, 3))
    net.activation = torch.tanh
    for block in getattr(net, "blocks", ()):
        block.activation = torch.tanh
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(net, x)
    torch.autograd.gradgradcheck(net, x)
    torch.testing.assert_close(torch.func.vmap(net)(x.detach()[:, None])[:, 0], net(x.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        assert net.float()(x.float()).dtype is torch.bfloat16
